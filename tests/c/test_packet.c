// SPDX-License-Identifier: Apache-2.0
/* The header of one packet: what the decoder finds in it, what it refuses and why, and that it reads no byte beyond. */
#include "check.h"
#include "packet.h"
#include "packets.h"

/* There are two ways through the decoder: the one that the packet took must say what the long one says. */
static void check_both_ways_agree(int stat, const struct xps_packet *packet, const uint8_t *data, size_t length)
{
	struct xps_packet other;

	CHECK_EQ(xps_packet_decode_any(&other, data, length), stat);
	if (stat)
		return;
	CHECK_EQ(packet->heap_cnt, other.heap_cnt);
	CHECK_EQ(packet->heap_length, other.heap_length);
	CHECK_EQ(packet->payload_offset, other.payload_offset);
	CHECK_EQ(packet->payload_length, other.payload_length);
	CHECK_EQ(packet->header_size, other.header_size);
	CHECK_EQ(packet->n_pointers, other.n_pointers);
	CHECK_EQ(packet->address_bits, other.address_bits);
	CHECK(packet->pointers == other.pointers);
}

/* From memory that ends at a page nobody may touch. The pointers are checked before it goes. */
static int decode(struct xps_packet *packet, const uint8_t *data, size_t length)
{
	struct guarded guarded = guarded_copy(data, length);
	int stat = xps_packet_decode(packet, guarded.data, length);

	check_both_ways_agree(stat, packet, guarded.data, length);
	if (!stat) {
		CHECK(packet->header_size <= length);
		CHECK(packet->pointers >= guarded.data + 8);
		CHECK(packet->pointers + 8 * packet->n_pointers == guarded.data + packet->header_size);
		packet->pointers = data + (packet->pointers - guarded.data);
	}
	guarded_free(&guarded);
	return stat;
}

/* Only the header of the packet, as the decoder may get it. */
static int decode_spec(struct xps_packet *packet, const struct spec *spec)
{
	uint8_t *data = new_packet(spec);
	int stat = decode(packet, data, spec_size(spec) - spec->length);

	free(data);
	return stat;
}

/* A header of these words. */
static int decode_words(struct xps_packet *packet, const uint64_t *words, unsigned n)
{
	static uint8_t data[8 + 8 * 16];
	uint8_t *at = put_header(data, 48, n);

	for (unsigned i = 0; i < n; i++)
		at = put_word(at, words[i]);
	return decode(packet, data, (size_t)(at - data));
}

static void test_every_flavour_is_decoded(void)
{
	for (unsigned bits = 8; bits <= 56; bits += 8) {
		const uint64_t top = (UINT64_C(1) << bits) - 1;
		const struct spec spec = { .cnt = top - 1,
					   .heap_length = (int64_t)top,
					   .offset = top - 100,
					   .length = 99,
					   .address_bits = bits };
		struct xps_packet packet;

		CHECK_EQ(decode_spec(&packet, &spec), 0);
		CHECK_EQ(packet.address_bits, bits);
		CHECK_EQ(packet.heap_cnt, top - 1);
		CHECK_EQ(packet.heap_length, top);
		CHECK_EQ(packet.payload_offset, top - 100);
		CHECK_EQ(packet.payload_length, 99);
		CHECK_EQ(packet.header_size, 40);
		CHECK_EQ(packet.n_pointers, 0);
	}
}

static void test_ids_are_as_wide_as_the_flavour_leaves_them(void)
{
	for (unsigned bits = 8; bits <= 56; bits += 8) {
		const uint64_t top_id = (UINT64_C(1) << (63 - bits)) - 1, top = (UINT64_C(1) << bits) - 1;

		CHECK_EQ(xps_pointer_id(immediate(bits, top_id, 0), bits), top_id);
		CHECK_EQ(xps_pointer_id(addressed(bits, top_id, 0), bits), top_id);
		CHECK_EQ(xps_pointer_value(immediate(bits, 0, top), bits), top);
		CHECK(xps_pointer_immediate(immediate(bits, 0, 0)));
		CHECK(!xps_pointer_immediate(addressed(bits, top_id, top)));
	}
}

static void test_packet_without_heap_length_says_so(void)
{
	struct xps_packet packet;

	CHECK_EQ(decode_spec(&packet, &(struct spec){ .heap_length = -1, .length = 10 }), 0);
	CHECK_EQ(packet.heap_length, -1);
	CHECK_EQ(packet.header_size, 32);
}

static void test_pointers_begin_at_the_first_that_is_not_the_packets_own(void)
{
	const uint64_t words[] = { immediate(48, 3, 0), immediate(48, 4, 5), addressed(48, 0x1000, 7),
				   immediate(48, 1, 9), immediate(48, 2, 5), immediate(48, 0x1001, 8),
				   immediate(48, 6, 2) };
	uint8_t data[8 + sizeof(words)];
	struct xps_packet packet;

	for (unsigned i = 0; i < 7; i++)
		put_word(put_header(data, 48, 7) + 8 * i, words[i]);
	CHECK_EQ(decode(&packet, data, sizeof(data)), 0);
	CHECK_EQ(packet.n_pointers, 5);
	CHECK(packet.pointers == data + 8 + 16);
	CHECK_EQ(packet.heap_cnt, 9);
}

static void test_last_of_equal_special_items_wins(void)
{
	const uint64_t words[] = {
		immediate(48, 1, 10), immediate(48, 2, 20), immediate(48, 3, 1), immediate(48, 4, 2),
		immediate(48, 1, 11), immediate(48, 2, 21), immediate(48, 3, 3), immediate(48, 4, 4)
	};
	struct xps_packet packet;

	CHECK_EQ(decode_words(&packet, words, 8), 0);
	CHECK_EQ(packet.heap_cnt, 11);
	CHECK_EQ(packet.heap_length, 21);
	CHECK_EQ(packet.payload_offset, 3);
	CHECK_EQ(packet.payload_length, 4);
	CHECK_EQ(packet.n_pointers, 0);
}

static void test_addressed_items_with_special_ids_are_not_special(void)
{
	for (unsigned id = 1; id <= 4; id++) {
		const uint64_t words[] = { immediate(48, 1, 1), immediate(48, 2, 100), immediate(48, 3, 3),
					   immediate(48, 4, 4), addressed(48, id, 50) };
		struct xps_packet packet;

		CHECK_EQ(decode_words(&packet, words, 5), 0);
		CHECK_EQ(packet.heap_cnt, 1);
		CHECK_EQ(packet.heap_length, 100);
		CHECK_EQ(packet.payload_offset, 3);
		CHECK_EQ(packet.payload_length, 4);
		CHECK_EQ(packet.n_pointers, 1);
	}
}

static void test_packet_without_a_needed_item_is_refused(void)
{
	const unsigned needed[] = { 1, 3, 4 };
	struct xps_packet packet;

	for (unsigned missing = 0; missing < 3; missing++) {
		uint64_t words[3];

		for (unsigned i = 0; i < 3; i++)
			words[i] = i == missing ? addressed(48, needed[i], 1) : immediate(48, needed[i], 1);
		CHECK_EQ(decode_words(&packet, words, 3), XPS_STAT_MISSING_ITEM);
		words[missing] = immediate(48, needed[missing], 1);
		CHECK_EQ(decode_words(&packet, words, 3), 0);
	}
	CHECK_EQ(decode_words(&packet, NULL, 0), XPS_STAT_MISSING_ITEM);
}

static void test_empty_datagram_is_refused(void)
{
	struct xps_packet packet;

	CHECK_EQ(decode(&packet, NULL, 0), XPS_STAT_EMPTY_DATAGRAM);
}

static void test_header_cut_anywhere_is_refused(void)
{
	const uint64_t items[] = { addressed(48, 0x1000, 0), immediate(48, 0x1001, 1) };
	const struct spec spec = { .heap_length = 4, .length = 4, .items = items, .n_items = 2 };
	uint8_t *data = new_packet(&spec);
	struct xps_packet packet;

	for (size_t length = 1; length < 56; length++)
		CHECK_EQ(decode(&packet, data, length), XPS_STAT_TRUNCATED_HEADER);
	CHECK_EQ(decode(&packet, data, 56), 0);
	CHECK_EQ(packet.header_size, 56);
	free(data);
}

static void test_more_items_than_bytes_are_refused(void)
{
	uint8_t data[8 + 8 * 4];
	struct xps_packet packet;

	put_packet(data, &(struct spec){ .heap_length = 0 });
	for (unsigned n = 5; n <= UINT16_MAX; n += n < 300 ? 1 : 631) {
		data[6] = (uint8_t)(n >> 8);
		data[7] = (uint8_t)n;
		CHECK_EQ(decode(&packet, data, sizeof(data)), XPS_STAT_TRUNCATED_HEADER);
	}
}

static void test_longest_header_is_decoded(void)
{
	uint8_t *data = malloc(XPS_MAX_HEADER);
	uint8_t *at = put_header(data, 48, UINT16_MAX);
	struct xps_packet packet;

	for (uint64_t i = 0; i < UINT16_MAX - 3; i++)
		at = put_word(at, immediate(48, 0x1000, i));
	at = put_word(at, immediate(48, 1, 77));
	at = put_word(at, immediate(48, 3, 0));
	at = put_word(at, immediate(48, 4, 0));
	CHECK_EQ(at - data, XPS_MAX_HEADER);
	CHECK_EQ(decode(&packet, data, XPS_MAX_HEADER), 0);
	CHECK_EQ(packet.heap_cnt, 77);
	CHECK_EQ(packet.n_pointers, UINT16_MAX);
	CHECK_EQ(decode(&packet, data, XPS_MAX_HEADER - 1), XPS_STAT_TRUNCATED_HEADER);
	free(data);
}

static void test_anything_but_magic_and_version_is_refused(void)
{
	uint8_t data[8 + 8 * 4];
	struct xps_packet packet;

	for (unsigned byte = 0; byte < 2; byte++) {
		for (unsigned value = 0; value < 256; value++) {
			put_packet(data, &(struct spec){ .heap_length = 0 });
			if (data[byte] == value)
				continue;
			data[byte] = (uint8_t)value;
			CHECK_EQ(decode(&packet, data, sizeof(data)), XPS_STAT_BAD_MAGIC);
		}
	}
}

static void test_widths_that_do_not_make_64_bits_are_refused(void)
{
	uint8_t data[8 + 8 * 4];
	struct xps_packet packet;

	put_packet(data, &(struct spec){ .heap_length = 0 });
	for (unsigned id = 0; id < 256; id++) {
		for (unsigned address = 0; address < 256; address++) {
			data[2] = (uint8_t)id;
			data[3] = (uint8_t)address;
			if (id == 0 || address == 0 || id + address != 8)
				CHECK_EQ(decode(&packet, data, sizeof(data)), XPS_STAT_BAD_FLAVOUR);
			else
				CHECK(decode(&packet, data, sizeof(data)) != XPS_STAT_BAD_FLAVOUR);
		}
	}
}

static void test_payload_may_reach_the_end_of_the_heap_but_not_beyond(void)
{
	struct xps_packet packet;

	CHECK_EQ(decode_spec(&packet, &(struct spec){ .heap_length = 100, .offset = 90, .length = 10 }), 0);
	CHECK_EQ(decode_spec(&packet, &(struct spec){ .heap_length = 100, .offset = 90, .length = 11 }),
		 XPS_STAT_OFFSET_OVERFLOW);
	CHECK_EQ(decode_spec(&packet, &(struct spec){ .heap_length = 100, .offset = 100 }), 0);
	CHECK_EQ(decode_spec(&packet, &(struct spec){ .heap_length = 100, .offset = 101 }), XPS_STAT_OFFSET_OVERFLOW);
	CHECK_EQ(decode_spec(&packet, &(struct spec){ .heap_length = 0, .length = 1 }), XPS_STAT_OFFSET_OVERFLOW);
}

static void test_largest_offset_and_length_do_not_overflow(void)
{
	const uint64_t top = (UINT64_C(1) << 56) - 1;
	const uint64_t words[] = { immediate(56, 1, top), immediate(56, 3, top), immediate(56, 4, top),
				   immediate(56, 2, top) };
	uint8_t data[8 + sizeof(words)];
	struct xps_packet packet;

	for (unsigned i = 0; i < 4; i++)
		put_word(put_header(data, 56, 4) + 8 * i, words[i]);
	CHECK_EQ(decode(&packet, data, sizeof(data)), XPS_STAT_OFFSET_OVERFLOW);
	put_header(data, 56, 3);
	CHECK_EQ(decode(&packet, data, sizeof(data)), 0);
	CHECK_EQ(packet.payload_offset + packet.payload_length, 2 * top);
}

static void test_reserved_bytes_are_not_looked_at(void)
{
	uint8_t data[8 + 8 * 4];
	struct xps_packet packet;

	put_packet(data, &(struct spec){ .heap_length = 0 });
	data[4] = 0xab;
	data[5] = 0xcd;
	CHECK_EQ(decode(&packet, data, sizeof(data)), 0);
}

/* The header that senders write, with `n_items` more items of the heap. */
static size_t put_usual(uint8_t *data, unsigned n_items)
{
	const uint64_t items[] = { immediate(48, 0x1600, 7), addressed(48, 0x1601, 0), immediate(48, 6, 0) };
	const struct spec spec = { .cnt = 0x123456789abc,
				   .heap_length = 5000,
				   .offset = 1000,
				   .length = 0,
				   .items = items,
				   .n_items = n_items };

	return (size_t)(put_packet(data, &spec) - data);
}

static void test_usual_header_goes_the_short_way(void)
{
	for (unsigned n_items = 0; n_items <= 3; n_items++) {
		struct xps_packet packet;
		uint8_t data[128];
		const size_t size = put_usual(data, n_items);

		CHECK(xps_packet_decode_usual(&packet, data, size));
		CHECK_EQ(packet.heap_cnt, 0x123456789abc);
		CHECK_EQ(packet.n_pointers, n_items);
		/* More bytes than the header are none of its business, fewer are. */
		CHECK(xps_packet_decode_usual(&packet, data, size + 1));
		CHECK(!xps_packet_decode_usual(&packet, data, size - 1));
	}
}

static void test_usual_header_with_any_byte_changed_means_what_the_long_way_says(void)
{
	uint8_t data[128];
	const size_t size = put_usual(data, 3);

	for (size_t at = 0; at < size; at++) {
		const uint8_t was = data[at];

		for (unsigned value = 0; value < 256; value++) {
			struct xps_packet packet;

			data[at] = (uint8_t)value;
			decode(&packet, data, size);
		}
		data[at] = was;
	}
}

static bool same_packets(const struct xps_packet *a, const struct xps_packet *b)
{
	return a->heap_cnt == b->heap_cnt && a->payload_offset == b->payload_offset &&
	       a->payload_length == b->payload_length && a->heap_length == b->heap_length &&
	       a->header_size == b->header_size && a->n_pointers == b->n_pointers &&
	       a->address_bits == b->address_bits && a->pointers == b->pointers;
}

static void test_header_like_the_one_before_means_what_the_long_way_says_or_goes_it(void)
{
	const struct spec spec = { .cnt = 7, .heap_length = 5000, .offset = 1000, .length = 100 };
	enum { size = 40 };
	uint8_t before[size + 100], data[size];
	struct xps_packet first, packet, slow;
	unsigned n_like = 0;

	put_packet(before, &spec);
	CHECK(xps_packet_decode_usual(&first, before, size));
	memcpy(data, before, size);
	for (size_t at = 0; at < size; at++) {
		for (unsigned value = 0; value < 256; value++) {
			data[at] = (uint8_t)value;
			packet = first;
			if (xps_packet_decode_like(&packet, before, data, size)) {
				CHECK_EQ(xps_packet_decode_any(&slow, data, size), 0);
				CHECK(same_packets(&packet, &slow));
				n_like++;
			} else {
				CHECK(same_packets(&packet, &first));
			}
		}
		data[at] = before[at];
	}
	/* Offsets: no more than 4,900 = 0x1324. Of the lowest byte all values, of the next up to 0x12; else those that were. */
	CHECK_EQ(n_like, (size - 2) + 256 + 0x13);
	CHECK(!xps_packet_decode_like(&packet, before, data, size - 1));
}

int main(void)
{
	test_every_flavour_is_decoded();
	test_ids_are_as_wide_as_the_flavour_leaves_them();
	test_packet_without_heap_length_says_so();
	test_pointers_begin_at_the_first_that_is_not_the_packets_own();
	test_last_of_equal_special_items_wins();
	test_addressed_items_with_special_ids_are_not_special();
	test_packet_without_a_needed_item_is_refused();
	test_empty_datagram_is_refused();
	test_header_cut_anywhere_is_refused();
	test_more_items_than_bytes_are_refused();
	test_longest_header_is_decoded();
	test_anything_but_magic_and_version_is_refused();
	test_widths_that_do_not_make_64_bits_are_refused();
	test_payload_may_reach_the_end_of_the_heap_but_not_beyond();
	test_largest_offset_and_length_do_not_overflow();
	test_reserved_bytes_are_not_looked_at();
	test_usual_header_goes_the_short_way();
	test_usual_header_with_any_byte_changed_means_what_the_long_way_says();
	test_header_like_the_one_before_means_what_the_long_way_says_or_goes_it();
	return 0;
}
