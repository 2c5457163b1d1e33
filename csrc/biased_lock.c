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

static bool try_to_own(struct xps_biased_lock *lock)
{
	uintptr_t nobody = XPS_LOCK_NEW;

	return can_reach_all && __atomic_compare_exchange_n(&lock->owner, &nobody, (uintptr_t)pthread_self(), false,
							    __ATOMIC_RELAXED, __ATOMIC_RELAXED);
}

/* Shared lock held. From here on it is everybody's, and the owner has gone out for the last time. */
static void share(struct xps_biased_lock *lock)
{
	__atomic_store_n(&lock->owner, XPS_LOCK_SHARED, __ATOMIC_RELAXED);
	reach_all();
	xps_spin_while(&lock->busy);
}

bool xps_biased_lock_slowly(struct xps_biased_lock *lock)
{
	if (try_to_own(lock))
		return xps_biased_lock(lock);
	xps_spin_lock(&lock->shared);
	if (__atomic_load_n(&lock->owner, __ATOMIC_RELAXED) > XPS_LOCK_SHARED)
		share(lock);
	return false;
}
