// SPDX-License-Identifier: Apache-2.0
/* Worker threads: tasks, calls that wait, watches that come and go while they are being called, and the end. */
#include <errno.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "await.h"
#include "bits.h"
#include "check.h"
#include "pool.h"

static struct xps_pool *new_pool(int n_threads)
{
	struct xps_fail fail = { 0 };
	struct xps_pool *pool = xps_pool_new(n_threads, NULL, 0, &fail);

	CHECK(pool);
	return pool;
}

/* ---------------------------------------------------------------- tasks */

/* Notes when it ran and in which thread. */
struct note {
	struct xps_task task;
	unsigned *clock;
	unsigned when; /* 0: not yet */
	unsigned times;
	pthread_t thread;
};

static void run_note(struct xps_task *task)
{
	struct note *note = XPS_CONTAINER_OF(task, struct note, task);

	note->when = ++*note->clock;
	note->times++;
	note->thread = pthread_self();
}

static struct note note_of(unsigned *clock)
{
	return (struct note){ .task.run = run_note, .clock = clock };
}

/* Keeps the loop's thread until it is let go. */
struct gate {
	struct xps_task task;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	bool entered, open;
};

static void run_gate(struct xps_task *task)
{
	struct gate *gate = XPS_CONTAINER_OF(task, struct gate, task);

	pthread_mutex_lock(&gate->lock);
	gate->entered = true;
	pthread_cond_broadcast(&gate->changed);
	while (!gate->open)
		pthread_cond_wait(&gate->changed, &gate->lock);
	pthread_mutex_unlock(&gate->lock);
}

static void gate_close(struct gate *gate, struct xps_loop *loop)
{
	*gate = (struct gate){ .task.run = run_gate };
	pthread_mutex_init(&gate->lock, NULL);
	pthread_cond_init(&gate->changed, NULL);
	xps_loop_post(loop, &gate->task);
	pthread_mutex_lock(&gate->lock);
	while (!gate->entered)
		pthread_cond_wait(&gate->changed, &gate->lock);
	pthread_mutex_unlock(&gate->lock);
}

static void gate_open(struct gate *gate)
{
	pthread_mutex_lock(&gate->lock);
	gate->open = true;
	pthread_cond_broadcast(&gate->changed);
	pthread_mutex_unlock(&gate->lock);
}

static void do_nothing(struct xps_task *task)
{
	(void)task;
}

static void settle(struct xps_loop *loop)
{
	struct xps_task task = { .run = do_nothing };

	xps_loop_call(loop, &task);
}

static void test_loops_are_given_out_in_turn_and_not_twice_to_one_user_while_there_are_others(void)
{
	struct xps_pool *pool = new_pool(3);
	struct xps_loop *loops[6];

	for (int i = 0; i < 6; i++)
		loops[i] = xps_pool_loop(pool);
	for (int i = 0; i < 3; i++) {
		CHECK(loops[i] == loops[i + 3]);
		CHECK(loops[i] != loops[(i + 1) % 3]);
		for (int k = 0; k < 3; k++) /* whoever's turn it is */
			CHECK(xps_pool_loop_besides(pool, &loops[i], 2) == loops[(i + 2) % 3]);
	}
	CHECK(xps_pool_loop_besides(pool, loops, 3)); /* there are no others */
	xps_pool_free(pool);
}

static void test_tasks_run_in_the_order_they_were_posted(void)
{
	enum { N = 100 };
	struct xps_pool *pool = new_pool(1);
	struct xps_loop *loop = xps_pool_loop(pool);
	struct note notes[N];
	struct gate gate;
	unsigned clock = 0;

	gate_close(&gate, loop);
	for (unsigned i = 0; i < N; i++) {
		notes[i] = note_of(&clock);
		xps_loop_post(loop, &notes[i].task);
	}
	gate_open(&gate);
	settle(loop);
	for (unsigned i = 0; i < N; i++) {
		CHECK_EQ(notes[i].when, i + 1);
		CHECK(!pthread_equal(notes[i].thread, pthread_self()));
	}
	xps_pool_free(pool);
}

static void test_task_that_waits_is_not_queued_twice(void)
{
	struct xps_pool *pool = new_pool(1);
	struct xps_loop *loop = xps_pool_loop(pool);
	unsigned clock = 0;
	struct note note = note_of(&clock);
	struct gate gate;

	gate_close(&gate, loop);
	xps_loop_post(loop, &note.task);
	xps_loop_post(loop, &note.task);
	gate_open(&gate);
	settle(loop);
	CHECK_EQ(note.times, 1);
	xps_loop_post(loop, &note.task);
	settle(loop);
	CHECK_EQ(note.times, 2);
	xps_pool_free(pool);
}

struct nested {
	struct xps_task task;
	struct xps_loop *loop;
	struct note note;
	bool ran_inside;
};

static void run_nested(struct xps_task *task)
{
	struct nested *nested = XPS_CONTAINER_OF(task, struct nested, task);

	xps_loop_call(nested->loop, &nested->note.task);
	nested->ran_inside = nested->note.when == 1;
}

static void test_call_on_the_loops_own_thread_runs_at_once(void)
{
	struct xps_pool *pool = new_pool(1);
	unsigned clock = 0;
	struct nested nested = { .task.run = run_nested, .loop = xps_pool_loop(pool), .note = note_of(&clock) };

	xps_loop_call(nested.loop, &nested.task);
	CHECK(nested.ran_inside);
	xps_pool_free(pool);
}

/* A count that has no lock: right only if nothing runs beside it. */
struct counter {
	struct xps_task task;
	unsigned *count;
};

static void run_counter(struct xps_task *task)
{
	unsigned *count = XPS_CONTAINER_OF(task, struct counter, task)->count;
	volatile unsigned before = *count;

	*count = before + 1;
}

struct callers {
	struct xps_loop *loop;
	unsigned count;
};

enum { CALLERS = 4, CALLS = 2000 };

static void *call_often(void *argument)
{
	struct callers *callers = argument;
	struct counter counter = { .task.run = run_counter, .count = &callers->count };

	for (int i = 0; i < CALLS; i++)
		xps_loop_call(callers->loop, &counter.task);
	return NULL;
}

static void start_callers(struct callers *callers, pthread_t threads[CALLERS])
{
	for (int i = 0; i < CALLERS; i++)
		threads[i] = start(call_often, callers);
}

static void join_callers(pthread_t threads[CALLERS])
{
	for (int i = 0; i < CALLERS; i++)
		join(threads[i]);
}

static void test_calls_from_several_threads_run_one_at_a_time(void)
{
	struct xps_pool *pool = new_pool(1);
	struct callers callers = { .loop = xps_pool_loop(pool) };
	pthread_t threads[CALLERS];

	start_callers(&callers, threads);
	join_callers(threads);
	CHECK_EQ(callers.count, CALLERS * CALLS);
	xps_pool_free(pool);
}

/* ---------------------------------------------------------------- the end */

static void *stop_pool(void *pool)
{
	xps_pool_stop(pool);
	return NULL;
}

static void test_tasks_posted_before_the_stop_are_run(void)
{
	enum { N = 10 };
	struct xps_pool *pool = new_pool(1);
	struct xps_loop *loop = xps_pool_loop(pool);
	struct note notes[N];
	struct gate gate;
	unsigned clock = 0;
	pthread_t stopper;

	gate_close(&gate, loop);
	for (unsigned i = 0; i < N; i++) {
		notes[i] = note_of(&clock);
		xps_loop_post(loop, &notes[i].task);
	}
	stopper = start(stop_pool, pool);
	gate_open(&gate);
	join(stopper);
	for (unsigned i = 0; i < N; i++)
		CHECK_EQ(notes[i].when, i + 1);
	xps_pool_free(pool);
}

static void test_calls_during_the_stop_are_run_by_either_side_but_one_at_a_time(void)
{
	for (int round = 0; round < 20; round++) {
		struct xps_pool *pool = new_pool(1);
		struct callers callers = { .loop = xps_pool_loop(pool) };
		pthread_t threads[CALLERS];

		start_callers(&callers, threads);
		xps_pool_stop(pool);
		join_callers(threads);
		CHECK_EQ(callers.count, CALLERS * CALLS);
		xps_pool_free(pool);
	}
}

static void test_call_after_the_end_runs_in_the_caller(void)
{
	struct xps_pool *pool = new_pool(1);
	struct xps_loop *loop = xps_pool_loop(pool);
	unsigned clock = 0;
	struct note note = note_of(&clock);

	xps_pool_stop(pool);
	xps_loop_call(loop, &note.task);
	CHECK_EQ(note.times, 1);
	CHECK(pthread_equal(note.thread, pthread_self()));
	xps_pool_free(pool);
}

static void test_call_within_a_call_after_the_end_runs_too(void)
{
	struct xps_pool *pool = new_pool(1);
	unsigned clock = 0;
	struct nested nested = { .task.run = run_nested, .loop = xps_pool_loop(pool), .note = note_of(&clock) };

	xps_pool_stop(pool);
	xps_loop_call(nested.loop, &nested.task);
	CHECK(nested.ran_inside);
	xps_pool_free(pool);
}

static void test_task_posted_after_the_end_is_not_run(void)
{
	struct xps_pool *pool = new_pool(1);
	struct xps_loop *loop = xps_pool_loop(pool);
	unsigned clock = 0;
	struct note note = note_of(&clock);

	xps_pool_stop(pool);
	xps_loop_post(loop, &note.task);
	settle(loop);
	CHECK_EQ(note.times, 0);
	xps_pool_free(pool);
}

static void test_pool_is_stopped_by_several_threads_at_once(void)
{
	struct xps_pool *pool = new_pool(3);

	run_together(3, stop_pool, pool);
	xps_pool_free(pool);
}

/* ---------------------------------------------------------------- watches */

/* A test of watches: `act` says what a watch does when it is called. */
struct probe {
	struct xps_watch watch;
	struct xps_loop *loop;
	struct probe *other;
	void (*act)(struct probe *probe);
	unsigned calls;
};

static void probe_ready(struct xps_watch *watch)
{
	struct probe *probe = XPS_CONTAINER_OF(watch, struct probe, watch);

	__atomic_add_fetch(&probe->calls, 1, __ATOMIC_RELAXED);
	if (probe->act)
		probe->act(probe);
}

/* With a descriptor that is readable from the start if `raised`. */
static struct probe probe_of(struct xps_loop *loop, bool raised, void (*act)(struct probe *))
{
	return (struct probe){
		.watch = { .fd = eventfd(raised, EFD_NONBLOCK | EFD_CLOEXEC), .ready = probe_ready },
		.loop = loop,
		.act = act,
	};
}

static void lower(struct probe *probe)
{
	eventfd_t value;

	eventfd_read(probe->watch.fd, &value);
}

static void remove_self(struct probe *probe)
{
	xps_loop_remove(probe->loop, &probe->watch);
}

static void remove_both(struct probe *probe)
{
	xps_loop_remove(probe->loop, &probe->other->watch);
	xps_loop_remove(probe->loop, &probe->watch);
}

/* Something to be done on the loop with two probes. */
struct job {
	struct xps_task task;
	void (*act)(struct probe *first, struct probe *second);
	struct probe *first, *second;
	unsigned first_calls, second_calls; /* as the loop saw them */
};

static void run_job(struct xps_task *task)
{
	struct job *job = XPS_CONTAINER_OF(task, struct job, task);

	if (job->act)
		job->act(job->first, job->second);
	job->first_calls = job->first ? job->first->calls : 0;
	job->second_calls = job->second ? job->second->calls : 0;
}

static struct job on_loop(void (*act)(struct probe *, struct probe *), struct probe *first, struct probe *second)
{
	struct job job = { .task.run = run_job, .act = act, .first = first, .second = second };

	xps_loop_call(first->loop, &job.task);
	return job;
}

static void add_both(struct probe *first, struct probe *second)
{
	CHECK_EQ(xps_loop_add(first->loop, &first->watch), 0);
	if (second)
		CHECK_EQ(xps_loop_add(second->loop, &second->watch), 0);
}

static void drop_both(struct probe *first, struct probe *second)
{
	xps_loop_remove(first->loop, &first->watch);
	if (second)
		xps_loop_remove(second->loop, &second->watch);
}

static unsigned calls_of(struct probe *probe)
{
	return on_loop(NULL, probe, NULL).first_calls;
}

/* A few rounds of the loop: each call is at least one. */
static void some_rounds(struct xps_loop *loop)
{
	for (int i = 0; i < 10; i++)
		settle(loop);
}

static void close_probe(struct probe *probe)
{
	on_loop(drop_both, probe, NULL);
	if (probe->watch.fd >= 0)
		close(probe->watch.fd);
}

static void test_watch_is_called_when_its_descriptor_is_readable(void)
{
	struct xps_pool *pool = new_pool(1);
	struct probe probe = probe_of(xps_pool_loop(pool), false, lower);

	on_loop(add_both, &probe, NULL);
	some_rounds(probe.loop);
	CHECK_EQ(calls_of(&probe), 0);
	for (unsigned i = 1; i < 5; i++) {
		eventfd_write(probe.watch.fd, 1);
		AWAIT(calls_of(&probe) == i);
	}
	some_rounds(probe.loop);
	CHECK_EQ(calls_of(&probe), 4);
	close_probe(&probe);
	xps_pool_free(pool);
}

static void test_watch_is_called_as_long_as_its_descriptor_is_readable(void)
{
	struct xps_pool *pool = new_pool(1);
	struct probe probe = probe_of(xps_pool_loop(pool), true, NULL);

	on_loop(add_both, &probe, NULL);
	AWAIT(calls_of(&probe) > 3);
	close_probe(&probe);
	xps_pool_free(pool);
}

static void test_descriptor_that_cannot_be_watched_is_an_error(void)
{
	struct xps_pool *pool = new_pool(1);
	struct xps_watch watch = { .fd = 1 << 20, .ready = probe_ready };

	xps_pool_stop(pool);
	CHECK_EQ(xps_loop_add(xps_pool_loop(pool), &watch), -EBADF);
	xps_loop_remove(xps_pool_loop(pool), &watch);
	xps_pool_free(pool);
}

static void test_watch_may_remove_itself(void)
{
	struct xps_pool *pool = new_pool(1);
	struct probe probe = probe_of(xps_pool_loop(pool), true, remove_self);

	on_loop(add_both, &probe, NULL);
	AWAIT(calls_of(&probe) == 1);
	some_rounds(probe.loop);
	CHECK_EQ(calls_of(&probe), 1);
	close_probe(&probe);
	xps_pool_free(pool);
}

static void test_watch_that_was_removed_is_not_called_even_if_it_was_due(void)
{
	struct xps_pool *pool = new_pool(1);
	struct xps_loop *loop = xps_pool_loop(pool);
	struct probe first = probe_of(loop, true, remove_both), second = probe_of(loop, true, remove_both);

	first.other = &second;
	second.other = &first;
	/* Both are readable when they are added, so that epoll returns both; each removes the other. */
	on_loop(add_both, &first, &second);
	AWAIT(calls_of(&first) + calls_of(&second) > 0);
	some_rounds(loop);
	CHECK_EQ(calls_of(&first) + calls_of(&second), 1);
	close_probe(&first);
	close_probe(&second);
	xps_pool_free(pool);
}

static void mute_first(struct probe *first, struct probe *second)
{
	(void)second;
	xps_loop_mute(first->loop, &first->watch);
	xps_loop_mute(first->loop, &first->watch); /* is muted already */
}

static void unmute_first(struct probe *first, struct probe *second)
{
	(void)second;
	xps_loop_unmute(first->loop, &first->watch);
	xps_loop_unmute(first->loop, &first->watch);
}

static void mute_self(struct probe *probe)
{
	xps_loop_mute(probe->loop, &probe->watch);
}

static void test_muted_watch_is_called_again_when_unmuted(void)
{
	struct xps_pool *pool = new_pool(1);
	struct probe probe = probe_of(xps_pool_loop(pool), true, mute_self);

	on_loop(add_both, &probe, NULL);
	for (unsigned i = 1; i < 5; i++) {
		AWAIT(calls_of(&probe) == i);
		some_rounds(probe.loop);
		CHECK_EQ(calls_of(&probe), i);
		on_loop(unmute_first, &probe, NULL);
	}
	close_probe(&probe);
	xps_pool_free(pool);
}

static void test_muted_watch_misses_nothing(void)
{
	struct xps_pool *pool = new_pool(1);
	struct probe probe = probe_of(xps_pool_loop(pool), false, lower);

	on_loop(add_both, &probe, NULL);
	on_loop(mute_first, &probe, NULL);
	eventfd_write(probe.watch.fd, 1);
	some_rounds(probe.loop);
	CHECK_EQ(calls_of(&probe), 0);
	on_loop(unmute_first, &probe, NULL);
	AWAIT(calls_of(&probe) == 1);
	close_probe(&probe);
	xps_pool_free(pool);
}

static void test_muted_watch_may_be_removed_and_added(void)
{
	struct xps_pool *pool = new_pool(1);
	struct probe probe = probe_of(xps_pool_loop(pool), true, lower);

	on_loop(add_both, &probe, NULL);
	on_loop(mute_first, &probe, NULL);
	on_loop(drop_both, &probe, NULL);
	on_loop(unmute_first, &probe, NULL); /* nothing: it is not there */
	some_rounds(probe.loop);
	CHECK(readable(probe.watch.fd) || calls_of(&probe) == 1);
	eventfd_write(probe.watch.fd, 1);
	on_loop(add_both, &probe, NULL);
	AWAIT(!readable(probe.watch.fd));
	close_probe(&probe);
	xps_pool_free(pool);
}

/* ---------------------------------------------------------------- watches that ask to be called again */

static void again_first(struct probe *first, struct probe *second)
{
	(void)second;
	xps_loop_again(first->loop, &first->watch);
	xps_loop_again(first->loop, &first->watch);
}

static void again_both(struct probe *first, struct probe *second)
{
	xps_loop_again(first->loop, &first->watch);
	xps_loop_again(second->loop, &second->watch);
}

static void again_self(struct probe *probe)
{
	xps_loop_again(probe->loop, &probe->watch);
}

static struct probe probe_without_fd(struct xps_loop *loop, void (*act)(struct probe *))
{
	return (struct probe){ .watch = { .fd = -1, .ready = probe_ready }, .loop = loop, .act = act };
}

static void test_watch_that_asks_is_called_once_more(void)
{
	struct xps_pool *pool = new_pool(1);
	struct probe probe = probe_without_fd(xps_pool_loop(pool), NULL);

	on_loop(add_both, &probe, NULL);
	for (unsigned i = 1; i < 5; i++) {
		on_loop(again_first, &probe, NULL);
		AWAIT(calls_of(&probe) == i);
		some_rounds(probe.loop);
		CHECK_EQ(calls_of(&probe), i);
	}
	close_probe(&probe);
	xps_pool_free(pool);
}

static void test_watch_that_always_asks_starves_nobody(void)
{
	struct xps_pool *pool = new_pool(1);
	struct xps_loop *loop = xps_pool_loop(pool);
	struct probe busy = probe_without_fd(loop, again_self), also_busy = probe_without_fd(loop, again_self);
	struct probe other = probe_of(loop, false, lower);

	on_loop(add_both, &busy, &also_busy);
	on_loop(add_both, &other, NULL);
	on_loop(again_both, &busy, &also_busy);
	for (unsigned i = 1; i < 5; i++) {
		const unsigned before = calls_of(&also_busy);

		eventfd_write(other.watch.fd, 1);
		AWAIT(calls_of(&other) == i);
		AWAIT(calls_of(&also_busy) > before);
	}
	CHECK(calls_of(&busy) > 0);
	close_probe(&busy);
	close_probe(&also_busy);
	close_probe(&other);
	xps_pool_free(pool);
}

static void test_watch_that_was_removed_is_not_called_again(void)
{
	struct xps_pool *pool = new_pool(1);
	struct xps_loop *loop = xps_pool_loop(pool);
	struct probe first = probe_without_fd(loop, remove_both), second = probe_without_fd(loop, remove_both);

	first.other = &second;
	second.other = &first;
	on_loop(add_both, &first, &second);
	on_loop(again_both, &first, &second);
	AWAIT(calls_of(&first) > 0);
	some_rounds(loop);
	CHECK_EQ(calls_of(&first), 1);
	CHECK_EQ(calls_of(&second), 0);
	on_loop(again_both, &first, &second); /* nothing: they are not there */
	some_rounds(loop);
	CHECK_EQ(calls_of(&first), 1);
	CHECK_EQ(calls_of(&second), 0);
	xps_pool_free(pool);
}

static void remove_other(struct probe *probe)
{
	xps_loop_remove(probe->loop, &probe->other->watch);
}

static void add_again_and_drop_last(struct probe *first, struct probe *second)
{
	add_both(first, second);
	again_both(first, second);
	/* The queue ends with the first one again: the next to come goes behind it. */
	xps_loop_remove(second->loop, &second->watch);
	CHECK_EQ(xps_loop_add(second->loop, &second->watch), 0);
	xps_loop_again(second->loop, &second->watch);
}

static void test_queue_is_whole_after_its_last_was_removed(void)
{
	struct xps_pool *pool = new_pool(1);
	struct xps_loop *loop = xps_pool_loop(pool);
	struct probe first = probe_without_fd(loop, NULL), second = probe_without_fd(loop, remove_other);

	second.other = &first;
	on_loop(add_again_and_drop_last, &first, &second);
	AWAIT(calls_of(&second) == 1);
	CHECK_EQ(calls_of(&first), 1);
	close_probe(&second);
	xps_pool_free(pool);
}

/* ---------------------------------------------------------------- watches that ask to be called after a time */

static void after_20_ms(struct probe *first, struct probe *second)
{
	(void)second;
	xps_loop_after(first->loop, &first->watch, 20000000);
}

static void after_no_time(struct probe *first, struct probe *second)
{
	(void)second;
	xps_loop_after(first->loop, &first->watch, 0);
}

static void after_an_hour_and_at_once(struct probe *first, struct probe *second)
{
	xps_loop_after(first->loop, &first->watch, INT64_C(3600000000000));
	xps_loop_after(second->loop, &second->watch, 1000);
}

static void test_watch_is_called_after_its_time_and_once(void)
{
	struct xps_pool *pool = new_pool(1);
	struct probe probe = probe_without_fd(xps_pool_loop(pool), NULL);
	const int64_t begin = now_ms();

	on_loop(add_both, &probe, NULL);
	on_loop(after_20_ms, &probe, NULL);
	AWAIT(calls_of(&probe) == 1);
	CHECK(now_ms() - begin >= 20);
	some_rounds(probe.loop);
	CHECK_EQ(calls_of(&probe), 1);
	on_loop(after_no_time, &probe, NULL);
	AWAIT(calls_of(&probe) == 2);
	close_probe(&probe);
	xps_pool_free(pool);
}

/* Nothing else wakes the loop: no call, no descriptor. */
static void test_time_alone_wakes_the_loop(void)
{
	struct xps_pool *pool = new_pool(1);
	struct probe probe = probe_without_fd(xps_pool_loop(pool), NULL);

	on_loop(add_both, &probe, NULL);
	on_loop(after_20_ms, &probe, NULL);
	AWAIT(__atomic_load_n(&probe.calls, __ATOMIC_RELAXED) == 1);
	close_probe(&probe);
	xps_pool_free(pool);
}

static void test_later_time_does_not_delay_an_earlier_one(void)
{
	struct xps_pool *pool = new_pool(1);
	struct xps_loop *loop = xps_pool_loop(pool);
	struct probe first = probe_without_fd(loop, NULL), second = probe_without_fd(loop, NULL);

	on_loop(add_both, &first, &second);
	on_loop(after_an_hour_and_at_once, &first, &second);
	AWAIT(calls_of(&second) == 1);
	CHECK_EQ(calls_of(&first), 0);
	on_loop(after_no_time, &first, NULL); /* moves its time */
	AWAIT(calls_of(&first) == 1);
	close_probe(&first);
	close_probe(&second);
	xps_pool_free(pool);
}

/* Watches that note when they were called, and before whom they were told that they would be. */
enum { NOTED = 12 };

static struct noted {
	struct xps_watch watch;
	int due_ms;
} noted[NOTED];
static struct xps_loop *noting_loop;
static int called[NOTED], n_called, n_foretold;
static const struct xps_watch *foretold;

static void note_call(struct xps_watch *watch)
{
	n_foretold += foretold == &noted[n_called < NOTED - 1 ? n_called + 1 : NOTED - 1].watch;
	called[n_called] = XPS_CONTAINER_OF(watch, struct noted, watch)->due_ms;
	__atomic_store_n(&n_called, n_called + 1, __ATOMIC_RELEASE);
}

static void foretell(const struct xps_watch *watch)
{
	foretold = watch;
}

static void start_noting(struct probe *first, struct probe *second)
{
	(void)first;
	(void)second;
	for (int i = 0; i < NOTED; i++) {
		noted[i] = (struct noted){ .watch = { .fd = -1, .ready = note_call, .soon = foretell } };
		CHECK_EQ(xps_loop_add(noting_loop, &noted[i].watch), 0);
	}
	n_called = n_foretold = 0;
}

static void stop_noting(struct probe *first, struct probe *second)
{
	(void)first;
	(void)second;
	for (int i = 0; i < NOTED; i++)
		xps_loop_remove(noting_loop, &noted[i].watch);
}

static void after_times_in_no_order_that_move(struct probe *first, struct probe *second)
{
	static const int times_ms[2][NOTED] = {
		{ 9, 1, 40, 9, 2, 3, 2, 8, 50, 1, 7, 6 },
		{ 3, 30, 2, 9, 21, 0, 2, 14, 1, 12, 7, 28 },
	};

	(void)first;
	(void)second;
	for (int round = 0; round < 2; round++) {
		for (int i = 0; i < NOTED; i++) {
			noted[i].due_ms = times_ms[round][i];
			xps_loop_after(noting_loop, &noted[i].watch, noted[i].due_ms * INT64_C(1000000));
		}
	}
}

static void test_watches_are_called_in_the_order_of_their_times(void)
{
	struct xps_pool *pool = new_pool(1);
	struct probe none = { .calls = 0 };

	none.loop = noting_loop = xps_pool_loop(pool);
	on_loop(start_noting, &none, NULL);
	on_loop(after_times_in_no_order_that_move, &none, NULL);
	AWAIT(__atomic_load_n(&n_called, __ATOMIC_ACQUIRE) == NOTED);
	for (int i = 1; i < NOTED; i++)
		CHECK(called[i - 1] <= called[i]);
	on_loop(stop_noting, &none, NULL);
	xps_pool_free(pool);
}

static void all_again(struct probe *first, struct probe *second)
{
	(void)first;
	(void)second;
	for (int i = 0; i < NOTED; i++)
		xps_loop_again(noting_loop, &noted[i].watch);
}

static void test_watch_is_told_while_the_one_before_it_has_its_turn(void)
{
	struct xps_pool *pool = new_pool(1);
	struct probe none = { .calls = 0 };

	none.loop = noting_loop = xps_pool_loop(pool);
	on_loop(start_noting, &none, NULL);
	on_loop(all_again, &none, NULL);
	AWAIT(__atomic_load_n(&n_called, __ATOMIC_ACQUIRE) == NOTED);
	on_loop(stop_noting, &none, NULL);
	CHECK_EQ(n_foretold, NOTED); /* each time it was the one after, and at the end nobody any more */
	xps_pool_free(pool);
}

static void after_no_time_and_removed(struct probe *first, struct probe *second)
{
	xps_loop_after(first->loop, &first->watch, 0);
	xps_loop_after(second->loop, &second->watch, 0);
	drop_both(first, second);
	xps_loop_after(first->loop, &first->watch, 0); /* nothing: it is not there */
}

static void test_watch_that_was_removed_is_not_called_when_its_time_comes(void)
{
	struct xps_pool *pool = new_pool(1);
	struct xps_loop *loop = xps_pool_loop(pool);
	struct probe first = probe_without_fd(loop, NULL), second = probe_without_fd(loop, NULL);

	on_loop(add_both, &first, &second);
	on_loop(after_no_time_and_removed, &first, &second);
	some_rounds(loop);
	CHECK_EQ(calls_of(&first), 0);
	CHECK_EQ(calls_of(&second), 0);
	xps_pool_free(pool);
}

/* Every list that the watch may be in. */
static void join_all_lists_and_go(struct probe *first, struct probe *second)
{
	xps_loop_again(first->loop, &first->watch);
	xps_loop_after(first->loop, &first->watch, 0);
	drop_both(first, second);
	memset(first, 0xff, sizeof(*first));
	memset(second, 0xff, sizeof(*second));
}

static void test_nobody_looks_at_a_watch_that_was_removed(void)
{
	struct xps_pool *pool = new_pool(1);
	struct xps_loop *loop = xps_pool_loop(pool);
	struct probe first = probe_without_fd(loop, NULL), second = probe_of(loop, true, NULL);
	struct job job = { .task.run = run_job, .act = join_all_lists_and_go, .first = &first, .second = &second };
	const int fd = second.watch.fd;

	on_loop(add_both, &first, &second);
	xps_loop_call(loop, &job.task);
	some_rounds(loop);
	close(fd);
	xps_pool_free(pool);
}

/* ---------------------------------------------------------------- threads */

static void test_loops_are_given_in_turn(void)
{
	struct xps_pool *pool = new_pool(3);
	struct xps_loop *first = xps_pool_loop(pool), *second = xps_pool_loop(pool), *third = xps_pool_loop(pool);

	CHECK(first != second && second != third && third != first);
	CHECK(xps_pool_loop(pool) == first);
	xps_pool_free(pool);
}

struct look {
	struct xps_task task;
	sigset_t blocked;
	cpu_set_t cpus;
	volatile uint64_t work; /* counts down */
};

static void run_look(struct xps_task *task)
{
	struct look *look = XPS_CONTAINER_OF(task, struct look, task);

	pthread_sigmask(SIG_BLOCK, NULL, &look->blocked);
	sched_getaffinity(0, sizeof(look->cpus), &look->cpus);
	while (look->work)
		look->work = look->work - 1;
}

static void test_threads_leave_signals_to_others(void)
{
	struct xps_pool *pool = new_pool(1);
	struct look look = { .task.run = run_look };

	xps_loop_call(xps_pool_loop(pool), &look.task);
	CHECK(sigismember(&look.blocked, SIGINT));
	CHECK(sigismember(&look.blocked, SIGTERM));
	CHECK(sigismember(&look.blocked, SIGUSR1));
	xps_pool_free(pool);
}

static void test_threads_are_bound_to_the_cores_in_turn(void)
{
	cpu_set_t allowed;
	int cores[2], n = 0;
	struct xps_fail fail = { 0 };
	struct xps_pool *pool;

	sched_getaffinity(0, sizeof(allowed), &allowed);
	for (int core = 0; core < CPU_SETSIZE && n < 2; core++)
		if (CPU_ISSET((size_t)core, &allowed))
			cores[n++] = core;
	pool = xps_pool_new(3, cores, (size_t)n, &fail);
	CHECK(pool);
	for (int i = 0; i < 3; i++) {
		struct look look = { .task.run = run_look };

		xps_loop_call(xps_pool_loop(pool), &look.task);
		CHECK_EQ(CPU_COUNT(&look.cpus), 1);
		CHECK(CPU_ISSET((size_t)cores[i % n], &look.cpus));
	}
	xps_pool_free(pool);
}

static void test_core_that_is_not_there_is_an_error(void)
{
	const int core = CPU_SETSIZE - 1;
	struct xps_fail fail = { 0 };

	CHECK(!xps_pool_new(2, &core, 1, &fail));
	CHECK(fail.err);
	CHECK(fail.text[0]);
}

static void test_pool_without_threads_is_refused(void)
{
	for (int n = -1; n <= 0; n++) {
		struct xps_fail fail = { 0 };

		CHECK(!xps_pool_new(n, NULL, 0, &fail));
		CHECK_EQ(fail.err, EINVAL);
		CHECK(fail.text[0]);
	}
}

static void test_cpu_time_is_counted_and_kept_after_the_end(void)
{
	struct xps_pool *pool = new_pool(2);
	struct look look = { .task.run = run_look, .work = 10000000 };
	int64_t before = xps_pool_cpu_ns(pool), after;

	xps_loop_call(xps_pool_loop(pool), &look.task);
	after = xps_pool_cpu_ns(pool);
	CHECK(after > before + 1000000); /* at least a millisecond: ten instructions each nanosecond */
	xps_pool_stop(pool);
	CHECK(xps_pool_cpu_ns(pool) >= after);
	xps_pool_free(pool);
}

int main(void)
{
	test_loops_are_given_out_in_turn_and_not_twice_to_one_user_while_there_are_others();
	test_tasks_run_in_the_order_they_were_posted();
	test_task_that_waits_is_not_queued_twice();
	test_call_on_the_loops_own_thread_runs_at_once();
	test_calls_from_several_threads_run_one_at_a_time();

	test_tasks_posted_before_the_stop_are_run();
	test_calls_during_the_stop_are_run_by_either_side_but_one_at_a_time();
	test_call_after_the_end_runs_in_the_caller();
	test_call_within_a_call_after_the_end_runs_too();
	test_task_posted_after_the_end_is_not_run();
	test_pool_is_stopped_by_several_threads_at_once();

	test_watch_is_called_when_its_descriptor_is_readable();
	test_watch_is_called_as_long_as_its_descriptor_is_readable();
	test_descriptor_that_cannot_be_watched_is_an_error();
	test_watch_may_remove_itself();
	test_watch_that_was_removed_is_not_called_even_if_it_was_due();
	test_muted_watch_is_called_again_when_unmuted();
	test_muted_watch_misses_nothing();
	test_muted_watch_may_be_removed_and_added();

	test_watch_that_asks_is_called_once_more();
	test_watch_that_always_asks_starves_nobody();
	test_watch_that_was_removed_is_not_called_again();
	test_queue_is_whole_after_its_last_was_removed();

	test_watch_is_called_after_its_time_and_once();
	test_time_alone_wakes_the_loop();
	test_later_time_does_not_delay_an_earlier_one();
	test_watches_are_called_in_the_order_of_their_times();
	test_watch_is_told_while_the_one_before_it_has_its_turn();
	test_watch_that_was_removed_is_not_called_when_its_time_comes();
	test_nobody_looks_at_a_watch_that_was_removed();

	test_loops_are_given_in_turn();
	test_threads_leave_signals_to_others();
	test_threads_are_bound_to_the_cores_in_turn();
	test_core_that_is_not_there_is_an_error();
	test_pool_without_threads_is_refused();
	test_cpu_time_is_counted_and_kept_after_the_end();
	return 0;
}
