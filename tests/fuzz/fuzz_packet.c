// SPDX-License-Identifier: Apache-2.0
/*
 * Proves that no bytes make the packet decoder read beyond them, and that it finds or refuses in every header what a
 * second, plain decoder does.
 */
#include "packet.h"
#include "slow_packet.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* From the first pointer that is not the packet's own. */
static void check_pointers(const struct xps_packet *packet, const struct slow_packet *slow, const uint8_t *data)
{
	unsigned first = 0;

	while (first < slow->n_items && slow_special(&slow->items[first]))
		first++;
	EXPECT(packet->n_pointers == slow->n_items - first);
	EXPECT(packet->pointers == data + 8 + 8 * first);
	for (unsigned i = first; i < slow->n_items; i++) {
		const uint64_t pointer = xps_load_be64(packet->pointers + 8 * (i - first));

		EXPECT(xps_pointer_id(pointer, packet->address_bits) == slow->items[i].id);
		EXPECT(xps_pointer_value(pointer, packet->address_bits) == slow->items[i].value);
		EXPECT(xps_pointer_immediate(pointer) == slow->items[i].immediate);
		EXPECT(xps_pointer_special(pointer, packet->address_bits) == slow_special(&slow->items[i]));
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct slow_packet slow;
	struct xps_packet packet, other;
	int stat = xps_packet_decode(&packet, data, size);

	EXPECT(stat == slow_decode(&slow, data, size));
	EXPECT(stat == xps_packet_decode_any(&other, data, size));
	if (stat)
		return 0;
	/* The usual packet goes a shorter way, to the same place. */
	EXPECT(packet.heap_cnt == other.heap_cnt && packet.heap_length == other.heap_length);
	EXPECT(packet.payload_offset == other.payload_offset && packet.payload_length == other.payload_length);
	EXPECT(packet.header_size == other.header_size && packet.address_bits == other.address_bits);
	EXPECT(packet.pointers == other.pointers && packet.n_pointers == other.n_pointers);
	EXPECT(packet.header_size == slow.header && packet.header_size <= size);
	EXPECT(packet.address_bits == slow.bits);
	EXPECT(packet.heap_cnt == slow.cnt);
	EXPECT(packet.payload_offset == slow.offset);
	EXPECT(packet.payload_length == slow.length);
	EXPECT(packet.heap_length == slow.heap_length);
	check_pointers(&packet, &slow, data);
	return 0;
}
