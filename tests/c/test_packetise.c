// SPDX-License-Identifier: Apache-2.0
/* A heap becomes the packets that the rules in packetise.h say, in no more memory than it says. */
#include "packetise.h"

#include <errno.h>

#include "check.h"
#include "packets.h"

enum { CNT = 77 };

static struct xps_send_item value(uint64_t id, uint64_t v)
{
	return (struct xps_send_item){ .id = id, .immediate = 1, .value = v };
}

static struct xps_send_item bytes(uint64_t id, const void *data, uint64_t length)
{
	return (struct xps_send_item){ .id = id, .data = (uintptr_t)data, .length = length };
}

static struct xps_send_heap *new_heap(const struct xps_send_item *items, uint32_t n, int address_bits, bool repeat)
{
	struct xps_fail fail = { 0 };
	struct xps_send_heap *heap = xps_send_heap_new(items, n, address_bits, repeat, &fail);

	CHECK_EQ(fail.err, 0);
	CHECK(heap);
	return heap;
}

/* The pattern of heap CNT, from byte `start` on. Give it back with free(). */
static uint8_t *new_pattern(uint64_t start, uint64_t n)
{
	uint8_t *data = malloc(n);

	CHECK(data);
	for (uint64_t i = 0; i < n; i++)
		data[i] = pattern(CNT, start + i);
	return data;
}

/* ---------------------------------------------------------------- packets in an arena of exactly the size */

struct room {
	uint8_t *bytes;
	struct iovec *slices;
	struct xps_arena arena;
};

static struct room new_room(uint64_t max_packet_size)
{
	const uint64_t n_bytes = xps_packetise_bytes(max_packet_size), n_slices = xps_packetise_slices(max_packet_size);
	struct room room = { .bytes = malloc(n_bytes), .slices = malloc(n_slices * sizeof(*room.slices)) };

	CHECK(room.bytes && room.slices);
	room.arena = (struct xps_arena){ room.bytes, n_bytes, room.slices, n_slices };
	return room;
}

static void free_room(struct room *room)
{
	free(room->bytes);
	free(room->slices);
}

/* The bytes of a packet in memory of their own. */
static uint8_t *flatten(const struct xps_out_packet *packet)
{
	uint8_t *flat = malloc(packet->length);
	uint64_t at = 0;

	CHECK(flat);
	for (uint32_t i = 0; i < packet->n_slices; i++) {
		CHECK(packet->slices[i].iov_len <= packet->length - at);
		memcpy(flat + at, packet->slices[i].iov_base, packet->slices[i].iov_len);
		at += packet->slices[i].iov_len;
	}
	CHECK_EQ(at, packet->length);
	return flat;
}

/* The next packet is this one. */
static void check_packet(struct xps_packetiser *p, const struct spec *expected)
{
	struct room room = new_room(p->max_packet_size);
	struct xps_out_packet packet;
	uint8_t *wanted = new_packet(expected), *flat;

	CHECK(!xps_packetiser_done(p));
	CHECK(xps_packetise(p, &room.arena, &packet));
	CHECK_EQ(packet.length, spec_size(expected));
	flat = flatten(&packet);
	CHECK(memcmp(flat, wanted, packet.length) == 0);
	free(flat);
	free(wanted);
	free_room(&room);
}

static void check_no_packet(struct xps_packetiser *p)
{
	struct room room = new_room(p->max_packet_size);
	const struct xps_arena before = room.arena;
	struct xps_out_packet packet;

	CHECK(xps_packetiser_done(p));
	CHECK(!xps_packetise(p, &room.arena, &packet));
	CHECK(memcmp(&before, &room.arena, sizeof(before)) == 0);
	free_room(&room);
}

/* `heap`, which is freed, becomes just these packets. */
static void check_packets(struct xps_send_heap *heap, uint64_t max_packet_size, const struct spec *packets, int n)
{
	struct xps_packetiser p;

	CHECK(max_packet_size >= xps_send_heap_min_packet_size(heap));
	xps_packetiser_start(&p, heap, CNT, max_packet_size);
	for (int i = 0; i < n; i++)
		check_packet(&p, &packets[i]);
	check_no_packet(&p);
	xps_send_heap_free(heap);
}

/* ---------------------------------------------------------------- which packets */

static void test_heap_without_items_is_one_packet_with_one_zero(void)
{
	const uint64_t pointers[] = { 0 };
	const struct spec packet = { .cnt = CNT,
				     .heap_length = 1,
				     .length = 1,
				     .payload = (const uint8_t *)"",
				     .items = pointers,
				     .n_items = 1 };

	check_packets(new_heap(NULL, 0, 48, false), 56, &packet, 1);
	check_packets(new_heap(NULL, 0, 48, true), 56, &packet, 1);
	check_packets(new_heap(NULL, 0, 48, false), 1 << 20, &packet, 1);
}

static void test_payload_fills_packets_to_a_multiple_of_eight(void)
{
	uint8_t *data = new_pattern(0, 3000);
	const uint64_t pointers[] = { addressed(48, 0x1000, 0), addressed(48, 0x1001, 2990) };
	const struct xps_send_item items[] = { bytes(0x1000, data, 2990), bytes(0x1001, data + 2990, 10) };
	const struct spec packets[] = {
		{ .cnt = CNT, .heap_length = 3000, .offset = 0, .length = 944, .items = pointers, .n_items = 2 },
		{ .cnt = CNT, .heap_length = 3000, .offset = 944, .length = 960 },
		{ .cnt = CNT, .heap_length = 3000, .offset = 1904, .length = 960 },
		{ .cnt = CNT, .heap_length = 3000, .offset = 2864, .length = 136 },
	};

	check_packets(new_heap(items, 2, 48, false), 1000, packets, 4);
	check_packets(new_heap(items, 2, 48, false), 1007, packets, 4);
	free(data);
}

static void test_item_pointers_that_do_not_fit_wait_for_the_next_packets(void)
{
	uint8_t *data = new_pattern(0, 100);
	const struct xps_send_item items[] = { value(0x1000, 5), bytes(0x1001, data, 60), value(0x1002, 6),
					       bytes(0x1003, data + 60, 40), value(0x1004, 0) };
	const uint64_t pointers[] = { immediate(40, 0x1000, 5), addressed(40, 0x1001, 0), immediate(40, 0x1002, 6),
				      addressed(40, 0x1003, 60), immediate(40, 0x1004, 0) };
	const struct spec packets[] = {
		{ .cnt = CNT, .heap_length = 100, .offset = 0, .length = 8, .items = pointers, .n_items = 2 },
		{ .cnt = CNT, .heap_length = 100, .offset = 8, .length = 8, .items = pointers + 2, .n_items = 2 },
		{ .cnt = CNT, .heap_length = 100, .offset = 16, .length = 16, .items = pointers + 4, .n_items = 1 },
		{ .cnt = CNT, .heap_length = 100, .offset = 32, .length = 24 },
		{ .cnt = CNT, .heap_length = 100, .offset = 56, .length = 24 },
		{ .cnt = CNT, .heap_length = 100, .offset = 80, .length = 20 },
	};
	struct spec in_flavour[6];

	for (int i = 0; i < 6; i++) {
		in_flavour[i] = packets[i];
		in_flavour[i].address_bits = 40;
	}
	check_packets(new_heap(items, 5, 40, false), 64, in_flavour, 6);
	free(data);
}

static void test_zeros_behind_a_short_payload_carry_the_item_pointers(void)
{
	uint8_t payload[33] = { 1, 2, 3 };
	const struct xps_send_item items[] = { bytes(0x1000, payload, 3), value(0x1001, 1), value(0x1002, 2),
					       value(0x1003, 3) };
	const uint64_t pointers[] = { addressed(48, 0x1000, 0), immediate(48, 0x1001, 1), immediate(48, 0x1002, 2),
				      immediate(48, 0x1003, 3), addressed(48, 0, 3) };
	struct spec packets[5];

	for (uint64_t i = 0; i < 5; i++)
		packets[i] = (struct spec){ .cnt = CNT,
					    .heap_length = 33,
					    .offset = 8 * i,
					    .length = i < 4 ? 8 : 1,
					    .payload = payload + 8 * i,
					    .items = pointers + i,
					    .n_items = 1 };
	check_packets(new_heap(items, 4, 48, false), 56, packets, 5);
}

static void test_zeros_are_left_out_when_the_payload_is_just_long_enough(void)
{
	uint8_t *data = new_pattern(0, 9);
	const struct xps_send_item items[] = { bytes(0x1000, data, 9), value(0x1001, 1) };
	const uint64_t pointers[] = { addressed(48, 0x1000, 0), immediate(48, 0x1001, 1), addressed(48, 0, 8) };
	const struct spec nine[] = {
		{ .cnt = CNT, .heap_length = 9, .offset = 0, .length = 8, .items = pointers, .n_items = 2 },
		{ .cnt = CNT, .heap_length = 9, .offset = 8, .length = 1 },
	};
	const struct xps_send_item shorter[] = { bytes(0x1000, data, 8), value(0x1001, 1) };
	const struct spec eight[] = {
		{ .cnt = CNT, .heap_length = 9, .offset = 0, .length = 8, .items = pointers, .n_items = 2 },
		{ .cnt = CNT,
		  .heap_length = 9,
		  .offset = 8,
		  .length = 1,
		  .payload = (const uint8_t *)"",
		  .items = pointers + 2,
		  .n_items = 1 },
	};

	check_packets(new_heap(items, 2, 48, false), 64, nine, 2);
	check_packets(new_heap(shorter, 2, 48, false), 64, eight, 2);
	free(data);
}

static void test_repeated_pointers_are_in_every_packet(void)
{
	uint8_t *data = new_pattern(0, 50);
	const struct xps_send_item items[] = { value(0x1000, 5), bytes(0x1001, data, 50) };
	const uint64_t pointers[] = { immediate(48, 0x1000, 5), addressed(48, 0x1001, 0) };
	struct spec packets[4];

	for (uint64_t i = 0; i < 4; i++)
		packets[i] = (struct spec){ .cnt = CNT,
					    .heap_length = 50,
					    .offset = 16 * i,
					    .length = i < 3 ? 16 : 2,
					    .items = pointers,
					    .n_items = 2 };
	check_packets(new_heap(items, 2, 48, true), 72, packets, 4);
	free(data);
}

static void test_items_without_bytes_have_a_pointer_all_the_same(void)
{
	uint8_t *data = new_pattern(0, 20);
	const struct xps_send_item items[] = { bytes(0x1000, NULL, 0), bytes(0x1001, data, 20),
					       bytes(0x1002, data, 0) };
	const uint64_t pointers[] = { addressed(48, 0x1000, 0), addressed(48, 0x1001, 0), addressed(48, 0x1002, 20) };
	const struct spec packet = { .cnt = CNT, .heap_length = 20, .length = 20, .items = pointers, .n_items = 3 };

	check_packets(new_heap(items, 3, 48, false), 1472, &packet, 1);
	free(data);
}

static void test_heap_identifier_is_modulo_the_address_bits(void)
{
	const uint64_t pointers[] = { 0 };
	const struct spec packet = { .cnt = 0xfe,
				     .heap_length = 1,
				     .length = 1,
				     .payload = (const uint8_t *)"",
				     .items = pointers,
				     .n_items = 1,
				     .address_bits = 8 };
	struct xps_send_heap *heap = new_heap(NULL, 0, 8, false);
	struct xps_packetiser p;

	xps_packetiser_start(&p, heap, UINT64_MAX - 1, 1472);
	check_packet(&p, &packet);
	xps_send_heap_free(heap);
}

static void test_packetiser_that_is_copied_goes_on_from_there(void)
{
	uint8_t *data = new_pattern(0, 40);
	const struct xps_send_item item = bytes(0x1000, data, 40);
	const struct spec second = { .cnt = CNT, .heap_length = 40, .offset = 16, .length = 24 };
	struct xps_send_heap *heap = new_heap(&item, 1, 48, false);
	struct room room = new_room(64);
	struct xps_packetiser p, copy;
	struct xps_out_packet packet;

	xps_packetiser_start(&p, heap, CNT, 64);
	CHECK(xps_packetise(&p, &room.arena, &packet));
	copy = p;
	check_packet(&p, &second);
	check_packet(&copy, &second);
	check_no_packet(&copy);
	free_room(&room);
	xps_send_heap_free(heap);
	free(data);
}

/* ---------------------------------------------------------------- slices */

static void test_long_pieces_are_not_copied(void)
{
	uint8_t *data = new_pattern(0, 1024);
	const struct xps_send_item item = bytes(0x1000, data, 1024);
	struct xps_send_heap *heap = new_heap(&item, 1, 48, false);
	struct room room = new_room(1472);
	struct xps_packetiser p;
	struct xps_out_packet packet;

	xps_packetiser_start(&p, heap, CNT, 1472);
	CHECK(xps_packetise(&p, &room.arena, &packet));
	CHECK_EQ(packet.n_slices, 2);
	CHECK(packet.slices[0].iov_base == room.bytes);
	CHECK(packet.slices[1].iov_base == data);
	CHECK_EQ(packet.slices[1].iov_len, 1024);
	/* And the arena goes on behind the header. */
	CHECK(room.arena.bytes == room.bytes + 48 && room.arena.slices == room.slices + 2);
	CHECK_EQ(room.arena.n_bytes, xps_packetise_bytes(1472) - 48);
	CHECK_EQ(room.arena.n_slices, xps_packetise_slices(1472) - 2);
	free_room(&room);
	xps_send_heap_free(heap);
	free(data);
}

static void test_short_pieces_are_one_slice_with_their_neighbours(void)
{
	uint8_t *data = new_pattern(0, 100);
	struct xps_send_item items[100];
	struct xps_send_heap *heap;
	struct room room = new_room(1472);
	struct xps_packetiser p;
	struct xps_out_packet packet;

	for (uint64_t i = 0; i < 100; i++)
		items[i] = bytes(0x1000 + i, data + i, 1);
	heap = new_heap(items, 100, 48, false);
	xps_packetiser_start(&p, heap, CNT, 1472);
	CHECK(xps_packetise(&p, &room.arena, &packet));
	CHECK_EQ(packet.n_slices, 1);
	CHECK_EQ(packet.length, 40 + 800 + 100);
	free_room(&room);
	xps_send_heap_free(heap);
	free(data);
}

/* Long pieces, each with a short one behind it: nothing needs more slices. */
static void test_packet_of_most_slices_fits(void)
{
	enum { N = 400, SIZE = 60000 };
	uint8_t *data = new_pattern(0, N / 2 * 257);
	struct xps_send_item items[N];
	struct xps_packetiser p;
	struct xps_out_packet packet;
	struct xps_send_heap *heap;
	struct room room = new_room(SIZE);
	uint8_t *flat;

	for (uint64_t i = 0; i < N; i++)
		items[i] = bytes(0x1000, data + i / 2 * 257 + i % 2 * 256, i % 2 ? 1 : 256);
	heap = new_heap(items, N, 48, false);
	xps_packetiser_start(&p, heap, CNT, SIZE);
	CHECK(xps_packetise(&p, &room.arena, &packet));
	CHECK_EQ(packet.n_slices, 1 + N);
	CHECK(packet.n_slices <= xps_packetise_slices(SIZE));
	CHECK(xps_packetise_slices(SIZE) <= 2 * SIZE / 256 + 2);
	flat = flatten(&packet);
	CHECK(memcmp(flat + 40 + 8 * N, data, N / 2 * 257) == 0);
	free(flat);
	free_room(&room);
	xps_send_heap_free(heap);
	free(data);
}

/* ---------------------------------------------------------------- large heaps */

static void test_packet_has_no_more_than_65535_item_pointers(void)
{
	enum { N = 140000, SIZE = 1 << 20 };
	static struct xps_send_item items[N];
	static uint64_t pointers[N + 1];
	static const uint8_t zeros[17];
	struct spec packets[3];

	for (uint64_t i = 0; i < N; i++) {
		items[i] = value(i & 0x7fff ? i & 0x7ff8 : 0x10, i);
		pointers[i] = immediate(48, items[i].id, i);
	}
	for (uint64_t i = 0; i < 3; i++)
		packets[i] = (struct spec){ .cnt = CNT,
					    .heap_length = 17,
					    .offset = 8 * i,
					    .length = i < 2 ? 8 : 1,
					    .payload = zeros,
					    .items = pointers + 65531 * i,
					    .n_items = i < 2 ? 65531 : N + 1 - 2 * 65531 };
	check_packets(new_heap(items, N, 48, false), SIZE, packets, 3);
}

/* Nothing looks into the items, of which there is nothing in memory. */
static void test_heap_of_128_tebibytes_is_cut_right(void)
{
	const uint64_t half = UINT64_C(1) << 46, size = UINT64_MAX, most = (UINT64_C(1) << 32) - 8;
	const struct xps_send_item items[] = { bytes(0x1000, (const void *)4096, half),
					       bytes(0x1001, (const void *)4096, half) };
	struct xps_send_heap *heap = new_heap(items, 2, 48, false);
	uint8_t *header = malloc(64);
	struct iovec slices[4];
	uint64_t offset = 0;
	struct xps_packetiser p;

	CHECK(header);
	CHECK_EQ(xps_packetise_bytes(size), most);
	xps_packetiser_start(&p, heap, CNT, size);
	while (!xps_packetiser_done(&p)) {
		struct xps_arena arena = { header, 64, slices, 4 };
		struct xps_out_packet packet;
		const uint64_t n_header = offset ? 40 : 56;
		uint64_t length;

		CHECK(xps_packetise(&p, &arena, &packet));
		CHECK_EQ(packet.length,
			 n_header + (2 * half - offset < most - n_header ? 2 * half - offset : most - n_header));
		CHECK_EQ(slices[0].iov_len, n_header);
		CHECK_EQ((uint64_t)(uintptr_t)slices[1].iov_base, 4096 + offset % half);
		length = slices[1].iov_len;
		if (packet.n_slices == 3) {
			CHECK_EQ(offset + length, half);
			CHECK_EQ((uintptr_t)slices[2].iov_base, 4096);
			length += slices[2].iov_len;
		}
		CHECK_EQ(length, packet.length - n_header);
		offset += length;
	}
	CHECK_EQ(offset, 2 * half);
	free(header);
	xps_send_heap_free(heap);
}

/* ---------------------------------------------------------------- what is refused */

static void check_refused(const struct xps_send_item *items, uint32_t n, int address_bits, bool repeat,
			  const char *reason)
{
	struct xps_fail fail = { 0 };

	CHECK(!xps_send_heap_new(items, n, address_bits, repeat, &fail));
	CHECK_EQ(fail.err, EINVAL);
	CHECK(strcmp(fail.step, "make heap") == 0);
	if (!strstr(fail.text, reason)) {
		fprintf(stderr, "%s\n", fail.text);
		CHECK(!"the reason is told");
	}
}

static void test_heaps_that_do_not_fit_their_flavour_are_refused(void)
{
	const uint8_t data[300] = { 0 };
	const struct xps_send_item good = value(0x7fff, (UINT64_C(1) << 48) - 1);
	const struct xps_send_item id = value(0x8000, 0), wide = value(0x1000, UINT64_C(1) << 48);
	const struct xps_send_item full[] = { bytes(0x10, data, 200), bytes(0x11, data, 55) };
	const struct xps_send_item over[] = { bytes(0x10, data, 200), bytes(0x11, data, 56) };
	const struct xps_send_item wrapping[] = { bytes(0x10, data, 200), bytes(0x11, (void *)1, UINT64_MAX - 1) };

	xps_send_heap_free(new_heap(&good, 1, 48, false));
	check_refused(&id, 1, 48, false, "identifier 0x8000");
	check_refused(&wide, 1, 48, false, "value 0x1000000000000");
	xps_send_heap_free(new_heap(full, 2, 8, false));
	check_refused(over, 2, 8, false, "255 bytes");
	check_refused(wrapping, 2, 56, false, "longer than");
	for (int bits = -8; bits <= 72; bits++)
		if (bits < 8 || bits > 56 || bits % 8)
			check_refused(NULL, 0, bits, false, "address bits");
}

static void test_items_without_memory_are_refused(void)
{
	const struct xps_send_item nowhere = bytes(0x1000, NULL, 1);
	const struct xps_send_item wrapping = bytes(0x1000, (void *)(UINTPTR_MAX - 4), 100);

	check_refused(&nowhere, 1, 48, false, "no bytes");
	check_refused(&wrapping, 1, 48, false, "no bytes");
}

static void test_values_that_would_be_taken_for_the_packets_own_are_refused(void)
{
	for (uint64_t id = 0; id <= 7; id++) {
		const struct xps_send_item immediate_item = value(id, 1), addressed_item = bytes(id, "", 1);

		if (id >= 1 && id <= 4)
			check_refused(&immediate_item, 1, 48, false, "the packet itself");
		else
			xps_send_heap_free(new_heap(&immediate_item, 1, 48, false));
		xps_send_heap_free(new_heap(&addressed_item, 1, 48, false));
	}
}

static void test_more_items_than_a_packet_can_repeat_are_refused(void)
{
	static struct xps_send_item items[65532];

	for (uint32_t i = 0; i < 65532; i++)
		items[i] = value(0x1000, i);
	xps_send_heap_free(new_heap(items, 65530, 48, true));
	/* One more is that to the zeros, */
	check_refused(items, 65531, 48, true, "65,531");
	/* which payload makes needless. */
	items[0] = bytes(0x1000, "", 1);
	xps_send_heap_free(new_heap(items, 65531, 48, true));
	check_refused(items, 65532, 48, true, "65,531");
	xps_send_heap_free(new_heap(items, 65532, 48, false));
}

static void check_min_packet_size(struct xps_send_heap *heap, uint64_t min)
{
	struct xps_fail fail = { 0 };
	struct xps_packet_generator *generator;

	CHECK_EQ(xps_send_heap_min_packet_size(heap), min);
	for (uint64_t size = 0; size < min; size++) {
		CHECK(!xps_packet_generator_new(heap, CNT, size, &fail));
		CHECK_EQ(fail.err, EINVAL);
		CHECK(strcmp(fail.step, "make packets") == 0);
		CHECK(strstr(fail.text, "too small"));
	}
	generator = xps_packet_generator_new(heap, CNT, min, &fail);
	CHECK(generator);
	xps_packet_generator_free(generator);
	xps_send_heap_free(heap);
}

static void test_packet_size_has_a_minimum(void)
{
	struct xps_send_item items[100];

	for (uint64_t i = 0; i < 100; i++)
		items[i] = value(0x10, i);
	check_min_packet_size(new_heap(items, 0, 48, false), 56);
	check_min_packet_size(new_heap(items, 100, 48, false), 56);
	check_min_packet_size(new_heap(items, 3, 48, true), 48 + 8 * 4);
	/* Zeros of 31 packets of 8 bytes and one can be addressed with 8 bits. */
	check_min_packet_size(new_heap(items, 31, 8, false), 56);
	check_min_packet_size(new_heap(items, 32, 8, false), 64);
	check_min_packet_size(new_heap(items, 100, 8, false), 48 + 8 * 4);
}

/* ---------------------------------------------------------------- generators */

static void test_generator_writes_the_same_packets_and_holds_the_heap(void)
{
	uint8_t *data = new_pattern(0, 3000);
	const struct xps_send_item items[] = { value(0x1000, 5), bytes(0x1001, data, 100), bytes(0x1002, data, 2900) };
	struct xps_send_heap *heap = new_heap(items, 3, 48, false);
	struct xps_fail fail;
	struct xps_packet_generator *generator = xps_packet_generator_new(heap, CNT, 1003, &fail);
	uint8_t *made = malloc(1000);
	struct xps_packetiser p;
	struct xps_out_packet packet;
	struct room room = new_room(4 * 1003);

	CHECK(generator && made);
	xps_packetiser_start(&p, heap, CNT, 1003);
	xps_send_heap_free(heap);
	while (xps_packetise(&p, &room.arena, &packet)) {
		uint8_t *flat = flatten(&packet);

		CHECK_EQ(xps_packet_generator_next(generator, made), packet.length);
		CHECK(memcmp(made, flat, packet.length) == 0);
		free(flat);
	}
	CHECK_EQ(xps_packet_generator_next(generator, made), 0);
	CHECK_EQ(xps_packet_generator_next(generator, made), 0);
	xps_packet_generator_free(generator);
	xps_packet_generator_free(NULL);
	xps_send_heap_free(NULL);
	free_room(&room);
	free(made);
	free(data);
}

int main(void)
{
	test_heap_without_items_is_one_packet_with_one_zero();
	test_payload_fills_packets_to_a_multiple_of_eight();
	test_item_pointers_that_do_not_fit_wait_for_the_next_packets();
	test_zeros_behind_a_short_payload_carry_the_item_pointers();
	test_zeros_are_left_out_when_the_payload_is_just_long_enough();
	test_repeated_pointers_are_in_every_packet();
	test_items_without_bytes_have_a_pointer_all_the_same();
	test_heap_identifier_is_modulo_the_address_bits();
	test_packetiser_that_is_copied_goes_on_from_there();
	test_long_pieces_are_not_copied();
	test_short_pieces_are_one_slice_with_their_neighbours();
	test_packet_of_most_slices_fits();
	test_packet_has_no_more_than_65535_item_pointers();
	test_heap_of_128_tebibytes_is_cut_right();
	test_heaps_that_do_not_fit_their_flavour_are_refused();
	test_items_without_memory_are_refused();
	test_values_that_would_be_taken_for_the_packets_own_are_refused();
	test_more_items_than_a_packet_can_repeat_are_refused();
	test_packet_size_has_a_minimum();
	test_generator_writes_the_same_packets_and_holds_the_heap();
	return 0;
}
