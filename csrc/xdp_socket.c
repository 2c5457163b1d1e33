// SPDX-License-Identifier: Apache-2.0
#include "xdp_socket.h"

#include <errno.h>
#include <linux/membarrier.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "bits.h"

/* ---------------------------------------------------------------- opening and closing */

static int bind_shared(const struct xps_xdp_queue *queue, int fd, struct xps_fail *fail)
{
	/* No other flags: zero-copy, wake-up and multi-buffer are inherited. */
	const struct sockaddr_xdp address = {
		.sxdp_family = AF_XDP,
		.sxdp_flags = XDP_SHARED_UMEM,
		.sxdp_ifindex = (uint32_t)queue->port->config.ifindex,
		.sxdp_queue_id = queue->index,
		.sxdp_shared_umem_fd = (uint32_t)queue->fd,
	};

	if (!bind(fd, (const struct sockaddr *)&address, sizeof(address)))
		return 0;
	return xps_fail_set(fail, errno, "bind", "Cannot share queue %u of %s among this process's sockets: %s.%s",
			    queue->index, queue->port->name, strerror(errno),
			    errno == ENETDOWN || errno == EBADF ? " Is the interface up?" : "");
}

static int map_rx(const struct xps_xdp_queue *queue, struct xps_xdp_ring *rx, int fd, struct xps_fail *fail)
{
	struct xdp_mmap_offsets offsets;
	socklen_t length = sizeof(offsets);
	int err = 0;

	if (getsockopt(fd, SOL_XDP, XDP_MMAP_OFFSETS, &offsets, &length))
		err = -errno;
	if (!err)
		err = xps_xdp_ring_map(rx, fd, &offsets.rx, queue->ring_size, sizeof(struct xdp_desc),
				       XDP_PGOFF_RX_RING);
	return err ? xps_fail_set(fail, -err, "map ring", "Cannot map the RX ring: %s.", strerror(-err)) : 0;
}

int xps_xdp_socket_bind(const struct xps_xdp_queue *queue, struct xps_xdp_ring *rx, struct xps_fail *fail)
{
	const int fd = xps_xdp_fd_open(fail);
	int err;

	if (fd < 0)
		return fd;
	err = xps_xdp_ring_make(fd, XDP_RX_RING, "RX", queue->ring_size, fail);
	/* Before binding: kernels before 6.4 map no ring of a bound socket. */
	if (!err && rx)
		err = map_rx(queue, rx, fd, fail);
	if (!err)
		err = bind_shared(queue, fd, fail);
	if (!err)
		return fd;
	if (rx)
		xps_xdp_ring_unmap(rx);
	close(fd);
	return err;
}

/* Somebody else makes it for us. */
static int be_given(struct xps_xdp_socket *s, int slot, struct xps_fail *fail)
{
	const int fd = s->queue->port->ops->open_socket(s->queue, slot, fail);
	int err;

	if (fd < 0)
		return fd;
	err = map_rx(s->queue, &s->rx, fd, fail);
	if (!err)
		return fd;
	close(fd);
	return err;
}

static int make_socket(struct xps_xdp_socket *s, int slot, struct xps_fail *fail)
{
	struct xdp_options options = { 0 };
	socklen_t length = sizeof(options);

	s->backlog = malloc(s->queue->ring_size * sizeof(s->backlog[0]));
	if (!s->backlog)
		return xps_fail_set(fail, ENOMEM, "allocate", "Not enough memory for the state of a socket.");
	s->fd = s->queue->port->ops->open_socket ? be_given(s, slot, fail)
						 : xps_xdp_socket_bind(s->queue, &s->rx, fail);
	if (s->fd < 0)
		return s->fd;
	if (!getsockopt(s->fd, SOL_XDP, XDP_OPTIONS, &options, &length))
		s->zero_copy = options.flags & XDP_OPTIONS_ZEROCOPY;
	return 0;
}

int xps_xdp_socket_open(struct xps_xdp_socket *s, struct xps_xdp_port *port, uint32_t queue,
			const struct xps_xdp_queue_config *config, struct xps_fail *fail)
{
	int err = xps_xdp_queue_join(&s->queue, port, queue, config, &s->member, fail);

	s->fd = -1;
	if (err) {
		s->queue = NULL;
		return err;
	}
	err = make_socket(s, config->slot, fail);
	if (err)
		xps_xdp_socket_close(s);
	return err;
}

static uint32_t backlog_length(const struct xps_xdp_socket *s)
{
	return s->backlog_in - s->backlog_out;
}

static struct xdp_desc *backlog_at(struct xps_xdp_socket *s, uint32_t i)
{
	return &s->backlog[i & (s->queue->ring_size - 1)];
}

void xps_xdp_socket_close(struct xps_xdp_socket *s)
{
	if (!s->queue)
		return;
	xps_xdp_ring_unmap(&s->rx);
	if (s->fd >= 0)
		close(s->fd);
	free(s->backlog);
	xps_xdp_queue_leave(s->queue, &s->member);
	s->queue = NULL;
}

void xps_xdp_quiesce(void)
{
	const struct timespec pause = { .tv_nsec = 20 * 1000 * 1000 };

	/*
	 * The kernel redirects and delivers within one RCU read-side section, and this waits for all of those. Where it
	 * is not to be had (nohz_full) a packet is delivered long before the pause is over.
	 */
	if (syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0))
		nanosleep(&pause, NULL);
}

/* ---------------------------------------------------------------- busy polling */

static int busy_poll_fail(int err, const struct xps_xdp_socket *s, struct xps_fail *fail)
{
	static const char step[] = "set up busy polling";

	switch (err) {
	case EPERM:
		return xps_fail_set(fail, err, step,
				    "Busy polling needs CAP_NET_ADMIN: run as root, grant it, or leave busy_poll off.");
	case ENOPROTOOPT:
		return xps_fail_set(
			fail, EOPNOTSUPP, step,
			"Busy polling needs Linux 5.11 with CONFIG_NET_RX_BUSY_POLL, and this kernel lacks it. "
			"Leave busy_poll off.");
	default:
		return xps_fail_set(fail, err, step, "Cannot set up busy polling of queue %u of %s: %s.",
				    s->queue->index, s->queue->port->name, strerror(err));
	}
}

int xps_xdp_socket_busy_poll(struct xps_xdp_socket *s, int budget, struct xps_fail *fail)
{
	const int on = 1;
	const int timeout_us = 20; /* a call that does not wait only asks whether it is zero */

	if (setsockopt(s->fd, SOL_SOCKET, SO_PREFER_BUSY_POLL, &on, sizeof(on)) ||
	    setsockopt(s->fd, SOL_SOCKET, SO_BUSY_POLL, &timeout_us, sizeof(timeout_us)) ||
	    setsockopt(s->fd, SOL_SOCKET, SO_BUSY_POLL_BUDGET, &budget, sizeof(budget)))
		return busy_poll_fail(errno, s, fail);
	/* What the kernel does not know now it is told by packets, but since 6.13 not even by those. */
	s->napi = XPS_NAPI_UNKNOWN;
	if (xps_xdp_socket_napi_id(s) || xps_kernel_at_least(6, 13))
		xps_xdp_socket_learn_napi(s);
	return 0;
}

uint32_t xps_xdp_socket_napi_id(const struct xps_xdp_socket *s)
{
	uint32_t id = 0;
	socklen_t length = sizeof(id);

	return getsockopt(s->fd, SOL_SOCKET, SO_INCOMING_NAPI_ID, &id, &length) ? 0 : id;
}

void xps_xdp_socket_learn_napi(struct xps_xdp_socket *s)
{
	s->napi = xps_xdp_socket_napi_id(s) ? XPS_NAPI_CALLED : XPS_NAPI_NOT_TOLD;
}

bool xps_xdp_socket_call_napi(struct xps_xdp_socket *s)
{
	return recvfrom(s->fd, NULL, 0, MSG_DONTWAIT, NULL, NULL) >= 0 || (errno != ENETDOWN && errno != ENXIO);
}

/* ---------------------------------------------------------------- taking */

static bool continues(const struct xdp_desc *desc)
{
	return desc->options & XDP_PKT_CONTD;
}

/* A descriptor has come out of the ring. False if it belongs to a packet that is being dropped. */
static bool keep(struct xps_xdp_socket *s, const struct xdp_desc *desc)
{
	bool dropped = s->dropping;

	s->in_packet = continues(desc);
	s->dropping = s->dropping && s->in_packet;
	if (unlikely(dropped))
		xps_xdp_queue_release(s->queue, desc, 1);
	return !dropped;
}

static void skip_packet(struct xps_xdp_socket *s)
{
	xps_xdp_queue_release(s->queue, s->held + s->n_whole, s->n_held - s->n_whole);
	s->n_held = s->n_whole;
	s->n_overlong++;
	s->skipping = true;
}

/* The packet's headers were written by another core. */
static inline void prefetch_headers(const struct xps_xdp_socket *s, const struct xdp_desc *desc)
{
	__builtin_prefetch(s->queue->frames + desc->addr);
	__builtin_prefetch(s->queue->frames + desc->addr + XPS_CACHE_LINE);
}

static void hold(struct xps_xdp_socket *s, const struct xdp_desc *desc)
{
	if (unlikely(s->skipping)) {
		xps_xdp_queue_release(s->queue, desc, 1);
		s->skipping = continues(desc);
		return;
	}
	prefetch_headers(s, desc);
	s->in_pieces |= continues(desc);
	s->held[s->n_held++] = *desc;
	if (likely(!continues(desc)))
		s->n_whole = s->n_held;
	else if (unlikely(s->n_held - s->n_whole == XPS_XDP_MAX_PIECES))
		skip_packet(s);
}

static void take_backlog(struct xps_xdp_socket *s)
{
	for (uint32_t i = 0; i < XPS_XDP_BATCH && backlog_length(s); i++)
		hold(s, backlog_at(s, s->backlog_out++));
}

/* The next `n`, if they are packets in one frame each, with nothing before them to be gone on with; almost always. */
static bool take_simple(struct xps_xdp_socket *s, uint32_t n)
{
	uint32_t options = 0;

	if (unlikely(s->n_held || s->in_packet || s->skipping))
		return false;
	for (uint32_t i = 0; i < n; i++) {
		s->held[i] = *xps_xdp_rx_entry(&s->rx, i);
		options |= s->held[i].options;
	}
	if (unlikely(options & XDP_PKT_CONTD))
		return false;
	for (uint32_t i = 0; i < n; i++)
		prefetch_headers(s, &s->held[i]);
	s->n_held = s->n_whole = n;
	return true;
}

static void take_ring(struct xps_xdp_socket *s)
{
	uint32_t n = xps_xdp_rx_available(&s->rx, 1);

	if (!n)
		return;
	n = n < XPS_XDP_BATCH ? n : XPS_XDP_BATCH;
	if (unlikely(!take_simple(s, n))) {
		for (uint32_t i = 0; i < n; i++) {
			const struct xdp_desc *desc = xps_xdp_rx_entry(&s->rx, i);

			if (keep(s, desc))
				hold(s, desc);
		}
	}
	xps_xdp_rx_consume(&s->rx, n);
}

uint32_t xps_xdp_socket_take(struct xps_xdp_socket *s)
{
	s->in_pieces = s->n_held;
	if (unlikely(backlog_length(s)))
		take_backlog(s);
	else
		take_ring(s);
	return s->n_whole;
}

void xps_xdp_socket_done(struct xps_xdp_socket *s)
{
	const uint32_t rest = s->n_held - s->n_whole;

	xps_xdp_queue_release(s->queue, s->held, s->n_whole);
	if (unlikely(rest))
		memmove(s->held, s->held + s->n_whole, rest * sizeof(s->held[0]));
	s->n_held = rest;
	s->n_whole = 0;
	xps_xdp_queue_wakeup(s->queue, s->fd, false);
}

/* ---------------------------------------------------------------- backlog */

/* Frames that may wait here: the share less what may be held besides. */
static uint32_t backlog_limit(const struct xps_xdp_socket *s)
{
	const uint32_t share = xps_xdp_queue_share(s->queue);

	if (share == s->queue->n_frames)
		return share;
	return share > 2 * XPS_XDP_HELD ? share - XPS_XDP_HELD : share / 2;
}

bool xps_xdp_socket_behind(struct xps_xdp_socket *s)
{
	const uint32_t limit = backlog_limit(s);

	return limit < s->queue->n_frames && xps_xdp_rx_available(&s->rx, limit + 1) + backlog_length(s) > limit;
}

/* Drop the newest packet of the backlog; one that begins in `held` goes as a whole. */
static void drop_newest(struct xps_xdp_socket *s)
{
	s->dropping = s->in_packet;
	do
		xps_xdp_queue_release(s->queue, backlog_at(s, --s->backlog_in), 1);
	while (backlog_length(s) && continues(backlog_at(s, s->backlog_in - 1)));
	if (!backlog_length(s)) {
		xps_xdp_queue_release(s->queue, s->held + s->n_whole, s->n_held - s->n_whole);
		s->n_held = s->n_whole;
	}
}

uint32_t xps_xdp_socket_absorb(struct xps_xdp_socket *s)
{
	const uint32_t limit = backlog_limit(s);
	const uint32_t n = xps_xdp_rx_available(&s->rx, UINT32_MAX);
	uint32_t dropped = 0;

	for (; backlog_length(s) > limit; dropped++)
		drop_newest(s);
	for (uint32_t i = 0; i < n; i++) {
		const struct xdp_desc *desc = xps_xdp_rx_entry(&s->rx, i);

		if (!s->in_packet && backlog_length(s) >= limit) {
			s->dropping = true;
			dropped++;
		}
		if (keep(s, desc))
			*backlog_at(s, s->backlog_in++) = *desc;
	}
	if (n)
		xps_xdp_rx_consume(&s->rx, n);
	if (dropped)
		xps_xdp_queue_wakeup(s->queue, s->fd, false);
	return dropped;
}

/* ---------------------------------------------------------------- the end */

/* True if it is the last of a packet that has not been counted as lost already. */
static bool ends_packet(struct xps_xdp_socket *s, const struct xdp_desc *desc)
{
	const bool skipped = s->skipping;

	s->skipping = s->skipping && continues(desc);
	return !skipped && !continues(desc);
}

uint32_t xps_xdp_socket_drain(struct xps_xdp_socket *s)
{
	uint32_t lost = 0;

	xps_xdp_queue_release(s->queue, s->held, s->n_held);
	s->n_held = s->n_whole = 0;
	for (; backlog_length(s); s->backlog_out++) {
		lost += ends_packet(s, backlog_at(s, s->backlog_out));
		xps_xdp_queue_release(s->queue, backlog_at(s, s->backlog_out), 1);
	}
	for (; xps_xdp_rx_available(&s->rx, 1); xps_xdp_rx_consume(&s->rx, 1)) {
		const struct xdp_desc *desc = xps_xdp_rx_entry(&s->rx, 0);

		if (!keep(s, desc))
			continue;
		lost += ends_packet(s, desc);
		xps_xdp_queue_release(s->queue, desc, 1);
	}
	return lost;
}

/* ---------------------------------------------------------------- statistics */

void xps_xdp_socket_stats(struct xps_xdp_socket *s, struct xdp_statistics *stats)
{
	socklen_t length = sizeof(*stats);
	uint64_t fill_empty, rx_invalid;

	memset(stats, 0, sizeof(*stats));
	getsockopt(s->fd, SOL_XDP, XDP_STATISTICS, stats, &length);
	xps_xdp_queue_credits(s->queue, &s->member, &fill_empty, &rx_invalid);
	stats->rx_fill_ring_empty_descs = fill_empty;
	stats->rx_invalid_descs = rx_invalid;
}
