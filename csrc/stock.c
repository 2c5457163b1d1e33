// SPDX-License-Identifier: Apache-2.0
#include "stock.h"

#if XPS_SANITIZED
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size) ((void)0)
#define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)0)
#endif

/*
 * Takes at most between two looks at what came home: not one for each block, because another thread has written there. Nor
 * are there to be many bytes, or much of what there is, because so many more blocks are in use in turn, and are to stay in
 * the cache.
 */
#define TAKES_PER_LOOK 16
#define BYTES_PER_LOOK (UINT64_C(128) << 10)
#define LOOKS_PER_STOCK 8

/* A sanitizer is to catch whoever reads or writes a payload that he gave back, though it is still there. */
static void hide(struct xps_block *block)
{
	(void)block;
	ASAN_POISON_MEMORY_REGION(block->room, sizeof(block->room) + block->capacity);
}

static void show(struct xps_block *block)
{
	(void)block;
	ASAN_UNPOISON_MEMORY_REGION(block->room, sizeof(block->room) + block->capacity);
}

void xps_stock_init(struct xps_stock *stock, uint64_t most, uint64_t takes_per_look)
{
	*stock = (struct xps_stock){ .most = most, .takes_per_look = takes_per_look };
}

uint64_t xps_stock_takes_per_look(uint64_t block_size, uint64_t most)
{
	const uint64_t takes = xps_min_u64(BYTES_PER_LOOK / xps_max_u64(block_size, 1), most / LOOKS_PER_STOCK);

	return xps_max_u64(xps_min_u64(takes, TAKES_PER_LOOK), 1);
}

uint64_t xps_stock_size(const struct xps_stock *stock)
{
	/* In this order, so that no block is missed that is being put and taken meanwhile. */
	const uint64_t n_taken = __atomic_load_n(&stock->n_taken, __ATOMIC_ACQUIRE);

	return __atomic_load_n(&stock->n_put, __ATOMIC_RELAXED) - n_taken;
}

void xps_stock_limit(struct xps_stock *stock, uint64_t most)
{
	__atomic_store_n(&stock->most, most, __ATOMIC_RELAXED);
}

/* Whether there may be one more block. `n_put` may be out of date, if it is not used then. */
static bool has_room(struct xps_stock *stock, uint64_t n_put)
{
	const uint64_t most = __atomic_load_n(&stock->most, __ATOMIC_RELAXED);
	uint64_t n_taken = __atomic_load_n(&stock->n_taken_seen, __ATOMIC_RELAXED);

	if (n_put - n_taken < most)
		return true;
	n_taken = __atomic_load_n(&stock->n_taken, __ATOMIC_RELAXED);
	__atomic_store_n(&stock->n_taken_seen, n_taken, __ATOMIC_RELAXED);
	return n_put < n_taken || n_put - n_taken < most;
}

static bool reserve(struct xps_stock *stock)
{
	uint64_t n = __atomic_load_n(&stock->n_put, __ATOMIC_RELAXED);

	do {
		if (!has_room(stock, n))
			return false;
	} while (!__atomic_compare_exchange_n(&stock->n_put, &n, n + 1, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
	return true;
}

bool xps_stock_put(struct xps_stock *stock, struct xps_block *block)
{
	if (!reserve(stock))
		return false;
	hide(block);
	block->next = __atomic_load_n(&stock->returned, __ATOMIC_RELAXED);
	/* release: whoever takes the block sees `next`, and what its last user wrote. */
	while (!__atomic_compare_exchange_n(&stock->returned, &block->next, block, true, __ATOMIC_RELEASE,
					    __ATOMIC_RELAXED))
		;
	return true;
}

/* Put the list of those that came home in front of the others. */
static void collect_returned(struct xps_stock *stock)
{
	struct xps_block *first;

	if (!__atomic_load_n(&stock->returned, __ATOMIC_RELAXED))
		return;
	first = __atomic_exchange_n(&stock->returned, NULL, __ATOMIC_ACQUIRE);
	first->older = stock->free;
	stock->free = first;
}

/* Whoever had the block has written there, in another processor's cache; so have it come before it is needed. */
static void fetch_head(const struct xps_block *block)
{
	for (size_t i = 0; i < sizeof(*block); i += XPS_CACHE_LINE)
		__builtin_prefetch((const char *)block + i, 1);
}

/* The first block of the first list. */
static struct xps_block *remove_first(struct xps_stock *stock)
{
	struct xps_block *block = stock->free, *next = block->next;

	if (next)
		next->older = block->older;
	else
		next = block->older;
	if (next && next->next)
		fetch_head(next->next);
	stock->free = next;
	return block;
}

struct xps_block *xps_stock_take(struct xps_stock *stock)
{
	const bool look = !stock->free || stock->n_taken % stock->takes_per_look == 0;
	struct xps_block *block;

	if (look)
		collect_returned(stock);
	if (!stock->free) {
		stock->least = 0;
		return NULL;
	}
	block = remove_first(stock);
	/* release: whoever sees that it is taken has seen that it was put */
	__atomic_store_n(&stock->n_taken, stock->n_taken + 1, __ATOMIC_RELEASE);
	if (look)
		stock->least = xps_min_u64(stock->least, xps_stock_size(stock));
	show(block);
	return block;
}
