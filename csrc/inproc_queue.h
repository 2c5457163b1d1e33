/* SPDX-License-Identifier: Apache-2.0 */
/*
 * inproc_queue - packets of this process between those who add them and the streams that take them.
 *
 * Threads: all functions are for any.
 */
#pragma once

#include <sys/uio.h>

#include "xdpspead.h"

struct xps_inproc_packet {
	struct xps_inproc_packet *next; /* the queue's */
	uint32_t length;
	uint8_t data[];
};

void xps_inproc_queue_ref(struct xps_inproc_queue *queue);
/* A packet of its own memory, gathered from slices of less than 4 GiB. NULL: no memory. */
struct xps_inproc_packet *xps_inproc_packet_new(const struct iovec *slices, uint32_t n, uint64_t length);
/*
 * Add packets that are linked, from `first` to `last`. On failure they are still the caller's: -EPIPE once the queue is
 * stopped, -ECHILD in a forked child.
 */
int xps_inproc_queue_append(struct xps_inproc_queue *queue, struct xps_inproc_packet *first,
			    struct xps_inproc_packet *last);
/*
 * The next packet, which is the caller's now, to be given to free(3). NULL: there is none, and whether there will be is
 * in `ended`.
 */
struct xps_inproc_packet *xps_inproc_queue_take(struct xps_inproc_queue *queue, bool *ended);
/* Undo that, as if it had not been. */
void xps_inproc_queue_put_back(struct xps_inproc_queue *queue, struct xps_inproc_packet *packet);
/* False in a forked child. */
bool xps_inproc_queue_is_ours(const struct xps_inproc_queue *queue);
/*
 * A new descriptor that is readable while there are packets and once the queue is stopped, for the caller to close; or
 * negative errno. Each reader has its own, because one epoll does not take one descriptor twice.
 */
int xps_inproc_queue_dup_fd(struct xps_inproc_queue *queue);
