/* SPDX-License-Identifier: Apache-2.0 */
/*
 * copy - the one copy a payload byte ever sees, with or without leaving it in the cache.
 */
#pragma once

#include "bits.h"
#include "xdpspead.h"

/* Copy `n` bytes past the cache, where the machine can. Call xps_copy_fence() before another thread reads them. */
void xps_copy_nontemporal(uint8_t *to, const uint8_t *from, size_t n);
void xps_copy_fence(void);

static inline void xps_copy(uint8_t *to, const uint8_t *from, size_t n, int mode)
{
	if (likely(mode == XPS_MEMCPY_STD))
		memcpy(to, from, n);
	else
		xps_copy_nontemporal(to, from, n);
}
