/* SPDX-License-Identifier: Apache-2.0 */
/*
 * futex - sleeping until a count changes: the least that waiting for somebody else in this process can cost.
 *
 * Waking is by address only. Who wakes need not know whether what stands there is still the count: if it is not, nobody
 * sleeps, or somebody looks once for nothing.
 */
#pragma once

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/*
 * Sleep until somebody wakes us, unless the count is not `seen` any more. Positive: look again. 0: the time is over.
 * Negative: -EINTR. A negative timeout_ms is for ever.
 */
static inline int xps_futex_sleep(_Atomic uint32_t *count, uint32_t seen, int timeout_ms)
{
	const struct timespec timeout = { .tv_sec = timeout_ms / 1000, .tv_nsec = timeout_ms % 1000 * 1000000L };

	if (syscall(SYS_futex, count, FUTEX_WAIT_PRIVATE, seen, timeout_ms < 0 ? NULL : &timeout, NULL, 0) == 0 ||
	    errno == EAGAIN)
		return 1;
	return errno == ETIMEDOUT ? 0 : -errno;
}

/* Wake all who sleep there; whoever calls it has changed the count. */
static inline void xps_futex_wake(_Atomic uint32_t *count)
{
	syscall(SYS_futex, count, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}
