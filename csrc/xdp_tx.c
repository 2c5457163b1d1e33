// SPDX-License-Identifier: Apache-2.0
#include "xdp_tx.h"

#include <errno.h>
#include <net/if.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "bits.h"

enum {
	MIN_FRAMES = 256,
	LENT_FRAMES = 2048,
	KERNEL_BUDGET = 16, /* frames that a kernel copies in one call: 16 once, 32 since Linux 6.3 */
	CLOSE_TIMEOUT_S = 1,
	CLOSE_PAUSE_NS = 100 * 1000,
};

static size_t frames_bytes(const struct xps_xdp_tx *tx)
{
	return (size_t)(tx->n_frames + tx->n_lent) * tx->frame_size;
}

size_t xps_xdp_tx_memory(const struct xps_xdp_tx *tx)
{
	return frames_bytes(tx) + tx->tx.map_size + tx->completion.map_size;
}

uint64_t xps_xdp_tx_invalid(const struct xps_xdp_tx *tx)
{
	struct xdp_statistics stats = { 0 };
	socklen_t length = sizeof(stats);

	return getsockopt(tx->fd, SOL_XDP, XDP_STATISTICS, &stats, &length) ? 0 : stats.tx_invalid_descs;
}

/* ---------------------------------------------------------------- opening */

static int choose_frames(struct xps_xdp_tx *tx, const struct xps_xdp_tx_config *config, struct xps_fail *fail)
{
	static const char step[] = "choose frames";
	const uint64_t most = (uint64_t)XPS_XDP_MAX_FRAMES * XPS_XDP_SMALL_FRAME;

	tx->frame_size = !tx->zero_copy && config->max_packet <= XPS_XDP_SMALL_FRAME ? XPS_XDP_SMALL_FRAME
										     : XPS_XDP_LARGE_FRAME;
	tx->multi_buffer = config->max_packet > tx->frame_size;
	if (!config->buffer_size || config->buffer_size > most)
		return xps_fail_set(fail, EINVAL, step, "buffer_size is %llu; it can be from 1 to %llu.",
				    (unsigned long long)config->buffer_size, (unsigned long long)most);
	if (tx->multi_buffer && !xps_kernel_at_least(6, 6))
		return xps_fail_set(fail, EMSGSIZE, step,
				    "Packets of %u bytes, headers included, need several frames, and this kernel does "
				    "not send such (that needs Linux 6.6). Set max_packet_size so that they have %u.",
				    config->max_packet, tx->frame_size);
	tx->n_frames = (uint32_t)((config->buffer_size + tx->frame_size - 1) / tx->frame_size);
	tx->n_frames = (uint32_t)xps_max_u64(tx->n_frames, MIN_FRAMES);
	tx->n_lent = tx->zero_copy ? LENT_FRAMES : 0;
	tx->ring_size = MIN_FRAMES;
	while (tx->ring_size < tx->n_frames)
		tx->ring_size *= 2;
	return 0;
}

static int allocate(struct xps_xdp_tx *tx, struct xps_fail *fail)
{
	tx->free = malloc(tx->n_frames * sizeof(tx->free[0]));
	tx->ends = calloc(tx->n_frames, sizeof(tx->ends[0]));
	if (!tx->free || !tx->ends)
		return xps_fail_set(fail, ENOMEM, "allocate", "Not enough memory for the state of a sender.");
	while (tx->n_free < tx->n_frames) {
		tx->free[tx->n_free] = tx->n_frames - 1 - tx->n_free;
		tx->n_free++;
	}
	tx->frames = xps_xdp_frames_map(frames_bytes(tx), &tx->place, fail);
	return tx->frames ? 0 : -fail->err;
}

/*
 * A driver that does zero-copy receives into the socket's memory too, whatever comes to the queue, and passes on copies
 * of it. Without any it would receive nothing. It never looks again at a ring that was empty, so this is before bind.
 */
static int lend_frames(const struct xps_xdp_tx *tx, const struct xdp_ring_offset *offsets)
{
	struct xps_xdp_ring fill;
	int err = xps_xdp_ring_map(&fill, tx->fd, offsets, LENT_FRAMES, sizeof(uint64_t), XDP_UMEM_PGOFF_FILL_RING);

	if (err)
		return err;
	for (uint32_t i = 0; i < tx->n_lent; i++)
		*xps_xdp_fill_entry(&fill, i) = (uint64_t)(tx->n_frames + i) * tx->frame_size;
	xps_xdp_fill_submit(&fill, tx->n_lent);
	xps_xdp_ring_unmap(&fill);
	return 0;
}

static int make_rings(struct xps_xdp_tx *tx, struct xps_fail *fail)
{
	struct xdp_mmap_offsets offsets;
	socklen_t length = sizeof(offsets);
	int err = xps_xdp_ring_make(tx->fd, XDP_TX_RING, "TX", tx->ring_size, fail);

	if (!err)
		err = xps_xdp_ring_make(tx->fd, XDP_UMEM_COMPLETION_RING, "completion", tx->ring_size, fail);
	/* The kernel wants one, used or not. */
	if (!err)
		err = xps_xdp_ring_make(tx->fd, XDP_UMEM_FILL_RING, "fill", tx->zero_copy ? LENT_FRAMES : 2, fail);
	if (err)
		return err;
	if (getsockopt(tx->fd, SOL_XDP, XDP_MMAP_OFFSETS, &offsets, &length))
		err = -errno;
	if (!err)
		err = xps_xdp_ring_map(&tx->tx, tx->fd, &offsets.tx, tx->ring_size, sizeof(struct xdp_desc),
				       XDP_PGOFF_TX_RING);
	if (!err)
		err = xps_xdp_ring_map(&tx->completion, tx->fd, &offsets.cr, tx->ring_size, sizeof(uint64_t),
				       XDP_UMEM_PGOFF_COMPLETION_RING);
	if (!err && tx->zero_copy)
		err = lend_frames(tx, &offsets.fr);
	return err ? xps_fail_set(fail, -err, "map ring", "Cannot map the rings: %s.", strerror(-err)) : 0;
}

/* What the kernel does better if it is asked; it works without. */
static void set_options(struct xps_xdp_tx *tx)
{
	/* The kernel's copies may take as much memory as all frames, and about as much again for its own book-keeping. */
	const uint64_t wanted = 2 * (uint64_t)frames_bytes(tx) + ((uint64_t)tx->n_frames << 10);
	const int memory = (int)xps_min_u64(wanted, INT32_MAX / 2);
	const uint32_t budget = tx->ring_size;

	if (setsockopt(tx->fd, SOL_SOCKET, SO_SNDBUFFORCE, &memory, sizeof(memory)))
		setsockopt(tx->fd, SOL_SOCKET, SO_SNDBUF, &memory, sizeof(memory));
	tx->one_call = !setsockopt(tx->fd, SOL_XDP, XDP_MAX_TX_SKB_BUDGET, &budget, sizeof(budget));
}

static int bind_fail(int err, const struct xps_xdp_tx *tx, struct xps_fail *fail)
{
	static const char step[] = "bind";
	const struct xps_xdp_place *place = &tx->place;

	if (err == EBUSY)
		return xps_fail_set(fail, err, step,
				    "Queue %u of %s is taken by another AF_XDP socket: a receiver, or another sender. "
				    "Choose another queue (queue=), or stop that one.",
				    place->queue, place->name);
	if (tx->zero_copy && xps_xdp_zero_copy_refused(-err))
		return xps_fail_set(fail, err, step,
				    "%s does not do zero-copy on queue %u (%s)%s. Leave zero_copy at None, or say "
				    "False.",
				    place->name, place->queue, strerror(err),
				    tx->multi_buffer ? ", perhaps because packets do not fit one frame" : "");
	return xps_xdp_bind_fail(err, place, fail);
}

static int kick(const struct xps_xdp_tx *tx)
{
	return sendto(tx->fd, NULL, 0, MSG_DONTWAIT, NULL, 0) < 0 ? -errno : 0;
}

/* Not now, but soon. */
static bool is_passing(int err)
{
	return err == -EAGAIN || err == -EBUSY || err == -ENOBUFS || err == -ENOMEM || err == -EINTR;
}

/*
 * An interface that is down is bound to all the same. And some drivers bind for zero-copy, but do not transmit unless an
 * XDP program is on the interface.
 */
static int try_transmit(const struct xps_xdp_tx *tx, struct xps_fail *fail)
{
	int err = kick(tx);

	if (!err || is_passing(err))
		return 0;
	if (!tx->zero_copy)
		return xps_xdp_bind_fail(-err, &tx->place, fail);
	return xps_fail_set(
		fail, EOPNOTSUPP, "transmit",
		"%s does not transmit zero-copy on queue %u (%s): it is down, or, with many drivers, no XDP "
		"program is attached. Leave zero_copy at None, or say False.",
		tx->place.name, tx->place.queue, strerror(-err));
}

static int bind_queue(struct xps_xdp_tx *tx, struct xps_fail *fail)
{
	const int flags = XDP_USE_NEED_WAKEUP | (tx->multi_buffer ? XDP_USE_SG : 0) |
			  (tx->zero_copy ? XDP_ZEROCOPY : XDP_COPY);
	int err = xps_xdp_bind(tx->fd, &tx->place, flags);

	return err ? bind_fail(-err, tx, fail) : try_transmit(tx, fail);
}

static void release(struct xps_xdp_tx *tx)
{
	xps_xdp_ring_unmap(&tx->tx);
	xps_xdp_ring_unmap(&tx->completion);
	if (tx->fd >= 0)
		close(tx->fd);
	xps_xdp_frames_unmap(tx->frames, frames_bytes(tx));
	free(tx->free);
	free(tx->ends);
}

static int open_as(struct xps_xdp_tx *tx, const struct xps_xdp_tx_config *config, bool zero_copy, struct xps_fail *fail)
{
	int err;

	memset(tx, 0, sizeof(*tx));
	tx->fd = -1;
	if (config->ifindex <= 0 || !if_indextoname((unsigned)config->ifindex, tx->name))
		return xps_fail_set(fail, ENODEV, "find interface",
				    "There is no interface with index %d in this network namespace.", config->ifindex);
	tx->place = (struct xps_xdp_place){ .ifindex = config->ifindex, .name = tx->name, .queue = config->queue };
	tx->zero_copy = zero_copy;
	err = choose_frames(tx, config, fail);
	if (!err)
		err = allocate(tx, fail);
	if (!err)
		err = tx->fd = xps_xdp_fd_open(fail);
	if (err >= 0)
		err = xps_xdp_frames_register(tx->fd, tx->frames, frames_bytes(tx), tx->frame_size, &tx->place, fail);
	if (!err)
		err = make_rings(tx, fail);
	if (!err)
		err = bind_queue(tx, fail);
	if (err) {
		release(tx);
		return err;
	}
	set_options(tx);
	return 0;
}

int xps_xdp_tx_open(struct xps_xdp_tx *tx, const struct xps_xdp_tx_config *config, struct xps_fail *fail)
{
	/* Where nobody insists, it is not tried for packets in several frames: hardly a driver has both. */
	const bool may = config->max_packet <= XPS_XDP_LARGE_FRAME;
	int err = -EOPNOTSUPP;

	if (config->zero_copy > 0)
		return open_as(tx, config, true, fail);
	if (config->zero_copy < 0 && may)
		err = open_as(tx, config, true, fail);
	return xps_xdp_zero_copy_refused(err) ? open_as(tx, config, false, fail) : err;
}

/* ---------------------------------------------------------------- running */

void xps_xdp_tx_reclaim(struct xps_xdp_tx *tx)
{
	const uint32_t n = xps_xdp_completion_available(&tx->completion);
	uint64_t packets = 0;

	if (!n)
		return;
	for (uint32_t i = 0; i < n; i++) {
		const uint32_t frame = (uint32_t)(xps_xdp_completion_entry(&tx->completion, i) / tx->frame_size);

		packets += tx->ends[frame];
		tx->free[tx->n_free++] = frame;
	}
	xps_xdp_completion_consume(&tx->completion, n);
	atomic_store_explicit(&tx->completed, atomic_load_explicit(&tx->completed, memory_order_relaxed) + packets,
			      memory_order_relaxed);
}

static void withdraw(struct xps_xdp_tx *tx, uint32_t n)
{
	xps_xdp_tx_withdraw(&tx->tx, n);
	for (uint32_t i = n; i-- > 0;)
		tx->free[tx->n_free++] = (uint32_t)(xps_xdp_tx_entry(&tx->tx, i)->addr / tx->frame_size);
}

/* Calls in a row that may all seem to have done nothing although they did: see the header. */
static uint32_t patience(const struct xps_xdp_tx *tx, uint32_t waiting)
{
	return tx->one_call ? 1 : waiting / KERNEL_BUDGET + 1;
}

/* The kernel takes from the ring while it is called, until that is empty or it cannot go on. Sets whether it looked. */
static int push_copies(struct xps_xdp_tx *tx, bool *looked)
{
	uint32_t waiting = xps_xdp_tx_waiting(&tx->tx), in_vain = 0;

	*looked = false;
	/* Each call takes something, but for those in vain. */
	for (uint32_t calls = 0; calls < tx->ring_size; calls++) {
		const uint32_t before = waiting;
		int err = kick(tx);

		waiting = xps_xdp_tx_waiting(&tx->tx);
		if (!err)
			/* It found the ring empty; or it did not look, because the device has fewer queues by now. */
			return waiting ? -ENXIO : 0;
		if (!is_passing(err))
			return err;
		*looked = true;
		if (err == -EBUSY)
			/* The device refused a packet, which is gone; the kernel has not looked at the next. */
			atomic_fetch_add_explicit(&tx->dropped, 1, memory_order_relaxed);
		else if (waiting != before)
			in_vain = 0;
		else if (++in_vain >= patience(tx, waiting))
			return -EAGAIN;
	}
	return -EAGAIN;
}

static int push_zero_copy(struct xps_xdp_tx *tx)
{
	int err = xps_xdp_needs_wakeup_now(&tx->tx) ? kick(tx) : 0;

	return is_passing(err) ? 0 : err;
}

int xps_xdp_tx_push(struct xps_xdp_tx *tx, bool *withdrawn)
{
	const uint32_t n = tx->n_staged;
	const bool empty = !xps_xdp_tx_waiting(&tx->tx);
	bool looked;
	int err;

	*withdrawn = false;
	tx->n_staged = 0;
	xps_xdp_tx_submit(&tx->tx, n);
	if (tx->zero_copy)
		return push_zero_copy(tx);
	err = push_copies(tx, &looked);
	if (err && empty && !looked) {
		withdraw(tx, n);
		*withdrawn = true;
	}
	return err;
}

/* ---------------------------------------------------------------- closing */

void xps_xdp_tx_close(struct xps_xdp_tx *tx)
{
	const struct timespec pause = { .tv_nsec = CLOSE_PAUSE_NS };
	const int64_t end = xps_now_ns() + CLOSE_TIMEOUT_S * INT64_C(1000000000);

	xps_xdp_tx_reclaim(tx);
	while (tx->n_free < tx->n_frames && xps_now_ns() < end) {
		bool withdrawn;
		int err = xps_xdp_tx_push(tx, &withdrawn);

		if (err && err != -EAGAIN)
			break;
		nanosleep(&pause, NULL);
		xps_xdp_tx_reclaim(tx);
	}
	release(tx);
}

void xps_xdp_tx_disown(struct xps_xdp_tx *tx)
{
	xps_xdp_fd_forget(tx->fd);
	tx->fd = -1;
}

void xps_xdp_tx_forget(struct xps_xdp_tx *tx)
{
	/* Rings and frames are not in a child's memory: MADV_DONTFORK. */
	xps_xdp_tx_disown(tx);
	free(tx->free);
	free(tx->ends);
}
