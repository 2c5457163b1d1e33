// SPDX-License-Identifier: Apache-2.0
#include "log.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bits.h"
#include "process.h"
#include "stats.h"

#define QUEUE_LENGTH 1024
#define LINES_PER_SECOND 10
#define SECOND_NS INT64_C(1000000000)

struct kind {
	int level;
	void (*format)(char *text, size_t size, uint64_t first, uint64_t second, uint64_t third);
	const char *plural; /* "1204 more ... in the last second" */
};

struct summary {
	int64_t second_start; /* CLOCK_MONOTONIC, ns */
	unsigned int n_lines; /* since then */
	uint64_t n_held;      /* events since then that got no line */
};

struct xps_log {
	uint32_t process;
	uint32_t references; /* atomic */
	pthread_mutex_t lock;
	pthread_cond_t readable;
	struct xps_log_line *lines;
	unsigned int head, count;
	uint64_t n_lost; /* lines that found the queue full */
	bool closed;
	struct summary summaries[XPS_N_LOG_KINDS];
};

typedef unsigned long long ull; /* what %llu wants */

static void format_bad_packet(char *text, size_t size, uint64_t stat, uint64_t cnt, uint64_t unused)
{
	(void)unused;
	if (cnt == UINT64_MAX)
		snprintf(text, size, "packet rejected: %s", xps_stat_reason((int)stat));
	else
		snprintf(text, size, "packet of heap %llu rejected: %s", (ull)cnt, xps_stat_reason((int)stat));
}

static void format_behind(char *text, size_t size, uint64_t cnt, uint64_t unused, uint64_t unused2)
{
	(void)unused;
	(void)unused2;
	snprintf(text, size,
		 "packet of heap %llu is duplicate or out of order (set allow_out_of_order to True if packets may "
		 "overtake each other)",
		 (ull)cnt);
}

static void format_incomplete(char *text, size_t size, uint64_t cnt, uint64_t received, uint64_t expected)
{
	snprintf(text, size, "dropped incomplete heap %llu (%llu/%llu bytes of payload)", (ull)cnt, (ull)received,
		 (ull)expected);
}

static void format_stopped(char *text, size_t size, uint64_t cnt, uint64_t unused, uint64_t unused2)
{
	(void)unused;
	(void)unused2;
	snprintf(text, size, "dropped heap %llu due to external stop", (ull)cnt);
}

static void format_ring_full(char *text, size_t size, uint64_t cnt, uint64_t unused, uint64_t unused2)
{
	(void)unused;
	(void)unused2;
	snprintf(text, size, "worker thread blocked by full ringbuffer on heap %llu", (ull)cnt);
}

static void format_pool_empty(char *text, size_t size, uint64_t bytes, uint64_t unused, uint64_t unused2)
{
	(void)unused;
	(void)unused2;
	snprintf(text, size, "memory pool is empty when allocating %llu bytes", (ull)bytes);
}

static void format_kernel_drops(char *text, size_t size, uint64_t unused, uint64_t unused2, uint64_t unused3)
{
	(void)unused;
	(void)unused2;
	(void)unused3;
	snprintf(text, size,
		 "the kernel dropped a packet because the socket's buffer was full: the stream must be read faster, or "
		 "buffer_size must be larger");
}

static void format_reader_error(char *text, size_t size, uint64_t err, uint64_t unused, uint64_t unused2)
{
	(void)unused;
	(void)unused2;
	snprintf(text, size, "receiving failed: %s", strerror((int)err));
}

static const struct kind kinds[XPS_N_LOG_KINDS] = {
	[XPS_LOG_BAD_PACKET] = { XPS_LOG_INFO, format_bad_packet, "malformed packets rejected" },
	[XPS_LOG_REFUSED_PACKET] = { XPS_LOG_INFO, format_bad_packet, "packets rejected by their heap" },
	[XPS_LOG_BEHIND] = { XPS_LOG_WARNING, format_behind, "duplicate or out of order packets" },
	[XPS_LOG_INCOMPLETE_HEAP] = { XPS_LOG_WARNING, format_incomplete, "incomplete heaps dropped" },
	[XPS_LOG_STOPPED_HEAP] = { XPS_LOG_INFO, format_stopped, "heaps dropped due to external stop" },
	[XPS_LOG_RING_FULL] = { XPS_LOG_WARNING, format_ring_full, "blocks of a worker by a full ringbuffer" },
	[XPS_LOG_POOL_EMPTY] = { XPS_LOG_WARNING, format_pool_empty, "allocations that found the memory pool empty" },
	[XPS_LOG_KERNEL_DROPS] = { XPS_LOG_WARNING, format_kernel_drops,
				   "packets dropped by the kernel because the socket's buffer was full" },
	[XPS_LOG_READER_ERROR] = { XPS_LOG_WARNING, format_reader_error, "errors of a reader" },
};

struct xps_log *xps_log_new(void)
{
	struct xps_log *log = calloc(1, sizeof(*log));
	pthread_condattr_t attributes;

	if (!log)
		return NULL;
	log->lines = calloc(QUEUE_LENGTH, sizeof(*log->lines));
	if (!log->lines) {
		free(log);
		return NULL;
	}
	log->process = xps_process();
	log->references = 1;
	pthread_mutex_init(&log->lock, NULL);
	pthread_condattr_init(&attributes);
	pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
	pthread_cond_init(&log->readable, &attributes);
	pthread_condattr_destroy(&attributes);
	return log;
}

struct xps_log *xps_log_ref(struct xps_log *log)
{
	__atomic_add_fetch(&log->references, 1, __ATOMIC_RELAXED);
	return log;
}

void xps_log_free(struct xps_log *log)
{
	if (!log || __atomic_sub_fetch(&log->references, 1, __ATOMIC_ACQ_REL) != 0)
		return;
	/* In a forked child a thread that is not there may hold the one and wait for the other, and we for it. */
	if (xps_process_is(log->process)) {
		pthread_cond_destroy(&log->readable);
		pthread_mutex_destroy(&log->lock);
	}
	free(log->lines);
	free(log);
}

/* Lock held. The next free line of the queue, or NULL. */
static struct xps_log_line *new_line(struct xps_log *log, int level)
{
	struct xps_log_line *line;

	if (log->closed)
		return NULL;
	if (log->count == QUEUE_LENGTH) {
		log->n_lost++;
		return NULL;
	}
	line = &log->lines[(log->head + log->count++) % QUEUE_LENGTH];
	line->level = level;
	pthread_cond_signal(&log->readable);
	return line;
}

/* Lock held. Turn what was held back in the last second into a line, and begin the next second. */
static void end_second(struct xps_log *log, int kind, int64_t now)
{
	struct summary *summary = &log->summaries[kind];
	struct xps_log_line *line;

	if (summary->n_held) {
		line = new_line(log, kinds[kind].level);
		if (line)
			snprintf(line->text, sizeof(line->text), "%llu more %s in the last second",
				 (ull)summary->n_held, kinds[kind].plural);
	}
	*summary = (struct summary){ .second_start = now };
}

void xps_log(struct xps_log *log, enum xps_log_kind kind, uint64_t n, uint64_t first, uint64_t second, uint64_t third)
{
	struct summary *summary = &log->summaries[kind];
	struct xps_log_line *line;
	int64_t now;

	if (!n || !xps_process_is(log->process))
		return;
	now = xps_now_ns();
	pthread_mutex_lock(&log->lock);
	if (now - summary->second_start >= SECOND_NS)
		end_second(log, kind, now);
	if (summary->n_lines < LINES_PER_SECOND) {
		line = new_line(log, kinds[kind].level);
		if (line)
			kinds[kind].format(line->text, sizeof(line->text), first, second, third);
		summary->n_lines++;
		n--;
	}
	if (n && !summary->n_held)
		pthread_cond_signal(&log->readable); /* the taker must wake when this second is over */
	summary->n_held += n;
	pthread_mutex_unlock(&log->lock);
}

void xps_log_text(struct xps_log *log, int level, const char *text)
{
	struct xps_log_line *line;

	if (!xps_process_is(log->process))
		return;
	pthread_mutex_lock(&log->lock);
	line = new_line(log, level);
	if (line)
		snprintf(line->text, sizeof(line->text), "%s", text);
	pthread_mutex_unlock(&log->lock);
}

/* Lock held. End the seconds that are over; returns when the next one will be, INT64_MAX if none is open. */
static int64_t end_seconds(struct xps_log *log, int64_t now)
{
	int64_t next = INT64_MAX;

	for (int kind = 0; kind < XPS_N_LOG_KINDS; kind++) {
		struct summary *summary = &log->summaries[kind];

		if (!summary->n_held)
			continue;
		if (now - summary->second_start >= SECOND_NS || log->closed)
			end_second(log, kind, now);
		else if (summary->second_start + SECOND_NS < next)
			next = summary->second_start + SECOND_NS;
	}
	return next;
}

static int take_lines(struct xps_log *log, struct xps_log_line *lines, int n)
{
	int taken = 0;

	while (taken < n && log->count) {
		lines[taken++] = log->lines[log->head];
		log->head = (log->head + 1) % QUEUE_LENGTH;
		log->count--;
	}
	if (log->n_lost && taken < n) {
		lines[taken].level = XPS_LOG_WARNING;
		snprintf(lines[taken].text, sizeof(lines[taken].text), "%llu log messages were lost", (ull)log->n_lost);
		log->n_lost = 0;
		taken++;
	}
	return taken;
}

int xps_log_take(struct xps_log *log, struct xps_log_line *lines, int n, int timeout_ms)
{
	int64_t deadline = xps_now_ns() + timeout_ms * INT64_C(1000000);
	int taken;

	if (!xps_process_is(log->process))
		return -EPIPE;
	pthread_mutex_lock(&log->lock);
	for (;;) {
		int64_t now = xps_now_ns();
		int64_t wake = end_seconds(log, now);
		struct timespec until;

		taken = take_lines(log, lines, n);
		if (taken || log->closed || now >= deadline)
			break;
		if (wake > deadline)
			wake = deadline;
		until = (struct timespec){ .tv_sec = wake / SECOND_NS, .tv_nsec = wake % SECOND_NS };
		pthread_cond_timedwait(&log->readable, &log->lock, &until);
	}
	if (!taken && log->closed)
		taken = -EPIPE;
	pthread_mutex_unlock(&log->lock);
	return taken;
}

void xps_log_close(struct xps_log *log)
{
	if (!xps_process_is(log->process))
		return;
	pthread_mutex_lock(&log->lock);
	end_seconds(log, xps_now_ns() + SECOND_NS);
	log->closed = true;
	pthread_cond_broadcast(&log->readable);
	pthread_mutex_unlock(&log->lock);
}
