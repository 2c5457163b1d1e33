// SPDX-License-Identifier: Apache-2.0
/*
 * How it works
 *
 * A reader has a slot in the port's maps and a socket on each queue it was asked to read. poll() goes round the sockets;
 * from each it takes a batch of descriptors, walks the headers, makes a view of each SPEAD packet where it lies, pushes
 * the views and gives the frames back. If the stream takes fewer, the batch stays in hand (`current`, `views`) until
 * poll() is called again.
 *
 * With busy polling poll() calls the driver when the rings are empty, looks again, and never lets the worker sleep. A
 * queue whose driver cannot be called so is looked at as often; if none can, the worker sleeps on the descriptors.
 *
 * While the stream is blocked, poll_blocked() moves what arrives out of the rings, so that the reader keeps to its share
 * of the frames of a queue that others read too.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "bits.h"
#include "frame.h"
#include "transport.h"
#include "xdp_socket.h"

enum {
	ROUNDS = 4, /* batches of each queue before other readers have their turn */
};

struct xdp_reader {
	struct xps_reader reader;
	struct xps_xdp_port *port;
	int slot;
	uint32_t max_size, max_poll;

	struct xps_xdp_socket *sockets;
	uint32_t n_sockets;
	uint32_t turn;  /* socket to begin with */
	uint32_t looks; /* at empty rings, in a row */
	bool slept;     /* the last poll() ended in XPS_POLL_WAIT */
	bool told_no_napi;

	/* the batch in hand */
	struct xps_xdp_socket *current;
	struct xps_view views[XPS_XDP_HELD];
	uint32_t n_views, next_view;
	struct xps_view pieces[XPS_XDP_HELD];
	uint32_t n_pieces;

	int kick_fd; /* readable: a reader has joined one of our queues */
	atomic_bool kicked;
	_Atomic uint64_t unread_drops;
	_Atomic uint64_t busy_polls; /* the worker writes */

	bool attached;
	uint64_t reported[XPS_N_STATS]; /* by the last add_stats() */
};

static struct xdp_reader *reader_of(struct xps_reader *reader)
{
	return XPS_CONTAINER_OF(reader, struct xdp_reader, reader);
}

bool xps_has_xdp(void)
{
	return true;
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

/* One packet in `n` descriptors. */
static void add_view(struct xdp_reader *r, const struct xps_xdp_socket *s, const struct xdp_desc *descs, uint32_t n)
{
	const uint8_t *data = bytes_of(s, &descs[0]);
	struct xps_frame frame;
	struct xps_view *view;
	size_t total = 0;
	uint32_t room;

	for (uint32_t i = 0; i < n; i++)
		total += descs[i].len;
	if (unlikely(xps_frame_parse(&frame, data, descs[0].len, total) != XPS_FRAME_UDP)) {
		xps_stream_count(r->reader.stream, XPS_STAT_XDP_BAD_FRAME, 1);
		return;
	}
	if (unlikely(frame.payload_length > r->max_size)) {
		xps_stream_count(r->reader.stream, XPS_STAT_TRUNCATED_DATAGRAM, 1);
		return;
	}
	room = descs[0].len - frame.payload_offset;
	view = &r->views[r->n_views++];
	*view = (struct xps_view){
		.data = data + frame.payload_offset,
		.length = frame.payload_length < room ? frame.payload_length : room,
	};
	if (unlikely(frame.payload_length > room))
		add_pieces(r, view, s, descs + 1, n - 1, frame.payload_length - room);
}

static void make_views(struct xdp_reader *r, struct xps_xdp_socket *s)
{
	uint32_t first = 0;

	r->n_views = r->next_view = r->n_pieces = 0;
	for (uint32_t i = 0; i < s->n_whole; i++) {
		if (s->held[i].options & XDP_PKT_CONTD)
			continue;
		add_view(r, s, s->held + first, i + 1 - first);
		first = i + 1;
	}
	if (unlikely(s->n_overlong))
		xps_stream_count(r->reader.stream, XPS_STAT_XDP_BAD_FRAME, s->n_overlong);
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

static void absorb(struct xdp_reader *r, struct xps_xdp_socket *s)
{
	const uint32_t dropped = xps_xdp_socket_absorb(s);

	if (dropped)
		atomic_fetch_add_explicit(&r->unread_drops, dropped, memory_order_relaxed);
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
		r->port->name, s->queue->index, r->port->program.mode == XPS_XDP_NATIVE ? "native" : "generic");
	xps_stream_warn(r->reader.stream, text);
}

static void learn_napi(struct xdp_reader *r, struct xps_xdp_socket *s)
{
	xps_xdp_socket_learn_napi(s);
	if (s->napi == XPS_NAPI_LEFT_ALONE)
		tell_no_napi(r, s);
}

/* Call the drivers that can be called. False if there is none, or the interface is down: then the worker may sleep. */
static bool busy_poll(struct xdp_reader *r)
{
	uint64_t n = 0;
	bool up = true;

	for (uint32_t i = 0; i < r->n_sockets; i++) {
		if (r->sockets[i].napi != XPS_NAPI_CALLED)
			continue;
		up = xps_xdp_socket_call_napi(&r->sockets[i]) && up;
		n++;
	}
	if (n)
		atomic_store_explicit(&r->busy_polls, atomic_load_explicit(&r->busy_polls, memory_order_relaxed) + n,
				      memory_order_relaxed);
	return n && up;
}

enum outcome { EMPTY, DONE, BLOCKED };

static enum outcome poll_socket(struct xdp_reader *r, struct xps_xdp_socket *s)
{
	if (unlikely(xps_xdp_socket_behind(s)))
		absorb(r, s);
	if (!xps_xdp_socket_take(s) && !s->n_overlong)
		return EMPTY;
	if (unlikely(s->napi == XPS_NAPI_UNKNOWN))
		learn_napi(r, s);
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
			if (xps_stream_ended(r->reader.stream))
				return BLOCKED;
			all = DONE;
			break;
		case EMPTY:
			break;
		}
	}
	return all;
}

/* An error on a socket (the interface went down or away) keeps it ready until somebody reads it. */
static void clear_errors(struct xdp_reader *r)
{
	for (uint32_t i = 0; i < r->n_sockets; i++) {
		int err = 0;
		socklen_t length = sizeof(err);

		if (!getsockopt(r->sockets[i].fd, SOL_SOCKET, SO_ERROR, &err, &length) && err)
			xps_stream_log_error(r->reader.stream, err);
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

static enum xps_poll reader_poll(struct xps_reader *reader)
{
	struct xdp_reader *r = reader_of(reader);

	clear_kick(r);
	if (r->current && !push(r))
		return XPS_POLL_BLOCKED;
	for (int i = 0; i < ROUNDS && !xps_stream_ended(reader->stream); i++) {
		switch (poll_round(r)) {
		case EMPTY:
			if (r->slept)
				clear_errors(r);
			r->slept = false;
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
	return xps_stream_ended(reader->stream) ? XPS_POLL_END : XPS_POLL_AGAIN;
}

static void reader_poll_blocked(struct xps_reader *reader)
{
	struct xdp_reader *r = reader_of(reader);

	clear_kick(r);
	for (uint32_t i = 0; i < r->n_sockets; i++)
		absorb(r, &r->sockets[i]);
}

/* ---------------------------------------------------------------- statistics */

static void collect_stats(struct xdp_reader *r, uint64_t *stats)
{
	const struct xps_steer_counters c = xps_xdp_port_counters(r->port, r->slot);

	memset(stats, 0, XPS_N_STATS * sizeof(stats[0]));
	stats[XPS_STAT_XDP_MATCHED] = c.matched;
	stats[XPS_STAT_XDP_REDIRECTED] = c.redirected;
	stats[XPS_STAT_XDP_NO_SOCKET] = c.no_socket;
	stats[XPS_STAT_XDP_BAD_LENGTH] = c.bad_length;
	stats[XPS_STAT_XDP_FRAGMENTS] = c.fragments;
	stats[XPS_STAT_XDP_UNREAD_DROPS] = atomic_load_explicit(&r->unread_drops, memory_order_relaxed);
	stats[XPS_STAT_XDP_BUSY_POLLS] = atomic_load_explicit(&r->busy_polls, memory_order_relaxed);
	for (uint32_t i = 0; i < r->n_sockets; i++) {
		struct xdp_statistics s;

		xps_xdp_socket_stats(&r->sockets[i], &s);
		stats[XPS_STAT_XDP_RX_DROPPED] += s.rx_dropped;
		stats[XPS_STAT_XDP_RX_INVALID] += s.rx_invalid_descs;
		stats[XPS_STAT_XDP_RX_RING_FULL] += s.rx_ring_full;
		stats[XPS_STAT_XDP_FILL_RING_EMPTY] += s.rx_fill_ring_empty_descs;
	}
}

static void reader_add_stats(struct xps_reader *reader, uint64_t *stats)
{
	struct xdp_reader *r = reader_of(reader);

	collect_stats(r, r->reported);
	for (int i = 0; i < XPS_N_STATS; i++)
		stats[i] += r->reported[i];
}

/*
 * The end of the ledger: after this no packet comes to the sockets, and every one that did has been counted. The stream
 * asked for our statistics just before; what has come since then is added here.
 */
static void settle(struct xdp_reader *r)
{
	uint32_t unread = r->current ? r->n_views - r->next_view : 0;
	uint64_t stats[XPS_N_STATS];

	for (uint32_t i = 0; i < r->n_sockets; i++)
		unread += xps_xdp_socket_drain(&r->sockets[i]);
	atomic_fetch_add_explicit(&r->unread_drops, unread, memory_order_relaxed);
	if (!r->attached)
		return;
	collect_stats(r, stats);
	for (int i = 0; i < XPS_N_STATS; i++)
		if (stats[i] > r->reported[i])
			xps_stream_count(r->reader.stream, i, stats[i] - r->reported[i]);
}

/* ---------------------------------------------------------------- after a fork */

void xps_xdp_port_forget(struct xps_xdp_port *port)
{
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

/* Also for a reader that was opened in part. The order matters: maps, rings, descriptors, program. */
static void reader_close(struct xps_reader *reader)
{
	struct xdp_reader *r = reader_of(reader);

	if (r->slot >= 0) {
		xps_xdp_port_clear_slot(r->port, r->slot);
		xps_xdp_quiesce();
		settle(r);
		xps_xdp_port_give_slot(r->port, r->slot);
	}
	for (uint32_t i = 0; i < r->n_sockets; i++)
		xps_xdp_socket_close(&r->sockets[i]);
	if (r->kick_fd >= 0)
		close(r->kick_fd);
	xps_xdp_port_free(r->port);
	free(r->reader.watches);
	free(r->sockets);
	free(r);
}

static const struct xps_reader_ops xdp_ops = {
	.name = "xdp",
	.lossy = true,
	.poll = reader_poll,
	.close = reader_close,
	.add_stats = reader_add_stats,
	.poll_blocked = reader_poll_blocked,
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
	if (config->busy_poll_budget < 0 || config->busy_poll_budget > UINT16_MAX)
		return xps_fail_set(fail, EINVAL, step, "busy_poll_budget must be from 1 to 65535.");
	for (uint32_t i = 0; i < config->n_queues; i++)
		for (uint32_t j = 0; j < i; j++)
			if (config->queues[i] == config->queues[j])
				return xps_fail_set(fail, EINVAL, step, "Queue %u is named twice.", config->queues[i]);
	return 0;
}

static struct xdp_reader *reader_alloc(struct xps_stream *stream, struct xps_xdp_port *port,
				       const struct xps_xdp_reader_config *config, struct xps_fail *fail)
{
	struct xdp_reader *r = calloc(1, sizeof(*r));

	if (r) {
		r->sockets = calloc(config->n_queues, sizeof(r->sockets[0]));
		r->reader.watches = calloc((size_t)config->n_queues + 1, sizeof(r->reader.watches[0]));
	}
	if (!r || !r->sockets || !r->reader.watches) {
		if (r)
			free(r->reader.watches);
		if (r)
			free(r->sockets);
		free(r);
		xps_fail_set(fail, ENOMEM, "allocate", "Not enough memory for the state of a reader.");
		return NULL;
	}
	xps_xdp_port_ref(port);
	r->port = port;
	r->reader.ops = &xdp_ops;
	r->reader.stream = stream;
	r->max_size = config->max_size;
	r->max_poll = config->max_poll > 0 ? (uint32_t)config->max_poll : 0;
	r->slot = r->kick_fd = -1;
	atomic_init(&r->kicked, false);
	atomic_init(&r->unread_drops, 0);
	atomic_init(&r->busy_polls, 0);
	return r;
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
	if (s->napi == XPS_NAPI_UNKNOWN && r->port->program.mode == XPS_XDP_GENERIC)
		s->napi = XPS_NAPI_LEFT_ALONE;
	if (s->napi == XPS_NAPI_LEFT_ALONE)
		tell_no_napi(r, s);
	return 0;
}

static int open_sockets(struct xdp_reader *r, const struct xps_xdp_reader_config *config, struct xps_fail *fail)
{
	const struct xps_xdp_queue_config queue = { .buffer_size = config->buffer_size,
						    .zero_copy = config->zero_copy };

	for (uint32_t i = 0; i < config->n_queues; i++) {
		struct xps_xdp_socket *s = &r->sockets[i];
		int err;

		s->member.kick_fd = r->kick_fd;
		s->member.kicked = &r->kicked;
		err = xps_xdp_socket_open(s, r->port, config->queues[i], &queue, fail);
		if (err)
			return err;
		r->n_sockets++;
		r->reader.watches[r->reader.n_watches++].watch.fd = s->fd;
		err = prepare_busy_poll(r, s, config->busy_poll_budget, fail);
		if (err)
			return err;
		err = xps_xdp_port_set_socket(r->port, r->slot, config->queues[i], s->fd, fail);
		if (err)
			return err;
	}
	return 0;
}

static int reader_open(struct xdp_reader *r, const struct xps_xdp_reader_config *config, struct xps_fail *fail)
{
	int err;

	r->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (r->kick_fd < 0)
		return xps_fail_set(fail, errno, "create eventfd", "Cannot create an eventfd: %s.", strerror(errno));
	r->reader.watches[r->reader.n_watches++].watch.fd = r->kick_fd;
	r->slot = xps_xdp_port_take_slot(r->port, fail);
	if (r->slot < 0)
		return r->slot;
	err = open_sockets(r, config, fail);
	if (err)
		return err;
	/* Last: from here on packets come. */
	return xps_xdp_port_add_endpoints(r->port, r->slot, config->endpoints, config->n_endpoints, fail);
}

static void tell_busy_poll(const struct xps_xdp_socket *s, uint32_t i, struct xps_xdp_obtained *obtained)
{
	const bool called = s->napi == XPS_NAPI_CALLED;

	if (called)
		obtained->busy_poll = XPS_XDP_BUSY_POLLS;
	else if (s->napi == XPS_NAPI_UNKNOWN && obtained->busy_poll == XPS_XDP_SLEEPS)
		obtained->busy_poll = XPS_XDP_MAY_BUSY_POLL;
	/* Not what a packet has told by now: whether one has come already must make no difference. */
	if (obtained->napi_ids)
		obtained->napi_ids[i] = called ? xps_xdp_socket_napi_id(s) : 0;
}

static void tell(const struct xdp_reader *r, struct xps_xdp_obtained *obtained)
{
	*obtained = (struct xps_xdp_obtained){
		.mode = r->port->program.mode,
		.zero_copy = true,
		.multi_buffer = true,
		.napi_ids = obtained->napi_ids,
	};
	for (uint32_t i = 0; i < r->n_sockets; i++) {
		const struct xps_xdp_socket *s = &r->sockets[i];

		obtained->zero_copy = obtained->zero_copy && s->zero_copy;
		obtained->multi_buffer = obtained->multi_buffer && s->queue->multi_buffer;
		obtained->frame_size = s->queue->frame_size;
		obtained->memory += s->queue->memory + s->rx.map_size;
		tell_busy_poll(s, i, obtained);
	}
}

int xps_add_xdp_reader(struct xps_stream *stream, struct xps_xdp_port *port, const struct xps_xdp_reader_config *config,
		       struct xps_xdp_obtained *obtained, struct xps_fail *fail)
{
	struct xdp_reader *r;
	int err = check_config(config, fail);

	if (err)
		return err;
	r = reader_alloc(stream, port, config, fail);
	if (!r)
		return -ENOMEM;
	err = reader_open(r, config, fail);
	if (!err) {
		tell(r, obtained);
		r->attached = true; /* before: the stream may close it at once */
		err = xps_reader_attach(stream, &r->reader);
		if (!err)
			return 0;
		r->attached = false;
		/* A stream that has stopped wants no more readers, and that is no error. */
		if (err == -EPIPE)
			err = 0;
		else
			xps_fail_set(fail, -err, "attach reader", "Cannot give the reader to its stream: %s.",
				     strerror(-err));
	}
	reader_close(&r->reader);
	return err;
}
