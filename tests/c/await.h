/* SPDX-License-Identifier: Apache-2.0 */
/* await - how tests with threads wait: for a condition, with a deadline, and never for a time. */
#pragma once

#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <time.h>

#include "check.h"

/* Long enough for a sanitizer on a busy machine: reached only by a test that fails. */
enum { DEADLINE_MS = 30000 };

static inline int64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

#define AWAIT(cond)                                                                                                  \
	do {                                                                                                         \
		const int64_t await_end = now_ms() + DEADLINE_MS;                                                    \
		while (!(cond)) {                                                                                    \
			if (now_ms() > await_end) {                                                                  \
				fprintf(stderr, "%s:%d: %s: never true: %s\n", __FILE__, __LINE__, __func__, #cond); \
				exit(1);                                                                             \
			}                                                                                            \
			sched_yield();                                                                               \
		}                                                                                                    \
	} while (0)

static inline bool readable(int fd)
{
	struct pollfd pollfd = { .fd = fd, .events = POLLIN };

	return poll(&pollfd, 1, 0) == 1;
}

static inline void await_readable(int fd)
{
	struct pollfd pollfd = { .fd = fd, .events = POLLIN };

	CHECK_EQ(poll(&pollfd, 1, DEADLINE_MS), 1);
}

/* Until the thread of this process sleeps in the kernel, as one that waits for something does. */
static inline void await_asleep(pid_t thread)
{
	const int64_t end = now_ms() + DEADLINE_MS;
	char path[64], state = 0;

	snprintf(path, sizeof(path), "/proc/self/task/%d/stat", thread);
	while (state != 'S') {
		FILE *file = fopen(path, "r");

		CHECK(file);
		CHECK_EQ(fscanf(file, "%*d (%*[^)]) %c", &state), 1);
		fclose(file);
		CHECK(now_ms() < end);
		sched_yield();
	}
}

static inline pthread_t start(void *(*run)(void *), void *argument)
{
	pthread_t thread;

	CHECK_EQ(pthread_create(&thread, NULL, run, argument), 0);
	return thread;
}

/* What the thread returned. */
static inline void *join(pthread_t thread)
{
	struct timespec end;
	void *result;

	clock_gettime(CLOCK_REALTIME, &end);
	end.tv_sec += DEADLINE_MS / 1000;
	CHECK_EQ(pthread_timedjoin_np(thread, &result, &end), 0);
	return result;
}

enum { MOST_TOGETHER = 16 };

/* Have `n` threads do the same, until all have. */
static inline void run_together(int n, void *(*run)(void *), void *argument)
{
	pthread_t threads[MOST_TOGETHER];

	CHECK(n <= MOST_TOGETHER);
	for (int i = 0; i < n; i++)
		threads[i] = start(run, argument);
	for (int i = 0; i < n; i++)
		join(threads[i]);
}
