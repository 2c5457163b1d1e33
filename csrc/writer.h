/* SPDX-License-Identifier: Apache-2.0 */
/*
 * writer - what a transport has to provide to be sent through: the counterpart of `transport`.
 *
 * A writer is used by one thread at a time, not always the same. It never waits.
 */
#pragma once

#include "packetise.h"

#define XPS_MAX_WRITE 128 /* packets written at a time */

struct xps_writer;

/* A packet and where it goes. The slices of packets that were made one after the other follow each other. */
struct xps_write {
	struct xps_out_packet packet;
	uint32_t substream;
};

struct xps_writer_ops {
	const char *name; /* "udp" */
	/*
	 * Send the first few of `n` packets, at least one. Returns how many; -EAGAIN if there is no room at present, to be
	 * tried again with the same packets when the writer's descriptor is writable; or another negative errno, and the
	 * first packet will not be sent.
	 */
	int (*write)(struct xps_writer *writer, const struct xps_write *packets, uint32_t n);
	/*
	 * Nothing more will be written: let go of what others may wait for, such as a connection's end or a queue. Called
	 * at most once. May be NULL.
	 */
	void (*end)(struct xps_writer *writer);
	/* Release everything, the writer included. What was taken is still sent. */
	void (*close)(struct xps_writer *writer);
	/* Likewise in a forked child, where nothing must be sent: only let go. */
	void (*forget)(struct xps_writer *writer);
	/* Add what only the transport can tell to stats[XPS_N_SEND_STATS]. By any thread, not at the same time as end or close. May be NULL. */
	void (*add_stats)(struct xps_writer *writer, uint64_t *stats);
};

struct xps_writer {
	const struct xps_writer_ops *ops;
	int fd; /* becomes writable when there is room; -1: nobody tells, it is asked again after a while */
	uint32_t n_substreams;
	uint32_t batch; /* packets that are best written at a time, at most XPS_MAX_WRITE */
};

/* Make a sender of a writer, which it closes in the end; on failure it has been closed. */
struct xps_sender *xps_sender_new(struct xps_pool *pool, const struct xps_sender_config *config,
				  struct xps_writer *writer, struct xps_fail *fail);
/* The writer of a sender. */
struct xps_writer *xps_sender_writer(struct xps_sender *sender);
