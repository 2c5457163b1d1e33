// SPDX-License-Identifier: Apache-2.0
#include "framing.h"

/* Bytes from one place where a packet might begin to the next. */
#define STEP 8

static uint64_t header_size(const uint8_t *data)
{
	return 8 + 8 * (uint64_t)xps_load_be16(data + 6);
}

static bool is_payload_length(const uint8_t *pointer, unsigned int address_bits)
{
	const uint64_t word = xps_load_be64(pointer);

	return xps_pointer_immediate(word) && xps_pointer_id(word, address_bits) == XPS_ID_PAYLOAD_LENGTH;
}

/* Whether the header at `data`, byte `at` of the stream, has a payload length. */
static bool tells_length(struct xps_framing *framing, const uint8_t *data, uint64_t at)
{
	const unsigned int address_bytes = data[3];
	const uint64_t end = at + header_size(data);
	uint64_t *clear = &framing->clear[at % 8][address_bytes];
	uint64_t pointer = xps_max_u64(*clear, at + 8);

	while (pointer < end && !is_payload_length(data + (pointer - at), 8 * address_bytes))
		pointer += 8;
	*clear = pointer;
	return pointer < end;
}

/* 0: a packet begins here; XPS_STAT_TRUNCATED_HEADER: maybe; any other: none does, and why. */
static int judge(struct xps_framing *framing, const uint8_t *data, uint64_t at, size_t n)
{
	struct xps_packet packet;
	int stat;

	if (n < 8)
		return XPS_STAT_TRUNCATED_HEADER;
	stat = xps_packet_decode(&packet, data, 8);
	if (stat == XPS_STAT_BAD_MAGIC || stat == XPS_STAT_BAD_FLAVOUR)
		return stat;
	if (n < header_size(data))
		return XPS_STAT_TRUNCATED_HEADER;
	return tells_length(framing, data, at) ? 0 : XPS_STAT_MISSING_ITEM;
}

/* Of a header that tells it. Of several the last one counts. */
static uint64_t payload_length(const uint8_t *data)
{
	const unsigned int address_bits = 8u * data[3];
	const uint8_t *pointer = data + header_size(data);

	do
		pointer -= 8;
	while (!is_payload_length(pointer, address_bits));
	return xps_pointer_value(xps_load_be64(pointer), address_bits);
}

static struct xps_piece skip(struct xps_framing *framing, size_t n, int stat)
{
	const uint64_t length = xps_min_u64(framing->skip, n);

	framing->skip -= length;
	return (struct xps_piece){ .length = length, .stat = stat };
}

/* No packet begins at `data`: how far is it to where one may? */
static struct xps_piece skip_to_packet(struct xps_framing *framing, const uint8_t *data, size_t n, int stat)
{
	struct xps_piece piece = { .length = STEP, .stat = framing->lost ? 0 : stat };

	framing->lost = true;
	while (n - piece.length >= STEP) {
		stat = judge(framing, data + piece.length, framing->at + piece.length, n - piece.length);
		if (stat == 0 || stat == XPS_STAT_TRUNCATED_HEADER)
			break;
		piece.length += STEP;
	}
	return piece;
}

/* A packet begins at `data`, with its whole header. */
static struct xps_piece take(struct xps_framing *framing, struct xps_packet *packet, const uint8_t *data, size_t n)
{
	/* Values have at most 56 bits: no overflow. */
	const uint64_t length = header_size(data) + payload_length(data);
	int stat = xps_packet_decode(packet, data, n);

	framing->lost = false;
	if (length > framing->max_size)
		stat = XPS_STAT_TRUNCATED_DATAGRAM;
	if (stat) {
		framing->skip = length;
		return skip(framing, n, stat);
	}
	if (length <= n)
		return (struct xps_piece){ .length = length, .packet = true };
	framing->need = length;
	return (struct xps_piece){ 0 };
}

static struct xps_piece look(struct xps_framing *framing, struct xps_packet *packet, const uint8_t *data, size_t n)
{
	int stat;

	if (framing->skip)
		return skip(framing, n, 0);
	if (n < framing->need)
		return (struct xps_piece){ 0 };
	stat = judge(framing, data, framing->at, n);
	if (stat == 0)
		return take(framing, packet, data, n);
	if (stat != XPS_STAT_TRUNCATED_HEADER)
		return skip_to_packet(framing, data, n, stat);
	framing->need = n < 8 ? 8 : header_size(data);
	return (struct xps_piece){ 0 };
}

struct xps_piece xps_framing_next(struct xps_framing *framing, struct xps_packet *packet, const uint8_t *data, size_t n)
{
	struct xps_piece piece = look(framing, packet, data, n);

	framing->at += piece.length;
	if (piece.length)
		framing->need = 0;
	return piece;
}

int xps_framing_end(const struct xps_framing *framing, const uint8_t *data, size_t n)
{
	if (n == 0 || (n < 8 && framing->lost))
		return 0;
	return n < 8 || n < header_size(data) ? XPS_STAT_TRUNCATED_HEADER : XPS_STAT_SHORT_PACKET;
}
