// SPDX-License-Identifier: Apache-2.0
/*
 * A port whose program and maps are xdpspead-helper's (helper_protocol.h).
 *
 * How it works
 *
 * Each operation is a request, and waits for its reply. How long depends on who waits. A user's thread that opens or
 * closes a reader waits long; if no reply comes then, the helper is given up, and all that follows fails at once. Who
 * asks for counters holds the lock of a stream, for which its worker may wait: that is short, what was known before will
 * do, and as long as the late reply is owed nobody waits again.
 *
 * What is busy is asked for again for a while, here and not in the helper, which waits for nobody.
 *
 * Threads: operations are called from any, and take turns on the connection.
 */
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <poll.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "helper_protocol.h"
#include "xdp_queue.h"

enum {
	PATIENCE_MS = 10000, /* of who opens and closes */
	GLANCE_MS = 100,     /* of who asks for counters */
	FRAMES_TRIES = 3,
	BUSY_TRIES = 25, /* as for what this process opens itself */
	BUSY_PAUSE_NS = 20 * 1000 * 1000,
};

struct xps_xdp_remote {
	int fd, lifeline_fd;
	ino_t inode, lifeline_inode;

	pthread_mutex_t lock; /* for everything below */
	uint32_t sequence;    /* of the last request */
	bool owed;            /* its reply has not come in time */
	bool given_up;
	struct xps_helper_request request;
	struct xps_helper_reply reply;
	int fds[XPS_HELPER_MAX_FDS]; /* that came with the reply */
	uint32_t n_fds;
};

static int64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* ---------------------------------------------------------------- requests and replies; caller locks */

static void close_fds(struct xps_xdp_remote *r)
{
	for (uint32_t i = 0; i < r->n_fds; i++)
		if (r->fds[i] >= 0)
			close(r->fds[i]);
	r->n_fds = 0;
}

static void give_up(struct xps_xdp_remote *r)
{
	r->given_up = true;
	/* So that the helper takes all back, if it should still live. */
	shutdown(r->fd, SHUT_RDWR);
}

/* One message, if there is one by then. 0, -ETIMEDOUT, or another errno. */
static int receive(struct xps_xdp_remote *r, int64_t until_ms)
{
	struct pollfd pollfd = { .fd = r->fd, .events = POLLIN };
	int64_t left = until_ms - now_ms();
	ssize_t n;
	int ready;

	do
		ready = poll(&pollfd, 1, left > 0 ? (int)left : 0);
	while (ready < 0 && errno == EINTR && (left = until_ms - now_ms()) > 0);
	if (ready <= 0)
		return -ETIMEDOUT;
	close_fds(r);
	n = xps_helper_receive(r->fd, &r->reply, sizeof(r->reply), r->fds, XPS_HELPER_MAX_FDS, &r->n_fds);
	/* The end was reported first, what was said before it comes now. */
	if (n == -ECONNRESET)
		n = xps_helper_receive(r->fd, &r->reply, sizeof(r->reply), r->fds, XPS_HELPER_MAX_FDS, &r->n_fds);
	if (n < 0)
		return (int)n;
	return n == (ssize_t)sizeof(r->reply) ? 0 : -EPIPE;
}

/* The reply to the last request; earlier ones, which came too late, do not count. */
static int receive_reply(struct xps_xdp_remote *r, int64_t until_ms)
{
	int err;

	do
		err = receive(r, until_ms);
	/* Sequence 0: the connection was not taken at all. */
	while (!err && r->reply.sequence && r->reply.sequence != r->sequence);
	r->owed = err == -ETIMEDOUT;
	return err;
}

/* Send r->request and wait for r->reply. 0 if it has come, whatever it says. */
static int exchange(struct xps_xdp_remote *r, uint32_t kind, int timeout_ms)
{
	const int64_t until_ms = now_ms() + timeout_ms;
	int err, sent;

	if (r->given_up)
		return -EPIPE;
	r->request.kind = kind;
	r->request.sequence = ++r->sequence ? r->sequence : ++r->sequence;
	sent = xps_helper_send(r->fd, &r->request, xps_helper_request_size(&r->request), NULL, 0);
	/* Who is refused finds the reason there all the same. */
	err = sent && sent != -EPIPE ? sent : receive_reply(r, until_ms);
	return err;
}

static int lost_fail(int err, struct xps_fail *fail)
{
	return xps_fail_set(fail, -err, "ask xdpspead-helper",
			    "xdpspead-helper %s (%s). See its log, and start it again.",
			    err == -ETIMEDOUT ? "does not answer" : "has ended or has closed the connection",
			    strerror(-err));
}

/* Negative errno, and `fail`, if the reply says no or does not come. The caller has filled the request. */
static int demand(struct xps_xdp_remote *r, uint32_t kind, struct xps_fail *fail)
{
	int err = exchange(r, kind, PATIENCE_MS);

	if (err) {
		give_up(r);
		return lost_fail(err, fail);
	}
	if (r->reply.result >= 0)
		return r->reply.result;
	r->reply.fail.step[sizeof(r->reply.fail.step) - 1] = 0;
	r->reply.fail.text[sizeof(r->reply.fail.text) - 1] = 0;
	return xps_fail_set(fail, -r->reply.result, r->reply.fail.step, "xdpspead-helper: %s", r->reply.fail.text);
}

/* Likewise; what is busy may be so only because the kernel, or the helper, is about to let go of it. */
static int demand_patiently(struct xps_xdp_remote *r, uint32_t kind, struct xps_fail *fail)
{
	const struct timespec pause = { .tv_nsec = BUSY_PAUSE_NS };
	int err = demand(r, kind, fail);

	for (int i = 1; i < BUSY_TRIES && err == -EBUSY; i++) {
		nanosleep(&pause, NULL);
		err = demand(r, kind, fail);
	}
	return err;
}

/* Ask for what is not worth waiting for, unless `last`. Whether r->reply has it. */
static bool glance(struct xps_xdp_remote *r, uint32_t kind, bool last)
{
	int err;

	if (!last && r->owed && receive_reply(r, 0))
		return false;
	err = exchange(r, kind, last ? PATIENCE_MS : GLANCE_MS);
	if (err && (last || err != -ETIMEDOUT))
		give_up(r);
	return !err && r->reply.result >= 0;
}

static bool lock_for_a_glance(struct xps_xdp_remote *r, bool last)
{
	struct timespec until;

	if (last)
		return !pthread_mutex_lock(&r->lock);
	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_nsec += GLANCE_MS * 1000000;
	until.tv_sec += until.tv_nsec / 1000000000;
	until.tv_nsec %= 1000000000;
	return !pthread_mutex_timedlock(&r->lock, &until);
}

/* ---------------------------------------------------------------- operations */

static int take_slot(struct xps_xdp_port *port, const char *owner, struct xps_fail *fail)
{
	struct xps_xdp_remote *r = port->remote;
	int slot;

	pthread_mutex_lock(&r->lock);
	memset(r->request.owner, 0, sizeof(r->request.owner));
	snprintf(r->request.owner, sizeof(r->request.owner), "%s", owner ? owner : "");
	slot = demand(r, XPS_HELPER_TAKE_SLOT, fail);
	if (slot >= XPS_STEER_SLOTS)
		slot = lost_fail(-EPROTO, fail);
	pthread_mutex_unlock(&r->lock);
	return slot;
}

/* It was put there when it was made. */
static int set_socket(struct xps_xdp_port *port, int slot, uint32_t queue, int fd, struct xps_fail *fail)
{
	(void)port;
	(void)slot;
	(void)queue;
	(void)fd;
	(void)fail;
	return 0;
}

static int add_endpoints(struct xps_xdp_port *port, int slot, const struct xps_xdp_endpoint *endpoints, uint32_t n,
			 struct xps_fail *fail)
{
	struct xps_xdp_remote *r = port->remote;
	int err;

	if (n > XPS_HELPER_MAX_ENDPOINTS)
		return xps_fail_set(
			fail, E2BIG, "steer endpoint",
			"Through xdpspead-helper a reader can have at most %d endpoints, not %u. Add several "
			"readers, to one stream or to several.",
			XPS_HELPER_MAX_ENDPOINTS, n);
	pthread_mutex_lock(&r->lock);
	r->request.endpoints.slot = (uint32_t)slot;
	r->request.endpoints.n = n;
	memcpy(r->request.endpoints.list, endpoints, n * sizeof(endpoints[0]));
	err = demand(r, XPS_HELPER_ADD_ENDPOINTS, fail);
	pthread_mutex_unlock(&r->lock);
	return err;
}

/* If that fails the helper has gone, or takes all back because the connection ends. */
static void of_slot(struct xps_xdp_port *port, uint32_t kind, int slot)
{
	struct xps_xdp_remote *r = port->remote;
	struct xps_fail ignored;

	pthread_mutex_lock(&r->lock);
	memset(&r->request.slot, 0, sizeof(r->request.slot));
	r->request.slot.slot = (uint32_t)slot;
	demand(r, kind, &ignored);
	pthread_mutex_unlock(&r->lock);
}

static void drop_endpoints(struct xps_xdp_port *port, int slot)
{
	of_slot(port, XPS_HELPER_DROP_ENDPOINTS, slot);
}

static void clear_slot(struct xps_xdp_port *port, int slot)
{
	of_slot(port, XPS_HELPER_CLEAR_SLOT, slot);
}

static void give_slot(struct xps_xdp_port *port, int slot)
{
	/* First: once it is given it may be another reader's. */
	pthread_mutex_lock(&port->lock);
	port->slots[slot] = (struct xps_xdp_slot){ 0 };
	pthread_mutex_unlock(&port->lock);
	of_slot(port, XPS_HELPER_GIVE_SLOT, slot);
}

static void set_queues(struct xps_xdp_remote *r, int slot, uint32_t queue, uint32_t n)
{
	r->request.queues = (struct xps_helper_queues){ .slot = (uint32_t)slot, .queue = queue, .n = n };
}

static void read_counters(struct xps_xdp_port *port, int slot, bool last, struct xps_steer_counters *counters)
{
	const uint32_t n_queues = (uint32_t)port->config.n_queues;
	struct xps_xdp_remote *r = port->remote;

	if (!lock_for_a_glance(r, last))
		return;
	for (uint32_t queue = 0, n; queue < n_queues; queue += n) {
		n = n_queues - queue < XPS_HELPER_MAX_COUNTERS ? n_queues - queue : XPS_HELPER_MAX_COUNTERS;
		set_queues(r, slot, queue, n);
		if (!glance(r, XPS_HELPER_COUNTERS, last))
			break;
		memcpy(counters + queue, r->reply.counters, n * sizeof(counters[0]));
	}
	pthread_mutex_unlock(&r->lock);
}

static void read_passed(struct xps_xdp_port *port, struct xps_steer_passed *passed)
{
	struct xps_xdp_remote *r = port->remote;

	if (!lock_for_a_glance(r, false))
		return;
	if (glance(r, XPS_HELPER_PASSED, false))
		*passed = r->reply.passed;
	pthread_mutex_unlock(&r->lock);
}

/* ---------------------------------------------------------------- queues and sockets */

/* What came with the reply is the caller's. -1: it did not. */
static int take_fd(struct xps_xdp_remote *r, uint32_t i)
{
	int fd = -1;

	if (i < r->n_fds) {
		fd = r->fds[i];
		r->fds[i] = -1;
	}
	return fd;
}

static int map_fill(struct xps_xdp_queue *queue, struct xps_fail *fail)
{
	struct xdp_mmap_offsets offsets;
	socklen_t length = sizeof(offsets);
	int err = 0;

	if (getsockopt(queue->fd, SOL_XDP, XDP_MMAP_OFFSETS, &offsets, &length))
		err = -errno;
	if (!err)
		err = xps_xdp_ring_map(&queue->fill, queue->fd, &offsets.fr, queue->ring_size, sizeof(uint64_t),
				       XDP_UMEM_PGOFF_FILL_RING);
	if (err)
		return xps_fail_set(fail, -err, "map ring", "Cannot map the fill ring: %s.%s", strerror(-err),
				    err == -EBUSY ? " For that xdpspead-helper needs Linux 6.4." : "");
	/* The helper has put all frames in. */
	queue->fill.mine = __atomic_load_n(queue->fill.producer, __ATOMIC_ACQUIRE);
	return 0;
}

/* What the helper says, before sizes are computed from it. */
static bool is_sane(const struct xps_helper_queue_opened *q)
{
	return (q->frame_size == XPS_XDP_SMALL_FRAME || q->frame_size == XPS_XDP_LARGE_FRAME) && q->n_frames &&
	       q->n_frames <= XPS_XDP_MAX_FRAMES && q->ring_size >= q->n_frames &&
	       q->ring_size <= 2 * XPS_XDP_MAX_FRAMES && !(q->ring_size & (q->ring_size - 1));
}

static int use_queue(struct xps_xdp_queue *queue, struct xps_xdp_remote *r, struct xps_fail *fail)
{
	const struct xps_helper_queue_opened *q = &r->reply.queue;
	const struct xps_xdp_place place = { .name = queue->port->name, .queue = queue->index };
	const int frames_fd = take_fd(r, 0);

	queue->fd = take_fd(r, 1);
	if (frames_fd >= 0 && queue->fd >= 0 && is_sane(q)) {
		queue->frame_size = q->frame_size;
		queue->n_frames = q->n_frames;
		queue->ring_size = q->ring_size;
		queue->zero_copy = q->zero_copy;
		queue->multi_buffer = q->multi_buffer;
		queue->frames = xps_xdp_frames_map_given((size_t)q->n_frames * q->frame_size, frames_fd, &place, fail);
	} else {
		lost_fail(-EPROTO, fail);
	}
	if (frames_fd >= 0)
		close(frames_fd);
	return queue->frames ? map_fill(queue, fail) : -fail->err;
}

/* The helper has set memory aside, and wants it to be there before it goes on. Whether there was any. */
static bool look_at_frames(struct xps_xdp_queue *queue, struct xps_xdp_remote *r)
{
	const struct xps_xdp_place place = { .name = queue->port->name, .queue = queue->index };
	const int fd = take_fd(r, 0);
	struct xps_fail ignored;
	uint8_t *frames = NULL;
	struct stat status;

	if (fd < 0)
		return false;
	if (!fstat(fd, &status) && status.st_size > 0)
		frames = xps_xdp_frames_map_given((size_t)status.st_size, fd, &place, &ignored);
	if (frames)
		xps_xdp_frames_unmap(frames, (size_t)status.st_size);
	close(fd);
	return frames;
}

/* Caller locks. */
static int demand_queue(struct xps_xdp_queue *queue, struct xps_xdp_remote *r, struct xps_fail *fail)
{
	int err = demand_patiently(r, XPS_HELPER_OPEN_QUEUE, fail);

	for (int i = 0; i < FRAMES_TRIES && err == -EAGAIN && look_at_frames(queue, r); i++)
		err = demand_patiently(r, XPS_HELPER_OPEN_QUEUE, fail);
	return err;
}

static int open_queue(struct xps_xdp_queue *queue, const struct xps_xdp_queue_config *config, struct xps_fail *fail)
{
	struct xps_xdp_remote *r = queue->port->remote;
	int err;

	pthread_mutex_lock(&r->lock);
	r->request.open_queue = (struct xps_helper_open_queue){
		.slot = (uint32_t)config->slot,
		.queue = queue->index,
		.buffer_size = config->buffer_size,
		.zero_copy = config->zero_copy,
	};
	err = demand_queue(queue, r, fail);
	if (!err)
		err = use_queue(queue, r, fail);
	pthread_mutex_unlock(&r->lock);
	return err;
}

static void close_queue(struct xps_xdp_queue *queue)
{
	struct xps_xdp_remote *r = queue->port->remote;
	struct xps_fail ignored;

	pthread_mutex_lock(&r->lock);
	set_queues(r, 0, queue->index, 0);
	demand(r, XPS_HELPER_CLOSE_QUEUE, &ignored);
	pthread_mutex_unlock(&r->lock);
}

static int open_socket(struct xps_xdp_queue *queue, int slot, struct xps_fail *fail)
{
	struct xps_xdp_remote *r = queue->port->remote;
	int err, fd = -1;

	pthread_mutex_lock(&r->lock);
	set_queues(r, slot, queue->index, 0);
	err = demand(r, XPS_HELPER_OPEN_SOCKET, fail);
	if (!err) {
		fd = take_fd(r, 0);
		err = fd < 0 ? lost_fail(-EPROTO, fail) : 0;
	}
	pthread_mutex_unlock(&r->lock);
	return err ? err : fd;
}

/* ---------------------------------------------------------------- the connection */

static int lifeline(const struct xps_xdp_port *port)
{
	return port->remote->lifeline_fd;
}

static void close_if_same(int fd, ino_t inode)
{
	struct stat status;

	if (!fstat(fd, &status) && status.st_ino == inode)
		close(fd);
}

/* As long as the child has it the helper would not see that the parent has gone. */
static void forget(struct xps_xdp_port *port)
{
	const struct xps_xdp_remote *r = port->remote;

	close_if_same(r->fd, r->inode);
	close_if_same(r->lifeline_fd, r->lifeline_inode);
}

static void remote_free(struct xps_xdp_remote *r)
{
	/* In a forked child these may stand for something else: forget() has closed them. */
	close_if_same(r->fd, r->inode);
	close_if_same(r->lifeline_fd, r->lifeline_inode);
	close_fds(r);
	pthread_mutex_destroy(&r->lock);
	free(r);
}

static void unload(struct xps_xdp_port *port)
{
	remote_free(port->remote);
}

static const struct xps_xdp_port_ops remote_ops = {
	.take_slot = take_slot,
	.set_socket = set_socket,
	.add_endpoints = add_endpoints,
	.drop_endpoints = drop_endpoints,
	.clear_slot = clear_slot,
	.give_slot = give_slot,
	.counters = read_counters,
	.passed = read_passed,
	.open_queue = open_queue,
	.close_queue = close_queue,
	.open_socket = open_socket,
	.lifeline = lifeline,
	.forget = forget,
	.unload = unload,
};

static int connect_fail(int err, const char *path, struct xps_fail *fail)
{
	const char *help = "";

	if (err == ENOENT || err == ECONNREFUSED)
		help = " Is it running? With systemd: 'systemctl start xdpspead-helper'.";
	else if (err == EACCES)
		help = " The socket's owner, group and mode say who may connect.";
	else if (err == EAGAIN)
		help = " Too many processes are connecting to it.";
	return xps_fail_set(fail, err, "connect to xdpspead-helper", "Cannot connect to xdpspead-helper at %s: %s.%s",
			    path, strerror(err), help);
}

/* Others may be connecting in great numbers. */
static int connect_patiently(int fd, const struct sockaddr_un *address)
{
	const struct timespec pause = { .tv_nsec = BUSY_PAUSE_NS };
	int err = connect(fd, (const struct sockaddr *)address, sizeof(*address)) ? errno : 0;

	for (int i = 1; i < BUSY_TRIES && err == EAGAIN; i++) {
		nanosleep(&pause, NULL);
		err = connect(fd, (const struct sockaddr *)address, sizeof(*address)) ? errno : 0;
	}
	return err;
}

static int connect_to(const char *path, struct xps_fail *fail)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int err, fd;

	if (strlen(path) >= sizeof(address.sun_path))
		return connect_fail(ENAMETOOLONG, path, fail);
	strcpy(address.sun_path, path);
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return connect_fail(errno, path, fail);
	err = connect_patiently(fd, &address);
	if (!err)
		return fd;
	close(fd);
	return connect_fail(err, path, fail);
}

static ino_t inode_of(int fd)
{
	struct stat status;

	return fstat(fd, &status) ? 0 : status.st_ino;
}

static struct xps_xdp_remote *remote_new(const char *path, struct xps_fail *fail)
{
	struct xps_xdp_remote *r = calloc(1, sizeof(*r));

	if (!r) {
		xps_fail_set(fail, ENOMEM, "allocate", "Not enough memory for the connection to xdpspead-helper.");
		return NULL;
	}
	pthread_mutex_init(&r->lock, NULL);
	r->lifeline_fd = -1;
	r->fd = connect_to(path, fail);
	if (r->fd >= 0) {
		r->inode = inode_of(r->fd);
		return r;
	}
	pthread_mutex_destroy(&r->lock);
	free(r);
	return NULL;
}

/* Ask for the interface; its name in r->request.open is set. */
static int open_interface(struct xps_xdp_remote *r, int mode, struct xps_fail *fail)
{
	struct stat namespace = { 0 };
	int err;

	stat("/proc/thread-self/ns/net", &namespace);
	r->request.open.version = XPS_HELPER_VERSION;
	r->request.open.mode = mode;
	r->request.open.net_namespace = namespace.st_ino;
	err = demand_patiently(r, XPS_HELPER_OPEN, fail);
	if (err)
		return err;
	r->lifeline_fd = take_fd(r, 0);
	if (r->lifeline_fd < 0 || r->reply.opened.n_queues < 1 || r->reply.opened.n_queues > XPS_XDP_MAX_QUEUES)
		return lost_fail(-EPROTO, fail);
	r->lifeline_inode = inode_of(r->lifeline_fd);
	return 0;
}

static struct xps_xdp_port *port_of(struct xps_xdp_remote *r, const struct xps_xdp_port_config *config)
{
	const struct xps_helper_opened *opened = &r->reply.opened;
	struct xps_xdp_port_config full = *config;
	struct xps_xdp_port *port;

	full.n_queues = opened->n_queues;
	full.mtu = opened->mtu;
	port = xps_xdp_port_alloc(&full, &remote_ops);
	if (!port)
		return NULL;
	port->remote = r;
	port->program.mode = opened->mode;
	port->program.id = opened->program_id;
	port->program.loaded.frags = opened->frags;
	return port;
}

struct xps_xdp_port *xps_xdp_port_through(const char *path, const struct xps_xdp_port_config *config,
					  struct xps_fail *fail)
{
	struct xps_xdp_port *port = NULL;
	struct xps_xdp_remote *r = remote_new(path, fail);

	if (!r)
		return NULL;
	if (!if_indextoname((unsigned)config->ifindex, r->request.open.interface)) {
		xps_fail_set(fail, ENODEV, "find interface",
			     "There is no interface with index %d in this network namespace.", config->ifindex);
	} else if (!open_interface(r, config->mode, fail)) {
		port = port_of(r, config);
		if (!port)
			xps_fail_set(fail, ENOMEM, "allocate", "Not enough memory for the interface's state.");
	}
	if (!port)
		remote_free(r);
	return port;
}
