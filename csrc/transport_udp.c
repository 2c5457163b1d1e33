// SPDX-License-Identifier: Apache-2.0
/*
 * Reads datagrams from a bound UDP socket, up to 64 messages a system call. With UDP_GRO the kernel may hand over
 * several datagrams of one sender glued together as one message; they are taken apart here.
 *
 * How it works
 *
 * A poll reads one batch of messages into fixed buffers and pushes them a few views at a time. `message` and `offset`
 * say which datagram of the batch becomes the next view. Views that the stream does not take because it is blocked stay
 * as they are until it goes on, so that every datagram is looked at, and counted if it is bad, once.
 *
 * What the kernel dropped SO_MEMINFO tells at any time: it is asked after each poll, for the log, and with the statistics,
 * which are therefore exact even if nothing is received any more. Where there is no SO_MEMINFO, SO_RXQ_OVFL comes with the
 * messages. That costs a tenth of all CPU time, and knows only what was dropped before the message was queued.
 */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "bits.h"
#include "transport.h"

#ifndef SOL_UDP
#define SOL_UDP 17
#endif
#ifndef UDP_GRO
#define UDP_GRO 104
#endif
#ifndef SO_MEMINFO /* Linux 4.12 */
#define SO_MEMINFO 55
#endif
/* From linux/sock_diag.h: the entry of SO_MEMINFO's array of uint32_t, and how many there are at least. */
#define MEMINFO_DROPS 8
#define MEMINFO_LENGTH 9

#define MESSAGES 64
#define MAX_DATAGRAM 65536
/* More than 64 KiB apart by an odd number of cache lines: at a power of two all messages would share a cache set. */
#define SPACING (MAX_DATAGRAM + 4096 + 3 * XPS_CACHE_LINE)
/* Batches between two turns of the other readers on the loop. */
#define BATCHES_PER_POLL 4

struct udp_reader {
	struct xps_reader base;
	struct xps_reader_watch watch;
	uint64_t max_size;
	bool switched_gro, switched_ovfl; /* options that were off before */

	/* The kernel's totals are mod 2^32, since the socket was made. */
	uint32_t drops_logged;  /* total when the log was last told: the worker's */
	bool drops_from_socket; /* SO_MEMINFO works */
	uint32_t drops_counted; /* total when add_stats last asked: under the stream's lock, as is the next */
	uint64_t n_drops;       /* since the reader was added */

	bool in_batch;
	uint32_t n_messages, message; /* in the batch, and where we are */
	uint32_t offset;              /* in the message */
	struct xps_view views[MESSAGES];
	uint32_t n_views, taken; /* views made, and those of them that the stream has taken */
	struct mmsghdr headers[MESSAGES];
	struct iovec iovecs[MESSAGES];
	struct {
		/* Room for UDP_GRO (int) and SO_RXQ_OVFL (uint32_t). */
		_Alignas(struct cmsghdr) char bytes[CMSG_SPACE(sizeof(int)) + CMSG_SPACE(sizeof(uint32_t))];
	} control[MESSAGES];
	uint8_t *buffer;
	uint32_t message_size; /* room for one message */
};

/* What the kernel says beside a message. */
struct extras {
	uint32_t segment; /* bytes of each datagram but the last, 0: it is one datagram */
	uint32_t drops;
	bool has_drops;
};

static struct extras read_extras(struct msghdr *message)
{
	struct extras extras = { 0 };

	for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c)) {
		if (c->cmsg_level == SOL_UDP && c->cmsg_type == UDP_GRO) {
			int segment;

			memcpy(&segment, CMSG_DATA(c), sizeof(segment));
			extras.segment = segment > 0 ? (uint32_t)segment : 0;
		} else if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SO_RXQ_OVFL) {
			memcpy(&extras.drops, CMSG_DATA(c), sizeof(extras.drops));
			extras.has_drops = true;
		}
	}
	return extras;
}

/* Messages that several cores queued at once may come with totals that step back a little. */
static void note_drops(struct udp_reader *udp, uint32_t total)
{
	uint32_t more = total - udp->drops_logged;

	if (!more || more > INT32_MAX)
		return;
	udp->drops_logged = total;
	xps_reader_log_drops(&udp->base, more);
	if (!udp->drops_from_socket)
		xps_reader_count(&udp->base, XPS_STAT_UDP_KERNEL_DROPS, more);
}

/* All that the socket's kernel side has dropped so far, whether or not a message has come since. */
static bool read_drops(int fd, uint32_t *total)
{
	uint32_t info[MEMINFO_LENGTH];
	socklen_t size = sizeof(info);

	if (getsockopt(fd, SOL_SOCKET, SO_MEMINFO, info, &size) < 0 || size < sizeof(info))
		return false;
	*total = info[MEMINFO_DROPS];
	return true;
}

/* Any thread. The stream's lock is held. */
static void udp_add_stats(struct xps_reader *reader, uint64_t *stats)
{
	struct udp_reader *udp = XPS_CONTAINER_OF(reader, struct udp_reader, base);
	uint32_t total;

	if (!udp->drops_from_socket)
		return;
	if (read_drops(udp->watch.watch.fd, &total)) {
		udp->n_drops += total - udp->drops_counted;
		udp->drops_counted = total;
	}
	stats[XPS_STAT_UDP_KERNEL_DROPS] += udp->n_drops;
}

/* Returns the messages received, 0 if there are none now or the socket has an error. */
static uint32_t receive(struct udp_reader *udp)
{
	int n;

	for (uint32_t i = 0; i < MESSAGES; i++) {
		udp->headers[i].msg_hdr.msg_controllen = sizeof(udp->control[i].bytes);
		udp->headers[i].msg_hdr.msg_flags = 0;
	}
	do
		n = recvmmsg(udp->watch.watch.fd, udp->headers, MESSAGES, MSG_DONTWAIT, NULL);
	while (n < 0 && errno == EINTR);
	/* Anything else is an error that the network reported for a socket that others use too: it has passed. */
	if (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK)
		xps_reader_log_error(&udp->base, errno);
	return n > 0 ? (uint32_t)n : 0;
}

/* The next datagram of the batch as a view. False: those that can be used are all out. */
static bool next_view(struct udp_reader *udp, struct xps_view *view)
{
	while (udp->message < udp->n_messages) {
		struct mmsghdr *header = &udp->headers[udp->message];
		const uint8_t *data = udp->iovecs[udp->message].iov_base;
		struct extras extras = read_extras(&header->msg_hdr);
		uint32_t left = header->msg_len - udp->offset;
		uint32_t length = extras.segment && extras.segment < left ? extras.segment : left;
		bool truncated = header->msg_hdr.msg_flags & MSG_TRUNC && length == left;

		if (unlikely(extras.has_drops) && udp->offset == 0 && !udp->drops_from_socket)
			note_drops(udp, extras.drops);
		*view = (struct xps_view){ .data = data + udp->offset, .length = length };
		udp->offset += length;
		if (udp->offset == header->msg_len) {
			udp->message++;
			udp->offset = 0;
		}
		if (!truncated && length <= udp->max_size)
			return true;
		xps_reader_count(&udp->base, XPS_STAT_UDP_PACKETS, 1);
		xps_reader_count(&udp->base, XPS_STAT_TRUNCATED_DATAGRAM, 1);
	}
	return false;
}

static void make_views(struct udp_reader *udp)
{
	udp->n_views = udp->taken = 0;
	while (udp->n_views < MESSAGES && next_view(udp, &udp->views[udp->n_views]))
		udp->n_views++;
	xps_reader_count(&udp->base, XPS_STAT_UDP_PACKETS, udp->n_views);
}

/* Push what is left of the batch. Returns false if the stream did not take all. */
static bool push_batch(struct udp_reader *udp)
{
	for (;;) {
		if (udp->taken == udp->n_views)
			make_views(udp);
		if (udp->n_views == 0)
			return true;
		udp->taken += xps_batch_push(&udp->base, udp->views + udp->taken, udp->n_views - udp->taken);
		if (udp->taken < udp->n_views)
			return false;
	}
}

static enum xps_poll read_batches(struct udp_reader *udp)
{
	struct xps_reader *reader = &udp->base;

	for (int i = 0; i < BATCHES_PER_POLL; i++) {
		if (!udp->in_batch) {
			udp->n_messages = receive(udp);
			if (!udp->n_messages)
				return XPS_POLL_WAIT;
			udp->message = udp->offset = 0;
			udp->in_batch = true;
			xps_batch_begin(reader);
		}
		if (!push_batch(udp))
			return XPS_POLL_BLOCKED;
		udp->in_batch = false;
		xps_batch_end(reader);
		if (xps_reader_ended(reader))
			return XPS_POLL_END;
		if (udp->n_messages < MESSAGES)
			return XPS_POLL_WAIT;
	}
	return XPS_POLL_AGAIN;
}

static enum xps_poll udp_poll(struct xps_reader *reader)
{
	struct udp_reader *udp = XPS_CONTAINER_OF(reader, struct udp_reader, base);
	const enum xps_poll next = read_batches(udp);
	uint32_t drops;

	if (udp->drops_from_socket && read_drops(udp->watch.watch.fd, &drops))
		note_drops(udp, drops);
	return next;
}

/* The user may have the socket too, and go on with it. */
static void restore_options(const struct udp_reader *udp)
{
	const int off = 0;

	if (udp->switched_gro)
		setsockopt(udp->watch.watch.fd, SOL_UDP, UDP_GRO, &off, sizeof(off));
	if (udp->switched_ovfl)
		setsockopt(udp->watch.watch.fd, SOL_SOCKET, SO_RXQ_OVFL, &off, sizeof(off));
}

static void free_reader(struct udp_reader *udp)
{
	if (udp->watch.watch.fd >= 0) {
		restore_options(udp);
		close(udp->watch.watch.fd);
	}
	if (udp->buffer)
		munmap(udp->buffer, (size_t)MESSAGES * SPACING);
	free(udp);
}

static void udp_close(struct xps_reader *reader)
{
	struct udp_reader *udp = XPS_CONTAINER_OF(reader, struct udp_reader, base);

	/* What the statistics count is what the log tells. */
	if (udp->drops_from_socket)
		note_drops(udp, udp->drops_counted);
	free_reader(udp);
}

/* Pages of the buffer are touched only as far as messages reach, so small packets cost little memory. */
static int make_buffers(struct udp_reader *udp, struct xps_fail *fail)
{
	udp->buffer =
		mmap(NULL, (size_t)MESSAGES * SPACING, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (udp->buffer == MAP_FAILED) {
		udp->buffer = NULL;
		return xps_fail_set(fail, ENOMEM, "allocate buffers", "no memory for %u datagrams", MESSAGES);
	}
	for (uint32_t i = 0; i < MESSAGES; i++) {
		udp->iovecs[i] = (struct iovec){ udp->buffer + (size_t)i * SPACING, udp->message_size };
		udp->headers[i].msg_hdr = (struct msghdr){
			.msg_iov = &udp->iovecs[i],
			.msg_iovlen = 1,
			.msg_control = udp->control[i].bytes,
		};
	}
	return 0;
}

/* Returns whether the option is on now, and notes whether it had to be switched. */
static bool switch_on(int fd, int level, int option, bool *switched)
{
	const int on = 1;
	int before = 0;
	socklen_t length = sizeof(before);

	if (getsockopt(fd, level, option, &before, &length) == 0 && before)
		return true;
	*switched = setsockopt(fd, level, option, &on, sizeof(on)) == 0;
	return *switched;
}

static int set_up_socket(struct udp_reader *udp, int fd, struct xps_fail *fail)
{
	int type = 0;
	socklen_t length = sizeof(type);

	if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length) < 0 || type != SOCK_DGRAM)
		return xps_fail_set(fail, EINVAL, "take socket", "not a datagram socket");
	udp->watch.watch.fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	if (udp->watch.watch.fd < 0)
		return xps_fail_set(fail, errno, "duplicate socket", "%s", strerror(errno));
	udp->drops_from_socket = read_drops(fd, &udp->drops_counted);
	udp->drops_logged = udp->drops_counted;
	/* Both are improvements that old kernels lack. Without GRO a message is a datagram and may be cut at max_size. */
	if (!udp->drops_from_socket)
		switch_on(fd, SOL_SOCKET, SO_RXQ_OVFL, &udp->switched_ovfl);
	if (switch_on(fd, SOL_UDP, UDP_GRO, &udp->switched_gro))
		udp->message_size = MAX_DATAGRAM;
	else
		udp->message_size = (uint32_t)xps_min_u64(udp->max_size + 1, MAX_DATAGRAM);
	return 0;
}

/* How many packets the socket holds at least: what a long one is charged for by drivers that give it a page. */
static uint32_t room_of(int fd)
{
	const int charged = 4096 + 512;
	int bytes = 0;
	socklen_t length = sizeof(bytes);

	if (getsockopt(fd, SOL_SOCKET, SO_RCVBUF, &bytes, &length) < 0)
		return 0;
	return bytes < charged ? 1 : (uint32_t)(bytes / charged);
}

int xps_add_udp_reader(struct xps_stream *stream, int fd, uint64_t max_size, struct xps_fail *fail)
{
	static const struct xps_reader_ops ops = {
		.name = "udp", .lossy = true, .poll = udp_poll, .close = udp_close, .add_stats = udp_add_stats
	};
	struct udp_reader *udp = calloc(1, sizeof(*udp));
	int err;

	if (!udp)
		return xps_fail_set(fail, ENOMEM, "allocate reader", "no memory");
	udp->base.ops = &ops;
	udp->base.watches = &udp->watch;
	udp->base.n_watches = 1;
	udp->watch.watch.fd = -1;
	udp->max_size = max_size;
	err = set_up_socket(udp, fd, fail);
	if (!err)
		err = make_buffers(udp, fail);
	if (!err) {
		udp->base.room = room_of(udp->watch.watch.fd);
		err = xps_reader_attach(stream, &udp->base);
	}
	if (!err)
		return 0;
	free_reader(udp);
	if (err == -EPIPE)
		return 0;
	return fail->err ? err : xps_fail_set(fail, -err, "watch socket", "%s", strerror(-err));
}
