/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fragment - from IP fragments to the datagrams that they were cut from.
 *
 * Used on captures, which hold packets as they were on the wire. It knows no capture file, no socket and no clock: the
 * caller gives it fragments that frame.h described, with the time of each. Memory is bounded: a datagram is put together
 * while at most XPS_FRAGMENT_SLOTS - 1 others begin, and for at most XPS_FRAGMENT_SECONDS. Both bounds also keep apart
 * the datagrams of a sender that comes back to an identifier, of which IPv4 has only 65,536.
 *
 * Where fragments contradict each other, which no sender does by accident, the whole datagram is given up (RFC 5722).
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct xps_frame;

enum { XPS_FRAGMENT_SLOTS = 64, XPS_FRAGMENT_SECONDS = 30 };

struct xps_fragments;

/* An IP payload that is all there. */
struct xps_joined {
	const uint8_t *payload; /* stays as it is until the next call */
	uint32_t length;
	uint32_t n_fragments; /* that it was put together from */
	uint8_t protocol;     /* of its first header */
};

struct xps_fragments *xps_fragments_new(void);
void xps_fragments_free(struct xps_fragments *fragments);

/*
 * Add a fragment that `frame` describes, whose whole payload is at `payload`, of time `now_s`. Returns 1 if that
 * completes its datagram, 0 if not, -ENOMEM. Every fragment is one of n_fragments of a datagram sooner or later, or is
 * counted by xps_fragments_lost().
 */
int xps_fragments_add(struct xps_fragments *fragments, const struct xps_frame *frame, const uint8_t *payload,
		      int64_t now_s, struct xps_joined *joined);
/* Give up all datagrams that are not complete. */
void xps_fragments_drop(struct xps_fragments *fragments);
/* Fragments so far that got into no datagram: it was given up, or they repeat others. */
uint64_t xps_fragments_lost(const struct xps_fragments *fragments);
