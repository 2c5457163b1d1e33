// SPDX-License-Identifier: Apache-2.0
/* The framing finds every packet that begins where one may begin, and skips the rest without ever keeping it. */
#include <time.h>

#include "check.h"
#include "framing.h"
#include "packets.h"

enum { MAX_SIZE = 65536 };

static const struct spec spec = { .cnt = 3, .heap_length = 20, .length = 20 };

/* What the bytes begin with is a packet: this one. */
static void check_packet(struct xps_framing *framing, const uint8_t *data, size_t n, const struct spec *expected)
{
	struct xps_packet packet;
	struct xps_piece piece = xps_framing_next(framing, &packet, data, n);

	CHECK(piece.packet);
	CHECK_EQ(piece.stat, 0);
	CHECK_EQ(piece.length, spec_size(expected));
	CHECK_EQ(packet.heap_cnt, expected->cnt);
	CHECK_EQ(packet.payload_length, expected->length);
}

static void check_skipped(struct xps_framing *framing, const uint8_t *data, size_t n, uint64_t length, int stat)
{
	struct xps_packet packet;
	struct xps_piece piece = xps_framing_next(framing, &packet, data, n);

	CHECK(!piece.packet);
	CHECK_EQ(piece.length, length);
	CHECK_EQ(piece.stat, stat);
}

static void check_needs_more(struct xps_framing *framing, const uint8_t *data, size_t n)
{
	check_skipped(framing, data, n, 0, 0);
}

static void test_packet_is_one_when_its_last_byte_is_there_and_not_before(void)
{
	uint8_t *data = new_packet(&spec);
	const size_t size = spec_size(&spec);
	struct xps_framing growing = { .max_size = MAX_SIZE };

	for (size_t n = 0; n < size; n++) {
		struct xps_framing fresh = { .max_size = MAX_SIZE };
		struct guarded cut = guarded_copy(data, n);

		check_needs_more(&fresh, cut.data, n);
		check_needs_more(&growing, cut.data, n);
		guarded_free(&cut);
	}
	check_packet(&growing, data, size, &spec);
	free(data);
}

static void test_packets_that_touch_are_told_apart(void)
{
	const struct spec other = { .cnt = 4, .heap_length = 7, .length = 7 };
	uint8_t data[256], *end = put_packet(put_packet(data, &spec), &other);
	struct xps_framing framing = { .max_size = MAX_SIZE };

	check_packet(&framing, data, (size_t)(end - data), &spec);
	check_packet(&framing, data + spec_size(&spec), spec_size(&other), &other);
	check_needs_more(&framing, end, 0);
}

static void test_bytes_where_no_packet_begins_are_skipped_and_the_reason_is_told_once(void)
{
	uint8_t data[256] = { 0 }, *end = put_packet(data + 24, &spec);
	struct xps_framing framing = { .max_size = MAX_SIZE };

	/* Cut in the middle: the second half of the run has no reason of its own. */
	check_skipped(&framing, data, 20, 16, XPS_STAT_BAD_MAGIC);
	check_needs_more(&framing, data + 16, 4);
	check_skipped(&framing, data + 16, (size_t)(end - data) - 16, 8, 0);
	check_packet(&framing, data + 24, spec_size(&spec), &spec);
	/* After a packet it is another loss. */
	check_skipped(&framing, data, 8, 8, XPS_STAT_BAD_MAGIC);
}

static void test_packet_at_a_distance_that_is_no_multiple_of_eight_is_not_found(void)
{
	uint8_t data[256] = { 0 }, *end = put_packet(data + 5, &spec);
	const size_t n = (size_t)(end - data);
	struct xps_framing framing = { .max_size = MAX_SIZE };

	check_skipped(&framing, data, n, n / 8 * 8, XPS_STAT_BAD_MAGIC);
}

static void test_header_without_payload_length_is_no_packet(void)
{
	const struct spec many = { .cnt = 1, .heap_length = -1 };
	uint8_t data[256], *end = put_header(data, 48, 2);
	struct xps_framing framing = { .max_size = MAX_SIZE };

	end = put_word(end, immediate(48, 1, 1));
	end = put_word(end, immediate(48, 3, 0));
	put_packet(end, &many);
	check_skipped(&framing, data, (size_t)(end - data) + spec_size(&many), 24, XPS_STAT_MISSING_ITEM);
	check_packet(&framing, end, spec_size(&many), &many);
}

static void test_payload_length_in_an_address_is_none(void)
{
	uint8_t data[16], *end = put_word(put_header(data, 48, 1), addressed(48, 4, 0));
	struct xps_framing framing = { .max_size = MAX_SIZE };

	check_skipped(&framing, data, (size_t)(end - data), 16, XPS_STAT_MISSING_ITEM);
}

static void test_of_two_payload_lengths_the_last_counts(void)
{
	const uint64_t second = immediate(48, 4, 12);
	const struct spec twice = { .heap_length = -1, .length = 30, .items = &second, .n_items = 1 };
	uint8_t *data = new_packet(&twice);
	struct xps_framing framing = { .max_size = MAX_SIZE };
	struct xps_packet packet;

	CHECK_EQ(xps_framing_next(&framing, &packet, data, spec_size(&twice)).length, spec_size(&twice) - 30 + 12);
	CHECK_EQ(packet.payload_length, 12);
	free(data);
}

static void test_packet_with_a_bad_header_that_tells_its_length_is_skipped_as_a_whole(void)
{
	/* Without heap cnt; then with payload beyond the end of its heap. */
	uint8_t data[256], *end = put_word(put_word(put_header(data, 48, 2), immediate(48, 3, 0)), immediate(48, 4, 9));
	const struct spec beyond = { .heap_length = 20, .offset = 1, .length = 20 };
	struct xps_framing framing = { .max_size = MAX_SIZE };

	memset(end, 'S', 9);
	put_packet(end + 9, &beyond);
	check_skipped(&framing, data, (size_t)(end - data) + 9 + spec_size(&beyond), 33, XPS_STAT_MISSING_ITEM);
	check_skipped(&framing, end + 9, spec_size(&beyond), spec_size(&beyond), XPS_STAT_OFFSET_OVERFLOW);
}

static void test_packet_of_max_size_is_taken_and_one_byte_more_is_skipped(void)
{
	uint8_t *data = new_packet(&spec);
	const size_t size = spec_size(&spec);
	struct xps_framing fits = { .max_size = size }, small = { .max_size = size - 1 };

	check_packet(&fits, data, size, &spec);
	check_skipped(&small, data, size, size, XPS_STAT_TRUNCATED_DATAGRAM);
	free(data);
}

static void test_long_packet_is_skipped_as_it_comes_with_its_reason_told_once(void)
{
	/* SPEAD-64-56 can announce 2^56 bytes. */
	const uint64_t announced = (UINT64_C(1) << 56) - 1;
	uint8_t data[4096], *end = put_header(data, 56, 3);
	struct xps_framing framing = { .max_size = MAX_SIZE };
	uint64_t left = announced;

	end = put_word(end, immediate(56, 1, 1));
	end = put_word(end, immediate(56, 3, 0));
	end = put_word(end, immediate(56, 4, announced));
	check_skipped(&framing, data, (size_t)(end - data), 32, XPS_STAT_TRUNCATED_DATAGRAM);
	for (int i = 0; i < 1000; i++, left -= sizeof(data))
		check_skipped(&framing, data, sizeof(data), sizeof(data), 0);
	CHECK_EQ(framing.skip, left);
}

static void test_packet_after_a_long_one_is_found(void)
{
	const struct spec longer = { .cnt = 1, .heap_length = 1000, .length = 1000 };
	static uint8_t data[2048];
	uint8_t *end = put_packet(put_packet(data, &longer), &spec);
	struct xps_framing framing = { .max_size = 100 };
	const size_t n = spec_size(&longer);

	check_skipped(&framing, data, 60, 60, XPS_STAT_TRUNCATED_DATAGRAM);
	check_skipped(&framing, data + 60, (size_t)(end - data) - 60, n - 60, 0);
	check_packet(&framing, data + n, spec_size(&spec), &spec);
}

static void test_longest_header_fits_the_room(void)
{
	struct spec longest = { .heap_length = 0, .n_items = 65531 };
	uint64_t *items = calloc(longest.n_items, sizeof(*items));
	struct xps_framing framing = { .max_size = XPS_MAX_HEADER };
	uint8_t *data;

	longest.items = items;
	data = new_packet(&longest);
	CHECK_EQ(spec_size(&longest), xps_framing_room(0));
	check_needs_more(&framing, data, spec_size(&longest) - 1);
	check_packet(&framing, data, spec_size(&longest), &longest);
	free(data);
	free(items);
}

static void test_headers_in_each_other_are_not_read_again_and_again(void)
{
	/*
	 * Every eight bytes are a header of 65,535 items without payload length. To read each in full would take half a
	 * minute; a small packet between them shall not help the sender, wherever it moves the headers.
	 */
	enum { N = 4 << 20, EVERY = 40 };
	uint8_t *data = malloc(N + 256), *at = data;
	struct xps_framing framing = { .max_size = MAX_SIZE };
	struct xps_packet packet;
	uint64_t n_packets = 0;
	struct timespec before, after;

	for (uint64_t i = 0; at < data + N; i++) {
		const struct spec small = { .heap_length = -1, .length = i % 8, .address_bits = 40 };

		at = i % EVERY ? put_header(at, 48, 65535) : put_packet(at, &small);
	}
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
	for (size_t done = 0; done < N;) {
		const struct xps_piece piece = xps_framing_next(&framing, &packet, data + done, N - done);

		if (!piece.length)
			break;
		done += piece.length;
		n_packets += piece.packet;
	}
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
	CHECK(n_packets > 1000);
	CHECK(after.tv_sec - before.tv_sec < 5);
	free(data);
}

static void test_packet_inside_a_bad_header_is_found_wherever_it_is_and_whatever_its_flavour(void)
{
	/* What the header of 20 items was searched for says nothing of other flavours, nor of bytes not in step with it. */
	const struct spec odd = { .cnt = 1, .heap_length = -1, .length = 1, .address_bits = 40 };
	uint8_t data[256] = { 0 }, *at = put_packet(put_packet(put_header(data, 48, 20), &odd), &spec);
	struct xps_framing framing = { .max_size = MAX_SIZE };

	CHECK(at - data < 8 + 20 * 8);
	check_skipped(&framing, data, sizeof(data), 8, XPS_STAT_MISSING_ITEM);
	at = data + 8;
	check_packet(&framing, at, (size_t)(data + sizeof(data) - at), &odd);
	at += spec_size(&odd);
	check_packet(&framing, at, (size_t)(data + sizeof(data) - at), &spec);
}

static void test_what_is_left_at_the_end_has_its_reason(void)
{
	uint8_t *data = new_packet(&spec);
	const size_t size = spec_size(&spec), header = size - spec.length;

	for (size_t n = 0; n < size; n++) {
		struct xps_framing framing = { .max_size = MAX_SIZE };

		check_needs_more(&framing, data, n);
		CHECK_EQ(xps_framing_end(&framing, data, n),
			 n == 0 ? 0 : (n < header ? XPS_STAT_TRUNCATED_HEADER : XPS_STAT_SHORT_PACKET));
	}
	free(data);
}

static void test_end_of_a_run_of_skipped_bytes_has_no_reason_of_its_own(void)
{
	const uint8_t data[12] = { 0 };
	struct xps_framing framing = { .max_size = MAX_SIZE };

	check_skipped(&framing, data, sizeof(data), 8, XPS_STAT_BAD_MAGIC);
	check_needs_more(&framing, data + 8, 4);
	CHECK_EQ(xps_framing_end(&framing, data + 8, 4), 0);
}

int main(void)
{
	test_packet_is_one_when_its_last_byte_is_there_and_not_before();
	test_packets_that_touch_are_told_apart();
	test_bytes_where_no_packet_begins_are_skipped_and_the_reason_is_told_once();
	test_packet_at_a_distance_that_is_no_multiple_of_eight_is_not_found();
	test_header_without_payload_length_is_no_packet();
	test_payload_length_in_an_address_is_none();
	test_of_two_payload_lengths_the_last_counts();
	test_packet_with_a_bad_header_that_tells_its_length_is_skipped_as_a_whole();
	test_packet_of_max_size_is_taken_and_one_byte_more_is_skipped();
	test_long_packet_is_skipped_as_it_comes_with_its_reason_told_once();
	test_packet_after_a_long_one_is_found();
	test_longest_header_fits_the_room();
	test_headers_in_each_other_are_not_read_again_and_again();
	test_packet_inside_a_bad_header_is_found_wherever_it_is_and_whatever_its_flavour();
	test_what_is_left_at_the_end_has_its_reason();
	test_end_of_a_run_of_skipped_bytes_has_no_reason_of_its_own();
	return 0;
}
