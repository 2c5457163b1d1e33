/* SPDX-License-Identifier: Apache-2.0 */
/*
 * lane - one worker's part of a stream: its readers, its window and its outbox; and what the lanes of a stream share.
 *
 * A stream has one lane, and more if a reader asks for several workers (transport.h). Packets of one lane never see those
 * of another. Only finished heaps meet, in the ring.
 *
 * Threads: any, for all functions.
 */
#pragma once

#include <pthread.h>

#include "ring.h"
#include "transport.h"
#include "window.h"

#define XPS_MAX_LANES XPS_RING_PRODUCERS

struct xps_lane;

struct xps_lanes {
	struct xps_pool *pool;
	struct xps_log *log;
	struct xps_window_config window_config; /* of each lane's window */
	int64_t nap_ns;
	struct xps_ring ring;

	/* Guards all below. Taken last, but for a loop's own lock; never held over anything that waits. */
	pthread_mutex_t lock;
	uint64_t stats[XPS_N_STATS];
	struct xps_queue_table *queues;      /* of all readers, those that have ended too */
	struct xps_lane *all[XPS_MAX_LANES]; /* the first `n`; none goes before the stream does */
	uint32_t n;
	uint32_t n_open; /* those that have not put their last heap into the ring */
	bool ending;     /* no lane is added any more, and those that are there have been told, or are being told */
	struct xps_fail failure; /* why they are, if a reader's source failed; else its err is 0 */
};

/* Begin with one lane. 0, -EINVAL, -ENOMEM, the errno of eventfd(2), -EPIPE if the pool has been stopped, -ECHILD. */
int xps_lanes_init(struct xps_lanes *lanes, struct xps_pool *pool, const struct xps_stream_config *config,
		   struct xps_allocator *allocator, struct xps_log *log);
/* They have been stopped, and nobody uses them any more. */
void xps_lanes_fini(struct xps_lanes *lanes);

/* See xps_stream_want_lanes(), xps_reader_attach_to(), xps_reader_detach(), xps_stream_stop() and xps_stream_queue_stats(). */
int xps_lanes_want(struct xps_lanes *lanes, uint32_t n);
int xps_lanes_attach(struct xps_lanes *lanes, uint32_t lane, struct xps_reader *reader);
void xps_lanes_detach(struct xps_lanes *lanes, uint32_t lane, struct xps_reader *reader);
void xps_lanes_stop(struct xps_lanes *lanes);
uint32_t xps_lanes_stats(struct xps_lanes *lanes, uint64_t *stats, struct xps_queue_stats *queues, uint32_t n);

/* See xps_stream_failure(). */
int xps_lanes_failure(struct xps_lanes *lanes, struct xps_fail *fail);

/* There is room in the ring again: let those go on that xps_ring_pop() told of. */
void xps_lanes_resume(struct xps_lanes *lanes, uint64_t parked);
