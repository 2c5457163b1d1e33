/* SPDX-License-Identifier: Apache-2.0 */
/*
 * spinlock - a lock for what is done for every heap and takes a few instructions.
 *
 * Locking costs one locked instruction and unlocking none: each of them waits until all that its processor has written has
 * left for the cache, such as the payload that was copied last. Who finds the lock taken looks again for a while, and then
 * sleeps between looks, so that whoever has it comes to let it go even if he has to share the processor with somebody more
 * important. So nothing that waits may be done with it, and it is not fair.
 *
 * All zero is an unlocked one. There is nothing to destroy.
 */
#pragma once

#include <stdbool.h>
#include <time.h>

#include "bits.h"

struct xps_spinlock {
	bool taken; /* atomic */
};

#define XPS_SPIN_LOOKS 200
#define XPS_SPIN_SLEEP_NS 50000

/* Wait until it is false, and for all that was written before that. */
static inline void xps_spin_while(const bool *taken)
{
	const struct timespec sleep = { .tv_nsec = XPS_SPIN_SLEEP_NS };

	for (int i = 0; __atomic_load_n(taken, __ATOMIC_ACQUIRE); i++)
		if (i < XPS_SPIN_LOOKS)
			xps_relax();
		else
			nanosleep(&sleep, NULL);
}

static inline void xps_spin_lock(struct xps_spinlock *lock)
{
	while (unlikely(__atomic_exchange_n(&lock->taken, true, __ATOMIC_ACQUIRE)))
		xps_spin_while(&lock->taken);
}

static inline void xps_spin_unlock(struct xps_spinlock *lock)
{
	__atomic_store_n(&lock->taken, false, __ATOMIC_RELEASE);
}
