/* SPDX-License-Identifier: Apache-2.0 */
/*
 * heap - one heap while it is put together: payload, which bytes of it are there, and item pointers.
 *
 * A heap grows by packets that have been decoded. It decides whether a packet fits, copies its payload once, and knows
 * when nothing is missing. It knows neither other heaps nor time: when to give up is the window's business.
 */
#pragma once

#include "copy.h"
#include "packet.h"
#include "view.h"
#include "xdpspead.h"

/* More items in one heap are refused: a packet cannot make the receiver search without end. */
#define XPS_MAX_ITEMS (UINT32_C(1) << 16)
/* More separate ranges in one heap are refused, for the same reason. */
#define XPS_MAX_RANGES (UINT32_C(1) << 16)

struct xps_heap_rules {
	struct xps_allocator *allocator;
	uint64_t max_heap_size;
	int memcpy; /* enum xps_memcpy */
	bool allow_out_of_order;
	bool keep_payload_ranges;
};

/* An empty heap that the packet will be the first of. NULL: no memory. */
struct xps_heap *xps_heap_new(const struct xps_packet *packet);
/*
 * The same in one piece of memory with its payload, if the packet tells how long that will be; the length has been found
 * not to be too large.
 */
struct xps_heap *xps_heap_open(const struct xps_packet *packet, const struct xps_heap_rules *rules);

/*
 * Add a packet whose bytes are in `view`, all of them (header_size + payload_length bytes). Returns 0, or the enum
 * xps_stat that counts why it was refused; then the payload is unchanged. XPS_HEAP_START and XPS_HEAP_STOP in
 * heap->flags follow the items.
 */
static inline int xps_heap_add(struct xps_heap *heap, const struct xps_heap_rules *rules,
			       const struct xps_packet *packet, const struct xps_view *view);

/* Nothing is missing and nothing can come: the length was announced and every byte is there. */
static inline bool xps_heap_complete(const struct xps_heap *heap)
{
	return heap->length >= 0 && heap->received == (uint64_t)heap->length && heap->received == heap->min_size;
}

/* Nothing that was referred to is missing; of an unsized heap more might have come. */
static inline bool xps_heap_contiguous(const struct xps_heap *heap)
{
	return heap->received == heap->min_size;
}

/*
 * Make the heap ready for its user: drop what an incomplete one cannot use, set XPS_HEAP_CONTIGUOUS. Returns the heap,
 * which may have had to move.
 */
struct xps_heap *xps_heap_finish(struct xps_heap *heap, const struct xps_heap_rules *rules);

/* ---------------------------------------------------------------- adding */

/* The same for any packet. */
int xps_heap_add_any(struct xps_heap *heap, const struct xps_heap_rules *rules, const struct xps_packet *packet,
		     const struct xps_view *view);
/* Whether the packet, which has items, has none but what others have brought already, in the same order. */
bool xps_heap_repeats_items(const struct xps_heap *heap, const struct xps_packet *packet);

/*
 * Whether the packet says what others have said, and goes on where all others end: then xps_heap_add_any() would find
 * nothing to object to. That the length was let through, and that there is memory for it, was seen to when it was first
 * heard of.
 */
static inline bool xps_heap_just_continues(const struct xps_heap *heap, const struct xps_heap_rules *rules,
					   const struct xps_packet *packet)
{
	const uint64_t length = (uint64_t)packet->heap_length;

	if ((packet->payload_offset ^ heap->received) | (length ^ (uint64_t)heap->length) | (length ^ heap->min_size) |
	    (uint64_t)(packet->address_bits ^ heap->address_bits))
		return false;
	/* Out of order it also matters that what is there is one piece. */
	if (unlikely(rules->allow_out_of_order) &&
	    (heap->n_ranges != 1 || heap->ranges[0] != 0 || heap->ranges[1] != heap->received))
		return false;
	return likely(!packet->n_pointers) || xps_heap_repeats_items(heap, packet);
}

/* Add a packet of which that is true, and which is in one piece. */
static inline void xps_heap_continue(struct xps_heap *heap, const struct xps_heap_rules *rules,
				     const struct xps_packet *packet, const struct xps_view *view)
{
	const uint64_t start = heap->received;

	heap->received += packet->payload_length;
	if (unlikely(rules->allow_out_of_order))
		heap->ranges[1] = heap->received;
	if (likely(packet->payload_length))
		xps_copy_ahead(heap->payload + start, view->data + packet->header_size, packet->payload_length,
			       rules->memcpy, view->ahead);
}

static inline int xps_heap_add(struct xps_heap *heap, const struct xps_heap_rules *rules,
			       const struct xps_packet *packet, const struct xps_view *view)
{
	if (unlikely(view->n_more || !xps_heap_just_continues(heap, rules, packet)))
		return xps_heap_add_any(heap, rules, packet, view);
	xps_heap_continue(heap, rules, packet, view);
	return 0;
}
