// SPDX-License-Identifier: Apache-2.0
/*
 * Datagrams through a UDP socket.
 *
 * How it works
 *
 * Packets of one length that go to one place, the last of them maybe shorter, become one message with UDP_SEGMENT: the
 * kernel carries it through its layers as one and cuts it at the end, or has the device cut it. Many messages go with one
 * sendmmsg(2). A kernel, a device or a route that cannot do it refuses the message as a whole; then the packets are sent
 * one by one from then on.
 */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "bits.h"
#include "writer.h"

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif

#define ADDRESS_SIZE 28   /* struct sockaddr_in6 */
#define MAX_MESSAGE 65000 /* bytes that are cut: a little less than a datagram may have */
#define MAX_SEGMENTS 64   /* of one message, before Linux 6.9 */
#define MAX_SLICES 1024   /* of one message */

struct control {
	_Alignas(struct cmsghdr) char bytes[CMSG_SPACE(sizeof(uint16_t))];
};

struct udp_writer {
	struct xps_writer base;
	bool segmentation;
	socklen_t address_length;
	struct mmsghdr messages[XPS_MAX_WRITE];
	struct control controls[XPS_MAX_WRITE];
	uint32_t n_packets[XPS_MAX_WRITE]; /* in each message */
	uint8_t addresses[][ADDRESS_SIZE];
};

/* How many of the packets can go in one message. */
static uint32_t alike(const struct udp_writer *udp, const struct xps_write *packets, uint32_t n)
{
	const struct xps_write *first = &packets[0];
	uint64_t bytes = first->packet.length, slices = first->packet.n_slices;
	uint32_t same = 1;

	if (!udp->segmentation)
		return 1;
	while (same < n && same < MAX_SEGMENTS) {
		const struct xps_write *next = &packets[same];

		bytes += next->packet.length;
		slices += next->packet.n_slices;
		/* Their slices have to follow each other. */
		if (next->packet.slices != packets[same - 1].packet.slices + packets[same - 1].packet.n_slices)
			break;
		if (next->substream != first->substream || next->packet.length > first->packet.length ||
		    bytes > MAX_MESSAGE || slices > MAX_SLICES)
			break;
		same++;
		if (next->packet.length < first->packet.length)
			break;
	}
	return same;
}

static void set_segment_size(struct msghdr *header, struct control *control, uint32_t size)
{
	struct cmsghdr *message;
	uint16_t value = (uint16_t)size;

	header->msg_control = control->bytes;
	header->msg_controllen = sizeof(control->bytes);
	message = CMSG_FIRSTHDR(header);
	message->cmsg_level = IPPROTO_UDP;
	message->cmsg_type = UDP_SEGMENT;
	message->cmsg_len = CMSG_LEN(sizeof(value));
	memcpy(CMSG_DATA(message), &value, sizeof(value));
}

static void make_message(struct udp_writer *udp, uint32_t m, const struct xps_write *packets, uint32_t n)
{
	struct msghdr *header = &udp->messages[m].msg_hdr;

	memset(header, 0, sizeof(*header));
	header->msg_name = udp->addresses[packets[0].substream];
	header->msg_namelen = udp->address_length;
	header->msg_iov = packets[0].packet.slices;
	for (uint32_t i = 0; i < n; i++)
		header->msg_iovlen += packets[i].packet.n_slices;
	if (n > 1)
		set_segment_size(header, &udp->controls[m], packets[0].packet.length);
	udp->n_packets[m] = n;
}

static uint32_t make_messages(struct udp_writer *udp, const struct xps_write *packets, uint32_t n)
{
	uint32_t m = 0;

	for (uint32_t i = 0; i < n; m++) {
		uint32_t together = alike(udp, packets + i, n - i);

		make_message(udp, m, packets + i, together);
		i += together;
	}
	return m;
}

/* Whether an error may be only about segmentation, and the packets can be sent one by one. */
static bool cannot_segment(int err)
{
	return err == EINVAL || err == EIO || err == EMSGSIZE || err == EOPNOTSUPP || err == ENOPROTOOPT;
}

static int udp_write(struct xps_writer *writer, const struct xps_write *packets, uint32_t n)
{
	struct udp_writer *udp = XPS_CONTAINER_OF(writer, struct udp_writer, base);
	uint32_t n_messages = make_messages(udp, packets, n), done = 0;
	int sent;

	do
		sent = sendmmsg(writer->fd, udp->messages, n_messages, MSG_DONTWAIT | MSG_NOSIGNAL);
	while (sent < 0 && errno == EINTR);
	if (sent < 0 && udp->n_packets[0] > 1 && cannot_segment(errno)) {
		udp->segmentation = false;
		return udp_write(writer, packets, n);
	}
	if (sent < 0)
		return -errno;
	for (int i = 0; i < sent; i++)
		done += udp->n_packets[i];
	return (int)done;
}

static void udp_close(struct xps_writer *writer)
{
	struct udp_writer *udp = XPS_CONTAINER_OF(writer, struct udp_writer, base);

	if (writer->fd >= 0)
		close(writer->fd);
	free(udp);
}

/* Packets that fill whole messages. */
static uint32_t best_batch(uint64_t max_packet_size, bool segmentation)
{
	uint64_t together = xps_min_u64(MAX_SEGMENTS, MAX_MESSAGE / xps_min_u64(max_packet_size, MAX_MESSAGE));

	return segmentation ? (uint32_t)(XPS_MAX_WRITE / together * together) : 64;
}

struct xps_sender *xps_udp_sender_new(struct xps_pool *pool, const struct xps_sender_config *config, int fd,
				      const uint8_t *addresses, uint32_t n_addresses, bool segmentation,
				      struct xps_fail *fail)
{
	static const struct xps_writer_ops ops = {
		.name = "udp", .write = udp_write, .close = udp_close, .forget = udp_close
	};
	struct udp_writer *udp = calloc(1, sizeof(*udp) + (uint64_t)n_addresses * ADDRESS_SIZE);
	sa_family_t family;

	if (!udp) {
		xps_fail_set(fail, ENOMEM, "make stream", "no memory");
		return NULL;
	}
	memcpy(udp->addresses, addresses, (size_t)n_addresses * ADDRESS_SIZE);
	memcpy(&family, addresses, sizeof(family));
	udp->address_length = family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
	udp->segmentation = segmentation;
	udp->base = (struct xps_writer){
		.ops = &ops,
		.fd = fcntl(fd, F_DUPFD_CLOEXEC, 0),
		.n_substreams = n_addresses,
		.batch = best_batch(config->max_packet_size, segmentation),
	};
	if (udp->base.fd < 0) {
		xps_fail_set(fail, errno, "duplicate socket", "%s", strerror(errno));
		udp_close(&udp->base);
		return NULL;
	}
	return xps_sender_new(pool, config, &udp->base, fail);
}
