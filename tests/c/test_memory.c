// SPDX-License-Identifier: Apache-2.0
/* Where payloads live: how long, in whose hands, and what a memory pool keeps. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "await.h"
#include "check.h"
#include "log.h"
#include "memory.h"
#include "pool.h"

static struct xps_allocator *base;
static struct xps_log *quiet; /* nobody reads it */

/* Pool of blocks of 1000 bytes for sizes from 500. */
static struct xps_allocator *new_pool(struct xps_pool *threads, uint64_t max_free, uint64_t initial, uint64_t low_water)
{
	struct xps_fail fail = { 0 };
	struct xps_allocator *pool =
		xps_memory_pool_new(threads, 500, 1000, max_free, initial, low_water, base, quiet, &fail);

	CHECK(pool);
	return pool;
}

static struct xps_pool *new_threads(void)
{
	struct xps_fail fail = { 0 };
	struct xps_pool *threads = xps_pool_new(1, NULL, 0, &fail);

	CHECK(threads);
	return threads;
}

static void do_nothing(struct xps_task *task)
{
	(void)task;
}

/* Everything that was posted to the only thread so far has run afterwards. */
static void settle(struct xps_pool *threads)
{
	struct xps_task task = { .run = do_nothing };

	xps_loop_call(xps_pool_loop(threads), &task);
}

/* ---------------------------------------------------------------- the C library's, which keeps some */

static void test_the_block_that_was_freed_last_is_used_first(void)
{
	struct xps_allocator *plain = xps_allocator_new();
	uint8_t *first = xps_payload_new(plain, 20000), *second = xps_payload_new(plain, 20000), *other;

	xps_payload_free(first);
	xps_payload_free(second);
	other = xps_payload_new(plain, 40000);
	CHECK(other != first && other != second);
	CHECK(xps_payload_new(plain, 19500) == second); /* the same pages would do for it */
	CHECK(xps_payload_new(plain, 20000) == first);
	memset(first, 1, 20000);
	memset(second, 1, 20000);
	xps_payload_free(first);
	xps_payload_free(second);
	xps_payload_free(other);
	xps_allocator_free(plain);
}

static void test_small_blocks_are_kept_too(void)
{
	struct xps_allocator *plain = xps_allocator_new();
	uint8_t *first = xps_payload_new(plain, 100), *second = xps_payload_new(plain, 100), *other;

	xps_payload_free(first);
	xps_payload_free(second);
	other = xps_payload_new(plain, 101); /* another size */
	CHECK(other != first && other != second);
	CHECK(xps_payload_new(plain, 100) == second);
	CHECK(xps_payload_new(plain, 100) == first);
	xps_payload_free(first);
	xps_payload_free(second);
	xps_payload_free(other);
	xps_allocator_free(plain);
}

/* More sizes than are kept, small ones and mapped ones, in turn. */
static const uint64_t many_sizes[] = { 10, 1000, 20000, 40000, 2000, 70000, 3000 };

enum { N_SIZES = sizeof(many_sizes) / sizeof(many_sizes[0]), AT_ONCE = 70 };

struct handful {
	uint8_t *payloads[AT_ONCE];
	int round;
};

static uint64_t size_in(int round, int i)
{
	/* In some rounds few sizes, so that each of them comes to have a shelf. */
	return many_sizes[round % 3 ? round / 30 % N_SIZES : i % N_SIZES];
}

static void *check_and_free(void *argument)
{
	struct handful *handful = argument;

	for (int i = 0; i < AT_ONCE; i++) {
		const uint64_t size = size_in(handful->round, i);

		CHECK_EQ(handful->payloads[i][0], i);
		CHECK_EQ(handful->payloads[i][size - 1], handful->round & 0xff);
		xps_payload_free(handful->payloads[i]);
	}
	return NULL;
}

static void test_one_thread_allocates_what_another_frees(void)
{
	struct xps_allocator *plain = xps_allocator_new();
	struct handful handfuls[2];
	pthread_t other = 0;

	for (int round = 0; round < 400; round++) {
		struct handful *handful = &handfuls[round % 2];

		handful->round = round;
		for (int i = 0; i < AT_ONCE; i++) {
			const uint64_t size = size_in(round, i);

			handful->payloads[i] = xps_payload_new(plain, size);
			CHECK(handful->payloads[i]);
			handful->payloads[i][0] = (uint8_t)i;
			handful->payloads[i][size - 1] = (uint8_t)round;
		}
		if (round)
			join(other);
		other = start(check_and_free, handful);
	}
	join(other);
	xps_allocator_free(plain);
}

/* Resident bytes of this process that are no file's. A sanitizer keeps what is freed: then they say nothing, always 0. */
static size_t in_use(void)
{
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
	return 0;
#else
	FILE *file = fopen("/proc/self/statm", "r");
	size_t all, resident, shared;

	CHECK(file && fscanf(file, "%zu %zu %zu", &all, &resident, &shared) == 3);
	fclose(file);
	return (resident - shared) * (size_t)sysconf(_SC_PAGESIZE);
#endif
}

enum { MANY = 200 };

/* Allocate many payloads of a size at once and free them again. */
static void use_many(struct xps_allocator *allocator, uint64_t size)
{
	uint8_t *payloads[MANY];

	for (int i = 0; i < MANY; i++) {
		payloads[i] = xps_payload_new(allocator, size);
		CHECK(payloads[i]);
		memset(payloads[i], 1, size);
	}
	for (int i = 0; i < MANY; i++)
		xps_payload_free(payloads[i]);
}

static void test_no_more_than_so_much_is_kept(void)
{
	struct xps_allocator *plain = xps_allocator_new();
	const size_t before = in_use();

	for (uint64_t size = 1000; size <= (UINT64_C(1) << 20); size *= 2) {
		use_many(plain, size);
		CHECK(in_use() <= before + (UINT64_C(9) << 20));
	}
	/* More than is kept at all: it goes, and does not take the others with it. */
	xps_payload_free(xps_payload_new(plain, UINT64_C(20) << 20));
	CHECK(in_use() <= before + (UINT64_C(9) << 20));
	xps_allocator_free(plain);
	CHECK(in_use() <= before + (UINT64_C(1) << 20)); /* malloc has some of it */
}

/* A size that is not used any more makes room for the one that is. */
static void test_a_size_is_forgotten(void)
{
	struct xps_allocator *plain = xps_allocator_new();
	uint8_t *payload;

	use_many(plain, 64 << 10); /* fills all there is */
	use_many(plain, 30000);
	payload = xps_payload_new(plain, 30000);
	xps_payload_free(payload);
	CHECK(xps_payload_new(plain, 30000) == payload);
	xps_payload_free(payload);
	xps_allocator_free(plain);
}

static void test_what_is_not_needed_for_long_goes(void)
{
	struct xps_allocator *plain = xps_allocator_new();
	const size_t before = in_use();
	uint8_t *again[2];

	use_many(plain, 64 << 10);
	for (int i = 0; i < 20000; i++) {
		uint8_t *first = xps_payload_new(plain, 64 << 10), *second = xps_payload_new(plain, 64 << 10);

		again[0] = first;
		again[1] = second;
		xps_payload_free(second);
		xps_payload_free(first);
	}
	CHECK(in_use() <= before + (512 << 10));
	/* What is needed stays. */
	CHECK(xps_payload_new(plain, 64 << 10) == again[0]);
	CHECK(xps_payload_new(plain, 64 << 10) == again[1]);
	xps_payload_free(again[0]);
	xps_payload_free(again[1]);
	xps_allocator_free(plain);
}

/* ---------------------------------------------------------------- every allocator */

static void check_allocator(struct xps_allocator *allocator)
{
	for (uint64_t size = 0; size < 100000; size = size < 70 ? size + 1 : size * 3) {
		uint8_t *payload = xps_payload_new(allocator, size);

		CHECK(payload);
		CHECK_EQ((uintptr_t)payload % XPS_CACHE_LINE, 0);
		CHECK(xps_payload_capacity(payload) >= size);
		memset(payload, 0xa5, size);
		xps_payload_free(payload);
	}
	/* Sizes that no machine has, among them those that overflow when a head is added. */
	CHECK(!xps_payload_new(allocator, UINT64_MAX));
	CHECK(!xps_payload_new(allocator, UINT64_MAX - 63));
	CHECK(!xps_payload_new(allocator, INT64_MAX));
}

static void test_payloads_are_aligned_and_as_large_as_asked_for(void)
{
	struct xps_allocator *mapper = xps_mmap_allocator_new(0, false);
	struct xps_allocator *huge = xps_mmap_allocator_new(0, true); /* small pages where there are none */
	struct xps_allocator *pool = new_pool(NULL, 3, 2, 0);

	check_allocator(base);
	check_allocator(mapper);
	check_allocator(huge);
	check_allocator(pool);
	CHECK(!xps_payload_new(mapper, UINT64_C(1) << 60));
	CHECK(!xps_payload_new(huge, UINT64_C(1) << 60));
	xps_allocator_free(mapper);
	xps_allocator_free(huge);
	xps_allocator_free(pool);
}

static void test_payload_lives_as_long_as_its_last_reference(void)
{
	uint8_t *payload = xps_payload_new(base, 100);

	memset(payload, 7, 100);
	CHECK(xps_payload_ref(payload) == payload);
	xps_payload_free(payload);
	CHECK_EQ(payload[99], 7);
	xps_payload_free(payload);
	xps_payload_free(NULL);
}

static void test_payload_outlives_its_allocator(void)
{
	struct xps_allocator *mapper = xps_mmap_allocator_new(0, false);
	uint8_t *payload = xps_payload_new(mapper, 100);

	xps_allocator_free(mapper);
	memset(payload, 7, 100);
	xps_payload_free(payload);
}

static void *take_and_drop_references(void *payload)
{
	for (int i = 0; i < 10000; i++)
		xps_payload_free(xps_payload_ref(payload));
	xps_payload_free(payload);
	return NULL;
}

static void test_references_are_counted_from_all_threads(void)
{
	struct xps_allocator *pool = new_pool(NULL, 1, 0, 0);
	uint8_t *payload = xps_payload_new(pool, 1000);
	pthread_t threads[3];

	for (int i = 0; i < 3; i++)
		threads[i] = start(take_and_drop_references, xps_payload_ref(payload));
	for (int i = 0; i < 3; i++)
		join(threads[i]);
	CHECK_EQ(xps_memory_pool_n_free(pool), 0);
	xps_payload_free(payload);
	CHECK_EQ(xps_memory_pool_n_free(pool), 1);
	xps_allocator_free(pool);
}

/* ---------------------------------------------------------------- memory pool */

static void test_pool_starts_with_its_initial_blocks(void)
{
	struct xps_allocator *pool = new_pool(NULL, 5, 3, 0);
	struct xps_allocator *small = new_pool(NULL, 2, 3, 0); /* no more than it may hold */

	CHECK_EQ(xps_memory_pool_n_free(pool), 3);
	CHECK_EQ(xps_memory_pool_n_free(small), 2);
	xps_allocator_free(pool);
	xps_allocator_free(small);
}

static void test_block_freed_last_is_served_first(void)
{
	struct xps_allocator *pool = new_pool(NULL, 5, 3, 0);
	uint8_t *payloads[3];

	for (int i = 0; i < 3; i++)
		payloads[i] = xps_payload_new(pool, 1000);
	for (int i = 0; i < 3; i++)
		xps_payload_free(payloads[i]);
	for (int i = 2; i >= 0; i--)
		CHECK(xps_payload_new(pool, 500 + (uint64_t)i) == payloads[i]);
	for (int i = 0; i < 3; i++)
		xps_payload_free(payloads[i]);
	xps_allocator_free(pool);
}

static void test_pool_serves_the_sizes_it_is_for(void)
{
	struct xps_allocator *pool = new_pool(NULL, 5, 3, 0);
	const uint64_t sizes[] = { 499, 500, 1000, 1001 };

	for (int i = 0; i < 4; i++) {
		const bool pooled = sizes[i] >= 500 && sizes[i] <= 1000;
		uint8_t *payload = xps_payload_new(pool, sizes[i]);

		CHECK_EQ(xps_memory_pool_n_free(pool), pooled ? 2 : 3);
		if (pooled)
			CHECK_EQ(xps_payload_capacity(payload), 1000);
		xps_payload_free(payload);
		CHECK_EQ(xps_memory_pool_n_free(pool), 3);
	}
	xps_allocator_free(pool);
}

static void test_pool_holds_at_most_max_free(void)
{
	struct xps_allocator *pool = new_pool(NULL, 2, 0, 0);
	uint8_t *payloads[5];

	for (int i = 0; i < 5; i++)
		payloads[i] = xps_payload_new(pool, 1000);
	for (int i = 0; i < 5; i++) {
		xps_payload_free(payloads[i]);
		CHECK_EQ(xps_memory_pool_n_free(pool), i < 2 ? i + 1 : 2);
	}
	xps_allocator_free(pool);
}

#define IN_LARGE_POOL 256 /* so many that the pool does not look at what came home each time */

static int compare(const void *a, const void *b)
{
	const uint8_t *const *left = a, *const *right = b;

	return (*left > *right) - (*left < *right);
}

static void check_that_none_is_there_twice(uint8_t **payloads, int n)
{
	qsort(payloads, (size_t)n, sizeof(*payloads), compare);
	for (int i = 1; i < n; i++)
		CHECK(payloads[i - 1] != payloads[i]);
}

static void test_large_pool_serves_each_block_once_whenever_it_came_home(void)
{
	struct xps_allocator *pool = new_pool(NULL, IN_LARGE_POOL, IN_LARGE_POOL, 0);
	uint8_t *payloads[IN_LARGE_POOL + 10];
	int n = 0;

	/* A few more go out than come home each time, until all are out. */
	for (int round = 0; n < IN_LARGE_POOL; round++) {
		const int more = round % 40 < IN_LARGE_POOL - n ? round % 40 : IN_LARGE_POOL - n;

		for (int i = 0; i < more; i++)
			payloads[n++] = xps_payload_new(pool, 1000);
		check_that_none_is_there_twice(payloads, n);
		CHECK_EQ(xps_memory_pool_n_free(pool), IN_LARGE_POOL - n);
		for (int i = 0; i < more / 2 && n < IN_LARGE_POOL; i++)
			xps_payload_free(payloads[--n]);
		CHECK_EQ(xps_memory_pool_n_free(pool), IN_LARGE_POOL - n);
	}
	for (; n < IN_LARGE_POOL + 10; n++)
		payloads[n] = xps_payload_new(pool, 1000);
	check_that_none_is_there_twice(payloads, n);
	for (int came = 1; n; came++) {
		xps_payload_free(payloads[--n]);
		CHECK_EQ(xps_memory_pool_n_free(pool), came < IN_LARGE_POOL ? came : IN_LARGE_POOL);
	}
	xps_allocator_free(pool);
}

static void test_pool_lives_until_its_last_block_has_come_home(void)
{
	struct xps_allocator *pool = new_pool(NULL, 4, 4, 0);
	uint8_t *payloads[6];

	for (int i = 0; i < 6; i++)
		payloads[i] = xps_payload_new(pool, 1000);
	xps_payload_free(payloads[0]);
	xps_allocator_free(pool);
	for (int i = 1; i < 6; i++) {
		memset(payloads[i], i, 1000);
		xps_payload_free(payloads[i]); /* a sanitizer sees whether the pool is still there */
	}
}

static void test_empty_pool_warns_if_it_may_and_serves(void)
{
	struct xps_log *log = xps_log_new();
	struct xps_fail fail = { 0 };
	struct xps_allocator *pool = xps_memory_pool_new(NULL, 500, 1000, 1, 1, 0, base, log, &fail);
	struct xps_log_line lines[4];
	uint8_t *first = xps_payload_new(pool, 1000), *second, *third;

	CHECK_EQ(xps_log_take(log, lines, 4, 0), 0);
	CHECK(xps_memory_pool_warn_on_empty(pool));
	second = xps_payload_new(pool, 900);
	CHECK(second);
	CHECK_EQ(xps_log_take(log, lines, 4, 0), 1);
	CHECK_EQ(lines[0].level, XPS_LOG_WARNING);
	CHECK(strstr(lines[0].text, "900"));
	xps_memory_pool_set_warn_on_empty(pool, false);
	CHECK(!xps_memory_pool_warn_on_empty(pool));
	third = xps_payload_new(pool, 1000);
	CHECK(third);
	CHECK_EQ(xps_log_take(log, lines, 4, 0), 0);
	xps_payload_free(first);
	xps_payload_free(second);
	xps_payload_free(third);
	xps_allocator_free(pool);
	xps_log_free(log);
}

static void test_pool_that_cannot_be_filled_says_so(void)
{
	struct xps_allocator *mapper = xps_mmap_allocator_new(0, false);
	struct xps_fail fail = { 0 };

	CHECK(!xps_memory_pool_new(NULL, 0, UINT64_C(1) << 60, 4, 2, 0, mapper, quiet, &fail));
	CHECK(fail.err);
	CHECK(fail.text[0]);
	xps_allocator_free(mapper);
}

static void test_pool_below_its_low_water_is_refilled(void)
{
	struct xps_pool *threads = new_threads();
	struct xps_allocator *pool = new_pool(threads, 8, 5, 3);
	uint8_t *payloads[3];

	for (int i = 0; i < 2; i++)
		payloads[i] = xps_payload_new(pool, 1000);
	settle(threads);
	CHECK_EQ(xps_memory_pool_n_free(pool), 3);
	payloads[2] = xps_payload_new(pool, 1000);
	settle(threads);
	CHECK_EQ(xps_memory_pool_n_free(pool), 5);
	for (int i = 0; i < 3; i++)
		xps_payload_free(payloads[i]);
	CHECK_EQ(xps_memory_pool_n_free(pool), 8);
	xps_allocator_free(pool);
	xps_pool_free(threads);
}

static void test_pool_is_refilled_again_and_again(void)
{
	struct xps_pool *threads = new_threads();
	struct xps_allocator *pool = new_pool(threads, 4, 4, 4);

	for (int i = 0; i < 100; i++) {
		uint8_t *payload = xps_payload_new(pool, 1000);

		settle(threads);
		CHECK_EQ(xps_memory_pool_n_free(pool), 4);
		xps_payload_free(payload);
	}
	xps_allocator_free(pool);
	xps_pool_free(threads);
}

static void test_pool_serves_when_its_threads_have_ended(void)
{
	struct xps_pool *threads = new_threads();
	struct xps_allocator *pool = new_pool(threads, 4, 2, 2);
	uint8_t *payload;

	xps_pool_stop(threads);
	payload = xps_payload_new(pool, 1000);
	CHECK(payload);
	xps_payload_free(payload);
	xps_allocator_free(pool);
	xps_pool_free(threads);
}

static void test_pool_may_be_dropped_before_its_blocks(void)
{
	struct xps_allocator *pool = new_pool(NULL, 4, 2, 0);
	uint8_t *first = xps_payload_new(pool, 1000), *second = xps_payload_new(pool, 10);

	xps_allocator_free(pool);
	memset(first, 1, 1000);
	memset(second, 2, 10);
	xps_payload_free(second);
	xps_payload_free(first);
}

static void *drop(void *payload)
{
	memset(payload, 3, 1000);
	xps_payload_free(payload);
	return NULL;
}

static void test_last_block_may_come_home_in_another_thread(void)
{
	struct xps_pool *threads = new_threads();

	for (int i = 0; i < 50; i++) {
		/* With a refill under way. */
		struct xps_allocator *pool = new_pool(threads, 4, 4, 4);
		uint8_t *payload = xps_payload_new(pool, 1000);
		pthread_t dropper;

		xps_allocator_free(pool);
		dropper = start(drop, payload);
		join(dropper);
	}
	xps_pool_free(threads);
}

static void test_threads_may_be_dropped_before_the_pool_that_uses_them(void)
{
	struct xps_pool *threads = new_threads();
	struct xps_allocator *pool = new_pool(threads, 4, 4, 4);
	uint8_t *payload;

	xps_pool_free(threads);
	payload = xps_payload_new(pool, 1000);
	xps_allocator_free(pool);
	xps_payload_free(payload);
}

static void test_base_may_be_dropped_before_the_pool(void)
{
	struct xps_allocator *mapper = xps_mmap_allocator_new(0, false);
	struct xps_fail fail = { 0 };
	struct xps_allocator *pool = xps_memory_pool_new(NULL, 500, 1000, 4, 1, 0, mapper, quiet, &fail);
	uint8_t *first = xps_payload_new(pool, 1000), *second = xps_payload_new(pool, 1000);

	xps_allocator_free(mapper);
	xps_allocator_free(pool);
	xps_payload_free(first);
	xps_payload_free(second);
}

/* Hand blocks from thread to thread, each marked by whoever holds it. */
static void *churn(void *argument)
{
	struct xps_allocator *pool = argument;
	uint8_t *held[8] = { NULL };

	for (unsigned i = 0; i < 5000; i++) {
		uint8_t **slot = &held[i * 7 % 8];

		if (*slot) {
			CHECK_EQ((*slot)[0], (uint8_t)(i * 7 % 8));
			CHECK_EQ((*slot)[499], (uint8_t)(i * 7 % 8));
			xps_payload_free(*slot);
		}
		*slot = xps_payload_new(pool, 500 + i % 501);
		memset(*slot, (int)(i * 7 % 8), 500);
	}
	for (int i = 0; i < 8; i++)
		xps_payload_free(held[i]);
	return NULL;
}

static void test_threads_share_a_pool_that_is_being_refilled(void)
{
	struct xps_pool *threads = new_threads();
	struct xps_allocator *pool = new_pool(threads, 12, 8, 4);

	run_together(3, churn, pool);
	settle(threads);
	CHECK(xps_memory_pool_n_free(pool) <= 12);
	CHECK(xps_memory_pool_n_free(pool) >= 4);
	xps_allocator_free(pool);
	xps_pool_free(threads);
}

int main(void)
{
	base = xps_allocator_new();
	quiet = xps_log_new();

	test_the_block_that_was_freed_last_is_used_first();
	test_small_blocks_are_kept_too();
	test_one_thread_allocates_what_another_frees();
	test_no_more_than_so_much_is_kept();
	test_a_size_is_forgotten();
	test_what_is_not_needed_for_long_goes();
	test_payloads_are_aligned_and_as_large_as_asked_for();
	test_payload_lives_as_long_as_its_last_reference();
	test_payload_outlives_its_allocator();
	test_references_are_counted_from_all_threads();

	test_pool_starts_with_its_initial_blocks();
	test_block_freed_last_is_served_first();
	test_pool_serves_the_sizes_it_is_for();
	test_pool_holds_at_most_max_free();
	test_large_pool_serves_each_block_once_whenever_it_came_home();
	test_pool_lives_until_its_last_block_has_come_home();
	test_empty_pool_warns_if_it_may_and_serves();
	test_pool_that_cannot_be_filled_says_so();
	test_pool_below_its_low_water_is_refilled();
	test_pool_is_refilled_again_and_again();
	test_pool_serves_when_its_threads_have_ended();
	test_pool_may_be_dropped_before_its_blocks();
	test_last_block_may_come_home_in_another_thread();
	test_threads_may_be_dropped_before_the_pool_that_uses_them();
	test_base_may_be_dropped_before_the_pool();
	test_threads_share_a_pool_that_is_being_refilled();

	xps_log_free(quiet);
	xps_allocator_free(base);
	return 0;
}
