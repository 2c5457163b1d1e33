/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ring - the bounded queue of finished heaps between a stream's workers and its users.
 *
 * Workers never wait: they push what fits and are told later that there is room. Users wait for heaps in pop, or by
 * polling a descriptor.
 *
 * Threads: push and wake are for the workers; the rest is for anyone.
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>

#include "xdpspead.h"

#define XPS_RING_PRODUCERS 64 /* at most, numbered from 0 */

/* Who is to know when there is something in the ring, or the ring has stopped, and may know the same of other rings. */
struct xps_ring_listener {
	/* The ring is locked. Returns the futex of those who are to be woken when it is not any more; or NULL. */
	_Atomic uint32_t *(*tell)(struct xps_ring_listener *listener);
};

struct xps_ring {
	pthread_mutex_t lock; /* guards all below but `expected`; `pushes` may be read without it */
	struct xps_heap **slots;
	uint32_t n_slots, head, count;
	uint32_t ahead;       /* heaps that were popped ahead of their time, and take up room as if they were here */
	uint32_t any_heaps;   /* so many fit in, however large */
	uint64_t bytes;       /* of those that are here */
	uint64_t ahead_bytes; /* of those that were popped ahead */
	uint64_t small_bytes; /* as many as together have no more fit in too */
	uint64_t last_bytes;  /* of the heap that came last */
	uint32_t n_waiting;   /* users in pop */
	bool crowd;           /* several users wait, or did and one of them has not looked since */
	bool signalled;       /* users have been told of heaps since one of them last found the ring empty */
	int fd;               /* eventfd, for those who poll; written to tell them, and at the end */
	bool fd_wanted;       /* there are such */
	bool raised;          /* it has been written */
	struct xps_ring_listener *listener; /* or NULL */
	uint64_t parked;                    /* producers that wait for room, bit by bit */
	atomic_bool expected;    /* a heap is: sleeping and being woken would take longer than it takes to come */
	_Atomic uint32_t pushes; /* and the stop; runs freely. Users in pop sleep on it */
	bool stopped;
};

/*
 * The ring is full when it holds at least `heaps` heaps, and at least `bytes` bytes of them, or so many small ones that
 * counting them would be pointless. 0, -EINVAL, -ENOMEM or the errno of eventfd(2).
 */
int xps_ring_init(struct xps_ring *ring, uint64_t heaps, uint64_t bytes);
/* Free the ring and the heaps in it. */
void xps_ring_fini(struct xps_ring *ring);

/*
 * Push the first so many of `n` heaps as there is room for; returns how many, and the room that is left in `room`, in
 * heaps as large as the last, which others may have taken before the caller looks. After stop all are refused. If not all
 * fit, the ring remembers that the producer is parked. Users who look find the heaps; those who wait are told by
 * xps_ring_wake(), once for all that came in one go, or by push once the ring is half full: they may be able to take
 * heaps while others are being made.
 */
uint32_t xps_ring_push(struct xps_ring *ring, uint32_t producer, struct xps_heap *const *heaps, uint32_t n,
		       uint32_t *room);
void xps_ring_wake(struct xps_ring *ring);
/*
 * The same, but waking those who sleep is left to the caller, who may have more for them: gets the futexes to call
 * xps_futex_wake() with, and returns how many these are.
 */
uint32_t xps_ring_tell(struct xps_ring *ring, _Atomic uint32_t *sleepers[2]);
/* No more heaps will come. Waiting users wake; what is in the ring can still be popped. */
void xps_ring_stop(struct xps_ring *ring);
bool xps_ring_stopped(struct xps_ring *ring);

/*
 * See xps_stream_pop() and xps_stream_pop_ahead(). `*unparked` has a bit for each producer that was parked, once there is
 * room for a quarter of the ring, for waking one costs as much as many heaps: wake them.
 */
int xps_ring_pop(struct xps_ring *ring, struct xps_heap **heaps, int n, int timeout_ms, uint64_t *unparked);
int xps_ring_pop_ahead(struct xps_ring *ring, struct xps_heap **heaps, int n, int timeout_ms, uint64_t *unparked);
int xps_ring_fd(struct xps_ring *ring);
/*
 * Tell a listener now, and then: when heaps come after it was found empty, when a pop leaves some, and of the stop. So
 * whoever pops once for each time it was told misses nothing. NULL: tell nobody any more, and from the return on nobody
 * is being told. -EBUSY: there is another.
 */
int xps_ring_listen(struct xps_ring *ring, struct xps_ring_listener *listener);
uint32_t xps_ring_size(struct xps_ring *ring);
