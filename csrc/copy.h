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

/* From this length on it pays to fetch line by line. */
#define XPS_FETCH_STEP 512

/*
 * Copy `n` bytes in the ordinary way, and fetch as many at `ahead`: one line for each that is copied, because a core waits
 * for few lines at once.
 */
void xps_copy_fetching(uint8_t *to, const uint8_t *from, size_t n, const uint8_t *ahead);

/*
 * Copy, and fetch what lies at `ahead` into the cache: a packet that will be needed soon and is about as long, or any bytes
 * that follow this far behind; or NULL.
 */
static inline void xps_copy_ahead(uint8_t *to, const uint8_t *from, size_t n, int mode, const uint8_t *ahead)
{
	if (unlikely(mode != XPS_MEMCPY_STD)) {
		if (ahead)
			xps_fetch(ahead, 2 * XPS_CACHE_LINE); /* the header */
		xps_copy_nontemporal(to, from, n);
	} else if (!ahead) {
		memcpy(to, from, n);
	} else if (n >= XPS_FETCH_STEP) {
		xps_copy_fetching(to, from, n, ahead);
	} else {
		xps_fetch(ahead, n + XPS_CACHE_LINE); /* as much as the header takes, too */
		memcpy(to, from, n);
	}
}
