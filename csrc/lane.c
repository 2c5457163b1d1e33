// SPDX-License-Identifier: Apache-2.0
/*
 * How it works
 *
 * A lane belongs to one worker, the loop it was given when it was made. Readers are called there, packets go through the
 * window there, and heaps that the window puts out are pushed to the ring there; so none of that has a lock. What users
 * do from their threads (add a reader, stop) is carried over to the loop as a task that they wait for. What lanes tell
 * each other they post, and do not wait for.
 *
 * When the ring is full the worker does not wait. The lane is *blocked*: its readers' watches are muted, and the ring
 * remembers to have the lane woken by whoever pops a heap. Meanwhile the worker serves others. How much room there was
 * when a lane last looked is its *credit*. Other lanes may have taken that room, so it is an estimate, which decides how
 * many heaps may gather in the outbox; whether they get into the ring, the ring decides.
 *
 * Waking a thread costs as much as handling a dozen packets. So a reader that is woken again within two naps is taken
 * off its descriptors and called by time: it *naps* for nap_ns, handles all that has come, and naps again, until two naps
 * have brought nothing. A packet then waits nap_ns at most; packets that come seldom never wait. While other readers of
 * the worker nap, and find something, it wakes anyway: then a look at one more costs much less than being woken by it, and
 * a reader goes on to nap until many naps have brought nothing.
 *
 * A lane is RUNNING until a reader's end or a stop item, in whichever lane, makes it ENDING: its readers are closed and
 * its window is flushed into the ring, which may block many times. Then, or as soon as the user stops the stream or its
 * pool, it is STOPPED. The last lane that gets there stops the ring.
 *
 * Threads: functions without a remark run on the loop, or alone once its thread has ended.
 */
#include "lane.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "bits.h"
#include "copy.h"
#include "futex.h"
#include "log.h"
#include "stats.h"

/* After XPS_POLL_LATER. */
#define LATER_NS INT64_C(100000000)
/* Naps that brought nothing and end it: of the only reader that naps, and of one among others. */
#define IN_VAIN_ALONE 2
#define IN_VAIN_AMONG_OTHERS 32
/* Shorter ones cost more than they save. */
#define SHORTEST_NAP_NS UINT64_C(10000)
/* Heaps, or bytes of them, that go to the ring in the middle of a reader's turn. */
#define HEAPS_AT_ONCE 32
#define BYTES_AT_ONCE (UINT64_C(256) << 10)
/* Between two looks at what has become of a source. */
#define LOOK_NS INT64_C(1000000000)

enum state { RUNNING, ENDING, STOPPED };

struct xps_lane {
	struct xps_lanes *shared;
	uint32_t index; /* among the lanes of the stream */
	struct xps_loop *loop;
	struct xps_loop_user user;
	struct xps_window window;
	enum state state;
	bool blocked;
	bool lossy;       /* has a source that loses packets while the lane is blocked */
	bool unannounced; /* heaps have been put into the ring that waiting users do not know of */
	uint32_t credit;
	struct xps_watch others_done; /* called when the worker's other readers have had their turn */
	struct xps_task resume;
	struct xps_task end;
	struct xps_reader *readers; /* changed by the loop only, which may read it without the lock that guards it */
};

/* ---------------------------------------------------------------- statistics and log */

/* Put what happened since the last time into the log, before the counts are cleared. */
static void report_news(struct xps_lane *lane)
{
	struct xps_window_news *news = &lane->window.news;
	const uint64_t *stats = lane->window.stats;
	uint64_t n_bad = 0, n_refused = 0;

	if (news->bad_stat) {
		for (int i = XPS_STAT_EMPTY_DATAGRAM + 1; i <= XPS_STAT_OFFSET_OVERFLOW; i++)
			n_bad += stats[i];
		xps_log(lane->shared->log, XPS_LOG_BAD_PACKET, n_bad, (uint64_t)news->bad_stat, UINT64_MAX, 0);
	}
	if (news->refused_stat) {
		for (int i = XPS_STAT_OVERLAP; i <= XPS_STAT_NO_MEMORY; i++)
			n_refused += stats[i];
		xps_log(lane->shared->log, XPS_LOG_REFUSED_PACKET, n_refused, (uint64_t)news->refused_stat,
			news->refused_cnt, 0);
		xps_log(lane->shared->log, XPS_LOG_BEHIND, stats[XPS_STAT_BEHIND], news->refused_cnt, 0, 0);
	}
	if (stats[XPS_STAT_HEAPS_DISCARDED])
		xps_log(lane->shared->log, XPS_LOG_INCOMPLETE_HEAP, stats[XPS_STAT_HEAPS_DISCARDED],
			news->discarded_cnt, news->discarded_received, news->discarded_expected);
	*news = (struct xps_window_news){ 0 };
}

static void commit_stats(struct xps_lane *lane)
{
	report_news(lane);
	pthread_mutex_lock(&lane->shared->lock);
	xps_stats_move(lane->shared->stats, lane->window.stats);
	pthread_mutex_unlock(&lane->shared->lock);
}

static void count(struct xps_lane *lane, int stat, uint64_t n)
{
	lane->window.stats[stat] += n;
	if (stat <= XPS_STAT_OFFSET_OVERFLOW)
		lane->window.news.bad_stat = stat;
}

void xps_reader_count(struct xps_reader *reader, int stat, uint64_t n)
{
	count(reader->lane, stat, n);
}

void xps_reader_log_error(struct xps_reader *reader, int err)
{
	xps_log(reader->lane->shared->log, XPS_LOG_READER_ERROR, 1, (uint64_t)err, 0, 0);
}

void xps_reader_log_drops(struct xps_reader *reader, uint64_t n)
{
	xps_log(reader->lane->shared->log, XPS_LOG_KERNEL_DROPS, n, 0, 0, 0);
}

void xps_reader_tell(struct xps_reader *reader, int level, const char *text)
{
	xps_log_text(reader->lane->shared->log, level, text);
}

/* Any thread. The lock is held. */
static void add_reader_stats(const struct xps_lane *lane, uint64_t *stats)
{
	for (struct xps_reader *reader = lane->readers; reader; reader = reader->next)
		if (reader->ops->add_stats)
			reader->ops->add_stats(reader, stats);
}

/* Any thread. The lock is held. */
static uint32_t add_queues(const struct xps_lanes *lanes, uint64_t *stats, struct xps_queue_stats *queues, uint32_t n)
{
	uint32_t found = 0;

	for (const struct xps_queue_table *table = lanes->queues; table; table = table->next) {
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
uint32_t xps_lanes_stats(struct xps_lanes *lanes, uint64_t *stats, struct xps_queue_stats *queues, uint32_t n)
{
	uint32_t found;

	pthread_mutex_lock(&lanes->lock);
	memcpy(stats, lanes->stats, sizeof(lanes->stats));
	for (uint32_t i = 0; i < lanes->n; i++)
		add_reader_stats(lanes->all[i], stats);
	found = add_queues(lanes, stats, queues, n);
	pthread_mutex_unlock(&lanes->lock);
	return found;
}

void xps_reader_settle(struct xps_reader *reader)
{
	struct xps_lanes *lanes = reader->lane->shared;

	pthread_mutex_lock(&lanes->lock);
	reader->ops->add_stats(reader, lanes->stats);
	pthread_mutex_unlock(&lanes->lock);
}

/* The lock is held. */
static void keep_queues(struct xps_lanes *lanes, struct xps_queue_table *table)
{
	struct xps_queue_table **end = &lanes->queues;

	while (*end)
		end = &(*end)->next;
	*end = table;
}

static void free_queues(struct xps_queue_table *table)
{
	while (table) {
		struct xps_queue_table *next = table->next;

		free(table);
		table = next;
	}
}

/* ---------------------------------------------------------------- heaps on their way to the ring */

static void drop_outbox(struct xps_lane *lane)
{
	struct xps_window *window = &lane->window;

	if (!window->n_out)
		return;
	xps_log(lane->shared->log, XPS_LOG_STOPPED_HEAP, window->n_out, window->out[0]->cnt, 0, 0);
	count(lane, XPS_STAT_HEAPS_DROPPED_STOP, window->n_out);
	while (window->n_out)
		xps_heap_free(window->out[--window->n_out]);
	window->out_bytes = 0;
}

/* Wake the users, once for all heaps of a turn: waking is what costs. */
static void announce(struct xps_lane *lane)
{
	if (lane->unannounced)
		xps_ring_wake(&lane->shared->ring);
	lane->unannounced = false;
}

/* On the loop. */
static void wake_noted(struct xps_loop *loop)
{
	struct xps_loop_notes *notes = xps_loop_notes(loop);

	while (notes->n_sleepers)
		xps_futex_wake(notes->sleepers[--notes->n_sleepers]);
}

static void note(struct xps_loop *loop, _Atomic uint32_t *sleepers)
{
	struct xps_loop_notes *notes = xps_loop_notes(loop);

	for (uint32_t i = 0; i < notes->n_sleepers; i++)
		if (notes->sleepers[i] == sleepers)
			return;
	if (notes->n_sleepers == XPS_LOOP_SLEEPERS)
		wake_noted(loop);
	notes->sleepers[notes->n_sleepers++] = sleepers;
}

static void others_done(struct xps_watch *watch)
{
	wake_noted(XPS_CONTAINER_OF(watch, struct xps_lane, others_done)->loop);
}

/*
 * Who is woken may be given our processor at once, and then finds the heaps of one lane. So at the end of a nap, when all
 * readers of the worker are called, users are woken when that is done, and whoever has heaps of several streams to take is
 * woken once.
 */
static void announce_at_the_end(struct xps_lane *lane)
{
	_Atomic uint32_t *sleepers[2];
	uint32_t n;

	if (!lane->unannounced)
		return;
	lane->unannounced = false;
	n = xps_ring_tell(&lane->shared->ring, sleepers);
	for (uint32_t i = 0; i < n; i++)
		note(lane->loop, sleepers[i]);
	if (n)
		xps_loop_again(lane->loop, &lane->others_done);
}

/* A user who takes heaps as they come and a worker who pushes one by one would spend their time on the ring's lock. */
static bool is_worth_delivering(const struct xps_window *window)
{
	return window->n_out >= HEAPS_AT_ONCE || window->out_bytes >= BYTES_AT_ONCE;
}

/* Move the outbox to the ring as far as there is room. Returns whether all fitted. */
static bool deliver(struct xps_lane *lane)
{
	struct xps_window *window = &lane->window;
	uint32_t pushed;

	if (window->n_out == 0 && lane->credit)
		return true;
	if (lane->state == STOPPED) {
		drop_outbox(lane);
		return true;
	}
	pushed = xps_ring_push(&lane->shared->ring, lane->index, window->out, window->n_out, &lane->credit);
	lane->unannounced |= pushed > 0;
	window->n_out -= pushed;
	window->out_bytes = 0; /* what did not fit will not wait for more */
	memmove(window->out, window->out + pushed, window->n_out * sizeof(*window->out));
	lane->credit = (uint32_t)xps_min_u64(lane->credit, XPS_MAX_CREDIT);
	return window->n_out == 0;
}

static void mute(struct xps_lane *lane, struct xps_reader *reader)
{
	for (uint32_t i = 0; i < reader->n_watches; i++)
		xps_loop_mute(lane->loop, &reader->watches[i].watch);
}

static void unmute(struct xps_lane *lane, struct xps_reader *reader)
{
	for (uint32_t i = 0; i < reader->n_watches; i++)
		xps_loop_unmute(lane->loop, &reader->watches[i].watch);
	reader->napping = false;
	reader->naps_in_vain = 0;
}

/* The lane is blocked. */
static void mute_readers(struct xps_lane *lane)
{
	for (struct xps_reader *reader = lane->readers; reader; reader = reader->next) {
		if (reader->ops->poll_blocked)
			unmute(lane, reader);
		else
			mute(lane, reader);
	}
}

static void unmute_readers(struct xps_lane *lane)
{
	for (struct xps_reader *reader = lane->readers; reader; reader = reader->next) {
		unmute(lane, reader);
		/* Whatever it was about to do when the lane was blocked. */
		xps_loop_again(lane->loop, &reader->again);
	}
}

static void block(struct xps_lane *lane)
{
	if (lane->blocked)
		return;
	lane->blocked = true;
	mute_readers(lane);
	if (xps_ring_stopped(&lane->shared->ring))
		return; /* not full: the user is just stopping the stream */
	if (lane->lossy)
		xps_log(lane->shared->log, XPS_LOG_RING_FULL, 1, lane->window.out[0]->cnt, 0, 0);
	/* Now and not with the batch, which may not end before the user has seen why. */
	pthread_mutex_lock(&lane->shared->lock);
	lane->shared->stats[XPS_STAT_WORKER_BLOCKED]++;
	pthread_mutex_unlock(&lane->shared->lock);
}

/* ---------------------------------------------------------------- the end */

/* Also of a reader whose watches have been added in part. */
static void remove_watches(struct xps_lane *lane, struct xps_reader *reader)
{
	for (uint32_t i = 0; i < reader->n_watches; i++)
		xps_loop_remove(lane->loop, &reader->watches[i].watch);
	xps_loop_remove(lane->loop, &reader->again);
	xps_loop_remove(lane->loop, &reader->news);
}

static void close_reader(struct xps_lane *lane, struct xps_reader *reader)
{
	struct xps_reader **link = &lane->readers;

	remove_watches(lane, reader);
	while (*link != reader)
		link = &(*link)->next;
	/* Last values of what only the reader knows, and from now on nobody asks it any more. */
	pthread_mutex_lock(&lane->shared->lock);
	if (reader->ops->add_stats)
		reader->ops->add_stats(reader, lane->shared->stats);
	*link = reader->next;
	pthread_mutex_unlock(&lane->shared->lock);
	reader->ops->close(reader);
}

static void close_readers(struct xps_lane *lane)
{
	while (lane->readers)
		close_reader(lane, lane->readers);
}

/* Readers that were stopped in the middle of a batch have packets in their hands: take them, so that they are counted. */
static void take_in_hand(struct xps_lane *lane)
{
	for (struct xps_reader *reader = lane->readers; reader; reader = reader->next)
		if (reader->blocked)
			reader->ops->poll(reader);
}

void xps_reader_fail(struct xps_reader *reader, const struct xps_fail *why)
{
	struct xps_lanes *shared = reader->lane->shared;

	pthread_mutex_lock(&shared->lock);
	if (!shared->ending && !shared->failure.err)
		shared->failure = *why;
	pthread_mutex_unlock(&shared->lock);
}

/* Any thread. */
int xps_lanes_failure(struct xps_lanes *lanes, struct xps_fail *fail)
{
	pthread_mutex_lock(&lanes->lock);
	*fail = lanes->failure;
	pthread_mutex_unlock(&lanes->lock);
	return -fail->err;
}

/* All heaps of the lane are in the ring, and all that happened in the statistics. */
static void finish(struct xps_lane *lane)
{
	struct xps_lanes *shared = lane->shared;
	bool last;

	lane->state = STOPPED;
	commit_stats(lane);
	pthread_mutex_lock(&shared->lock);
	last = --shared->n_open == 0;
	pthread_mutex_unlock(&shared->lock);
	if (last)
		xps_ring_stop(&shared->ring);
}

/* ENDING: flush as far as the ring has room. */
static void flush(struct xps_lane *lane)
{
	bool flushed;

	do {
		flushed = xps_window_flush(&lane->window, lane->credit);
		if (!deliver(lane)) {
			block(lane);
			return;
		}
	} while (!flushed);
	finish(lane);
}

/* The first lane that comes to the end of the stream tells the others. */
static void tell_others(struct xps_lane *lane)
{
	struct xps_lanes *shared = lane->shared;

	/* Posted under the lock: whoever finds `ending` set can rely on it that nothing is posted any more. */
	pthread_mutex_lock(&shared->lock);
	for (uint32_t i = 0; i < shared->n && !shared->ending; i++)
		if (shared->all[i] != lane)
			xps_loop_post(shared->all[i]->loop, &shared->all[i]->end);
	shared->ending = true;
	pthread_mutex_unlock(&shared->lock);
}

static void end(struct xps_lane *lane)
{
	tell_others(lane);
	lane->state = ENDING;
	lane->window.ended = true; /* packets that readers still have come after the end */
	take_in_hand(lane);
	close_readers(lane);
	flush(lane);
}

/* Another lane has come to the end. */
static void end_too(struct xps_task *task)
{
	struct xps_lane *lane = XPS_CONTAINER_OF(task, struct xps_lane, end);

	if (lane->state != RUNNING)
		return;
	end(lane);
	announce(lane);
}

/* The user wants no more: what is not in the ring yet is lost, and counted. */
static void drop_everything(struct xps_lane *lane)
{
	bool flushed;

	drop_outbox(lane);
	if (!lane->window.ended)
		take_in_hand(lane);
	close_readers(lane);
	do {
		flushed = xps_window_flush(&lane->window, XPS_MAX_CREDIT);
		drop_outbox(lane);
	} while (!flushed);
}

static void stop(struct xps_lane *lane)
{
	if (lane->state == STOPPED)
		return;
	lane->state = STOPPED;
	lane->credit = XPS_MAX_CREDIT;
	drop_everything(lane);
	commit_stats(lane);
}

/* The pool is being stopped: nothing would ever come any more. */
static void loop_ended(struct xps_loop_user *user)
{
	struct xps_lane *lane = XPS_CONTAINER_OF(user, struct xps_lane, user);

	wake_noted(lane->loop);
	xps_ring_stop(&lane->shared->ring);
	stop(lane);
}

struct lane_task {
	struct xps_task task;
	struct xps_lane *lane;
	int result;
};

static void stop_on_loop(struct xps_task *task)
{
	struct xps_lane *lane = XPS_CONTAINER_OF(task, struct lane_task, task)->lane;

	xps_loop_leave(lane->loop, &lane->user);
	wake_noted(lane->loop); /* nobody may come to it any more */
	xps_loop_remove(lane->loop, &lane->others_done);
	stop(lane);
}

/* Any thread. */
void xps_lanes_stop(struct xps_lanes *lanes)
{
	uint32_t n;

	xps_ring_stop(&lanes->ring);
	pthread_mutex_lock(&lanes->lock);
	lanes->ending = true;
	n = lanes->n;
	pthread_mutex_unlock(&lanes->lock);
	for (uint32_t i = 0; i < n; i++) {
		struct lane_task stop = { .task.run = stop_on_loop, .lane = lanes->all[i] };

		xps_loop_call(lanes->all[i]->loop, &stop.task);
	}
}

/* ---------------------------------------------------------------- readers */

/* The user has made room. */
static void resume(struct xps_task *task)
{
	struct xps_lane *lane = XPS_CONTAINER_OF(task, struct xps_lane, resume);

	if (!lane->blocked || lane->state == STOPPED)
		return;
	if (deliver(lane)) {
		lane->blocked = false;
		if (lane->state == ENDING)
			flush(lane);
		else
			unmute_readers(lane);
	}
	announce(lane);
}

/* The user. */
void xps_lanes_resume(struct xps_lanes *lanes, uint64_t parked)
{
	for (; parked; parked &= parked - 1) {
		struct xps_lane *lane = lanes->all[__builtin_ctzll(parked)];

		xps_loop_post(lane->loop, &lane->resume);
	}
}

/* A nap in which the source's room fills by no more than a quarter, at the rate at which packets came of late. */
static uint64_t nap_that_loses_nothing(const struct xps_reader *reader, int64_t now)
{
	const uint64_t elapsed = xps_min_u64((uint64_t)(now - reader->last_wait_ns), 1000 * UINT64_C(1000000000));

	if (!reader->room || !reader->since_wait)
		return UINT64_MAX;
	return xps_max_u64(elapsed * reader->room / (4 * reader->since_wait), SHORTEST_NAP_NS);
}

/*
 * Until the end of a nap: at most nap_ns, and at moments that all readers share, so that a worker with many of them wakes
 * for all at once. Who comes too late for a nap that is worth it sleeps until half-way to the next such moment. Whose
 * source has not room for so much sleeps for less, and by itself.
 */
static void nap(struct xps_lane *lane, struct xps_reader *reader, int64_t now)
{
	const int64_t nap_ns = lane->shared->nap_ns;
	int64_t length = nap_ns - now % nap_ns;

	if (length < nap_ns / 4)
		length += nap_ns / 2;
	xps_loop_at(lane->loop, &reader->again, now + (int64_t)xps_min_u64((uint64_t)length, reader->safe_nap_ns));
}

/* Whether no other reader that naps has found anything since two naps ago. */
static bool naps_alone(const struct xps_lane *lane, const struct xps_reader *reader, int64_t now)
{
	const struct xps_loop_notes *notes = xps_loop_notes(lane->loop);

	return notes->busy == reader || now - notes->busy_at_ns > 2 * lane->shared->nap_ns;
}

/* It found nothing at all. A nap may have been too short for that to mean anything; two were not. */
static void nap_in_vain(struct xps_lane *lane, struct xps_reader *reader)
{
	const int64_t now = xps_now_ns();

	if (++reader->naps_in_vain < (naps_alone(lane, reader, now) ? IN_VAIN_ALONE : IN_VAIN_AMONG_OTHERS))
		nap(lane, reader, now);
	else
		unmute(lane, reader);
}

/*
 * The reader has found nothing more: by what shall it be called next, its descriptors or time? If it was called in the
 * middle of a nap, by some other event, and found nothing at all, the nap goes on.
 */
static void wait_for_more(struct xps_lane *lane, struct xps_reader *reader, bool by_time)
{
	int64_t now;

	if (!reader->progress) {
		if (reader->napping && by_time)
			nap_in_vain(lane, reader);
		return;
	}
	if (!lane->shared->nap_ns || reader->n_watches == 0)
		return;
	now = xps_now_ns();
	if (!reader->napping && now - reader->last_wait_ns < 2 * lane->shared->nap_ns) {
		reader->napping = true;
		mute(lane, reader);
	}
	reader->safe_nap_ns = nap_that_loses_nothing(reader, now);
	if (reader->napping) {
		nap(lane, reader, now);
		xps_loop_notes(lane->loop)->busy = reader;
		xps_loop_notes(lane->loop)->busy_at_ns = now;
	}
	reader->naps_in_vain = 0;
	reader->last_wait_ns = now;
	reader->since_wait = 0;
}

/* What it waits for is still ready, so its descriptors must not be looked at. */
static void call_later(struct xps_lane *lane, struct xps_reader *reader)
{
	reader->napping = true;
	mute(lane, reader);
	xps_loop_after(lane->loop, &reader->again, LATER_NS);
}

/* `by_time`: not because of an event. */
static void run_reader(struct xps_reader *reader, bool by_time)
{
	struct xps_lane *lane = reader->lane;
	const bool napping = reader->napping;
	enum xps_poll next;

	if (lane->state != RUNNING)
		return;
	if (lane->blocked) {
		if (reader->ops->poll_blocked)
			reader->ops->poll_blocked(reader);
		return;
	}
	reader->progress &= reader->going_on;
	reader->blocked = false;
	next = reader->ops->poll(reader);
	reader->going_on = next == XPS_POLL_AGAIN;
	switch (next) {
	case XPS_POLL_WAIT:
		wait_for_more(lane, reader, by_time);
		break;
	case XPS_POLL_AGAIN:
		xps_loop_again(lane->loop, &reader->again);
		break;
	case XPS_POLL_LATER:
		call_later(lane, reader);
		break;
	case XPS_POLL_BLOCKED:
		reader->blocked = true;
		break;
	case XPS_POLL_END:
		lane->window.ended = true;
		break;
	}
	if (lane->window.ended)
		end(lane);
	else if (!deliver(lane))
		block(lane);
	else if (reader->blocked) /* the user has made room in the meantime */
		unmute_readers(lane);
	if (napping && lane->state == RUNNING)
		announce_at_the_end(lane);
	else
		announce(lane);
}

static void watch_ready(struct xps_watch *watch)
{
	run_reader(XPS_CONTAINER_OF(watch, struct xps_reader_watch, watch)->reader, false);
}

static void reader_again(struct xps_watch *watch)
{
	run_reader(XPS_CONTAINER_OF(watch, struct xps_reader, again), true);
}

/*
 * With many streams each one's own has left the cache when its turn comes. What is fetched from one place after the other
 * while the one before works takes no longer than a single miss.
 */
static void reader_soon(const struct xps_watch *watch)
{
	const struct xps_reader *reader = XPS_CONTAINER_OF(watch, struct xps_reader, again);
	const struct xps_lane *lane = reader->lane;
	const struct xps_window *window = &lane->window;

	xps_fetch((const uint8_t *)reader, sizeof(*reader));
	xps_fetch((const uint8_t *)&window->n_out, sizeof(*window) - offsetof(struct xps_window, n_out));
	xps_fetch((const uint8_t *)&lane->shared->lock, sizeof(lane->shared->lock) + sizeof(lane->shared->stats));
	if (reader->ops->soon)
		reader->ops->soon(reader);
	if (window->last)
		xps_fetch((const uint8_t *)window->last, sizeof(*window->last));
}

static void news_ready(struct xps_watch *watch)
{
	struct xps_reader *reader = XPS_CONTAINER_OF(watch, struct xps_reader, news);
	struct xps_lane *lane = reader->lane;

	if (lane->state != RUNNING)
		return;
	reader->ops->look(reader);
	xps_loop_after(lane->loop, watch, LOOK_NS);
	run_reader(reader, false);
}

struct reader_task {
	struct xps_task task;
	struct xps_lane *lane;
	struct xps_reader *reader;
	int result;
};

static int add_watches(struct xps_lane *lane, struct xps_reader *reader)
{
	int err = xps_loop_add(lane->loop, &reader->again);

	for (uint32_t i = 0; i < reader->n_watches && !err; i++)
		err = xps_loop_add(lane->loop, &reader->watches[i].watch);
	if (reader->ops->look && !err)
		err = xps_loop_add(lane->loop, &reader->news);
	if (err)
		remove_watches(lane, reader);
	else if (reader->ops->look)
		xps_loop_again(lane->loop, &reader->news); /* it may have gone already */
	return err;
}

static void attach_on_loop(struct xps_task *task)
{
	struct reader_task *attach = XPS_CONTAINER_OF(task, struct reader_task, task);
	struct xps_lane *lane = attach->lane;
	struct xps_reader *reader = attach->reader;

	attach->result = lane->state == RUNNING ? add_watches(lane, reader) : -EPIPE;
	if (attach->result)
		return;
	pthread_mutex_lock(&lane->shared->lock);
	reader->next = lane->readers;
	lane->readers = reader;
	keep_queues(lane->shared, reader->queues);
	pthread_mutex_unlock(&lane->shared->lock);
	lane->lossy |= reader->ops->lossy;
	if (lane->blocked)
		mute_readers(lane);
	else
		xps_loop_again(lane->loop, &reader->again); /* there may be data already */
}

/* Any thread. */
int xps_lanes_attach(struct xps_lanes *lanes, uint32_t lane, struct xps_reader *reader)
{
	struct reader_task attach = { .task.run = attach_on_loop, .lane = lanes->all[lane], .reader = reader };
	int err;

	reader->lane = attach.lane;
	reader->again = (struct xps_watch){ .fd = -1, .ready = reader_again, .soon = reader_soon };
	reader->news.ready = news_ready;
	for (uint32_t i = 0; i < reader->n_watches; i++) {
		reader->watches[i].reader = reader;
		reader->watches[i].watch.ready = watch_ready;
	}
	err = xps_loop_call(attach.lane->loop, &attach.task);
	return err ? err : attach.result;
}

static void detach_on_loop(struct xps_task *task)
{
	struct reader_task *detach = XPS_CONTAINER_OF(task, struct reader_task, task);
	struct xps_lane *lane = detach->lane;
	struct xps_reader *reader = lane->readers;

	while (reader && reader != detach->reader)
		reader = reader->next;
	if (!reader)
		return;
	close_reader(lane, reader);
	commit_stats(lane);
}

/* Any thread. */
void xps_lanes_detach(struct xps_lanes *lanes, uint32_t lane, struct xps_reader *reader)
{
	struct reader_task detach = { .task.run = detach_on_loop, .lane = lanes->all[lane], .reader = reader };

	xps_loop_call(detach.lane->loop, &detach.task);
}

int xps_reader_watch_instead(struct xps_reader_watch *watch, int fd)
{
	struct xps_reader *reader = watch->reader;

	xps_loop_remove(reader->lane->loop, &watch->watch);
	watch->watch.fd = fd;
	reader->napping = false;
	return xps_loop_add(reader->lane->loop, &watch->watch);
}

/* ---------------------------------------------------------------- batches */

void xps_batch_begin(struct xps_reader *reader)
{
	reader->batch_packets = 0;
	reader->progress = true;
}

uint32_t xps_batch_push(struct xps_reader *reader, const struct xps_view *views, uint32_t n)
{
	struct xps_lane *lane = reader->lane;
	struct xps_window *window = &lane->window;
	const uint64_t before = window->stats[XPS_STAT_PACKETS];
	uint32_t taken = 0;

	do
		taken += xps_window_push(window, views + taken, n - taken, lane->credit);
	while ((taken < n || is_worth_delivering(window)) && deliver(lane) && taken < n);
	reader->batch_packets += window->stats[XPS_STAT_PACKETS] - before;
	reader->since_wait += taken;
	return taken;
}

void xps_batch_end(struct xps_reader *reader)
{
	struct xps_lane *lane = reader->lane;
	struct xps_window *window = &lane->window;

	if (window->n_out)
		deliver(lane);
	/* A batch that ends the stream before its first packet is none. */
	if (reader->batch_packets || !window->ended)
		window->stats[XPS_STAT_BATCHES]++;
	if (reader->batch_packets > window->stats[XPS_STAT_MAX_BATCH])
		window->stats[XPS_STAT_MAX_BATCH] = reader->batch_packets;
	commit_stats(lane);
}

bool xps_reader_ended(const struct xps_reader *reader)
{
	return reader->lane->window.ended;
}

/* ---------------------------------------------------------------- lanes come into being: any thread */

/* A loop that has none of the lanes yet, if there is one. The lock is held. */
static struct xps_loop *choose_loop(struct xps_lanes *lanes)
{
	struct xps_loop *taken[XPS_MAX_LANES];

	for (uint32_t i = 0; i < lanes->n; i++)
		taken[i] = lanes->all[i]->loop;
	return xps_pool_loop_besides(lanes->pool, taken, lanes->n);
}

static int lane_new(struct xps_lane **made, struct xps_lanes *lanes)
{
	struct xps_lane *lane = calloc(1, sizeof(*lane));
	int err;

	if (!lane)
		return -ENOMEM;
	err = xps_window_init(&lane->window, &lanes->window_config);
	if (err) {
		free(lane);
		return err;
	}
	lane->shared = lanes;
	lane->credit = (uint32_t)xps_min_u64(lanes->ring.any_heaps, XPS_MAX_CREDIT);
	lane->user.ended = loop_ended;
	lane->others_done = (struct xps_watch){ .fd = -1, .ready = others_done };
	lane->resume.run = resume;
	lane->end.run = end_too;
	*made = lane;
	return 0;
}

static void lane_free(struct xps_lane *lane)
{
	xps_window_fini(&lane->window);
	free(lane);
}

/* As lane number `index`. From here on a stop of the stream finds it. -EEXIST if another thread was quicker. */
static int publish(struct xps_lanes *lanes, struct xps_lane *lane, uint32_t index)
{
	int err;

	pthread_mutex_lock(&lanes->lock);
	err = lanes->ending ? -EPIPE : lanes->n != index ? -EEXIST : 0;
	if (!err) {
		lane->loop = choose_loop(lanes);
		lane->index = index;
		lanes->all[lanes->n++] = lane;
		lanes->n_open++;
	}
	pthread_mutex_unlock(&lanes->lock);
	return err;
}

static void open_on_loop(struct xps_task *task)
{
	struct lane_task *open = XPS_CONTAINER_OF(task, struct lane_task, task);
	struct xps_lane *lane = open->lane;

	open->result = lane->state == RUNNING ? xps_loop_join(lane->loop, &lane->user) : -EPIPE;
	if (!open->result)
		open->result = xps_loop_add(lane->loop, &lane->others_done);
	if (open->result)
		stop(lane);
}

static int add_lane(struct xps_lanes *lanes, uint32_t index)
{
	struct lane_task open = { .task.run = open_on_loop };
	int err = lane_new(&open.lane, lanes);

	if (err)
		return err;
	err = publish(lanes, open.lane, index);
	if (err) {
		lane_free(open.lane);
		return err == -EEXIST ? 0 : err;
	}
	err = xps_loop_call(open.lane->loop, &open.task);
	return err ? err : open.result;
}

static uint32_t n_lanes(struct xps_lanes *lanes)
{
	uint32_t n;

	pthread_mutex_lock(&lanes->lock);
	n = lanes->n;
	pthread_mutex_unlock(&lanes->lock);
	return n;
}

int xps_lanes_want(struct xps_lanes *lanes, uint32_t n)
{
	int err = n > XPS_MAX_LANES ? -EINVAL : 0;

	for (uint32_t i = n_lanes(lanes); i < n && !err; i++)
		err = add_lane(lanes, i);
	return err;
}

int xps_lanes_init(struct xps_lanes *lanes, struct xps_pool *pool, const struct xps_stream_config *config,
		   struct xps_allocator *allocator, struct xps_log *log)
{
	int err;

	*lanes = (struct xps_lanes){
		.pool = pool,
		.log = log,
		.nap_ns = config->nap_ns,
		.window_config = {
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
		},
	};
	err = xps_ring_init(&lanes->ring, config->ring_heaps, config->ring_bytes);
	if (err)
		return err;
	pthread_mutex_init(&lanes->lock, NULL);
	err = xps_lanes_want(lanes, 1);
	if (err)
		xps_lanes_fini(lanes);
	return err;
}

void xps_lanes_fini(struct xps_lanes *lanes)
{
	for (uint32_t i = 0; i < lanes->n; i++)
		lane_free(lanes->all[i]);
	free_queues(lanes->queues);
	xps_ring_fini(&lanes->ring);
	pthread_mutex_destroy(&lanes->lock);
}
