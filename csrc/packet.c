// SPDX-License-Identifier: Apache-2.0
#include "packet.h"

#define MAGIC_VERSION 0x5304

/* What the special items of one packet said. Absent: the bit of its id is not in `seen`. */
struct specials {
	uint64_t value[XPS_ID_PAYLOAD_LENGTH + 1];
	unsigned int seen;
};

#define SEEN(id) (1u << (id))

/* A protocol item that comes again: the last one wins. */
static void read_pointers(struct xps_packet *packet, struct specials *specials, const uint8_t *data, unsigned int n)
{
	unsigned int first = n;

	for (unsigned int i = 0; i < n; i++) {
		uint64_t pointer = xps_load_be64(data + 8 * i);

		if (xps_pointer_special(pointer, packet->address_bits)) {
			uint64_t id = xps_pointer_id(pointer, packet->address_bits);

			specials->value[id] = xps_pointer_value(pointer, packet->address_bits);
			specials->seen |= SEEN(id);
		} else if (first == n) {
			first = i;
		}
	}
	packet->pointers = data + 8 * first;
	packet->n_pointers = (uint16_t)(n - first);
}

int xps_packet_decode_any(struct xps_packet *packet, const uint8_t *data, size_t length)
{
	const unsigned int needed = SEEN(XPS_ID_HEAP_CNT) | SEEN(XPS_ID_PAYLOAD_OFFSET) | SEEN(XPS_ID_PAYLOAD_LENGTH);
	struct specials specials;
	unsigned int n_items;

	if (unlikely(length < 8))
		return length ? XPS_STAT_TRUNCATED_HEADER : XPS_STAT_EMPTY_DATAGRAM;
	if (unlikely(xps_load_be16(data) != MAGIC_VERSION))
		return XPS_STAT_BAD_MAGIC;
	if (unlikely(data[2] == 0 || data[3] == 0 || data[2] + data[3] != 8))
		return XPS_STAT_BAD_FLAVOUR;
	n_items = xps_load_be16(data + 6);
	packet->header_size = 8 + 8 * n_items;
	if (unlikely(length < packet->header_size))
		return XPS_STAT_TRUNCATED_HEADER;

	packet->address_bits = (uint8_t)(8 * data[3]);
	specials.seen = 0;
	read_pointers(packet, &specials, data + 8, n_items);
	if (unlikely((specials.seen & needed) != needed))
		return XPS_STAT_MISSING_ITEM;

	packet->heap_cnt = specials.value[XPS_ID_HEAP_CNT];
	packet->payload_offset = specials.value[XPS_ID_PAYLOAD_OFFSET];
	packet->payload_length = specials.value[XPS_ID_PAYLOAD_LENGTH];
	packet->heap_length = -1;
	/* Values have at most 56 bits, so no sum of two overflows and none is negative. */
	if (likely(specials.seen & SEEN(XPS_ID_HEAP_LENGTH))) {
		packet->heap_length = (int64_t)specials.value[XPS_ID_HEAP_LENGTH];
		if (unlikely(packet->payload_offset + packet->payload_length > (uint64_t)packet->heap_length))
			return XPS_STAT_OFFSET_OVERFLOW;
	}
	return 0;
}
