// SPDX-License-Identifier: Apache-2.0
#include "process.h"

#include <pthread.h>

/* Forks from the first process to this one. Written in a child before anything else runs there. */
static uint32_t n_forks;

static void count_fork(void)
{
	__atomic_add_fetch(&n_forks, 1, __ATOMIC_RELAXED);
}

/* When the library is loaded, so before any object is made. Without memory for it forks go unnoticed. */
__attribute__((constructor)) static void watch_forks(void)
{
	pthread_atfork(NULL, NULL, count_fork);
}

uint32_t xps_process(void)
{
	return __atomic_load_n(&n_forks, __ATOMIC_RELAXED);
}
