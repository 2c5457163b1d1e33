// SPDX-License-Identifier: Apache-2.0
/* Datagrams from fragments: what is put together, what is given up, and that every fragment is accounted for. */
#include <stdbool.h>

#include "check.h"
#include "fragment.h"
#include "frame.h"

/* What byte `i` of datagram `id` is. */
static uint8_t byte_of(uint32_t id, uint32_t i)
{
	return (uint8_t)(id * 151 + i * 7 + (i >> 8) * 13 + 1);
}

struct part {
	uint32_t id, offset, length;
	bool more;
};

static struct xps_frame frame_of(struct part part)
{
	return (struct xps_frame){
		.family = 4,
		.src = { 10, 0, 0, 1 },
		.dst = { 10, 0, 0, 2 },
		.fragment_id = part.id,
		.fragment_offset = (uint16_t)part.offset,
		.payload_length = part.length,
		.more_fragments = part.more,
		.protocol = 17,
	};
}

/* In memory of exactly its size, so that a sanitizer sees a read beyond it. */
static int add_frame(struct xps_fragments *fragments, const struct xps_frame *frame, uint32_t id, int64_t now_s,
		     struct xps_joined *joined)
{
	uint8_t *payload = malloc(frame->payload_length ? frame->payload_length : 1);
	int result;

	for (uint32_t i = 0; i < frame->payload_length; i++)
		payload[i] = byte_of(id, frame->fragment_offset + i);
	result = xps_fragments_add(fragments, frame, payload, now_s, joined);
	free(payload);
	return result;
}

static int add_at(struct xps_fragments *fragments, struct part part, int64_t now_s, struct xps_joined *joined)
{
	const struct xps_frame frame = frame_of(part);

	return add_frame(fragments, &frame, part.id, now_s, joined);
}

/* Add a fragment that completes nothing. */
static void add(struct xps_fragments *fragments, struct part part)
{
	struct xps_joined joined;

	CHECK_EQ(add_at(fragments, part, 0, &joined), 0);
}

/* Add the fragment that completes its datagram of so many bytes and fragments. */
static void complete(struct xps_fragments *fragments, struct part part, uint32_t length, uint32_t n)
{
	struct xps_joined joined;

	CHECK_EQ(add_at(fragments, part, 0, &joined), 1);
	CHECK_EQ(joined.length, length);
	CHECK_EQ(joined.n_fragments, n);
	CHECK_EQ(joined.protocol, 17);
	for (uint32_t i = 0; i < length; i++)
		CHECK_EQ(joined.payload[i], byte_of(part.id, i));
}

static void check_lost(struct xps_fragments *fragments, uint64_t lost)
{
	CHECK_EQ(xps_fragments_lost(fragments), lost);
	xps_fragments_free(fragments);
}

/* ---------------------------------------------------------------- whole datagrams */

static void test_datagram_in_order(void)
{
	struct xps_fragments *f = xps_fragments_new();

	add(f, (struct part){ 1, 0, 1480, true });
	add(f, (struct part){ 1, 1480, 1480, true });
	complete(f, (struct part){ 1, 2960, 37, false }, 2997, 3);
	check_lost(f, 0);
}

static void test_every_order_of_four_fragments(void)
{
	static const struct part parts[4] = {
		{ 1, 0, 8, true }, { 1, 8, 64, true }, { 1, 72, 512, true }, { 1, 584, 1, false }
	};

	for (int order = 0; order < 256; order++) {
		const int at[4] = { order & 3, order >> 2 & 3, order >> 4 & 3, order >> 6 };
		struct xps_fragments *f = xps_fragments_new();

		if ((1 << at[0] | 1 << at[1] | 1 << at[2] | 1 << at[3]) == 15) {
			for (int i = 0; i < 3; i++)
				add(f, parts[at[i]]);
			complete(f, parts[at[3]], 585, 4);
		}
		check_lost(f, 0);
	}
}

static void test_largest_datagram_in_the_smallest_fragments(void)
{
	struct xps_fragments *f = xps_fragments_new();

	for (uint32_t offset = 65528; offset >= 8; offset -= 8)
		add(f, (struct part){ 1, offset, offset == 65528 ? 7 : 8, offset != 65528 });
	complete(f, (struct part){ 1, 0, 8, true }, 65535, 8192);
	check_lost(f, 0);
}

static void test_slot_is_used_again(void)
{
	struct xps_fragments *f = xps_fragments_new();

	for (uint32_t id = 0; id < 1000; id++) {
		add(f, (struct part){ id, 0, 1000, true });
		complete(f, (struct part){ id, 1000, 500 + id % 8, false }, 1500 + id % 8, 2);
	}
	check_lost(f, 0);
}

static void test_family_addresses_and_identifier_tell_datagrams_apart(void)
{
	struct xps_fragments *f = xps_fragments_new();
	struct xps_frame frames[5];
	struct xps_joined joined;

	for (int i = 0; i < 5; i++)
		frames[i] = frame_of((struct part){ 1, 0, 8, true });
	frames[1].family = 6;
	frames[2].src[15] = 1;
	frames[3].dst[0] = 11;
	frames[4].fragment_id = 0x10001;
	for (uint32_t i = 0; i < 5; i++)
		CHECK_EQ(add_frame(f, &frames[i], i, 0, &joined), 0);
	for (uint32_t i = 0; i < 5; i++) {
		frames[i].fragment_offset = 8;
		frames[i].more_fragments = false;
		CHECK_EQ(add_frame(f, &frames[i], i, 0, &joined), 1);
		for (uint32_t j = 0; j < 16; j++)
			CHECK_EQ(joined.payload[j], byte_of(i, j));
	}
	check_lost(f, 0);
}

static void test_protocol_is_that_of_the_first_fragment(void)
{
	struct xps_fragments *f = xps_fragments_new();
	struct xps_frame frame = frame_of((struct part){ 1, 8, 8, false });
	struct xps_joined joined;

	frame.protocol = 60;
	CHECK_EQ(add_frame(f, &frame, 1, 0, &joined), 0);
	complete(f, (struct part){ 1, 0, 8, true }, 16, 2);
	add(f, (struct part){ 1, 0, 8, true });
	CHECK_EQ(add_frame(f, &frame, 1, 0, &joined), 1);
	CHECK_EQ(joined.protocol, 17);
	check_lost(f, 0);
}

/* ---------------------------------------------------------------- repeated and contradicting fragments */

static void test_repeated_fragment_is_lost_and_does_no_harm(void)
{
	struct xps_fragments *f = xps_fragments_new();

	add(f, (struct part){ 1, 0, 800, true });
	add(f, (struct part){ 1, 0, 800, true });
	add(f, (struct part){ 1, 1600, 3, false });
	add(f, (struct part){ 1, 1600, 3, false });
	complete(f, (struct part){ 1, 800, 800, true }, 1603, 3);
	check_lost(f, 2);
}

/* These two, and then all that the datagram may still send: nothing comes of it, and all are counted. */
static void check_contradiction(struct part first, struct part second)
{
	struct xps_fragments *f = xps_fragments_new();

	add(f, first);
	add(f, second);
	CHECK_EQ(xps_fragments_lost(f), 2);
	add(f, (struct part){ 1, 0, 800, true });
	add(f, (struct part){ 1, 800, 8, false });
	/* The next datagram is none of its business. */
	add(f, (struct part){ 2, 0, 800, true });
	complete(f, (struct part){ 2, 800, 8, false }, 808, 2);
	check_lost(f, 4);
}

static void test_overlap_gives_the_datagram_up(void)
{
	check_contradiction((struct part){ 1, 0, 16, true }, (struct part){ 1, 8, 16, true });
	check_contradiction((struct part){ 1, 8, 16, true }, (struct part){ 1, 0, 16, true });
	check_contradiction((struct part){ 1, 8, 8, true }, (struct part){ 1, 0, 24, true });
	check_contradiction((struct part){ 1, 8, 3, false }, (struct part){ 1, 0, 16, true });
}

static void test_other_bytes_at_one_place_give_the_datagram_up(void)
{
	struct xps_fragments *f = xps_fragments_new();
	struct xps_frame frame = frame_of((struct part){ 1, 0, 16, true });
	struct xps_joined joined;

	add(f, (struct part){ 1, 0, 16, true });
	CHECK_EQ(add_frame(f, &frame, 2, 0, &joined), 0);
	add(f, (struct part){ 1, 16, 8, false });
	check_lost(f, 3);
}

static void test_lengths_that_contradict_give_the_datagram_up(void)
{
	/* two ends */
	check_contradiction((struct part){ 1, 16, 5, false }, (struct part){ 1, 16, 6, false });
	check_contradiction((struct part){ 1, 16, 8, false }, (struct part){ 1, 24, 8, false });
	check_contradiction((struct part){ 1, 16, 8, false }, (struct part){ 1, 16, 8, true });
	/* bytes at or beyond the end */
	check_contradiction((struct part){ 1, 16, 8, false }, (struct part){ 1, 24, 8, true });
	check_contradiction((struct part){ 1, 16, 8, false }, (struct part){ 1, 8, 16, true });
	check_contradiction((struct part){ 1, 24, 8, true }, (struct part){ 1, 8, 8, false });
	/* an end where the middle has been already */
	check_contradiction((struct part){ 1, 0, 16, true }, (struct part){ 1, 8, 8, false });
}

static void test_impossible_fragments_are_lost_alone(void)
{
	static const struct part impossible[] = {
		{ 1, 0, 0, true },      { 1, 8, 0, false },    { 1, 24, 7, true },         { 1, 65528, 8, false },
		{ 1, 0, 65536, false }, { 1, 8, 65528, true }, { 1, 65528, 65535, false },
	};
	struct xps_fragments *f = xps_fragments_new();

	add(f, (struct part){ 1, 0, 8, true });
	for (size_t i = 0; i < sizeof(impossible) / sizeof(impossible[0]); i++) {
		add(f, impossible[i]);
		CHECK_EQ(xps_fragments_lost(f), i + 1);
	}
	complete(f, (struct part){ 1, 8, 8, false }, 16, 2);
	xps_fragments_free(f);
}

/* ---------------------------------------------------------------- bounds */

static void test_oldest_datagram_makes_room(void)
{
	struct xps_fragments *f = xps_fragments_new();

	for (uint32_t id = 0; id < XPS_FRAGMENT_SLOTS; id++)
		add(f, (struct part){ id, 0, 8, true });
	CHECK_EQ(xps_fragments_lost(f), 0);
	add(f, (struct part){ 1000, 0, 8, true });
	CHECK_EQ(xps_fragments_lost(f), 1);
	for (uint32_t id = 1; id < XPS_FRAGMENT_SLOTS; id++)
		complete(f, (struct part){ id, 8, 8, false }, 16, 2);
	add(f, (struct part){ 0, 8, 8, false });
	complete(f, (struct part){ 1000, 8, 8, false }, 16, 2);
	xps_fragments_drop(f);
	check_lost(f, 2);
}

static void test_datagram_leaves_after_so_many_others_even_if_those_are_complete(void)
{
	struct xps_fragments *f = xps_fragments_new();

	add(f, (struct part){ 0, 0, 8, true });
	for (uint32_t id = 1; id <= XPS_FRAGMENT_SLOTS; id++) {
		CHECK_EQ(xps_fragments_lost(f), 0);
		add(f, (struct part){ id, 0, 8, true });
		complete(f, (struct part){ id, 8, 8, false }, 16, 2);
	}
	check_lost(f, 1);
}

static void test_datagram_leaves_after_its_time(void)
{
	struct xps_fragments *f = xps_fragments_new();
	struct xps_joined joined;

	CHECK_EQ(add_at(f, (struct part){ 1, 0, 8, true }, 100, &joined), 0);
	CHECK_EQ(add_at(f, (struct part){ 1, 8, 8, false }, 100 + XPS_FRAGMENT_SECONDS, &joined), 1);
	CHECK_EQ(add_at(f, (struct part){ 1, 0, 8, true }, 100, &joined), 0);
	CHECK_EQ(add_at(f, (struct part){ 1, 8, 8, false }, 101 + XPS_FRAGMENT_SECONDS, &joined), 0);
	CHECK_EQ(xps_fragments_lost(f), 1);
	/* Which began a datagram of its own; times may go backwards. */
	CHECK_EQ(add_at(f, (struct part){ 1, 0, 8, true }, -5, &joined), 1);
	check_lost(f, 1);
}

static void test_extreme_times_do_no_harm(void)
{
	struct xps_fragments *f = xps_fragments_new();
	struct xps_joined joined;

	CHECK_EQ(add_at(f, (struct part){ 1, 0, 8, true }, INT64_MIN, &joined), 0);
	CHECK_EQ(add_at(f, (struct part){ 1, 8, 8, true }, INT64_MAX, &joined), 0);
	CHECK_EQ(add_at(f, (struct part){ 1, 16, 8, true }, INT64_MIN, &joined), 0);
	CHECK_EQ(xps_fragments_lost(f), 1);
	xps_fragments_drop(f);
	check_lost(f, 3);
}

int main(void)
{
	test_datagram_in_order();
	test_every_order_of_four_fragments();
	test_largest_datagram_in_the_smallest_fragments();
	test_slot_is_used_again();
	test_family_addresses_and_identifier_tell_datagrams_apart();
	test_protocol_is_that_of_the_first_fragment();
	test_repeated_fragment_is_lost_and_does_no_harm();
	test_overlap_gives_the_datagram_up();
	test_other_bytes_at_one_place_give_the_datagram_up();
	test_lengths_that_contradict_give_the_datagram_up();
	test_impossible_fragments_are_lost_alone();
	test_oldest_datagram_makes_room();
	test_datagram_leaves_after_so_many_others_even_if_those_are_complete();
	test_datagram_leaves_after_its_time();
	test_extreme_times_do_no_harm();
	return 0;
}
