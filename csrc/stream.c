// SPDX-License-Identifier: Apache-2.0
/*
 * How it works
 *
 * A stream is its lanes (lane.h), and what they need as long as they live. Here is the user's side: functions that any
 * thread may call.
 *
 * In a forked child there is no worker, and whatever it was about to do is left half done. There a stream refuses all
 * use, and when it is freed its memory is left alone: which of it, and which descriptors, are whole nobody knows.
 */
#include "stream.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lane.h"
#include "log.h"
#include "memory.h"
#include "process.h"

struct xps_stream {
	uint32_t process; /* that has the workers */
	struct xps_pool *pool;
	struct xps_allocator *allocator;
	struct xps_log *log;
	struct xps_lanes lanes;
};

/* ---------------------------------------------------------------- beginning and end */

static const char *explain(int err)
{
	switch (err) {
	case -ECHILD:
		return "the thread pool was made before a fork, and its threads are in the parent";
	case -EPIPE:
		return "the thread pool has been stopped";
	default:
		return strerror(-err);
	}
}

struct xps_stream *xps_stream_new(struct xps_pool *pool, const struct xps_stream_config *config,
				  struct xps_allocator *allocator, struct xps_log *log, struct xps_fail *fail)
{
	struct xps_stream *stream = calloc(1, sizeof(*stream));
	int err = stream ? xps_lanes_init(&stream->lanes, pool, config, allocator, log) : -ENOMEM;

	if (err) {
		free(stream);
		xps_fail_set(fail, -err, "make stream",
			     "cannot make a stream with max_heaps %llu, substreams %llu and a ring of %llu heaps: %s",
			     (unsigned long long)config->max_heaps, (unsigned long long)config->substreams,
			     (unsigned long long)config->ring_heaps, explain(err));
		return NULL;
	}
	stream->process = xps_process();
	stream->allocator = xps_allocator_ref(allocator);
	stream->log = xps_log_ref(log);
	xps_pool_ref(pool);
	stream->pool = pool;
	return stream;
}

void xps_stream_stop(struct xps_stream *stream)
{
	if (xps_stream_is_ours(stream))
		xps_lanes_stop(&stream->lanes);
}

void xps_stream_free(struct xps_stream *stream)
{
	if (!stream)
		return;
	if (!xps_stream_is_ours(stream)) {
		close(stream->lanes.ring.fd);
		return;
	}
	xps_stream_stop(stream);
	xps_lanes_fini(&stream->lanes);
	xps_allocator_free(stream->allocator);
	xps_log_free(stream->log);
	xps_pool_free(stream->pool);
	free(stream);
}

/* ---------------------------------------------------------------- readers */

int xps_stream_want_lanes(struct xps_stream *stream, uint32_t n)
{
	return xps_lanes_want(&stream->lanes, n);
}

int xps_reader_attach_to(struct xps_stream *stream, uint32_t lane, struct xps_reader *reader)
{
	return xps_lanes_attach(&stream->lanes, lane, reader);
}

int xps_reader_attach(struct xps_stream *stream, struct xps_reader *reader)
{
	return xps_lanes_attach(&stream->lanes, 0, reader);
}

void xps_reader_detach(struct xps_stream *stream, uint32_t lane, struct xps_reader *reader)
{
	xps_lanes_detach(&stream->lanes, lane, reader);
}

/* ---------------------------------------------------------------- heaps and statistics */

int xps_stream_pop(struct xps_stream *stream, struct xps_heap **heaps, int n, int timeout_ms)
{
	uint64_t unparked;
	int popped;

	if (!xps_stream_is_ours(stream))
		return -ECHILD;
	popped = xps_ring_pop(&stream->lanes.ring, heaps, n, timeout_ms, &unparked);
	if (unparked)
		xps_lanes_resume(&stream->lanes, unparked);
	return popped;
}

int xps_stream_pop_ahead(struct xps_stream *stream, struct xps_heap **heaps, int n, int timeout_ms)
{
	uint64_t unparked;
	int popped;

	if (!xps_stream_is_ours(stream))
		return -ECHILD;
	popped = xps_ring_pop_ahead(&stream->lanes.ring, heaps, n, timeout_ms, &unparked);
	if (unparked)
		xps_lanes_resume(&stream->lanes, unparked);
	return popped;
}

int xps_stream_listen(struct xps_stream *stream, struct xps_ring_listener *listener)
{
	return xps_stream_is_ours(stream) ? xps_ring_listen(&stream->lanes.ring, listener) : -ECHILD;
}

int xps_stream_fd(struct xps_stream *stream)
{
	return xps_stream_is_ours(stream) ? xps_ring_fd(&stream->lanes.ring) : -ECHILD;
}

uint64_t xps_stream_ring_size(struct xps_stream *stream)
{
	return xps_stream_is_ours(stream) ? xps_ring_size(&stream->lanes.ring) : 0;
}

bool xps_stream_stopped(struct xps_stream *stream)
{
	return !xps_stream_is_ours(stream) || xps_ring_stopped(&stream->lanes.ring);
}

int xps_stream_failure(struct xps_stream *stream, struct xps_fail *fail)
{
	*fail = (struct xps_fail){ 0 };
	return xps_stream_is_ours(stream) ? xps_lanes_failure(&stream->lanes, fail) : 0;
}

uint32_t xps_stream_queue_stats(struct xps_stream *stream, uint64_t *stats, struct xps_queue_stats *queues, uint32_t n)
{
	if (xps_stream_is_ours(stream))
		return xps_lanes_stats(&stream->lanes, stats, queues, n);
	memset(stats, 0, XPS_N_STATS * sizeof(*stats));
	return 0;
}

void xps_stream_stats(struct xps_stream *stream, uint64_t *stats)
{
	xps_stream_queue_stats(stream, stats, NULL, 0);
}

bool xps_stream_is_ours(struct xps_stream *stream)
{
	return xps_process_is(stream->process);
}
