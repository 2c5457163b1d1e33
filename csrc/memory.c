// SPDX-License-Identifier: Apache-2.0
/*
 * How it works
 *
 * Three kinds of allocator share one table of functions. An allocator lives until its last user has dropped it and the
 * last of its blocks has come home, whichever is later.
 *
 * Threads: anyone may allocate and free. Most often one thread allocates and another one frees, so what the two write
 * lies in different cache lines, and neither reads the other's for every block. Blocks are counted when they are handed
 * out and when they come home. They come home to a pool onto a stack that needs no lock, because whoever takes from it
 * takes all of it. The pool's free lists have a lock, which allocating threads share. A forked child must not take that
 * lock, which a worker may have held: there a pool only passes on to its source.
 */
#include "memory.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#if defined(__has_feature)
#define SANITIZED __has_feature(address_sanitizer)
#elif defined(__SANITIZE_ADDRESS__)
#define SANITIZED 1
#else
#define SANITIZED 0
#endif
#if SANITIZED
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size) ((void)0)
#define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)0)
#endif

#include "fail.h"
#include "log.h"
#include "pool.h"
#include "process.h"

struct allocator_ops {
	struct xps_block *(*take)(struct xps_allocator *allocator, uint64_t size);
	void (*give)(struct xps_allocator *allocator, struct xps_block *block);
	void (*destroy)(struct xps_allocator *allocator);
};

struct xps_allocator {
	const struct allocator_ops *ops;
	uint32_t references; /* atomic; of users */
	uint64_t n_out;      /* atomic; blocks handed out, ever */
	/* atomic; blocks that came home. From the moment on when there are no more users, those that are missing, negative. */
	int64_t n_home __attribute__((aligned(XPS_CACHE_LINE)));
};

/* Both want their own cache lines. */
static void *new_lines(size_t size)
{
	void *lines = aligned_alloc(XPS_CACHE_LINE, xps_round_up(size, XPS_CACHE_LINE));

	if (lines)
		memset(lines, 0, size);
	return lines;
}

static struct xps_block *block_of(const uint8_t *payload)
{
	return (struct xps_block *)(uintptr_t)(payload - sizeof(struct xps_block));
}

static uint8_t *payload_of(struct xps_block *block)
{
	return (uint8_t *)(block + 1);
}

struct xps_allocator *xps_allocator_ref(struct xps_allocator *allocator)
{
	__atomic_add_fetch(&allocator->references, 1, __ATOMIC_RELAXED);
	return allocator;
}

/* Add to the blocks that came home. They are zero for one only: the last of all users and blocks, or who never took any. */
static void come_home(struct xps_allocator *allocator, int64_t n)
{
	/* acquire-release: as with references */
	if (__atomic_add_fetch(&allocator->n_home, n, __ATOMIC_ACQ_REL) == 0)
		allocator->ops->destroy(allocator);
}

void xps_allocator_free(struct xps_allocator *allocator)
{
	/* acquire-release: whoever drops the last reference sees what all the others did before. */
	if (allocator && __atomic_sub_fetch(&allocator->references, 1, __ATOMIC_ACQ_REL) == 0)
		come_home(allocator, -(int64_t)__atomic_load_n(&allocator->n_out, __ATOMIC_RELAXED));
}

uint8_t *xps_payload_new(struct xps_allocator *allocator, uint64_t size)
{
	struct xps_block *block;

	if (size > INT64_MAX - sizeof(*block))
		return NULL;
	block = allocator->ops->take(allocator, size);
	if (!block)
		return NULL;
	block->owner = allocator;
	__atomic_add_fetch(&allocator->n_out, 1, __ATOMIC_RELAXED);
	__atomic_store_n(&block->references, 1, __ATOMIC_RELAXED);
	return payload_of(block);
}

uint8_t *xps_payload_ref(uint8_t *payload)
{
	__atomic_add_fetch(&block_of(payload)->references, 1, __ATOMIC_RELAXED);
	return payload;
}

void xps_payload_free(uint8_t *payload)
{
	struct xps_block *block;
	struct xps_allocator *owner;

	if (!payload)
		return;
	block = block_of(payload);
	if (__atomic_sub_fetch(&block->references, 1, __ATOMIC_ACQ_REL) != 0)
		return;
	owner = block->owner;
	owner->ops->give(owner, block);
	come_home(owner, 1);
}

uint64_t xps_payload_capacity(const uint8_t *payload)
{
	return block_of(payload)->capacity;
}

/* ---------------------------------------------------------------- blocks that nobody uses, kept for the next heap */

/* Whoever still reads or writes a payload that he gave back is to be caught by the sanitizer, though it is still there. */
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

/* ---------------------------------------------------------------- memory of the kernel */

#define HUGE_PAGE (UINT64_C(2) << 20)
#define SMALL_PAGE UINT64_C(4096)

static uint64_t mapped_size(uint64_t capacity, bool huge)
{
	return xps_round_up(sizeof(struct xps_block) + capacity, huge ? HUGE_PAGE : SMALL_PAGE);
}

static struct xps_block *map_block(uint64_t size, int flags, bool huge)
{
	struct xps_block *block = mmap(NULL, mapped_size(size, huge), PROT_READ | PROT_WRITE,
				       MAP_PRIVATE | MAP_ANONYMOUS | flags | (huge ? MAP_HUGETLB : 0), -1, 0);

	if (block == MAP_FAILED)
		return NULL;
	block->capacity = size;
	block->huge = huge;
	return block;
}

static void unmap_block(struct xps_block *block)
{
	munmap(block, mapped_size(block->capacity, block->huge));
}

/* ---------------------------------------------------------------- malloc, and what is kept */

/*
 * For each new payload the kernel makes pages and clears them, which costs as much as all else that is done for a packet,
 * and the C library gives the memory of a large one back as soon as it is freed. So blocks that come home are kept, on a
 * shelf for each of the sizes used last. Those that lie at the bottom of a shelf for long without being needed go, half
 * of them at a time: so what one hiccup took is not kept for ever. The lock is never waited for: who does not get it, as
 * a forked child in whose parent somebody had it, does without.
 */
#define KEPT_LEAST (UINT64_C(16) << 10) /* what is smaller the C library keeps itself */
#define KEPT_BYTES (UINT64_C(8) << 20)
#define KEPT_SIZES 4
#define KEPT_USES 64     /* of the others, after which a size is forgotten */
#define KEPT_PERIOD 1024 /* uses, after which it is seen what was not needed */

struct shelf {
	uint64_t capacity;
	struct xps_block *first; /* the last that came home */
	uint32_t n;
	uint32_t unneeded; /* the least that there were since `since` */
	uint64_t since, used;
};

struct plain_allocator {
	struct xps_allocator base;
	pthread_mutex_t lock; /* guards all below */
	struct shelf shelves[KEPT_SIZES];
	uint64_t n_kept_bytes;
	uint64_t uses; /* of the shelves: what time is measured in */
};

static struct plain_allocator *plain_of(struct xps_allocator *allocator)
{
	return XPS_CONTAINER_OF(allocator, struct plain_allocator, base);
}

/* Bytes of a block that can be kept, head and all. */
static uint64_t block_size(uint64_t capacity)
{
	return mapped_size(capacity, false);
}

static bool is_worth_keeping(uint64_t capacity)
{
	return capacity >= KEPT_LEAST && block_size(capacity) <= KEPT_BYTES;
}

static uint64_t capacity_for(uint64_t size)
{
	return is_worth_keeping(size) ? block_size(size) - sizeof(struct xps_block) : size;
}

/* What is kept is mapped, so that it is really gone when it goes. A sanitizer sees more of what comes from malloc. */
static bool is_mapped(uint64_t capacity)
{
	return !SANITIZED && is_worth_keeping(capacity);
}

static struct xps_block *new_block(uint64_t capacity)
{
	struct xps_block *block;

	if (is_mapped(capacity))
		return map_block(capacity, 0, false);
	block = aligned_alloc(XPS_CACHE_LINE, xps_round_up(sizeof(*block) + capacity, XPS_CACHE_LINE));
	if (block)
		block->capacity = capacity;
	return block;
}

static void free_blocks(struct xps_block *block)
{
	while (block) {
		struct xps_block *next = block->next;

		show(block);
		if (is_mapped(block->capacity))
			unmap_block(block);
		else
			free(block);
		block = next;
	}
}

/* Lock held. The shelf of this size; if there is none, the one that was used longest ago, with whatever is on it. */
static struct shelf *find_shelf(struct plain_allocator *plain, uint64_t capacity)
{
	struct shelf *oldest = plain->shelves;

	for (int i = 0; i < KEPT_SIZES; i++) {
		if (plain->shelves[i].capacity == capacity)
			return &plain->shelves[i];
		if (plain->shelves[i].used < oldest->used)
			oldest = &plain->shelves[i];
	}
	return oldest;
}

/* Lock held. All blocks that are on it, for the caller to free. */
static struct xps_block *clear_shelf(struct plain_allocator *plain, struct shelf *shelf)
{
	struct xps_block *blocks = shelf->first;

	for (struct xps_block *block = blocks; block; block = block->next)
		plain->n_kept_bytes -= block_size(block->capacity);
	*shelf = (struct shelf){ .capacity = shelf->capacity };
	return blocks;
}

/* Lock held. The same with half of those that were not needed of late, the ones that came home first. */
static struct xps_block *cut_shelf(struct plain_allocator *plain, struct shelf *shelf)
{
	const uint32_t n_gone = (shelf->unneeded + 1) / 2;
	struct xps_block **end = &shelf->first;
	struct xps_block *gone;

	shelf->n -= n_gone;
	for (uint32_t i = 0; i < shelf->n; i++)
		end = &(*end)->next;
	gone = *end;
	*end = NULL;
	plain->n_kept_bytes -= n_gone * block_size(shelf->capacity);
	shelf->unneeded = shelf->n;
	shelf->since = plain->uses;
	return gone;
}

static struct xps_block *take_kept(struct plain_allocator *plain, uint64_t capacity)
{
	struct xps_block *block;
	struct shelf *shelf;

	if (!is_worth_keeping(capacity) || pthread_mutex_trylock(&plain->lock))
		return NULL;
	shelf = find_shelf(plain, capacity);
	block = shelf->capacity == capacity ? shelf->first : NULL;
	if (block) {
		shelf->first = block->next;
		shelf->n--;
		shelf->unneeded = (uint32_t)xps_min_u64(shelf->unneeded, shelf->n);
		shelf->used = ++plain->uses;
		plain->n_kept_bytes -= block_size(capacity);
	}
	pthread_mutex_unlock(&plain->lock);
	if (block)
		show(block);
	return block;
}

/* Lock held. Clear a shelf that no block came to of late, and return what was on it; NULL if there is none. */
static struct xps_block *clear_forgotten(struct plain_allocator *plain)
{
	for (int i = 0; i < KEPT_SIZES; i++)
		if (plain->shelves[i].first && plain->shelves[i].used + KEPT_USES < plain->uses)
			return clear_shelf(plain, &plain->shelves[i]);
	return NULL;
}

/* Lock held. Put the block on its shelf. Returns those that have to go for it, or it, for the caller to free. */
static struct xps_block *keep(struct plain_allocator *plain, struct xps_block *block)
{
	const uint64_t size = block_size(block->capacity);
	struct shelf *shelf = find_shelf(plain, block->capacity);
	struct xps_block *gone = NULL;

	if (shelf->capacity != block->capacity)
		gone = clear_shelf(plain, shelf);
	else if (plain->n_kept_bytes + size > KEPT_BYTES)
		gone = clear_forgotten(plain);
	else if (plain->uses - shelf->since >= KEPT_PERIOD)
		gone = cut_shelf(plain, shelf);
	shelf->capacity = block->capacity;
	shelf->used = ++plain->uses;
	if (plain->n_kept_bytes + size > KEPT_BYTES) {
		block->next = gone;
		return block;
	}
	hide(block);
	block->next = shelf->first;
	shelf->first = block;
	shelf->n++;
	plain->n_kept_bytes += size;
	return gone;
}

static struct xps_block *plain_take(struct xps_allocator *allocator, uint64_t size)
{
	const uint64_t capacity = capacity_for(size);
	struct xps_block *block = take_kept(plain_of(allocator), capacity);

	return block ? block : new_block(capacity);
}

static void plain_give(struct xps_allocator *allocator, struct xps_block *block)
{
	struct plain_allocator *plain = plain_of(allocator);
	struct xps_block *gone = block;

	block->next = NULL;
	if (is_worth_keeping(block->capacity) && !pthread_mutex_trylock(&plain->lock)) {
		gone = keep(plain, block);
		pthread_mutex_unlock(&plain->lock);
	}
	free_blocks(gone);
}

/* The lock is left as it is: in a forked child somebody who is not there may hold it. */
static void plain_destroy(struct xps_allocator *allocator)
{
	struct plain_allocator *plain = plain_of(allocator);

	for (int i = 0; i < KEPT_SIZES; i++)
		free_blocks(plain->shelves[i].first);
	free(plain);
}

struct xps_allocator *xps_allocator_new(void)
{
	static const struct allocator_ops ops = { .take = plain_take, .give = plain_give, .destroy = plain_destroy };
	struct plain_allocator *plain = new_lines(sizeof(*plain));

	if (!plain)
		return NULL;
	plain->base = (struct xps_allocator){ .ops = &ops, .references = 1 };
	pthread_mutex_init(&plain->lock, NULL);
	return &plain->base;
}

/* ---------------------------------------------------------------- mmap */

struct mmap_allocator {
	struct xps_allocator base;
	int flags;
	bool prefer_huge;
};

static struct xps_block *mmap_take(struct xps_allocator *allocator, uint64_t size)
{
	struct mmap_allocator *mapper = XPS_CONTAINER_OF(allocator, struct mmap_allocator, base);
	struct xps_block *block = NULL;

	if (mapper->prefer_huge)
		block = map_block(size, mapper->flags, true);
	if (!block)
		block = map_block(size, mapper->flags, false);
	return block;
}

static void mmap_give(struct xps_allocator *allocator, struct xps_block *block)
{
	(void)allocator;
	unmap_block(block);
}

static void mmap_destroy(struct xps_allocator *allocator)
{
	free(XPS_CONTAINER_OF(allocator, struct mmap_allocator, base));
}

struct xps_allocator *xps_mmap_allocator_new(int flags, bool prefer_huge)
{
	static const struct allocator_ops ops = { .take = mmap_take, .give = mmap_give, .destroy = mmap_destroy };
	struct mmap_allocator *mapper = new_lines(sizeof(*mapper));

	if (!mapper)
		return NULL;
	mapper->base = (struct xps_allocator){ .ops = &ops, .references = 1 };
	mapper->flags = flags;
	mapper->prefer_huge = prefer_huge;
	return &mapper->base;
}

/* ---------------------------------------------------------------- pool */

/*
 * Free blocks lie in lists, the list that came home last first, and of each the block that came home last: it may still
 * be in a cache.
 */
struct memory_pool {
	struct xps_allocator base;
	/* Written by those who free: */
	struct xps_block *returned; /* atomic; a stack of blocks that came home since somebody looked */
	uint64_t n_shelved;         /* atomic; blocks that became free, ever, and any that are just about to */
	uint64_t n_taken_seen;      /* atomic; what `n_taken` was when somebody last looked, or before */

	uint32_t process __attribute__((aligned(XPS_CACHE_LINE)));
	struct xps_allocator *source;
	uint64_t capacity; /* atomic; of the blocks that the source makes for us, which may be larger than asked for */
	uint64_t lower, upper, max_free, initial, low_water;
	uint64_t takes_per_look;
	struct xps_log *log;
	struct xps_pool *threads; /* NULL: no refilling */
	struct xps_loop *loop;
	struct xps_task refill;

	pthread_mutex_t lock __attribute__((aligned(XPS_CACHE_LINE))); /* guards all below */
	struct xps_block *free;                                        /* the first list */
	/* Blocks that are free no more, ever. Atomic, because it may be read without the lock. */
	uint64_t n_taken;
	bool warn_on_empty;
	bool refilling;
};

/*
 * Takes at most between two looks at what came home: not one for each block, because another thread has written there. Nor
 * are there to be many bytes, or much of what the pool has, because so many more blocks are in use in turn, and are to
 * stay in the cache.
 */
#define TAKES_PER_LOOK 16
#define BYTES_PER_LOOK (UINT64_C(128) << 10)
#define LOOKS_PER_POOL 8

static uint64_t takes_per_look(uint64_t block_size, uint64_t n_blocks)
{
	const uint64_t takes = xps_min_u64(BYTES_PER_LOOK / xps_max_u64(block_size, 1), n_blocks / LOOKS_PER_POOL);

	return xps_max_u64(xps_min_u64(takes, TAKES_PER_LOOK), 1);
}

static struct memory_pool *pool_of(struct xps_allocator *allocator)
{
	return XPS_CONTAINER_OF(allocator, struct memory_pool, base);
}

static struct xps_block *make_block(struct memory_pool *pool)
{
	struct xps_block *block = pool->source->ops->take(pool->source, pool->upper);

	if (block)
		__atomic_store_n(&pool->capacity, block->capacity, __ATOMIC_RELAXED);
	return block;
}

static void drop_block(struct memory_pool *pool, struct xps_block *block)
{
	pool->source->ops->give(pool->source, block);
}

static uint64_t n_free(const struct memory_pool *pool)
{
	/* In this order, so that no block is missed that is being shelved and taken meanwhile. */
	const uint64_t n_taken = __atomic_load_n(&pool->n_taken, __ATOMIC_ACQUIRE);

	return __atomic_load_n(&pool->n_shelved, __ATOMIC_RELAXED) - n_taken;
}

/* Whether the pool may have one more free block. `n_shelved` may be out of date, if it is not used then. */
static bool has_room(struct memory_pool *pool, uint64_t n_shelved)
{
	uint64_t n_taken = __atomic_load_n(&pool->n_taken_seen, __ATOMIC_RELAXED);

	if (n_shelved - n_taken < pool->max_free)
		return true;
	n_taken = __atomic_load_n(&pool->n_taken, __ATOMIC_RELAXED);
	__atomic_store_n(&pool->n_taken_seen, n_taken, __ATOMIC_RELAXED);
	return n_shelved < n_taken || n_shelved - n_taken < pool->max_free;
}

/* Count a block as free, if there is room for one more. */
static bool reserve(struct memory_pool *pool)
{
	uint64_t n = __atomic_load_n(&pool->n_shelved, __ATOMIC_RELAXED);

	do {
		if (!has_room(pool, n))
			return false;
	} while (!__atomic_compare_exchange_n(&pool->n_shelved, &n, n + 1, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
	return true;
}

/* Keep the block if there is room, else give its memory back. */
static void shelve(struct memory_pool *pool, struct xps_block *block)
{
	if (!reserve(pool)) {
		drop_block(pool, block);
		return;
	}
	hide(block);
	block->next = __atomic_load_n(&pool->returned, __ATOMIC_RELAXED);
	/* release: whoever takes the block sees `next`, and what its last user wrote. */
	while (!__atomic_compare_exchange_n(&pool->returned, &block->next, block, true, __ATOMIC_RELEASE,
					    __ATOMIC_RELAXED))
		;
}

/* Lock held. Put the list of those that came home in front of the others. */
static void collect_returned(struct memory_pool *pool)
{
	struct xps_block *first;

	if (!__atomic_load_n(&pool->returned, __ATOMIC_RELAXED))
		return;
	first = __atomic_exchange_n(&pool->returned, NULL, __ATOMIC_ACQUIRE);
	first->older = pool->free;
	pool->free = first;
}

/* Whoever had the block has written there, in another processor's cache; so have it come before it is needed. */
static void fetch_head(const struct xps_block *block)
{
	for (size_t i = 0; i < sizeof(*block); i += XPS_CACHE_LINE)
		__builtin_prefetch((const char *)block + i, 1);
}

/* Lock held. NULL: there is none. */
static struct xps_block *take_free(struct memory_pool *pool)
{
	struct xps_block *block, *next;

	if (!pool->free || pool->n_taken % pool->takes_per_look == 0)
		collect_returned(pool);
	block = pool->free;
	if (!block)
		return NULL;
	next = block->next;
	if (next)
		next->older = block->older;
	else
		next = block->older;
	if (next && next->next)
		fetch_head(next->next);
	pool->free = next;
	/* release: whoever sees that it is taken has seen that it was shelved */
	__atomic_store_n(&pool->n_taken, pool->n_taken + 1, __ATOMIC_RELEASE);
	show(block);
	return block;
}

static void refill(struct xps_task *task)
{
	struct memory_pool *pool = XPS_CONTAINER_OF(task, struct memory_pool, refill);
	struct xps_block *block;
	bool enough;

	do {
		block = make_block(pool);
		if (block)
			shelve(pool, block);
		pthread_mutex_lock(&pool->lock);
		enough = !block || n_free(pool) >= xps_min_u64(pool->initial, pool->max_free);
		if (enough)
			pool->refilling = false;
		pthread_mutex_unlock(&pool->lock);
	} while (!enough);
}

static struct xps_block *pool_take(struct xps_allocator *allocator, uint64_t size)
{
	struct memory_pool *pool = pool_of(allocator);
	struct xps_block *block;
	bool warn, start_refill;

	if (size < pool->lower || size > pool->upper || !xps_process_is(pool->process))
		return pool->source->ops->take(pool->source, size);

	pthread_mutex_lock(&pool->lock);
	block = take_free(pool);
	warn = !block && pool->warn_on_empty;
	start_refill = pool->loop && !pool->refilling && n_free(pool) < pool->low_water;
	if (start_refill)
		pool->refilling = true;
	pthread_mutex_unlock(&pool->lock);

	if (start_refill)
		xps_loop_post(pool->loop, &pool->refill);
	if (warn)
		xps_log(pool->log, XPS_LOG_POOL_EMPTY, 1, (uint64_t)size, 0, 0);
	return block ? block : make_block(pool);
}

static void pool_give(struct xps_allocator *allocator, struct xps_block *block)
{
	struct memory_pool *pool = pool_of(allocator);

	if (block->capacity != __atomic_load_n(&pool->capacity, __ATOMIC_RELAXED) || !xps_process_is(pool->process))
		drop_block(pool, block);
	else
		shelve(pool, block);
}

static void do_nothing(struct xps_task *task)
{
	(void)task;
}

static void pool_destroy(struct xps_allocator *allocator)
{
	struct memory_pool *pool = pool_of(allocator);
	struct xps_task nothing = { .run = do_nothing };
	struct xps_block *block;

	if (pool->loop)
		xps_loop_call(pool->loop, &nothing); /* a refill that was posted has now run */
	while ((block = take_free(pool)))
		drop_block(pool, block);
	xps_allocator_free(pool->source);
	xps_log_free(pool->log);
	xps_pool_free(pool->threads);
	if (xps_process_is(pool->process))
		pthread_mutex_destroy(&pool->lock);
	free(pool);
}

struct xps_allocator *xps_memory_pool_new(struct xps_pool *threads, uint64_t lower, uint64_t upper, uint64_t max_free,
					  uint64_t initial, uint64_t low_water, struct xps_allocator *base,
					  struct xps_log *log, struct xps_fail *fail)
{
	static const struct allocator_ops ops = { .take = pool_take, .give = pool_give, .destroy = pool_destroy };
	struct memory_pool *pool = new_lines(sizeof(*pool));

	if (!pool)
		goto no_memory;
	pool->base = (struct xps_allocator){ .ops = &ops, .references = 1 };
	pool->process = xps_process();
	pool->source = xps_allocator_ref(base);
	pool->lower = lower;
	pool->upper = upper;
	pool->max_free = max_free;
	pool->takes_per_look = takes_per_look(upper, max_free);
	pool->initial = initial;
	pool->low_water = low_water;
	pool->log = xps_log_ref(log);
	pool->warn_on_empty = true;
	pool->refill.run = refill;
	pthread_mutex_init(&pool->lock, NULL);
	if (threads) {
		xps_pool_ref(threads);
		pool->threads = threads;
		pool->loop = xps_pool_loop(threads);
	}
	for (uint64_t i = 0; i < xps_min_u64(initial, max_free); i++) {
		struct xps_block *block = make_block(pool);

		if (!block) {
			xps_allocator_free(&pool->base);
			goto no_memory;
		}
		shelve(pool, block);
	}
	return &pool->base;

no_memory:
	xps_fail_set(fail, ENOMEM, "memory pool", "no memory for %llu blocks of %llu bytes",
		     (unsigned long long)initial, (unsigned long long)upper);
	return NULL;
}

void xps_memory_pool_set_warn_on_empty(struct xps_allocator *allocator, bool warn)
{
	struct memory_pool *pool = pool_of(allocator);

	if (!xps_process_is(pool->process))
		return;
	pthread_mutex_lock(&pool->lock);
	pool->warn_on_empty = warn;
	pthread_mutex_unlock(&pool->lock);
}

bool xps_memory_pool_warn_on_empty(struct xps_allocator *allocator)
{
	struct memory_pool *pool = pool_of(allocator);
	bool warn;

	if (!xps_process_is(pool->process))
		return false;
	pthread_mutex_lock(&pool->lock);
	warn = pool->warn_on_empty;
	pthread_mutex_unlock(&pool->lock);
	return warn;
}

uint64_t xps_memory_pool_n_free(struct xps_allocator *allocator)
{
	struct memory_pool *pool = pool_of(allocator);

	return xps_process_is(pool->process) ? n_free(pool) : 0;
}
