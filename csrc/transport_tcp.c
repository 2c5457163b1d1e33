// SPDX-License-Identifier: Apache-2.0
/*
 * Reads the packets of one TCP connection, accepted from a listening socket that is closed thereafter.
 *
 * How it works
 *
 * The bytes that have been received and not used are those from `next` to `end` of one buffer. Each poll receives once
 * behind them and lets the framing cut off packets, of which views are made and pushed; what came with one recv(2) is
 * one batch, if it completed anything. What is left is the beginning of a packet; it moves to the front of the buffer
 * when there is no room for the next recv(2) behind it. The framing never needs more bytes than max_size and the longest
 * header, whatever the peer announces, so that bounds the buffer.
 *
 * Every byte of the connection ends up either in a packet that the stream takes or in XPS_STAT_TCP_SKIPPED_BYTES.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "bits.h"
#include "framing.h"
#include "transport.h"

#define VIEWS_PER_PUSH 32
/* Bytes received at a time. What they become is copied once more, out of the cache if they are few. */
#define READ_SIZE ((size_t)256 * 1024)

struct tcp_reader {
	struct xps_reader base;
	struct xps_reader_watch watch; /* of the listening socket, then of the connection */
	bool connected;
	bool starved; /* a connection waits but there is nothing to accept it with; this is in the log */

	struct xps_framing framing;
	uint8_t *buffer;
	size_t size, next, end;

	bool in_batch, drained;
	struct xps_view views[VIEWS_PER_PUSH];
	struct xps_packet packets[VIEWS_PER_PUSH];
	uint32_t n_views, taken; /* views made, and those of them that the stream has taken */
};

/* ---------------------------------------------------------------- the connection */

/* One connection that failed before it was accepted says nothing about the next. */
static enum xps_poll accept_failed(struct tcp_reader *tcp, int err)
{
	switch (err) {
	case EAGAIN:
		return XPS_POLL_WAIT;
	case EMFILE:
	case ENFILE:
	case ENOBUFS:
	case ENOMEM:
		if (!tcp->starved)
			xps_reader_log_error(&tcp->base, err);
		tcp->starved = true;
		return XPS_POLL_LATER;
	case ECONNABORTED:
	case EPERM: /* a firewall */
	case EPROTO:
	case ENOPROTOOPT:
	case EHOSTDOWN:
	case ENONET:
	case EHOSTUNREACH:
	case EOPNOTSUPP:
	case ENETDOWN:
	case ENETUNREACH:
		xps_reader_log_error(&tcp->base, err);
		return XPS_POLL_WAIT;
	default: /* somebody has shut the listening socket down */
		xps_reader_log_error(&tcp->base, err);
		return XPS_POLL_END;
	}
}

static enum xps_poll accept_connection(struct tcp_reader *tcp)
{
	const int listener = tcp->watch.watch.fd, on = 1;
	int fd, err;

	do
		fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	while (fd < 0 && errno == EINTR);
	if (fd < 0)
		return accept_failed(tcp, errno);
	/* Who only receives learns in no other way that the peer's machine is gone. */
	setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
	err = xps_reader_watch_instead(&tcp->watch, fd);
	close(listener);
	tcp->connected = true;
	if (!err)
		return XPS_POLL_AGAIN;
	xps_reader_log_error(&tcp->base, -err);
	return XPS_POLL_END;
}

/* Returns the bytes received, 0 at the end of the connection, -EAGAIN if there are none now. */
static ssize_t receive(struct tcp_reader *tcp)
{
	ssize_t n;

	if (tcp->next == tcp->end || tcp->size - tcp->end < READ_SIZE) {
		memmove(tcp->buffer, tcp->buffer + tcp->next, tcp->end - tcp->next);
		tcp->end -= tcp->next;
		tcp->next = 0;
	}
	do
		n = recv(tcp->watch.watch.fd, tcp->buffer + tcp->end, READ_SIZE, MSG_DONTWAIT);
	while (n < 0 && errno == EINTR);
	if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
		return -EAGAIN;
	if (n < 0) {
		xps_reader_log_error(&tcp->base, errno);
		return 0;
	}
	tcp->end += (size_t)n;
	tcp->drained = (size_t)n < READ_SIZE;
	return n;
}

/* ---------------------------------------------------------------- packets */

static void count_skipped(struct tcp_reader *tcp, uint64_t n_bytes, int stat)
{
	xps_reader_count(&tcp->base, XPS_STAT_TCP_SKIPPED_BYTES, n_bytes);
	if (stat)
		xps_reader_count(&tcp->base, stat, 1);
}

/* Returns whether anything could be cut off, be it to be skipped. */
static bool make_views(struct tcp_reader *tcp)
{
	const size_t before = tcp->next;

	tcp->n_views = tcp->taken = 0;
	while (tcp->n_views < VIEWS_PER_PUSH) {
		struct xps_packet *packet = &tcp->packets[tcp->n_views];
		const uint8_t *data = tcp->buffer + tcp->next;
		struct xps_piece piece = xps_framing_next(&tcp->framing, packet, data, tcp->end - tcp->next);

		if (!piece.length)
			break;
		tcp->next += piece.length;
		if (piece.packet)
			tcp->views[tcp->n_views++] = (struct xps_view){
				.data = data,
				.length = (uint32_t)piece.length,
				.decoded = packet,
			};
		else
			count_skipped(tcp, piece.length, piece.stat);
	}
	return tcp->next > before;
}

/* Push what is left of the batch. Returns false if the stream did not take all. */
static bool push_batch(struct tcp_reader *tcp)
{
	for (;;) {
		if (tcp->taken == tcp->n_views)
			make_views(tcp);
		if (tcp->n_views == 0)
			return true;
		tcp->taken += xps_batch_push(&tcp->base, tcp->views + tcp->taken, tcp->n_views - tcp->taken);
		if (tcp->taken < tcp->n_views)
			return false;
	}
}

static enum xps_poll finish(struct tcp_reader *tcp)
{
	const size_t left = tcp->end - tcp->next;

	count_skipped(tcp, left, xps_framing_end(&tcp->framing, tcp->buffer + tcp->next, left));
	tcp->next = tcp->end;
	return XPS_POLL_END;
}

static enum xps_poll tcp_poll(struct xps_reader *reader)
{
	struct tcp_reader *tcp = XPS_CONTAINER_OF(reader, struct tcp_reader, base);

	if (!tcp->connected)
		return accept_connection(tcp);
	if (!tcp->in_batch) {
		ssize_t n = receive(tcp);

		if (n == 0)
			return finish(tcp);
		if (n < 0)
			return XPS_POLL_WAIT;
		if (make_views(tcp)) {
			tcp->in_batch = true;
			xps_batch_begin(reader);
		}
	}
	if (tcp->in_batch) {
		if (!push_batch(tcp))
			return XPS_POLL_BLOCKED;
		tcp->in_batch = false;
		xps_batch_end(reader);
	}
	if (xps_reader_ended(reader))
		return XPS_POLL_END;
	return tcp->drained ? XPS_POLL_WAIT : XPS_POLL_AGAIN;
}

/* ---------------------------------------------------------------- beginning and end */

static void free_reader(struct tcp_reader *tcp)
{
	if (tcp->watch.watch.fd >= 0)
		close(tcp->watch.watch.fd);
	if (tcp->buffer)
		munmap(tcp->buffer, tcp->size);
	free(tcp);
}

static void tcp_close(struct xps_reader *reader)
{
	struct tcp_reader *tcp = XPS_CONTAINER_OF(reader, struct tcp_reader, base);

	/* The beginning of a packet, when the stream was stopped and the connection has not ended. */
	count_skipped(tcp, tcp->end - tcp->next, 0);
	free_reader(tcp);
}

/* Pages of the buffer are touched only as far as bytes reach, so small packets cost little memory. */
static int make_buffer(struct tcp_reader *tcp, uint64_t max_size, struct xps_fail *fail)
{
	if (max_size > UINT32_MAX)
		return xps_fail_set(fail, EINVAL, "allocate buffer", "max_size must be less than 4 GiB");
	tcp->framing.max_size = max_size;
	tcp->size = xps_framing_room(max_size) + READ_SIZE;
	tcp->buffer = mmap(NULL, tcp->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (tcp->buffer != MAP_FAILED)
		return 0;
	tcp->buffer = NULL;
	return xps_fail_set(fail, ENOMEM, "allocate buffer", "no memory for packets of %llu bytes",
			    (unsigned long long)max_size);
}

static bool has_option(int fd, int option, int value)
{
	int got = 0;
	socklen_t length = sizeof(got);

	return getsockopt(fd, SOL_SOCKET, option, &got, &length) == 0 && got == value;
}

static int set_up_socket(struct tcp_reader *tcp, int fd, struct xps_fail *fail)
{
	int flags;

	if (!has_option(fd, SO_TYPE, SOCK_STREAM) || !has_option(fd, SO_ACCEPTCONN, 1))
		return xps_fail_set(fail, EINVAL, "take socket", "not a listening stream socket: call listen() first");
	/* So that the worker does not wait in accept(2) if the connection that it was woken for has gone. */
	flags = fcntl(fd, F_GETFL);
	if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
		return xps_fail_set(fail, errno, "set O_NONBLOCK", "%s", strerror(errno));
	tcp->watch.watch.fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	if (tcp->watch.watch.fd < 0)
		return xps_fail_set(fail, errno, "duplicate socket", "%s", strerror(errno));
	return 0;
}

int xps_add_tcp_reader(struct xps_stream *stream, int fd, uint64_t max_size, struct xps_fail *fail)
{
	static const struct xps_reader_ops ops = { .name = "tcp", .poll = tcp_poll, .close = tcp_close };
	struct tcp_reader *tcp = calloc(1, sizeof(*tcp));
	int err;

	if (!tcp)
		return xps_fail_set(fail, ENOMEM, "allocate reader", "no memory");
	tcp->base.ops = &ops;
	tcp->base.watches = &tcp->watch;
	tcp->base.n_watches = 1;
	tcp->watch.watch.fd = -1;
	err = set_up_socket(tcp, fd, fail);
	if (!err)
		err = make_buffer(tcp, max_size, fail);
	if (!err)
		err = xps_reader_attach(stream, &tcp->base);
	if (!err)
		return 0;
	free_reader(tcp);
	if (err == -EPIPE)
		return 0;
	return fail->err ? err : xps_fail_set(fail, -err, "watch socket", "%s", strerror(-err));
}
