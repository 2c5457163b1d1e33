/* SPDX-License-Identifier: Apache-2.0 */
/*
 * send_group - heaps that are sent together: whose packet is next, and what became of them. It makes no system call and
 * knows no socket, thread or clock.
 */
#pragma once

#include "packetise.h"

/* One heap on its way. */
struct xps_sending {
	struct xps_packetiser packetiser;
	struct xps_send_heap *heap; /* held */
	double cost_ns;             /* of a byte: see limiter.h */
	uint32_t substream;
	uint32_t n_packets; /* made, and neither sent nor failed */
	uint32_t next;      /* heap in turn */
	bool cut;           /* all its packets have been made */
	bool failed;
};

struct xps_send_group {
	int mode; /* enum xps_group_mode */
	uint32_t n;
	struct xps_sending *heaps; /* `only` if there is one */
	struct xps_sending only;
	uint32_t turn, before; /* whose packet is next, and who comes before him in the circle of those not cut */
	uint32_t n_uncut;
	uint32_t n_open; /* heaps of which not all has been sent or has failed */
	uint32_t n_failed;
	uint64_t bytes; /* sent */
	int error;      /* negative errno of the first packet that was not */
};

/* Room for `n` heaps, at least one, which the caller fills (`packetiser`, `heap`, `cost_ns`, `substream`). 0 or -ENOMEM. */
int xps_send_group_init(struct xps_send_group *group, uint32_t n, int mode);
/* Let go of the heaps. */
void xps_send_group_fini(struct xps_send_group *group);

/* Make the next packet in the arena. Returns the heap to which it belongs, NULL if there are no more. */
struct xps_sending *xps_send_group_next(struct xps_send_group *group, struct xps_arena *arena,
					struct xps_out_packet *packet);
/* One packet was sent. */
void xps_send_group_sent(struct xps_send_group *group, struct xps_sending *heap, uint32_t bytes);
/* One packet was made, and could not be sent. */
void xps_send_group_failed(struct xps_send_group *group, struct xps_sending *heap, int err);
/* No more is sent, and no more of this will be called: what is not done has failed. */
void xps_send_group_cancel(struct xps_send_group *group, int err);

static inline bool xps_send_group_done(const struct xps_send_group *group)
{
	return group->n_open == 0;
}
