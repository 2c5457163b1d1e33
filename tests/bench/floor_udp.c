// SPDX-License-Identifier: Apache-2.0
/* The floor of UDP sockets: recvmmsg(2) with GRO, which only counts. */
#define _GNU_SOURCE
#include <netinet/in.h>
#include <netinet/udp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "floor.h"
#include "floor_wait.h"

/* Not in the headers of older distributions. */
#ifndef UDP_GRO
#define UDP_GRO 104
#endif

#define MESSAGES 64
#define MESSAGE_SIZE 65536

struct room {
	struct mmsghdr messages[MESSAGES];
	struct iovec vectors[MESSAGES];
	union {
		struct cmsghdr header;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control[MESSAGES];
	uint8_t data[MESSAGES][MESSAGE_SIZE];
};

static void prepare(struct room *room, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		struct msghdr *header = &room->messages[i].msg_hdr;

		room->vectors[i] = (struct iovec){ room->data[i], MESSAGE_SIZE };
		header->msg_iov = &room->vectors[i];
		header->msg_iovlen = 1;
		header->msg_control = &room->control[i];
		header->msg_controllen = sizeof(room->control[i]);
	}
}

static uint64_t packets_of(struct mmsghdr *message)
{
	struct cmsghdr *c = CMSG_FIRSTHDR(&message->msg_hdr);
	int size = 0;

	if (c && c->cmsg_level == SOL_UDP && c->cmsg_type == UDP_GRO)
		memcpy(&size, CMSG_DATA(c), sizeof(size));
	return size > 0 ? (message->msg_len + (unsigned int)size - 1) / (unsigned int)size : 1;
}

int floor_udp_run(int fd, uint64_t nap_ns, struct floor_counts *counts, const int *stop)
{
	struct room *room = calloc(1, sizeof(*room));
	bool had_packets = false;
	int n, err = 0;

	if (!room)
		return -ENOMEM;
	prepare(room, MESSAGES);
	while (!__atomic_load_n(stop, __ATOMIC_RELAXED)) {
		n = recvmmsg(fd, room->messages, MESSAGES, MSG_DONTWAIT, NULL);
		if (n < 0 && errno != EAGAIN && errno != EINTR) {
			err = -errno;
			break;
		}
		for (int i = 0; i < n; i++) {
			counts->packets += packets_of(&room->messages[i]);
			counts->bytes += room->messages[i].msg_len;
		}
		if (n > 0) {
			counts->calls++;
			counts->messages += (uint64_t)n;
			had_packets = true;
			prepare(room, (size_t)n);
		}
		if (n == MESSAGES)
			continue;
		floor_wait(fd, had_packets, nap_ns);
		had_packets = false;
	}
	free(room);
	return err;
}
