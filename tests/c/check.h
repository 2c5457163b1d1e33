/* SPDX-License-Identifier: Apache-2.0 */
/*
 * check - what a C test needs: it passes with 0, fails at the first check that does not hold and says where, and skips
 * with 77 and a reason.
 */
#pragma once

#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(cond)                                                                                        \
	do {                                                                                               \
		if (!(cond)) {                                                                             \
			fprintf(stderr, "%s:%d: %s: not true: %s\n", __FILE__, __LINE__, __func__, #cond); \
			exit(1);                                                                           \
		}                                                                                          \
	} while (0)

/* Integers of any type. */
#define CHECK_EQ(a, b)                                                                                           \
	do {                                                                                                     \
		const int64_t check_a = (int64_t)(a), check_b = (int64_t)(b);                                    \
		if (check_a != check_b) {                                                                        \
			fprintf(stderr, "%s:%d: %s: %s is %" PRId64 ", %s is %" PRId64 "\n", __FILE__, __LINE__, \
				__func__, #a, check_a, #b, check_b);                                             \
			exit(1);                                                                                 \
		}                                                                                                \
	} while (0)

#define SKIP(reason)                                           \
	do {                                                   \
		fprintf(stderr, "skipped: %s\n", reason);      \
		exit(getenv("XDPSPEAD_REQUIRE_XDP") ? 1 : 77); \
	} while (0)
