/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bits - the small pieces every unit needs: big-endian loads from unaligned bytes, bounds arithmetic, branch hints.
 * Everything is static inline and has no state.
 */
#pragma once

#include <endian.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#define XPS_CACHE_LINE 64

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

#define XPS_ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))

#define XPS_CONTAINER_OF(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

/* Let a while pass between two looks at what another processor is to write. */
static inline void xps_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield");
#endif
}

/* CLOCK_MONOTONIC */
static inline int64_t xps_now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

static inline uint16_t xps_load_be16(const void *p)
{
	uint16_t v;

	memcpy(&v, p, sizeof(v));
	return be16toh(v);
}

static inline uint32_t xps_load_be32(const void *p)
{
	uint32_t v;

	memcpy(&v, p, sizeof(v));
	return be32toh(v);
}

static inline uint64_t xps_load_be64(const void *p)
{
	uint64_t v;

	memcpy(&v, p, sizeof(v));
	return be64toh(v);
}

/* Bits in which eight bytes differ from eight others, in no certain order. */
static inline uint64_t xps_differ64(const void *p, const void *q)
{
	uint64_t v, w;

	memcpy(&v, p, sizeof(v));
	memcpy(&w, q, sizeof(w));
	return v ^ w;
}

static inline uint64_t xps_min_u64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static inline uint64_t xps_max_u64(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

/*
 * Hash `value`. The address of the table, which no sender knows, goes into it: otherwise values could be chosen that all
 * fall into one place, and a few packets of them would keep a core busy for seconds.
 */
static inline uint64_t xps_hash(uint64_t value, const void *table)
{
	uint64_t mixed = value ^ (uintptr_t)table;

	mixed = (mixed ^ mixed >> 32) * UINT64_C(0x9e3779b97f4a7c15);
	return (mixed ^ mixed >> 29) * UINT64_C(0xbf58476d1ce4e5b9);
}

/* `value` rounded up to a multiple of `unit`, a power of two. The caller has made sure that it does not overflow. */
static inline uint64_t xps_round_up(uint64_t value, uint64_t unit)
{
	return (value + unit - 1) & ~(unit - 1);
}
