/* SPDX-License-Identifier: Apache-2.0 */
/*
 * stock - blocks of memory for payloads, and those that are free, which some threads give back and others take.
 *
 * Most often one thread takes and another one gives, for every heap. So what the two write lies in different cache lines,
 * and neither reads the other's for every block.
 *
 * How it works
 *
 * Blocks come home onto a stack that needs no lock, because whoever takes from it takes all of it, as one list. Free
 * blocks lie in such lists, the one that came home last first, and of each the block that came home last: it may still be
 * in a cache. Blocks are counted when they come and when they go; the difference is what is there.
 *
 * Threads: put, limit and size are for anyone, take is for one at a time.
 */
#pragma once

#include "bits.h"

/* Bytes right in front of a payload that belong to whoever has it, for what he wants to say about it. */
#define XPS_PAYLOAD_ROOM 192

struct xps_block {
	struct xps_allocator *owner; /* takes the block back, and is there until all its blocks have come home */
	struct xps_block *next;      /* in a list of free blocks */
	struct xps_block *older;     /* if it is the first of a list: the first of the next one */
	uint64_t capacity;           /* bytes of payload */
	uint32_t references;         /* atomic */
	uint16_t huge;               /* lies on huge pages */
	uint16_t shelf;              /* of the plain allocator, that it goes to */
	uint8_t room[XPS_PAYLOAD_ROOM] __attribute__((aligned(XPS_CACHE_LINE)));
} __attribute__((aligned(XPS_CACHE_LINE)));

struct xps_stock {
	/* Written by those who give: */
	struct xps_block *returned; /* atomic; a stack of blocks that came home since somebody looked */
	uint64_t n_put;             /* atomic; blocks that came home, ever, and any that are just about to */
	uint64_t n_taken_seen;      /* atomic; what `n_taken` was when one of them last looked, or before */
	uint64_t most;              /* atomic; blocks that there may be; seldom written */

	/* Written by whoever takes: */
	struct xps_block *free __attribute__((aligned(XPS_CACHE_LINE))); /* the first list */
	uint64_t n_taken;        /* blocks that went, ever; atomic, because others read it */
	uint64_t takes_per_look; /* at what came home */
	uint64_t least;          /* blocks that were left over by takes that looked; the taker's, to raise again */
};

/*
 * An empty stock, in which there may be `most` blocks. Who takes looks at what came home every `takes_per_look` times, or
 * when there is nothing else.
 */
void xps_stock_init(struct xps_stock *stock, uint64_t most, uint64_t takes_per_look);
/* False if there is no room for it. */
bool xps_stock_put(struct xps_stock *stock, struct xps_block *block);
/* NULL: there is none. */
struct xps_block *xps_stock_take(struct xps_stock *stock);
uint64_t xps_stock_size(const struct xps_stock *stock);
/* From now on. If there are more they stay until they are taken. */
void xps_stock_limit(struct xps_stock *stock, uint64_t most);
/* A good number of takes per look for blocks of `block_size` bytes of which there may be `most`. */
uint64_t xps_stock_takes_per_look(uint64_t block_size, uint64_t most);

/* Whether a sanitizer watches what is done to memory. */
#if defined(__has_feature)
#define XPS_SANITIZED __has_feature(address_sanitizer)
#elif defined(__SANITIZE_ADDRESS__)
#define XPS_SANITIZED 1
#else
#define XPS_SANITIZED 0
#endif
