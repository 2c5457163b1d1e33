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
int xps_packet_decode(struct xps_packet *packet, const uint8_t *data, size_t length);

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
