// SPDX-License-Identifier: Apache-2.0
/* A lock for a few instructions: one at a time has it, and who waits for long does not keep a processor busy. */
#include "spinlock.h"

#include <unistd.h>

#include "await.h"
#include "check.h"

enum { THREADS = 4, ROUNDS = 50000 };

struct shared {
	struct xps_spinlock lock;
	/* Guarded by it, and no atomics: */
	uint64_t n;
	uint64_t n_too; /* always the same */
	bool differed;
	pid_t waiter; /* atomic, not guarded */
};

static void *count(void *argument)
{
	struct shared *shared = argument;

	for (int i = 0; i < ROUNDS; i++) {
		xps_spin_lock(&shared->lock);
		shared->differed |= shared->n != shared->n_too;
		shared->n++;
		shared->n_too++;
		xps_spin_unlock(&shared->lock);
	}
	return NULL;
}

static void test_one_at_a_time(void)
{
	struct shared shared = { 0 };

	run_together(THREADS, count, &shared);
	CHECK_EQ(shared.n, (uint64_t)THREADS * ROUNDS);
	CHECK(!shared.differed);
}

static void *lock_once(void *argument)
{
	struct shared *shared = argument;

	__atomic_store_n(&shared->waiter, gettid(), __ATOMIC_RELEASE);
	xps_spin_lock(&shared->lock);
	shared->n++;
	xps_spin_unlock(&shared->lock);
	return NULL;
}

/* Else one with a real-time priority would wait for ever for one who may not run beside him. */
static void test_who_waits_for_long_sleeps(void)
{
	struct shared shared = { 0 };
	pthread_t waiter;

	xps_spin_lock(&shared.lock);
	waiter = start(lock_once, &shared);
	AWAIT(__atomic_load_n(&shared.waiter, __ATOMIC_ACQUIRE));
	await_asleep(__atomic_load_n(&shared.waiter, __ATOMIC_ACQUIRE));
	CHECK_EQ(shared.n, 0);
	xps_spin_unlock(&shared.lock);
	join(waiter);
	CHECK_EQ(shared.n, 1);
}

int main(void)
{
	test_one_at_a_time();
	test_who_waits_for_long_sleeps();
	return 0;
}
