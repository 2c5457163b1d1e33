/* SPDX-License-Identifier: Apache-2.0 */
/*
 * xdp_socket - one reader's socket on one queue: the RX ring, the packets taken from it, and the frames that go back.
 *
 * How it works
 *
 * take() moves descriptors from the RX ring into `held`. A packet may lie in several frames, and the kernel may be in
 * the middle of one: the first `n_whole` held descriptors are whole packets, the rest is the beginning of the next one
 * and stays for the following take(). done() gives the frames of the whole packets back.
 *
 * When the reader's stream is blocked, or when others read the same queue and this reader falls behind, absorb() moves
 * descriptors from the ring to the `backlog`, which take() then empties first. The ring is empty afterwards, so that an
 * event loop sees nothing to do until a packet comes; and what goes beyond the reader's share of the frames is dropped
 * there, the newest first (as the kernel does it), whole packets only, and counted.
 *
 * Busy polling: the worker calls the driver (its NAPI) through the socket instead of sleeping until an interrupt does.
 * For that the kernel must have told the socket which NAPI serves the queue. Since 6.13 it does so when the socket is
 * bound, before with the first packet, and for some drivers never.
 *
 * Threads: open and busy_poll by the user's, stats by any, everything else by the reader's worker.
 */
#pragma once

#include "xdp_queue.h"

#define XPS_XDP_BATCH 64      /* descriptors taken at a time */
#define XPS_XDP_MAX_PIECES 64 /* frames that one packet may lie in; the kernel makes at most 18 to 46 */
#define XPS_XDP_HELD (XPS_XDP_BATCH + XPS_XDP_MAX_PIECES)

enum xps_xdp_napi {
	XPS_NAPI_NOT_WANTED,
	XPS_NAPI_NOT_TOLD, /* left alone, because it is nowhere to be had */
	XPS_NAPI_UNKNOWN,  /* until the first packet */
	XPS_NAPI_CALLED,
};

struct xps_xdp_socket {
	struct xps_xdp_queue *queue;
	struct xps_xdp_member member;
	struct xps_xdp_ring rx;
	int fd;
	bool zero_copy;
	enum xps_xdp_napi napi;

	struct xdp_desc held[XPS_XDP_HELD];
	uint32_t n_held, n_whole;
	bool in_pieces;      /* some of the whole packets lie in several frames */
	uint32_t n_overlong; /* packets in too many pieces, for the caller to count and clear */
	bool skipping;       /* one of them, not at its end yet */

	struct xdp_desc *backlog;         /* queue->ring_size entries */
	uint32_t backlog_in, backlog_out; /* run freely */
	bool in_packet;                   /* the last descriptor out of the ring was not its packet's last */
	bool dropping;                    /* the rest of that packet goes too */

	/* packets, counted by the reader; read by any thread */
	_Atomic uint64_t bad_frames;
	_Atomic uint64_t unread_drops;
	_Atomic uint64_t busy_polls; /* calls, not packets */
};

/* The member's kick_fd and kicked are set. */
int xps_xdp_socket_open(struct xps_xdp_socket *s, struct xps_xdp_port *port, uint32_t queue,
			const struct xps_xdp_queue_config *config, struct xps_fail *fail);
/*
 * A socket bound to the queue, with an RX ring, which is mapped if `rx` is not NULL. Returns its descriptor or a negative
 * errno.
 */
int xps_xdp_socket_bind(const struct xps_xdp_queue *queue, struct xps_xdp_ring *rx, struct xps_fail *fail);
/* Wait until no CPU can be delivering a packet that it redirected before this call. */
void xps_xdp_quiesce(void);
/*
 * Nothing is steered to the socket any more, and xps_xdp_quiesce() came between: give all frames back. Returns the packets that
 * nobody took, those in `held` not among them.
 */
uint32_t xps_xdp_socket_drain(struct xps_xdp_socket *s);
void xps_xdp_socket_close(struct xps_xdp_socket *s);

/* Prepare for busy polling, with `budget` packets at a time, and set `napi`. */
int xps_xdp_socket_busy_poll(struct xps_xdp_socket *s, int budget, struct xps_fail *fail);
/* The NAPI of the queue; 0 if the kernel has not said. */
uint32_t xps_xdp_socket_napi_id(const struct xps_xdp_socket *s);
/* A packet has come while `napi` was unknown: set it. */
void xps_xdp_socket_learn_napi(struct xps_xdp_socket *s);
/* Call the driver once. False if the interface is down or away. */
bool xps_xdp_socket_call_napi(struct xps_xdp_socket *s);

/* Take what has come, at most a batch. Returns n_whole. */
uint32_t xps_xdp_socket_take(struct xps_xdp_socket *s);
/* The whole packets have been used. */
void xps_xdp_socket_done(struct xps_xdp_socket *s);
/* Empty the ring into the backlog and drop what exceeds this reader's share. Returns the packets dropped. */
uint32_t xps_xdp_socket_absorb(struct xps_xdp_socket *s);
/* Whether others share the queue and this reader holds more than its share. */
bool xps_xdp_socket_behind(struct xps_xdp_socket *s);

/* rx_dropped and rx_ring_full are the socket's, the other two its credits in the queue's. */
void xps_xdp_socket_stats(struct xps_xdp_socket *s, struct xdp_statistics *stats);
