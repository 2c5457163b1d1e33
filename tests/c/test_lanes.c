// SPDX-License-Identifier: Apache-2.0
/*
 * Streams with several workers: windows of their own, one ring, one set of statistics, one end. Packets come from
 * readers that are made here and attached to one lane each.
 */
#include <errno.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "await.h"
#include "bits.h"
#include "check.h"
#include "memory.h"
#include "packets.h"
#include "pool.h"
#include "streams.h"
#include "transport.h"
#include "xdpspead.h"

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

static struct xps_stream *new_stream(struct xps_pool *pool, const struct xps_stream_config *config, uint32_t n_lanes)
{
	struct xps_fail fail = { 0 };
	struct xps_stream *stream = xps_stream_new(pool, config, allocator, quiet, &fail);

	CHECK(stream);
	CHECK_EQ(xps_stream_want_lanes(stream, n_lanes), 0);
	return stream;
}

/* ---------------------------------------------------------------- a reader */

enum { HEAP_BYTES = 30, PARTS = 3, PER_PUSH = 16 };

/* What comes after the heaps: nothing, the end of the source, likewise with an error, a stop item. */
enum last { STAYS, ENDS, FAILS, STOPS };

/* Equally long packets in memory, handed over from the moment when it is opened. */
struct feed {
	struct xps_reader base;
	struct xps_reader_watch watch;
	uint8_t *data;
	const uint8_t *next, *end;
	uint32_t packet; /* bytes */
	enum last last;
	struct xps_view views[PER_PUSH];
	uint32_t n_views, taken;
	bool in_batch;

	/* atomic: the test looks at these */
	bool open;
	uint64_t handed; /* packets that it made views of */
	uint64_t looks;
	pid_t thread; /* that called last */
	bool closed;
};

static void make_views(struct feed *feed)
{
	feed->n_views = feed->taken = 0;
	for (; feed->n_views < PER_PUSH && feed->next < feed->end; feed->next += feed->packet)
		feed->views[feed->n_views++] = (struct xps_view){ .data = feed->next, .length = feed->packet };
	__atomic_fetch_add(&feed->handed, feed->n_views, __ATOMIC_RELEASE);
}

static enum xps_poll rest(struct feed *feed)
{
	eventfd_t value;

	eventfd_read(feed->watch.watch.fd, &value);
	if (feed->last == FAILS) {
		struct xps_fail why;

		xps_fail_set(&why, ENODEV, "receive", "the cable was eaten");
		xps_reader_fail(&feed->base, &why);
		xps_fail_set(&why, EIO, "receive", "and the other end, too");
		xps_reader_fail(&feed->base, &why);
	}
	return feed->last == ENDS || feed->last == FAILS ? XPS_POLL_END : XPS_POLL_WAIT;
}

static enum xps_poll feed_poll(struct xps_reader *reader)
{
	struct feed *feed = XPS_CONTAINER_OF(reader, struct feed, base);

	__atomic_store_n(&feed->thread, gettid(), __ATOMIC_RELEASE);
	if (!__atomic_load_n(&feed->open, __ATOMIC_ACQUIRE))
		return XPS_POLL_WAIT;
	if (!feed->in_batch) {
		make_views(feed);
		if (!feed->n_views)
			return rest(feed);
		feed->in_batch = true;
		xps_batch_begin(reader);
	}
	feed->taken += xps_batch_push(reader, feed->views + feed->taken, feed->n_views - feed->taken);
	if (feed->taken < feed->n_views)
		return XPS_POLL_BLOCKED;
	feed->in_batch = false;
	xps_batch_end(reader);
	return xps_reader_ended(reader) ? XPS_POLL_END : XPS_POLL_AGAIN;
}

static void feed_close(struct xps_reader *reader)
{
	struct feed *feed = XPS_CONTAINER_OF(reader, struct feed, base);

	__atomic_store_n(&feed->closed, true, __ATOMIC_RELEASE);
}

static void feed_look(struct xps_reader *reader)
{
	struct feed *feed = XPS_CONTAINER_OF(reader, struct feed, base);
	eventfd_t value;

	eventfd_read(reader->news.fd, &value);
	__atomic_fetch_add(&feed->looks, 1, __ATOMIC_RELEASE);
}

static const struct xps_reader_ops feed_ops = { .name = "feed", .lossy = true, .poll = feed_poll, .close = feed_close };

static const struct xps_reader_ops looking_ops = {
	.name = "feed",
	.lossy = true,
	.poll = feed_poll,
	.close = feed_close,
	.look = feed_look,
};

/* Heaps first..first+n-1 in packets of `part` bytes each. */
static struct feed *new_feed(uint64_t first, uint64_t n, uint64_t part, enum last last)
{
	const struct spec spec = { .heap_length = HEAP_BYTES, .length = part };
	const uint64_t stop = immediate(48, 6, 2);
	struct feed *feed = calloc(1, sizeof(*feed));
	uint8_t *at;

	feed->packet = (uint32_t)spec_size(&spec);
	feed->last = last;
	at = feed->data = malloc((n * (HEAP_BYTES / part) + 1) * feed->packet);
	for (uint64_t i = 0; i < n; i++) {
		for (uint64_t offset = 0; offset < HEAP_BYTES; offset += part) {
			struct spec one = spec;

			one.cnt = first + i;
			one.offset = offset;
			at = put_packet(at, &one);
		}
	}
	if (last == STOPS) {
		struct spec item = { .cnt = 1 << 30, .heap_length = 0, .items = &stop, .n_items = 1 };

		item.length = item.heap_length = feed->packet - (int64_t)spec_size(&item);
		at = put_packet(at, &item);
		CHECK_EQ((at - feed->data) % feed->packet, 0);
	}
	feed->next = feed->data;
	feed->end = at;
	feed->base = (struct xps_reader){ .ops = &feed_ops, .watches = &feed->watch, .n_watches = 1 };
	feed->watch.watch.fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	CHECK(feed->watch.watch.fd >= 0);
	return feed;
}

static void open_feed(struct feed *feed)
{
	__atomic_store_n(&feed->open, true, __ATOMIC_RELEASE);
	CHECK_EQ(eventfd_write(feed->watch.watch.fd, 1), 0);
}

static struct feed *attach(struct xps_stream *stream, uint32_t lane, struct feed *feed)
{
	CHECK_EQ(xps_reader_attach_to(stream, lane, &feed->base), 0);
	return feed;
}

/* Attached and open. */
static struct feed *feed_lane(struct xps_stream *stream, uint32_t lane, struct feed *feed)
{
	attach(stream, lane, feed);
	open_feed(feed);
	return feed;
}

static void free_feed(struct feed *feed)
{
	close(feed->watch.watch.fd);
	free(feed->data);
	free(feed);
}

static bool closed(const struct feed *feed)
{
	return __atomic_load_n(&feed->closed, __ATOMIC_ACQUIRE);
}

static pid_t thread_of(const struct feed *feed)
{
	return __atomic_load_n(&feed->thread, __ATOMIC_ACQUIRE);
}

static uint64_t handed(const struct feed *feed)
{
	return __atomic_load_n(&feed->handed, __ATOMIC_ACQUIRE);
}

/* ---------------------------------------------------------------- heaps of several lanes */

enum { LANES = 3, STRIDE = 1 << 20 }; /* lane i has heaps i * STRIDE onwards */

static void check_whole(const struct xps_heap *heap)
{
	CHECK(heap->flags & XPS_HEAP_CONTIGUOUS);
	CHECK_EQ(heap->size, HEAP_BYTES);
	for (uint64_t i = 0; i < heap->size; i++)
		CHECK_EQ(heap->payload[i], pattern(heap->cnt, i));
}

/* Pop `n` heaps, those of each lane in order; `next` has the next number of each. */
static void pop_in_order(struct xps_stream *stream, uint64_t n, uint64_t next[LANES])
{
	for (uint64_t i = 0; i < n; i++) {
		struct xps_heap *heap;
		uint64_t lane;

		CHECK_EQ(xps_stream_pop(stream, &heap, 1, DEADLINE_MS), 1);
		lane = heap->cnt / STRIDE;
		CHECK(lane < LANES);
		CHECK_EQ(heap->cnt % STRIDE, next[lane]++);
		check_whole(heap);
		xps_heap_free(heap);
	}
}

static void test_heaps_of_all_lanes_come_out_whole_and_once_and_counted(void)
{
	enum { N = 2000 };
	const struct xps_stream_config config = config_of(64);
	struct xps_pool *pool = new_pool(LANES);
	struct xps_stream *stream = new_stream(pool, &config, LANES);
	struct feed *feeds[LANES];
	uint64_t next[LANES] = { 0 };

	for (uint32_t i = 0; i < LANES; i++)
		feeds[i] = feed_lane(stream, i, new_feed(i * STRIDE, N, HEAP_BYTES / PARTS, STAYS));
	pop_in_order(stream, LANES * N, next);
	xps_stream_stop(stream);
	check_ended(stream);
	CHECK_EQ(stat_of(stream, XPS_STAT_HEAPS), LANES * N);
	CHECK_EQ(stat_of(stream, XPS_STAT_PACKETS), LANES * N * PARTS);
	CHECK_EQ(stat_of(stream, XPS_STAT_MAX_BATCH), PER_PUSH);
	CHECK_EQ(stat_of(stream, XPS_STAT_BATCHES), LANES * (N * PARTS / PER_PUSH));
	CHECK_EQ(stat_of(stream, XPS_STAT_HEAPS_DROPPED_STOP), 0);
	xps_stream_free(stream);
	for (int i = 0; i < LANES; i++)
		free_feed(feeds[i]);
	xps_pool_free(pool);
}

static void test_each_lane_has_a_thread_of_its_own_as_long_as_there_are_any(void)
{
	const struct xps_stream_config config = config_of(4);
	struct xps_pool *pool = new_pool(LANES);

	/* Streams that were made in between have their turns too. */
	for (int between = 0; between < 4; between++) {
		struct xps_stream *stream = new_stream(pool, &config, 1), *others[4];
		struct feed *feeds[LANES];

		for (int i = 0; i < between; i++)
			others[i] = new_stream(pool, &config, 1);
		CHECK_EQ(xps_stream_want_lanes(stream, LANES), 0);
		for (uint32_t i = 0; i < LANES; i++) {
			feeds[i] = attach(stream, i, new_feed(0, 0, HEAP_BYTES, STAYS));
			AWAIT(thread_of(feeds[i]));
			for (uint32_t j = 0; j < i; j++)
				CHECK(thread_of(feeds[i]) != thread_of(feeds[j]));
		}
		xps_stream_free(stream);
		for (int i = 0; i < LANES; i++)
			free_feed(feeds[i]);
		for (int i = 0; i < between; i++)
			xps_stream_free(others[i]);
	}
	xps_pool_free(pool);
}

static void test_lanes_share_threads_when_these_are_fewer(void)
{
	enum { N = 500 };
	const struct xps_stream_config config = config_of(4);
	struct xps_pool *pool = new_pool(1);
	struct xps_stream *stream = new_stream(pool, &config, LANES);
	struct feed *feeds[LANES];
	uint64_t next[LANES] = { 0 };

	for (uint32_t i = 0; i < LANES; i++)
		feeds[i] = feed_lane(stream, i, new_feed(i * STRIDE, N, HEAP_BYTES / PARTS, STAYS));
	pop_in_order(stream, LANES * N, next);
	CHECK_EQ(thread_of(feeds[0]), thread_of(feeds[1]));
	xps_stream_free(stream);
	for (int i = 0; i < LANES; i++)
		free_feed(feeds[i]);
	xps_pool_free(pool);
}

static void test_packets_of_one_heap_in_two_lanes_do_not_meet(void)
{
	struct xps_stream_config config = config_of(4);
	struct xps_pool *pool = new_pool(2);
	struct feed *parts[2] = { new_feed(7, 1, HEAP_BYTES / PARTS, STAYS), new_feed(7, 1, HEAP_BYTES / PARTS, ENDS) };
	struct xps_stream *stream;
	uint64_t received = 0;

	config.contiguous_only = false;
	config.allow_out_of_order = true;
	stream = new_stream(pool, &config, 2);
	parts[0]->end = parts[0]->data + parts[0]->packet;  /* the first packet, */
	parts[1]->next = parts[1]->data + parts[1]->packet; /* and the others */
	feed_lane(stream, 0, parts[0]);
	AWAIT(stat_of(stream, XPS_STAT_PACKETS) == 1);
	feed_lane(stream, 1, parts[1]);
	for (int i = 0; i < 2; i++) {
		struct xps_heap *heap;

		CHECK_EQ(xps_stream_pop(stream, &heap, 1, DEADLINE_MS), 1);
		CHECK_EQ(heap->cnt, 7);
		CHECK(!(heap->flags & XPS_HEAP_CONTIGUOUS));
		received += heap->received;
		xps_heap_free(heap);
	}
	check_ended(stream);
	CHECK_EQ(received, HEAP_BYTES);
	CHECK_EQ(stat_of(stream, XPS_STAT_INCOMPLETE_HEAPS_FLUSHED), 2);
	xps_stream_free(stream);
	free_feed(parts[0]);
	free_feed(parts[1]);
	xps_pool_free(pool);
}

static void test_full_ring_blocks_every_lane_and_room_lets_every_lane_go_on(void)
{
	enum { N = 1500 };
	struct xps_pool *pool = new_pool(LANES);

	for (uint64_t ring = 1; ring < 300; ring = ring * 7 + 1) {
		const struct xps_stream_config config = config_of(ring);
		struct xps_stream *stream = new_stream(pool, &config, LANES);
		struct feed *feeds[LANES];
		uint64_t next[LANES] = { 0 };

		for (uint32_t i = 0; i < LANES; i++)
			feeds[i] = feed_lane(stream, i, new_feed(i * STRIDE, N, HEAP_BYTES, STAYS));
		AWAIT(stat_of(stream, XPS_STAT_WORKER_BLOCKED) == LANES);
		CHECK_EQ(xps_stream_ring_size(stream), ring);
		pop_in_order(stream, LANES * N, next);
		for (int i = 0; i < LANES; i++)
			CHECK_EQ(next[i], N);
		AWAIT(stat_of(stream, XPS_STAT_PACKETS) == LANES * N);
		CHECK_EQ(stat_of(stream, XPS_STAT_HEAPS), LANES * N);
		xps_stream_free(stream);
		for (int i = 0; i < LANES; i++)
			free_feed(feeds[i]);
	}
	xps_pool_free(pool);
}

/* ---------------------------------------------------------------- the end */

static void test_stop_item_in_any_lane_ends_all_and_flushes_what_they_have(void)
{
	struct xps_stream_config config = config_of(16);
	struct xps_pool *pool = new_pool(LANES);

	config.contiguous_only = false;
	for (uint32_t stopper = 0; stopper < LANES; stopper++) {
		struct xps_stream *stream = new_stream(pool, &config, LANES);
		struct feed *feeds[LANES], *stop = attach(stream, stopper, new_feed(0, 0, HEAP_BYTES, STOPS));
		uint64_t seen = 0;

		/* Two packets of three in each lane. */
		for (uint32_t i = 0; i < LANES; i++) {
			feeds[i] = new_feed(i, 1, HEAP_BYTES / PARTS, STAYS);
			feeds[i]->end -= feeds[i]->packet;
			feed_lane(stream, i, feeds[i]);
		}
		AWAIT(stat_of(stream, XPS_STAT_PACKETS) == 2 * LANES);
		open_feed(stop);
		for (int i = 0; i < LANES; i++) {
			struct xps_heap *heap;

			CHECK_EQ(xps_stream_pop(stream, &heap, 1, DEADLINE_MS), 1);
			CHECK_EQ(heap->received, 2 * HEAP_BYTES / PARTS);
			seen |= UINT64_C(1) << heap->cnt;
			xps_heap_free(heap);
		}
		check_ended(stream);
		CHECK_EQ(seen, (1 << LANES) - 1);
		CHECK_EQ(stat_of(stream, XPS_STAT_INCOMPLETE_HEAPS_FLUSHED), LANES);
		CHECK_EQ(stat_of(stream, XPS_STAT_PACKETS), 2 * LANES + 1);
		for (int i = 0; i < LANES; i++)
			CHECK(closed(feeds[i]));
		xps_stream_free(stream);
		for (int i = 0; i < LANES; i++)
			free_feed(feeds[i]);
		free_feed(stop);
	}
	xps_pool_free(pool);
}

static void test_end_in_one_lane_waits_for_the_heaps_of_a_blocked_one(void)
{
	const struct xps_stream_config config = config_of(1);
	struct xps_pool *pool = new_pool(2);
	struct xps_stream *stream = new_stream(pool, &config, 2);
	struct feed *blocked = feed_lane(stream, 1, new_feed(0, 1000, HEAP_BYTES, STAYS));
	struct feed *ends = attach(stream, 0, new_feed(0, 0, HEAP_BYTES, ENDS));
	struct xps_heap *heap;
	uint64_t popped = 0;

	AWAIT(stat_of(stream, XPS_STAT_WORKER_BLOCKED) == 1);
	open_feed(ends);
	AWAIT(closed(ends) && closed(blocked));
	CHECK(!xps_stream_stopped(stream));
	while (xps_stream_pop(stream, &heap, 1, DEADLINE_MS) == 1) {
		CHECK_EQ(heap->cnt, popped++);
		check_whole(heap);
		xps_heap_free(heap);
	}
	check_ended(stream);
	CHECK_EQ(stat_of(stream, XPS_STAT_HEAPS), popped);
	CHECK_EQ(stat_of(stream, XPS_STAT_HEAPS_DROPPED_STOP), 0);
	/* What the reader had in its hands came too late, and is counted. */
	CHECK(stat_of(stream, XPS_STAT_AFTER_STOP) > 0);
	CHECK_EQ(stat_of(stream, XPS_STAT_PACKETS) + stat_of(stream, XPS_STAT_AFTER_STOP), handed(blocked));
	xps_stream_free(stream);
	free_feed(blocked);
	free_feed(ends);
	xps_pool_free(pool);
}

static void test_packets_in_the_hands_of_readers_of_the_same_lane_are_counted_too(void)
{
	const struct xps_stream_config config = config_of(1);
	struct xps_pool *pool = new_pool(1);

	/* Whichever is called first when there is room again. */
	for (int order = 0; order < 2; order++) {
		struct xps_stream *stream = new_stream(pool, &config, 1);
		struct feed *stop = new_feed(0, 0, HEAP_BYTES, STOPS), *full = new_feed(0, 1000, HEAP_BYTES, STAYS);
		struct xps_heap *heap;

		attach(stream, 0, order ? stop : full);
		attach(stream, 0, order ? full : stop);
		open_feed(full);
		AWAIT(stat_of(stream, XPS_STAT_WORKER_BLOCKED) == 1);
		open_feed(stop);
		while (xps_stream_pop(stream, &heap, 1, DEADLINE_MS) == 1)
			xps_heap_free(heap);
		check_ended(stream);
		CHECK_EQ(stat_of(stream, XPS_STAT_PACKETS) + stat_of(stream, XPS_STAT_AFTER_STOP),
			 handed(full) + handed(stop));
		xps_stream_free(stream);
		free_feed(stop);
		free_feed(full);
	}
	xps_pool_free(pool);
}

static void check_failure(struct xps_stream *stream, int err, const char *text)
{
	struct xps_fail fail;

	CHECK_EQ(xps_stream_failure(stream, &fail), -err);
	CHECK_EQ(fail.err, err);
	CHECK_EQ(strcmp(fail.text, text), 0);
}

static void test_source_that_fails_is_told_by_the_first_who_says_why(void)
{
	const struct xps_stream_config config = config_of(64);
	struct xps_pool *pool = new_pool(2);
	struct xps_stream *stream = new_stream(pool, &config, 2);
	struct feed *other = feed_lane(stream, 1, new_feed(0, 5, HEAP_BYTES, STAYS));
	struct feed *fails = attach(stream, 0, new_feed(STRIDE, 5, HEAP_BYTES, FAILS));
	uint64_t next[LANES] = { 0 };

	AWAIT(stat_of(stream, XPS_STAT_HEAPS) == 5);
	check_failure(stream, 0, "");
	open_feed(fails);
	pop_in_order(stream, 10, next);
	check_ended(stream);
	check_failure(stream, ENODEV, "the cable was eaten");
	xps_stream_stop(stream);
	check_failure(stream, ENODEV, "the cable was eaten");
	xps_stream_free(stream);
	free_feed(other);
	free_feed(fails);
	xps_pool_free(pool);
}

static void test_source_that_fails_after_the_end_is_not_told(void)
{
	const struct xps_stream_config config = config_of(1);
	struct xps_pool *pool = new_pool(1);
	struct xps_stream *stream = new_stream(pool, &config, 1);
	struct feed *fails = attach(stream, 0, new_feed(0, 0, HEAP_BYTES, FAILS));

	xps_stream_stop(stream);
	check_failure(stream, 0, "");
	xps_stream_free(stream);
	free_feed(fails);
	xps_pool_free(pool);
}

static void test_news_of_a_source_are_looked_at_though_the_lane_is_blocked(void)
{
	const struct xps_stream_config config = config_of(1);
	struct xps_pool *pool = new_pool(1);
	struct xps_stream *stream = new_stream(pool, &config, 1);
	struct feed *feed = new_feed(0, 100, HEAP_BYTES, STAYS);
	uint64_t before;

	feed->base.ops = &looking_ops;
	feed->base.news.fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	feed_lane(stream, 0, feed);
	AWAIT(stat_of(stream, XPS_STAT_WORKER_BLOCKED) == 1);
	AWAIT(__atomic_load_n(&feed->looks, __ATOMIC_ACQUIRE) > 0); /* once to begin with */
	for (int i = 0; i < 10; i++) {
		before = __atomic_load_n(&feed->looks, __ATOMIC_ACQUIRE);
		CHECK_EQ(eventfd_write(feed->base.news.fd, 1), 0);
		AWAIT(__atomic_load_n(&feed->looks, __ATOMIC_ACQUIRE) > before);
	}
	/* And without any news, by time. */
	before = __atomic_load_n(&feed->looks, __ATOMIC_ACQUIRE);
	AWAIT(__atomic_load_n(&feed->looks, __ATOMIC_ACQUIRE) > before);
	xps_stream_stop(stream);
	close(feed->base.news.fd);
	xps_stream_free(stream);
	free_feed(feed);
	xps_pool_free(pool);
}

/* ---------------------------------------------------------------- naps */

/*
 * A reader whose descriptor is always ready, and who does in each call what a letter says: P a batch and no more, A a
 * batch and perhaps more, . nothing. It notes whether it was napping when it was called.
 */
struct napper {
	struct xps_reader base;
	struct xps_reader_watch watch;
	const char *script;
	char napping[16];
	uint32_t calls;
};

static enum xps_poll napper_poll(struct xps_reader *reader)
{
	struct napper *napper = XPS_CONTAINER_OF(reader, struct napper, base);
	const uint32_t call = napper->calls;

	if (call == strlen(napper->script))
		return XPS_POLL_WAIT;
	napper->napping[call] = reader->napping ? 'n' : '-';
	if (napper->script[call] != '.') {
		xps_batch_begin(reader);
		xps_batch_end(reader);
	}
	__atomic_store_n(&napper->calls, call + 1, __ATOMIC_RELEASE);
	return napper->script[call] == 'A' ? XPS_POLL_AGAIN : XPS_POLL_WAIT;
}

static void napper_close(struct xps_reader *reader)
{
	(void)reader;
}

static void attach_napper(struct xps_stream *stream, struct napper *napper, const char *script)
{
	static const struct xps_reader_ops ops = { .name = "napper", .poll = napper_poll, .close = napper_close };

	*napper = (struct napper){ .script = script };
	napper->base = (struct xps_reader){ .ops = &ops, .watches = &napper->watch, .n_watches = 1 };
	napper->watch.watch.fd = eventfd(1, EFD_NONBLOCK | EFD_CLOEXEC);
	CHECK_EQ(xps_reader_attach_to(stream, 0, &napper->base), 0);
}

/* When all of the script has been called. */
static bool napped_as(struct napper *napper, const char *napping)
{
	AWAIT(__atomic_load_n(&napper->calls, __ATOMIC_ACQUIRE) == strlen(napper->script));
	return !strcmp(napper->napping, napping);
}

static void test_naps_end_when_two_brought_nothing(void)
{
	struct {
		const char *script, *napping;
	} cases[] = {
		{ "PP.P..P", "--nnnn-" },
		/* whoever found something, and nothing when called again at once, did find something */
		{ "PPA.A...P", "--nnnnnn-" },
	};

	for (size_t i = 0; i < XPS_ARRAY_LEN(cases); i++) {
		struct xps_stream_config config = config_of(4);
		struct xps_pool *pool = new_pool(1);
		struct napper napper;
		struct xps_stream *stream;

		config.nap_ns = 200 * 1000 * 1000; /* long enough for the first two calls to come within two */
		stream = new_stream(pool, &config, 1);
		attach_napper(stream, &napper, cases[i].script);
		CHECK(napped_as(&napper, cases[i].napping));
		xps_stream_free(stream);
		close(napper.watch.watch.fd);
		xps_pool_free(pool);
	}
}

static void test_naps_go_on_in_vain_among_others_that_find_something(void)
{
	struct xps_stream_config config = config_of(4);
	struct xps_pool *pool = new_pool(1);
	struct napper busy, idle;
	struct xps_stream *stream;

	config.nap_ns = 200 * 1000 * 1000;
	stream = new_stream(pool, &config, 1);
	attach_napper(stream, &busy, "PPPPPPPPPPPP");
	attach_napper(stream, &idle, "PP......P");
	CHECK(napped_as(&idle, "--nnnnnnn"));
	CHECK(napped_as(&busy, "--nnnnnnnnnn"));
	xps_stream_free(stream);
	close(busy.watch.watch.fd);
	close(idle.watch.watch.fd);
	xps_pool_free(pool);
}

/*
 * Two streams of one worker and a thread that takes the heaps of both. Each reader has a heap whenever it is called. The
 * second of a nap takes so long that somebody who was woken for the heap of the first would be seen.
 */
struct pair {
	struct xps_stream *streams[2];
	struct xps_merge *merge;
	struct pair_reader {
		struct xps_reader base;
		struct xps_reader_watch watch;
		struct pair *pair;
		uint64_t cnt;
	} readers[2];

	uint32_t calls; /* of both while they nap; even: a nap begins */
	bool was_asleep;
	uint32_t wakes_before;

	/* atomic */
	uint32_t wakes; /* times that the thread had waited and did not any more */
	bool asleep;    /* it waits, or is just about to */
	uint32_t checks, early;
	bool over;
};

static void look_at_sleeper(struct pair *pair)
{
	const struct timespec long_enough = { .tv_nsec = 20 * 1000 * 1000 };

	if (pair->calls++ % 2 == 0) {
		pair->wakes_before = __atomic_load_n(&pair->wakes, __ATOMIC_SEQ_CST);
		pair->was_asleep = __atomic_load_n(&pair->asleep, __ATOMIC_SEQ_CST);
		return;
	}
	nanosleep(&long_enough, NULL);
	if (!pair->was_asleep)
		return;
	if (__atomic_load_n(&pair->wakes, __ATOMIC_SEQ_CST) != pair->wakes_before)
		__atomic_fetch_add(&pair->early, 1, __ATOMIC_SEQ_CST);
	__atomic_fetch_add(&pair->checks, 1, __ATOMIC_SEQ_CST);
}

static enum xps_poll pair_poll(struct xps_reader *reader)
{
	struct pair_reader *r = XPS_CONTAINER_OF(reader, struct pair_reader, base);
	const struct spec spec = { .cnt = r->cnt++, .heap_length = HEAP_BYTES, .length = HEAP_BYTES };
	uint8_t *data = new_packet(&spec);
	const struct xps_view view = { .data = data, .length = (uint32_t)spec_size(&spec) };

	if (reader->napping)
		look_at_sleeper(r->pair);
	xps_batch_begin(reader);
	xps_batch_push(reader, &view, 1);
	xps_batch_end(reader);
	free(data);
	return XPS_POLL_WAIT;
}

static void *take_from_both(void *argument)
{
	struct pair *pair = argument;
	struct xps_heap *heap;

	while (!__atomic_load_n(&pair->over, __ATOMIC_SEQ_CST)) {
		int i = xps_merge_next(pair->merge, 0);

		if (i < 0) {
			__atomic_store_n(&pair->asleep, true, __ATOMIC_SEQ_CST);
			i = xps_merge_next(pair->merge, DEADLINE_MS);
			__atomic_fetch_add(&pair->wakes, 1, __ATOMIC_SEQ_CST);
			__atomic_store_n(&pair->asleep, false, __ATOMIC_SEQ_CST);
		}
		CHECK(i >= 0);
		if (xps_stream_pop(pair->streams[i], &heap, 1, 0) == 1)
			xps_heap_free(heap);
	}
	return NULL;
}

static void test_who_takes_the_heaps_of_many_is_woken_once_a_nap(void)
{
	static const struct xps_reader_ops ops = { .name = "pair", .poll = pair_poll, .close = napper_close };
	struct xps_stream_config config = config_of(64);
	struct xps_pool *pool = new_pool(1);
	struct pair pair = { .calls = 0 };
	struct xps_fail fail = { 0 };
	pthread_t user;

	config.nap_ns = 100 * 1000 * 1000;
	for (int i = 0; i < 2; i++)
		pair.streams[i] = new_stream(pool, &config, 1);
	pair.merge = xps_merge_new(pair.streams, 2, &fail);
	CHECK(pair.merge);
	user = start(take_from_both, &pair);
	for (int i = 0; i < 2; i++) {
		struct pair_reader *r = &pair.readers[i];

		r->pair = &pair;
		r->base = (struct xps_reader){ .ops = &ops, .watches = &r->watch, .n_watches = 1 };
		r->watch.watch.fd = eventfd(1, EFD_NONBLOCK | EFD_CLOEXEC);
		CHECK_EQ(xps_reader_attach_to(pair.streams[i], 0, &r->base), 0);
	}
	AWAIT(__atomic_load_n(&pair.checks, __ATOMIC_SEQ_CST) >= 5);
	__atomic_store_n(&pair.over, true, __ATOMIC_SEQ_CST);
	join(user);
	CHECK_EQ(__atomic_load_n(&pair.early, __ATOMIC_SEQ_CST), 0);
	xps_merge_free(pair.merge);
	for (int i = 0; i < 2; i++) {
		xps_stream_free(pair.streams[i]);
		close(pair.readers[i].watch.watch.fd);
	}
	xps_pool_free(pool);
}

static void test_ends_of_all_lanes_at_once_are_one_end(void)
{
	const struct xps_stream_config config = config_of(8);
	struct xps_pool *pool = new_pool(LANES);

	for (int round = 0; round < 50; round++) {
		struct xps_stream *stream = new_stream(pool, &config, LANES);
		struct feed *feeds[LANES];
		struct xps_heap *heap;

		for (uint32_t i = 0; i < LANES; i++)
			feeds[i] = attach(stream, i, new_feed(i, 1, HEAP_BYTES, round % 2 ? ENDS : STOPS));
		for (int i = 0; i < LANES; i++)
			open_feed(feeds[i]);
		while (xps_stream_pop(stream, &heap, 1, DEADLINE_MS) == 1)
			xps_heap_free(heap);
		check_ended(stream);
		xps_stream_free(stream);
		for (int i = 0; i < LANES; i++) {
			CHECK(closed(feeds[i]));
			free_feed(feeds[i]);
		}
	}
	xps_pool_free(pool);
}

struct popped {
	struct xps_stream *stream;
	uint64_t heaps;
};

static void *pop_until_end(void *argument)
{
	struct popped *popped = argument;
	struct xps_heap *heaps[7];
	int n;

	while ((n = xps_stream_pop(popped->stream, heaps, 7, DEADLINE_MS)) > 0) {
		popped->heaps += (uint64_t)n;
		for (int i = 0; i < n; i++)
			xps_heap_free(heaps[i]);
	}
	CHECK_EQ(n, -EPIPE);
	return NULL;
}

static void *stop(void *stream)
{
	xps_stream_stop(stream);
	CHECK(xps_stream_stopped(stream));
	return NULL;
}

static void test_stop_while_lanes_end_returns_and_accounts_for_every_heap_and_packet(void)
{
	enum { STOPPERS = 2 };
	struct xps_pool *pool = new_pool(LANES);

	for (int round = 0; round < 60; round++) {
		const struct xps_stream_config config = config_of(1 + (uint64_t)round % 9);
		struct xps_stream *stream = new_stream(pool, &config, LANES);
		struct popped popped = { .stream = stream };
		pthread_t user = start(pop_until_end, &popped);
		uint64_t stats[XPS_N_STATS], packets = 0;
		struct feed *feeds[LANES];

		/* The more rounds the later the first lane ends. */
		for (uint32_t i = 0; i < LANES; i++)
			feeds[i] = attach(stream, i,
					  new_feed(i * STRIDE, i ? 3000 : (uint64_t)round * 5, HEAP_BYTES, STOPS));
		for (int i = 0; i < LANES; i++)
			open_feed(feeds[i]);
		if (round % 3)
			AWAIT(closed(feeds[round % LANES]));
		run_together(STOPPERS, stop, stream);
		join(user);
		for (int i = 0; i < LANES; i++) {
			CHECK(closed(feeds[i]));
			packets += handed(feeds[i]);
			free_feed(feeds[i]);
		}
		xps_stream_stats(stream, stats);
		CHECK_EQ(stats[XPS_STAT_HEAPS],
			 popped.heaps + stats[XPS_STAT_HEAPS_DROPPED_STOP] + stats[XPS_STAT_HEAPS_DISCARDED]);
		CHECK_EQ(stats[XPS_STAT_PACKETS] + stats[XPS_STAT_AFTER_STOP], packets);
		xps_stream_free(stream);
	}
	xps_pool_free(pool);
}

static void test_pool_that_is_stopped_stops_every_lane_blocked_or_not(void)
{
	for (int round = 0; round < 10; round++) {
		const struct xps_stream_config config = config_of(round % 2 ? 1 : 10000);
		struct xps_pool *pool = new_pool(LANES);
		struct xps_stream *stream = new_stream(pool, &config, LANES);
		struct feed *feeds[LANES];
		struct xps_heap *heap;

		for (uint32_t i = 0; i < LANES; i++)
			feeds[i] = feed_lane(stream, i, new_feed(i * STRIDE, 1000, HEAP_BYTES, STAYS));
		if (round % 2)
			AWAIT(stat_of(stream, XPS_STAT_WORKER_BLOCKED) == LANES);
		xps_pool_stop(pool);
		for (int i = 0; i < LANES; i++)
			CHECK(closed(feeds[i]));
		while (xps_stream_pop(stream, &heap, 1, DEADLINE_MS) == 1)
			xps_heap_free(heap);
		check_ended(stream);
		xps_stream_free(stream);
		for (int i = 0; i < LANES; i++)
			free_feed(feeds[i]);
		xps_pool_free(pool);
	}
}

/* ---------------------------------------------------------------- lanes and readers that come and go */

static void test_lanes_that_cannot_be_are_refused(void)
{
	const struct xps_stream_config config = config_of(1);
	struct xps_pool *pool = new_pool(2);
	struct xps_stream *stream = new_stream(pool, &config, 1);
	struct feed *feed = new_feed(0, 0, HEAP_BYTES, STAYS);

	CHECK_EQ(xps_stream_want_lanes(stream, 65), -EINVAL);
	CHECK_EQ(xps_stream_want_lanes(stream, 2), 0);
	CHECK_EQ(xps_stream_want_lanes(stream, 1), 0); /* it has them */
	xps_stream_stop(stream);
	CHECK_EQ(xps_stream_want_lanes(stream, 2), 0);
	CHECK_EQ(xps_stream_want_lanes(stream, 3), -EPIPE);
	CHECK_EQ(xps_reader_attach_to(stream, 1, &feed->base), -EPIPE);
	xps_stream_free(stream);

	stream = new_stream(pool, &config, 1);
	xps_pool_stop(pool);
	CHECK_EQ(xps_stream_want_lanes(stream, 2), -EPIPE);
	CHECK_EQ(xps_reader_attach_to(stream, 1, &feed->base), -EPIPE);
	xps_stream_free(stream);
	free_feed(feed);
	xps_pool_free(pool);
}

struct wish {
	struct xps_stream *stream;
	int result;
};

static void *want_lanes(void *argument)
{
	struct wish *wish = argument;

	wish->result = xps_stream_want_lanes(wish->stream, LANES);
	return NULL;
}

static void test_lanes_may_be_wanted_by_several_threads_and_while_the_stream_is_stopped(void)
{
	const struct xps_stream_config config = config_of(1);
	struct xps_pool *pool = new_pool(2);

	for (int round = 0; round < 50; round++) {
		struct xps_stream *stream = new_stream(pool, &config, 1);
		struct wish wishes[2] = { { .stream = stream }, { .stream = stream } };
		pthread_t threads[3] = { start(want_lanes, &wishes[0]), start(want_lanes, &wishes[1]) };

		threads[2] = start(stop, stream);
		for (int i = 0; i < 3; i++)
			join(threads[i]);
		for (int i = 0; i < 2; i++)
			CHECK(wishes[i].result == 0 || wishes[i].result == -EPIPE);
		check_ended(stream);
		xps_stream_free(stream);
	}
	xps_pool_free(pool);
}

static void test_reader_that_is_detached_is_closed_and_the_others_go_on(void)
{
	const struct xps_stream_config config = config_of(64);
	struct xps_pool *pool = new_pool(2);
	struct xps_stream *stream = new_stream(pool, &config, 2);
	struct feed *gone = feed_lane(stream, 1, new_feed(0, 10, HEAP_BYTES, STAYS));
	struct feed *stays = attach(stream, 1, new_feed(10, 10, HEAP_BYTES, STAYS));
	uint64_t next[LANES] = { 0 };

	pop_in_order(stream, 10, next);
	xps_reader_detach(stream, 1, &gone->base);
	CHECK(closed(gone));
	CHECK(!closed(stays));
	xps_reader_detach(stream, 1, &gone->base); /* it is not there any more */
	open_feed(stays);
	pop_in_order(stream, 10, next);
	xps_stream_stop(stream);
	CHECK(closed(stays));
	xps_reader_detach(stream, 1, &stays->base);
	CHECK_EQ(stat_of(stream, XPS_STAT_PACKETS), 20);
	xps_stream_free(stream);
	free_feed(gone);
	free_feed(stays);
	xps_pool_free(pool);
}

/* ---------------------------------------------------------------- statistics while they run */

struct watcher {
	struct xps_stream *stream;
	bool enough; /* atomic */
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
		memcpy(last, stats, sizeof(last));
		sched_yield();
	}
	return NULL;
}

static void test_statistics_of_all_lanes_are_one_snapshot(void)
{
	enum { N = 3000 };
	const struct xps_stream_config config = config_of(16);
	struct xps_pool *pool = new_pool(LANES);
	struct xps_stream *stream = new_stream(pool, &config, LANES);
	struct watcher watcher = { .stream = stream };
	pthread_t thread = start(watch_stats, &watcher);
	struct feed *feeds[LANES];
	uint64_t next[LANES] = { 0 };

	for (uint32_t i = 0; i < LANES; i++)
		feeds[i] = feed_lane(stream, i, new_feed(i * STRIDE, N, HEAP_BYTES, STAYS));
	pop_in_order(stream, LANES * N, next);
	__atomic_store_n(&watcher.enough, true, __ATOMIC_RELEASE);
	join(thread);
	xps_stream_stop(stream);
	CHECK_EQ(stat_of(stream, XPS_STAT_PACKETS), LANES * N);
	xps_stream_free(stream);
	for (int i = 0; i < LANES; i++)
		free_feed(feeds[i]);
	xps_pool_free(pool);
}

int main(void)
{
	allocator = xps_allocator_new();
	quiet = xps_log_new();

	test_heaps_of_all_lanes_come_out_whole_and_once_and_counted();
	test_each_lane_has_a_thread_of_its_own_as_long_as_there_are_any();
	test_lanes_share_threads_when_these_are_fewer();
	test_packets_of_one_heap_in_two_lanes_do_not_meet();
	test_full_ring_blocks_every_lane_and_room_lets_every_lane_go_on();

	test_stop_item_in_any_lane_ends_all_and_flushes_what_they_have();
	test_end_in_one_lane_waits_for_the_heaps_of_a_blocked_one();
	test_packets_in_the_hands_of_readers_of_the_same_lane_are_counted_too();
	test_source_that_fails_is_told_by_the_first_who_says_why();
	test_source_that_fails_after_the_end_is_not_told();
	test_news_of_a_source_are_looked_at_though_the_lane_is_blocked();
	test_naps_end_when_two_brought_nothing();
	test_naps_go_on_in_vain_among_others_that_find_something();
	test_who_takes_the_heaps_of_many_is_woken_once_a_nap();
	test_ends_of_all_lanes_at_once_are_one_end();
	test_stop_while_lanes_end_returns_and_accounts_for_every_heap_and_packet();
	test_pool_that_is_stopped_stops_every_lane_blocked_or_not();

	test_lanes_that_cannot_be_are_refused();
	test_lanes_may_be_wanted_by_several_threads_and_while_the_stream_is_stopped();
	test_reader_that_is_detached_is_closed_and_the_others_go_on();

	test_statistics_of_all_lanes_are_one_snapshot();

	xps_log_free(quiet);
	xps_allocator_free(allocator);
	return 0;
}
