/* SPDX-License-Identifier: Apache-2.0 */
/* slow_packet - a second decoder of SPEAD headers, written from the protocol one item at a time, to compare with. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "xdpspead.h"

enum { SLOW_MAX_ITEMS = 65535 };

struct slow_item {
	bool immediate;
	uint64_t id;
	uint64_t value; /* or address */
	uint64_t word;
};

struct slow_packet {
	uint64_t cnt, offset, length;
	int64_t heap_length; /* -1: none */
	unsigned bits;
	size_t header;
	unsigned n_items;
	struct slow_item items[SLOW_MAX_ITEMS];
};

/* What does not hold is said, the program ends, and the fuzzer keeps the input. */
#define EXPECT(cond)                                                                                       \
	do {                                                                                               \
		if (!(cond)) {                                                                             \
			fprintf(stderr, "%s:%d: %s: not true: %s\n", __FILE__, __LINE__, __func__, #cond); \
			abort();                                                                           \
		}                                                                                          \
	} while (0)

static inline struct slow_item slow_item_at(const uint8_t *bytes, unsigned bits)
{
	struct slow_item item = { .immediate = bytes[0] & 0x80, .id = bytes[0] & 0x7f };

	for (unsigned i = 1; i < 8; i++) {
		if (8 * i < 64 - bits)
			item.id = item.id << 8 | bytes[i];
		else
			item.value = item.value << 8 | bytes[i];
	}
	for (unsigned i = 0; i < 8; i++)
		item.word = item.word << 8 | bytes[i];
	return item;
}

/* Whether it is one of the four that tell about the packet. */
static inline bool slow_special(const struct slow_item *item)
{
	return item->immediate && item->id >= 1 && item->id <= 4;
}

/* Returns 0 or why the packet is refused, an enum xps_stat. */
static inline int slow_decode(struct slow_packet *packet, const uint8_t *data, size_t size)
{
	uint64_t special[5] = { 0 };
	bool have[5] = { false };

	if (size == 0)
		return XPS_STAT_EMPTY_DATAGRAM;
	if (size < 8)
		return XPS_STAT_TRUNCATED_HEADER;
	if (data[0] != 'S' || data[1] != 4)
		return XPS_STAT_BAD_MAGIC;
	if (data[2] < 1 || data[2] > 7 || data[3] != 8 - data[2])
		return XPS_STAT_BAD_FLAVOUR;
	packet->bits = 8u * data[3];
	packet->n_items = data[6] * 256u + data[7];
	packet->header = 8 + 8 * (size_t)packet->n_items;
	if (size < packet->header)
		return XPS_STAT_TRUNCATED_HEADER;
	for (unsigned i = 0; i < packet->n_items; i++) {
		struct slow_item *item = &packet->items[i];

		*item = slow_item_at(data + 8 + 8 * i, packet->bits);
		if (slow_special(item)) {
			special[item->id] = item->value;
			have[item->id] = true;
		}
	}
	if (!have[1] || !have[3] || !have[4])
		return XPS_STAT_MISSING_ITEM;
	packet->cnt = special[1];
	packet->offset = special[3];
	packet->length = special[4];
	packet->heap_length = have[2] ? (int64_t)special[2] : -1;
	if (have[2] && (packet->offset > special[2] || packet->length > special[2] - packet->offset))
		return XPS_STAT_OFFSET_OVERFLOW;
	return 0;
}
