/* SPDX-License-Identifier: Apache-2.0 */
/*
 * biased_lock - a lock that is almost always taken by the same thread, for what is done for every heap or batch and takes a
 * few instructions.
 *
 * That thread pays for no locked instruction: each of them waits until all that its processor has written has left for the
 * cache, such as the payload that was copied last. When another thread takes the lock, which costs that one microseconds,
 * it is one like others for a while: a spinlock, with all that is said there.
 *
 * How it works: the first thread that takes it XPS_LOCK_ROW times in a row comes to own it, and again after every such
 * row; no other thread ever does. The owner says that he is busy and then looks whether he still owns it. Who takes it
 * from him says so first, has the kernel make all threads of the process see that, and then waits until the owner is not
 * busy. So one of them sees the other's. Where the kernel does not (membarrier(2)), nobody owns a lock. That there is one
 * owner only is what allows him to say that he is busy when he is the owner no more: nobody else says it there.
 *
 * All zero is an unlocked one. There is nothing to destroy.
 */
#pragma once

#include <pthread.h>

#include "spinlock.h"

#define XPS_LOCK_ROW 1000

struct xps_biased_lock {
	uintptr_t owner; /* atomic; a thread, 0: it is a spinlock */
	bool busy;       /* atomic; the owner has the lock, or is about to see that he is none any more */
	struct xps_spinlock shared;
	/* Under that: who took it last, how often in a row, and who may own it, 0: not known yet. */
	uint32_t n_in_row;
	uintptr_t last, home;
};

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
