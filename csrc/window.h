/* SPDX-License-Identifier: Apache-2.0 */
/*
 * window - the heaps of a stream that are under construction, and which of them has to go when a new one comes.
 *
 * Packets go in, finished heaps come out through the outbox. The window makes no system call, takes no lock and knows
 * no clock; it belongs to one thread.
 *
 * How it works
 *
 * A heap belongs to substream cnt % substreams. Each substream is a ring of max_heaps slots: every new heap takes the
 * next slot and evicts what is still there, even if other slots are free, so that a partial heap lives for exactly
 * max_heaps further heaps of its substream. A hash table over all slots finds the heap of a packet; its cost does not
 * depend on the number of slots.
 *
 * A packet that is a heap all by itself is never looked up, but takes a slot like any other.
 *
 * Each substream remembers the numbers of the heaps that began last, twice as many as it has slots (but not more than
 * XPS_MAX_RECENT). One of these that is in no slot has gone out already, and what still comes of it is late.
 */
#pragma once

#include "heap.h"

/* The most heaps that the outbox holds: a packet adds at most two, the one it evicts and the one it completes. */
#define XPS_OUTBOX_SIZE 256
#define XPS_MAX_CREDIT (XPS_OUTBOX_SIZE - 2)
/* Heaps that a substream remembers at most, and so looks through for a packet that is refused. */
#define XPS_MAX_RECENT 128

struct xps_window_config {
	struct xps_heap_rules rules;
	uint64_t max_heaps;
	uint64_t substreams;
	bool stop_on_stop_item;
	bool allow_unsized_heaps;
	bool contiguous_only;
};

/* What is worth a line in the log; how often it happened is in the statistics. */
struct xps_window_news {
	int bad_stat, refused_stat; /* why the last packet was refused by decoder and heap; 0: none was */
	uint64_t refused_cnt;
	uint64_t discarded_cnt, discarded_received, discarded_expected;
};

struct xps_window {
	/* Output: who takes heaps sets n_out and out_bytes to 0 (or moves the rest to the front). */
	struct xps_heap *out[XPS_OUTBOX_SIZE];
	uint64_t out_bytes; /* payload in the outbox */
	uint32_t n_out;
	bool ended;                  /* a stop item came, or the owner says that the stream is over */
	uint64_t stats[XPS_N_STATS]; /* since the owner last took them */
	struct xps_window_news news;

	/* the window's own */
	struct xps_window_config config;
	struct xps_heap *last;   /* heap of the last packet, if it still is in its slot */
	struct xps_heap **slots; /* substreams * max_heaps */
	uint32_t *heads;         /* next slot of each substream */
	uint64_t *recent;        /* substreams * n_recent: a ring for each substream; heap number + 1, 0: none yet */
	uint32_t *recent_heads;  /* next place in each of these rings */
	uint32_t n_recent;
	uint32_t *buckets; /* first slot of each hash chain */
	uint32_t bucket_bits;
	uint32_t flushed; /* slots that xps_window_flush() is done with */
};

/* 0, -EINVAL (more than 2^24 slots) or -ENOMEM. The configuration is copied; the allocator stays the caller's. */
int xps_window_init(struct xps_window *window, const struct xps_window_config *config);
/* Free everything, heaps in slots and outbox included. */
void xps_window_fini(struct xps_window *window);

/*
 * Process views until all are done or more than `credit` (at most XPS_MAX_CREDIT) heaps are in the outbox. Returns how
 * many were taken. Views after a stop item are taken, however full the outbox, and counted as XPS_STAT_AFTER_STOP.
 */
uint32_t xps_window_push(struct xps_window *window, const struct xps_view *views, uint32_t n, uint32_t credit);

/*
 * The stream has ended: move what is left of each substream, oldest first, to the outbox until more than `credit` heaps
 * are there. Returns true when nothing is left.
 */
bool xps_window_flush(struct xps_window *window, uint32_t credit);
