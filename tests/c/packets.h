/* SPDX-License-Identifier: Apache-2.0 */
/* packets - hand-made SPEAD packets for tests, written from the protocol and not with the code under test. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* An item pointer is a 64-bit word: mode bit (1: immediate), item id, then `bits` bits of value or address. */
static inline uint64_t immediate(unsigned bits, uint64_t id, uint64_t value)
{
	return UINT64_C(1) << 63 | id << bits | value;
}

static inline uint64_t addressed(unsigned bits, uint64_t id, uint64_t offset)
{
	return id << bits | offset;
}

/* What a packet says. All zero but for heap_length: the first packet of heap 0 in SPEAD-64-48, without payload. */
struct spec {
	uint64_t cnt;
	int64_t heap_length; /* -1: the packet does not say */
	uint64_t offset;
	uint64_t length;        /* of the payload */
	const uint8_t *payload; /* NULL: the heap's pattern */
	const uint64_t *items;  /* words after the protocol's own */
	unsigned n_items;
	unsigned address_bits; /* 0: 48 */
};

/* What byte `i` of heap `cnt` is, unless a test says otherwise; never the byte of a neighbour. */
static inline uint8_t pattern(uint64_t cnt, uint64_t i)
{
	return (uint8_t)(cnt * 151 + i * 7 + (i >> 8) * 13 + 1);
}

static inline uint8_t *put_word(uint8_t *at, uint64_t word)
{
	for (int i = 0; i < 8; i++)
		*at++ = (uint8_t)(word >> (56 - 8 * i));
	return at;
}

/* Magic, version, widths of id and address in bytes, two reserved bytes, number of items. */
static inline uint8_t *put_header(uint8_t *at, unsigned address_bits, unsigned n_items)
{
	const uint8_t head[8] = { 0x53, 4, (uint8_t)(8 - address_bits / 8), (uint8_t)(address_bits / 8),
				  0,    0, (uint8_t)(n_items >> 8),         (uint8_t)n_items };

	memcpy(at, head, sizeof(head));
	return at + sizeof(head);
}

static inline unsigned spec_n_items(const struct spec *spec)
{
	return 3 + (spec->heap_length >= 0) + spec->n_items;
}

static inline size_t spec_size(const struct spec *spec)
{
	return 8 + 8 * (size_t)spec_n_items(spec) + spec->length;
}

/* Write the packet to `at`, spec_size() bytes. Returns the byte after. */
static inline uint8_t *put_packet(uint8_t *at, const struct spec *spec)
{
	const unsigned bits = spec->address_bits ? spec->address_bits : 48;

	at = put_header(at, bits, spec_n_items(spec));
	at = put_word(at, immediate(bits, 1, spec->cnt));
	if (spec->heap_length >= 0)
		at = put_word(at, immediate(bits, 2, (uint64_t)spec->heap_length));
	at = put_word(at, immediate(bits, 3, spec->offset));
	at = put_word(at, immediate(bits, 4, spec->length));
	for (unsigned i = 0; i < spec->n_items; i++)
		at = put_word(at, spec->items[i]);
	for (uint64_t i = 0; i < spec->length; i++)
		*at++ = spec->payload ? spec->payload[i] : pattern(spec->cnt, spec->offset + i);
	return at;
}

/* The packet in memory of exactly its size, so that a sanitizer sees a read beyond it. Give it back with free(). */
static inline uint8_t *new_packet(const struct spec *spec)
{
	uint8_t *data = malloc(spec_size(spec));

	if (!data)
		abort();
	put_packet(data, spec);
	return data;
}

/* Memory that ends where a page begins that nobody may touch: one byte of over-read crashes, sanitizer or not. */
struct guarded {
	uint8_t *data;
	uint8_t *map;
	size_t map_size;
};

static inline struct guarded guarded_copy(const uint8_t *data, size_t n)
{
	const size_t page = (size_t)sysconf(_SC_PAGESIZE);
	struct guarded guarded = { .map_size = (n + page - 1) / page * page + page };

	guarded.map = mmap(NULL, guarded.map_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (guarded.map == MAP_FAILED || mprotect(guarded.map + guarded.map_size - page, page, PROT_NONE))
		abort();
	guarded.data = guarded.map + guarded.map_size - page - n;
	if (n)
		memcpy(guarded.data, data, n);
	return guarded;
}

static inline void guarded_free(struct guarded *guarded)
{
	munmap(guarded->map, guarded->map_size);
}
