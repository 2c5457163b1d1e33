// SPDX-License-Identifier: Apache-2.0
/* The floor of reassembly: memcpy of the same bytes. */
#include <string.h>

#include "floor.h"

void floor_memcpy(const uint8_t *packets, size_t n_heaps, size_t heap_stride, const uint32_t *payload_at,
		  size_t packets_per_heap, size_t payload_size, uint8_t *const *buffers, size_t n_buffers)
{
	for (size_t heap = 0; heap < n_heaps; heap++) {
		uint8_t *to = buffers[heap % n_buffers];

		for (size_t i = 0; i < packets_per_heap; i++, to += payload_size)
			memcpy(to, packets + payload_at[i], payload_size);
		packets += heap_stride;
	}
}
