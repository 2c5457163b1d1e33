// SPDX-License-Identifier: Apache-2.0
/*
 * Packets one after the other through a TCP connection.
 *
 * The kernel may take a part of a packet: how much is remembered, and the rest goes first the next time. After an error
 * that part cannot be completed, so nothing else can be sent.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "bits.h"
#include "writer.h"

#define BATCH 64
#define MAX_SLICES IOV_MAX /* for one call */

struct tcp_writer {
	struct xps_writer base;
	uint64_t begun; /* bytes of the first packet that the kernel has already */
	int broken;     /* negative errno once the connection can no longer be used */
	struct iovec slices[MAX_SLICES];
};

/* Add slices of a packet, but for its first `skip` bytes, as far as there is room. Returns how many there are then. */
static uint32_t add_slices(struct iovec *slices, uint32_t n, const struct xps_out_packet *packet, uint64_t skip)
{
	for (uint32_t i = 0; i < packet->n_slices && n < MAX_SLICES; i++) {
		const struct iovec *slice = &packet->slices[i];

		if (skip >= slice->iov_len) {
			skip -= slice->iov_len;
			continue;
		}
		slices[n].iov_base = (uint8_t *)slice->iov_base + skip;
		slices[n++].iov_len = slice->iov_len - skip;
		skip = 0;
	}
	return n;
}

static uint32_t gather(struct tcp_writer *tcp, const struct xps_write *packets, uint32_t n)
{
	uint32_t n_slices = 0;

	for (uint32_t i = 0; i < n && n_slices < MAX_SLICES; i++)
		n_slices = add_slices(tcp->slices, n_slices, &packets[i].packet, i ? 0 : tcp->begun);
	return n_slices;
}

/* How many packets are complete with `bytes` more. */
static int complete(struct tcp_writer *tcp, const struct xps_write *packets, uint32_t n, uint64_t bytes)
{
	uint32_t done = 0;

	bytes += tcp->begun;
	while (done < n && bytes >= packets[done].packet.length)
		bytes -= packets[done++].packet.length;
	tcp->begun = bytes;
	return (int)done;
}

static int tcp_write(struct xps_writer *writer, const struct xps_write *packets, uint32_t n)
{
	struct tcp_writer *tcp = XPS_CONTAINER_OF(writer, struct tcp_writer, base);
	struct msghdr message = { .msg_iov = tcp->slices };
	ssize_t sent;
	int done;

	if (tcp->broken)
		return tcp->broken;
	message.msg_iovlen = gather(tcp, packets, n);
	do
		sent = sendmsg(writer->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
	while (sent < 0 && errno == EINTR);
	if (sent < 0) {
		if (errno == EAGAIN)
			return -EAGAIN;
		tcp->broken = -errno;
		return tcp->broken;
	}
	done = complete(tcp, packets, n, (uint64_t)sent);
	return done ? done : -EAGAIN;
}

static void tcp_end(struct xps_writer *writer)
{
	close(writer->fd);
	writer->fd = -1;
}

static void tcp_close(struct xps_writer *writer)
{
	if (writer->fd >= 0)
		close(writer->fd);
	free(XPS_CONTAINER_OF(writer, struct tcp_writer, base));
}

struct xps_sender *xps_tcp_sender_new(struct xps_pool *pool, const struct xps_sender_config *config, int fd,
				      struct xps_fail *fail)
{
	static const struct xps_writer_ops ops = {
		.name = "tcp", .write = tcp_write, .end = tcp_end, .close = tcp_close, .forget = tcp_close
	};
	struct tcp_writer *tcp;

	tcp = calloc(1, sizeof(*tcp));
	if (!tcp) {
		xps_fail_set(fail, ENOMEM, "make stream", "no memory");
		return NULL;
	}
	tcp->base = (struct xps_writer){
		.ops = &ops,
		.fd = fcntl(fd, F_DUPFD_CLOEXEC, 0),
		.n_substreams = 1,
		.batch = BATCH,
	};
	if (tcp->base.fd < 0) {
		xps_fail_set(fail, errno, "duplicate socket", "%s", strerror(errno));
		free(tcp);
		return NULL;
	}
	return xps_sender_new(pool, config, &tcp->base, fail);
}
