/* SPDX-License-Identifier: Apache-2.0 */
/*
 * biased_lock - a lock that is almost always taken by the same thread, for what is done for every heap and takes a few
 * instructions.
 *
 * That thread pays for no locked instruction: each of them waits until all that its processor has written has left for the
 * cache, such as the payload that was copied last. As soon as another thread takes the lock it is one like others, for good:
 * a spinlock, with all that is said there.
 *
 * How it works: whoever takes it first owns it. The owner says that he is busy and then looks whether he still owns it.
 * Who takes it from him says so first, has the kernel make all threads of the process see that, and then waits until the
 * owner is not busy. So one of them sees the other's. Where the kernel does not (membarrier(2)), nobody owns a lock.
 *
 * All zero is an unlocked one. There is nothing to destroy.
 */
#pragma once

#include <pthread.h>

#include "spinlock.h"

struct xps_biased_lock {
	uintptr_t owner; /* atomic; a thread, or: */
	bool busy;       /* atomic; the owner has the lock, or finds that he is none any more */
	struct xps_spinlock shared;
};

#define XPS_LOCK_NEW ((uintptr_t)0)
#define XPS_LOCK_SHARED ((uintptr_t)1)

/* What the owner's way is not for. Returns whether the caller has it as its owner. */
bool xps_biased_lock_slowly(struct xps_biased_lock *lock);

/* Whether the caller owns it, which is to be said when it is unlocked. */
static inline bool xps_biased_lock(struct xps_biased_lock *lock)
{
	const uintptr_t me = (uintptr_t)pthread_self();

	if (unlikely(__atomic_load_n(&lock->owner, __ATOMIC_RELAXED) != me))
		return xps_biased_lock_slowly(lock);
	__atomic_store_n(&lock->busy, true, __ATOMIC_RELAXED);
	__atomic_signal_fence(__ATOMIC_SEQ_CST); /* the other one's barrier is ours, too */
	if (likely(__atomic_load_n(&lock->owner, __ATOMIC_RELAXED) == me))
		return true;
	__atomic_store_n(&lock->busy, false, __ATOMIC_RELEASE);
	return xps_biased_lock_slowly(lock);
}

static inline void xps_biased_unlock(struct xps_biased_lock *lock, bool owned)
{
	if (owned)
		__atomic_store_n(&lock->busy, false, __ATOMIC_RELEASE);
	else
		xps_spin_unlock(&lock->shared);
}
