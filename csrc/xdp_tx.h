/* SPDX-License-Identifier: Apache-2.0 */
/*
 * xdp_tx - a socket that sends frames through one queue of an interface: packet memory, the TX ring that gives frames to
 * the kernel and the COMPLETION ring that brings them back. It knows nothing of what is in a frame.
 *
 * How it works
 *
 * Frames that nobody uses are on a stack: the last to come back is the first to be written again, while it is still in
 * the cache. stage() puts frames into the TX ring, push() lets the kernel see them and calls it.
 *
 * Zero-copy: the driver takes from the ring by itself, and says when it wants to be called. Copy: the kernel takes only
 * while it is being called, and it copies; it stops when the device's queue is full, and then nobody goes on but the
 * next call. Before Linux 6.17 it also stops after some frames. It does not always say what it took: the ring's index
 * may lag, before Linux 6.17 even by all frames of a call, until a call finds the ring empty.
 *
 * Threads: stats by any, everything else by one at a time. poll(2) on the socket would transmit, and it would wait for
 * ever when the interface goes down: nobody polls it.
 */
#pragma once

#include <stdatomic.h>

#include "xdp_umem.h"

#define XPS_XDP_TX_MAX_PIECES 16 /* frames that one packet may lie in; the kernel takes 17 or 18 */

struct xps_xdp_tx_config {
	int ifindex;
	uint32_t queue;
	uint32_t max_packet;  /* bytes with all headers */
	uint64_t buffer_size; /* bytes, rounded to frames */
	int zero_copy;        /* as in struct xps_xdp_sender_config */
};

struct xps_xdp_tx {
	struct xps_xdp_place place;
	char name[16];
	uint8_t *frames;
	uint32_t frame_size; /* power of two */
	uint32_t n_frames;   /* of ours */
	uint32_t n_lent;     /* behind them, the driver's to receive into; zero-copy only */
	uint32_t ring_size;  /* n_frames rounded up to a power of two */
	bool zero_copy, multi_buffer;
	bool one_call; /* takes all that there is, as long as the device has room */
	int fd;
	struct xps_xdp_ring tx, completion;

	uint32_t *free; /* frames that nobody uses, a stack of n_free */
	uint32_t n_free;
	uint32_t n_staged;
	bool *ends; /* by frame: a packet ends in it */

	atomic_uint_fast64_t completed; /* packets whose frames came back */
	atomic_uint_fast64_t dropped;   /* packets that the device let fall; copy only */
};

/* Fails with EMSGSIZE if packets of that size need several frames and the kernel cannot do that. */
int xps_xdp_tx_open(struct xps_xdp_tx *tx, const struct xps_xdp_tx_config *config, struct xps_fail *fail);
/* Wait until the kernel has sent everything, at most a second, and release everything. */
void xps_xdp_tx_close(struct xps_xdp_tx *tx);
/* In a forked child: close the socket, */
void xps_xdp_tx_disown(struct xps_xdp_tx *tx);
/* and release everything. Nothing is sent. */
void xps_xdp_tx_forget(struct xps_xdp_tx *tx);
size_t xps_xdp_tx_memory(const struct xps_xdp_tx *tx);
/* Descriptors that the kernel found to be wrong. */
uint64_t xps_xdp_tx_invalid(const struct xps_xdp_tx *tx);

/* Take back the frames that the kernel is done with. */
void xps_xdp_tx_reclaim(struct xps_xdp_tx *tx);

/* The address of a frame to be written, of which there are n_free. */
static inline uint64_t xps_xdp_tx_take(struct xps_xdp_tx *tx)
{
	return (uint64_t)tx->free[--tx->n_free] * tx->frame_size;
}

static inline uint8_t *xps_xdp_tx_at(const struct xps_xdp_tx *tx, uint64_t address)
{
	return tx->frames + address;
}

/* The next piece of a packet: `length` bytes, at least one, from `address` on, which lie in one frame. */
static inline void xps_xdp_tx_stage(struct xps_xdp_tx *tx, uint64_t address, uint32_t length, bool last)
{
	struct xdp_desc *desc = xps_xdp_tx_entry(&tx->tx, tx->n_staged++);

	tx->ends[address / tx->frame_size] = last;
	desc->addr = address;
	desc->len = length;
	desc->options = last ? 0 : XDP_PKT_CONTD;
}

/*
 * Hand over what was staged, and have the kernel take it. Returns 0 if it did or is going to; -EAGAIN if it cannot go on
 * at present: call again; -ENXIO if it never takes anything on this queue; or why it does not transmit. When it is certain
 * that none of what was staged has been seen, that is taken back (*withdrawn).
 */
int xps_xdp_tx_push(struct xps_xdp_tx *tx, bool *withdrawn);
