// SPDX-License-Identifier: Apache-2.0
/*
 * How it works
 *
 * In order (the default) the bytes that are there are always 0..received, so one number says which. Out of order they
 * are kept as sorted ranges that are merged when they touch; almost always a packet extends the last one.
 *
 * Item pointers are gathered from all packets, each 64-bit value once: by looking through them while they are few, in
 * a hash set from the ninth on. They are sorted only when the user asks for the items.
 *
 * Where it can, a heap lies in front of its payload, in memory that the payload has to spare: so a heap costs one
 * allocation, which is one for the two threads that allocate and free to get in each other's way. If the payload has to
 * grow, or goes because the heap is incomplete, the heap stays, or moves.
 */
#include "heap.h"

#include <errno.h>
#include <stdlib.h>

#include "memory.h"

#define NO_ENTRY UINT32_MAX

_Static_assert(sizeof(struct xps_heap) <= XPS_PAYLOAD_ROOM, "a heap fits in front of its payload");

static void init(struct xps_heap *heap, const struct xps_packet *packet)
{
	/* All but the inline pointers, which n_pointers keeps anyone from reading. */
	memset(heap, 0, offsetof(struct xps_heap, inline_pointers));
	heap->cnt = packet->heap_cnt;
	heap->length = -1;
	heap->address_bits = packet->address_bits;
	heap->pointers = heap->inline_pointers;
	heap->pointers_capacity = XPS_ARRAY_LEN(heap->inline_pointers);
}

struct xps_heap *xps_heap_new(const struct xps_packet *packet)
{
	struct xps_heap *heap = malloc(sizeof(*heap));

	if (heap)
		init(heap, packet);
	return heap;
}

struct xps_heap *xps_heap_open(const struct xps_packet *packet, const struct xps_heap_rules *rules)
{
	struct xps_heap *heap;
	uint8_t *payload;

	if (packet->heap_length <= 0)
		return xps_heap_new(packet);
	payload = xps_payload_new(rules->allocator, (uint64_t)packet->heap_length);
	if (!payload)
		return NULL;
	heap = xps_payload_room(payload);
	init(heap, packet);
	heap->payload = heap->home = payload;
	heap->capacity = (uint64_t)packet->heap_length;
	return heap;
}

/* The heap is forgotten. */
static void free_struct(struct xps_heap *heap)
{
	if (heap->home)
		xps_payload_free(heap->home);
	else
		free(heap);
}

static void drop_payload(struct xps_heap *heap)
{
	if (heap->payload != heap->home) /* else that goes with the heap */
		xps_payload_free(heap->payload);
	heap->payload = NULL;
}

/* Move a heap that lies in front of memory which it does not need. If there is no memory to move to it stays. */
static struct xps_heap *move_out(struct xps_heap *heap)
{
	struct xps_heap *moved = malloc(sizeof(*moved));

	if (!moved)
		return heap;
	*moved = *heap;
	moved->home = NULL;
	if (heap->pointers == heap->inline_pointers)
		moved->pointers = moved->inline_pointers;
	free_struct(heap);
	return moved;
}

void xps_heap_free(struct xps_heap *heap)
{
	if (!heap)
		return;
	drop_payload(heap);
	if (heap->pointers != heap->inline_pointers)
		free(heap->pointers);
	free(heap->set);
	free(heap->ranges);
	free_struct(heap);
}

uint8_t *xps_heap_take_payload(struct xps_heap *heap)
{
	return heap->payload ? xps_payload_ref(heap->payload) : NULL;
}

/* ---------------------------------------------------------------- item pointers */

static uint32_t set_start(const struct xps_heap *heap, uint64_t pointer)
{
	return (uint32_t)(xps_hash(pointer, heap->set) >> (64 - heap->set_bits));
}

/* Where the pointer's index is or belongs. The set is never full. */
static uint32_t *set_find(const struct xps_heap *heap, uint64_t pointer)
{
	uint32_t mask = (UINT32_C(1) << heap->set_bits) - 1;
	uint32_t i = set_start(heap, pointer);

	while (heap->set[i] != NO_ENTRY && heap->pointers[heap->set[i]] != pointer)
		i = (i + 1) & mask;
	return &heap->set[i];
}

/* Double the room for pointers, and make the set twice as large as that has room, so that chains stay short. */
static int grow_pointers(struct xps_heap *heap)
{
	uint32_t capacity = heap->pointers_capacity * 2;
	uint64_t *pointers = malloc(capacity * sizeof(*pointers));
	uint32_t bits = (uint32_t)__builtin_ctz(capacity) + 1;
	uint32_t *set = malloc((sizeof(*set)) << bits);

	if (!pointers || !set) {
		free(pointers);
		free(set);
		return XPS_STAT_NO_MEMORY;
	}
	memcpy(pointers, heap->pointers, heap->n_pointers * sizeof(*pointers));
	if (heap->pointers != heap->inline_pointers)
		free(heap->pointers);
	free(heap->set);
	heap->pointers = pointers;
	heap->pointers_capacity = capacity;
	heap->set = set;
	heap->set_bits = bits;
	memset(set, 0xff, sizeof(*set) << bits);
	for (uint32_t i = 0; i < heap->n_pointers; i++)
		*set_find(heap, pointers[i]) = i;
	return 0;
}

static bool has_pointer(const struct xps_heap *heap, uint64_t pointer)
{
	if (heap->set)
		return *set_find(heap, pointer) != NO_ENTRY;
	for (uint32_t i = 0; i < heap->n_pointers; i++)
		if (heap->pointers[i] == pointer)
			return true;
	return false;
}

static int append_pointer(struct xps_heap *heap, uint64_t pointer)
{
	int refused;

	if (heap->n_pointers == heap->pointers_capacity) {
		refused = grow_pointers(heap);
		if (refused)
			return refused;
	}
	if (heap->set)
		*set_find(heap, pointer) = heap->n_pointers;
	heap->pointers[heap->n_pointers++] = pointer;
	return 0;
}

/* What an item pointer means for the heap as a whole. */
static void note_pointer(struct xps_heap *heap, uint64_t pointer)
{
	uint64_t value = xps_pointer_value(pointer, heap->address_bits);

	if (!xps_pointer_immediate(pointer)) {
		heap->min_size = xps_max_u64(heap->min_size, value);
	} else if (xps_pointer_id(pointer, heap->address_bits) == XPS_ID_STREAM_CTRL) {
		if (value == XPS_CTRL_START)
			heap->flags |= XPS_HEAP_START;
		else if (value == XPS_CTRL_STOP)
			heap->flags |= XPS_HEAP_STOP;
	}
}

static int add_pointers(struct xps_heap *heap, const struct xps_packet *packet)
{
	for (uint32_t i = 0; i < packet->n_pointers; i++) {
		uint64_t pointer = xps_load_be64(packet->pointers + 8 * i);
		int refused;

		if (xps_pointer_special(pointer, heap->address_bits) || has_pointer(heap, pointer))
			continue;
		refused = append_pointer(heap, pointer);
		if (refused)
			return refused;
		note_pointer(heap, pointer);
	}
	return 0;
}

/* ---------------------------------------------------------------- which bytes are there */

static uint64_t range_start(const struct xps_heap *heap, uint32_t i)
{
	return heap->ranges[2 * i];
}

static uint64_t *range_end(const struct xps_heap *heap, uint32_t i)
{
	return &heap->ranges[2 * i + 1];
}

/* The first range that starts after `offset`. */
static uint32_t range_after(const struct xps_heap *heap, uint64_t offset)
{
	uint32_t low = 0, high = heap->n_ranges;

	while (low < high) {
		uint32_t middle = low + (high - low) / 2;

		if (range_start(heap, middle) > offset)
			high = middle;
		else
			low = middle + 1;
	}
	return low;
}

static int insert_range(struct xps_heap *heap, uint32_t at, uint64_t start, uint64_t end)
{
	if (heap->n_ranges == XPS_MAX_RANGES)
		return XPS_STAT_TOO_MANY_RANGES;
	if (heap->n_ranges == heap->ranges_capacity) {
		uint32_t capacity = heap->ranges_capacity ? 2 * heap->ranges_capacity : 4;
		uint64_t *ranges = realloc(heap->ranges, 2 * sizeof(*ranges) * capacity);

		if (!ranges)
			return XPS_STAT_NO_MEMORY;
		heap->ranges = ranges;
		heap->ranges_capacity = capacity;
	}
	memmove(&heap->ranges[2 * at + 2], &heap->ranges[2 * at], 2 * sizeof(*heap->ranges) * (heap->n_ranges - at));
	heap->ranges[2 * at] = start;
	heap->ranges[2 * at + 1] = end;
	heap->n_ranges++;
	return 0;
}

static void remove_range(struct xps_heap *heap, uint32_t at)
{
	heap->n_ranges--;
	memmove(&heap->ranges[2 * at], &heap->ranges[2 * at + 2], 2 * sizeof(*heap->ranges) * (heap->n_ranges - at));
}

/* Out of order: take start..end into the ranges, unless something of it is there already. */
static int add_range(struct xps_heap *heap, uint64_t start, uint64_t end)
{
	uint32_t next = range_after(heap, start);
	int refused;

	if (next < heap->n_ranges && range_start(heap, next) < end)
		return XPS_STAT_OVERLAP;
	if (next > 0 && *range_end(heap, next - 1) > start)
		return XPS_STAT_DUPLICATE;
	if (next > 0 && *range_end(heap, next - 1) == start) {
		*range_end(heap, next - 1) = end;
	} else {
		refused = insert_range(heap, next, start, end);
		if (refused)
			return refused;
		next++;
	}
	if (next < heap->n_ranges && range_start(heap, next) == end) {
		*range_end(heap, next - 1) = *range_end(heap, next);
		remove_range(heap, next);
	}
	return 0;
}

/* In order: the packet must go on exactly where the last one ended. */
static int check_order(const struct xps_heap *heap, uint64_t start)
{
	if (start == heap->received)
		return 0;
	return start < heap->received ? XPS_STAT_BEHIND : XPS_STAT_GAP;
}

/* ---------------------------------------------------------------- payload */

static int reserve(struct xps_heap *heap, const struct xps_heap_rules *rules, uint64_t needed)
{
	uint8_t *payload;

	if (needed <= heap->capacity)
		return 0;
	/* Of a heap with known length all is allocated at once; what grows doubles, to keep the copies few. */
	needed = xps_max_u64(needed, xps_min_u64(2 * heap->capacity, rules->max_heap_size));
	payload = xps_payload_new(rules->allocator, needed);
	if (!payload)
		return XPS_STAT_NO_MEMORY;
	if (heap->payload) {
		memcpy(payload, heap->payload, heap->capacity);
		drop_payload(heap);
	}
	heap->payload = payload;
	heap->capacity = needed;
	return 0;
}

/* Copy `length` bytes that start `skip` bytes into the view. */
static void copy_pieces(uint8_t *to, const struct xps_view *view, uint64_t skip, uint64_t length, int mode)
{
	for (uint32_t i = 0; length; i++) {
		const struct xps_view *piece = i ? &view->more[i - 1] : view;
		uint64_t n = xps_min_u64(piece->length - skip, length);

		xps_copy_ahead(to, piece->data + skip, n, mode, piece->ahead);
		to += n;
		length -= n;
		skip = 0; /* the header lies in the first piece */
	}
}

/* ---------------------------------------------------------------- the whole heap */

/* A packet may tell the length for the first time, tell the same again, or say nothing. */
static bool length_agrees(const struct xps_heap *heap, const struct xps_packet *packet)
{
	if (packet->heap_length < 0)
		return true;
	if (heap->length >= 0 && heap->length != packet->heap_length)
		return false;
	return (uint64_t)packet->heap_length >= heap->min_size;
}

int xps_heap_add_any(struct xps_heap *heap, const struct xps_heap_rules *rules, const struct xps_packet *packet,
		     const struct xps_view *view)
{
	const uint64_t start = packet->payload_offset, end = start + packet->payload_length;
	const uint64_t size = packet->heap_length < 0 ? end : (uint64_t)packet->heap_length;
	int refused;

	if (unlikely(xps_max_u64(size, end) > rules->max_heap_size))
		return XPS_STAT_TOO_LARGE;
	if (unlikely(!length_agrees(heap, packet)))
		return XPS_STAT_LENGTH_MISMATCH;
	if (unlikely(packet->address_bits != heap->address_bits))
		return XPS_STAT_FLAVOUR_MISMATCH;
	if (unlikely(heap->n_pointers + packet->n_pointers > XPS_MAX_ITEMS))
		return XPS_STAT_TOO_MANY_ITEMS;
	/* Memory comes before the ranges, so that what cannot be stored is not taken for received. */
	refused = reserve(heap, rules, size);
	if (unlikely(refused))
		return refused;
	refused = rules->allow_out_of_order ? add_range(heap, start, end) : check_order(heap, start);
	if (refused)
		return refused;

	if (packet->heap_length >= 0)
		heap->length = packet->heap_length;
	heap->received += packet->payload_length;
	heap->min_size = xps_max_u64(heap->min_size, size);
	if (packet->payload_length)
		copy_pieces(heap->payload + start, view, packet->header_size, packet->payload_length, rules->memcpy);
	return add_pointers(heap, packet);
}

bool xps_heap_repeats_items(const struct xps_heap *heap, const struct xps_packet *packet)
{
	const uint64_t first = xps_load_be64(packet->pointers);
	uint32_t at = 0;

	while (at < heap->n_pointers && heap->pointers[at] != first)
		at++;
	/* Too many are too many, whether or not they are new. */
	if (heap->n_pointers - at < packet->n_pointers || heap->n_pointers + packet->n_pointers > XPS_MAX_ITEMS)
		return false;
	for (uint32_t i = 1; i < packet->n_pointers; i++)
		if (heap->pointers[at + i] != xps_load_be64(packet->pointers + 8 * i))
			return false;
	return true;
}

struct xps_heap *xps_heap_finish(struct xps_heap *heap, const struct xps_heap_rules *rules)
{
	if (rules->memcpy == XPS_MEMCPY_NONTEMPORAL)
		xps_copy_fence();
	free(heap->set);
	heap->set = NULL;
	if (xps_heap_contiguous(heap)) {
		heap->flags |= XPS_HEAP_CONTIGUOUS;
		heap->size = heap->min_size;
	} else {
		drop_payload(heap);
		if (heap->home)
			heap = move_out(heap);
	}
	if (!rules->keep_payload_ranges || (heap->flags & XPS_HEAP_CONTIGUOUS)) {
		free(heap->ranges);
		heap->ranges = NULL;
		heap->n_ranges = 0;
	} else if (!rules->allow_out_of_order && heap->received) {
		insert_range(heap, 0, 0, heap->received);
	}
	return heap;
}

/* ---------------------------------------------------------------- items, for the user */

/*
 * While they are being sorted: value is the key (immediate bit and address or value), offset the place among the
 * pointers (which makes the order stable), id the pointer itself.
 */
static int compare_items(const void *left, const void *right)
{
	const struct xps_item *a = left, *b = right;

	if (a->value != b->value)
		return a->value < b->value ? -1 : 1;
	return a->offset < b->offset ? -1 : a->offset > b->offset;
}

static void sort_items(struct xps_item *items, uint32_t n)
{
	if (n > 16) {
		qsort(items, n, sizeof(*items), compare_items);
		return;
	}
	for (uint32_t i = 1; i < n; i++) {
		struct xps_item item = items[i];
		uint32_t j = i;

		for (; j > 0 && compare_items(&items[j - 1], &item) > 0; j--)
			items[j] = items[j - 1];
		items[j] = item;
	}
}

/* An addressed item with an id of the packet's own: it says nothing, and does not end the item before it. */
static bool is_nothing(uint64_t pointer, unsigned int address_bits)
{
	uint64_t id = xps_pointer_id(pointer, address_bits);

	return id >= XPS_ID_HEAP_CNT && id <= XPS_ID_PAYLOAD_LENGTH;
}

int xps_heap_items(const struct xps_heap *heap, struct xps_item *items)
{
	const unsigned int bits = heap->address_bits;
	const bool contiguous = heap->flags & XPS_HEAP_CONTIGUOUS;
	uint64_t end = heap->size;
	int n = 0;

	for (uint32_t i = 0; i < heap->n_pointers; i++) {
		uint64_t pointer = heap->pointers[i];

		items[i].value = (pointer & (UINT64_C(1) << 63)) | xps_pointer_value(pointer, bits);
		items[i].offset = i;
		items[i].id = pointer;
	}
	sort_items(items, heap->n_pointers);

	/* From the last to the first, because an addressed item ends where the next one starts. */
	for (uint32_t i = heap->n_pointers; i-- > 0;) {
		uint64_t pointer = items[i].id;
		bool immediate = xps_pointer_immediate(pointer);
		uint64_t value = xps_pointer_value(pointer, bits);

		items[i] = (struct xps_item){ .id = xps_pointer_id(pointer, bits), .immediate = immediate };
		if (immediate) {
			items[i].value = value;
		} else if (contiguous && !is_nothing(pointer, bits)) {
			items[i].offset = value;
			items[i].length = end - value;
			end = value;
		}
	}
	for (uint32_t i = 0; i < heap->n_pointers; i++) {
		if (items[i].id == XPS_ID_NULL || !(items[i].immediate || items[i].length))
			continue;
		items[n++] = items[i];
	}
	return n;
}
