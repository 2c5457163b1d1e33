/* SPDX-License-Identifier: Apache-2.0 */
/*
 * packet - decode the header of one SPEAD packet. Bytes in, fields out; nothing is copied, no byte is trusted.
 *
 * All flavours SPEAD-64-XX with XX a multiple of 8 from 8 to 56 are understood. The wire format is that of the public
 * SPEAD specification of 2012, revision 1.
 */
#pragma once

#include "bits.h"
#include "xdpspead.h"

enum xps_item_id {
	XPS_ID_NULL = 0,
	XPS_ID_HEAP_CNT = 1,
	XPS_ID_HEAP_LENGTH = 2,
	XPS_ID_PAYLOAD_OFFSET = 3,
	XPS_ID_PAYLOAD_LENGTH = 4,
	XPS_ID_DESCRIPTOR = 5,
	XPS_ID_STREAM_CTRL = 6,
};

enum xps_stream_ctrl { XPS_CTRL_START = 0, XPS_CTRL_STOP = 2 };

struct xps_packet {
	uint64_t heap_cnt;
	uint64_t payload_offset; /* in the heap */
	uint64_t payload_length;
	int64_t heap_length;  /* -1 if the packet does not say */
	uint32_t header_size; /* bytes up to the payload */
	uint16_t n_pointers;  /* item pointers from the first that is not a protocol item of the packet */
	uint8_t address_bits;
	const uint8_t *pointers; /* big-endian */
};

/* The smallest packet is 8 bytes long; the header of one with 65,535 items is this long. */
#define XPS_MAX_HEADER (8 + 8 * 65535)

/*
 * Decode the packet at `data`, of which `length` bytes are at hand. Returns 0, or the enum xps_stat that counts why
 * it is refused. Afterwards header_size <= length, and payload_offset + payload_length does not overflow and stays
 * within heap_length; whether the payload is all there is for the caller to check, because only it knows where packets
 * end.
 */
static inline int xps_packet_decode(struct xps_packet *packet, const uint8_t *data, size_t length);

/* Fields of an item pointer in host order. */
static inline bool xps_pointer_immediate(uint64_t pointer)
{
	return pointer >> 63;
}

static inline uint64_t xps_pointer_id(uint64_t pointer, unsigned int address_bits)
{
	return (pointer & ~(UINT64_C(1) << 63)) >> address_bits;
}

/* Whether it tells about the packet rather than the heap: only immediates do. */
static inline bool xps_pointer_special(uint64_t pointer, unsigned int address_bits)
{
	uint64_t id = xps_pointer_id(pointer, address_bits);

	return xps_pointer_immediate(pointer) && id >= XPS_ID_HEAP_CNT && id <= XPS_ID_PAYLOAD_LENGTH;
}

static inline uint64_t xps_pointer_value(uint64_t pointer, unsigned int address_bits)
{
	return pointer & ((UINT64_C(1) << address_bits) - 1);
}

/* ---------------------------------------------------------------- decoding */

/* The same for any packet: item by item. */
int xps_packet_decode_any(struct xps_packet *packet, const uint8_t *data, size_t length);

#define XPS_USUAL_BITS 48
#define XPS_USUAL_HEAD (UINT64_C(0x53040206) << 32) /* magic, version, widths of SPEAD-64-48, reserved */
#define XPS_USUAL_ITEM(id) ((UINT64_C(1) << 63) | (uint64_t)(id) << XPS_USUAL_BITS)

/*
 * The packet that senders make, with nothing asked twice: SPEAD-64-48, the four items about itself first, in the order of
 * their ids, and none of them again. False, and nothing is known of the packet, if it is any other.
 */
static inline bool xps_packet_decode_usual(struct xps_packet *packet, const uint8_t *data, size_t length)
{
	uint64_t head, cnt, heap_length, offset, payload_length;
	uint32_t n_items;

	if (unlikely(length < 40))
		return false;
	head = xps_load_be64(data) ^ XPS_USUAL_HEAD;
	cnt = xps_load_be64(data + 8) ^ XPS_USUAL_ITEM(XPS_ID_HEAP_CNT);
	heap_length = xps_load_be64(data + 16) ^ XPS_USUAL_ITEM(XPS_ID_HEAP_LENGTH);
	offset = xps_load_be64(data + 24) ^ XPS_USUAL_ITEM(XPS_ID_PAYLOAD_OFFSET);
	payload_length = xps_load_be64(data + 32) ^ XPS_USUAL_ITEM(XPS_ID_PAYLOAD_LENGTH);
	if (unlikely((cnt | heap_length | offset | payload_length) >> XPS_USUAL_BITS || head >> 16))
		return false;
	n_items = (uint32_t)head;
	packet->header_size = 8 + 8 * n_items;
	if (unlikely(n_items < 4 || length < packet->header_size || offset + payload_length > heap_length))
		return false;
	for (uint32_t i = 4; i < n_items; i++)
		if (unlikely(xps_pointer_special(xps_load_be64(data + 8 + 8 * i), XPS_USUAL_BITS)))
			return false;
	packet->heap_cnt = cnt;
	packet->heap_length = (int64_t)heap_length;
	packet->payload_offset = offset;
	packet->payload_length = payload_length;
	packet->n_pointers = (uint16_t)(n_items - 4);
	packet->address_bits = XPS_USUAL_BITS;
	packet->pointers = data + 40;
	return true;
}

/*
 * The same for one of many that differ in their offset alone: `packet` has been decoded so from `before`, and has no
 * items but the four. False, and nothing has changed, if it is any other.
 */
static inline bool xps_packet_decode_like(struct xps_packet *packet, const uint8_t *before, const uint8_t *data,
					  size_t length)
{
	uint64_t offset, different;

	if (unlikely(length < 40))
		return false;
	different = xps_differ64(before, data) | xps_differ64(before + 8, data + 8) |
		    xps_differ64(before + 16, data + 16) | xps_differ64(before + 32, data + 32);
	offset = xps_load_be64(data + 24) ^ XPS_USUAL_ITEM(XPS_ID_PAYLOAD_OFFSET);
	if (different || offset >> XPS_USUAL_BITS || offset + packet->payload_length > (uint64_t)packet->heap_length)
		return false;
	packet->payload_offset = offset;
	packet->pointers = data + 40;
	return true;
}

static inline int xps_packet_decode(struct xps_packet *packet, const uint8_t *data, size_t length)
{
	return likely(xps_packet_decode_usual(packet, data, length)) ? 0 : xps_packet_decode_any(packet, data, length);
}
