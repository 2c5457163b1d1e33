/* SPDX-License-Identifier: Apache-2.0 */
/*
 * memory - where heap payloads live: blocks that know where they came from.
 *
 * A block has a small head in front of its payload, with a reference count and the allocator that takes it back, so a
 * payload can be given back by whoever holds it last, in any thread, knowing nothing but its address. Not for the
 * core's own small structures: those use malloc.
 */
#pragma once

#include "stock.h"
#include "xdpspead.h"

/* A payload of at least `size` bytes, aligned to a cache line, not cleared, with one reference. NULL: no memory. */
uint8_t *xps_payload_new(struct xps_allocator *allocator, uint64_t size);
uint8_t *xps_payload_ref(uint8_t *payload);
uint64_t xps_payload_capacity(const uint8_t *payload);
/* What lies in front of it, XPS_PAYLOAD_ROOM bytes, aligned to a cache line. */
static inline void *xps_payload_room(uint8_t *payload)
{
	return payload - XPS_PAYLOAD_ROOM;
}

struct xps_allocator *xps_allocator_ref(struct xps_allocator *allocator);
