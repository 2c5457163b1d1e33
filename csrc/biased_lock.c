// SPDX-License-Identifier: Apache-2.0
#include "biased_lock.h"

#include <linux/membarrier.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The kernel lets us have all threads of this process see what one has written. Set when the library is loaded. */
static bool can_reach_all;

static bool membarrier(int command)
{
	return syscall(SYS_membarrier, command, 0, 0) == 0;
}

__attribute__((constructor)) static void register_process(void)
{
	can_reach_all = membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED);
}

/* All threads see what we have written, and whoever does not see it has been seen by us. */
static void reach_all(void)
{
	const struct timespec sleep = { .tv_nsec = 10000000 };

	if (membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED) ||
	    (membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED) && membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED)))
		return;
	/* The kernel does it no more, or has no memory for it: what is written is seen within microseconds anyway. */
	nanosleep(&sleep, NULL);
}

/* Spinlock held. From here on it is everybody's, and the owner has gone out for the last time. */
static void share(struct xps_biased_lock *lock)
{
	__atomic_store_n(&lock->owner, 0, __ATOMIC_RELAXED);
	reach_all();
	xps_spin_while(&lock->busy);
}

/* Spinlock held, and nobody owns it. Whether the caller is to. */
static bool end_of_row(struct xps_biased_lock *lock, uintptr_t me)
{
	lock->n_in_row = lock->last == me ? lock->n_in_row + 1 : 1;
	lock->last = me;
	if (lock->n_in_row < XPS_LOCK_ROW || (lock->home && lock->home != me) || !can_reach_all)
		return false;
	lock->home = me;
	return true;
}

bool xps_biased_lock_slowly(struct xps_biased_lock *lock)
{
	const uintptr_t me = (uintptr_t)pthread_self();

	xps_spin_lock(&lock->shared);
	if (__atomic_load_n(&lock->owner, __ATOMIC_RELAXED))
		share(lock);
	if (!end_of_row(lock, me))
		return false;
	__atomic_store_n(&lock->busy, true, __ATOMIC_RELAXED);
	__atomic_store_n(&lock->owner, me, __ATOMIC_RELAXED);
	xps_spin_unlock(&lock->shared); /* who comes now waits until we are not busy */
	return true;
}
