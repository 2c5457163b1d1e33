// SPDX-License-Identifier: Apache-2.0
/*
 * Proves that any heap is either refused for a reason that holds, or becomes packets that a second decoder takes and from
 * which a plain reassembly gets back the item pointers and the payload that went in; and that no packet needs more of the
 * arena than is said.
 *
 * The input: address bits and repetition, two bytes of max_packet_size, heap identifier, then items: identifier, kind, and
 * two bytes of value or length.
 */
#include <errno.h>
#include <string.h>

#include "bits.h"
#include "packetise.h"
#include "slow_packet.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { HEAD = 5, ITEM = 4, MAX_ITEMS = 512 };

struct input {
	unsigned bits;
	bool repeat;
	uint64_t max_packet_size;
	uint64_t cnt;
	uint32_t n_items;
	struct xps_send_item items[MAX_ITEMS];

	/* what is to come out */
	bool good;
	uint64_t words[MAX_ITEMS];
	uint8_t *payload;
	uint64_t length;
};

/* ---------------------------------------------------------------- heaps */

/* Bytes in memory of exactly their size. */
static uint64_t new_bytes(uint64_t n, uint32_t seed)
{
	uint8_t *bytes = malloc(n);

	EXPECT(bytes || !n);
	for (uint64_t i = 0; i < n; i++)
		bytes[i] = (uint8_t)(1 + (seed + i * 31 + (i >> 8)) % 255);
	return (uintptr_t)bytes;
}

static void read_item(struct input *input, const uint8_t *data)
{
	struct xps_send_item *item = &input->items[input->n_items];
	const uint64_t number = xps_load_be16(data + 2);

	/* Small, the largest that fits, or one more. */
	item->id = data[1] >> 6 == 3 ? (UINT64_C(1) << (63 - input->bits)) - 1 + (data[1] & 1) : data[1] & 63u;
	item->immediate = data[0] & 1;
	if (item->immediate)
		item->value = data[0] & 2 ? number << (data[0] >> 2) : number;
	else
		/* Mostly short, so that there are many in a packet. */
		item->length = number >> (data[0] >> 4);
	if (!item->immediate)
		item->data = new_bytes(item->length, input->n_items);
	input->n_items++;
}

static void read_input(struct input *input, const uint8_t *data, size_t size)
{
	memset(input, 0, sizeof(*input));
	input->bits = 8 * (1 + data[0] % 7u);
	input->repeat = data[0] & 0x80;
	input->max_packet_size = xps_load_be16(data + 1) >> (data[0] >> 3 & 7);
	input->cnt = (uint64_t)xps_load_be16(data + 3) << (data[4] & 31);
	for (size_t at = HEAD; at + ITEM <= size && input->n_items < MAX_ITEMS; at += ITEM)
		read_item(input, data + at);
}

static void free_input(struct input *input)
{
	for (uint32_t i = 0; i < input->n_items; i++)
		free((void *)(uintptr_t)input->items[i].data);
	free(input->payload);
}

/* Whether the heap can be sent, and what a receiver should get of it, zeros aside. */
static void expect_output(struct input *input)
{
	const uint64_t n_values = UINT64_C(1) << input->bits, n_ids = UINT64_C(1) << (63 - input->bits);
	uint64_t length = 0;

	input->good = true;
	for (uint32_t i = 0; i < input->n_items; i++) {
		const struct xps_send_item *item = &input->items[i];

		input->good &= item->id < n_ids;
		input->words[i] = item->id << input->bits;
		if (item->immediate) {
			input->good &= item->value < n_values && (item->id < 1 || item->id > 4);
			input->words[i] |= UINT64_C(1) << 63 | item->value;
		} else {
			input->words[i] |= length;
			length += item->length;
		}
	}
	input->good &= length < n_values;
	input->length = length;
	input->payload = malloc(length + 1);
	EXPECT(input->payload);
	length = 0;
	for (uint32_t i = 0; i < input->n_items; i++) {
		const struct xps_send_item *item = &input->items[i];

		if (item->length)
			memcpy(input->payload + length, (const void *)(uintptr_t)item->data, item->length);
		length += item->length;
	}
}

/* ---------------------------------------------------------------- packets */

/* What has come out so far. */
struct output {
	uint64_t n_packets;
	uint64_t n_words;
	uint64_t length;
	int64_t heap_length;
	bool last_was_short; /* of payload, though there was room: it has to be the last */
};

/* One that is not among the items is that to the zeros, the last of all. */
static void check_word(const struct input *input, const struct slow_packet *packet, uint64_t at, uint64_t word)
{
	if (at < input->n_items) {
		EXPECT(word == input->words[at]);
		return;
	}
	EXPECT(at == input->n_items);
	EXPECT(word == input->length && (uint64_t)packet->heap_length > input->length);
}

static void check_words(const struct input *input, struct output *output, const struct slow_packet *packet)
{
	if (input->repeat)
		output->n_words = 0;
	EXPECT(packet->n_items >= 4);
	for (unsigned i = 0; i < packet->n_items; i++) {
		if (i < 4)
			EXPECT(slow_special(&packet->items[i]) && packet->items[i].id == i + 1);
		else
			check_word(input, packet, output->n_words++, packet->items[i].word);
	}
}

static void check_payload(const struct input *input, const struct slow_packet *packet, const uint8_t *payload)
{
	for (uint64_t i = 0; i < packet->length; i++) {
		const uint64_t at = packet->offset + i;

		EXPECT(payload[i] == (at < input->length ? input->payload[at] : 0));
	}
}

static void check_packet(const struct input *input, struct output *output, const uint8_t *data, uint64_t size)
{
	static struct slow_packet packet;

	EXPECT(size <= input->max_packet_size);
	EXPECT(slow_decode(&packet, data, size) == 0);
	EXPECT(packet.bits == input->bits && packet.cnt == (input->cnt & ((UINT64_C(1) << input->bits) - 1)));
	EXPECT(packet.header + packet.length == size && packet.length);
	EXPECT(packet.offset == output->length);
	EXPECT(output->n_packets == 0 || packet.heap_length == output->heap_length);
	EXPECT(!output->last_was_short);
	check_words(input, output, &packet);
	check_payload(input, &packet, data + packet.header);
	output->n_packets++;
	output->heap_length = packet.heap_length;
	output->length += packet.length;
	output->last_was_short = input->max_packet_size - size >= 8;
}

/* A packet made in an arena of exactly the size; the same that the generator makes. */
static uint64_t make_packet(struct xps_packetiser *p, struct xps_packet_generator *generator, uint8_t *made,
			    const struct input *input)
{
	const uint64_t n_bytes = xps_packetise_bytes(input->max_packet_size);
	const uint64_t n_slices = xps_packetise_slices(input->max_packet_size);
	uint8_t *bytes = malloc(n_bytes);
	struct iovec *slices = malloc(n_slices * sizeof(*slices));
	struct xps_arena arena = { bytes, n_bytes, slices, n_slices };
	struct xps_out_packet packet = { 0 };
	uint64_t at = 0;

	EXPECT(bytes && slices);
	EXPECT(xps_packetise(p, &arena, &packet) == (packet.length > 0));
	EXPECT(xps_packet_generator_next(generator, made) == packet.length);
	for (uint32_t i = 0; i < packet.n_slices; i++) {
		EXPECT(slices[i].iov_len && slices[i].iov_len <= packet.length - at);
		EXPECT(memcmp(made + at, slices[i].iov_base, slices[i].iov_len) == 0);
		at += slices[i].iov_len;
	}
	EXPECT(at == packet.length);
	EXPECT(arena.bytes + arena.n_bytes == bytes + n_bytes && arena.slices + arena.n_slices == slices + n_slices);
	free(bytes);
	free(slices);
	return packet.length;
}

static void send_heap(const struct input *input, struct xps_send_heap *heap, struct xps_packet_generator *generator)
{
	/* One for each pointer and that to the zeros, and one for each eight bytes. */
	const uint64_t max_packets = input->n_items + 1 + input->length / 8 + 1;
	struct output output = { 0 };
	struct xps_packetiser p;
	uint8_t *made = malloc(input->max_packet_size);
	uint64_t size;

	EXPECT(made);
	xps_packetiser_start(&p, heap, input->cnt, input->max_packet_size);
	EXPECT(!xps_packetiser_done(&p));
	while ((size = make_packet(&p, generator, made, input))) {
		check_packet(input, &output, made, size);
		EXPECT(output.n_packets <= max_packets);
		EXPECT(xps_packetiser_done(&p) == (output.length == (uint64_t)output.heap_length));
	}
	EXPECT(xps_packetiser_done(&p));
	EXPECT(output.length == (uint64_t)output.heap_length && output.length >= input->length);
	EXPECT(output.n_words == input->n_items + (output.length > input->length));
	free(made);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct input input;
	struct xps_fail fail = { 0 };
	struct xps_send_heap *heap;

	if (size < HEAD)
		return 0;
	read_input(&input, data, size);
	expect_output(&input);
	heap = xps_send_heap_new(input.items, input.n_items, (int)input.bits, input.repeat, &fail);
	EXPECT(input.good == (heap != NULL));
	if (heap) {
		struct xps_packet_generator *generator =
			xps_packet_generator_new(heap, input.cnt, input.max_packet_size, &fail);

		EXPECT((input.max_packet_size >= xps_send_heap_min_packet_size(heap)) == (generator != NULL));
		if (generator)
			send_heap(&input, heap, generator);
		xps_packet_generator_free(generator);
	}
	EXPECT(!fail.err || (fail.err == EINVAL && fail.step[0] && fail.text[0]));
	xps_send_heap_free(heap);
	free_input(&input);
	return 0;
}
