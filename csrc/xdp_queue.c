// SPDX-License-Identifier: Apache-2.0
#include "xdp_queue.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bits.h"

enum {
	KERNEL_HEADROOM = 256, /* XDP_PACKET_HEADROOM: the kernel keeps it free at the start of each frame */
	LINK_OVERHEAD = 22,    /* Ethernet header and two VLAN tags */
	MAX_MTU = XPS_XDP_LARGE_FRAME - KERNEL_HEADROOM - LINK_OVERHEAD, /* of packets that fit one frame */
	NATIVE_MTU = 3000, /* that of one frame for any driver: some keep room at its end */
	MIN_FRAMES = 64,
};

/* ---------------------------------------------------------------- memory */

/* What a frame must hold to hold any packet of the interface. */
static uint64_t packet_room(const struct xps_xdp_port *port)
{
	return (uint64_t)port->config.mtu + LINK_OVERHEAD + KERNEL_HEADROOM;
}

/* One frame is not all: without multi-buffer drivers have limits of their own, which differ. */
static const char *native_limit(const struct xps_xdp_port *port)
{
	return port->config.mode == XPS_XDP_GENERIC ? "" : " (to 3000 or less for native mode)";
}

static int choose_frames(struct xps_xdp_queue *queue, uint64_t buffer_size, struct xps_fail *fail)
{
	static const char step[] = "choose frames";
	const struct xps_xdp_port *port = queue->port;
	uint64_t n;

	/* Zero-copy drivers want the page: some cut packets short in smaller frames. */
	queue->frame_size = !queue->zero_copy && packet_room(port) <= XPS_XDP_SMALL_FRAME ? XPS_XDP_SMALL_FRAME
											  : XPS_XDP_LARGE_FRAME;
	queue->multi_buffer = packet_room(port) > XPS_XDP_LARGE_FRAME;
	if (queue->multi_buffer && !port->program.loaded.frags)
		return xps_fail_set(
			fail, EMSGSIZE, step,
			"%s has MTU %d, and packets that do not fit one frame (multi-buffer) are not to be had "
			"here: they need Linux 6.6 and libbpf 0.6. Set the MTU to %d or less%s.",
			port->name, port->config.mtu, MAX_MTU, native_limit(port));
	if (buffer_size > (uint64_t)XPS_XDP_MAX_FRAMES * queue->frame_size)
		return xps_fail_set(fail, EINVAL, step, "buffer_size is %llu; it can be at most %llu per queue.",
				    (unsigned long long)buffer_size,
				    (unsigned long long)XPS_XDP_MAX_FRAMES * queue->frame_size);
	n = (buffer_size + queue->frame_size - 1) / queue->frame_size;
	queue->n_frames = (uint32_t)xps_max_u64(n, MIN_FRAMES);
	queue->ring_size = MIN_FRAMES;
	while (queue->ring_size < queue->n_frames)
		queue->ring_size *= 2;
	return 0;
}

int xps_xdp_queue_max_mtu(const struct xps_xdp_queue *queue)
{
	return queue->multi_buffer ? 0 : (int)queue->frame_size - KERNEL_HEADROOM - LINK_OVERHEAD;
}

static struct xps_xdp_place place_of(const struct xps_xdp_queue *queue)
{
	return (struct xps_xdp_place){
		.ifindex = queue->port->config.ifindex,
		.name = queue->port->name,
		.queue = queue->index,
		.once = queue->port->config.for_others,
		.n_alike = queue->n_alike,
	};
}

static size_t frames_bytes(const struct xps_xdp_queue *queue)
{
	return (size_t)queue->n_frames * queue->frame_size;
}

static void fill_all(struct xps_xdp_queue *queue)
{
	for (uint32_t i = 0; i < queue->n_frames; i++)
		*xps_xdp_fill_entry(&queue->fill, i) = (uint64_t)i * queue->frame_size;
	xps_xdp_fill_submit(&queue->fill, queue->n_frames);
}

/* ---------------------------------------------------------------- base socket */

/* Everything up to bind. The FILL ring is full before, because some drivers never look again at one that was empty. */
static int make_socket(struct xps_xdp_queue *queue, struct xps_fail *fail)
{
	const struct xps_xdp_place place = place_of(queue);
	struct xdp_mmap_offsets offsets;
	socklen_t length = sizeof(offsets);
	int err;

	queue->fd = xps_xdp_fd_open(fail);
	if (queue->fd < 0)
		return queue->fd;
	err = xps_xdp_frames_register(queue->fd, queue->frames, frames_bytes(queue), queue->frame_size, &place, fail);
	if (!err)
		err = xps_xdp_ring_make(queue->fd, XDP_UMEM_FILL_RING, "fill", queue->ring_size, fail);
	/* Never used, but the kernel wants them. */
	if (!err)
		err = xps_xdp_ring_make(queue->fd, XDP_UMEM_COMPLETION_RING, "completion", 2, fail);
	if (!err)
		err = xps_xdp_ring_make(queue->fd, XDP_RX_RING, "RX", 2, fail);
	if (err)
		return err;
	if (getsockopt(queue->fd, SOL_XDP, XDP_MMAP_OFFSETS, &offsets, &length))
		err = -errno;
	if (!err)
		err = xps_xdp_ring_map(&queue->fill, queue->fd, &offsets.fr, queue->ring_size, sizeof(uint64_t),
				       XDP_UMEM_PGOFF_FILL_RING);
	if (err)
		return xps_fail_set(fail, -err, "map ring", "Cannot map the fill ring: %s.", strerror(-err));
	fill_all(queue);
	return 0;
}

static int bind_fail(int err, const struct xps_xdp_queue *queue, struct xps_fail *fail)
{
	static const char step[] = "bind";
	const struct xps_xdp_place place = place_of(queue);
	const bool ordinary = err == ENODEV || err == ENETDOWN || err == EPERM;

	if (err == EBUSY)
		return xps_fail_set(fail, err, step,
				    "queue %u of %s is bound by another AF_XDP socket: another process's, or a "
				    "sender's ('ss --xdp --processes' lists them). Stop that, or choose other queues.",
				    place.queue, place.name);
	if (queue->zero_copy && !ordinary)
		return xps_fail_set(
			fail, err, step,
			"%s does not do zero-copy on queue %u (%s)%s. Leave zero_copy at None, or say False.",
			place.name, place.queue, strerror(err),
			queue->port->config.mtu > NATIVE_MTU ? ", perhaps because its MTU does not fit one frame" : "");
	if (err == EINVAL && queue->multi_buffer && !xps_kernel_at_least(6, 6))
		return xps_fail_set(
			fail, EMSGSIZE, step,
			"%s has MTU %d, but this kernel does not receive packets in several frames (that needs "
			"Linux 6.6). Set the MTU to %d or less%s.",
			place.name, queue->port->config.mtu, MAX_MTU, native_limit(queue->port));
	return xps_xdp_bind_fail(err, &place, fail);
}

static int bind_queue(struct xps_xdp_queue *queue, struct xps_fail *fail)
{
	const int flags = XDP_USE_NEED_WAKEUP | (queue->multi_buffer ? XDP_USE_SG : 0) |
			  (queue->zero_copy ? XDP_ZEROCOPY : XDP_COPY);
	const struct xps_xdp_place place = place_of(queue);
	int err = xps_xdp_bind(queue->fd, &place, flags);

	return err ? bind_fail(-err, queue, fail) : 0;
}

/* ---------------------------------------------------------------- opening and closing */

/* The order matters: a mapped ring keeps a closed socket alive, and the kernel writes to frames until that is gone. */
static void close_queue(struct xps_xdp_queue *queue)
{
	xps_xdp_ring_unmap(&queue->fill);
	if (queue->fd >= 0)
		close(queue->fd);
	if (queue->port->config.for_others)
		xps_xdp_frames_unshare(&queue->shared);
	else
		xps_xdp_frames_unmap(queue->frames, frames_bytes(queue));
	/* Whoever made it for us lets go of it after us. */
	if (queue->port->ops->close_queue)
		queue->port->ops->close_queue(queue);
	pthread_mutex_destroy(&queue->lock);
	free(queue);
}

static int map_frames(struct xps_xdp_queue *queue, const struct xps_xdp_place *place, struct xps_fail *fail)
{
	queue->frames = xps_xdp_frames_map(frames_bytes(queue), place, fail);
	return queue->frames ? 0 : -fail->err;
}

static int use_shared(struct xps_xdp_queue *queue, const struct xps_xdp_queue_config *config, struct xps_fail *fail)
{
	if (config->frames->size >= frames_bytes(queue) && xps_xdp_frames_are_there(config->frames)) {
		queue->frames = config->frames->map;
		return 0;
	}
	*config->wanted = frames_bytes(queue);
	return xps_fail_set(fail, EAGAIN, "allocate frames", "There is no memory for frames yet.");
}

static int setup_queue(struct xps_xdp_queue *queue, const struct xps_xdp_queue_config *config, bool zero_copy,
		       struct xps_fail *fail)
{
	const struct xps_xdp_place place = place_of(queue);
	int err;

	queue->zero_copy = zero_copy;
	err = choose_frames(queue, config->buffer_size, fail);

	if (err)
		return err;
	err = queue->port->config.for_others ? use_shared(queue, config, fail) : map_frames(queue, &place, fail);
	if (err)
		return err;
	err = make_socket(queue, fail);
	if (!err)
		err = bind_queue(queue, fail);
	return err;
}

static int open_queue(struct xps_xdp_port *port, uint32_t index, const struct xps_xdp_queue_config *config,
		      bool zero_copy, struct xps_fail *fail)
{
	struct xps_xdp_queue *queue = calloc(1, sizeof(*queue));
	int err;

	if (!queue)
		return xps_fail_set(fail, ENOMEM, "allocate", "Not enough memory for the state of a queue.");
	queue->port = port;
	queue->index = index;
	queue->n_alike = config->n_alike;
	queue->fd = -1;
	pthread_mutex_init(&queue->lock, NULL);
	err = port->ops->open_queue ? port->ops->open_queue(queue, config, fail)
				    : setup_queue(queue, config, zero_copy, fail);
	if (err) {
		close_queue(queue);
		return err;
	}
	if (config->frames) {
		queue->shared = *config->frames;
		*config->frames = (struct xps_xdp_shared_frames){ 0 };
	}
	queue->memory = (queue->shared.size ? queue->shared.size : frames_bytes(queue)) + queue->fill.map_size;
	port->queues[index] = queue;
	return 0;
}

static int open_best_queue(struct xps_xdp_port *port, uint32_t index, const struct xps_xdp_queue_config *config,
			   struct xps_fail *fail)
{
	/* Where nobody insists, it is not tried for packets in several frames: hardly a driver has both. */
	const bool may = port->program.mode == XPS_XDP_NATIVE && packet_room(port) <= XPS_XDP_LARGE_FRAME;
	int err = -EOPNOTSUPP;

	/* Whoever has the program decides. */
	if (port->ops->open_queue)
		return open_queue(port, index, config, false, fail);
	if (config->zero_copy > 0)
		return open_queue(port, index, config, true, fail);
	if (config->zero_copy == -1 && may)
		err = open_queue(port, index, config, true, fail);
	return xps_xdp_zero_copy_refused(err) ? open_queue(port, index, config, false, fail) : err;
}

/* Whether another reader can join what the first one opened. */
static int check_sharing(const struct xps_xdp_queue *queue, const struct xps_xdp_queue_config *config,
			 struct xps_fail *fail)
{
	static const char step[] = "share queue";
	const char *name = queue->port->name;

	if (queue->port->program.mode == XPS_XDP_GENERIC && !xps_kernel_at_least(6, 15))
		return xps_fail_set(
			fail, EOPNOTSUPP, step,
			"Queue %u of %s already feeds another stream, and in generic mode kernels before 6.15 "
			"corrupt queues that feed two. Add these endpoints to the first stream's reader, or use "
			"native mode.",
			queue->index, name);
	if ((config->zero_copy == 0 && queue->zero_copy) || (config->zero_copy > 0 && !queue->zero_copy))
		return xps_fail_set(
			fail, EBUSY, step,
			"Queue %u of %s already feeds another stream %s zero-copy; all streams on a queue share "
			"that. Ask for the same, or leave zero_copy at None.",
			queue->index, name, queue->zero_copy ? "with" : "without");
	return 0;
}

void xps_xdp_kick(int kick_fd, atomic_bool *kicked)
{
	const uint64_t one = 1;

	/* before it: who is woken may run before we do */
	atomic_store(kicked, true);
	/* cannot fail but by overflow, and then it is readable anyway */
	if (write(kick_fd, &one, sizeof(one)) < 0 && errno != EAGAIN)
		return;
	/* and after it: somebody who was awake may have seen the first and found nothing to read */
	atomic_store(kicked, true);
}

static void add_member(struct xps_xdp_queue *queue, struct xps_xdp_member *member)
{
	struct xps_xdp_member **end = &queue->members;

	pthread_mutex_lock(&queue->lock);
	/* before the kicks: who is kicked looks at its share, which has just become smaller */
	atomic_fetch_add(&queue->n_members, 1);
	for (; *end; end = &(*end)->next)
		xps_xdp_kick((*end)->kick_fd, (*end)->kicked);
	member->next = NULL;
	*end = member;
	pthread_mutex_unlock(&queue->lock);
}

int xps_xdp_queue_join(struct xps_xdp_queue **queue, struct xps_xdp_port *port, uint32_t index,
		       const struct xps_xdp_queue_config *config, struct xps_xdp_member *member, struct xps_fail *fail)
{
	int err = 0;

	if (index >= (uint32_t)port->config.n_queues)
		return xps_fail_set(fail, EINVAL, "find queue",
				    "%s has no receive queue %u: it has %d, counted from 0.", port->name, index,
				    port->config.n_queues);
	pthread_mutex_lock(&port->lock);
	if (port->queues[index])
		err = check_sharing(port->queues[index], config, fail);
	else
		err = open_best_queue(port, index, config, fail);
	*queue = port->queues[index];
	if (!err)
		add_member(*queue, member);
	pthread_mutex_unlock(&port->lock);
	return err;
}

/* What the kernel counts for the queue as a whole. Caller locks. */
static void settle(struct xps_xdp_queue *queue)
{
	struct xdp_statistics s = { 0 };
	socklen_t length = sizeof(s);

	if (!queue->members || getsockopt(queue->fd, SOL_XDP, XDP_STATISTICS, &s, &length))
		return;
	queue->members->fill_empty += s.rx_fill_ring_empty_descs - queue->seen_fill_empty;
	queue->members->rx_invalid += s.rx_invalid_descs - queue->seen_rx_invalid;
	queue->seen_fill_empty = s.rx_fill_ring_empty_descs;
	queue->seen_rx_invalid = s.rx_invalid_descs;
}

void xps_xdp_queue_leave(struct xps_xdp_queue *queue, struct xps_xdp_member *member)
{
	struct xps_xdp_port *port = queue->port;
	struct xps_xdp_member **link = &queue->members;
	bool last;

	pthread_mutex_lock(&port->lock);
	pthread_mutex_lock(&queue->lock);
	settle(queue);
	while (*link != member)
		link = &(*link)->next;
	*link = member->next;
	last = atomic_fetch_sub(&queue->n_members, 1) == 1;
	pthread_mutex_unlock(&queue->lock);
	if (last) {
		port->queues[queue->index] = NULL;
		close_queue(queue);
	}
	pthread_mutex_unlock(&port->lock);
}

/* ---------------------------------------------------------------- running */

void xps_xdp_queue_release(struct xps_xdp_queue *queue, const struct xdp_desc *descs, uint32_t n)
{
	const uint64_t frame = ~(uint64_t)(queue->frame_size - 1);

	if (!n)
		return;
	pthread_mutex_lock(&queue->lock);
	for (uint32_t i = 0; i < n; i++)
		*xps_xdp_fill_entry(&queue->fill, i) = descs[i].addr & frame;
	xps_xdp_fill_submit(&queue->fill, n);
	pthread_mutex_unlock(&queue->lock);
}

void xps_xdp_queue_wakeup(struct xps_xdp_queue *queue, int fd, bool last)
{
	const bool needed = last ? xps_xdp_needs_wakeup_now(&queue->fill) : xps_xdp_needs_wakeup(&queue->fill);

	/* Errors (the interface is down, the driver is busy) say nothing that the next look will not. */
	if (unlikely(needed))
		recvfrom(fd, NULL, 0, MSG_DONTWAIT, NULL, NULL);
}

void xps_xdp_queue_credits(struct xps_xdp_queue *queue, struct xps_xdp_member *member, uint64_t *fill_empty,
			   uint64_t *rx_invalid)
{
	pthread_mutex_lock(&queue->lock);
	settle(queue);
	*fill_empty = member->fill_empty;
	*rx_invalid = member->rx_invalid;
	pthread_mutex_unlock(&queue->lock);
}
