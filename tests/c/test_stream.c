// SPDX-License-Identifier: Apache-2.0
/* Streams as their users see them: packets in through a reader, heaps out of the ring, and an end that always comes. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <sys/socket.h>
#include <unistd.h>

#include "await.h"
#include "check.h"
#include "memory.h"
#include "packets.h"
#include "pool.h"
#include "stats.h"
#include "streams.h"
#include "transport.h"
#include "xdpspead.h"

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif

static struct xps_allocator *allocator;
static struct xps_log *quiet; /* nobody reads it */

static struct xps_pool *new_pool(int n_threads)
{
	struct xps_fail fail = { 0 };
	struct xps_pool *pool = xps_pool_new(n_threads, NULL, 0, &fail);

	CHECK(pool);
	return pool;
}

static struct xps_stream_config config_of(uint64_t ring_heaps)
{
	return (struct xps_stream_config){
		.max_heaps = 4,
		.substreams = 1,
		.max_heap_size = 1 << 20,
		.ring_heaps = ring_heaps,
		.stop_on_stop_item = true,
		.allow_unsized_heaps = true,
		.contiguous_only = true,
	};
}

static struct xps_stream *new_stream(struct xps_pool *pool, const struct xps_stream_config *config)
{
	struct xps_fail fail = { 0 };
	struct xps_stream *stream = xps_stream_new(pool, config, allocator, quiet, &fail);

	CHECK(stream);
	return stream;
}

/* Pop this heap, whole. */
static void pop(struct xps_stream *stream, uint64_t cnt)
{
	struct xps_heap *heap;

	CHECK_EQ(xps_stream_pop(stream, &heap, 1, DEADLINE_MS), 1);
	CHECK_EQ(heap->cnt, cnt);
	CHECK(heap->flags & XPS_HEAP_CONTIGUOUS);
	for (uint64_t i = 0; i < heap->size; i++)
		CHECK_EQ(heap->payload[i], pattern(cnt, i));
	xps_heap_free(heap);
}

/* ---------------------------------------------------------------- packets in memory */

enum { HEAP_BYTES = 30, PARTS = 3 };

/* Heaps 0..n-1 in three packets each. */
struct buffer {
	uint8_t *data;
	size_t length;
};

static struct buffer new_buffer(uint64_t n)
{
	const struct spec part = { .heap_length = HEAP_BYTES, .length = HEAP_BYTES / PARTS };
	struct buffer buffer = { .data = malloc(n * PARTS * spec_size(&part)) };
	uint8_t *at = buffer.data;

	for (uint64_t cnt = 0; cnt < n; cnt++) {
		for (uint64_t i = 0; i < PARTS; i++) {
			struct spec spec = part;

			spec.cnt = cnt;
			spec.offset = i * part.length;
			at = put_packet(at, &spec);
		}
	}
	buffer.length = (size_t)(at - buffer.data);
	return buffer;
}

static void test_buffer_gives_its_heaps_and_ends_the_stream(void)
{
	const struct xps_stream_config config = config_of(100);
	struct xps_pool *pool = new_pool(1);
	struct xps_stream *stream = new_stream(pool, &config);
	struct buffer buffer = new_buffer(20);

	CHECK_EQ(xps_add_buffer_reader(stream, buffer.data, buffer.length), 0);
	for (uint64_t cnt = 0; cnt < 20; cnt++)
		pop(stream, cnt);
	check_ended(stream);
	CHECK_EQ(stat_of(stream, XPS_STAT_HEAPS), 20);
	CHECK_EQ(stat_of(stream, XPS_STAT_PACKETS), 60);
	CHECK_EQ(stat_of(stream, XPS_STAT_BATCHES), 1);
	CHECK_EQ(stat_of(stream, XPS_STAT_MAX_BATCH), 60);
	CHECK_EQ(stat_of(stream, XPS_STAT_WORKER_BLOCKED), 0);
	xps_stream_free(stream);
	free(buffer.data);
	xps_pool_free(pool);
}

static void test_empty_buffer_ends_the_stream(void)
{
	const struct xps_stream_config config = config_of(1);
	struct xps_pool *pool = new_pool(1);
	struct xps_stream *stream = new_stream(pool, &config);

	CHECK_EQ(xps_add_buffer_reader(stream, NULL, 0), 0);
	check_ended(stream);
	xps_stream_free(stream);
	xps_pool_free(pool);
}

static void test_buffer_ends_at_the_first_packet_that_cannot_be_decoded(void)
{
	/* Cut anywhere in the last packet of the second heap. */
	struct buffer buffer = new_buffer(2);
	const size_t packet = buffer.length / 6;
	struct xps_pool *pool = new_pool(1);

	for (size_t length = buffer.length - packet; length < buffer.length; length += 7) {
		const struct xps_stream_config config = config_of(10);
		struct xps_stream *stream = new_stream(pool, &config);
		struct guarded cut = guarded_copy(buffer.data, length);

		CHECK_EQ(xps_add_buffer_reader(stream, cut.data, length), 0);
		pop(stream, 0);
		check_ended(stream);
		CHECK_EQ(stat_of(stream, XPS_STAT_PACKETS), 5);
		CHECK_EQ(stat_of(stream, XPS_STAT_TRUNCATED_HEADER) + stat_of(stream, XPS_STAT_SHORT_PACKET),
			 length > buffer.length - packet);
		CHECK_EQ(stat_of(stream, XPS_STAT_INCOMPLETE_HEAPS_FLUSHED), 1);
		xps_stream_free(stream);
		guarded_free(&cut);
	}
	free(buffer.data);
	xps_pool_free(pool);
}

static void test_stop_item_ends_the_stream_and_what_is_left_is_flushed(void)
{
	const uint64_t stop = immediate(48, 6, 2);
	const struct spec specs[] = {
		{ .cnt = 1, .heap_length = 10, .length = 10 },
		{ .cnt = 2, .heap_length = 20, .length = 10 },
		{ .cnt = 3, .items = &stop, .n_items = 1 },
		{ .cnt = 4, .heap_length = 10, .length = 10 },
	};
	struct xps_stream_config config = config_of(10);
	struct xps_pool *pool = new_pool(1);
	struct xps_stream *stream;
	struct xps_heap *heap;
	uint8_t data[1024], *at = data;

	config.contiguous_only = false;
	stream = new_stream(pool, &config);
	for (int i = 0; i < 4; i++)
		at = put_packet(at, &specs[i]);
	CHECK_EQ(xps_add_buffer_reader(stream, data, (uint64_t)(at - data)), 0);
	pop(stream, 1);
	CHECK_EQ(xps_stream_pop(stream, &heap, 1, DEADLINE_MS), 1);
	CHECK_EQ(heap->cnt, 2);
	CHECK_EQ(heap->received, 10);
	xps_heap_free(heap);
	check_ended(stream);
	CHECK_EQ(stat_of(stream, XPS_STAT_PACKETS), 3);
	CHECK_EQ(stat_of(stream, XPS_STAT_INCOMPLETE_HEAPS_FLUSHED), 1);
	xps_stream_free(stream);
	xps_pool_free(pool);
}

static void test_full_ring_blocks_the_worker_until_there_is_room_and_no_heap_is_lost(void)
{
	enum { N = 3000 };
	struct xps_pool *pool = new_pool(1);
	struct buffer buffer = new_buffer(N);

	for (uint64_t ring = 1; ring < 300; ring = ring * 7 + 1) {
		const struct xps_stream_config config = config_of(ring);
		struct xps_stream *stream = new_stream(pool, &config);

		CHECK_EQ(xps_add_buffer_reader(stream, buffer.data, buffer.length), 0);
		AWAIT(stat_of(stream, XPS_STAT_WORKER_BLOCKED) == 1);
		CHECK_EQ(xps_stream_ring_size(stream), ring);
		for (uint64_t cnt = 0; cnt < N; cnt++)
			pop(stream, cnt);
		check_ended(stream);
		CHECK_EQ(stat_of(stream, XPS_STAT_HEAPS), N);
		CHECK_EQ(stat_of(stream, XPS_STAT_PACKETS), PARTS * N);
		xps_stream_free(stream);
	}
	free(buffer.data);
	xps_pool_free(pool);
}

static void test_flush_waits_for_room_too(void)
{
	enum { N = 40 };
	struct xps_stream_config config = config_of(1);
	struct xps_pool *pool = new_pool(1);
	struct xps_stream *stream;
	static uint8_t data[N * 64];
	uint8_t *at = data;

	/* Unsized heaps live until the end, and are whole then. */
	config.max_heaps = N;
	stream = new_stream(pool, &config);
	for (uint64_t cnt = 0; cnt < N; cnt++)
		at = put_packet(at, &(struct spec){ .cnt = cnt, .heap_length = -1, .length = 10 });
	CHECK_EQ(xps_add_buffer_reader(stream, data, (uint64_t)(at - data)), 0);
	AWAIT(stat_of(stream, XPS_STAT_WORKER_BLOCKED) == 1);
	for (uint64_t cnt = 0; cnt < N; cnt++)
		pop(stream, cnt);
	check_ended(stream);
	CHECK_EQ(stat_of(stream, XPS_STAT_INCOMPLETE_HEAPS_FLUSHED), N);
	xps_stream_free(stream);
	xps_pool_free(pool);
}

static void test_stream_that_nobody_reads_does_not_hold_up_others(void)
{
	const struct xps_stream_config config = config_of(2);
	struct xps_pool *pool = new_pool(1);
	struct xps_stream *unread = new_stream(pool, &config), *other = new_stream(pool, &config);
	struct buffer buffer = new_buffer(1000);

	CHECK_EQ(xps_add_buffer_reader(unread, buffer.data, buffer.length), 0);
	AWAIT(stat_of(unread, XPS_STAT_WORKER_BLOCKED) == 1);
	CHECK_EQ(xps_add_buffer_reader(other, buffer.data, buffer.length), 0);
	for (uint64_t cnt = 0; cnt < 1000; cnt++)
		pop(other, cnt);
	check_ended(other);
	CHECK_EQ(xps_stream_ring_size(unread), 2);
	xps_stream_free(other);
	xps_stream_free(unread);
	free(buffer.data);
	xps_pool_free(pool);
}

static void test_buffers_of_one_stream_end_it_at_the_first_end(void)
{
	const struct xps_stream_config config = config_of(100);
	struct xps_pool *pool = new_pool(1);
	struct xps_stream *stream = new_stream(pool, &config);
	struct buffer buffer = new_buffer(5);

	/* Whether the second is in time or not, it is no error. */
	CHECK_EQ(xps_add_buffer_reader(stream, buffer.data, buffer.length), 0);
	CHECK_EQ(xps_add_buffer_reader(stream, buffer.data, buffer.length), 0);
	for (uint64_t cnt = 0; cnt < 5; cnt++)
		pop(stream, cnt);
	while (!xps_stream_stopped(stream) || xps_stream_ring_size(stream)) {
		struct xps_heap *heap;

		if (xps_stream_pop(stream, &heap, 1, DEADLINE_MS) == 1)
			xps_heap_free(heap);
	}
	xps_stream_free(stream);
	free(buffer.data);
	xps_pool_free(pool);
}

/* ---------------------------------------------------------------- stopping */

static void *stop(void *stream)
{
	xps_stream_stop(stream);
	CHECK(xps_stream_stopped(stream));
	return NULL;
}

static void test_blocked_stream_can_be_stopped_and_its_ring_be_read(void)
{
	const struct xps_stream_config config = config_of(3);
	struct xps_pool *pool = new_pool(1);
	struct xps_stream *stream = new_stream(pool, &config);
	struct buffer buffer = new_buffer(1000);
	uint64_t stats[XPS_N_STATS];

	CHECK_EQ(xps_add_buffer_reader(stream, buffer.data, buffer.length), 0);
	AWAIT(stat_of(stream, XPS_STAT_WORKER_BLOCKED) == 1);
	xps_stream_stop(stream);
	free(buffer.data); /* the reader is closed: nobody looks at it any more */
	for (uint64_t cnt = 0; cnt < 3; cnt++)
		pop(stream, cnt);
	check_ended(stream);
	xps_stream_stats(stream, stats);
	CHECK_EQ(stats[XPS_STAT_HEAPS], 3 + stats[XPS_STAT_HEAPS_DROPPED_STOP] + stats[XPS_STAT_HEAPS_DISCARDED]);
	CHECK(stats[XPS_STAT_HEAPS_DROPPED_STOP] > 0);
	xps_stream_free(stream);
	xps_pool_free(pool);
}

static void test_stream_that_was_never_fed_can_be_stopped(void)
{
	const struct xps_stream_config config = config_of(1);
	struct xps_pool *pool = new_pool(1);
	struct xps_stream *stream = new_stream(pool, &config);
	struct xps_heap *heap;

	CHECK(!xps_stream_stopped(stream));
	CHECK_EQ(xps_stream_pop(stream, &heap, 1, 0), 0);
	xps_stream_stop(stream);
	xps_stream_stop(stream);
	check_ended(stream);
	xps_stream_free(stream);
	xps_stream_free(new_stream(pool, &config));
	xps_stream_free(NULL);
	xps_pool_free(pool);
}

static void *expect_end(void *stream)
{
	check_ended(stream);
	return NULL;
}

static void test_stop_from_several_threads_wakes_those_who_wait(void)
{
	enum { N = 3 };
	const struct xps_stream_config config = config_of(1);
	struct xps_pool *pool = new_pool(1);

	for (int round = 0; round < 20; round++) {
		struct xps_stream *stream = new_stream(pool, &config);
		pthread_t stoppers[N], users[N];

		for (int i = 0; i < N; i++)
			users[i] = start(expect_end, stream);
		for (int i = 0; i < N; i++)
			stoppers[i] = start(stop, stream);
		for (int i = 0; i < N; i++) {
			join(stoppers[i]);
			join(users[i]);
		}
		xps_stream_free(stream);
	}
	xps_pool_free(pool);
}

struct popped {
	struct xps_stream *stream;
	uint64_t heaps;
	uint64_t sum;
};

static void *pop_until_end(void *argument)
{
	struct popped *popped = argument;
	struct xps_heap *heaps[7];
	int n;

	while ((n = xps_stream_pop(popped->stream, heaps, 7, DEADLINE_MS)) > 0) {
		for (int i = 0; i < n; i++) {
			popped->heaps++;
			popped->sum += heaps[i]->cnt;
			xps_heap_free(heaps[i]);
		}
	}
	CHECK_EQ(n, -EPIPE);
	return NULL;
}

static void test_stop_at_any_moment_accounts_for_every_heap(void)
{
	struct xps_pool *pool = new_pool(1);
	struct buffer buffer = new_buffer(2000);

	for (int round = 0; round < 30; round++) {
		const struct xps_stream_config config = config_of(1 + (uint64_t)round);
		struct xps_stream *stream = new_stream(pool, &config);
		struct popped popped = { .stream = stream };
		pthread_t user = start(pop_until_end, &popped);
		uint64_t stats[XPS_N_STATS];

		CHECK_EQ(xps_add_buffer_reader(stream, buffer.data, buffer.length), 0);
		AWAIT(stat_of(stream, XPS_STAT_WORKER_BLOCKED) > 0 || xps_stream_stopped(stream));
		xps_stream_stop(stream);
		join(user);
		xps_stream_stats(stream, stats);
		CHECK_EQ(stats[XPS_STAT_HEAPS],
			 popped.heaps + stats[XPS_STAT_HEAPS_DROPPED_STOP] + stats[XPS_STAT_HEAPS_DISCARDED]);
		xps_stream_free(stream);
	}
	free(buffer.data);
	xps_pool_free(pool);
}

static void test_several_users_pop_every_heap_once(void)
{
	enum { N = 20000, USERS = 3 };
	const struct xps_stream_config config = config_of(8);
	struct xps_pool *pool = new_pool(1);
	struct xps_stream *stream = new_stream(pool, &config);
	struct buffer buffer = new_buffer(N);
	struct popped popped[USERS];
	pthread_t users[USERS];
	uint64_t heaps = 0, sum = 0;

	for (int i = 0; i < USERS; i++) {
		popped[i] = (struct popped){ .stream = stream };
		users[i] = start(pop_until_end, &popped[i]);
	}
	CHECK_EQ(xps_add_buffer_reader(stream, buffer.data, buffer.length), 0);
	for (int i = 0; i < USERS; i++) {
		join(users[i]);
		heaps += popped[i].heaps;
		sum += popped[i].sum;
	}
	CHECK_EQ(heaps, N);
	CHECK_EQ(sum, (uint64_t)N * (N - 1) / 2);
	xps_stream_free(stream);
	free(buffer.data);
	xps_pool_free(pool);
}

static void test_readers_of_a_stopped_stream_do_nothing(void)
{
	const struct xps_stream_config config = config_of(1);
	struct xps_pool *pool = new_pool(1);
	struct xps_stream *stream = new_stream(pool, &config);
	struct buffer buffer = new_buffer(1);
	struct xps_fail fail = { 0 };
	int fd = socket(AF_INET, SOCK_DGRAM, 0);

	xps_stream_stop(stream);
	CHECK_EQ(xps_add_buffer_reader(stream, buffer.data, buffer.length), 0);
	CHECK_EQ(xps_add_udp_reader(stream, fd, 9000, &fail), 0);
	check_ended(stream);
	CHECK_EQ(stat_of(stream, XPS_STAT_PACKETS), 0);
	close(fd);
	xps_stream_free(stream);
	free(buffer.data);
	xps_pool_free(pool);
}

static void test_stream_can_be_read_and_stopped_when_its_threads_have_ended(void)
{
	const struct xps_stream_config config = config_of(2);
	struct xps_pool *pool = new_pool(1);
	struct xps_stream *stream = new_stream(pool, &config);
	struct buffer buffer = new_buffer(10);

	CHECK_EQ(xps_add_buffer_reader(stream, buffer.data, buffer.length), 0);
	AWAIT(stat_of(stream, XPS_STAT_WORKER_BLOCKED) == 1);
	xps_pool_stop(pool);
	pop(stream, 0);
	pop(stream, 1);
	xps_stream_stop(stream);
	check_ended(stream);
	xps_stream_free(stream);
	free(buffer.data);
	xps_pool_free(pool);
}

static void test_heaps_outlive_stream_allocator_and_threads(void)
{
	const struct xps_stream_config config = config_of(2);
	struct xps_pool *pool = new_pool(1);
	struct xps_fail fail = { 0 };
	struct xps_allocator *memory = xps_memory_pool_new(pool, 1, 100, 4, 2, 2, allocator, quiet, &fail);
	struct xps_stream *stream = xps_stream_new(pool, &config, memory, quiet, &fail);
	struct buffer buffer = new_buffer(1);
	struct xps_heap *heap;
	uint8_t *payload;

	CHECK_EQ(xps_add_buffer_reader(stream, buffer.data, buffer.length), 0);
	CHECK_EQ(xps_stream_pop(stream, &heap, 1, DEADLINE_MS), 1);
	xps_stream_free(stream);
	xps_allocator_free(memory);
	xps_pool_free(pool);
	free(buffer.data);
	payload = xps_heap_take_payload(heap);
	xps_heap_free(heap);
	for (uint64_t i = 0; i < HEAP_BYTES; i++)
		CHECK_EQ(payload[i], pattern(0, i));
	xps_payload_free(payload);
}

static void test_streams_that_cannot_be_say_why(void)
{
	struct xps_pool *pool = new_pool(1);

	for (int i = 0; i < 3; i++) {
		struct xps_stream_config config = config_of(i == 0 ? 0 : 1);
		struct xps_fail fail = { 0 };

		config.max_heaps = i == 1 ? 0 : 1;
		config.substreams = i == 2 ? 0 : 1;
		CHECK(!xps_stream_new(pool, &config, allocator, quiet, &fail));
		CHECK_EQ(fail.err, EINVAL);
		CHECK(fail.text[0]);
	}
	xps_pool_free(pool);
}

static void test_descriptor_is_readable_while_heaps_wait_and_after_the_end(void)
{
	const struct xps_stream_config config = config_of(2);
	struct xps_pool *pool = new_pool(1);
	struct xps_stream *stream = new_stream(pool, &config);
	struct buffer buffer = new_buffer(100);
	int fd = xps_stream_fd(stream);

	CHECK(!readable(fd));
	CHECK_EQ(xps_add_buffer_reader(stream, buffer.data, buffer.length), 0);
	for (uint64_t cnt = 0; cnt < 100;) {
		struct xps_heap *heap;

		await_readable(fd);
		if (xps_stream_pop(stream, &heap, 1, 0) == 1) {
			CHECK_EQ(heap->cnt, cnt++);
			xps_heap_free(heap);
		}
	}
	await_readable(fd);
	check_ended(stream);
	CHECK(readable(fd));
	xps_stream_free(stream);
	free(buffer.data);
	xps_pool_free(pool);
}

/* ---------------------------------------------------------------- statistics while it runs */

struct watcher {
	struct xps_stream *stream;
	bool enough; /* atomic */
	uint64_t looks;
};

static void *watch_stats(void *argument)
{
	struct watcher *watcher = argument;
	uint64_t last[XPS_N_STATS] = { 0 };

	while (!__atomic_load_n(&watcher->enough, __ATOMIC_ACQUIRE)) {
		uint64_t stats[XPS_N_STATS];

		xps_stream_stats(watcher->stream, stats);
		for (int i = 0; i < XPS_N_STATS; i++)
			CHECK(stats[i] >= last[i]);
		/* One snapshot is one moment: every heap is one packet here. */
		CHECK_EQ(stats[XPS_STAT_HEAPS], stats[XPS_STAT_PACKETS]);
		CHECK_EQ(stats[XPS_STAT_SINGLE_PACKET_HEAPS], stats[XPS_STAT_PACKETS]);
		memcpy(last, stats, sizeof(last));
		watcher->looks++;
		sched_yield();
	}
	return NULL;
}

/* ---------------------------------------------------------------- statistics of queues */

/* A reader of the queues 0 and 2 of 4 that has nothing to read, and counts one more whenever it is asked. */
struct counter {
	struct xps_reader reader;
	uint64_t n;
};

static enum xps_poll counter_poll(struct xps_reader *reader)
{
	(void)reader;
	return XPS_POLL_WAIT;
}

static void counter_add_stats(struct xps_reader *reader, uint64_t *stats)
{
	struct counter *counter = XPS_CONTAINER_OF(reader, struct counter, reader);

	(void)stats;
	counter->n++;
	for (uint32_t i = 0; i < reader->queues->n; i += 2) {
		reader->queues->rows[i].read = 1;
		*xps_queue_stat(&reader->queues->rows[i], XPS_STAT_XDP_MATCHED) = counter->n * (i + 1);
	}
}

static void counter_close(struct xps_reader *reader)
{
	xps_reader_settle(reader);
	free(XPS_CONTAINER_OF(reader, struct counter, reader));
}

static void add_counter(struct xps_stream *stream)
{
	static const struct xps_reader_ops ops = {
		.name = "counter", .poll = counter_poll, .close = counter_close, .add_stats = counter_add_stats
	};
	struct counter *counter = calloc(1, sizeof(*counter));

	counter->reader.ops = &ops;
	counter->reader.queues = xps_queue_table_new("veth7", 4);
	CHECK_EQ(xps_reader_attach(stream, &counter->reader), 0);
}

static void check_queues(struct xps_stream *stream, uint64_t asked)
{
	struct xps_queue_stats queues[8];
	uint64_t stats[XPS_N_STATS];

	CHECK_EQ(xps_stream_queue_stats(stream, stats, queues, 8), 2);
	CHECK(!strcmp(queues[1].interface, "veth7"));
	CHECK_EQ(queues[0].queue, 0);
	CHECK_EQ(queues[1].queue, 2);
	CHECK_EQ(*xps_queue_stat(&queues[0], XPS_STAT_XDP_MATCHED), asked);
	CHECK_EQ(*xps_queue_stat(&queues[1], XPS_STAT_XDP_MATCHED), 3 * asked);
	CHECK_EQ(stats[XPS_STAT_XDP_MATCHED], 4 * asked);
}

static void test_queues_and_their_sum_are_of_one_snapshot_and_stay_after_the_end(void)
{
	const struct xps_stream_config config = config_of(8);
	struct xps_pool *pool = new_pool(1);
	struct xps_stream *stream = new_stream(pool, &config);

	add_counter(stream);
	check_queues(stream, 1);
	check_queues(stream, 2);
	xps_stream_stop(stream);
	/* Asked when its end came, and once more when all was settled. */
	check_queues(stream, 4);
	check_queues(stream, 4);
	xps_stream_free(stream);
	xps_pool_free(pool);
}

static void test_queues_that_there_is_no_room_for_are_still_counted(void)
{
	const struct xps_stream_config config = config_of(8);
	struct xps_pool *pool = new_pool(1);
	struct xps_stream *stream = new_stream(pool, &config);
	struct xps_queue_stats queues[3] = { 0 };
	uint64_t stats[XPS_N_STATS];

	CHECK_EQ(xps_stream_queue_stats(stream, stats, NULL, 0), 0);
	add_counter(stream);
	add_counter(stream);
	CHECK_EQ(xps_stream_queue_stats(stream, stats, queues, 3), 4);
	CHECK_EQ(stats[XPS_STAT_XDP_MATCHED], 8);
	CHECK_EQ(queues[2].queue, 0);
	CHECK_EQ(stat_of(stream, XPS_STAT_XDP_MATCHED), 16);
	xps_stream_free(stream);
	xps_pool_free(pool);
}

/* ---------------------------------------------------------------- UDP over loopback */

struct udp {
	struct xps_pool *pool;
	struct xps_stream *stream;
	int in, out;
};

/* Two sockets on loopback, one of them read by the stream. */
static struct udp open_udp(const struct xps_stream_config *config, uint64_t max_size)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t length = sizeof(address);
	const int room = 4 << 20;
	struct xps_fail fail = { 0 };
	struct udp udp = { .pool = new_pool(1) };

	udp.stream = new_stream(udp.pool, config);
	udp.in = socket(AF_INET, SOCK_DGRAM, 0);
	udp.out = socket(AF_INET, SOCK_DGRAM, 0);
	CHECK_EQ(bind(udp.in, (struct sockaddr *)&address, sizeof(address)), 0);
	setsockopt(udp.in, SOL_SOCKET, SO_RCVBUF, &room, sizeof(room));
	CHECK_EQ(getsockname(udp.in, (struct sockaddr *)&address, &length), 0);
	CHECK_EQ(connect(udp.out, (struct sockaddr *)&address, sizeof(address)), 0);
	CHECK_EQ(xps_add_udp_reader(udp.stream, udp.in, max_size, &fail), 0);
	return udp;
}

static void close_udp(struct udp *udp)
{
	xps_stream_free(udp->stream);
	close(udp->in);
	close(udp->out);
	xps_pool_free(udp->pool);
}

static void send_spec(const struct udp *udp, const struct spec *spec)
{
	uint8_t *data = new_packet(spec);

	CHECK_EQ(send(udp->out, data, spec_size(spec), 0), spec_size(spec));
	free(data);
}

static void send_heap(const struct udp *udp, uint64_t cnt)
{
	send_spec(udp, &(struct spec){ .cnt = cnt, .heap_length = 100, .length = 100 });
}

static void send_stop(const struct udp *udp, uint64_t cnt)
{
	const uint64_t item = immediate(48, 6, 2);

	send_spec(udp, &(struct spec){ .cnt = cnt, .items = &item, .n_items = 1 });
}

static void test_datagrams_become_heaps(void)
{
	const int64_t naps_ns[] = { 0, 50000 };

	for (int nap = 0; nap < 2; nap++) {
		struct xps_stream_config config = config_of(4);
		struct udp udp;

		config.nap_ns = naps_ns[nap];
		udp = open_udp(&config, 9000);
		for (uint64_t cnt = 0; cnt < 1000; cnt++) { /* one by one */
			send_heap(&udp, cnt);
			pop(udp.stream, cnt);
		}
		for (uint64_t cnt = 1000; cnt < 2000; cnt += 10) { /* and more at once than the ring holds */
			for (uint64_t i = 0; i < 10; i++)
				send_heap(&udp, cnt + i);
			for (uint64_t i = 0; i < 10; i++)
				pop(udp.stream, cnt + i);
		}
		send_stop(&udp, 2000);
		check_ended(udp.stream);
		CHECK_EQ(stat_of(udp.stream, XPS_STAT_HEAPS), 2000);
		CHECK_EQ(stat_of(udp.stream, XPS_STAT_PACKETS), 2001);
		CHECK_EQ(stat_of(udp.stream, XPS_STAT_UDP_KERNEL_DROPS), 0);
		close_udp(&udp);
	}
}

static void test_blocked_udp_reader_goes_on_with_the_datagrams_in_its_hands(void)
{
	const struct xps_stream_config config = config_of(1);
	struct udp udp = open_udp(&config, 9000);

	for (uint64_t cnt = 0; cnt < 500; cnt++)
		send_heap(&udp, cnt);
	send_stop(&udp, 500);
	AWAIT(stat_of(udp.stream, XPS_STAT_WORKER_BLOCKED) == 1);
	for (uint64_t cnt = 0; cnt < 500; cnt++)
		pop(udp.stream, cnt);
	check_ended(udp.stream);
	CHECK_EQ(stat_of(udp.stream, XPS_STAT_PACKETS), 501);
	CHECK(stat_of(udp.stream, XPS_STAT_MAX_BATCH) <= 64);
	close_udp(&udp);
}

static void test_bad_datagrams_are_counted_once_each_whatever_blocks(void)
{
	const struct xps_stream_config config = config_of(1);
	const struct spec too_long = { .cnt = 999, .heap_length = 3000, .length = 3000 };
	struct udp udp = open_udp(&config, 2000);

	for (uint64_t cnt = 0; cnt < 60; cnt++) {
		send_heap(&udp, cnt);
		send_spec(&udp, &too_long);
		CHECK_EQ(send(udp.out, "", 0, 0), 0);
		CHECK_EQ(send(udp.out, "no spead packet", 15, 0), 15);
	}
	send_stop(&udp, 60);
	for (uint64_t cnt = 0; cnt < 60; cnt++) {
		AWAIT(xps_stream_ring_size(udp.stream) == 1);
		pop(udp.stream, cnt);
	}
	check_ended(udp.stream);
	CHECK_EQ(stat_of(udp.stream, XPS_STAT_PACKETS), 61);
	CHECK_EQ(stat_of(udp.stream, XPS_STAT_TRUNCATED_DATAGRAM), 60);
	CHECK_EQ(stat_of(udp.stream, XPS_STAT_EMPTY_DATAGRAM), 60);
	CHECK_EQ(stat_of(udp.stream, XPS_STAT_BAD_MAGIC), 60);
	close_udp(&udp);
}

static uint64_t received_or_dropped(struct xps_stream *stream)
{
	return stat_of(stream, XPS_STAT_PACKETS) + stat_of(stream, XPS_STAT_UDP_KERNEL_DROPS);
}

static void test_kernel_drops_are_exact_though_no_datagram_follows(void)
{
	const struct xps_stream_config config = config_of(1);
	const int none = 1;
	struct udp udp = open_udp(&config, 9000);
	struct xps_heap *heap;

	setsockopt(udp.in, SOL_SOCKET, SO_RCVBUF, &none, sizeof(none));
	for (uint64_t cnt = 0; cnt < 500; cnt++)
		send_heap(&udp, cnt);
	CHECK(stat_of(udp.stream, XPS_STAT_UDP_KERNEL_DROPS) > 0);
	while (received_or_dropped(udp.stream) < 500)
		if (xps_stream_pop(udp.stream, &heap, 1, 1) == 1)
			xps_heap_free(heap);
	xps_stream_stop(udp.stream);
	CHECK_EQ(received_or_dropped(udp.stream), 500);
	close_udp(&udp);
}

static void test_datagrams_of_max_size_are_taken_and_longer_ones_are_not(void)
{
	const struct xps_stream_config config = config_of(4);
	const struct spec fits = { .cnt = 1, .heap_length = 960, .length = 960 };
	const struct spec longer = { .cnt = 2, .heap_length = 961, .length = 961 };
	struct udp udp = open_udp(&config, 1000);

	CHECK_EQ(spec_size(&fits), 1000);
	send_spec(&udp, &longer);
	send_spec(&udp, &fits);
	pop(udp.stream, 1);
	AWAIT(stat_of(udp.stream, XPS_STAT_TRUNCATED_DATAGRAM) == 1);
	close_udp(&udp);
}

static void test_datagrams_that_the_kernel_glued_are_taken_apart(void)
{
	/* More datagrams than the reader looks at in one go, and the boundary lies within a message. */
	enum { MESSAGES = 5, EACH = 21 };
	const struct spec spec = { .heap_length = 200, .length = 200 };
	const int segment = (int)spec_size(&spec);
	const struct xps_stream_config config = config_of(1);
	struct udp udp = open_udp(&config, 9000);
	static uint8_t data[EACH * 512];
	uint64_t cnt = 0;

	for (; cnt < 3; cnt++) /* block it, so that all the others are there when it goes on */
		send_heap(&udp, cnt);
	AWAIT(stat_of(udp.stream, XPS_STAT_WORKER_BLOCKED) == 1);
	if (setsockopt(udp.out, IPPROTO_UDP, UDP_SEGMENT, &segment, sizeof(segment))) {
		fprintf(stderr, "not tried: no UDP_SEGMENT here\n");
		close_udp(&udp);
		return;
	}
	for (int i = 0; i < MESSAGES; i++) {
		uint8_t *at = data;

		for (int j = 0; j < EACH; j++, cnt++) {
			struct spec one = spec;

			one.cnt = cnt;
			if (j == EACH - 1) /* the last may be shorter */
				one.heap_length = (int64_t)(one.length = 50);
			at = put_packet(at, &one);
		}
		CHECK_EQ(send(udp.out, data, (size_t)(at - data), 0), at - data);
	}
	for (uint64_t i = 0; i < cnt; i++)
		pop(udp.stream, i);
	AWAIT(stat_of(udp.stream, XPS_STAT_PACKETS) == cnt);
	CHECK(stat_of(udp.stream, XPS_STAT_MAX_BATCH) > 64);
	close_udp(&udp);
}

static void test_users_socket_may_be_closed(void)
{
	const struct xps_stream_config config = config_of(4);
	struct udp udp = open_udp(&config, 9000);

	close(udp.in);
	send_heap(&udp, 1);
	pop(udp.stream, 1);
	udp.in = -1;
	close_udp(&udp);
}

static void test_what_is_no_udp_socket_is_refused(void)
{
	const struct xps_stream_config config = config_of(4);
	struct xps_pool *pool = new_pool(1);
	struct xps_stream *stream = new_stream(pool, &config);
	const int fds[] = { -1, 0, socket(AF_INET, SOCK_STREAM, 0) };

	for (int i = 0; i < 3; i++) {
		struct xps_fail fail = { 0 };

		CHECK(xps_add_udp_reader(stream, fds[i], 9000, &fail) < 0);
		CHECK(fail.err > 0);
		CHECK(fail.text[0]);
	}
	close(fds[2]);
	xps_stream_free(stream);
	xps_pool_free(pool);
}

static void test_udp_stream_can_be_stopped_while_blocked_and_while_packets_come(void)
{
	for (int round = 0; round < 20; round++) {
		struct xps_stream_config config = config_of(1);
		struct udp udp;

		config.nap_ns = round % 2 ? 50000 : 0;
		udp = open_udp(&config, 9000);
		for (uint64_t cnt = 0; cnt < 100; cnt++)
			send_heap(&udp, cnt);
		if (round % 4 < 2)
			AWAIT(stat_of(udp.stream, XPS_STAT_WORKER_BLOCKED) == 1);
		xps_stream_stop(udp.stream);
		for (uint64_t cnt = 0; xps_stream_ring_size(udp.stream); cnt++)
			pop(udp.stream, cnt);
		check_ended(udp.stream);
		close_udp(&udp);
	}
}

struct sender {
	struct udp *udp;
	uint64_t n;
};

static void *send_heaps(void *argument)
{
	struct sender *sender = argument;

	for (uint64_t cnt = 0; cnt < sender->n; cnt++) {
		send_heap(sender->udp, cnt);
		if (cnt % 16 == 15)
			sched_yield();
	}
	return NULL;
}

static void test_statistics_are_snapshots_while_the_stream_runs(void)
{
	const struct xps_stream_config config = config_of(16);
	struct udp udp = open_udp(&config, 9000);
	struct sender sender = { .udp = &udp, .n = 5000 };
	struct watcher watcher = { .stream = udp.stream };
	struct popped popped = { .stream = udp.stream };
	pthread_t threads[3] = { start(watch_stats, &watcher), start(pop_until_end, &popped),
				 start(send_heaps, &sender) };
	uint64_t stats[XPS_N_STATS];

	join(threads[2]);
	xps_stream_stop(udp.stream);
	join(threads[1]);
	__atomic_store_n(&watcher.enough, true, __ATOMIC_RELEASE);
	join(threads[0]);
	CHECK(watcher.looks > 0);
	xps_stream_stats(udp.stream, stats);
	CHECK_EQ(stats[XPS_STAT_HEAPS], popped.heaps + stats[XPS_STAT_HEAPS_DROPPED_STOP]);
	CHECK(popped.heaps > 0);
	close_udp(&udp);
}

/* CPU time of the worker while the clock goes on by 100 ms: the time is what is measured, nobody waits for it. */
static int64_t cpu_ns_in_100_ms(struct xps_pool *pool)
{
	const int64_t before = xps_pool_cpu_ns(pool);
	const struct timespec pause = { .tv_nsec = 100000000 };

	nanosleep(&pause, NULL);
	return xps_pool_cpu_ns(pool) - before;
}

static void test_blocked_stream_costs_no_time(void)
{
	const struct xps_stream_config config = config_of(1);
	struct udp udp = open_udp(&config, 9000);
	struct xps_fail fail = { 0 };

	for (uint64_t cnt = 0; cnt < 200; cnt++) /* more than one batch: the socket stays readable */
		send_heap(&udp, cnt);
	AWAIT(stat_of(udp.stream, XPS_STAT_WORKER_BLOCKED) == 1);
	CHECK(cpu_ns_in_100_ms(udp.pool) < 30000000);
	/* A second reader comes, and it too has something to read. */
	CHECK_EQ(xps_add_udp_reader(udp.stream, udp.in, 9000, &fail), 0);
	CHECK(cpu_ns_in_100_ms(udp.pool) < 30000000);
	CHECK_EQ(xps_stream_ring_size(udp.stream), 1);
	close_udp(&udp);
}

static void test_reader_added_while_the_stream_is_blocked_is_heard_when_there_is_room(void)
{
	const struct xps_stream_config config = config_of(1);
	struct udp udp = open_udp(&config, 9000), second;
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t length = sizeof(address);
	struct xps_fail fail = { 0 };

	send_heap(&udp, 0);
	send_heap(&udp, 1);
	AWAIT(stat_of(udp.stream, XPS_STAT_WORKER_BLOCKED) == 1);
	second = (struct udp){ .in = socket(AF_INET, SOCK_DGRAM, 0), .out = socket(AF_INET, SOCK_DGRAM, 0) };
	CHECK_EQ(bind(second.in, (struct sockaddr *)&address, sizeof(address)), 0);
	CHECK_EQ(getsockname(second.in, (struct sockaddr *)&address, &length), 0);
	CHECK_EQ(connect(second.out, (struct sockaddr *)&address, sizeof(address)), 0);
	send_heap(&second, 2); /* it is there before the reader */
	CHECK_EQ(xps_add_udp_reader(udp.stream, second.in, 9000, &fail), 0);
	for (uint64_t cnt = 0; cnt < 3; cnt++)
		pop(udp.stream, cnt);
	close(second.in);
	close(second.out);
	close_udp(&udp);
}

int main(void)
{
	allocator = xps_allocator_new();
	quiet = xps_log_new();

	test_buffer_gives_its_heaps_and_ends_the_stream();
	test_empty_buffer_ends_the_stream();
	test_buffer_ends_at_the_first_packet_that_cannot_be_decoded();
	test_stop_item_ends_the_stream_and_what_is_left_is_flushed();
	test_full_ring_blocks_the_worker_until_there_is_room_and_no_heap_is_lost();
	test_flush_waits_for_room_too();
	test_several_users_pop_every_heap_once();
	test_stream_that_nobody_reads_does_not_hold_up_others();
	test_buffers_of_one_stream_end_it_at_the_first_end();

	test_blocked_stream_can_be_stopped_and_its_ring_be_read();
	test_stream_that_was_never_fed_can_be_stopped();
	test_stop_from_several_threads_wakes_those_who_wait();
	test_stop_at_any_moment_accounts_for_every_heap();
	test_readers_of_a_stopped_stream_do_nothing();
	test_stream_can_be_read_and_stopped_when_its_threads_have_ended();
	test_heaps_outlive_stream_allocator_and_threads();
	test_streams_that_cannot_be_say_why();
	test_descriptor_is_readable_while_heaps_wait_and_after_the_end();

	test_queues_and_their_sum_are_of_one_snapshot_and_stay_after_the_end();
	test_queues_that_there_is_no_room_for_are_still_counted();

	test_datagrams_become_heaps();
	test_blocked_udp_reader_goes_on_with_the_datagrams_in_its_hands();
	test_bad_datagrams_are_counted_once_each_whatever_blocks();
	test_kernel_drops_are_exact_though_no_datagram_follows();
	test_datagrams_of_max_size_are_taken_and_longer_ones_are_not();
	test_datagrams_that_the_kernel_glued_are_taken_apart();
	test_users_socket_may_be_closed();
	test_what_is_no_udp_socket_is_refused();
	test_udp_stream_can_be_stopped_while_blocked_and_while_packets_come();
	test_statistics_are_snapshots_while_the_stream_runs();
	test_blocked_stream_costs_no_time();
	test_reader_added_while_the_stream_is_blocked_is_heard_when_there_is_room();

	xps_log_free(quiet);
	xps_allocator_free(allocator);
	return 0;
}
