// SPDX-License-Identifier: Apache-2.0
/*
 * How it works
 *
 * A *source* has a slot in the port's maps, and a reader for each worker it was asked for. The queues are dealt out among
 * the readers, and a reader has a socket on each of its own. poll() goes round the sockets; from each it takes a batch of
 * descriptors, walks the headers, makes a view of each SPEAD packet where it lies, pushes the views and gives the frames
 * back. If the stream takes fewer, the batch stays in hand (`current`, `views`) until poll() is called again.
 *
 * With busy polling poll() calls the driver when the rings are empty, looks again, and never lets the worker sleep. A
 * queue whose driver cannot be called so is looked at as often; if none can, the worker sleeps on the descriptors.
 *
 * While the stream is blocked, poll_blocked() moves what arrives out of the rings, so that the reader keeps to its share
 * of the frames of a queue that others read too.
 *
 * The first reader watches the interface (xdp_watch.h), for all. When no packet can come from it any more, each reader first
 * hands on what its rings hold; the last one to have done so ends the stream, with an error that says why.
 *
 * Readers are closed each by its own worker. The first one takes the slot out of the maps, for all of them, and the
 * others wait until that is done; so when a reader counts for the last time, its counters have their last values. The
 * last one gives the slot back.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "bits.h"
#include "copy.h"
#include "frame.h"
#include "stats.h"
#include "transport.h"
#include "xdp_socket.h"
#include "xdp_watch.h"

enum {
	ROUNDS = 4, /* batches of each queue before other readers have their turn */
	AHEAD = 4,  /* packets between the one at work and the one that is fetched into the cache */
};

struct xdp_source;

struct xdp_reader {
	struct xps_reader reader;
	struct xdp_source *source;
	uint32_t index; /* of the worker */
	uint32_t max_size, max_poll;

	struct xps_xdp_socket *sockets;
	uint32_t n_sockets;
	uint32_t turn;  /* socket to begin with */
	uint32_t looks; /* at empty rings, in a row */
	bool slept;     /* the last poll() ended in XPS_POLL_WAIT */
	bool told_no_napi;
	bool drained; /* the source is gone, and all that came from it has been handed on */

	/* the batch in hand */
	struct xps_xdp_socket *current;
	struct xps_view views[XPS_XDP_HELD];
	uint32_t n_views, next_view;
	struct xps_view pieces[XPS_XDP_HELD];
	uint32_t n_pieces;

	int kick_fd; /* readable: a reader has joined one of our queues, or the source is gone */
	atomic_bool kicked;
	int lifeline_fd; /* see xdp_port.h */
	bool abandoned;  /* it has hung up, while the stream was blocked */

	bool attached;
};

/* What the readers of one call share. Each holds a reference, and so does the call. */
struct xdp_source {
	struct xps_xdp_port *port;
	int slot;
	uint32_t *owners; /* of each queue of the interface: the reader that counts for it, the first one if none reads it */
	struct xps_steer_counters *counters; /* one for each queue of the interface, used under the stream's lock */
	atomic_uint refs;

	struct xps_xdp_watch watch; /* the first reader's */
	uint32_t taken;             /* where the RX rings of the first reader were when it last looked */
	struct xps_fail why;        /* written before `gone` is set */
	atomic_bool gone;           /* no packet comes any more */
	atomic_uint n_undrained;    /* readers that are not `drained` */

	pthread_mutex_t lock;
	/* Set under the lock: the slot is in no map any more, and no packet is on its way from there. */
	atomic_bool cleared;

	uint32_t n_readers;
	struct xdp_reader readers[];
};

static struct xdp_reader *reader_of(struct xps_reader *reader)
{
	return XPS_CONTAINER_OF(reader, struct xdp_reader, reader);
}

bool xps_has_xdp(void)
{
	return true;
}

static void count(_Atomic uint64_t *counter, uint64_t n)
{
	atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

/* ---------------------------------------------------------------- from descriptors to views */

static const uint8_t *bytes_of(const struct xps_xdp_socket *s, const struct xdp_desc *desc)
{
	return s->queue->frames + desc->addr;
}

/* The pieces after the first, up to `rest` bytes. */
static void add_pieces(struct xdp_reader *r, struct xps_view *view, const struct xps_xdp_socket *s,
		       const struct xdp_desc *descs, uint32_t n, uint32_t rest)
{
	view->more = r->pieces + r->n_pieces;
	for (uint32_t i = 0; i < n && rest; i++) {
		const uint32_t length = descs[i].len < rest ? descs[i].len : rest;

		r->pieces[r->n_pieces++] = (struct xps_view){ .data = bytes_of(s, &descs[i]), .length = length };
		view->n_more++;
		rest -= length;
	}
}

/* Where the SPEAD packet begins in the frame, and how long it is. False: it is no whole UDP datagram. */
static inline bool find_payload(const uint8_t *data, size_t length, size_t total, uint32_t *offset, uint32_t *size)
{
	struct xps_frame frame;

	*offset = XPS_FRAME_USUAL_OFFSET;
	if (likely(xps_frame_is_usual(data, length, total, size)))
		return true;
	if (xps_frame_parse(&frame, data, length, total) != XPS_FRAME_UDP)
		return false;
	*offset = frame.payload_offset;
	*size = frame.payload_length;
	return true;
}

/* One packet in `n` descriptors. */
static inline void add_view(struct xdp_reader *r, struct xps_xdp_socket *s, const struct xdp_desc *descs, uint32_t n)
{
	const uint8_t *data = bytes_of(s, &descs[0]);
	uint32_t offset, size, room;
	struct xps_view *view;
	size_t total = descs[0].len;

	for (uint32_t i = 1; i < n; i++)
		total += descs[i].len;
	if (unlikely(!find_payload(data, descs[0].len, total, &offset, &size))) {
		count(&s->bad_frames, 1);
		return;
	}
	if (unlikely(size > r->max_size)) {
		xps_reader_count(&r->reader, XPS_STAT_TRUNCATED_DATAGRAM, 1);
		return;
	}
	room = descs[0].len - offset;
	view = &r->views[r->n_views++];
	*view = (struct xps_view){ .data = data + offset, .length = size < room ? size : room };
	if (unlikely(size > room))
		add_pieces(r, view, s, descs + 1, n - 1, size - room);
}

static void make_views(struct xdp_reader *r, struct xps_xdp_socket *s)
{
	uint32_t first = 0;

	r->n_views = r->next_view = r->n_pieces = 0;
	for (uint32_t i = 0; i < s->n_whole; i++) {
		if (unlikely(s->in_pieces && s->held[i].options & XDP_PKT_CONTD))
			continue;
		add_view(r, s, s->held + first, s->in_pieces ? i + 1 - first : 1);
		first = i + 1;
	}
	for (uint32_t i = AHEAD; i < r->n_views; i++) /* another core wrote them */
		r->views[i - AHEAD].ahead = r->views[i].data;
	if (unlikely(s->n_overlong))
		count(&s->bad_frames, s->n_overlong);
	s->n_overlong = 0;
}

/* ---------------------------------------------------------------- polling */

/* Push what is left of the batch in hand. False if the stream has no room. */
static bool push(struct xdp_reader *r)
{
	r->next_view += xps_batch_push(&r->reader, r->views + r->next_view, r->n_views - r->next_view);
	if (r->next_view < r->n_views)
		return false;
	xps_batch_end(&r->reader);
	xps_xdp_socket_done(r->current);
	r->current = NULL;
	return true;
}

static void absorb(struct xps_xdp_socket *s)
{
	const uint32_t dropped = xps_xdp_socket_absorb(s);

	if (dropped)
		count(&s->unread_drops, dropped);
}

/* Say once that busy polling is not to be had for a queue. */
static void tell_no_napi(struct xdp_reader *r, const struct xps_xdp_socket *s)
{
	char text[250];

	if (r->told_no_napi)
		return;
	r->told_no_napi = true;
	snprintf(
		text, sizeof(text),
		"%s: no busy polling of queue %u in %s mode, because kernel and driver do not tell its NAPI id; it waits for "
		"interrupts, as without busy_poll",
		r->source->port->name, s->queue->index,
		r->source->port->program.mode == XPS_XDP_NATIVE ? "native" : "generic");
	xps_reader_tell(&r->reader, XPS_LOG_WARNING, text);
}

/* Call the drivers that can be called. False if there is none, or the interface is down: then the worker may sleep. */
static bool busy_poll(struct xdp_reader *r)
{
	bool any = false, up = true;

	for (uint32_t i = 0; i < r->n_sockets; i++) {
		struct xps_xdp_socket *s = &r->sockets[i];

		if (s->napi == XPS_NAPI_NOT_TOLD)
			tell_no_napi(r, s);
		if (s->napi != XPS_NAPI_CALLED)
			continue;
		any = true;
		up = xps_xdp_socket_call_napi(s) && up;
		count(&s->busy_polls, 1);
	}
	return any && up;
}

enum outcome { EMPTY, DONE, BLOCKED };

static enum outcome poll_socket(struct xdp_reader *r, struct xps_xdp_socket *s)
{
	if (unlikely(xps_xdp_socket_behind(s)))
		absorb(s);
	if (!xps_xdp_socket_take(s) && !s->n_overlong)
		return EMPTY;
	if (unlikely(s->napi == XPS_NAPI_UNKNOWN))
		xps_xdp_socket_learn_napi(s);
	xps_batch_begin(&r->reader);
	make_views(r, s);
	r->current = s;
	return push(r) ? DONE : BLOCKED;
}

/* A batch from each socket. BLOCKED also if the stream has come to its end. */
static enum outcome poll_round(struct xdp_reader *r)
{
	enum outcome all = EMPTY;

	for (uint32_t i = 0; i < r->n_sockets; i++) {
		struct xps_xdp_socket *s = &r->sockets[r->turn];

		r->turn = r->turn + 1 < r->n_sockets ? r->turn + 1 : 0;
		switch (poll_socket(r, s)) {
		case BLOCKED:
			return BLOCKED;
		case DONE:
			if (xps_reader_ended(&r->reader))
				return BLOCKED;
			all = DONE;
			break;
		case EMPTY:
			break;
		}
	}
	return all;
}

/* An error on a socket keeps it ready until somebody reads it. The one of an interface that is gone tells the watch better. */
static void clear_errors(struct xdp_reader *r)
{
	for (uint32_t i = 0; i < r->n_sockets; i++) {
		int err = 0;
		socklen_t length = sizeof(err);

		if (!getsockopt(r->sockets[i].fd, SOL_SOCKET, SO_ERROR, &err, &length) && err && err != ENETDOWN)
			xps_reader_log_error(&r->reader, err);
	}
}

static void clear_kick(struct xdp_reader *r)
{
	uint64_t n;

	if (likely(!atomic_load_explicit(&r->kicked, memory_order_relaxed)))
		return;
	atomic_store(&r->kicked, false);
	if (read(r->kick_fd, &n, sizeof(n)) < 0)
		return;
}

/* All rings are empty, and no driver can be called. */
static enum xps_poll rest(struct xdp_reader *r)
{
	if (r->looks < r->max_poll) {
		r->looks++;
		return XPS_POLL_AGAIN;
	}
	r->looks = 0;
	for (uint32_t i = 0; i < r->n_sockets; i++)
		xps_xdp_queue_wakeup(r->sockets[i].queue, r->sockets[i].fd, true);
	r->slept = true;
	return XPS_POLL_WAIT;
}

/* ---------------------------------------------------------------- the interface goes away */

static void tell_change(void *user, int level, const char *text)
{
	struct xdp_reader *first = user;

	xps_reader_tell(&first->reader, level, text);
}

/* Have the other readers polled. */
static void kick_others(struct xdp_source *source)
{
	for (uint32_t i = 1; i < source->n_readers; i++)
		xps_xdp_kick(source->readers[i].kick_fd, &source->readers[i].kicked);
}

/* Whether packets have come since the last call. */
static bool have_come(struct xdp_reader *r)
{
	const uint32_t before = r->source->taken;

	r->source->taken = 0;
	for (uint32_t i = 0; i < r->n_sockets; i++)
		r->source->taken += r->sockets[i].rx.mine;
	return r->source->taken != before;
}

/* No packet comes any more, whatever it was that told us. */
static void lose_source(struct xdp_reader *r, const struct xps_fail *why)
{
	struct xdp_source *source = r->source;
	bool first;

	pthread_mutex_lock(&source->lock);
	first = !atomic_load(&source->gone);
	if (first)
		source->why = *why;
	atomic_store(&source->gone, true);
	pthread_mutex_unlock(&source->lock);
	if (!first)
		return;
	xps_reader_tell(&r->reader, XPS_LOG_ERROR, why->text);
	kick_others(source);
}

/* Nobody tells when the program is taken off; but then nothing comes, and so only then it is asked. */
static void reader_look(struct xps_reader *reader)
{
	struct xdp_reader *r = reader_of(reader);
	struct xdp_source *source = r->source;
	struct xps_fail why;
	int came;

	if (r->index || atomic_load(&source->gone))
		return;
	came = xps_xdp_watch_read(&source->watch, &why);
	if (came < 0) {
		lose_source(r, &why);
	} else if (!came && !have_come(r)) { /* a second is over, and not just an answer there */
		xps_xdp_watch_ask(&source->watch);
	}
}

/*
 * Whether the helper has hung up. From then on its descriptor would be ready all the time. Every reader has one, so each
 * finds out by itself.
 */
static bool is_abandoned(struct xdp_reader *r)
{
	struct pollfd lifeline = { .fd = r->lifeline_fd };

	if (r->lifeline_fd < 0 || r->abandoned)
		return r->abandoned;
	r->abandoned = poll(&lifeline, 1, 0) > 0;
	if (r->abandoned)
		xps_reader_watch_instead(&r->reader.watches[0], -1);
	return r->abandoned;
}

static void lose_helper(struct xdp_reader *r)
{
	struct xps_fail why;

	xps_fail_set(&why, EPIPE, "ask xdpspead-helper",
		     "%s: xdpspead-helper has ended or has taken back what it gave; no packet comes any more, and the "
		     "stream ends",
		     r->source->port->name);
	lose_source(r, &why);
}

/* The rings are empty, and nothing will come into them. The last reader of whom that is true ends the stream. */
static enum xps_poll drained(struct xdp_reader *r)
{
	const bool first_time = !r->drained;

	r->drained = true;
	clear_errors(r); /* of sockets that the kernel has unbound */
	if (!first_time || atomic_fetch_sub(&r->source->n_undrained, 1) != 1)
		return XPS_POLL_WAIT;
	xps_reader_fail(&r->reader, &r->source->why);
	return XPS_POLL_END;
}

/* ---------------------------------------------------------------- called by the worker */

static enum xps_poll reader_poll(struct xps_reader *reader)
{
	struct xdp_reader *r = reader_of(reader);

	clear_kick(r);
	if (r->current && !push(r))
		return XPS_POLL_BLOCKED;
	for (int i = 0; i < ROUNDS && !xps_reader_ended(reader); i++) {
		switch (poll_round(r)) {
		case EMPTY:
			if (unlikely(r->slept || r->abandoned) && is_abandoned(r))
				lose_helper(r);
			/* Else nobody waits for the sockets, and they are looked at when somebody does again. */
			if (r->slept && !reader->napping)
				clear_errors(r);
			r->slept = false;
			if (unlikely(atomic_load_explicit(&r->source->gone, memory_order_acquire)))
				return drained(r);
			if (!busy_poll(r))
				return rest(r);
			break;
		case BLOCKED:
			return r->current ? XPS_POLL_BLOCKED : XPS_POLL_END;
		case DONE:
			r->slept = false;
			r->looks = 0;
			break;
		}
	}
	return xps_reader_ended(reader) ? XPS_POLL_END : XPS_POLL_AGAIN;
}

static void reader_soon(const struct xps_reader *reader)
{
	const struct xdp_reader *r = XPS_CONTAINER_OF(reader, struct xdp_reader, reader);
	const struct xps_xdp_socket *s = &r->sockets[r->turn];

	xps_fetch((const uint8_t *)&r->source,
		  offsetof(struct xdp_reader, views) - offsetof(struct xdp_reader, source));
	xps_fetch((const uint8_t *)s, offsetof(struct xps_xdp_socket, held) + 2 * XPS_CACHE_LINE);
	xps_fetch((const uint8_t *)&s->n_held, sizeof(*s) - offsetof(struct xps_xdp_socket, n_held));
	__builtin_prefetch(s->rx.producer);
	xps_fetch((const uint8_t *)xps_xdp_rx_entry(&s->rx, 0), 2 * XPS_CACHE_LINE);
}

static void reader_poll_blocked(struct xps_reader *reader)
{
	struct xdp_reader *r = reader_of(reader);

	clear_kick(r);
	is_abandoned(r); /* poll() ends the stream, when there is room */
	for (uint32_t i = 0; i < r->n_sockets; i++)
		absorb(&r->sockets[i]);
}

/* ---------------------------------------------------------------- statistics */

/* Each counter is one line here, one in enum xps_stat with its name, and one in QueueStats in recv/_stats.py. */
static void read_program(const struct xdp_reader *r, struct xps_queue_stats *row)
{
	const struct xps_steer_counters c = r->source->counters[row->queue];

	*xps_queue_stat(row, XPS_STAT_XDP_MATCHED) = c.matched;
	*xps_queue_stat(row, XPS_STAT_XDP_REDIRECTED) = c.redirected;
	*xps_queue_stat(row, XPS_STAT_XDP_NO_SOCKET) = c.no_socket;
	*xps_queue_stat(row, XPS_STAT_XDP_BAD_LENGTH) = c.bad_length;
	*xps_queue_stat(row, XPS_STAT_XDP_FRAGMENTS) = c.fragments;
	*xps_queue_stat(row, XPS_STAT_XDP_EXTENSION_HEADERS) = c.extensions;
	*xps_queue_stat(row, XPS_STAT_XDP_OTHER_SOURCE) = c.other_source;
}

static void read_socket(struct xps_xdp_socket *s, struct xps_queue_stats *row)
{
	struct xdp_statistics k;

	xps_xdp_socket_stats(s, &k);
	row->read = 1;
	*xps_queue_stat(row, XPS_STAT_XDP_BAD_FRAME) = atomic_load_explicit(&s->bad_frames, memory_order_relaxed);
	*xps_queue_stat(row, XPS_STAT_XDP_BUSY_POLLS) = atomic_load_explicit(&s->busy_polls, memory_order_relaxed);
	*xps_queue_stat(row, XPS_STAT_XDP_UNREAD_DROPS) = atomic_load_explicit(&s->unread_drops, memory_order_relaxed);
	*xps_queue_stat(row, XPS_STAT_XDP_RX_DROPPED) = k.rx_dropped;
	*xps_queue_stat(row, XPS_STAT_XDP_RX_INVALID) = k.rx_invalid_descs;
	*xps_queue_stat(row, XPS_STAT_XDP_RX_RING_FULL) = k.rx_ring_full;
	*xps_queue_stat(row, XPS_STAT_XDP_FILL_RING_EMPTY) = k.rx_fill_ring_empty_descs;
}

static void reader_add_stats(struct xps_reader *reader, uint64_t *stats)
{
	struct xdp_reader *r = reader_of(reader);

	(void)stats; /* the stream adds up what is in the table */
	xps_xdp_port_counters(r->source->port, r->source->slot, r->source->cleared, r->source->counters);
	for (uint32_t i = 0; i < reader->queues->n; i++)
		if (r->source->owners[i] == r->index)
			read_program(r, &reader->queues->rows[i]);
	for (uint32_t i = 0; i < r->n_sockets; i++)
		read_socket(&r->sockets[i], &reader->queues->rows[r->sockets[i].queue->index]);
}

/* The end of the ledger: after this no packet comes to the sockets, and every one that did has been counted. */
static void settle(struct xdp_reader *r)
{
	if (r->current)
		count(&r->current->unread_drops, r->n_views - r->next_view);
	for (uint32_t i = 0; i < r->n_sockets; i++)
		count(&r->sockets[i].unread_drops, xps_xdp_socket_drain(&r->sockets[i]));
	if (r->attached)
		xps_reader_settle(&r->reader);
}

/* ---------------------------------------------------------------- after a fork */

void xps_xdp_port_forget(struct xps_xdp_port *port)
{
	port->ops->forget(port);
	xps_xdp_port_forget_joined(port);
	for (int i = 0; i < port->config.n_queues; i++) {
		const struct xps_xdp_queue *queue = port->queues[i];

		if (!queue)
			continue;
		for (struct xps_xdp_member *member = queue->members; member; member = member->next)
			xps_xdp_fd_forget(XPS_CONTAINER_OF(member, struct xps_xdp_socket, member)->fd);
		xps_xdp_fd_forget(queue->fd);
	}
}

/* ---------------------------------------------------------------- opening and closing */

/* From here on no packet comes to any socket of the source. Whoever is second waits until the first is done. */
static void source_clear(struct xdp_source *source)
{
	pthread_mutex_lock(&source->lock);
	if (!source->cleared) {
		/* Sockets last: the program has counted a packet as redirected before the kernel looks for its socket. */
		xps_xdp_port_drop_endpoints(source->port, source->slot);
		xps_xdp_quiesce();
		xps_xdp_port_clear_slot(source->port, source->slot);
	}
	source->cleared = true;
	pthread_mutex_unlock(&source->lock);
}

static void source_free(struct xdp_source *source)
{
	if (atomic_fetch_sub(&source->refs, 1) != 1)
		return;
	if (source->slot >= 0)
		xps_xdp_port_give_slot(source->port, source->slot);
	/* Not with the reader: until here the first one may be about to kick it. */
	for (uint32_t i = 0; i < source->n_readers; i++)
		if (source->readers[i].kick_fd >= 0)
			close(source->readers[i].kick_fd);
	xps_xdp_watch_close(&source->watch);
	xps_xdp_port_free(source->port);
	pthread_mutex_destroy(&source->lock);
	free(source->owners);
	free(source->counters);
	free(source);
}

/* Also for a reader that was opened in part. The order matters: maps, rings, descriptors, program. */
static void reader_close(struct xps_reader *reader)
{
	struct xdp_reader *r = reader_of(reader);

	if (r->source->slot >= 0) {
		source_clear(r->source);
		settle(r);
	}
	for (uint32_t i = 0; i < r->n_sockets; i++)
		xps_xdp_socket_close(&r->sockets[i]);
	if (r->lifeline_fd >= 0)
		close(r->lifeline_fd);
	if (!r->attached)
		free(r->reader.queues);
	free(r->reader.watches);
	free(r->sockets);
	source_free(r->source);
}

static const struct xps_reader_ops xdp_ops = {
	.name = "xdp",
	.lossy = true,
	.poll = reader_poll,
	.close = reader_close,
	.add_stats = reader_add_stats,
	.poll_blocked = reader_poll_blocked,
	.look = reader_look,
	.soon = reader_soon,
};

static int check_config(const struct xps_xdp_reader_config *config, struct xps_fail *fail)
{
	static const char step[] = "check configuration";

	if (!config->n_endpoints)
		return xps_fail_set(fail, EINVAL, step, "At least one endpoint is needed.");
	if (!config->n_queues)
		return xps_fail_set(fail, EINVAL, step, "At least one queue is needed.");
	if (!config->max_size)
		return xps_fail_set(fail, EINVAL, step, "max_size must be positive.");
	if (!config->buffer_size)
		return xps_fail_set(fail, EINVAL, step, "buffer_size must be positive.");
	if (!config->n_workers || config->n_workers > config->n_queues)
		return xps_fail_set(fail, EINVAL, step,
				    "There must be from 1 worker to one for each queue, not %u workers for %u queues.",
				    config->n_workers, config->n_queues);
	if (config->busy_poll_budget < 0 || config->busy_poll_budget > UINT16_MAX)
		return xps_fail_set(fail, EINVAL, step, "busy_poll_budget must be from 1 to 65535.");
	for (uint32_t i = 0; i < config->n_queues; i++)
		for (uint32_t j = 0; j < i; j++)
			if (config->queues[i] == config->queues[j])
				return xps_fail_set(fail, EINVAL, step, "Queue %u is named twice.", config->queues[i]);
	return 0;
}

/* The number of queues that are dealt to reader `index`. */
static uint32_t share_of(uint32_t index, const struct xps_xdp_reader_config *config)
{
	return (config->n_queues - index - 1) / config->n_workers + 1;
}

static int reader_init(struct xdp_reader *r, struct xdp_source *source, const struct xps_xdp_reader_config *config)
{
	const uint32_t n_sockets = share_of(r->index, config);

	r->reader.ops = &xdp_ops;
	r->source = source;
	r->max_size = config->max_size;
	r->max_poll = config->max_poll > 0 ? (uint32_t)config->max_poll : 0;
	r->kick_fd = r->lifeline_fd = -1;
	r->reader.news.fd = -1;
	atomic_init(&r->kicked, false);
	r->sockets = calloc(n_sockets, sizeof(r->sockets[0]));
	r->reader.watches = calloc((size_t)n_sockets + 2, sizeof(r->reader.watches[0]));
	r->reader.queues = xps_queue_table_new(source->port->name, (uint32_t)source->port->config.n_queues);
	return r->sockets && r->reader.watches && r->reader.queues ? 0 : -ENOMEM;
}

/* Close the readers from number `first` on, which the stream does not have. */
static void close_readers(struct xdp_source *source, uint32_t first)
{
	const uint32_t n = source->n_readers; /* the last one may take the source along */

	for (uint32_t i = first; i < n; i++)
		reader_close(&source->readers[i].reader);
}

static struct xdp_source *source_new(struct xps_xdp_port *port, const struct xps_xdp_reader_config *config,
				     struct xps_fail *fail)
{
	struct xdp_source *source = calloc(1, sizeof(*source) + config->n_workers * sizeof(source->readers[0]));
	int err = 0;

	if (!source)
		goto no_memory;
	xps_xdp_port_ref(port);
	source->port = port;
	source->slot = -1;
	source->watch.fd = -1;
	pthread_mutex_init(&source->lock, NULL);
	source->n_readers = config->n_workers;
	atomic_init(&source->refs, 1 + source->n_readers);
	atomic_init(&source->gone, false);
	atomic_init(&source->n_undrained, source->n_readers);
	source->owners = calloc((size_t)port->config.n_queues, sizeof(source->owners[0]));
	source->counters = calloc((size_t)port->config.n_queues, sizeof(source->counters[0]));
	for (uint32_t i = 0; i < source->n_readers; i++) {
		source->readers[i].index = i;
		err |= reader_init(&source->readers[i], source, config);
	}
	if (source->owners && source->counters && !err)
		return source;
	close_readers(source, 0);
	source_free(source);
no_memory:
	xps_fail_set(fail, ENOMEM, "allocate", "Not enough memory for the state of a reader.");
	return NULL;
}

static int prepare_busy_poll(struct xdp_reader *r, struct xps_xdp_socket *s, int budget, struct xps_fail *fail)
{
	int err;

	if (!budget)
		return 0;
	err = xps_xdp_socket_busy_poll(s, budget, fail);
	if (err)
		return err;
	/* Packets of generic mode do not bring it. */
	if (s->napi == XPS_NAPI_UNKNOWN && r->source->port->program.mode == XPS_XDP_GENERIC)
		s->napi = XPS_NAPI_NOT_TOLD;
	return 0;
}

static int open_socket(struct xdp_reader *r, uint32_t queue, const struct xps_xdp_reader_config *config,
		       struct xps_fail *fail)
{
	const struct xps_xdp_queue_config queue_config = { .buffer_size = config->buffer_size,
							   .n_alike = config->n_queues,
							   .zero_copy = config->zero_copy,
							   .slot = r->source->slot };
	struct xps_xdp_socket *s = &r->sockets[r->n_sockets];
	struct xdp_source *source = r->source;
	int err;

	s->member.kick_fd = r->kick_fd;
	s->member.kicked = &r->kicked;
	err = xps_xdp_socket_open(s, source->port, queue, &queue_config, fail);
	if (err)
		return err;
	r->n_sockets++;
	r->reader.watches[r->reader.n_watches++].watch.fd = s->fd;
	source->owners[queue] = r->index;
	err = prepare_busy_poll(r, s, config->busy_poll_budget, fail);
	return err ? err : xps_xdp_port_set_socket(source->port, source->slot, queue, s->fd, fail);
}

/* A descriptor of its own, because an event loop takes each but once. */
static int watch_lifeline(struct xdp_reader *r, struct xps_fail *fail)
{
	const int fd = xps_xdp_port_lifeline(r->source->port);

	if (fd < 0)
		return 0;
	r->lifeline_fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	if (r->lifeline_fd < 0)
		return xps_fail_set(fail, errno, "watch the helper", "Cannot duplicate a descriptor: %s.",
				    strerror(errno));
	r->reader.watches[r->reader.n_watches++].watch.fd = r->lifeline_fd;
	return 0;
}

/* All packets may come through one queue. */
static uint32_t room_of(const struct xdp_reader *r)
{
	const uint32_t mtu = (uint32_t)r->source->port->config.mtu;
	uint32_t room = UINT32_MAX;

	for (uint32_t i = 0; i < r->n_sockets; i++) {
		const struct xps_xdp_queue *queue = r->sockets[i].queue;
		const uint32_t frames = queue->multi_buffer ? mtu / queue->frame_size + 1 : 1;

		room = (uint32_t)xps_min_u64(room, xps_xdp_queue_share(queue) / frames);
	}
	return room;
}

static int reader_open(struct xdp_reader *r, const struct xps_xdp_reader_config *config, struct xps_fail *fail)
{
	int err = watch_lifeline(r, fail);

	if (err)
		return err;

	r->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (r->kick_fd < 0)
		return xps_fail_set(fail, errno, "create eventfd", "Cannot create an eventfd: %s.", strerror(errno));
	r->reader.watches[r->reader.n_watches++].watch.fd = r->kick_fd;
	for (uint32_t i = r->index; i < config->n_queues && !err; i += config->n_workers)
		err = open_socket(r, config->queues[i], config, fail);
	if (!err)
		r->reader.room = room_of(r);
	return err;
}

/* The largest MTU whose packets fit all frames; 0 if all do. */
static int max_mtu(const struct xdp_reader *r)
{
	int max = 0;

	for (uint32_t i = 0; i < r->n_sockets; i++) {
		const int fits = xps_xdp_queue_max_mtu(r->sockets[i].queue);

		max = !max || (fits && fits < max) ? fits : max;
	}
	return max;
}

/* After the sockets: what happens to the interface from here on is told. */
static int watch_interface(struct xdp_source *source, struct xps_fail *fail)
{
	struct xps_xdp_watch *watch = &source->watch;
	struct xdp_reader *first = &source->readers[0];
	int err;

	watch->ifindex = source->port->config.ifindex;
	watch->program_id = source->port->program.id;
	watch->max_mtu = max_mtu(first);
	watch->mtu = source->port->config.mtu;
	watch->tell = tell_change;
	watch->user = first;
	memcpy(watch->name, source->port->name, sizeof(watch->name));
	err = xps_xdp_watch_open(watch, fail);
	first->reader.news.fd = watch->fd;
	return err;
}

static int source_open(struct xdp_source *source, const struct xps_xdp_reader_config *config, struct xps_fail *fail)
{
	int err;

	source->slot = xps_xdp_port_take_slot(source->port, config->owner, fail);
	if (source->slot < 0)
		return source->slot;
	err = xps_xdp_port_keep_joined(source->port, source->slot, config->joined, config->n_joined, fail);
	for (uint32_t i = 0; i < source->n_readers && !err; i++)
		err = reader_open(&source->readers[i], config, fail);
	if (!err)
		err = watch_interface(source, fail);
	if (err)
		return err;
	/* Last: from here on packets come. */
	return xps_xdp_port_add_endpoints(source->port, source->slot, config->endpoints, config->n_endpoints, fail);
}

static void tell_busy_poll(const struct xps_xdp_socket *s, struct xps_xdp_obtained *obtained)
{
	if (s->napi == XPS_NAPI_CALLED)
		obtained->busy_poll = XPS_XDP_BUSY_POLLS;
	else if (s->napi == XPS_NAPI_UNKNOWN && obtained->busy_poll == XPS_XDP_SLEEPS)
		obtained->busy_poll = XPS_XDP_MAY_BUSY_POLL;
}

static void tell_socket(const struct xps_xdp_socket *s, struct xps_xdp_obtained *obtained)
{
	obtained->zero_copy = obtained->zero_copy && s->zero_copy;
	obtained->multi_buffer = obtained->multi_buffer && s->queue->multi_buffer;
	obtained->frame_size = s->queue->frame_size;
	obtained->memory += s->queue->memory + s->rx.map_size;
	tell_busy_poll(s, obtained);
}

/* Not what a packet has told by now: whether one has come already must make no difference. */
static uint32_t napi_called(const struct xps_xdp_socket *s)
{
	return s->napi == XPS_NAPI_CALLED ? xps_xdp_socket_napi_id(s) : 0;
}

static void tell(const struct xdp_source *source, uint32_t *napi_ids, struct xps_xdp_obtained *obtained)
{
	*obtained = (struct xps_xdp_obtained){
		.mode = source->port->program.mode,
		.zero_copy = true,
		.multi_buffer = true,
	};
	for (uint32_t i = 0; i < source->n_readers; i++) {
		const struct xdp_reader *r = &source->readers[i];

		for (uint32_t j = 0; j < r->n_sockets; j++) {
			tell_socket(&r->sockets[j], obtained);
			if (napi_ids) /* as the queues have been dealt out */
				napi_ids[i + j * source->n_readers] = napi_called(&r->sockets[j]);
		}
	}
}

/* Give each reader to its worker. Returns how many have been given; the rest is still ours. */
static uint32_t attach_readers(struct xdp_source *source, struct xps_stream *stream, int *err)
{
	uint32_t n = 0;

	*err = xps_stream_want_lanes(stream, source->n_readers);
	for (; n < source->n_readers && !*err; n++) {
		struct xdp_reader *r = &source->readers[n];

		r->attached = true; /* before: the stream may close it at once */
		*err = xps_reader_attach_to(stream, n, &r->reader);
		if (*err) {
			r->attached = false;
			break;
		}
	}
	return n;
}

static int attach(struct xdp_source *source, struct xps_stream *stream, struct xps_fail *fail)
{
	int err;
	const uint32_t n = attach_readers(source, stream, &err);

	if (!err)
		return 0;
	for (uint32_t i = 0; i < n; i++)
		xps_reader_detach(stream, i, &source->readers[i].reader);
	close_readers(source, n);
	/* A stream that has stopped wants no more readers, and that is no error. */
	if (err == -EPIPE)
		return 0;
	return xps_fail_set(fail, -err, "attach reader", "Cannot give the reader to its stream: %s.", strerror(-err));
}

int xps_add_xdp_reader(struct xps_stream *stream, struct xps_xdp_port *port, const struct xps_xdp_reader_config *config,
		       struct xps_xdp_obtained *obtained, struct xps_fail *fail)
{
	struct xdp_source *source;
	int err = check_config(config, fail);

	if (err)
		return err;
	source = source_new(port, config, fail);
	if (!source)
		return -ENOMEM;
	err = source_open(source, config, fail);
	if (!err) {
		tell(source, config->napi_ids, obtained);
		err = attach(source, stream, fail);
	} else {
		close_readers(source, 0);
	}
	source_free(source);
	return err;
}
