// SPDX-License-Identifier: Apache-2.0
/* Queues within the process: what threads put in comes out of the streams, each packet once, and the end reaches all. */
#include <errno.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "await.h"
#include "check.h"
#include "memory.h"
#include "packets.h"
#include "pool.h"
#include "streams.h"
#include "xdpspead.h"

enum { BYTES = 40, PARTS = 4, PRODUCERS = 3 };

static struct xps_allocator *allocator;
static struct xps_log *quiet; /* nobody reads it */

static struct xps_pool *new_pool(int n_threads)
{
	struct xps_fail fail = { 0 };
	struct xps_pool *pool = xps_pool_new(n_threads, NULL, 0, &fail);

	CHECK(pool);
	return pool;
}

static struct xps_stream *new_stream(struct xps_pool *pool, uint64_t ring_heaps, int64_t nap_ns)
{
	const struct xps_stream_config config = {
		.max_heaps = 4,
		/* A thread that is held up in the middle of a heap: the heaps of others must not evict it. */
		.substreams = PRODUCERS,
		.max_heap_size = 1 << 20,
		.ring_heaps = ring_heaps,
		.nap_ns = nap_ns,
		.stop_on_stop_item = true,
		.contiguous_only = true,
	};
	struct xps_fail fail = { 0 };
	struct xps_stream *stream = xps_stream_new(pool, &config, allocator, quiet, &fail);

	CHECK(stream);
	return stream;
}

static struct xps_inproc_queue *new_queue(void)
{
	struct xps_fail fail = { 0 };
	struct xps_inproc_queue *queue = xps_inproc_queue_new(&fail);

	CHECK(queue);
	return queue;
}

static void read_queue(struct xps_stream *stream, struct xps_inproc_queue *queue)
{
	struct xps_fail fail = { 0 };

	CHECK_EQ(xps_add_inproc_reader(stream, queue, &fail), 0);
	CHECK_EQ(fail.err, 0);
}

static int add(struct xps_inproc_queue *queue, const struct spec *spec)
{
	uint8_t *data = new_packet(spec);
	int result = xps_inproc_queue_add(queue, data, spec_size(spec));

	memset(data, 0xee, spec_size(spec)); /* it has been copied */
	free(data);
	return result;
}

/* A heap in one packet. */
static void add_heap(struct xps_inproc_queue *queue, uint64_t cnt)
{
	CHECK_EQ(add(queue, &(struct spec){ .cnt = cnt, .heap_length = BYTES, .length = BYTES }), 0);
}

static void add_stop_item(struct xps_inproc_queue *queue)
{
	const uint64_t stop = immediate(48, 6, 2);

	CHECK_EQ(add(queue, &(struct spec){ .cnt = 1 << 30, .items = &stop, .n_items = 1 }), 0);
}

static void check_heap(const struct xps_heap *heap)
{
	CHECK_EQ(heap->size, BYTES);
	for (uint64_t i = 0; i < heap->size; i++)
		CHECK_EQ(heap->payload[i], pattern(heap->cnt, i));
}

static void pop(struct xps_stream *stream, uint64_t cnt)
{
	struct xps_heap *heap;

	CHECK_EQ(xps_stream_pop(stream, &heap, 1, DEADLINE_MS), 1);
	CHECK_EQ(heap->cnt, cnt);
	check_heap(heap);
	xps_heap_free(heap);
}

/* ---------------------------------------------------------------- one stream */

static void test_packets_come_out_in_order_whether_added_before_or_after_the_reader(void)
{
	struct xps_pool *pool = new_pool(1);
	struct xps_stream *stream = new_stream(pool, 8, 0);
	struct xps_inproc_queue *queue = new_queue();

	for (uint64_t cnt = 0; cnt < 50; cnt++)
		add_heap(queue, cnt);
	read_queue(stream, queue);
	for (uint64_t cnt = 0; cnt < 50; cnt++)
		pop(stream, cnt);
	for (uint64_t cnt = 50; cnt < 60; cnt++) {
		add_heap(queue, cnt);
		pop(stream, cnt);
	}
	xps_inproc_queue_stop(queue);
	check_ended(stream);
	CHECK_EQ(stat_of(stream, XPS_STAT_PACKETS), 60);
	CHECK_EQ(stat_of(stream, XPS_STAT_BATCHES), 60);
	CHECK_EQ(stat_of(stream, XPS_STAT_MAX_BATCH), 1);
	xps_stream_free(stream);
	xps_inproc_queue_free(queue);
	xps_pool_free(pool);
}

static void test_stopped_queue_takes_no_packet_and_ends_the_stream_after_what_is_in_it(void)
{
	struct xps_pool *pool = new_pool(1);
	struct xps_stream *stream = new_stream(pool, 8, 0);
	struct xps_inproc_queue *queue = new_queue();

	add_heap(queue, 1);
	xps_inproc_queue_stop(queue);
	xps_inproc_queue_stop(queue);
	CHECK_EQ(add(queue, &(struct spec){ .cnt = 2 }), -EPIPE);
	read_queue(stream, queue);
	pop(stream, 1);
	check_ended(stream);
	xps_stream_free(stream);
	xps_inproc_queue_free(queue);
	xps_pool_free(pool);
}

static void test_packet_too_long_for_its_length_is_refused_unread(void)
{
	struct xps_inproc_queue *queue = new_queue();
	const uint8_t byte = 0;

	CHECK_EQ(xps_inproc_queue_add(queue, &byte, (uint64_t)UINT32_MAX + 1), -EMSGSIZE);
	CHECK_EQ(xps_inproc_queue_add(queue, &byte, UINT64_MAX), -EMSGSIZE);
	CHECK_EQ(xps_inproc_queue_add(queue, NULL, 0), 0);
	xps_inproc_queue_free(queue);
}

static void test_packets_in_exactly_their_memory_are_read_no_further(void)
{
	/* Under a sanitizer: any prefix of a packet. */
	const struct spec spec = { .cnt = 1, .heap_length = BYTES, .length = BYTES };
	struct xps_pool *pool = new_pool(1);
	struct xps_stream *stream = new_stream(pool, 8, 0);
	struct xps_inproc_queue *queue = new_queue();
	uint8_t *data = new_packet(&spec);
	const size_t size = spec_size(&spec);

	for (size_t length = 0; length < size; length++)
		CHECK_EQ(xps_inproc_queue_add(queue, data, length), 0);
	xps_inproc_queue_stop(queue);
	read_queue(stream, queue);
	check_ended(stream);
	CHECK_EQ(stat_of(stream, XPS_STAT_PACKETS), 0);
	CHECK_EQ(stat_of(stream, XPS_STAT_EMPTY_DATAGRAM), 1);
	CHECK_EQ(stat_of(stream, XPS_STAT_TRUNCATED_HEADER) + stat_of(stream, XPS_STAT_SHORT_PACKET), size - 1);
	free(data);
	xps_stream_free(stream);
	xps_inproc_queue_free(queue);
	xps_pool_free(pool);
}

static void test_full_ring_holds_packets_in_the_queue_and_loses_none(void)
{
	enum { N = 500 };
	struct xps_pool *pool = new_pool(1);
	struct xps_stream *stream = new_stream(pool, 1, 0);
	struct xps_inproc_queue *queue = new_queue();

	for (uint64_t cnt = 0; cnt < N; cnt++)
		add_heap(queue, cnt);
	xps_inproc_queue_stop(queue);
	read_queue(stream, queue);
	AWAIT(stat_of(stream, XPS_STAT_WORKER_BLOCKED) == 1);
	for (uint64_t cnt = 0; cnt < N; cnt++)
		pop(stream, cnt);
	check_ended(stream);
	CHECK_EQ(stat_of(stream, XPS_STAT_PACKETS), N);
	CHECK_EQ(stat_of(stream, XPS_STAT_BATCHES), N);
	xps_stream_free(stream);
	xps_inproc_queue_free(queue);
	xps_pool_free(pool);
}

static void test_queue_read_twice_by_one_stream_is_the_same_as_once(void)
{
	enum { N = 100 };
	struct xps_pool *pool = new_pool(1);

	for (uint64_t ring = 1; ring < 200; ring *= 13) {
		struct xps_stream *stream = new_stream(pool, ring, 0);
		struct xps_inproc_queue *queue = new_queue();

		read_queue(stream, queue);
		read_queue(stream, queue);
		for (uint64_t cnt = 0; cnt < N; cnt++)
			add_heap(queue, cnt);
		xps_inproc_queue_stop(queue);
		for (uint64_t cnt = 0; cnt < N; cnt++)
			pop(stream, cnt);
		check_ended(stream);
		xps_stream_free(stream);
		xps_inproc_queue_free(queue);
	}
	xps_pool_free(pool);
}

static void test_streams_and_user_may_let_go_of_the_queue_in_any_order(void)
{
	struct xps_pool *pool = new_pool(1);

	for (int first = 0; first < 3; first++) {
		struct xps_stream *a = new_stream(pool, 1, 0), *b = new_stream(pool, 1, 0);
		struct xps_inproc_queue *queue = new_queue();

		read_queue(a, queue);
		read_queue(b, queue);
		for (uint64_t cnt = 0; cnt < 10; cnt++)
			add_heap(queue, cnt); /* more than the rings hold: the rest goes with the queue */
		AWAIT(stat_of(a, XPS_STAT_WORKER_BLOCKED) && stat_of(b, XPS_STAT_WORKER_BLOCKED));
		if (first == 0)
			xps_inproc_queue_free(queue);
		xps_stream_free(a);
		if (first == 1)
			xps_inproc_queue_free(queue);
		xps_stream_free(b);
		if (first == 2)
			xps_inproc_queue_free(queue);
	}
	xps_inproc_queue_free(NULL);
	xps_pool_free(pool);
}

static void test_descriptors_that_are_not_to_be_had_are_an_error(void)
{
	struct rlimit before, none;
	struct xps_pool *pool = new_pool(1);
	struct xps_stream *stream = new_stream(pool, 1, 0);
	struct xps_inproc_queue *queue = new_queue();
	struct xps_fail fail = { 0 };

	CHECK_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
	none = (struct rlimit){ .rlim_cur = 0, .rlim_max = before.rlim_max };
	CHECK_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
	CHECK(!xps_inproc_queue_new(&fail));
	CHECK_EQ(fail.err, EMFILE);
	fail = (struct xps_fail){ 0 };
	CHECK(xps_add_inproc_reader(stream, queue, &fail) < 0);
	CHECK(fail.err > 0);
	CHECK(strlen(fail.text) > 0);
	CHECK_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
	read_queue(stream, queue);
	add_heap(queue, 1);
	pop(stream, 1);
	xps_stream_free(stream);
	xps_inproc_queue_free(queue);
	xps_pool_free(pool);
}

static void in_child(struct xps_inproc_queue *queue, struct xps_stream *stream)
{
	struct xps_fail fail = { 0 };

	CHECK_EQ(add(queue, &(struct spec){ .cnt = 9, .heap_length = BYTES, .length = BYTES }), -ECHILD);
	CHECK_EQ(xps_add_inproc_reader(stream, queue, &fail), -ECHILD);
	CHECK_EQ(fail.err, ECHILD);
	xps_inproc_queue_stop(queue);
	xps_stream_free(stream);
	xps_inproc_queue_free(queue);
	_exit(0);
}

static void test_forked_child_is_refused_and_leaves_its_parent_alone(void)
{
	struct xps_pool *pool = new_pool(1);
	struct xps_stream *stream = new_stream(pool, 8, 0);
	struct xps_inproc_queue *queue = new_queue();
	int status;
	pid_t child;

	read_queue(stream, queue);
	add_heap(queue, 1);
	pop(stream, 1);
	child = fork();
	CHECK(child >= 0);
	if (child == 0)
		in_child(queue, stream);
	CHECK_EQ(waitpid(child, &status, 0), child);
	CHECK_EQ(status, 0);
	add_heap(queue, 2);
	pop(stream, 2);
	xps_inproc_queue_stop(queue);
	check_ended(stream);
	xps_stream_free(stream);
	xps_inproc_queue_free(queue);
	xps_pool_free(pool);
}

/* ---------------------------------------------------------------- ends and stops */

static void test_stop_item_leaves_the_rest_in_the_queue(void)
{
	struct xps_pool *pool = new_pool(1);
	struct xps_stream *first = new_stream(pool, 8, 0), *second = new_stream(pool, 8, 0);
	struct xps_inproc_queue *queue = new_queue();

	add_heap(queue, 1);
	add_stop_item(queue);
	add_heap(queue, 2);
	read_queue(first, queue);
	pop(first, 1);
	check_ended(first);
	CHECK_EQ(stat_of(first, XPS_STAT_PACKETS), 2);
	CHECK_EQ(stat_of(first, XPS_STAT_AFTER_STOP), 0);
	read_queue(second, queue);
	pop(second, 2);
	xps_stream_free(first);
	xps_stream_free(second);
	xps_inproc_queue_free(queue);
	xps_pool_free(pool);
}

static void test_blocked_stream_that_is_stopped_leaves_the_rest_in_the_queue(void)
{
	enum { N = 300 };
	struct xps_pool *pool = new_pool(1);
	struct xps_inproc_queue *queue = new_queue();
	uint64_t next = 0;

	for (uint64_t cnt = 0; cnt < N; cnt++)
		add_heap(queue, cnt);
	while (next < 10) {
		struct xps_stream *stream = new_stream(pool, 1, 0);

		read_queue(stream, queue);
		AWAIT(stat_of(stream, XPS_STAT_WORKER_BLOCKED) == 1);
		xps_stream_stop(stream);
		pop(stream, next);
		check_ended(stream);
		/* One in the ring, and one for which it was full. */
		CHECK_EQ(stat_of(stream, XPS_STAT_PACKETS), 2);
		CHECK_EQ(stat_of(stream, XPS_STAT_BATCHES), 2);
		CHECK_EQ(stat_of(stream, XPS_STAT_HEAPS_DROPPED_STOP), 1);
		next += 2;
		xps_stream_free(stream);
	}
	{
		struct xps_stream *stream = new_stream(pool, N, 0);

		xps_inproc_queue_stop(queue);
		read_queue(stream, queue);
		for (; next < N; next++)
			pop(stream, next);
		check_ended(stream);
		xps_stream_free(stream);
	}
	xps_inproc_queue_free(queue);
	xps_pool_free(pool);
}

static void test_end_of_a_queue_ends_a_stream_that_reads_another_too(void)
{
	struct xps_pool *pool = new_pool(1);
	struct xps_stream *stream = new_stream(pool, 8, 0);
	struct xps_inproc_queue *ended = new_queue(), *open = new_queue();

	read_queue(stream, open);
	add_heap(open, 1);
	pop(stream, 1);
	read_queue(stream, ended);
	xps_inproc_queue_stop(ended);
	check_ended(stream);
	add_heap(open, 2); /* nobody minds */
	xps_stream_free(stream);
	xps_inproc_queue_free(ended);
	xps_inproc_queue_free(open);
	xps_pool_free(pool);
}

static void test_reader_of_a_stopped_stream_takes_nothing(void)
{
	struct xps_pool *pool = new_pool(1);
	struct xps_stream *stopped = new_stream(pool, 8, 0), *stream = new_stream(pool, 8, 0);
	struct xps_inproc_queue *queue = new_queue();

	add_heap(queue, 1);
	xps_stream_stop(stopped);
	read_queue(stopped, queue);
	check_ended(stopped);
	read_queue(stream, queue);
	pop(stream, 1);
	xps_stream_free(stopped);
	xps_stream_free(stream);
	xps_inproc_queue_free(queue);
	xps_pool_free(pool);
}

static void *stop_queue(void *queue)
{
	xps_inproc_queue_stop(queue);
	return NULL;
}

static void test_end_reaches_every_stream_that_waits_from_whichever_thread_it_comes(void)
{
	enum { STREAMS = 5, STOPPERS = 2 };
	struct xps_pool *pool = new_pool(2);

	for (int round = 0; round < 30; round++) {
		struct xps_inproc_queue *queue = new_queue();
		struct xps_stream *streams[STREAMS];
		pthread_t stoppers[STOPPERS];

		for (int i = 0; i < STREAMS; i++) {
			streams[i] = new_stream(pool, 1, 0);
			read_queue(streams[i], queue);
		}
		for (int i = 0; i < STOPPERS; i++)
			stoppers[i] = start(stop_queue, queue);
		for (int i = 0; i < STREAMS; i++) {
			check_ended(streams[i]);
			xps_stream_free(streams[i]);
		}
		for (int i = 0; i < STOPPERS; i++)
			join(stoppers[i]);
		xps_inproc_queue_free(queue);
	}
	xps_pool_free(pool);
}

/* ---------------------------------------------------------------- several at once */

static void test_blocked_stream_keeps_no_packet_from_another(void)
{
	enum { N = 200 };
	struct xps_pool *pool = new_pool(2);
	struct xps_stream *unread = new_stream(pool, 1, 0), *other = new_stream(pool, 8, 0);
	struct xps_inproc_queue *queue = new_queue();
	uint64_t taken;

	read_queue(unread, queue);
	for (uint64_t cnt = 0; cnt < N; cnt++)
		add_heap(queue, cnt);
	AWAIT(stat_of(unread, XPS_STAT_WORKER_BLOCKED) == 1);
	read_queue(other, queue);
	taken = stat_of(unread, XPS_STAT_PACKETS);
	CHECK(taken <= 2); /* one in the ring, one for which it is full */
	for (uint64_t cnt = taken; cnt < N; cnt++)
		pop(other, cnt);
	xps_inproc_queue_stop(queue);
	check_ended(other);
	for (uint64_t cnt = 0; cnt < taken; cnt++)
		pop(unread, cnt);
	check_ended(unread);
	xps_stream_free(unread);
	xps_stream_free(other);
	xps_inproc_queue_free(queue);
	xps_pool_free(pool);
}

struct producer {
	struct xps_inproc_queue *queue;
	uint64_t first, n_heaps;
	unsigned parts;
};

/* Heaps first, first + PRODUCERS, ... */
static void *produce(void *argument)
{
	const struct producer *producer = argument;
	const uint64_t part = BYTES / producer->parts;

	for (uint64_t i = 0; i < producer->n_heaps; i++) {
		for (uint64_t p = 0; p < producer->parts; p++) {
			const struct spec spec = {
				.cnt = producer->first + i * PRODUCERS,
				.heap_length = BYTES,
				.offset = p * part,
				.length = part,
			};

			CHECK_EQ(add(producer->queue, &spec), 0);
		}
	}
	return NULL;
}

struct consumer {
	struct xps_stream *stream;
	uint8_t *seen; /* for each cnt, shared: every cnt is touched by one consumer only, or the test fails */
	uint64_t heaps;
};

static void *consume(void *argument)
{
	struct consumer *consumer = argument;
	struct xps_heap *heaps[7];
	int n;

	while ((n = xps_stream_pop(consumer->stream, heaps, 7, DEADLINE_MS)) > 0) {
		for (int i = 0; i < n; i++) {
			CHECK_EQ(__atomic_fetch_add(&consumer->seen[heaps[i]->cnt], 1, __ATOMIC_RELAXED), 0);
			check_heap(heaps[i]);
			consumer->heaps++;
			xps_heap_free(heaps[i]);
		}
	}
	CHECK_EQ(n, -EPIPE);
	return NULL;
}

/* Several producers into `n_streams` streams with small rings: returns when every heap has been seen once. */
static void stampede(int n_streams, int n_threads, uint64_t heaps_each, unsigned parts, int64_t nap_ns)
{
	const uint64_t total = heaps_each * PRODUCERS;
	struct xps_pool *pool = new_pool(n_threads);
	struct xps_inproc_queue *queue = new_queue();
	struct producer producers[PRODUCERS];
	struct consumer consumers[4];
	pthread_t producing[PRODUCERS], consuming[4];
	uint8_t *seen = calloc(total, 1);
	uint64_t heaps = 0, packets = 0, batches = 0;

	for (int i = 0; i < n_streams; i++) {
		consumers[i] = (struct consumer){ .stream = new_stream(pool, 3, nap_ns), .seen = seen };
		read_queue(consumers[i].stream, queue);
		consuming[i] = start(consume, &consumers[i]);
	}
	for (int i = 0; i < PRODUCERS; i++) {
		producers[i] = (struct producer){
			.queue = queue, .first = (uint64_t)i, .n_heaps = heaps_each, .parts = parts
		};
		producing[i] = start(produce, &producers[i]);
	}
	for (int i = 0; i < PRODUCERS; i++)
		join(producing[i]);
	xps_inproc_queue_stop(queue);
	for (int i = 0; i < n_streams; i++) {
		join(consuming[i]);
		heaps += consumers[i].heaps;
		packets += stat_of(consumers[i].stream, XPS_STAT_PACKETS);
		batches += stat_of(consumers[i].stream, XPS_STAT_BATCHES);
		xps_stream_free(consumers[i].stream);
	}
	CHECK_EQ(heaps, total);
	CHECK_EQ(packets, total * parts);
	CHECK_EQ(batches, total * parts);
	free(seen);
	xps_inproc_queue_free(queue);
	xps_pool_free(pool);
}

static void test_several_threads_feed_one_stream_and_every_heap_is_complete(void)
{
	stampede(1, 1, 5000, PARTS, 0);
	stampede(1, 1, 5000, PARTS, 50000);
}

static void test_several_streams_share_the_packets_and_each_comes_out_once(void)
{
	stampede(4, 2, 5000, 1, 0);
	stampede(4, 1, 5000, 1, 50000);
}

static int64_t cpu_ns_over(struct xps_pool *pool, int64_t duration_ms)
{
	const int64_t before = xps_pool_cpu_ns(pool);
	const struct timespec time = { .tv_nsec = duration_ms * 1000000 };

	nanosleep(&time, NULL);
	return xps_pool_cpu_ns(pool) - before;
}

static void test_waiting_and_blocked_readers_use_no_time(void)
{
	struct xps_pool *pool = new_pool(1);
	struct xps_inproc_queue *idle = new_queue(), *full = new_queue();
	struct xps_stream *waiting[2], *blocked = new_stream(pool, 1, 50000);

	for (int i = 0; i < 2; i++) {
		waiting[i] = new_stream(pool, 4, 50000);
		read_queue(waiting[i], idle);
	}
	add_heap(idle, 1); /* wakes both, and only one finds it */
	AWAIT(stat_of(waiting[0], XPS_STAT_PACKETS) + stat_of(waiting[1], XPS_STAT_PACKETS) == 1);
	read_queue(blocked, full);
	for (uint64_t cnt = 0; cnt < 10; cnt++)
		add_heap(full, cnt);
	xps_inproc_queue_stop(full);
	AWAIT(stat_of(blocked, XPS_STAT_WORKER_BLOCKED) == 1);
	/* One that spins takes all of it that the machine has to give. */
	CHECK(cpu_ns_over(pool, 300) < 30 * 1000000);
	for (int i = 0; i < 2; i++)
		xps_stream_free(waiting[i]);
	xps_stream_free(blocked);
	xps_inproc_queue_free(idle);
	xps_inproc_queue_free(full);
	xps_pool_free(pool);
}

int main(void)
{
	allocator = xps_allocator_new();
	quiet = xps_log_new();

	test_packets_come_out_in_order_whether_added_before_or_after_the_reader();
	test_stopped_queue_takes_no_packet_and_ends_the_stream_after_what_is_in_it();
	test_packet_too_long_for_its_length_is_refused_unread();
	test_packets_in_exactly_their_memory_are_read_no_further();
	test_full_ring_holds_packets_in_the_queue_and_loses_none();
	test_queue_read_twice_by_one_stream_is_the_same_as_once();
	test_streams_and_user_may_let_go_of_the_queue_in_any_order();
	test_descriptors_that_are_not_to_be_had_are_an_error();
	test_forked_child_is_refused_and_leaves_its_parent_alone();

	test_stop_item_leaves_the_rest_in_the_queue();
	test_blocked_stream_that_is_stopped_leaves_the_rest_in_the_queue();
	test_end_of_a_queue_ends_a_stream_that_reads_another_too();
	test_reader_of_a_stopped_stream_takes_nothing();
	test_end_reaches_every_stream_that_waits_from_whichever_thread_it_comes();

	test_blocked_stream_keeps_no_packet_from_another();
	test_several_threads_feed_one_stream_and_every_heap_is_complete();
	test_several_streams_share_the_packets_and_each_comes_out_once();
	test_waiting_and_blocked_readers_use_no_time();

	xps_log_free(quiet);
	xps_allocator_free(allocator);
	return 0;
}
