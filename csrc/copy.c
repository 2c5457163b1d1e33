// SPDX-License-Identifier: Apache-2.0
#include "copy.h"

#define LINE XPS_CACHE_LINE

/* ---------------------------------------------------------------- copying, and fetching what comes next */

/* Sixteen bytes, wherever they lie. */
typedef uint8_t chunk __attribute__((vector_size(16), aligned(1), may_alias));

static inline void copy_line(uint8_t *to, const uint8_t *from)
{
	const chunk *const in = (const chunk *)(const void *)from;
	const chunk a = in[0], b = in[1], c = in[2], d = in[3];
	chunk *const out = (chunk *)(void *)to;

	out[0] = a;
	out[1] = b;
	out[2] = c;
	out[3] = d;
}

void xps_copy_fetching(uint8_t *to, const uint8_t *from, size_t n, const uint8_t *ahead)
{
	for (; n >= LINE; n -= LINE, to += LINE, from += LINE, ahead += LINE) {
		__builtin_prefetch(ahead);
		copy_line(to, from);
	}
	xps_fetch(ahead, n + LINE); /* as much as the header takes, too */
	memcpy(to, from, n);
}

/* ---------------------------------------------------------------- copying past the cache */

#ifdef __SSE2__

#include <emmintrin.h>

/* One cache line; `to` is aligned to 16 bytes. */
static void stream_line(uint8_t *to, const uint8_t *from)
{
	for (int i = 0; i < LINE; i += 16)
		_mm_stream_si128((__m128i *)(void *)(to + i),
				 _mm_loadu_si128((const __m128i *)(const void *)(from + i)));
}

void xps_copy_nontemporal(uint8_t *to, const uint8_t *from, size_t n)
{
	/* Partial lines at both ends go the ordinary way: half a line written past the cache is slow. */
	size_t head = xps_min_u64((uint64_t)(-(uintptr_t)to & (LINE - 1)), n);

	memcpy(to, from, head);
	to += head;
	from += head;
	n -= head;
	for (; n >= LINE; n -= LINE, to += LINE, from += LINE)
		stream_line(to, from);
	memcpy(to, from, n);
}

void xps_copy_fence(void)
{
	_mm_sfence();
}

#else

void xps_copy_nontemporal(uint8_t *to, const uint8_t *from, size_t n)
{
	memcpy(to, from, n);
}

void xps_copy_fence(void)
{
}

#endif
