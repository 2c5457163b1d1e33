// SPDX-License-Identifier: Apache-2.0
/* A lock that somebody owns until another one wants it: one at a time has it, also while it changes hands. */
#include "biased_lock.h"

#include <linux/membarrier.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "await.h"
#include "check.h"

struct guarded {
	struct xps_biased_lock lock;
	/* Guarded by it, and no atomics: */
	uint64_t n;
	uint64_t n_too; /* always the same */
	uint64_t n_by_others;
	bool differed;
} __attribute__((aligned(XPS_CACHE_LINE)));

/* Whether the kernel can do what owning takes; else all locks are shared. */
static bool may_own(void)
{
	return syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0) == 0;
}

/* Returns whether we own the lock. `dawdle`: how long to have it. */
static bool count_slowly(struct guarded *guarded, int dawdle)
{
	const bool owned = xps_biased_lock(&guarded->lock);

	guarded->differed |= guarded->n != guarded->n_too;
	guarded->n++;
	guarded->n_by_others += !owned;
	for (int i = 0; i < dawdle; i++)
		xps_relax();
	guarded->n_too++;
	xps_biased_unlock(&guarded->lock, owned);
	return owned;
}

static bool count_once(struct guarded *guarded)
{
	return count_slowly(guarded, 0);
}

enum { THREADS = 4, TIMES = 50 * XPS_LOCK_ROW, FEW = 10 };

static void *count(void *guarded)
{
	for (int i = 0; i < TIMES; i++)
		count_once(guarded);
	return NULL;
}

static void *count_a_few(void *guarded)
{
	for (int i = 0; i < FEW; i++)
		CHECK(!count_once(guarded));
	return NULL;
}

static void check_that_a_row_owns(struct guarded *guarded)
{
	for (int i = 1; i < XPS_LOCK_ROW; i++)
		CHECK(!count_once(guarded));
	CHECK_EQ(count_once(guarded), may_own());
	CHECK_EQ(count_once(guarded), may_own());
}

static void test_who_takes_it_in_a_row_owns_it_until_another_one_comes(void)
{
	struct guarded guarded = { 0 };

	CHECK(!count_once(&guarded));
	join(start(count_a_few, &guarded));
	check_that_a_row_owns(&guarded);
	join(start(count_a_few, &guarded));
	check_that_a_row_owns(&guarded);
	CHECK_EQ(guarded.n, 2 * (FEW + XPS_LOCK_ROW + 1) + 1);
	CHECK_EQ(guarded.n_by_others, guarded.n - (may_own() ? 4 : 0));
}

static void test_only_one_ever_owns_it(void)
{
	struct guarded guarded = { 0 };

	check_that_a_row_owns(&guarded);
	join(start(count, &guarded));
	CHECK_EQ(guarded.n, XPS_LOCK_ROW + 1 + TIMES);
	CHECK_EQ(guarded.n_by_others, guarded.n - (may_own() ? 2 : 0));
	check_that_a_row_owns(&guarded);
}

static void test_one_at_a_time(void)
{
	struct guarded guarded = { 0 };

	run_together(THREADS, count, &guarded);
	CHECK_EQ(guarded.n, (uint64_t)THREADS * TIMES);
	CHECK(!guarded.differed);
}

/* ---------------------------------------------------------------- changing hands */

/* Of the locks, one in so many is not kept at all, and others by so many looks longer. */
enum { LOCKS = 15000, TIMES_EACH = 60, ALL_TIMES = XPS_LOCK_ROW - 1 + TIMES_EACH, DAWDLES = 4, DAWDLE = 20 };

struct many {
	struct guarded *all;
	int at; /* atomic; the one that its owner uses */
};

static void *own(void *argument)
{
	struct many *many = argument;

	for (int i = 0; i < LOCKS; i++) {
		for (int j = 1; j < XPS_LOCK_ROW; j++)
			count_once(&many->all[i]);
		__atomic_store_n(&many->at, i, __ATOMIC_RELEASE);
		for (int j = 0; j < TIMES_EACH; j++) /* the first one makes it his */
			count_slowly(&many->all[i], i % DAWDLES * DAWDLE);
	}
	return NULL;
}

static bool is_owned(const struct guarded *guarded)
{
	return __atomic_load_n(&guarded->lock.owner, __ATOMIC_RELAXED) != 0;
}

/* Most locks are taken from their owner while he uses them. */
static void test_nothing_is_lost_when_it_changes_hands(void)
{
	const size_t size = LOCKS * sizeof(struct guarded);
	struct many many = { .all = aligned_alloc(XPS_CACHE_LINE, size), .at = -1 };
	pthread_t owner;
	int n_taken = 0;

	CHECK(many.all);
	memset(many.all, 0, size);
	owner = start(own, &many);
	for (int at = -1; at < LOCKS - 1;) {
		at = __atomic_load_n(&many.at, __ATOMIC_ACQUIRE);
		if (at < 0 || !is_owned(&many.all[at]))
			continue;
		CHECK(!count_once(&many.all[at]));
		n_taken++;
	}
	join(owner);
	CHECK(n_taken > 0 || !may_own());
	for (int i = 0; i < LOCKS; i++) {
		const struct guarded *guarded = &many.all[i];

		CHECK(guarded->n == ALL_TIMES || guarded->n == ALL_TIMES + 1);
		CHECK_EQ(guarded->n, guarded->n_too);
		CHECK(!guarded->differed);
		n_taken -= (int)(guarded->n - ALL_TIMES);
	}
	CHECK_EQ(n_taken, 0);
	free(many.all);
}

int main(void)
{
	test_who_takes_it_in_a_row_owns_it_until_another_one_comes();
	test_only_one_ever_owns_it();
	test_one_at_a_time();
	test_nothing_is_lost_when_it_changes_hands();
	return 0;
}
