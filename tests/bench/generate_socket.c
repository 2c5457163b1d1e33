// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE
#include "generate_socket.h"

#include <endian.h>
#include <errno.h>
#include <netinet/udp.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* Not in the headers of older distributions. */
#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif

#define MESSAGE_MAX 65000 /* bytes: a little less than a datagram may have */
#define SEGMENTS_MAX 64   /* of one message, before Linux 6.9 */
#define SPEAD_OFFSET offsetof(struct generate_headers, spead_magic)
#define FIRST_HEADER (sizeof(struct generate_headers) - SPEAD_OFFSET)
#define OTHER_HEADER (FIRST_HEADER - GENERATE_POINTER_SIZE)

/* Packets one behind the other, all of one size. */
struct message {
	uint8_t *packets;
	uint64_t n, header_size, packet_size;
};

uint64_t generate_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

static uint64_t smaller(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static int make_message(struct message *m, const struct generate_socket *job, const struct generate_plan *plan,
			uint64_t header_size, uint64_t n_max)
{
	m->header_size = header_size;
	m->packet_size = header_size + job->payload_size;
	m->n = smaller(n_max, MESSAGE_MAX / m->packet_size);
	m->n = m->n ? m->n : 1;
	m->packets = malloc(m->n * m->packet_size);
	if (!m->packets)
		return -1;
	for (uint64_t i = 0; i < m->n; i++) {
		uint8_t *packet = m->packets + i * m->packet_size;

		memcpy(packet, (const uint8_t *)&plan->headers + SPEAD_OFFSET, header_size);
		memcpy(packet + header_size, job->payload, job->payload_size);
	}
	return 0;
}

static void store(uint8_t *to, uint64_t value)
{
	value = htobe64(value);
	memcpy(to, &value, sizeof(value));
}

/* Write what distinguishes the first `n` packets of a message. */
static void patch(const struct message *m, uint64_t n, const struct generate_socket *job, uint64_t heap, uint64_t index)
{
	for (uint64_t i = 0; i < n; i++, index++) {
		uint8_t *packet = m->packets + i * m->packet_size;
		const uint64_t offset = index * job->payload_size;

		store(packet + offsetof(struct generate_headers, heap_id) - SPEAD_OFFSET,
		      GENERATE_IMMEDIATE(GENERATE_HEAP_CNT, heap));
		store(packet + offsetof(struct generate_headers, payload_offset) - SPEAD_OFFSET,
		      GENERATE_IMMEDIATE(GENERATE_PAYLOAD_OFFSET, offset));
		store(packet + m->header_size, heap << 16 | index);
	}
}

/* 0, or -1 and errno. */
static int send_message(int fd, const struct message *m, uint64_t n)
{
	struct iovec bytes = { .iov_base = m->packets, .iov_len = n * m->packet_size };
	_Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(uint16_t))] = { 0 };
	const uint16_t segment = (uint16_t)m->packet_size;
	struct msghdr header = {
		.msg_iov = &bytes, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)
	};
	struct cmsghdr *message = CMSG_FIRSTHDR(&header);

	message->cmsg_level = IPPROTO_UDP;
	message->cmsg_type = UDP_SEGMENT;
	message->cmsg_len = CMSG_LEN(sizeof(segment));
	memcpy(CMSG_DATA(message), &segment, sizeof(segment));
	if (n == 1)
		header.msg_controllen = 0;
	/* Refused: a packet before has met no socket, which is not this one's business. */
	while (sendmsg(fd, &header, 0) < 0)
		if (errno != EINTR && errno != ECONNREFUSED && errno != ENOBUFS)
			return -1;
	return 0;
}

/* Wait until `n` more packets are due. False: it is time to end. The schedule moves if it is not kept. */
static int wait_until_due(const struct generate_socket *job, struct generate_state *state, uint64_t n)
{
	const double interval = job->rate > 0 ? (double)NS_PER_S / job->rate : 0;

	for (;;) {
		const uint64_t now = generate_now_ns();
		double elapsed, due;

		if (*job->interrupted || now >= job->deadline_ns)
			return 0;
		if (!state->start_ns)
			state->start_ns = now;
		elapsed = (double)(now - state->start_ns);
		due = (double)state->due / (1 << GENERATE_TIME_SHIFT) + (double)(n - 1) * interval;
		if (elapsed < due)
			continue;
		if (job->rate > 0 && elapsed - due > interval * (double)job->burst) {
			state->due += (uint64_t)((elapsed - due) * (1 << GENERATE_TIME_SHIFT));
			state->slips++;
		}
		state->due += (uint64_t)((double)n * interval * (1 << GENERATE_TIME_SHIFT));
		state->last_ns = now;
		return 1;
	}
}

static const char *send_all(int fd, const struct generate_socket *job, const struct message *first,
			    const struct message *other, struct generate_state *state)
{
	uint64_t heap = job->first_heap, index = 0;

	while (state->sent < job->count) {
		const struct message *m = index ? other : first;
		const uint64_t left = smaller(job->packets_per_heap - index, job->count - state->sent);
		const uint64_t n = smaller(m->n, left);

		if (!wait_until_due(job, state, n))
			break;
		patch(m, n, job, heap, index);
		if (send_message(fd, m, n) < 0)
			return "sending";
		state->sent += n;
		index += n;
		if (index == job->packets_per_heap) {
			index = 0;
			heap++;
		}
	}
	return NULL;
}

const char *generate_through_socket(const struct generate_socket *job, struct generate_state *state)
{
	/* No longer a message than may be sent in a row. */
	const uint64_t n_max = smaller(SEGMENTS_MAX, job->burst);
	const int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	struct message first = { 0 }, other = { 0 };
	const char *failed = NULL;

	if (fd < 0)
		return "making a socket";
	if (connect(fd, (const struct sockaddr *)&job->to, sizeof(job->to)) < 0)
		failed = "connecting the socket";
	else if (make_message(&first, job, job->first, FIRST_HEADER, 1) < 0 ||
		 make_message(&other, job, job->other, OTHER_HEADER, n_max) < 0)
		failed = "making the packets";
	else
		failed = send_all(fd, job, &first, &other, state);
	free(first.packets);
	free(other.packets);
	close(fd);
	return failed;
}
