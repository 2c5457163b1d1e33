/* SPDX-License-Identifier: Apache-2.0 */
/*
 * xdp_queue - one receive queue of one interface: the frames (UMEM), the ring that gives them to the kernel, and the
 * socket that holds both. Shared by the streams that read this queue, each through a socket of its own (xdp_socket.h).
 *
 * How it works
 *
 * The *base socket* registers the memory, owns the FILL ring and is bound to the queue, but is in no map, so no packet
 * ever comes to it. Streams' sockets share its memory (XDP_SHARED_UMEM) and may come and go in any order; the base goes
 * when the last of them has gone. All frames are in the FILL ring to begin with, which is large enough for all; a reader
 * copies packets out and puts the frames back, a batch at a time, under the queue's lock.
 *
 * No reader may hold more than its share of the frames (frames / readers) for longer than it takes to call it: when one
 * joins, the others are kicked through their eventfds, because one that is blocked with all frames in hand would get no
 * packet and so would not be called.
 *
 * The kernel counts two things for the queue as a whole, not for each socket. What they grow by is credited to the
 * oldest reader, so that the sum over readers is right.
 */
#pragma once

#include <stdatomic.h>

#include "xdp_port.h"
#include "xdp_umem.h"

/* A reader's membership in a queue; part of its socket. */
struct xps_xdp_member {
	int kick_fd;         /* eventfd, may be the same for all queues of a reader */
	atomic_bool *kicked; /* set around the writing of kick_fd: who finds it set clears it, and then reads kick_fd */
	uint64_t fill_empty; /* credited so far */
	uint64_t rx_invalid;
	struct xps_xdp_member *next;
};

/* Wake a reader. */
void xps_xdp_kick(int kick_fd, atomic_bool *kicked);

struct xps_xdp_queue_config {
	uint64_t buffer_size;
	uint32_t n_alike; /* as in struct xps_xdp_place */
	int zero_copy;    /* as in struct xps_xdp_reader_config */
	int slot;         /* of the reader */
	/*
	 * Where the port is for others: memory for the frames, the caller's until the queue is open, then the queue's. If it
	 * is too little, or not there yet, the queue is not opened: -EAGAIN, and `wanted` says how much is needed.
	 */
	struct xps_xdp_shared_frames *frames;
	size_t *wanted;
};

struct xps_xdp_queue {
	struct xps_xdp_port *port;
	uint32_t index, n_alike;

	uint8_t *frames;
	uint32_t frame_size; /* power of two */
	uint32_t n_frames;
	uint32_t ring_size; /* n_frames rounded up to a power of two: for FILL and every RX ring */
	size_t memory;      /* bytes, FILL ring included */
	bool zero_copy, multi_buffer;
	int fd;                              /* the base socket */
	struct xps_xdp_shared_frames shared; /* the frames, where they can be passed on */

	atomic_uint n_members;
	pthread_mutex_t lock; /* for everything below */
	struct xps_xdp_ring fill;
	struct xps_xdp_member *members; /* oldest first */
	uint64_t seen_fill_empty, seen_rx_invalid;
};

/* Join the queue, opening it for the first reader; `config` then decides. */
int xps_xdp_queue_join(struct xps_xdp_queue **queue, struct xps_xdp_port *port, uint32_t index,
		       const struct xps_xdp_queue_config *config, struct xps_xdp_member *member, struct xps_fail *fail);
/* The member's frames have been given back and its socket is closed. The last one closes the queue. */
void xps_xdp_queue_leave(struct xps_xdp_queue *queue, struct xps_xdp_member *member);

/* Give the frames of `n` descriptors back to the kernel. */
void xps_xdp_queue_release(struct xps_xdp_queue *queue, const struct xdp_desc *descs, uint32_t n);
/* Call the driver through the member's socket if it waits to be called; `last` if the caller is about to sleep. */
void xps_xdp_queue_wakeup(struct xps_xdp_queue *queue, int fd, bool last);
/* Bring the members' credits up to date and read this one's. */
void xps_xdp_queue_credits(struct xps_xdp_queue *queue, struct xps_xdp_member *member, uint64_t *fill_empty,
			   uint64_t *rx_invalid);

/* The largest MTU whose packets fit its frames; 0 if all do, in several frames. */
int xps_xdp_queue_max_mtu(const struct xps_xdp_queue *queue);

/* Frames that one reader may hold. */
static inline uint32_t xps_xdp_queue_share(const struct xps_xdp_queue *queue)
{
	uint32_t n = atomic_load_explicit(&queue->n_members, memory_order_relaxed);

	return n > 1 ? queue->n_frames / n : queue->n_frames;
}
