// SPDX-License-Identifier: Apache-2.0
/*
 * How it works: a heap keeps its item pointers as they go on the wire, in one array with that to the zeros at the end,
 * whether it is going to be needed or not. So the header of a packet is five words and one copy. Of the items only those
 * that have bytes are kept besides. A heap does not change once it is made, save its count of references, so any number
 * of threads can make packets of it.
 *
 * Lengths: the payload, zeros included, fits in the address bits, of which there are at most 56; xps_send_heap_new()
 * refuses other heaps, and xps_send_heap_min_packet_size() packets so small that the zeros would not fit. A packet is
 * shorter than 4 GiB. No sum below can overflow.
 */
#include "packetise.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "bits.h"
#include "packet.h"

enum {
	N_SPECIAL = 4,
	FIXED_HEADER = 8 + 8 * N_SPECIAL,
	UNIT = 8, /* of packet sizes, and of the payload beside a full load of item pointers */
	MAX_POINTERS = 65535 - N_SPECIAL,
	SHORT_PIECE = 256, /* bytes; shorter pieces are copied */
};

struct bytes {
	const uint8_t *data;
	uint64_t length; /* not 0 */
};

struct xps_send_heap {
	_Atomic uint32_t refs;
	bool repeat_pointers;
	uint8_t address_bits;
	uint32_t n_items;
	uint32_t n_bytes;
	uint64_t length;      /* of the payload without zeros */
	uint64_t *pointers;   /* big-endian, n_items and that to the zeros */
	struct bytes bytes[]; /* of the addressed items that have any, then the pointers */
};

/* ---------------------------------------------------------------- heaps */

static uint64_t max_value(unsigned int address_bits)
{
	return (UINT64_C(1) << address_bits) - 1;
}

static uint64_t make_pointer(bool immediate, uint64_t id, uint64_t value, unsigned int address_bits)
{
	return htobe64((uint64_t)immediate << 63 | id << address_bits | value);
}

/* As many as need not wait for each other's payload: one that has item pointers, this one counted, needs eight bytes. */
static uint64_t max_pointer_packets(unsigned int address_bits)
{
	return (max_value(address_bits) - 1) / UNIT + 1;
}

static uint64_t div_up(uint64_t a, uint64_t b)
{
	return (a + b - 1) / b;
}

/* Item pointers that a packet has to have room for, that to the zeros included. */
static uint64_t min_pointers(const struct xps_send_heap *heap)
{
	const uint64_t n = (uint64_t)heap->n_items + 1;

	return heap->repeat_pointers ? n : div_up(n, max_pointer_packets(heap->address_bits));
}

static int check_item(const struct xps_send_item *item, uint32_t i, unsigned int address_bits, uint64_t length,
		      struct xps_fail *fail)
{
	const uint64_t max = max_value(address_bits);

	if (item->id >> (63 - address_bits))
		return xps_fail_set(fail, EINVAL, "make heap",
				    "item %u: identifier %#llx does not fit in the %u bits that SPEAD-64-%u has for it",
				    i, (unsigned long long)item->id, 63 - address_bits, address_bits);
	if (item->immediate && item->value > max)
		return xps_fail_set(fail, EINVAL, "make heap",
				    "item %u (%#llx): value %#llx does not fit in the %u bits of an immediate item", i,
				    (unsigned long long)item->id, (unsigned long long)item->value, address_bits);
	if (item->immediate && item->id >= XPS_ID_HEAP_CNT && item->id <= XPS_ID_PAYLOAD_LENGTH)
		return xps_fail_set(fail, EINVAL, "make heap",
				    "item %u: identifier %#llx tells about the packet itself; use one from 0x1000 on",
				    i, (unsigned long long)item->id);
	if (item->immediate)
		return 0;
	if (item->length && (!item->data || item->data > UINTPTR_MAX - item->length))
		return xps_fail_set(fail, EINVAL, "make heap", "item %u (%#llx): no bytes at its address", i,
				    (unsigned long long)item->id);
	if (item->length > max - length)
		return xps_fail_set(
			fail, EINVAL, "make heap",
			"item %u (%#llx): the heap is longer than the %llu bytes that SPEAD-64-%u can address; "
			"use a flavour with more address bits or several heaps",
			i, (unsigned long long)item->id, (unsigned long long)max, address_bits);
	return 0;
}

/* Returns how many items have bytes, or a negative errno. */
static int64_t check_items(const struct xps_send_item *items, uint32_t n, unsigned int address_bits,
			   struct xps_fail *fail)
{
	uint64_t length = 0;
	int64_t n_bytes = 0;

	for (uint32_t i = 0; i < n; i++) {
		const int err = check_item(&items[i], i, address_bits, length, fail);

		if (err)
			return err;
		if (!items[i].immediate && items[i].length) {
			length += items[i].length;
			n_bytes++;
		}
	}
	return n_bytes;
}

static int check_count(const struct xps_send_heap *heap, struct xps_fail *fail)
{
	/* Where all are repeated, that to the zeros is among them only if there is no other payload. */
	const uint64_t n = min_pointers(heap) - (heap->repeat_pointers && heap->length);

	if (n <= MAX_POINTERS)
		return 0;
	return xps_fail_set(fail, EINVAL, "make heap", "%u items: %s; use several heaps", heap->n_items,
			    heap->repeat_pointers ? "a packet has room for 65,531, and they are to be in every one"
						  : "there are not enough addresses for their packets");
}

static void fill_heap(struct xps_send_heap *heap, const struct xps_send_item *items)
{
	const unsigned int bits = heap->address_bits;
	uint32_t n_bytes = 0;

	for (uint32_t i = 0; i < heap->n_items; i++) {
		const struct xps_send_item *item = &items[i];

		heap->pointers[i] =
			make_pointer(item->immediate, item->id, item->immediate ? item->value : heap->length, bits);
		if (item->immediate || !item->length)
			continue;
		heap->bytes[n_bytes++] = (struct bytes){ (const uint8_t *)(uintptr_t)item->data, item->length };
		heap->length += item->length;
	}
	heap->pointers[heap->n_items] = make_pointer(false, XPS_ID_NULL, heap->length, bits);
}

struct xps_send_heap *xps_send_heap_new(const struct xps_send_item *items, uint32_t n, int address_bits,
					bool repeat_pointers, struct xps_fail *fail)
{
	struct xps_send_heap *heap;
	int64_t n_bytes;

	if (address_bits < 8 || address_bits > 56 || address_bits % 8) {
		xps_fail_set(fail, EINVAL, "make heap", "%d address bits: there are 8, 16, 24, 32, 40, 48 or 56",
			     address_bits);
		return NULL;
	}
	n_bytes = check_items(items, n, (unsigned int)address_bits, fail);
	if (n_bytes < 0)
		return NULL;
	heap = malloc(sizeof(*heap) + (size_t)n_bytes * sizeof(heap->bytes[0]) +
		      ((size_t)n + 1) * sizeof(heap->pointers[0]));
	if (!heap) {
		xps_fail_set(fail, ENOMEM, "make heap", "no memory for %u items", n);
		return NULL;
	}
	*heap = (struct xps_send_heap){
		.refs = 1,
		.repeat_pointers = repeat_pointers,
		.address_bits = (uint8_t)address_bits,
		.n_items = n,
		.n_bytes = (uint32_t)n_bytes,
		.pointers = (uint64_t *)&heap->bytes[n_bytes],
	};
	fill_heap(heap, items);
	if (check_count(heap, fail)) {
		free(heap);
		return NULL;
	}
	return heap;
}

void xps_send_heap_free(struct xps_send_heap *heap)
{
	/* Release, so that what this thread read of the heap was read before another one frees it. */
	if (heap && atomic_fetch_sub_explicit(&heap->refs, 1, memory_order_acq_rel) == 1)
		free(heap);
}

void xps_send_heap_ref(struct xps_send_heap *heap)
{
	atomic_fetch_add_explicit(&heap->refs, 1, memory_order_relaxed);
}

uint64_t xps_send_heap_min_packet_size(const struct xps_send_heap *heap)
{
	return FIXED_HEADER + 8 * min_pointers(heap) + UNIT;
}

bool xps_send_heap_cnt_fits(const struct xps_send_heap *heap, uint64_t cnt)
{
	return cnt <= max_value(heap->address_bits);
}

uint64_t xps_send_heap_length(const struct xps_send_heap *heap)
{
	return heap->length;
}

/* ---------------------------------------------------------------- packets */

/* The length of a packet is 32 bits wide. */
static uint64_t usable_size(uint64_t max_packet_size)
{
	return xps_min_u64(max_packet_size, UINT32_MAX) & ~(uint64_t)(UNIT - 1);
}

uint64_t xps_packetise_bytes(uint64_t max_packet_size)
{
	/* Everything, if all pieces are short. */
	return usable_size(max_packet_size);
}

uint64_t xps_packetise_slices(uint64_t max_packet_size)
{
	/* Of the arena: one in front of and one behind each long piece. */
	return 2 * (usable_size(max_packet_size) / SHORT_PIECE) + 1;
}

void xps_packetiser_start(struct xps_packetiser *p, const struct xps_send_heap *heap, uint64_t cnt,
			  uint64_t max_packet_size)
{
	const uint64_t size = usable_size(max_packet_size);
	const uint64_t max_pointers = xps_min_u64((size - FIXED_HEADER - UNIT) / 8, MAX_POINTERS);
	const uint64_t n_pointers = (uint64_t)heap->n_items + 1;
	const uint64_t n_packets = heap->repeat_pointers ? 1 : div_up(n_pointers, max_pointers);
	const uint64_t min_length = UNIT * (n_packets - 1) + 1;

	*p = (struct xps_packetiser){
		.heap = heap,
		.cnt = cnt & max_value(heap->address_bits),
		.max_packet_size = size,
		.max_pointers = heap->repeat_pointers ? n_pointers : max_pointers,
		.n_pointers = n_pointers - (heap->length >= min_length),
		.length = xps_max_u64(heap->length, min_length),
	};
}

/* What a packet is made of while it is being made. */
struct maker {
	struct iovec *slices;
	uint32_t n_slices;
	uint8_t *bytes;  /* free in the arena */
	bool bytes_last; /* whether the last slice ends there */
};

/* Room in the arena for the packet's next `n` bytes. */
static uint8_t *add_copied(struct maker *m, uint64_t n)
{
	uint8_t *bytes = m->bytes;

	if (!m->bytes_last)
		m->slices[m->n_slices++] = (struct iovec){ .iov_base = bytes };
	m->slices[m->n_slices - 1].iov_len += n;
	m->bytes += n;
	m->bytes_last = true;
	return bytes;
}

static void add_users(struct maker *m, const uint8_t *data, uint64_t n)
{
	m->slices[m->n_slices++] = (struct iovec){ .iov_base = (void *)(uintptr_t)data, .iov_len = n };
	m->bytes_last = false;
}

static void add_header(struct maker *m, const struct xps_packetiser *p, uint64_t n_pointers, uint64_t length)
{
	const unsigned int bits = p->heap->address_bits;
	const uint16_t n = htobe16((uint16_t)(N_SPECIAL + n_pointers));
	uint8_t *header = add_copied(m, FIXED_HEADER + 8 * n_pointers);
	const uint64_t special[N_SPECIAL] = {
		make_pointer(true, XPS_ID_HEAP_CNT, p->cnt, bits),
		make_pointer(true, XPS_ID_HEAP_LENGTH, p->length, bits),
		make_pointer(true, XPS_ID_PAYLOAD_OFFSET, p->offset, bits),
		make_pointer(true, XPS_ID_PAYLOAD_LENGTH, length, bits),
	};

	memcpy(header, (const uint8_t[6]){ 0x53, 4, (uint8_t)(8 - bits / 8), (uint8_t)(bits / 8) }, 6);
	memcpy(header + 6, &n, sizeof(n));
	memcpy(header + 8, special, sizeof(special));
	memcpy(header + FIXED_HEADER, p->heap->pointers + p->pointers_done, 8 * n_pointers);
}

/* The next `length` bytes of the payload. */
static inline void add_payload(struct maker *m, struct xps_packetiser *p, uint64_t length, uint64_t short_piece)
{
	while (length && p->item < p->heap->n_bytes) {
		const struct bytes *item = &p->heap->bytes[p->item];
		const uint8_t *data = item->data + p->item_offset;
		const uint64_t n = xps_min_u64(length, item->length - p->item_offset);

		if (n < short_piece)
			memcpy(add_copied(m, n), data, n);
		else
			add_users(m, data, n);
		length -= n;
		p->item_offset += n;
		if (p->item_offset == item->length) {
			p->item++;
			p->item_offset = 0;
		}
	}
	if (length)
		memset(add_copied(m, length), 0, length);
}

static inline bool packetise(struct xps_packetiser *p, struct maker *m, struct xps_out_packet *packet,
			     uint64_t short_piece)
{
	const uint64_t n_pointers = xps_min_u64(p->n_pointers - p->pointers_done, p->max_pointers);
	const uint64_t header = FIXED_HEADER + 8 * n_pointers;
	uint64_t length = xps_min_u64(p->length - p->offset, p->max_packet_size - header);

	if (p->done)
		return false;
	/* Also where there is room for more: the packets of the other pointers need some too. */
	if (p->pointers_done + n_pointers < p->n_pointers)
		length = UNIT;
	add_header(m, p, n_pointers, length);
	add_payload(m, p, length, short_piece);
	*packet = (struct xps_out_packet){ m->slices, m->n_slices, (uint32_t)(header + length) };
	if (!p->heap->repeat_pointers)
		p->pointers_done += n_pointers;
	p->offset += length;
	p->done = p->offset == p->length;
	return true;
}

bool xps_packetise(struct xps_packetiser *p, struct xps_arena *arena, struct xps_out_packet *packet)
{
	struct maker m = { .slices = arena->slices, .bytes = arena->bytes };

	if (!packetise(p, &m, packet, SHORT_PIECE))
		return false;
	arena->n_bytes -= (uint64_t)(m.bytes - arena->bytes);
	arena->bytes = m.bytes;
	arena->n_slices -= m.n_slices;
	arena->slices += m.n_slices;
	return true;
}

/* ---------------------------------------------------------------- packet generators */

struct xps_packet_generator {
	struct xps_send_heap *heap;
	struct xps_packetiser packetiser;
};

static int check_packet_size(const struct xps_send_heap *heap, uint64_t max_packet_size, struct xps_fail *fail)
{
	const uint64_t min = xps_send_heap_min_packet_size(heap);

	if (max_packet_size >= min)
		return 0;
	return xps_fail_set(
		fail, EINVAL, "make packets",
		"packet size is too small%s: max_packet_size is %llu and has to be at least %llu for this heap",
		heap->repeat_pointers ? " to repeat item pointers" : "", (unsigned long long)max_packet_size,
		(unsigned long long)min);
}

struct xps_packet_generator *xps_packet_generator_new(struct xps_send_heap *heap, uint64_t cnt,
						      uint64_t max_packet_size, struct xps_fail *fail)
{
	struct xps_packet_generator *generator;

	if (check_packet_size(heap, max_packet_size, fail))
		return NULL;
	generator = malloc(sizeof(*generator));
	if (!generator) {
		xps_fail_set(fail, ENOMEM, "make packets", "no memory");
		return NULL;
	}
	xps_send_heap_ref(heap);
	generator->heap = heap;
	xps_packetiser_start(&generator->packetiser, heap, cnt, max_packet_size);
	return generator;
}

void xps_packet_generator_free(struct xps_packet_generator *generator)
{
	if (!generator)
		return;
	xps_send_heap_free(generator->heap);
	free(generator);
}

int64_t xps_packet_generator_next(struct xps_packet_generator *generator, uint8_t *packet)
{
	/* No piece is too long to be copied, so there is one slice, the packet. */
	struct iovec slice;
	struct maker m = { .slices = &slice, .bytes = packet };
	struct xps_out_packet made;

	return packetise(&generator->packetiser, &m, &made, UINT64_MAX) ? made.length : 0;
}
