// SPDX-License-Identifier: Apache-2.0
/* One heap that is put together from packets: which packets fit, which bytes are there, which items come out. */
#include <errno.h>
#include <time.h>

#include "check.h"
#include "heap.h"
#include "memory.h"
#include "packets.h"

static struct xps_allocator *allocator;

static struct xps_heap_rules rules_of(bool out_of_order)
{
	return (struct xps_heap_rules){
		.allocator = allocator,
		.max_heap_size = 1 << 20,
		.allow_out_of_order = out_of_order,
		.keep_payload_ranges = true,
	};
}

/* Add the packet; the first makes the heap. Returns what xps_heap_add() does. */
static int add(struct xps_heap **heap, const struct xps_heap_rules *rules, const struct spec *spec)
{
	uint8_t *data = new_packet(spec);
	const struct xps_view view = { .data = data, .length = (uint32_t)spec_size(spec) };
	struct xps_packet packet;
	int stat;

	CHECK_EQ(xps_packet_decode(&packet, data, view.length), 0);
	if (!*heap)
		*heap = xps_heap_new(&packet);
	CHECK(*heap);
	stat = xps_heap_add(*heap, rules, &packet, &view);
	free(data);
	return stat;
}

/* `length` bytes at `offset` of heap 5, which is `heap_length` long. */
static int add_part(struct xps_heap **heap, const struct xps_heap_rules *rules, int64_t heap_length, uint64_t offset,
		    uint64_t length)
{
	return add(heap, rules,
		   &(struct spec){ .cnt = 5, .heap_length = heap_length, .offset = offset, .length = length });
}

static void check_pattern(const struct xps_heap *heap, uint64_t from, uint64_t to)
{
	for (uint64_t i = from; i < to; i++)
		CHECK_EQ(heap->payload[i], pattern(heap->cnt, i));
}

/* Finish a heap that should be whole, compare all of it, and free it. */
static void check_whole(struct xps_heap *heap, const struct xps_heap_rules *rules, uint64_t size)
{
	xps_heap_finish(heap, rules);
	CHECK(heap->flags & XPS_HEAP_CONTIGUOUS);
	CHECK_EQ(heap->size, size);
	CHECK_EQ(heap->received, size);
	check_pattern(heap, 0, size);
	xps_heap_free(heap);
}

/* ---------------------------------------------------------------- in order */

static void test_packets_in_order_make_the_heap(void)
{
	const struct xps_heap_rules rules = rules_of(false);
	struct xps_heap *heap = NULL;

	CHECK_EQ(add_part(&heap, &rules, 300, 0, 100), 0);
	CHECK(!xps_heap_complete(heap));
	CHECK_EQ(add_part(&heap, &rules, 300, 100, 150), 0);
	CHECK(!xps_heap_complete(heap));
	CHECK_EQ(add_part(&heap, &rules, 300, 250, 50), 0);
	CHECK(xps_heap_complete(heap));
	CHECK_EQ(heap->cnt, 5);
	CHECK_EQ(heap->length, 300);
	check_whole(heap, &rules, 300);
}

static void test_packet_after_a_gap_is_refused_and_changes_nothing(void)
{
	const struct xps_heap_rules rules = rules_of(false);
	struct xps_heap *heap = NULL;

	CHECK_EQ(add_part(&heap, &rules, 300, 0, 100), 0);
	CHECK_EQ(add_part(&heap, &rules, 300, 101, 100), XPS_STAT_GAP);
	CHECK_EQ(heap->received, 100);
	CHECK_EQ(add_part(&heap, &rules, 300, 100, 200), 0);
	check_whole(heap, &rules, 300);
}

static void test_packet_that_went_by_is_refused_and_changes_nothing(void)
{
	const struct xps_heap_rules rules = rules_of(false);
	const uint8_t other[100] = { 0 };
	struct xps_heap *heap = NULL;

	CHECK_EQ(add_part(&heap, &rules, 300, 0, 100), 0);
	CHECK_EQ(add(&heap, &rules, &(struct spec){ .cnt = 5, .heap_length = 300, .length = 100, .payload = other }),
		 XPS_STAT_BEHIND);
	CHECK_EQ(add(&heap, &rules,
		     &(struct spec){ .cnt = 5, .heap_length = 300, .offset = 50, .length = 100, .payload = other }),
		 XPS_STAT_BEHIND);
	CHECK_EQ(add_part(&heap, &rules, 300, 100, 200), 0);
	check_whole(heap, &rules, 300);
}

static void test_empty_heap_is_whole(void)
{
	const struct xps_heap_rules rules = rules_of(false);
	struct xps_heap *heap = NULL;

	CHECK_EQ(add_part(&heap, &rules, 0, 0, 0), 0);
	CHECK(xps_heap_complete(heap));
	CHECK(!heap->payload);
	check_whole(heap, &rules, 0);
}

/* ---------------------------------------------------------------- out of order */

static void test_packets_in_any_order_make_the_heap(void)
{
	const struct xps_heap_rules rules = rules_of(true);

	/* All ways to order four packets. */
	for (unsigned code = 0; code < 256; code++) {
		const unsigned order[4] = { code & 3, code >> 2 & 3, code >> 4 & 3, code >> 6 };
		struct xps_heap *heap = NULL;

		if (((1 << order[0]) | (1 << order[1]) | (1 << order[2]) | (1 << order[3])) != 15)
			continue;
		for (unsigned i = 0; i < 4; i++) {
			CHECK_EQ(add_part(&heap, &rules, 40, order[i] * 10, 10), 0);
			CHECK_EQ(xps_heap_complete(heap), i == 3);
		}
		CHECK_EQ(heap->n_ranges, 1);
		check_whole(heap, &rules, 40);
	}
}

static void test_ranges_merge_when_they_touch(void)
{
	const struct xps_heap_rules rules = rules_of(true);
	struct xps_heap *heap = NULL;

	CHECK_EQ(add_part(&heap, &rules, 100, 20, 10), 0);
	CHECK_EQ(add_part(&heap, &rules, 100, 60, 10), 0);
	CHECK_EQ(add_part(&heap, &rules, 100, 40, 10), 0);
	CHECK_EQ(heap->n_ranges, 3);
	CHECK_EQ(add_part(&heap, &rules, 100, 30, 10), 0); /* between two */
	CHECK_EQ(heap->n_ranges, 2);
	CHECK_EQ(add_part(&heap, &rules, 100, 10, 10), 0); /* before one */
	CHECK_EQ(add_part(&heap, &rules, 100, 70, 10), 0); /* after one */
	CHECK_EQ(heap->n_ranges, 2);
	xps_heap_finish(heap, &rules);
	CHECK(!(heap->flags & XPS_HEAP_CONTIGUOUS));
	CHECK_EQ(heap->n_ranges, 2);
	CHECK_EQ(heap->ranges[0], 10);
	CHECK_EQ(heap->ranges[1], 50);
	CHECK_EQ(heap->ranges[2], 60);
	CHECK_EQ(heap->ranges[3], 80);
	CHECK_EQ(heap->received, 60);
	xps_heap_free(heap);
}

static void test_duplicate_is_refused_and_the_first_stays(void)
{
	const struct xps_heap_rules rules = rules_of(true);
	const uint8_t other[30] = { 0 };
	struct xps_heap *heap = NULL;

	CHECK_EQ(add_part(&heap, &rules, 40, 10, 30), 0);
	CHECK_EQ(add(&heap, &rules,
		     &(struct spec){ .cnt = 5, .heap_length = 40, .offset = 10, .length = 30, .payload = other }),
		 XPS_STAT_DUPLICATE);
	CHECK_EQ(add(&heap, &rules,
		     &(struct spec){ .cnt = 5, .heap_length = 40, .offset = 20, .length = 5, .payload = other }),
		 XPS_STAT_DUPLICATE);
	CHECK_EQ(heap->received, 30);
	CHECK_EQ(add_part(&heap, &rules, 40, 0, 10), 0);
	check_whole(heap, &rules, 40);
}

static void test_overlap_is_refused_on_either_side_and_around(void)
{
	const struct xps_heap_rules rules = rules_of(true);
	const uint8_t other[40] = { 0 };
	const uint64_t parts[][2] = { { 5, 6 }, { 19, 5 }, { 5, 20 }, { 9, 2 }, { 0, 40 } };
	struct xps_heap *heap = NULL;

	CHECK_EQ(add_part(&heap, &rules, 40, 10, 10), 0);
	for (unsigned i = 0; i < XPS_ARRAY_LEN(parts); i++) {
		int stat = add(&heap, &rules,
			       &(struct spec){ .cnt = 5,
					       .heap_length = 40,
					       .offset = parts[i][0],
					       .length = parts[i][1],
					       .payload = other });

		CHECK(stat == XPS_STAT_OVERLAP || stat == XPS_STAT_DUPLICATE);
		CHECK_EQ(heap->received, 10);
		CHECK_EQ(heap->n_ranges, 1);
	}
	CHECK_EQ(add_part(&heap, &rules, 40, 20, 20), 0);
	CHECK_EQ(add_part(&heap, &rules, 40, 0, 10), 0);
	check_whole(heap, &rules, 40);
}

static void test_random_parts_leave_what_a_byte_map_says(void)
{
	enum { SIZE = 300 };
	const struct xps_heap_rules rules = rules_of(true);

	for (unsigned seed = 1; seed <= 200; seed++) {
		bool there[SIZE] = { false };
		struct xps_heap *heap = NULL;
		uint64_t received = 0;
		unsigned state = seed;

		for (unsigned i = 0; i < 100; i++) {
			uint64_t offset, length;
			bool free_space = true;

			offset = (uint64_t)rand_r(&state) % SIZE;
			length = 1 + (uint64_t)rand_r(&state) % 8;
			if (offset + length > SIZE)
				continue;
			for (uint64_t j = offset; j < offset + length; j++)
				free_space &= !there[j];
			CHECK_EQ(add_part(&heap, &rules, SIZE, offset, length) == 0, free_space);
			for (uint64_t j = offset; free_space && j < offset + length; j++)
				there[j] = true;
			received += free_space ? length : 0;
			CHECK_EQ(heap->received, received);
		}
		for (uint64_t i = 0; i < SIZE; i++)
			if (there[i])
				check_pattern(heap, i, i + 1);
		for (uint64_t i = 0, edges = 0; i <= SIZE; i++) {
			bool now = i < SIZE && there[i], before = i > 0 && there[i - 1];

			if (now != before)
				CHECK_EQ(heap->ranges[edges++], i);
			if (i == SIZE)
				CHECK_EQ(heap->n_ranges, edges / 2);
		}
		xps_heap_free(heap);
	}
}

static void test_packet_without_payload_adds_its_items_only(void)
{
	const uint64_t items[] = { immediate(48, 0x1000, 9) };
	const struct xps_heap_rules rules = rules_of(true);
	struct xps_heap *heap = NULL;

	CHECK_EQ(add_part(&heap, &rules, 20, 0, 10), 0);
	CHECK_EQ(add(&heap, &rules,
		     &(struct spec){ .cnt = 5, .heap_length = 20, .offset = 10, .items = items, .n_items = 1 }),
		 0);
	CHECK_EQ(heap->received, 10);
	CHECK_EQ(heap->n_pointers, 1);
	CHECK_EQ(add_part(&heap, &rules, 20, 10, 10), 0);
	check_whole(heap, &rules, 20);
}

static void test_ranges_beyond_the_limit_are_refused_and_merging_goes_on(void)
{
	const struct xps_heap_rules rules = rules_of(true);
	struct xps_heap *heap = NULL;

	for (uint64_t i = 0; i < XPS_MAX_RANGES; i++)
		CHECK_EQ(add_part(&heap, &rules, 1 << 20, 2 * i, 1), 0);
	CHECK_EQ(heap->n_ranges, XPS_MAX_RANGES);
	CHECK_EQ(add_part(&heap, &rules, 1 << 20, 2 * XPS_MAX_RANGES + 10, 1), XPS_STAT_TOO_MANY_RANGES);
	CHECK_EQ(heap->received, XPS_MAX_RANGES);
	CHECK_EQ(add_part(&heap, &rules, 1 << 20, 1, 1), 0);
	CHECK_EQ(heap->n_ranges, XPS_MAX_RANGES - 1);
	xps_heap_free(heap);
}

/* ---------------------------------------------------------------- sizes */

static void test_unsized_heap_grows_and_keeps_its_bytes(void)
{
	for (int out_of_order = 0; out_of_order < 2; out_of_order++) {
		const struct xps_heap_rules rules = rules_of(out_of_order);
		struct xps_heap *heap = NULL;
		uint64_t size = 0;

		for (uint64_t i = 0; i < 200; i++) {
			CHECK_EQ(add_part(&heap, &rules, -1, size, i), 0);
			size += i;
			CHECK(!xps_heap_complete(heap));
			CHECK(xps_heap_contiguous(heap));
		}
		CHECK_EQ(heap->length, -1);
		check_whole(heap, &rules, size);
	}
}

static void test_unsized_heap_never_takes_more_than_the_limit(void)
{
	struct xps_heap_rules rules = rules_of(false);
	struct xps_heap *heap = NULL;

	rules.max_heap_size = 1000;
	for (uint64_t offset = 0; offset < 1000; offset += 10) {
		CHECK_EQ(add_part(&heap, &rules, -1, offset, 10), 0);
		CHECK(heap->capacity <= 1000);
	}
	CHECK_EQ(add_part(&heap, &rules, -1, 1000, 1), XPS_STAT_TOO_LARGE);
	check_whole(heap, &rules, 1000);
}

static void test_heap_beyond_the_limit_is_refused_without_allocating(void)
{
	const struct xps_heap_rules rules = rules_of(true);
	struct xps_heap *heap = NULL;

	CHECK_EQ(add_part(&heap, &rules, 100000000000000, 0, 10), XPS_STAT_TOO_LARGE);
	CHECK_EQ(add_part(&heap, &rules, -1, (1 << 20) - 9, 10), XPS_STAT_TOO_LARGE);
	CHECK_EQ(heap->capacity, 0);
	CHECK(!heap->payload);
	CHECK_EQ(add_part(&heap, &rules, -1, (1 << 20) - 10, 10), 0);
	xps_heap_free(heap);
}

static void test_length_may_be_told_late(void)
{
	const struct xps_heap_rules rules = rules_of(false);
	struct xps_heap *heap = NULL;

	CHECK_EQ(add_part(&heap, &rules, -1, 0, 10), 0);
	CHECK_EQ(add_part(&heap, &rules, 30, 10, 10), 0);
	CHECK_EQ(add_part(&heap, &rules, -1, 20, 10), 0);
	CHECK(xps_heap_complete(heap));
	check_whole(heap, &rules, 30);
}

static void test_another_length_is_refused(void)
{
	const struct xps_heap_rules rules = rules_of(true);
	struct xps_heap *heap = NULL;

	CHECK_EQ(add_part(&heap, &rules, -1, 10, 10), 0);
	CHECK_EQ(add_part(&heap, &rules, 10, 0, 10), XPS_STAT_LENGTH_MISMATCH); /* shorter than what is there */
	CHECK_EQ(add_part(&heap, &rules, 30, 0, 10), 0);
	CHECK_EQ(add_part(&heap, &rules, 31, 20, 10), XPS_STAT_LENGTH_MISMATCH);
	CHECK_EQ(add_part(&heap, &rules, 30, 20, 10), 0);
	check_whole(heap, &rules, 30);
}

static void test_another_flavour_is_refused(void)
{
	const struct xps_heap_rules rules = rules_of(true);
	struct xps_heap *heap = NULL;

	CHECK_EQ(add_part(&heap, &rules, 20, 0, 10), 0);
	CHECK_EQ(add(&heap, &rules,
		     &(struct spec){ .cnt = 5, .heap_length = 20, .offset = 10, .length = 10, .address_bits = 40 }),
		 XPS_STAT_FLAVOUR_MISMATCH);
	CHECK_EQ(heap->received, 10);
	xps_heap_free(heap);
}

static void test_item_beyond_the_payload_keeps_the_heap_incomplete(void)
{
	const uint64_t items[] = { addressed(48, 0x1000, 11) };
	const struct xps_heap_rules rules = rules_of(false);
	struct xps_heap *heap = NULL;

	CHECK_EQ(add(&heap, &rules,
		     &(struct spec){ .cnt = 5, .heap_length = 10, .length = 10, .items = items, .n_items = 1 }),
		 0);
	CHECK_EQ(heap->min_size, 11);
	CHECK(!xps_heap_complete(heap));
	xps_heap_finish(heap, &rules);
	CHECK(!(heap->flags & XPS_HEAP_CONTIGUOUS));
	CHECK(!heap->payload);
	CHECK_EQ(heap->size, 0);
	xps_heap_free(heap);
}

static void test_heap_without_memory_is_refused_and_recovers(void)
{
	struct xps_heap_rules rules = rules_of(true);
	struct xps_allocator *mapper = xps_mmap_allocator_new(0, false);
	struct xps_heap *heap = NULL;

	rules.max_heap_size = UINT64_MAX;
	rules.allocator = mapper;
	/* More than any process can map. */
	CHECK_EQ(
		add(&heap, &rules,
		    &(struct spec){
			    .cnt = 5, .heap_length = -1, .offset = INT64_C(1) << 55, .length = 1, .address_bits = 56 }),
		XPS_STAT_NO_MEMORY);
	CHECK_EQ(heap->received, 0);
	CHECK_EQ(heap->n_ranges, 0);
	CHECK_EQ(add(&heap, &rules, &(struct spec){ .cnt = 5, .heap_length = 10, .length = 10, .address_bits = 56 }),
		 0);
	check_whole(heap, &rules, 10);
	xps_allocator_free(mapper);
}

/* ---------------------------------------------------------------- what an incomplete heap shows */

static void test_incomplete_heap_shows_ranges_when_asked_and_no_payload(void)
{
	for (int out_of_order = 0; out_of_order < 2; out_of_order++) {
		for (int keep = 0; keep < 2; keep++) {
			struct xps_heap_rules rules = rules_of(out_of_order);
			struct xps_heap *heap = NULL;

			rules.keep_payload_ranges = keep;
			CHECK_EQ(add_part(&heap, &rules, 30, 0, 10), 0);
			xps_heap_finish(heap, &rules);
			CHECK(!heap->payload);
			CHECK_EQ(heap->received, 10);
			CHECK_EQ(heap->length, 30);
			CHECK_EQ(heap->n_ranges, keep);
			if (keep) {
				CHECK_EQ(heap->ranges[0], 0);
				CHECK_EQ(heap->ranges[1], 10);
			}
			xps_heap_free(heap);
		}
	}
}

static void test_payload_outlives_its_heap(void)
{
	const struct xps_heap_rules rules = rules_of(false);
	struct xps_heap *heap = NULL;
	uint8_t *payload;

	CHECK_EQ(add_part(&heap, &rules, 100, 0, 100), 0);
	xps_heap_finish(heap, &rules);
	payload = xps_heap_take_payload(heap);
	xps_heap_free(heap);
	for (uint64_t i = 0; i < 100; i++)
		CHECK_EQ(payload[i], pattern(5, i));
	xps_payload_free(payload);
}

/* ---------------------------------------------------------------- items */

/* A whole heap of 100 bytes with these items. */
static struct xps_heap *heap_of_items(const uint64_t *items, unsigned n)
{
	const struct xps_heap_rules rules = rules_of(false);
	struct xps_heap *heap = NULL;

	CHECK_EQ(add(&heap, &rules,
		     &(struct spec){ .cnt = 5, .heap_length = 100, .length = 100, .items = items, .n_items = n }),
		 0);
	CHECK(xps_heap_complete(heap));
	xps_heap_finish(heap, &rules);
	return heap;
}

static void check_addressed(const struct xps_item *item, uint64_t id, uint64_t offset, uint64_t length)
{
	CHECK_EQ(item->id, id);
	CHECK(!item->immediate);
	CHECK_EQ(item->offset, offset);
	CHECK_EQ(item->length, length);
}

static void check_immediate(const struct xps_item *item, uint64_t id, uint64_t value)
{
	CHECK_EQ(item->id, id);
	CHECK(item->immediate);
	CHECK_EQ(item->value, value);
}

static void test_items_come_by_offset_then_immediates_by_value(void)
{
	const uint64_t pointers[] = { immediate(48, 0x1000, 500), addressed(48, 0x1001, 60), addressed(48, 0x1002, 0),
				      immediate(48, 0x1003, 7), addressed(48, 0x1004, 20) };
	struct xps_heap *heap = heap_of_items(pointers, 5);
	struct xps_item items[5];

	CHECK_EQ(xps_heap_items(heap, items), 5);
	check_addressed(&items[0], 0x1002, 0, 20);
	check_addressed(&items[1], 0x1004, 20, 40);
	check_addressed(&items[2], 0x1001, 60, 40);
	check_immediate(&items[3], 0x1003, 7);
	check_immediate(&items[4], 0x1000, 500);
	xps_heap_free(heap);
}

static void test_empty_null_and_protocol_items_are_left_out(void)
{
	const uint64_t pointers[] = {
		addressed(48, 0x1000, 0),   addressed(48, 0x1001, 50), /* empty: the next begins there too */
		addressed(48, 0x1002, 50),  addressed(48, 0, 80),      /* NULL ends the one before it */
		addressed(48, 2, 30),       immediate(48, 0, 3),       /* an address of a protocol item says nothing */
		addressed(48, 0x1003, 100),                            /* at the end: empty */
	};
	struct xps_heap *heap = heap_of_items(pointers, 7);
	struct xps_item items[7];

	CHECK_EQ(xps_heap_items(heap, items), 2);
	check_addressed(&items[0], 0x1000, 0, 50);
	check_addressed(&items[1], 0x1002, 50, 30);
	xps_heap_free(heap);
}

static void test_items_are_the_same_when_asked_again(void)
{
	const uint64_t pointers[] = { addressed(48, 0x1001, 60), addressed(48, 0x1002, 0), immediate(48, 0x1003, 7) };
	struct xps_heap *heap = heap_of_items(pointers, 3);
	struct xps_item first[3], second[3];

	CHECK_EQ(xps_heap_items(heap, first), 3);
	CHECK_EQ(xps_heap_items(heap, second), 3);
	CHECK(!memcmp(first, second, sizeof(first)));
	xps_heap_free(heap);
}

static void test_many_items_come_sorted(void)
{
	enum { N = 100 };
	uint64_t pointers[N];
	struct xps_item items[N];
	struct xps_heap *heap;

	for (uint64_t i = 0; i < N; i++) /* 37 and 100 have no common factor: every offset once */
		pointers[i] = addressed(48, 0x1000 + i * 37 % N, i * 37 % N);
	heap = heap_of_items(pointers, N);
	CHECK_EQ(xps_heap_items(heap, items), N);
	for (uint64_t i = 0; i < N; i++)
		check_addressed(&items[i], 0x1000 + i, i, 1);
	xps_heap_free(heap);
}

static void test_incomplete_heap_has_immediates_only(void)
{
	const uint64_t pointers[] = { addressed(48, 0x1000, 0), immediate(48, 0x1001, 9) };
	const struct xps_heap_rules rules = rules_of(false);
	struct xps_heap *heap = NULL;
	struct xps_item items[2];

	CHECK_EQ(add(&heap, &rules,
		     &(struct spec){ .cnt = 5, .heap_length = 20, .length = 10, .items = pointers, .n_items = 2 }),
		 0);
	xps_heap_finish(heap, &rules);
	CHECK_EQ(xps_heap_items(heap, items), 1);
	check_immediate(&items[0], 0x1001, 9);
	xps_heap_free(heap);
}

static void test_pointer_that_comes_again_is_kept_once(void)
{
	enum { N = 1000 };
	const struct xps_heap_rules rules = rules_of(false);

	/* Few are searched through, more than eight are hashed. */
	for (unsigned n = 1; n <= N; n = n < 20 ? n + 1 : n * 3) {
		struct xps_heap *heap = NULL;
		uint64_t pointers[N];

		for (unsigned i = 0; i < n; i++)
			pointers[i] = immediate(48, 0x1000 + i / 16, i % 16);
		for (unsigned packet = 0; packet < 3; packet++)
			CHECK_EQ(add(&heap, &rules,
				     &(struct spec){ .cnt = 5,
						     .heap_length = 30,
						     .offset = packet * 10,
						     .length = 10,
						     .items = pointers,
						     .n_items = n }),
				 0);
		CHECK_EQ(heap->n_pointers, n);
		for (unsigned i = 0; i < n; i++)
			CHECK(heap->pointers[i] == pointers[i]);
		xps_heap_free(heap);
	}
}

static void test_items_beyond_the_limit_are_refused_with_their_payload(void)
{
	const unsigned n = XPS_MAX_ITEMS / 2;
	const struct xps_heap_rules rules = rules_of(false);
	uint64_t *pointers = malloc(n * sizeof(*pointers));
	struct xps_heap *heap = NULL;

	for (uint64_t packet = 0; packet < 2; packet++) {
		for (uint64_t i = 0; i < n; i++)
			pointers[i] = immediate(48, 0x1000, packet * n + i);
		CHECK_EQ(add(&heap, &rules,
			     &(struct spec){ .cnt = 5,
					     .heap_length = 30,
					     .offset = packet * 10,
					     .length = 10,
					     .items = pointers,
					     .n_items = n }),
			 0);
	}
	CHECK_EQ(heap->n_pointers, XPS_MAX_ITEMS);
	CHECK_EQ(
		add(&heap, &rules,
		    &(struct spec){
			    .cnt = 5, .heap_length = 30, .offset = 20, .length = 10, .items = pointers, .n_items = 1 }),
		XPS_STAT_TOO_MANY_ITEMS);
	CHECK_EQ(heap->received, 20);
	CHECK_EQ(add_part(&heap, &rules, 30, 20, 10), 0);
	CHECK_EQ(heap->n_pointers, XPS_MAX_ITEMS);
	free(pointers);
	check_whole(heap, &rules, 30);
}

/* CPU time for 50 packets with these items, 1000 each. */
static int64_t cpu_ns_for_items(const uint64_t *pointers)
{
	const struct xps_heap_rules rules = rules_of(false);
	struct xps_heap *heap = NULL;
	struct timespec begin, end;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &begin);
	for (uint64_t i = 0; i < 50; i++)
		CHECK_EQ(add(&heap, &rules,
			     &(struct spec){ .cnt = 5,
					     .heap_length = 100,
					     .offset = i,
					     .length = 1,
					     .items = pointers + 1000 * i,
					     .n_items = 1000 }),
			 0);
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &end);
	CHECK_EQ(heap->n_pointers, 50000);
	xps_heap_free(heap);
	return (end.tv_sec - begin.tv_sec) * INT64_C(1000000000) + end.tv_nsec - begin.tv_nsec;
}

static void test_items_chosen_to_meet_in_the_hash_set_cost_no_more_than_others(void)
{
	/* Multiples of the inverse of the golden ratio's multiplier, so that multiplying by that gives 0, 1, 2, ... */
	const uint64_t multiplier = UINT64_C(0x9e3779b97f4a7c15);
	uint64_t *plain = malloc(50000 * sizeof(*plain)), *chosen = malloc(50000 * sizeof(*chosen));
	uint64_t inverse = 1;

	for (int i = 0; i < 6; i++)
		inverse *= 2 - multiplier * inverse;
	CHECK(inverse * multiplier == 1);
	for (uint64_t i = 0, n = 0; n < 50000; i++) {
		if (i * inverse >> 63 && (i * inverse << 1 >> 49) > 4) { /* an immediate, and not the packet's own */
			plain[n] = immediate(48, 0x1000, n);
			chosen[n++] = i * inverse;
		}
	}
	CHECK(cpu_ns_for_items(chosen) < 30 * cpu_ns_for_items(plain));
	free(plain);
	free(chosen);
}

static void test_only_immediate_stream_control_starts_and_stops(void)
{
	const struct {
		uint64_t pointer;
		unsigned flags;
	} cases[] = {
		{ immediate(48, 6, 0), XPS_HEAP_START },
		{ immediate(48, 6, 2), XPS_HEAP_STOP },
		{ immediate(48, 6, 1), 0 },
		{ immediate(48, 6, 3), 0 },
		{ addressed(48, 6, 2), 0 },
		{ immediate(48, 7, 2), 0 },
	};

	for (unsigned i = 0; i < XPS_ARRAY_LEN(cases); i++) {
		struct xps_heap *heap = heap_of_items(&cases[i].pointer, 1);

		CHECK_EQ(heap->flags, XPS_HEAP_CONTIGUOUS | cases[i].flags);
		xps_heap_free(heap);
	}
}

/* ---------------------------------------------------------------- packets in several pieces */

/* Cut the packet behind its header at `first` and `second` bytes of payload. */
static void check_pieces(const struct spec *spec, uint64_t first, uint64_t second, int mode)
{
	struct xps_heap_rules rules = rules_of(false);
	const size_t size = spec_size(spec), header = size - spec->length;
	uint8_t *data = new_packet(spec);
	struct guarded pieces[3] = {
		guarded_copy(data, header + first),
		guarded_copy(data + header + first, second - first),
		guarded_copy(data + header + second, spec->length - second),
	};
	const struct xps_view more[2] = {
		{ .data = pieces[1].data, .length = (uint32_t)(second - first) },
		{ .data = pieces[2].data, .length = (uint32_t)(spec->length - second) },
	};
	const struct xps_view view = {
		.data = pieces[0].data, .length = (uint32_t)(header + first), .n_more = 2, .more = more
	};
	struct xps_packet packet;
	struct xps_heap *heap;

	rules.memcpy = mode;
	CHECK_EQ(xps_packet_decode(&packet, view.data, view.length), 0);
	heap = xps_heap_new(&packet);
	CHECK_EQ(xps_heap_add(heap, &rules, &packet, &view), 0);
	check_whole(heap, &rules, spec->length);
	for (int i = 0; i < 3; i++)
		guarded_free(&pieces[i]);
	free(data);
}

static void test_packet_in_pieces_is_put_together(void)
{
	const uint64_t items[] = { addressed(48, 0x1000, 0) };
	const struct spec spec = { .cnt = 5, .heap_length = 12, .length = 12, .items = items, .n_items = 1 };
	const struct spec large = { .cnt = 5, .heap_length = 9000, .length = 9000 };

	for (int mode = XPS_MEMCPY_STD; mode <= XPS_MEMCPY_NONTEMPORAL; mode++) {
		for (uint64_t first = 0; first <= 12; first++)
			for (uint64_t second = first; second <= 12; second++)
				check_pieces(&spec, first, second, mode);
		check_pieces(&large, 4000, 8001, mode);
	}
}

/* ---------------------------------------------------------------- in one piece with the payload */

/* The heap that a packet opens, with the packet added. */
static struct xps_heap *open_with(const struct xps_heap_rules *rules, const struct spec *spec)
{
	uint8_t *data = new_packet(spec);
	const struct xps_view view = { .data = data, .length = (uint32_t)spec_size(spec) };
	struct xps_packet packet;
	struct xps_heap *heap;

	CHECK_EQ(xps_packet_decode(&packet, data, view.length), 0);
	heap = xps_heap_open(&packet, rules);
	CHECK(heap);
	CHECK_EQ(xps_heap_add(heap, rules, &packet, &view), 0);
	free(data);
	return heap;
}

static void test_heap_that_knows_its_length_lies_in_front_of_its_payload(void)
{
	const struct xps_heap_rules rules = rules_of(false);
	struct xps_heap *heap = open_with(&rules, &(struct spec){ .cnt = 5, .heap_length = 30, .length = 10 });
	uint8_t *payload = heap->payload;

	CHECK_EQ((uintptr_t)heap + XPS_PAYLOAD_ROOM, (uintptr_t)payload);
	CHECK_EQ(add_part(&heap, &rules, 30, 10, 20), 0);
	CHECK(xps_heap_finish(heap, &rules) == heap);
	CHECK(heap->payload == payload);
	check_whole(heap, &rules, 30);
}

static void test_payload_outlives_the_heap_in_front_of_it(void)
{
	const struct xps_heap_rules rules = rules_of(false);
	struct xps_heap *heap = open_with(&rules, &(struct spec){ .cnt = 5, .heap_length = 10, .length = 10 });
	uint8_t *payload;

	heap = xps_heap_finish(heap, &rules);
	payload = xps_heap_take_payload(heap);
	xps_heap_free(heap);
	for (uint64_t i = 0; i < 10; i++)
		CHECK_EQ(payload[i], pattern(5, i));
	xps_payload_free(payload);
}

static void test_incomplete_heap_leaves_the_memory_of_its_payload(void)
{
	const uint64_t items[] = { addressed(48, 0x1000, 0), immediate(48, 0x1001, 7) };
	struct xps_heap_rules rules = rules_of(false);
	struct xps_fail fail = { 0 };
	struct xps_log *log = xps_log_new();
	struct xps_allocator *pool = xps_memory_pool_new(NULL, 1, 100, 1, 1, 0, rules.allocator, log, &fail);
	struct xps_heap *heap;
	struct xps_item items_left[2];

	rules.allocator = pool;
	heap = open_with(&rules,
			 &(struct spec){ .cnt = 5, .heap_length = 30, .length = 10, .items = items, .n_items = 2 });
	CHECK_EQ(xps_memory_pool_n_free(pool), 0);
	heap = xps_heap_finish(heap, &rules);
	CHECK_EQ(xps_memory_pool_n_free(pool), 1);
	CHECK(!heap->payload && !heap->flags);
	CHECK_EQ(heap->cnt, 5);
	CHECK_EQ(heap->received, 10);
	CHECK_EQ(xps_heap_items(heap, items_left), 1);
	check_immediate(&items_left[0], 0x1001, 7);
	xps_heap_free(heap);
	xps_allocator_free(pool);
	xps_log_free(log);
}

static void test_heap_that_outgrows_its_payload_keeps_every_byte(void)
{
	const struct xps_heap_rules rules = rules_of(false);
	struct xps_heap *heap = open_with(&rules, &(struct spec){ .cnt = 5, .heap_length = 30, .length = 10 });

	CHECK_EQ(add_part(&heap, &rules, -1, 10, 500), 0);
	CHECK_EQ(add_part(&heap, &rules, -1, 510, 5000), 0);
	heap = xps_heap_finish(heap, &rules);
	CHECK(heap->payload != heap->home);
	check_whole(heap, &rules, 5510);
}

/* ---------------------------------------------------------------- the short way */

/* A packet of a heap of 1,000 bytes, most often the next one, with items that most often were there before. */
static struct spec random_spec(const struct xps_heap *heap, uint64_t *items)
{
	struct spec spec = { .cnt = 5, .heap_length = 1000, .offset = heap ? heap->received : 0, .items = items };

	if (rand() % 8 == 0)
		spec.heap_length = rand() % 2 ? -1 : 900 + rand() % 200;
	if (rand() % 8 == 0)
		spec.offset = (uint64_t)rand() % 990;
	if (rand() % 16 == 0)
		spec.address_bits = 40;
	spec.length = (uint64_t)rand() % 60;
	if (spec.offset + spec.length > 900)
		spec.length = spec.offset < 900 ? 900 - spec.offset : 0;
	for (spec.n_items = 0; spec.n_items < 3 && rand() % 2; spec.n_items++)
		items[spec.n_items] = immediate(48, 0x1600 + spec.n_items + (unsigned)(rand() % 8 == 0), 9);
	return spec;
}

static void check_alike(const struct xps_heap *a, const struct xps_heap *b)
{
	CHECK_EQ(a->length, b->length);
	CHECK_EQ(a->received, b->received);
	CHECK_EQ(a->min_size, b->min_size);
	CHECK_EQ(a->flags, b->flags);
	CHECK_EQ(a->n_pointers, b->n_pointers);
	CHECK(!memcmp(a->pointers, b->pointers, a->n_pointers * sizeof(*a->pointers)));
	CHECK_EQ(a->n_ranges, b->n_ranges);
	CHECK(!a->n_ranges || !memcmp(a->ranges, b->ranges, 2 * a->n_ranges * sizeof(*a->ranges)));
	for (uint32_t i = 0; i < a->n_ranges; i++)
		CHECK(!memcmp(a->payload + a->ranges[2 * i], b->payload + b->ranges[2 * i],
			      a->ranges[2 * i + 1] - a->ranges[2 * i]));
	CHECK(a->n_ranges || !a->received || !memcmp(a->payload, b->payload, a->received));
}

/* Give the same packets to two heaps, to one of them only by the long way. Returns how many could go the short way. */
static int compare_ways(bool out_of_order)
{
	const struct xps_heap_rules rules = rules_of(out_of_order);
	struct xps_heap *either = NULL, *longer = NULL;
	uint64_t items[3];
	int n = 0;

	for (int i = 0; i < 40; i++) {
		const struct spec spec = random_spec(either, items);
		uint8_t *data = new_packet(&spec);
		const struct xps_view view = { .data = data, .length = (uint32_t)spec_size(&spec) };
		struct xps_packet packet;

		if (!xps_packet_decode(&packet, data, view.length)) {
			either = either ? either : xps_heap_new(&packet);
			longer = longer ? longer : xps_heap_new(&packet);
			n += xps_heap_just_continues(either, &rules, &packet);
			CHECK_EQ(xps_heap_add(either, &rules, &packet, &view),
				 xps_heap_add_any(longer, &rules, &packet, &view));
			check_alike(either, longer);
		}
		free(data);
	}
	xps_heap_free(either);
	xps_heap_free(longer);
	return n;
}

static void test_the_short_way_leads_where_the_long_one_does(void)
{
	for (int out_of_order = 0; out_of_order < 2; out_of_order++) {
		int n = 0;

		for (int i = 0; i < 500; i++)
			n += compare_ways(out_of_order);
		CHECK(n > 1000); /* or nothing has been compared */
	}
}

static void test_packet_that_repeats_items_goes_the_short_way(void)
{
	const struct xps_heap_rules rules = rules_of(false);
	const uint64_t items[] = { addressed(48, 0x1000, 0), immediate(48, 0x1600, 1), immediate(48, 0x1601, 2) };
	struct spec spec = { .heap_length = 30, .length = 10, .items = items, .n_items = 3 };
	struct xps_heap *heap = NULL;
	struct xps_packet packet;
	uint8_t data[256];

	CHECK_EQ(add(&heap, &rules, &spec), 0);
	spec.offset = 10;
	for (unsigned first = 0; first < 3; first++) {
		spec.items = items + first;
		spec.n_items = 3 - first;
		CHECK_EQ(xps_packet_decode(&packet, data, (size_t)(put_packet(data, &spec) - data)), 0);
		CHECK(xps_heap_just_continues(heap, &rules, &packet));
	}
	spec.items = (const uint64_t[]){ items[1], items[2], items[0] };
	spec.n_items = 3;
	CHECK_EQ(xps_packet_decode(&packet, data, (size_t)(put_packet(data, &spec) - data)), 0);
	CHECK(!xps_heap_just_continues(heap, &rules, &packet));
	xps_heap_free(heap);
}

int main(void)
{
	allocator = xps_allocator_new();

	test_packets_in_order_make_the_heap();
	test_packet_after_a_gap_is_refused_and_changes_nothing();
	test_packet_that_went_by_is_refused_and_changes_nothing();
	test_empty_heap_is_whole();

	test_packets_in_any_order_make_the_heap();
	test_ranges_merge_when_they_touch();
	test_duplicate_is_refused_and_the_first_stays();
	test_overlap_is_refused_on_either_side_and_around();
	test_random_parts_leave_what_a_byte_map_says();
	test_packet_without_payload_adds_its_items_only();
	test_ranges_beyond_the_limit_are_refused_and_merging_goes_on();

	test_unsized_heap_grows_and_keeps_its_bytes();
	test_unsized_heap_never_takes_more_than_the_limit();
	test_heap_beyond_the_limit_is_refused_without_allocating();
	test_length_may_be_told_late();
	test_another_length_is_refused();
	test_another_flavour_is_refused();
	test_item_beyond_the_payload_keeps_the_heap_incomplete();
	test_heap_without_memory_is_refused_and_recovers();

	test_incomplete_heap_shows_ranges_when_asked_and_no_payload();
	test_payload_outlives_its_heap();

	test_items_come_by_offset_then_immediates_by_value();
	test_empty_null_and_protocol_items_are_left_out();
	test_items_are_the_same_when_asked_again();
	test_many_items_come_sorted();
	test_incomplete_heap_has_immediates_only();
	test_pointer_that_comes_again_is_kept_once();
	test_items_beyond_the_limit_are_refused_with_their_payload();
	test_items_chosen_to_meet_in_the_hash_set_cost_no_more_than_others();
	test_only_immediate_stream_control_starts_and_stops();

	test_packet_in_pieces_is_put_together();

	test_heap_that_knows_its_length_lies_in_front_of_its_payload();
	test_payload_outlives_the_heap_in_front_of_it();
	test_incomplete_heap_leaves_the_memory_of_its_payload();
	test_heap_that_outgrows_its_payload_keeps_every_byte();
	test_the_short_way_leads_where_the_long_one_does();
	test_packet_that_repeats_items_goes_the_short_way();

	xps_allocator_free(allocator);
	return 0;
}
