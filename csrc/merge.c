// SPDX-License-Identifier: Apache-2.0
/*
 * How it works
 *
 * Each stream's ring has a listener, which is told of heaps and of the stop, and puts the stream at the end of a list of
 * those that have something. Taking from the front is all that asking is, so what a stream costs does not depend on how
 * many there are. A ring that still has something after a pop tells again. So the list is all that there is to know, and
 * its order is that of turns.
 *
 * Locks: a ring's, and under it the merge's. Whoever asks sleeps on a futex, which counts what was put into the list; who
 * polls has an eventfd, which is raised as long as there is something in the list.
 */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "bits.h"
#include "fail.h"
#include "futex.h"
#include "process.h"
#include "stream.h"

struct member {
	struct xps_ring_listener listener;
	struct xps_merge *merge;
	struct xps_stream *stream;
	struct member *next; /* in the list */
	bool listed;
};

struct xps_merge {
	uint32_t process;
	pthread_mutex_t lock; /* guards the list; `news` may be read without it */
	struct member *first, **end;
	uint32_t n_waiting;
	int fd;                /* -1: nobody has asked for it */
	bool raised;           /* it has been written */
	_Atomic uint32_t news; /* runs freely */
	uint32_t n_members;
	struct member members[];
};

/* Lock held. Have the descriptor say whether the list has anything. */
static void show(struct xps_merge *merge)
{
	const bool any = merge->first;
	eventfd_t value;

	if (merge->fd < 0 || any == merge->raised)
		return;
	if (any ? eventfd_write(merge->fd, 1) == 0 : eventfd_read(merge->fd, &value) == 0)
		merge->raised = any;
}

/* A ring is locked. */
static _Atomic uint32_t *has_something(struct xps_ring_listener *listener)
{
	struct member *member = XPS_CONTAINER_OF(listener, struct member, listener);
	struct xps_merge *merge = member->merge;
	_Atomic uint32_t *sleepers = NULL;

	pthread_mutex_lock(&merge->lock);
	if (!member->listed) {
		member->listed = true;
		member->next = NULL;
		*merge->end = member;
		merge->end = &member->next;
		show(merge);
		atomic_fetch_add_explicit(&merge->news, 1, memory_order_relaxed);
		/* Who has been woken is not waiting any more, though it may take a while until it runs. */
		if (merge->n_waiting)
			sleepers = &merge->news;
		merge->n_waiting = 0;
	}
	pthread_mutex_unlock(&merge->lock);
	return sleepers;
}

/* Take the first off the list; NULL if it is empty, after `news`, and the caller is counted as waiting if it wants to wait. */
static struct member *take_first(struct xps_merge *merge, bool wait, uint32_t *news)
{
	struct member *first;

	pthread_mutex_lock(&merge->lock);
	*news = atomic_load_explicit(&merge->news, memory_order_relaxed);
	first = merge->first;
	if (first) {
		first->listed = false;
		merge->first = first->next;
		if (!merge->first)
			merge->end = &merge->first;
		show(merge);
	} else {
		merge->n_waiting += wait;
	}
	pthread_mutex_unlock(&merge->lock);
	return first;
}

int xps_merge_next(struct xps_merge *merge, int timeout_ms)
{
	if (!xps_process_is(merge->process))
		return -ECHILD;
	for (;;) {
		uint32_t news;
		const struct member *member = take_first(merge, timeout_ms != 0, &news);
		int ready;

		if (member)
			return (int)(member - merge->members);
		if (timeout_ms == 0)
			return -ETIMEDOUT;
		/* Several may wake for one stream: those who come too late start over, with the same time. */
		ready = xps_futex_sleep(&merge->news, news, timeout_ms);
		if (ready <= 0)
			return ready ? ready : -ETIMEDOUT;
	}
}

bool xps_merge_ready(struct xps_merge *merge)
{
	bool any;

	if (!xps_process_is(merge->process))
		return false;
	pthread_mutex_lock(&merge->lock);
	any = merge->first;
	pthread_mutex_unlock(&merge->lock);
	return any;
}

int xps_merge_fd(struct xps_merge *merge)
{
	int fd;

	if (!xps_process_is(merge->process))
		return -ECHILD;
	pthread_mutex_lock(&merge->lock);
	if (merge->fd < 0)
		merge->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	fd = merge->fd < 0 ? -errno : merge->fd;
	show(merge);
	pthread_mutex_unlock(&merge->lock);
	return fd;
}

struct xps_merge *xps_merge_new(struct xps_stream *const *streams, uint32_t n, struct xps_fail *fail)
{
	struct xps_merge *merge = calloc(1, sizeof(*merge) + n * sizeof(merge->members[0]));

	if (!merge) {
		xps_fail_set(fail, ENOMEM, "merge streams", "Not enough memory for %u streams.", n);
		return NULL;
	}
	merge->process = xps_process();
	merge->fd = -1;
	merge->end = &merge->first;
	merge->n_members = n;
	pthread_mutex_init(&merge->lock, NULL);
	for (uint32_t i = 0; i < n; i++) {
		struct member *member = &merge->members[i];
		int err;

		member->listener.tell = has_something;
		member->merge = merge;
		member->stream = streams[i];
		err = xps_stream_listen(member->stream, &member->listener);
		if (!err)
			continue;
		xps_fail_set(fail, -err, "merge streams",
			     err == -EBUSY ? "Stream %u of those to be merged is merged already."
					   : "Stream %u of those to be merged belongs to another process.",
			     i);
		merge->n_members = i;
		xps_merge_free(merge);
		return NULL;
	}
	return merge;
}

void xps_merge_free(struct xps_merge *merge)
{
	if (!merge)
		return;
	if (xps_process_is(merge->process)) { /* else somebody who is not there may hold a lock */
		for (uint32_t i = 0; i < merge->n_members; i++)
			xps_stream_listen(merge->members[i].stream, NULL);
		pthread_mutex_destroy(&merge->lock);
	}
	if (merge->fd >= 0)
		close(merge->fd);
	free(merge);
}
