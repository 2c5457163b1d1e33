// SPDX-License-Identifier: Apache-2.0
/* The heaps of a stream under construction: which one goes when, what is delivered and what is counted. */
#include <errno.h>

#include "check.h"
#include "memory.h"
#include "packets.h"
#include "window.h"

static struct xps_allocator *allocator;

/* Every test starts from the defaults of a stream and changes what it is about. */
static struct xps_window_config config_of(uint64_t max_heaps)
{
	return (struct xps_window_config){
		.rules = { .allocator = allocator, .max_heap_size = 1 << 20 },
		.max_heaps = max_heaps,
		.substreams = 1,
		.stop_on_stop_item = true,
		.allow_unsized_heaps = true,
	};
}

static struct xps_window *open_window(const struct xps_window_config *config)
{
	struct xps_window *window = malloc(sizeof(*window));

	CHECK_EQ(xps_window_init(window, config), 0);
	return window;
}

static void close_window(struct xps_window *window)
{
	xps_window_fini(window);
	free(window);
}

static void push(struct xps_window *window, const struct spec *spec)
{
	uint8_t *data = new_packet(spec);
	const struct xps_view view = { .data = data, .length = (uint32_t)spec_size(spec) };

	CHECK_EQ(xps_window_push(window, &view, 1, XPS_MAX_CREDIT), 1);
	free(data);
}

/* One half of heap `cnt`, which is 20 bytes long. */
static void push_half(struct xps_window *window, uint64_t cnt, uint64_t half)
{
	push(window, &(struct spec){ .cnt = cnt, .heap_length = 20, .offset = 10 * half, .length = 10 });
}

static void push_whole(struct xps_window *window, uint64_t cnt)
{
	push(window, &(struct spec){ .cnt = cnt, .heap_length = 10, .length = 10 });
}

static void push_stop(struct xps_window *window, uint64_t cnt)
{
	const uint64_t stop = immediate(48, 6, 2);

	push(window, &(struct spec){ .cnt = cnt, .items = &stop, .n_items = 1 });
}

/* Take the oldest heap out, which must be this one. */
static void take(struct xps_window *window, uint64_t cnt, bool whole)
{
	struct xps_heap *heap = window->out[0];

	CHECK(window->n_out > 0);
	CHECK_EQ(heap->cnt, cnt);
	CHECK_EQ(!!(heap->flags & XPS_HEAP_CONTIGUOUS), whole);
	for (uint64_t i = 0; i < heap->size; i++)
		CHECK_EQ(heap->payload[i], pattern(cnt, i));
	xps_heap_free(heap);
	window->n_out--;
	memmove(window->out, window->out + 1, window->n_out * sizeof(*window->out));
}

static void take_all(struct xps_window *window)
{
	while (window->n_out)
		xps_heap_free(window->out[--window->n_out]);
}

/* ---------------------------------------------------------------- limits */

static void test_windows_that_cannot_be_are_refused(void)
{
	const uint64_t bad[][2] = {
		{ 0, 1 }, { 1, 0 }, { (1 << 24) + 1, 1 }, { 4097, 4096 }, { UINT64_MAX, UINT64_MAX }
	};
	struct xps_window window;

	for (unsigned i = 0; i < XPS_ARRAY_LEN(bad); i++) {
		struct xps_window_config config = config_of(bad[i][0]);

		config.substreams = bad[i][1];
		CHECK_EQ(xps_window_init(&window, &config), -EINVAL);
	}
}

/* ---------------------------------------------------------------- who goes */

static void test_heap_lives_for_max_heaps_further_heaps(void)
{
	for (uint64_t max_heaps = 1; max_heaps <= 5; max_heaps++) {
		const struct xps_window_config config = config_of(max_heaps);
		struct xps_window *window = open_window(&config);

		for (uint64_t cnt = 0; cnt < 20; cnt++) {
			push_half(window, cnt, 0);
			if (cnt < max_heaps)
				CHECK_EQ(window->n_out, 0);
			else
				take(window, cnt - max_heaps, false);
		}
		CHECK_EQ(window->stats[XPS_STAT_INCOMPLETE_HEAPS_EVICTED], 20 - max_heaps);
		CHECK_EQ(window->stats[XPS_STAT_HEAPS], 20 - max_heaps);
		close_window(window);
	}
}

static void test_whole_heaps_take_slots_too(void)
{
	const struct xps_window_config config = config_of(2);
	struct xps_window *window = open_window(&config);

	push_half(window, 0, 0);
	push_whole(window, 1);
	take(window, 1, true);
	/* One slot is free, but it is not its turn. */
	push_half(window, 2, 0);
	take(window, 0, false);
	CHECK_EQ(window->stats[XPS_STAT_SINGLE_PACKET_HEAPS], 1);
	close_window(window);
}

static void test_heap_is_completed_by_the_last_heap_before_its_eviction(void)
{
	const struct xps_window_config config = config_of(3);
	struct xps_window *window = open_window(&config);

	for (uint64_t cnt = 0; cnt < 3; cnt++)
		push_half(window, cnt, 0);
	push_half(window, 0, 1);
	take(window, 0, true);
	push_half(window, 3, 0); /* takes the slot of heap 0, evicts nobody */
	CHECK_EQ(window->n_out, 0);
	close_window(window);
}

static void test_heap_that_was_evicted_is_new_when_it_comes_again(void)
{
	const struct xps_window_config config = config_of(1);
	struct xps_window *window = open_window(&config);

	push_half(window, 0, 0);
	push_half(window, 1, 0);
	take(window, 0, false);
	push_half(window, 0, 1); /* the rest of a heap that is gone */
	CHECK_EQ(window->stats[XPS_STAT_LATE], 1);
	CHECK_EQ(window->n_out, 0);
	push_half(window, 0, 0);
	take(window, 1, false);
	push_half(window, 0, 1);
	take(window, 0, true);
	close_window(window);
}

static void test_heap_that_was_completed_is_new_when_it_comes_again(void)
{
	const struct xps_window_config config = config_of(2);
	struct xps_window *window = open_window(&config);

	for (int i = 0; i < 2; i++) { /* the first one stays in the outbox */
		push_half(window, 5, 0);
		push_half(window, 5, 1);
	}
	CHECK_EQ(window->stats[XPS_STAT_BEHIND], 0);
	CHECK_EQ(window->n_out, 2);
	CHECK(window->out[0] != window->out[1]);
	take(window, 5, true);
	take(window, 5, true);
	close_window(window);
}

/* The second half of heap `cnt` comes when it is in no slot. */
static void check_is_late(struct xps_window *window, uint64_t cnt, bool late)
{
	const uint64_t before = window->stats[XPS_STAT_LATE];

	push_half(window, cnt, 1);
	CHECK_EQ(window->stats[XPS_STAT_LATE] - before, late);
	CHECK_EQ(window->n_out, 0);
}

static void test_packets_are_late_for_max_heaps_heaps_after_the_eviction(void)
{
	for (uint64_t max_heaps = 1; max_heaps <= 4; max_heaps++) {
		const struct xps_window_config config = config_of(max_heaps);
		struct xps_window *window = open_window(&config);

		for (uint64_t cnt = 0; cnt < 20; cnt++) {
			push_half(window, cnt, 0);
			take_all(window);
			for (uint64_t gone = 0; gone + max_heaps <= cnt; gone++)
				check_is_late(window, gone, cnt - gone < 2 * max_heaps);
			check_is_late(window, cnt + 1, false); /* it never began */
		}
		close_window(window);
	}
}

static void test_packets_of_a_heap_that_was_completed_are_late(void)
{
	const struct xps_window_config config = config_of(2);
	struct xps_window *window = open_window(&config);

	push_half(window, 5, 0);
	push_half(window, 5, 1);
	push_whole(window, 6);
	take_all(window);
	check_is_late(window, 5, true);
	check_is_late(window, 6, true);
	check_is_late(window, 7, false);
	CHECK_EQ(window->stats[XPS_STAT_GAP], 1);
	close_window(window);
}

static void test_each_substream_remembers_its_own_heaps(void)
{
	struct xps_window_config config = config_of(1);
	struct xps_window *window;

	config.substreams = 2;
	window = open_window(&config);
	push_whole(window, 10);
	for (uint64_t cnt = 11; cnt < 31; cnt += 2)
		push_whole(window, cnt);
	take_all(window);
	check_is_late(window, 10, true);
	check_is_late(window, 11, false); /* long ago */
	close_window(window);
}

static void test_what_is_remembered_is_bounded(void)
{
	const struct xps_window_config config = config_of(XPS_MAX_RECENT);
	struct xps_window *window = open_window(&config);

	for (uint64_t cnt = 0; cnt <= XPS_MAX_RECENT; cnt++)
		push_whole(window, cnt);
	take_all(window);
	check_is_late(window, 0, false);
	check_is_late(window, 1, true);
	close_window(window);
}

static void test_out_of_order_any_packet_opens_a_heap(void)
{
	struct xps_window_config config = config_of(1);
	struct xps_window *window;

	config.rules.allow_out_of_order = true;
	window = open_window(&config);
	push_half(window, 0, 1);
	CHECK_EQ(window->stats[XPS_STAT_GAP], 0);
	push_half(window, 0, 0);
	take(window, 0, true);
	close_window(window);
}

static void test_substreams_do_not_evict_each_other(void)
{
	struct xps_window_config config = config_of(1);
	struct xps_window *window;

	config.substreams = 3;
	window = open_window(&config);
	push_half(window, 30, 0);
	push_half(window, 31, 0);
	push_half(window, 32, 0);
	CHECK_EQ(window->n_out, 0);
	push_half(window, 34, 0);
	take(window, 31, false);
	push_whole(window, 35);
	take(window, 32, false);
	take(window, 35, true);
	push_half(window, 30, 1);
	take(window, 30, true);
	CHECK_EQ(window->n_out, 0);
	close_window(window);
}

static void test_heap_of_one_packet_is_not_mixed_with_another_of_its_name(void)
{
	const struct xps_window_config config = config_of(2);
	struct xps_window *window = open_window(&config);

	push_half(window, 7, 0);
	push_whole(window, 7);
	take(window, 7, true);
	push_half(window, 7, 1);
	take(window, 7, true);
	CHECK_EQ(window->n_out, 0);
	close_window(window);
}

static void test_of_two_heaps_of_one_name_the_younger_gets_the_packets(void)
{
	/* Whole as to its bytes, but an item lies beyond its end: it stays. */
	const uint64_t beyond = addressed(48, 0x1000, 100);
	const struct xps_window_config config = config_of(2);
	struct xps_window *window = open_window(&config);

	push_half(window, 7, 0);
	push(window, &(struct spec){ .cnt = 7, .heap_length = 10, .length = 10, .items = &beyond, .n_items = 1 });
	CHECK_EQ(window->n_out, 0);
	push_half(window, 7, 1);
	CHECK_EQ(window->stats[XPS_STAT_LENGTH_MISMATCH], 1);
	push_half(window, 8, 0);
	take(window, 7, false); /* the older of the two went first */
	push_half(window, 9, 0);
	take(window, 7, false);
	close_window(window);
}

static void test_search_does_not_depend_on_how_many_heaps_live(void)
{
	const uint64_t n = 1 << 16;
	const struct xps_window_config config = config_of(n);
	struct xps_window *window = open_window(&config);

	for (uint64_t cnt = 0; cnt < n; cnt++)
		push_half(window, cnt * 5, 0);
	CHECK_EQ(window->n_out, 0);
	memset(window->stats, 0, sizeof(window->stats));
	for (uint64_t cnt = 0; cnt < n; cnt++) {
		push_half(window, cnt * 5, 1);
		take(window, cnt * 5, true);
	}
	CHECK(window->stats[XPS_STAT_SEARCH_DIST] >= n);
	CHECK(window->stats[XPS_STAT_SEARCH_DIST] < 3 * n);
	close_window(window);
}

/* ---------------------------------------------------------------- what is refused before it can evict */

static void test_refused_packets_open_no_heap_and_evict_none(void)
{
	const struct {
		struct spec spec;
		int stat;
	} cases[] = {
		{ { .cnt = 1, .heap_length = -1, .length = 10 }, XPS_STAT_UNSIZED },
		{ { .cnt = 1, .heap_length = (1 << 20) + 1, .length = 10 }, XPS_STAT_TOO_LARGE },
		{ { .cnt = 1, .heap_length = 100000000000000, .length = 10 }, XPS_STAT_TOO_LARGE },
		{ { .cnt = 1, .heap_length = 20, .offset = 10, .length = 10 }, XPS_STAT_GAP },
		{ { .cnt = 1, .heap_length = 9, .length = 10 }, XPS_STAT_OFFSET_OVERFLOW },
	};
	struct xps_window_config config = config_of(1);
	struct xps_window *window;

	config.allow_unsized_heaps = false;
	window = open_window(&config);
	push_half(window, 0, 0);
	for (unsigned i = 0; i < XPS_ARRAY_LEN(cases); i++) {
		push(window, &cases[i].spec);
		CHECK_EQ(window->stats[cases[i].stat], i == 2 ? 2 : 1);
		CHECK_EQ(window->n_out, 0);
	}
	CHECK_EQ(window->stats[XPS_STAT_PACKETS], 5); /* the last one was not decoded */
	push_half(window, 0, 1);
	take(window, 0, true);
	close_window(window);
}

static void test_unsized_part_beyond_the_limit_is_refused(void)
{
	struct xps_window_config config = config_of(1);
	struct xps_window *window;

	config.rules.allow_out_of_order = true;
	window = open_window(&config);
	push(window, &(struct spec){ .heap_length = -1, .offset = INT64_C(1) << 47, .length = 10 });
	CHECK_EQ(window->stats[XPS_STAT_TOO_LARGE], 1);
	push(window, &(struct spec){ .heap_length = -1, .offset = (1 << 20) - 10, .length = 10 });
	CHECK_EQ(window->stats[XPS_STAT_TOO_LARGE], 1);
	close_window(window);
}

static void test_view_must_be_exactly_the_packet(void)
{
	const struct spec spec = { .cnt = 3, .heap_length = 10, .length = 10 };
	const struct xps_window_config config = config_of(1);
	struct xps_window *window = open_window(&config);
	uint8_t data[128] = { 0 };
	const uint32_t size = (uint32_t)spec_size(&spec);

	put_packet(data, &spec);
	for (uint32_t first = size - spec.length; first <= size; first++) {
		for (uint32_t rest = 0; rest <= 12; rest++) {
			const struct xps_view more = { .data = data + first, .length = rest };
			const struct xps_view view = { .data = data, .length = first, .n_more = 1, .more = &more };

			memset(window->stats, 0, sizeof(window->stats));
			CHECK_EQ(xps_window_push(window, &view, 1, XPS_MAX_CREDIT), 1);
			CHECK_EQ(window->stats[XPS_STAT_SHORT_PACKET], first + rest < size);
			CHECK_EQ(window->stats[XPS_STAT_LONG_PACKET], first + rest > size);
			CHECK_EQ(window->stats[XPS_STAT_PACKETS], first + rest == size);
			if (first + rest == size)
				take(window, 3, true);
		}
	}
	close_window(window);
}

static void test_news_name_the_last_refusal(void)
{
	const struct xps_window_config config = config_of(1);
	struct xps_window *window = open_window(&config);

	push_half(window, 3, 0);
	CHECK_EQ(window->news.refused_stat, 0);
	push_half(window, 3, 0);
	CHECK_EQ(window->news.refused_stat, XPS_STAT_BEHIND);
	CHECK_EQ(window->news.refused_cnt, 3);
	push(window, &(struct spec){ .heap_length = 1, .length = 2 });
	CHECK_EQ(window->news.bad_stat, XPS_STAT_OFFSET_OVERFLOW);
	close_window(window);
}

/* ---------------------------------------------------------------- incomplete heaps */

static void test_contiguous_only_discards_incomplete_heaps_and_counts_them(void)
{
	struct xps_window_config config = config_of(1);
	struct xps_window *window;

	config.contiguous_only = true;
	window = open_window(&config);
	push_half(window, 0, 0);
	push_half(window, 1, 0);
	CHECK_EQ(window->n_out, 0);
	CHECK_EQ(window->stats[XPS_STAT_HEAPS_DISCARDED], 1);
	CHECK_EQ(window->stats[XPS_STAT_HEAPS], 1);
	CHECK_EQ(window->news.discarded_cnt, 0);
	CHECK_EQ(window->news.discarded_received, 10);
	CHECK_EQ(window->news.discarded_expected, 20);
	push_half(window, 1, 1);
	take(window, 1, true);
	close_window(window);
}

static void test_contiguous_only_keeps_unsized_heaps_without_a_gap(void)
{
	struct xps_window_config config = config_of(1);
	struct xps_window *window;

	config.contiguous_only = true;
	window = open_window(&config);
	push(window, &(struct spec){ .cnt = 4, .heap_length = -1, .length = 10 });
	CHECK(xps_window_flush(window, XPS_MAX_CREDIT));
	take(window, 4, true);
	CHECK_EQ(window->stats[XPS_STAT_INCOMPLETE_HEAPS_FLUSHED], 1);
	close_window(window);
}

/* ---------------------------------------------------------------- the end of a stream */

static void test_stop_item_ends_the_stream_and_its_heap_is_nobodys(void)
{
	const struct xps_window_config config = config_of(1);
	struct xps_window *window = open_window(&config);

	push_whole(window, 0);
	push_stop(window, 1);
	CHECK(window->ended);
	CHECK_EQ(window->stats[XPS_STAT_PACKETS], 2);
	CHECK_EQ(window->stats[XPS_STAT_HEAPS], 1);
	take(window, 0, true);
	CHECK_EQ(window->n_out, 0);
	close_window(window);
}

static void test_packets_after_the_stop_are_taken_and_counted(void)
{
	const struct xps_window_config config = config_of(1);
	const uint64_t stop = immediate(48, 6, 2);
	struct xps_window *window = open_window(&config);
	struct xps_view views[5];

	for (uint64_t i = 0; i < 5; i++) {
		const struct spec spec = { .cnt = i, .items = &stop, .n_items = i == 1 };

		views[i] = (struct xps_view){ .data = new_packet(&spec), .length = (uint32_t)spec_size(&spec) };
	}
	CHECK_EQ(xps_window_push(window, views, 5, XPS_MAX_CREDIT), 5);
	CHECK_EQ(window->stats[XPS_STAT_AFTER_STOP], 3);
	CHECK_EQ(window->stats[XPS_STAT_PACKETS], 2);
	CHECK_EQ(xps_window_push(window, views, 2, XPS_MAX_CREDIT), 2);
	CHECK_EQ(window->stats[XPS_STAT_AFTER_STOP], 5);
	CHECK_EQ(window->n_out, 1);
	take_all(window);
	for (int i = 0; i < 5; i++)
		free((void *)(uintptr_t)views[i].data);
	close_window(window);
}

static void test_packets_after_an_end_from_outside_need_no_room(void)
{
	const struct xps_window_config config = config_of(1);
	const struct spec spec = { .cnt = 1 };
	uint8_t *data = new_packet(&spec);
	const struct xps_view view = { .data = data, .length = (uint32_t)spec_size(&spec) };
	struct xps_window *window = open_window(&config);

	push_whole(window, 0);
	CHECK_EQ(xps_window_push(window, &view, 1, 0), 0); /* a heap is in the outbox, and there is no credit */
	window->ended = true;
	CHECK_EQ(xps_window_push(window, &view, 1, 0), 1);
	CHECK_EQ(window->stats[XPS_STAT_AFTER_STOP], 1);
	CHECK_EQ(window->stats[XPS_STAT_PACKETS], 1);
	take(window, 0, true);
	free(data);
	close_window(window);
}

static void test_stop_item_is_data_when_it_need_not_stop(void)
{
	struct xps_window_config config = config_of(1);
	struct xps_window *window;

	config.stop_on_stop_item = false;
	window = open_window(&config);
	push_stop(window, 1);
	CHECK(!window->ended);
	CHECK_EQ(window->n_out, 1);
	CHECK(window->out[0]->flags & XPS_HEAP_STOP);
	take(window, 1, true);
	push_whole(window, 2);
	take(window, 2, true);
	close_window(window);
}

static void test_stop_item_in_a_heap_with_more_to_come_ends_the_stream_at_once(void)
{
	const uint64_t stop = immediate(48, 6, 2);
	const struct xps_window_config config = config_of(2);
	struct xps_window *window = open_window(&config);

	push(window, &(struct spec){ .cnt = 1, .heap_length = 20, .length = 10, .items = &stop, .n_items = 1 });
	CHECK(window->ended);
	push_half(window, 1, 1);
	CHECK_EQ(window->stats[XPS_STAT_AFTER_STOP], 1);
	CHECK(xps_window_flush(window, XPS_MAX_CREDIT));
	take(window, 1, false);
	close_window(window);
}

/* Nine heaps in three substreams; the second has gone round its slots. */
static struct xps_window *window_to_flush(void)
{
	struct xps_window_config config = config_of(4);
	struct xps_window *window;

	config.substreams = 3;
	window = open_window(&config);
	for (uint64_t cnt = 0; cnt < 6; cnt++)
		push_half(window, cnt * 3 + 1, 0);
	take(window, 1, false);
	take(window, 4, false);
	push_half(window, 5, 0);
	for (uint64_t cnt = 0; cnt < 4; cnt++)
		push_half(window, cnt * 3, 0);
	return window;
}

static const uint64_t flush_order[9] = { 0, 3, 6, 9, 7, 10, 13, 16, 5 };

static void test_flush_empties_each_substream_from_the_oldest(void)
{
	struct xps_window *window = window_to_flush();

	CHECK(xps_window_flush(window, XPS_MAX_CREDIT));
	for (unsigned i = 0; i < 9; i++)
		take(window, flush_order[i], false);
	CHECK_EQ(window->n_out, 0);
	CHECK_EQ(window->stats[XPS_STAT_INCOMPLETE_HEAPS_FLUSHED], 9);
	CHECK_EQ(window->stats[XPS_STAT_INCOMPLETE_HEAPS_EVICTED], 2);
	CHECK_EQ(window->stats[XPS_STAT_HEAPS], 11);
	CHECK(xps_window_flush(window, XPS_MAX_CREDIT));
	CHECK_EQ(window->n_out, 0);
	close_window(window);
}

static void test_flush_goes_on_where_it_stopped(void)
{
	for (uint32_t credit = 0; credit < 10; credit++) {
		struct xps_window *window = window_to_flush();
		unsigned n = 0;
		bool done;

		do {
			done = xps_window_flush(window, credit);
			CHECK(window->n_out <= credit + 1);
			CHECK(done || window->n_out > credit);
			while (window->n_out)
				take(window, flush_order[n++], false);
		} while (!done);
		CHECK_EQ(n, 9);
		CHECK_EQ(window->stats[XPS_STAT_INCOMPLETE_HEAPS_FLUSHED], 9);
		close_window(window);
	}
}

/* ---------------------------------------------------------------- credit */

enum { MANY = 1000 };

/* Heaps of half, whole, half, whole ... so that with one slot every whole one puts out two. */
static void make_many(struct xps_view views[MANY])
{
	for (uint64_t i = 0; i < MANY; i++) {
		const struct spec spec = { .cnt = i, .heap_length = i % 2 ? 10 : 20, .length = 10 };

		views[i] = (struct xps_view){ .data = new_packet(&spec), .length = (uint32_t)spec_size(&spec) };
	}
}

static void free_many(struct xps_view views[MANY])
{
	for (int i = 0; i < MANY; i++)
		free((void *)(uintptr_t)views[i].data);
}

static void test_outbox_has_room_for_two_heaps_beyond_the_highest_credit(void)
{
	const struct xps_window_config config = config_of(1);
	struct xps_window *window = open_window(&config);
	struct xps_view views[MANY];
	uint32_t taken = 0;

	make_many(views);
	/* 254 in the outbox after as many packets: the next but one puts out two more. */
	while (taken < MANY) {
		uint32_t n = xps_window_push(window, views + taken, MANY - taken, XPS_MAX_CREDIT);

		CHECK(n > 0);
		taken += n;
		CHECK(window->n_out <= XPS_OUTBOX_SIZE);
		CHECK(taken == MANY || window->n_out > XPS_MAX_CREDIT);
		take_all(window);
	}
	CHECK_EQ(window->stats[XPS_STAT_HEAPS], MANY);
	free_many(views);
	close_window(window);
}

static void test_packets_wait_for_credit_and_none_is_lost_or_taken_twice(void)
{
	const uint32_t credits[] = { 0, 1, 2, 7, 100, XPS_MAX_CREDIT };
	struct xps_view views[MANY];

	make_many(views);
	for (unsigned c = 0; c < XPS_ARRAY_LEN(credits); c++) {
		const struct xps_window_config config = config_of(1);
		struct xps_window *window = open_window(&config);
		uint64_t next = 0;

		for (uint32_t taken = 0; taken < MANY;) {
			taken += xps_window_push(window, views + taken, MANY - taken, credits[c]);
			CHECK(window->n_out <= credits[c] + 2);
			CHECK(taken == MANY || window->n_out > credits[c]);
			for (; window->n_out; next++)
				take(window, next, next % 2);
		}
		CHECK_EQ(next, MANY);
		CHECK_EQ(window->stats[XPS_STAT_PACKETS], MANY);
		close_window(window);
	}
	free_many(views);
}

static void test_full_outbox_takes_no_packet(void)
{
	const struct xps_window_config config = config_of(1);
	struct xps_window *window = open_window(&config);
	struct xps_view views[MANY];

	make_many(views);
	CHECK_EQ(xps_window_push(window, views, 2, 0), 2);
	CHECK_EQ(window->n_out, 2);
	CHECK_EQ(xps_window_push(window, views + 2, 1, 1), 0);
	CHECK_EQ(xps_window_push(window, views + 2, 1, 2), 1);
	CHECK_EQ(window->stats[XPS_STAT_PACKETS], 3);
	take_all(window);
	free_many(views);
	close_window(window);
}

static void test_window_frees_what_nobody_took(void)
{
	/* For the leak checker. */
	const struct xps_window_config config = config_of(4);
	struct xps_window *window = open_window(&config);

	for (uint64_t cnt = 0; cnt < 10; cnt++)
		push_half(window, cnt, 0);
	CHECK_EQ(window->n_out, 6);
	close_window(window);
}

int main(void)
{
	allocator = xps_allocator_new();

	test_windows_that_cannot_be_are_refused();
	test_heap_lives_for_max_heaps_further_heaps();
	test_whole_heaps_take_slots_too();
	test_heap_is_completed_by_the_last_heap_before_its_eviction();
	test_heap_that_was_evicted_is_new_when_it_comes_again();
	test_heap_that_was_completed_is_new_when_it_comes_again();
	test_packets_are_late_for_max_heaps_heaps_after_the_eviction();
	test_packets_of_a_heap_that_was_completed_are_late();
	test_each_substream_remembers_its_own_heaps();
	test_what_is_remembered_is_bounded();
	test_out_of_order_any_packet_opens_a_heap();
	test_substreams_do_not_evict_each_other();
	test_heap_of_one_packet_is_not_mixed_with_another_of_its_name();
	test_of_two_heaps_of_one_name_the_younger_gets_the_packets();
	test_search_does_not_depend_on_how_many_heaps_live();

	test_refused_packets_open_no_heap_and_evict_none();
	test_unsized_part_beyond_the_limit_is_refused();
	test_view_must_be_exactly_the_packet();
	test_news_name_the_last_refusal();

	test_contiguous_only_discards_incomplete_heaps_and_counts_them();
	test_contiguous_only_keeps_unsized_heaps_without_a_gap();

	test_stop_item_ends_the_stream_and_its_heap_is_nobodys();
	test_packets_after_the_stop_are_taken_and_counted();
	test_packets_after_an_end_from_outside_need_no_room();
	test_stop_item_is_data_when_it_need_not_stop();
	test_stop_item_in_a_heap_with_more_to_come_ends_the_stream_at_once();
	test_flush_empties_each_substream_from_the_oldest();
	test_flush_goes_on_where_it_stopped();

	test_outbox_has_room_for_two_heaps_beyond_the_highest_credit();
	test_packets_wait_for_credit_and_none_is_lost_or_taken_twice();
	test_full_outbox_takes_no_packet();
	test_window_frees_what_nobody_took();

	xps_allocator_free(allocator);
	return 0;
}
