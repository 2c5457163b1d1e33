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

/* Fetch `n` bytes into the cache. */
static inline void xps_fetch(const uint8_t *data, size_t n)
{
	for (size_t i = 0; i < n; i += XPS_CACHE_LINE)
		__builtin_prefetch(data + i);
}

static inline void xps_copy(uint8_t *to, const uint8_t *from, size_t n, int mode)
{
	if (likely(mode == XPS_MEMCPY_STD))
		memcpy(to, from, n);
	else
		xps_copy_nontemporal(to, from, n);
}

#define XPS_FETCH_STEP 512
#define XPS_FETCH_MOST 2048

/*
 * The same, and fetch the packet at `ahead`, which will be needed soon and is about as long, or NULL, into the cache: a
 * little at a time, because a core waits for few lines at once. Of a long packet only the header: while it is copied the
 * hardware sees by itself what comes next, and fetching all of it would drive out what is at work.
 */
static inline void xps_copy_ahead(uint8_t *to, const uint8_t *from, size_t n, int mode, const uint8_t *ahead)
{
	if (!ahead) {
		xps_copy(to, from, n, mode);
		return;
	}
	if (unlikely(n > XPS_FETCH_MOST || mode != XPS_MEMCPY_STD)) {
		xps_fetch(ahead, 2 * XPS_CACHE_LINE);
		xps_copy(to, from, n, mode);
		return;
	}
	for (; n >= XPS_FETCH_STEP; n -= XPS_FETCH_STEP) {
		size_t step = XPS_FETCH_STEP;

		/* Have the C library's memcpy called, which knows the processor, not what the compiler makes of a constant. */
		__asm__("" : "+r"(step));
		xps_fetch(ahead, XPS_FETCH_STEP);
		memcpy(to, from, step);
		to += XPS_FETCH_STEP;
		from += XPS_FETCH_STEP;
		ahead += XPS_FETCH_STEP;
	}
	xps_fetch(ahead, n + XPS_CACHE_LINE); /* and as much as the header takes */
	memcpy(to, from, n);
}
