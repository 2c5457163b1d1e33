/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pool - worker threads, each an event loop over epoll.
 *
 * A loop calls back watches whose descriptor is ready (level-triggered), watches that asked to be called again, and
 * tasks posted from other threads. Everything that belongs to one lane of a stream runs on one loop, and needs no lock.
 * It knows nothing of streams or packets.
 *
 * Threads: functions marked [loop] are for the loop's own thread (that is, for callbacks); all others for any thread.
 */
#pragma once

#include <stdatomic.h>

#include "xdpspead.h"

struct xps_loop;

struct xps_watch {
	int fd;                                 /* -1: only ever called by xps_loop_again() or xps_loop_after() */
	bool writable;                          /* wait for fd to be writable, instead of readable */
	void (*ready)(struct xps_watch *watch); /* called when fd is ready, or as asked */
	/*
	 * NULL; or called when the watch is the next to be called by xps_loop_again() or xps_loop_after(), while another one
	 * has its turn: what it is going to need can be on its way into the cache.
	 */
	void (*soon)(const struct xps_watch *watch);

	/* the loop's */
	bool added, muted, queued, timed;
	struct xps_watch *next;
	struct xps_watch *next_timed;
	int64_t due_ns;
};

struct xps_task {
	void (*run)(struct xps_task *task);

	/* the loop's */
	bool queued;
	struct xps_task *next;
};

/* Somebody who uses a loop for long and has to know when it ends. */
struct xps_loop_user {
	void (*ended)(struct xps_loop_user *user); /* [loop] called once, after which the user has left */

	/* the loop's */
	struct xps_loop_user *next;
};

void xps_pool_ref(struct xps_pool *pool);
/* A loop for a new user, the pool's loops in turn. It lives as long as the pool. */
struct xps_loop *xps_pool_loop(struct xps_pool *pool);
/* Likewise, but none of the `n` in `taken` as long as there are others. */
struct xps_loop *xps_pool_loop_besides(struct xps_pool *pool, struct xps_loop *const *taken, uint32_t n);

/* [loop] Start and stop watching. After remove the watch is not called any more, even if it was due. */
int xps_loop_add(struct xps_loop *loop, struct xps_watch *watch);
void xps_loop_remove(struct xps_loop *loop, struct xps_watch *watch);
/* [loop] Do not look at the descriptor for now, and look at it again. */
void xps_loop_mute(struct xps_loop *loop, struct xps_watch *watch);
void xps_loop_unmute(struct xps_loop *loop, struct xps_watch *watch);
/* [loop] Call the watch once more after the others had their turn, whatever its descriptor says. */
void xps_loop_again(struct xps_loop *loop, struct xps_watch *watch);

#define XPS_LOOP_SLEEPERS 64

/* [loop] For the loop's users to keep. */
struct xps_loop_notes {
	/* Who of those that are called by time last found something to do, and when. */
	const void *busy;
	int64_t busy_at_ns;
	/* Futexes of those who are to be woken when all have had their turn. */
	_Atomic uint32_t *sleepers[XPS_LOOP_SLEEPERS];
	uint32_t n_sleepers;
};
struct xps_loop_notes *xps_loop_notes(struct xps_loop *loop);

/* [loop] Call the watch after `delay_ns`, whatever its descriptor says. A later call moves the time. */
void xps_loop_after(struct xps_loop *loop, struct xps_watch *watch, int64_t delay_ns);
/* [loop] The same at a moment, for whoever has looked at xps_now_ns() already. */
void xps_loop_at(struct xps_loop *loop, struct xps_watch *watch, int64_t due_ns);

/* Run the task on the loop soon. Posting a task that is already queued does nothing. */
void xps_loop_post(struct xps_loop *loop, struct xps_task *task);
/*
 * Run the task on the loop and wait until it is done. Tasks posted before it have then been run. On the loop's own
 * thread, or when the loop's thread has ended, it runs right here, alone. Returns 0; or -ECHILD, and the task has not
 * run, in a forked child: there the loop has no thread, and in what state it was nobody knows.
 */
int xps_loop_call(struct xps_loop *loop, struct xps_task *task);

/* 0; -EPIPE if the loop has ended; -ECHILD in a forked child. */
int xps_loop_join(struct xps_loop *loop, struct xps_loop_user *user);
/* [loop] Does nothing for a user who has left already. */
void xps_loop_leave(struct xps_loop *loop, struct xps_loop_user *user);
