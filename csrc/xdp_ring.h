/* SPDX-License-Identifier: Apache-2.0 */
/*
 * xdp_ring - the rings that are shared with the kernel: RX and COMPLETION, of which we are the consumer, FILL and TX, of
 * which we are the producer. All memory ordering of AF_XDP lives here.
 *
 * Indices run freely and are masked on use. Each side writes only its own index and keeps a private copy of it, so that
 * the shared one is written once per batch. A ring has one user at a time: callers serialise.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "xdp_uapi.h"

struct xps_xdp_ring {
	uint32_t *producer, *consumer, *flags; /* shared */
	void *entries;                         /* struct xdp_desc; FILL and COMPLETION: uint64_t */
	uint32_t mask;
	uint32_t mine;   /* our own index */
	uint32_t theirs; /* the kernel's, when we last looked */
	void *map;
	size_t map_size;
};

/* RX: descriptors that wait. Looks at the shared index only if fewer than `wanted` are known of. */
static inline uint32_t xps_xdp_rx_available(struct xps_xdp_ring *ring, uint32_t wanted)
{
	/* acquire: pairs with the kernel's release, the descriptors it wrote are visible before its index */
	if (ring->theirs - ring->mine < wanted)
		ring->theirs = __atomic_load_n(ring->producer, __ATOMIC_ACQUIRE);
	return ring->theirs - ring->mine;
}

static inline const struct xdp_desc *xps_xdp_rx_entry(const struct xps_xdp_ring *ring, uint32_t i)
{
	return (const struct xdp_desc *)ring->entries + ((ring->mine + i) & ring->mask);
}

/* RX: `n` descriptors have been copied out. */
static inline void xps_xdp_rx_consume(struct xps_xdp_ring *ring, uint32_t n)
{
	ring->mine += n;
	/* release: our reads of the descriptors are done before the kernel may write there again */
	__atomic_store_n(ring->consumer, ring->mine, __ATOMIC_RELEASE);
}

/* FILL: the i-th entry that has not been submitted. There is always room, because the ring is as large as the UMEM has frames. */
static inline uint64_t *xps_xdp_fill_entry(const struct xps_xdp_ring *ring, uint32_t i)
{
	return (uint64_t *)ring->entries + ((ring->mine + i) & ring->mask);
}

static inline void xps_xdp_fill_submit(struct xps_xdp_ring *ring, uint32_t n)
{
	ring->mine += n;
	/* release: the addresses, and our last reads of the frames, come before the kernel may take them */
	__atomic_store_n(ring->producer, ring->mine, __ATOMIC_RELEASE);
}

/* FILL: frames that the kernel has not taken yet. */
static inline uint32_t xps_xdp_fill_level(const struct xps_xdp_ring *ring)
{
	/* relaxed: only a figure */
	return ring->mine - __atomic_load_n(ring->consumer, __ATOMIC_RELAXED);
}

/* FILL and TX: the driver sleeps until it is called. A flag that is missed now is seen at the next look. */
static inline bool xps_xdp_needs_wakeup(const struct xps_xdp_ring *ring)
{
	return __atomic_load_n(ring->flags, __ATOMIC_RELAXED) & XDP_RING_NEED_WAKEUP;
}

/* Likewise, when there is no next look: we are about to sleep. */
static inline bool xps_xdp_needs_wakeup_now(const struct xps_xdp_ring *ring)
{
	/*
	 * sequentially consistent: we write our index and then look at the flag, the kernel sets the flag and then looks
	 * at our index; otherwise each could miss the other's write. Adding 0 is a fence that thread sanitizers know.
	 */
	__atomic_fetch_add(ring->producer, 0, __ATOMIC_SEQ_CST);
	return __atomic_load_n(ring->flags, __ATOMIC_SEQ_CST) & XDP_RING_NEED_WAKEUP;
}

/* TX: the i-th entry that has not been submitted. There is always room, as in FILL. */
static inline struct xdp_desc *xps_xdp_tx_entry(const struct xps_xdp_ring *ring, uint32_t i)
{
	return (struct xdp_desc *)ring->entries + ((ring->mine + i) & ring->mask);
}

static inline void xps_xdp_tx_submit(struct xps_xdp_ring *ring, uint32_t n)
{
	ring->mine += n;
	/* release: the descriptors, and what we wrote into the frames, come before the kernel may take them */
	__atomic_store_n(ring->producer, ring->mine, __ATOMIC_RELEASE);
}

/* TX: take the last `n` back. Only if it is certain that the kernel has not looked at the ring meanwhile. */
static inline void xps_xdp_tx_withdraw(struct xps_xdp_ring *ring, uint32_t n)
{
	ring->mine -= n;
	__atomic_store_n(ring->producer, ring->mine, __ATOMIC_RELEASE);
}

/* TX: entries that the kernel has not said that it took. It may have taken more, but not all of them. */
static inline uint32_t xps_xdp_tx_waiting(const struct xps_xdp_ring *ring)
{
	/* relaxed: nothing else is read because of it; frames come back through COMPLETION */
	return ring->mine - __atomic_load_n(ring->consumer, __ATOMIC_RELAXED);
}

/* COMPLETION: frames that the kernel is done with; the same as for RX. */
static inline uint32_t xps_xdp_completion_available(struct xps_xdp_ring *ring)
{
	return xps_xdp_rx_available(ring, UINT32_MAX);
}

static inline uint64_t xps_xdp_completion_entry(const struct xps_xdp_ring *ring, uint32_t i)
{
	return ((const uint64_t *)ring->entries)[(ring->mine + i) & ring->mask];
}

static inline void xps_xdp_completion_consume(struct xps_xdp_ring *ring, uint32_t n)
{
	xps_xdp_rx_consume(ring, n);
}
