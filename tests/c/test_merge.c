// SPDX-License-Identifier: Apache-2.0
/* Which of several streams have something: each that has, in turn, to whoever asks, and nobody sleeps for ever. */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "await.h"
#include "check.h"
#include "memory.h"
#include "packets.h"
#include "pool.h"
#include "streams.h"
#include "xdpspead.h"

enum { STREAMS = 5, BYTES = 40 };

static struct xps_allocator *allocator;
static struct xps_log *quiet; /* nobody reads it */

struct fed {
	struct xps_pool *pool;
	struct xps_inproc_queue *queues[STREAMS];
	struct xps_stream *streams[STREAMS];
};

static void feed(struct fed *fed, int i, uint64_t cnt)
{
	const struct spec spec = { .cnt = cnt, .heap_length = BYTES, .length = BYTES };
	uint8_t *data = new_packet(&spec);

	CHECK_EQ(xps_inproc_queue_add(fed->queues[i], data, spec_size(&spec)), 0);
	free(data);
}

static void open_fed(struct fed *fed, int n_threads)
{
	const struct xps_stream_config config = {
		.max_heaps = 4,
		.substreams = 1,
		.max_heap_size = 1 << 20,
		.ring_heaps = 8,
		.nap_ns = 1000000,
		.stop_on_stop_item = true,
		.contiguous_only = true,
	};
	struct xps_fail fail = { 0 };

	fed->pool = xps_pool_new(n_threads, NULL, 0, &fail);
	CHECK(fed->pool);
	for (int i = 0; i < STREAMS; i++) {
		fed->queues[i] = xps_inproc_queue_new(&fail);
		fed->streams[i] = xps_stream_new(fed->pool, &config, allocator, quiet, &fail);
		CHECK(fed->queues[i] && fed->streams[i]);
		CHECK_EQ(xps_add_inproc_reader(fed->streams[i], fed->queues[i], &fail), 0);
	}
}

static void close_fed(struct fed *fed)
{
	for (int i = 0; i < STREAMS; i++) {
		xps_stream_free(fed->streams[i]);
		xps_inproc_queue_free(fed->queues[i]);
	}
	xps_pool_free(fed->pool);
}

static struct xps_merge *merge(const struct fed *fed)
{
	struct xps_fail fail = { 0 };
	struct xps_merge *merge = xps_merge_new(fed->streams, STREAMS, &fail);

	CHECK(merge);
	return merge;
}

/* All are told of at the beginning. */
static struct xps_merge *quiet_merge(const struct fed *fed)
{
	struct xps_merge *made = merge(fed);
	struct xps_heap *heap;

	for (int i = 0; i < STREAMS; i++) {
		CHECK_EQ(xps_merge_next(made, 0), i);
		CHECK_EQ(xps_stream_pop(fed->streams[i], &heap, 1, 0), 0);
	}
	CHECK_EQ(xps_merge_next(made, 0), -ETIMEDOUT);
	return made;
}

static void pop(const struct fed *fed, int i, uint64_t cnt)
{
	struct xps_heap *heap;

	CHECK_EQ(xps_stream_pop(fed->streams[i], &heap, 1, 0), 1);
	CHECK_EQ(heap->cnt, cnt);
	xps_heap_free(heap);
}

static void await_heaps(const struct fed *fed, int i, uint64_t n)
{
	AWAIT(xps_stream_ring_size(fed->streams[i]) == n);
}

static void test_names_the_streams_that_have_heaps_in_turn(void)
{
	struct fed fed;
	struct xps_merge *merge;

	open_fed(&fed, 1);
	merge = quiet_merge(&fed);
	feed(&fed, 3, 1);
	await_heaps(&fed, 3, 1);
	feed(&fed, 3, 2);
	feed(&fed, 3, 3);
	await_heaps(&fed, 3, 3);
	feed(&fed, 0, 1);
	CHECK_EQ(xps_merge_next(merge, DEADLINE_MS), 3);
	CHECK_EQ(xps_merge_next(merge, DEADLINE_MS), 0);
	pop(&fed, 3, 1);
	pop(&fed, 0, 1);
	CHECK_EQ(xps_merge_next(merge, 0), 3);
	pop(&fed, 3, 2);
	CHECK_EQ(xps_merge_next(merge, 0), 3);
	pop(&fed, 3, 3);
	CHECK_EQ(xps_merge_next(merge, 0), -ETIMEDOUT);
	xps_merge_free(merge);
	close_fed(&fed);
}

static void test_waits_as_long_as_it_was_told(void)
{
	struct fed fed;
	struct xps_merge *merge;
	int64_t begin;

	open_fed(&fed, 1);
	merge = quiet_merge(&fed);
	begin = now_ms();
	CHECK_EQ(xps_merge_next(merge, 30), -ETIMEDOUT);
	CHECK(now_ms() - begin >= 29);
	xps_merge_free(merge);
	close_fed(&fed);
}

static void test_stream_that_has_stopped_is_named_until_its_end_was_seen(void)
{
	struct fed fed;
	struct xps_merge *merge;
	struct xps_heap *heap;

	open_fed(&fed, 1);
	merge = quiet_merge(&fed);
	feed(&fed, 2, 7);
	await_heaps(&fed, 2, 1);
	xps_stream_stop(fed.streams[2]);
	CHECK_EQ(xps_merge_next(merge, 0), 2);
	pop(&fed, 2, 7);
	CHECK_EQ(xps_merge_next(merge, 0), 2);
	CHECK_EQ(xps_stream_pop(fed.streams[2], &heap, 1, 0), -EPIPE);
	CHECK_EQ(xps_merge_next(merge, 0), -ETIMEDOUT);
	xps_merge_free(merge);
	close_fed(&fed);
}

static void test_stream_can_be_merged_once_at_a_time(void)
{
	struct fed fed;
	struct xps_merge *first;
	struct xps_fail fail = { 0 };

	open_fed(&fed, 1);
	first = xps_merge_new(fed.streams + 1, 2, &fail);
	CHECK(first);
	CHECK(!xps_merge_new(fed.streams, STREAMS, &fail));
	CHECK_EQ(fail.err, EBUSY);
	xps_merge_free(first);
	xps_merge_free(merge(&fed)); /* the one that failed has let go of all */
	xps_merge_free(NULL);
	close_fed(&fed);
}

static void test_forked_child_is_refused(void)
{
	struct fed fed;
	struct xps_merge *made;
	struct xps_fail fail = { 0 };
	int status;
	pid_t child;

	open_fed(&fed, 1);
	made = merge(&fed);
	child = fork();
	if (!child) {
		bool good = xps_merge_next(made, -1) == -ECHILD;

		xps_merge_free(made);
		good = good && !xps_merge_new(fed.streams, STREAMS, &fail) && fail.err == ECHILD;
		_exit(good ? 0 : 1);
	}
	CHECK(child > 0);
	CHECK_EQ(waitpid(child, &status, 0), child);
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	xps_merge_free(made);
	close_fed(&fed);
}

/* ---------------------------------------------------------------- who waits */

static void *ask(void *argument)
{
	return (void *)(intptr_t)xps_merge_next(argument, DEADLINE_MS);
}

static void ignore(int signal)
{
	(void)signal;
}

static void test_signal_interrupts_who_waits(void)
{
	const struct sigaction action = { .sa_handler = ignore }, before = { .sa_handler = SIG_DFL };
	struct fed fed;
	struct xps_merge *merge;
	pthread_t user;
	void *result;

	open_fed(&fed, 1);
	merge = quiet_merge(&fed);
	CHECK_EQ(sigaction(SIGUSR1, &action, NULL), 0);
	user = start(ask, merge);
	/* One signal might come before it sleeps. */
	AWAIT(pthread_kill(user, SIGUSR1) || pthread_tryjoin_np(user, &result) == 0);
	CHECK_EQ((intptr_t)result, -EINTR);
	CHECK_EQ(sigaction(SIGUSR1, &before, NULL), 0);
	xps_merge_free(merge);
	close_fed(&fed);
}

static void test_every_stream_wakes_who_waits(void)
{
	struct fed fed;
	struct xps_merge *merge;

	open_fed(&fed, 2);
	merge = quiet_merge(&fed);
	for (int i = 0; i < 4 * STREAMS; i++) {
		pthread_t user = start(ask, merge);
		int asked;

		feed(&fed, i % STREAMS, (uint64_t)i);
		asked = (int)(intptr_t)join(user);
		CHECK_EQ(asked, i % STREAMS);
		pop(&fed, i % STREAMS, (uint64_t)i);
	}
	xps_merge_free(merge);
	close_fed(&fed);
}

/* ---------------------------------------------------------------- who polls */

/* Whether the descriptor says what is so. */
static bool is_ready(struct xps_merge *merge)
{
	const bool ready = xps_merge_ready(merge);

	CHECK_EQ(readable(xps_merge_fd(merge)), ready);
	return ready;
}

static void test_descriptor_is_readable_while_a_stream_has_something(void)
{
	struct fed fed;
	struct xps_merge *made;

	open_fed(&fed, 1);
	made = merge(&fed);
	CHECK(is_ready(made)); /* all are told of at the beginning, before it was asked for */
	xps_merge_free(made);
	made = quiet_merge(&fed);
	for (uint64_t round = 0; round < 3; round++) {
		CHECK(!is_ready(made));
		feed(&fed, 1, 2 * round);
		feed(&fed, 4, 0);
		await_heaps(&fed, 1, 1);
		await_heaps(&fed, 4, 1);
		AWAIT(xps_merge_ready(made));
		CHECK(is_ready(made));
		CHECK_EQ(xps_merge_next(made, DEADLINE_MS) + xps_merge_next(made, DEADLINE_MS), 1 + 4);
		CHECK(!is_ready(made)); /* whoever was given them is to pop */
		feed(&fed, 1, 2 * round + 1);
		await_heaps(&fed, 1, 2);
		pop(&fed, 1, 2 * round);
		pop(&fed, 4, 0);
		CHECK(is_ready(made));
		CHECK_EQ(xps_merge_next(made, 0), 1);
		pop(&fed, 1, 2 * round + 1);
	}
	CHECK(!is_ready(made));
	xps_stream_stop(fed.streams[2]);
	CHECK(is_ready(made));
	CHECK_EQ(xps_merge_next(made, 0), 2);
	CHECK(!is_ready(made));
	xps_merge_free(made);
	close_fed(&fed);
}

/* ---------------------------------------------------------------- all at once */

enum { USERS = 3, HEAPS = 3000 };

struct reading {
	const struct fed *fed;
	struct xps_merge *merge;
	_Atomic int n_popped;
};

static void *read_all(void *argument)
{
	struct reading *reading = argument;

	for (int round = 0; atomic_load(&reading->n_popped) < HEAPS; round++) {
		struct pollfd news = { .fd = xps_merge_fd(reading->merge), .events = POLLIN };
		const bool polls = round % 2;
		struct xps_heap *heaps[4];
		int i, n;

		if (polls)
			poll(&news, 1, 20);
		i = xps_merge_next(reading->merge, polls ? 0 : 20);
		n = i >= 0 ? xps_stream_pop(reading->fed->streams[i], heaps, 4, 0) : 0;
		for (int j = 0; j < n; j++)
			xps_heap_free(heaps[j]);
		atomic_fetch_add(&reading->n_popped, n > 0 ? n : 0);
	}
	return NULL;
}

static void test_many_users_get_every_heap(void)
{
	struct fed fed;
	struct reading reading = { .fed = &fed };
	pthread_t users[USERS];

	open_fed(&fed, 2);
	reading.merge = merge(&fed);
	for (int i = 0; i < USERS; i++)
		users[i] = start(read_all, &reading);
	for (int i = 0; i < HEAPS; i++)
		feed(&fed, i % STREAMS, (uint64_t)i);
	for (int i = 0; i < USERS; i++)
		join(users[i]);
	CHECK_EQ(atomic_load(&reading.n_popped), HEAPS);
	xps_merge_free(reading.merge);
	close_fed(&fed);
}

static void *feed_all(void *argument)
{
	for (int i = 0; i < HEAPS; i++)
		feed(argument, i % STREAMS, (uint64_t)i);
	return NULL;
}

static void test_merges_come_and_go_while_heaps_come(void)
{
	struct fed fed;
	int n_popped = 0;
	pthread_t feeder;

	open_fed(&fed, 2);
	feeder = start(feed_all, &fed);
	while (n_popped < HEAPS) {
		struct xps_merge *made = merge(&fed);

		/* At the beginning all are named, whether they have heaps or not. */
		for (int turns = n_popped % 7 + STREAMS; turns && n_popped < HEAPS; turns--) {
			const int i = xps_merge_next(made, DEADLINE_MS);
			struct xps_heap *heap;

			CHECK(i >= 0);
			if (xps_stream_pop(fed.streams[i], &heap, 1, 0) == 1) {
				xps_heap_free(heap);
				n_popped++;
			}
		}
		xps_merge_free(made);
	}
	join(feeder);
	close_fed(&fed);
}

int main(void)
{
	allocator = xps_allocator_new();
	quiet = xps_log_new();
	CHECK(allocator && quiet);

	test_names_the_streams_that_have_heaps_in_turn();
	test_waits_as_long_as_it_was_told();
	test_stream_that_has_stopped_is_named_until_its_end_was_seen();
	test_stream_can_be_merged_once_at_a_time();
	test_forked_child_is_refused();

	test_signal_interrupts_who_waits();
	test_every_stream_wakes_who_waits();

	test_descriptor_is_readable_while_a_stream_has_something();

	test_many_users_get_every_heap();
	test_merges_come_and_go_while_heaps_come();

	xps_log_free(quiet);
	xps_allocator_free(allocator);
	return 0;
}
