/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The generator's other way to send: the same packets through a UDP socket, for payloads that do not fit into a page.
 *
 * Packets of a heap go out several in one message, which the kernel cuts up (UDP_SEGMENT), all but the first, which is
 * longer. The kernel writes addresses and checksums. There is one flow, and no timestamps.
 */
#ifndef XDPSPEAD_BENCH_GENERATE_SOCKET_H
#define XDPSPEAD_BENCH_GENERATE_SOCKET_H

#include <netinet/in.h>
#include <signal.h>
#include <stdint.h>

#include "generate.h"

/* What the kernel takes of a datagram, less the longest SPEAD header. */
#define GENERATE_SOCKET_PAYLOAD_MAX 65000

struct generate_socket {
	const struct generate_plan *first, *other; /* of which the SPEAD header is used */
	const uint8_t *payload;                    /* as every packet has it, but for the stamp */
	uint64_t payload_size;
	uint64_t packets_per_heap;
	uint64_t first_heap;
	uint64_t count;
	uint64_t burst;       /* most packets sent in a row to catch up */
	double rate;          /* packets per second, 0 for as fast as possible */
	uint64_t deadline_ns; /* CLOCK_MONOTONIC: when to end whatever was sent */
	struct sockaddr_in to;
	const volatile sig_atomic_t *interrupted;
};

#define NS_PER_S 1000000000ULL

/* CLOCK_MONOTONIC */
uint64_t generate_now_ns(void);

/* Send until all is sent, time is over, or a signal came. Returns NULL, or what failed, with errno. */
const char *generate_through_socket(const struct generate_socket *job, struct generate_state *state);

#endif
