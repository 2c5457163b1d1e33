/* SPDX-License-Identifier: Apache-2.0 */
/*
 * process - whether we are still in the process that made an object.
 *
 * fork(2) copies objects, but not the threads that work for them, and it copies locks as they are, maybe held by such a
 * thread. So an object notes where it was made, and in a child nobody waits for its threads or takes its locks, nor
 * touches what parent and child have in common, such as an eventfd.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

/* A number that differs from that of all ancestors of this process. Costs a load. */
uint32_t xps_process(void);

static inline bool xps_process_is(uint32_t process)
{
	return xps_process() == process;
}
