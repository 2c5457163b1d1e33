/* SPDX-License-Identifier: Apache-2.0 */
/* How floors that receive wait: see floor.h. */
#pragma once

#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <time.h>

#define FLOOR_LOOK_MS 50 /* how late *stop may be seen */

static inline void floor_wait(int fd, bool had_packets, uint64_t nap_ns)
{
	struct timespec nap = { .tv_nsec = (long)nap_ns };
	struct pollfd wanted = { .fd = fd, .events = POLLIN };

	if (had_packets && nap_ns)
		clock_nanosleep(CLOCK_MONOTONIC, 0, &nap, NULL);
	else
		poll(&wanted, 1, FLOOR_LOOK_MS);
}
