// SPDX-License-Identifier: Apache-2.0
/*
 * How it works
 *
 * Everything of a stream but the ring and the public statistics belongs to one worker, the loop it was given when it
 * was made. Readers are called there, packets go through the window there, and heaps that the window puts out are
 * pushed to the ring there; so none of that has a lock. What users do from their threads (add a reader, stop) is
 * carried over to the loop as a task that they wait for.
 *
 * When the ring is full the worker does not wait. The stream is *blocked*: its readers' watches are muted, and the ring
 * remembers to have the stream woken by whoever pops a heap. Meanwhile the worker serves other streams.
 *
 * Waking a thread costs as much as handling a dozen packets. So a reader that is woken again within two naps is taken
 * off its descriptors and called by time: it *naps* for nap_ns, handles all that has come, and naps again, until a nap
 * brings nothing. A packet then waits nap_ns at most; packets that come seldom never wait.
 *
 * A stream is RUNNING until a reader's end or a stop item makes it ENDING: its readers are closed and the window is
 * flushed into the ring, which may block many times. Then, or as soon as the user stops it or its pool, it is STOPPED.
 *
 * In a forked child there is no worker, and whatever it was about to do is left half done. There a stream refuses all
 * use, and when it is freed its memory is left alone: which of it, and which descriptors, are whole nobody knows.
 *
 * Threads: functions without a remark run on the loop, or alone once its thread has ended.
 */
#include "stream.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bits.h"
#include "log.h"
#include "memory.h"
#include "process.h"
#include "ring.h"
#include "stats.h"
#include "window.h"

/* After XPS_POLL_LATER. */
#define LATER_NS INT64_C(100000000)

enum state { RUNNING, ENDING, STOPPED };

struct xps_stream {
	uint32_t process; /* that has the worker */
	struct xps_pool *pool;
	struct xps_loop *loop;
	struct xps_loop_user user;
	struct xps_allocator *allocator;
	struct xps_log *log;
	struct xps_window window;
	enum state state;
	bool blocked;
	bool lossy;      /* has a source that loses packets while the stream is blocked */
	uint32_t credit; /* room in the ring when we last looked */
	int64_t nap_ns;
	bool unannounced; /* heaps have been put into the ring that waiting users do not know of */
	struct xps_task resume;

	struct xps_ring ring;

	pthread_mutex_t lock; /* guards all below; taken last, never held over anything that waits */
	uint64_t stats[XPS_N_STATS];
	struct xps_queue_table *queues; /* of all readers, those that have ended too */
	struct xps_reader *readers;     /* changed by the loop only, so the loop may read it without the lock */
};

/* ---------------------------------------------------------------- statistics and log */

/* Put what happened since the last time into the log, before the counts are cleared. */
static void report_news(struct xps_stream *stream)
{
	struct xps_window_news *news = &stream->window.news;
	const uint64_t *stats = stream->window.stats;
	uint64_t n_bad = 0, n_refused = 0;

	if (news->bad_stat) {
		for (int i = XPS_STAT_EMPTY_DATAGRAM + 1; i <= XPS_STAT_OFFSET_OVERFLOW; i++)
			n_bad += stats[i];
		xps_log(stream->log, XPS_LOG_BAD_PACKET, n_bad, (uint64_t)news->bad_stat, UINT64_MAX, 0);
	}
	if (news->refused_stat) {
		for (int i = XPS_STAT_OVERLAP; i <= XPS_STAT_NO_MEMORY; i++)
			n_refused += stats[i];
		xps_log(stream->log, XPS_LOG_REFUSED_PACKET, n_refused, (uint64_t)news->refused_stat, news->refused_cnt,
			0);
		xps_log(stream->log, XPS_LOG_BEHIND, stats[XPS_STAT_BEHIND], news->refused_cnt, 0, 0);
	}
	if (stats[XPS_STAT_HEAPS_DISCARDED])
		xps_log(stream->log, XPS_LOG_INCOMPLETE_HEAP, stats[XPS_STAT_HEAPS_DISCARDED], news->discarded_cnt,
			news->discarded_received, news->discarded_expected);
	*news = (struct xps_window_news){ 0 };
}

static void commit_stats(struct xps_stream *stream)
{
	report_news(stream);
	pthread_mutex_lock(&stream->lock);
	xps_stats_move(stream->stats, stream->window.stats);
	pthread_mutex_unlock(&stream->lock);
}

void xps_stream_count(struct xps_stream *stream, int stat, uint64_t n)
{
	stream->window.stats[stat] += n;
	if (stat <= XPS_STAT_OFFSET_OVERFLOW)
		stream->window.news.bad_stat = stat;
}

void xps_stream_log_error(struct xps_stream *stream, int err)
{
	xps_log(stream->log, XPS_LOG_READER_ERROR, 1, (uint64_t)err, 0, 0);
}

void xps_stream_log_drops(struct xps_stream *stream, uint64_t n)
{
	xps_log(stream->log, XPS_LOG_KERNEL_DROPS, n, 0, 0, 0);
}

void xps_stream_warn(struct xps_stream *stream, const char *text)
{
	xps_log_text(stream->log, XPS_LOG_WARNING, text);
}

/* Caller locks. */
static uint32_t add_queues(const struct xps_stream *stream, uint64_t *stats, struct xps_queue_stats *queues, uint32_t n)
{
	uint32_t found = 0;

	for (const struct xps_queue_table *table = stream->queues; table; table = table->next) {
		for (uint32_t i = 0; i < table->n; i++) {
			if (!xps_queue_matters(&table->rows[i]))
				continue;
			xps_queue_add(stats, &table->rows[i]);
			if (found < n)
				queues[found] = table->rows[i];
			found++;
		}
	}
	return found;
}

/* Any thread. */
uint32_t xps_stream_queue_stats(struct xps_stream *stream, uint64_t *stats, struct xps_queue_stats *queues, uint32_t n)
{
	uint32_t found;

	if (!xps_stream_is_ours(stream)) {
		memset(stats, 0, sizeof(stream->stats));
		return 0;
	}
	pthread_mutex_lock(&stream->lock);
	memcpy(stats, stream->stats, sizeof(stream->stats));
	for (struct xps_reader *reader = stream->readers; reader; reader = reader->next)
		if (reader->ops->add_stats)
			reader->ops->add_stats(reader, stats);
	found = add_queues(stream, stats, queues, n);
	pthread_mutex_unlock(&stream->lock);
	return found;
}

/* Any thread. */
void xps_stream_stats(struct xps_stream *stream, uint64_t *stats)
{
	xps_stream_queue_stats(stream, stats, NULL, 0);
}

void xps_reader_settle(struct xps_reader *reader)
{
	struct xps_stream *stream = reader->stream;

	pthread_mutex_lock(&stream->lock);
	reader->ops->add_stats(reader, stream->stats);
	pthread_mutex_unlock(&stream->lock);
}

/* Caller locks. */
static void keep_queues(struct xps_stream *stream, struct xps_queue_table *table)
{
	struct xps_queue_table **end = &stream->queues;

	while (*end)
		end = &(*end)->next;
	*end = table;
}

/* ---------------------------------------------------------------- heaps on their way to the ring */

static void drop_outbox(struct xps_stream *stream)
{
	struct xps_window *window = &stream->window;

	if (!window->n_out)
		return;
	xps_log(stream->log, XPS_LOG_STOPPED_HEAP, window->n_out, window->out[0]->cnt, 0, 0);
	xps_stream_count(stream, XPS_STAT_HEAPS_DROPPED_STOP, window->n_out);
	while (window->n_out)
		xps_heap_free(window->out[--window->n_out]);
}

/* Move the outbox to the ring as far as there is room. Returns whether all fitted. */
static bool deliver(struct xps_stream *stream)
{
	struct xps_window *window = &stream->window;
	uint32_t pushed;

	if (window->n_out == 0 && stream->credit)
		return true;
	if (stream->state == STOPPED) {
		drop_outbox(stream);
		return true;
	}
	pushed = xps_ring_push(&stream->ring, window->out, window->n_out, &stream->credit);
	stream->unannounced |= pushed > 0;
	window->n_out -= pushed;
	memmove(window->out, window->out + pushed, window->n_out * sizeof(*window->out));
	stream->credit = (uint32_t)xps_min_u64(stream->credit, XPS_MAX_CREDIT);
	return window->n_out == 0;
}

/* Wake the users, once for all heaps of a turn: waking is what costs. */
static void announce(struct xps_stream *stream)
{
	if (stream->unannounced)
		xps_ring_wake(&stream->ring);
	stream->unannounced = false;
}

static void mute(struct xps_stream *stream, struct xps_reader *reader)
{
	for (uint32_t i = 0; i < reader->n_watches; i++)
		xps_loop_mute(stream->loop, &reader->watches[i].watch);
}

static void unmute(struct xps_stream *stream, struct xps_reader *reader)
{
	for (uint32_t i = 0; i < reader->n_watches; i++)
		xps_loop_unmute(stream->loop, &reader->watches[i].watch);
	reader->napping = false;
}

/* The stream is blocked. */
static void mute_readers(struct xps_stream *stream)
{
	for (struct xps_reader *reader = stream->readers; reader; reader = reader->next) {
		if (reader->ops->poll_blocked)
			unmute(stream, reader);
		else
			mute(stream, reader);
	}
}

static void unmute_readers(struct xps_stream *stream)
{
	for (struct xps_reader *reader = stream->readers; reader; reader = reader->next) {
		unmute(stream, reader);
		/* Whatever it was about to do when the stream was blocked. */
		xps_loop_again(stream->loop, &reader->again);
		reader->blocked = false;
	}
}

static void block(struct xps_stream *stream)
{
	if (stream->blocked)
		return;
	stream->blocked = true;
	mute_readers(stream);
	if (xps_ring_stopped(&stream->ring))
		return; /* not full: the user is just stopping the stream */
	if (stream->lossy)
		xps_log(stream->log, XPS_LOG_RING_FULL, 1, stream->window.out[0]->cnt, 0, 0);
	/* Now and not with the batch, which may not end before the user has seen why. */
	pthread_mutex_lock(&stream->lock);
	stream->stats[XPS_STAT_WORKER_BLOCKED]++;
	pthread_mutex_unlock(&stream->lock);
}

/* ---------------------------------------------------------------- the end */

static void close_reader(struct xps_stream *stream, struct xps_reader *reader)
{
	for (uint32_t i = 0; i < reader->n_watches; i++)
		xps_loop_remove(stream->loop, &reader->watches[i].watch);
	xps_loop_remove(stream->loop, &reader->again);
	/* Last values of what only the reader knows, and from now on nobody asks it any more. */
	pthread_mutex_lock(&stream->lock);
	if (reader->ops->add_stats)
		reader->ops->add_stats(reader, stream->stats);
	stream->readers = reader->next;
	pthread_mutex_unlock(&stream->lock);
	reader->ops->close(reader);
}

static void close_readers(struct xps_stream *stream)
{
	while (stream->readers)
		close_reader(stream, stream->readers);
}

/* ENDING: flush as far as the ring has room; the last heap delivered stops the ring. */
static void flush(struct xps_stream *stream)
{
	bool flushed;

	do {
		flushed = xps_window_flush(&stream->window, stream->credit);
		if (!deliver(stream)) {
			block(stream);
			return;
		}
	} while (!flushed);
	stream->state = STOPPED;
	commit_stats(stream);
	xps_ring_stop(&stream->ring);
}

static void end(struct xps_stream *stream)
{
	stream->state = ENDING;
	close_readers(stream);
	flush(stream);
}

/*
 * The user wants no more: what is not in the ring yet is lost, and counted. Readers that were stopped in the middle of
 * a batch have packets in their hands, which are taken so that they are counted too.
 */
static void drop_everything(struct xps_stream *stream)
{
	bool flushed;

	drop_outbox(stream);
	for (struct xps_reader *reader = stream->readers; reader; reader = reader->next)
		if (reader->blocked && !stream->window.ended)
			reader->ops->poll(reader);
	close_readers(stream);
	do {
		flushed = xps_window_flush(&stream->window, XPS_MAX_CREDIT);
		drop_outbox(stream);
	} while (!flushed);
}

static void stop(struct xps_stream *stream)
{
	if (stream->state == STOPPED)
		return;
	stream->state = STOPPED;
	stream->credit = XPS_MAX_CREDIT;
	drop_everything(stream);
	commit_stats(stream);
}

struct stop_task {
	struct xps_task task;
	struct xps_stream *stream;
};

static void stop_on_loop(struct xps_task *task)
{
	struct xps_stream *stream = XPS_CONTAINER_OF(task, struct stop_task, task)->stream;

	xps_loop_leave(stream->loop, &stream->user);
	stop(stream);
}

/* The pool is being stopped: nothing would ever come any more. */
static void loop_ended(struct xps_loop_user *user)
{
	struct xps_stream *stream = XPS_CONTAINER_OF(user, struct xps_stream, user);

	xps_ring_stop(&stream->ring);
	stop(stream);
}

/* Any thread. */
void xps_stream_stop(struct xps_stream *stream)
{
	struct stop_task stop = { .task.run = stop_on_loop, .stream = stream };

	if (!xps_stream_is_ours(stream))
		return;
	xps_ring_stop(&stream->ring);
	xps_loop_call(stream->loop, &stop.task);
}

/* ---------------------------------------------------------------- readers */

/* The user has made room. */
static void resume(struct xps_task *task)
{
	struct xps_stream *stream = XPS_CONTAINER_OF(task, struct xps_stream, resume);

	if (!stream->blocked || stream->state == STOPPED)
		return;
	if (deliver(stream)) {
		stream->blocked = false;
		if (stream->state == ENDING)
			flush(stream);
		else
			unmute_readers(stream);
	}
	announce(stream);
}

/* The reader has found nothing more: by what shall it be called next, its descriptors or time? */
static void wait_for_more(struct xps_stream *stream, struct xps_reader *reader)
{
	int64_t now;

	if (!reader->progress) {
		if (reader->napping)
			unmute(stream, reader);
		return;
	}
	if (!stream->nap_ns || reader->n_watches == 0)
		return;
	now = xps_loop_now_ns();
	if (!reader->napping && now - reader->last_wait_ns < 2 * stream->nap_ns) {
		reader->napping = true;
		mute(stream, reader);
	}
	reader->last_wait_ns = now;
	if (reader->napping)
		xps_loop_after(stream->loop, &reader->again, stream->nap_ns);
}

/* What it waits for is still ready, so its descriptors must not be looked at. */
static void call_later(struct xps_stream *stream, struct xps_reader *reader)
{
	reader->napping = true;
	mute(stream, reader);
	xps_loop_after(stream->loop, &reader->again, LATER_NS);
}

static void run_reader(struct xps_reader *reader)
{
	struct xps_stream *stream = reader->stream;

	if (stream->state != RUNNING)
		return;
	if (stream->blocked) {
		if (reader->ops->poll_blocked)
			reader->ops->poll_blocked(reader);
		return;
	}
	reader->progress = false;
	switch (reader->ops->poll(reader)) {
	case XPS_POLL_WAIT:
		wait_for_more(stream, reader);
		break;
	case XPS_POLL_AGAIN:
		xps_loop_again(stream->loop, &reader->again);
		break;
	case XPS_POLL_LATER:
		call_later(stream, reader);
		break;
	case XPS_POLL_BLOCKED:
		reader->blocked = true;
		break;
	case XPS_POLL_END:
		stream->window.ended = true;
		break;
	}
	if (stream->window.ended)
		end(stream);
	else if (!deliver(stream))
		block(stream);
	else if (reader->blocked) /* the user has made room in the meantime */
		unmute_readers(stream);
	announce(stream);
}

static void watch_ready(struct xps_watch *watch)
{
	run_reader(XPS_CONTAINER_OF(watch, struct xps_reader_watch, watch)->reader);
}

static void reader_again(struct xps_watch *watch)
{
	run_reader(XPS_CONTAINER_OF(watch, struct xps_reader, again));
}

struct attach_task {
	struct xps_task task;
	struct xps_stream *stream;
	struct xps_reader *reader;
	int result;
};

static int add_watches(struct xps_stream *stream, struct xps_reader *reader)
{
	xps_loop_add(stream->loop, &reader->again);
	for (uint32_t i = 0; i < reader->n_watches; i++) {
		int err = xps_loop_add(stream->loop, &reader->watches[i].watch);

		if (err) {
			while (i-- > 0)
				xps_loop_remove(stream->loop, &reader->watches[i].watch);
			xps_loop_remove(stream->loop, &reader->again);
			return err;
		}
	}
	return 0;
}

static void attach_on_loop(struct xps_task *task)
{
	struct attach_task *attach = XPS_CONTAINER_OF(task, struct attach_task, task);
	struct xps_stream *stream = attach->stream;
	struct xps_reader *reader = attach->reader;

	attach->result = stream->state == RUNNING ? add_watches(stream, reader) : -EPIPE;
	if (attach->result)
		return;
	pthread_mutex_lock(&stream->lock);
	reader->next = stream->readers;
	stream->readers = reader;
	keep_queues(stream, reader->queues);
	pthread_mutex_unlock(&stream->lock);
	stream->lossy |= reader->ops->lossy;
	if (stream->blocked) {
		reader->blocked = true;
		mute_readers(stream);
	} else {
		xps_loop_again(stream->loop, &reader->again); /* there may be data already */
	}
}

/* Any thread. */
int xps_reader_attach(struct xps_stream *stream, struct xps_reader *reader)
{
	struct attach_task attach = { .task.run = attach_on_loop, .stream = stream, .reader = reader };
	int err;

	reader->stream = stream;
	reader->again = (struct xps_watch){ .fd = -1, .ready = reader_again };
	for (uint32_t i = 0; i < reader->n_watches; i++) {
		reader->watches[i].reader = reader;
		reader->watches[i].watch.ready = watch_ready;
	}
	err = xps_loop_call(stream->loop, &attach.task);
	return err ? err : attach.result;
}

int xps_reader_watch_instead(struct xps_reader_watch *watch, int fd)
{
	struct xps_reader *reader = watch->reader;

	xps_loop_remove(reader->stream->loop, &watch->watch);
	watch->watch.fd = fd;
	reader->napping = false;
	return xps_loop_add(reader->stream->loop, &watch->watch);
}

/* ---------------------------------------------------------------- batches */

void xps_batch_begin(struct xps_reader *reader)
{
	reader->batch_packets = 0;
	reader->progress = true;
}

uint32_t xps_batch_push(struct xps_reader *reader, const struct xps_view *views, uint32_t n)
{
	struct xps_stream *stream = reader->stream;
	struct xps_window *window = &stream->window;
	const uint64_t before = window->stats[XPS_STAT_PACKETS];
	uint32_t taken = 0;

	do
		taken += xps_window_push(window, views + taken, n - taken, stream->credit);
	while (deliver(stream) && taken < n);
	reader->batch_packets += window->stats[XPS_STAT_PACKETS] - before;
	return taken;
}

void xps_batch_end(struct xps_reader *reader)
{
	struct xps_stream *stream = reader->stream;
	struct xps_window *window = &stream->window;

	if (window->n_out)
		deliver(stream);
	/* A batch that ends the stream before its first packet is none. */
	if (reader->batch_packets || !window->ended)
		window->stats[XPS_STAT_BATCHES]++;
	if (reader->batch_packets > window->stats[XPS_STAT_MAX_BATCH])
		window->stats[XPS_STAT_MAX_BATCH] = reader->batch_packets;
	commit_stats(stream);
}

bool xps_stream_ended(const struct xps_stream *stream)
{
	return stream->window.ended;
}

/* ---------------------------------------------------------------- the user's side: any thread */

static void init_window_config(struct xps_window_config *window, const struct xps_stream_config *config,
			       struct xps_allocator *allocator)
{
	*window = (struct xps_window_config){
		.rules = {
			.allocator = allocator,
			.max_heap_size = config->max_heap_size,
			.memcpy = config->memcpy,
			.allow_out_of_order = config->allow_out_of_order,
			.keep_payload_ranges = config->keep_payload_ranges,
		},
		.max_heaps = config->max_heaps,
		.substreams = config->substreams,
		.stop_on_stop_item = config->stop_on_stop_item,
		.allow_unsized_heaps = config->allow_unsized_heaps,
		.contiguous_only = config->contiguous_only,
	};
}

static void free_queues(struct xps_queue_table *table)
{
	while (table) {
		struct xps_queue_table *next = table->next;

		free(table);
		table = next;
	}
}

/* What stays valid as long as others have it too. */
static void free_parts(struct xps_stream *stream)
{
	free_queues(stream->queues);
	xps_allocator_free(stream->allocator);
	xps_log_free(stream->log);
	xps_pool_free(stream->pool);
	pthread_mutex_destroy(&stream->lock);
}

struct xps_stream *xps_stream_new(struct xps_pool *pool, const struct xps_stream_config *config,
				  struct xps_allocator *allocator, struct xps_log *log, struct xps_fail *fail)
{
	struct xps_window_config window_config;
	struct xps_stream *stream = calloc(1, sizeof(*stream));
	const char *why = NULL;
	int err = -ENOMEM;

	if (!stream)
		goto failed;
	init_window_config(&window_config, config, allocator);
	err = xps_window_init(&stream->window, &window_config);
	if (err)
		goto free_stream;
	err = xps_ring_init(&stream->ring, config->ring_heaps);
	if (err)
		goto fini_window;
	stream->credit = (uint32_t)xps_min_u64(config->ring_heaps, XPS_MAX_CREDIT);
	stream->nap_ns = config->nap_ns;
	stream->process = xps_process();
	stream->loop = xps_pool_loop(pool);
	stream->user.ended = loop_ended;
	stream->resume.run = resume;
	stream->allocator = xps_allocator_ref(allocator);
	stream->log = xps_log_ref(log);
	pthread_mutex_init(&stream->lock, NULL);
	xps_pool_ref(pool);
	stream->pool = pool;
	err = xps_loop_join(stream->loop, &stream->user); /* last: from here on the loop may stop it */
	if (!err)
		return stream;
	why = err == -ECHILD ? "the thread pool was made before a fork, and its threads are in the parent"
			     : "the thread pool has been stopped";
	free_parts(stream);
	xps_ring_fini(&stream->ring);
fini_window:
	xps_window_fini(&stream->window);
free_stream:
	free(stream);
failed:
	xps_fail_set(fail, -err, "make stream",
		     "cannot make a stream with max_heaps %llu, substreams %llu and a ring of %llu heaps: %s",
		     (unsigned long long)config->max_heaps, (unsigned long long)config->substreams,
		     (unsigned long long)config->ring_heaps, why ? why : strerror(-err));
	return NULL;
}

void xps_stream_free(struct xps_stream *stream)
{
	if (!stream)
		return;
	if (!xps_stream_is_ours(stream)) {
		close(stream->ring.fd);
		return;
	}
	xps_stream_stop(stream);
	free_parts(stream);
	xps_ring_fini(&stream->ring);
	xps_window_fini(&stream->window);
	free(stream);
}

int xps_stream_pop(struct xps_stream *stream, struct xps_heap **heaps, int n, int timeout_ms)
{
	bool unparked;
	int popped;

	if (!xps_stream_is_ours(stream))
		return -ECHILD;
	popped = xps_ring_pop(&stream->ring, heaps, n, timeout_ms, &unparked);

	if (unparked)
		xps_loop_post(stream->loop, &stream->resume);
	return popped;
}

int xps_stream_fd(struct xps_stream *stream)
{
	return xps_stream_is_ours(stream) ? xps_ring_fd(&stream->ring) : -ECHILD;
}

uint64_t xps_stream_ring_size(struct xps_stream *stream)
{
	return xps_stream_is_ours(stream) ? xps_ring_size(&stream->ring) : 0;
}

bool xps_stream_stopped(struct xps_stream *stream)
{
	return !xps_stream_is_ours(stream) || xps_ring_stopped(&stream->ring);
}

bool xps_stream_is_ours(struct xps_stream *stream)
{
	return xps_process_is(stream->process);
}
