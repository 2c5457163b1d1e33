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

enum { THREADS = 4, TIMES = 50000 };

static void *count(void *guarded)
{
	for (int i = 0; i < TIMES; i++)
		count_once(guarded);
	return NULL;
}

static void test_the_first_one_owns_it_until_another_one_comes(void)
{
	struct guarded guarded = { 0 };

	CHECK_EQ(count_once(&guarded), may_own());
	CHECK_EQ(count_once(&guarded), may_own());
	join(start(count, &guarded));
	CHECK(!count_once(&guarded));
	CHECK_EQ(guarded.n, TIMES + 3);
	CHECK_EQ(guarded.n_by_others, TIMES + (may_own() ? 1 : 3));
}

static void test_one_at_a_time(void)
{
	struct guarded guarded = { 0 };
	pthread_t threads[THREADS];

	for (int i = 0; i < THREADS; i++)
		threads[i] = start(count, &guarded);
	for (int i = 0; i < THREADS; i++)
		join(threads[i]);
	CHECK_EQ(guarded.n, (uint64_t)THREADS * TIMES);
	CHECK(!guarded.differed);
}

/* ---------------------------------------------------------------- changing hands */

/* Of the locks, one in so many is not kept at all, and others by so many looks longer. */
enum { LOCKS = 40000, TIMES_EACH = 60, DAWDLES = 4, DAWDLE = 5 };

struct many {
	struct guarded *all;
	int at; /* atomic; the one that its owner uses */
};

static void *own(void *argument)
{
	struct many *many = argument;

	for (int i = 0; i < LOCKS; i++) {
		__atomic_store_n(&many->at, i, __ATOMIC_RELEASE);
		for (int j = 0; j < TIMES_EACH; j++)
			count_slowly(&many->all[i], i % DAWDLES * DAWDLE);
	}
	return NULL;
}

static bool is_owned(const struct guarded *guarded)
{
	return __atomic_load_n(&guarded->lock.owner, __ATOMIC_RELAXED) > XPS_LOCK_SHARED;
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

		CHECK(guarded->n == TIMES_EACH || guarded->n == TIMES_EACH + 1);
		CHECK_EQ(guarded->n, guarded->n_too);
		CHECK(!guarded->differed);
		n_taken -= (int)(guarded->n - TIMES_EACH);
	}
	CHECK_EQ(n_taken, 0);
	free(many.all);
}

int main(void)
{
	test_the_first_one_owns_it_until_another_one_comes();
	test_one_at_a_time();
	test_nothing_is_lost_when_it_changes_hands();
	return 0;
}
