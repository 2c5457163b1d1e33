// SPDX-License-Identifier: Apache-2.0
/*
 * How it works
 *
 * Three kinds of allocator share one table of functions. An allocator lives until its last user has dropped it and the
 * last of its blocks has come home, whichever is later.
 *
 * Free blocks that are kept lie in stocks (stock.h).
 *
 * Threads: anyone may allocate and free. Most often one thread allocates and another one frees, so what the two write
 * lies in different cache lines: blocks are counted when they are handed out and when they come home. Whoever frees takes
 * no lock; those who allocate share one for each allocator. A forked child must not take it, because a worker may have
 * held it: there nothing is taken from what is kept, and nothing is kept.
 */
#include "memory.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "biased_lock.h"
#include "fail.h"
#include "log.h"
#include "pool.h"
#include "process.h"
#include "stock.h"

struct allocator_ops {
	/* `counted`: whether it has counted the block in `n_kept_out`, else left alone; NULL: it is not to be counted. */
	struct xps_block *(*take)(struct xps_allocator *allocator, uint64_t size, bool *counted);
	void (*give)(struct xps_allocator *allocator, struct xps_block *block);
	void (*destroy)(struct xps_allocator *allocator);
};

struct xps_allocator {
	const struct allocator_ops *ops;
	uint32_t references; /* atomic; of users */
	/* Blocks handed out, ever: of what is kept, under the lock of those who take, and others, atomic. */
	uint64_t n_kept_out __attribute__((aligned(XPS_CACHE_LINE)));
	uint64_t n_out;
	/* atomic; blocks that came home. From the moment on when there are no more users, those that are missing, negative. */
	int64_t n_home __attribute__((aligned(XPS_CACHE_LINE)));
};

/* Zeroed memory that begins with a cache line. */
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

/* Under the lock of those who take: `block`, if there is one, goes out of what is kept. */
static void count_kept(struct xps_allocator *allocator, const struct xps_block *block, bool *counted)
{
	if (!block || !counted)
		return;
	allocator->n_kept_out++;
	*counted = true;
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
	if (!allocator || __atomic_sub_fetch(&allocator->references, 1, __ATOMIC_ACQ_REL) != 0)
		return;
	come_home(allocator, -(int64_t)(allocator->n_kept_out + __atomic_load_n(&allocator->n_out, __ATOMIC_RELAXED)));
}

uint8_t *xps_payload_new(struct xps_allocator *allocator, uint64_t size)
{
	struct xps_block *block;
	bool counted = false;

	if (size > INT64_MAX - sizeof(*block))
		return NULL;
	block = allocator->ops->take(allocator, size, &counted);
	if (!block)
		return NULL;
	block->owner = allocator;
	if (!counted)
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
	/* Whoever has the only one need not take it off. acquire(-release): he sees what all others did before. */
	if (__atomic_load_n(&block->references, __ATOMIC_ACQUIRE) != 1 &&
	    __atomic_sub_fetch(&block->references, 1, __ATOMIC_ACQ_REL) != 0)
		return;
	owner = block->owner;
	owner->ops->give(owner, block);
	come_home(owner, 1);
}

uint64_t xps_payload_capacity(const uint8_t *payload)
{
	return block_of(payload)->capacity;
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
 * For each new payload of some size the kernel makes pages and clears them, which costs as much as all else that is done for
 * a packet, and the C library gives the memory of a large one back as soon as it is freed; a small one that another thread
 * frees costs it more than a packet does too. So blocks that come home are kept, on a shelf for each of the sizes used
 * last. Those that are not needed for long go: so what one hiccup took is not kept for ever.
 */
#define LARGE (UINT64_C(16) << 10) /* from here on blocks are mapped */
#define KEPT_BYTES (UINT64_C(8) << 20)
#define KEPT_SIZES 4
#define KEPT_USES 64     /* of all shelves, after which a size is forgotten */
#define KEPT_PERIOD 1024 /* uses of all, after which it is seen what was not needed */
#define NO_SHELF UINT16_MAX

struct shelf {
	struct xps_stock stock; /* may hold blocks of the size that was here before, if they came home late */
	uint64_t capacity;      /* 0: it is nobody's */
	uint64_t used;          /* when it was used last */
	uint64_t since;         /* when what was not needed went last */
};

struct plain_allocator {
	struct xps_allocator base;
	struct shelf shelves[KEPT_SIZES];
	uint32_t process;
	struct xps_biased_lock lock; /* guards all but the shelves' putting side, and n_kept_out */
	uint64_t uses;               /* of the shelves, ever: what time is measured in */
};

static struct plain_allocator *plain_of(struct xps_allocator *allocator)
{
	return XPS_CONTAINER_OF(allocator, struct plain_allocator, base);
}

/* Whether it has whole pages. */
static bool is_large(uint64_t capacity)
{
	return capacity >= LARGE && mapped_size(capacity, false) <= KEPT_BYTES;
}

/* A sanitizer sees more of what comes from malloc. */
static bool is_mapped(uint64_t capacity)
{
	return !XPS_SANITIZED && is_large(capacity);
}

/* Bytes of a block that can be kept, head and all. */
static uint64_t block_size(uint64_t capacity)
{
	return is_large(capacity) ? mapped_size(capacity, false) : sizeof(struct xps_block) + capacity;
}

static bool is_worth_keeping(uint64_t capacity)
{
	return capacity && capacity <= KEPT_BYTES && block_size(capacity) <= KEPT_BYTES;
}

static uint64_t capacity_for(uint64_t size)
{
	return is_large(size) ? block_size(size) - sizeof(struct xps_block) : size;
}

static struct xps_block *new_block(uint64_t capacity, uint16_t shelf)
{
	struct xps_block *block;

	if (is_mapped(capacity))
		block = map_block(capacity, 0, false);
	else
		block = aligned_alloc(XPS_CACHE_LINE, xps_round_up(sizeof(*block) + capacity, XPS_CACHE_LINE));
	if (block) {
		block->capacity = capacity;
		block->shelf = shelf;
	}
	return block;
}

static void free_block(struct xps_block *block)
{
	if (is_mapped(block->capacity))
		unmap_block(block);
	else
		free(block);
}

static void free_blocks(struct xps_block *block)
{
	while (block) {
		struct xps_block *next = block->next;

		free_block(block);
		block = next;
	}
}

/* Lock held. Take `n` blocks off the shelf, or all, and put them in front of others that are to go. */
static void clear(struct shelf *shelf, uint64_t n, struct xps_block **gone)
{
	struct xps_block *block;

	for (; n && (block = xps_stock_take(&shelf->stock)); n--) {
		block->next = *gone;
		*gone = block;
	}
}

/* Lock held. Sizes that were not used of late have no shelf any more; the others share what may be kept. */
static void forget(struct plain_allocator *plain, struct xps_block **gone)
{
	uint64_t n = 0;

	for (int i = 0; i < KEPT_SIZES; i++) {
		struct shelf *shelf = &plain->shelves[i];

		if (shelf->capacity && shelf->used + KEPT_USES < plain->uses) {
			shelf->capacity = 0;
			xps_stock_limit(&shelf->stock, 0);
			clear(shelf, UINT64_MAX, gone);
		}
		n += shelf->capacity != 0;
	}
	for (int i = 0; i < KEPT_SIZES; i++)
		if (plain->shelves[i].capacity)
			xps_stock_limit(&plain->shelves[i].stock,
					KEPT_BYTES / (n * block_size(plain->shelves[i].capacity)));
}

/* Lock held. What was not needed since the last time goes. */
static void trim(struct plain_allocator *plain, struct shelf *shelf, struct xps_block **gone)
{
	const uint64_t unseen = shelf->stock.takes_per_look - 1; /* takes since a look */
	const uint64_t least = shelf->stock.least;

	if (least > unseen)
		clear(shelf, least - unseen, gone);
	shelf->stock.least = UINT64_MAX;
	shelf->since = plain->uses;
}

/* Lock held. NULL: there is none for this size, and others need theirs. */
static struct shelf *find_shelf(struct plain_allocator *plain, uint64_t capacity, struct xps_block **gone)
{
	struct shelf *unused = NULL;

	for (int i = 0; i < KEPT_SIZES; i++) {
		if (plain->shelves[i].capacity == capacity)
			return &plain->shelves[i];
		if (!plain->shelves[i].capacity)
			unused = &plain->shelves[i];
	}
	if (!unused)
		return NULL;
	clear(unused, UINT64_MAX, gone); /* what came home late */
	unused->capacity = capacity;
	unused->used = unused->since = plain->uses;
	/* Large ones are few, and the one that was used last is worth more. */
	unused->stock.takes_per_look =
		is_large(capacity) ? 1
				   : xps_stock_takes_per_look(block_size(capacity), KEPT_BYTES / block_size(capacity));
	forget(plain, gone);
	return unused;
}

/* Lock held. */
static struct xps_block *take_kept(struct plain_allocator *plain, struct shelf *shelf, struct xps_block **gone)
{
	struct xps_block *block;

	while ((block = xps_stock_take(&shelf->stock)) && block->capacity != shelf->capacity) {
		block->next = *gone;
		*gone = block;
	}
	shelf->used = plain->uses;
	if (plain->uses - shelf->since >= KEPT_PERIOD)
		trim(plain, shelf, gone);
	return block;
}

static struct xps_block *plain_take(struct xps_allocator *allocator, uint64_t size, bool *counted)
{
	struct plain_allocator *plain = plain_of(allocator);
	const uint64_t capacity = capacity_for(size);
	struct xps_block *block = NULL, *gone = NULL;
	uint16_t index = NO_SHELF;
	struct shelf *shelf;
	bool owned;

	if (!is_worth_keeping(capacity) || !xps_process_is(plain->process))
		return new_block(capacity, NO_SHELF);
	owned = xps_biased_lock(&plain->lock);
	if (++plain->uses % KEPT_USES == 0)
		forget(plain, &gone);
	shelf = find_shelf(plain, capacity, &gone);
	if (shelf) {
		index = (uint16_t)(shelf - plain->shelves);
		block = take_kept(plain, shelf, &gone);
	}
	count_kept(allocator, block, counted);
	xps_biased_unlock(&plain->lock, owned);
	free_blocks(gone);
	if (!block)
		return new_block(capacity, index);
	block->shelf = index;
	return block;
}

static void plain_give(struct xps_allocator *allocator, struct xps_block *block)
{
	struct plain_allocator *plain = plain_of(allocator);

	if (block->shelf == NO_SHELF || !xps_process_is(plain->process) ||
	    !xps_stock_put(&plain->shelves[block->shelf].stock, block))
		free_block(block);
}

static void plain_destroy(struct xps_allocator *allocator)
{
	struct plain_allocator *plain = plain_of(allocator);
	struct xps_block *gone = NULL;

	for (int i = 0; i < KEPT_SIZES; i++)
		clear(&plain->shelves[i], UINT64_MAX, &gone);
	free_blocks(gone);
	free(plain);
}

struct xps_allocator *xps_allocator_new(void)
{
	static const struct allocator_ops ops = { .take = plain_take, .give = plain_give, .destroy = plain_destroy };
	struct plain_allocator *plain = new_lines(sizeof(*plain));

	if (!plain)
		return NULL;
	plain->base = (struct xps_allocator){ .ops = &ops, .references = 1 };
	plain->process = xps_process();
	for (int i = 0; i < KEPT_SIZES; i++)
		xps_stock_init(&plain->shelves[i].stock, 0, 1);
	return &plain->base;
}

/* ---------------------------------------------------------------- mmap */

struct mmap_allocator {
	struct xps_allocator base;
	int flags;
	bool prefer_huge;
};

static struct xps_block *mmap_take(struct xps_allocator *allocator, uint64_t size, bool *counted)
{
	struct mmap_allocator *mapper = XPS_CONTAINER_OF(allocator, struct mmap_allocator, base);
	struct xps_block *block = NULL;

	(void)counted;
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

struct memory_pool {
	struct xps_allocator base;
	struct xps_stock stock;
	uint32_t process;
	struct xps_allocator *source;
	uint64_t capacity; /* atomic; of the blocks that the source makes for us, which may be larger than asked for */
	uint64_t lower, upper, max_free, initial, low_water;
	struct xps_log *log;
	struct xps_pool *threads; /* NULL: no refilling */
	struct xps_loop *loop;
	struct xps_task refill;

	bool warn_on_empty; /* atomic */

	/* Guards the stock's taking side, n_kept_out and all below. */
	struct xps_biased_lock lock __attribute__((aligned(XPS_CACHE_LINE)));
	bool refilling;
};

static struct memory_pool *pool_of(struct xps_allocator *allocator)
{
	return XPS_CONTAINER_OF(allocator, struct memory_pool, base);
}

static struct xps_block *make_block(struct memory_pool *pool)
{
	/* The source need not count what we have, since it has our reference. */
	struct xps_block *block = pool->source->ops->take(pool->source, pool->upper, NULL);

	if (block)
		__atomic_store_n(&pool->capacity, block->capacity, __ATOMIC_RELAXED);
	return block;
}

static void drop_block(struct memory_pool *pool, struct xps_block *block)
{
	pool->source->ops->give(pool->source, block);
}

/* Keep the block if there is room, else give its memory back. */
static void shelve(struct memory_pool *pool, struct xps_block *block)
{
	if (!xps_stock_put(&pool->stock, block))
		drop_block(pool, block);
}

static void refill(struct xps_task *task)
{
	struct memory_pool *pool = XPS_CONTAINER_OF(task, struct memory_pool, refill);
	struct xps_block *block;
	bool enough, owned;

	do {
		block = make_block(pool);
		if (block)
			shelve(pool, block);
		owned = xps_biased_lock(&pool->lock);
		enough = !block || xps_stock_size(&pool->stock) >= xps_min_u64(pool->initial, pool->max_free);
		if (enough)
			pool->refilling = false;
		xps_biased_unlock(&pool->lock, owned);
	} while (!enough);
}

static struct xps_block *pool_take(struct xps_allocator *allocator, uint64_t size, bool *counted)
{
	struct memory_pool *pool = pool_of(allocator);
	struct xps_block *block;
	bool owned, warn, start_refill;

	if (size < pool->lower || size > pool->upper || !xps_process_is(pool->process))
		return pool->source->ops->take(pool->source, size, NULL);

	owned = xps_biased_lock(&pool->lock);
	block = xps_stock_take(&pool->stock);
	count_kept(allocator, block, counted);
	warn = !block && __atomic_load_n(&pool->warn_on_empty, __ATOMIC_RELAXED);
	start_refill = pool->loop && !pool->refilling && xps_stock_size(&pool->stock) < pool->low_water;
	if (start_refill)
		pool->refilling = true;
	xps_biased_unlock(&pool->lock, owned);

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
	while ((block = xps_stock_take(&pool->stock)))
		drop_block(pool, block);
	xps_allocator_free(pool->source);
	xps_log_free(pool->log);
	xps_pool_free(pool->threads);
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
	xps_stock_init(&pool->stock, max_free, xps_stock_takes_per_look(upper, max_free));
	pool->initial = initial;
	pool->low_water = low_water;
	pool->log = xps_log_ref(log);
	pool->warn_on_empty = true;
	pool->refill.run = refill;
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
	__atomic_store_n(&pool_of(allocator)->warn_on_empty, warn, __ATOMIC_RELAXED);
}

bool xps_memory_pool_warn_on_empty(struct xps_allocator *allocator)
{
	return __atomic_load_n(&pool_of(allocator)->warn_on_empty, __ATOMIC_RELAXED);
}

uint64_t xps_memory_pool_n_free(struct xps_allocator *allocator)
{
	struct memory_pool *pool = pool_of(allocator);

	return xps_process_is(pool->process) ? xps_stock_size(&pool->stock) : 0;
}
