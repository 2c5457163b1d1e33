// SPDX-License-Identifier: Apache-2.0
/*
 * How it works
 *
 * The eventfd is raised when a worker has put heaps in while somebody waits for them, and lowered by the first who
 * finds the ring empty (or, once somebody polls it, by whoever empties the ring). While heaps keep coming and are being
 * taken there is no system call at all: only whoever finds nothing pays.
 */
#include "ring.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "heap.h"

int xps_ring_init(struct xps_ring *ring, uint64_t capacity)
{
	if (capacity == 0 || capacity > UINT32_MAX / 2)
		return -EINVAL;
	*ring = (struct xps_ring){ .capacity = (uint32_t)capacity, .fd = -1 };
	ring->slots = calloc(capacity, sizeof(struct xps_heap *));
	if (!ring->slots)
		return -ENOMEM;
	ring->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (ring->fd < 0) {
		int err = errno;

		free(ring->slots);
		return -err;
	}
	pthread_mutex_init(&ring->lock, NULL);
	return 0;
}

void xps_ring_fini(struct xps_ring *ring)
{
	for (; ring->count; ring->count--) {
		xps_heap_free(ring->slots[ring->head]);
		ring->head = (ring->head + 1) % ring->capacity;
	}
	free(ring->slots);
	close(ring->fd);
	pthread_mutex_destroy(&ring->lock);
}

/* Lock held. */
static void raise_fd(struct xps_ring *ring)
{
	if (!ring->signalled && (ring->n_waiting || ring->fd_wanted)) {
		eventfd_write(ring->fd, 1);
		ring->signalled = true;
	}
}

/* Lock held, the ring is empty and not stopped. */
static void lower_fd(struct xps_ring *ring)
{
	eventfd_t value;

	if (ring->signalled) {
		eventfd_read(ring->fd, &value);
		ring->signalled = false;
	}
}

uint32_t xps_ring_push(struct xps_ring *ring, uint32_t producer, struct xps_heap *const *heaps, uint32_t n,
		       uint32_t *room)
{
	const uint64_t bit = UINT64_C(1) << producer;
	uint32_t pushed = 0;

	pthread_mutex_lock(&ring->lock);
	while (!ring->stopped && pushed < n && ring->count < ring->capacity) {
		uint32_t tail = ring->head + ring->count;

		ring->slots[tail < ring->capacity ? tail : tail - ring->capacity] = heaps[pushed++];
		ring->count++;
	}
	ring->parked &= ~bit;
	if (pushed < n && !ring->stopped)
		ring->parked |= bit;
	*room = ring->capacity - ring->count;
	pthread_mutex_unlock(&ring->lock);
	return pushed;
}

void xps_ring_wake(struct xps_ring *ring)
{
	pthread_mutex_lock(&ring->lock);
	if (ring->count)
		raise_fd(ring);
	pthread_mutex_unlock(&ring->lock);
}

void xps_ring_stop(struct xps_ring *ring)
{
	pthread_mutex_lock(&ring->lock);
	ring->stopped = true;
	ring->parked = 0;
	if (!ring->signalled) {
		eventfd_write(ring->fd, 1);
		ring->signalled = true;
	}
	pthread_mutex_unlock(&ring->lock);
}

bool xps_ring_stopped(struct xps_ring *ring)
{
	bool stopped;

	pthread_mutex_lock(&ring->lock);
	stopped = ring->stopped;
	pthread_mutex_unlock(&ring->lock);
	return stopped;
}

/* Lock held. */
static int take(struct xps_ring *ring, struct xps_heap **heaps, int n)
{
	int taken = 0;

	while (taken < n && ring->count) {
		heaps[taken++] = ring->slots[ring->head];
		if (++ring->head == ring->capacity)
			ring->head = 0;
		ring->count--;
	}
	return taken;
}

/* Take what there is. 0: nothing, and the caller has been counted as waiting if it wants to wait. */
static int try_pop(struct xps_ring *ring, struct xps_heap **heaps, int n, bool wait, uint64_t *unparked)
{
	int taken;

	pthread_mutex_lock(&ring->lock);
	taken = take(ring, heaps, n);
	if (taken) {
		*unparked = ring->parked;
		ring->parked = 0;
		if (!ring->count && ring->fd_wanted && !ring->stopped)
			lower_fd(ring);
	} else if (ring->stopped) {
		taken = -EPIPE;
	} else {
		lower_fd(ring);
		ring->n_waiting += wait;
	}
	pthread_mutex_unlock(&ring->lock);
	return taken;
}

static int wait_for_heap(struct xps_ring *ring, int timeout_ms)
{
	struct pollfd pollfd = { .fd = ring->fd, .events = POLLIN };
	int ready = poll(&pollfd, 1, timeout_ms);
	int err = errno;

	pthread_mutex_lock(&ring->lock);
	ring->n_waiting--;
	pthread_mutex_unlock(&ring->lock);
	return ready < 0 ? -err : ready;
}

int xps_ring_pop(struct xps_ring *ring, struct xps_heap **heaps, int n, int timeout_ms, uint64_t *unparked)
{
	*unparked = 0;
	for (;;) {
		int popped = try_pop(ring, heaps, n, timeout_ms != 0, unparked);
		int ready;

		if (popped || timeout_ms == 0)
			return popped;
		/* Several users may wake for one heap: those who come too late start over, with the same time. */
		ready = wait_for_heap(ring, timeout_ms);
		if (ready <= 0)
			return ready;
		n = 1;
	}
}

int xps_ring_fd(struct xps_ring *ring)
{
	pthread_mutex_lock(&ring->lock);
	ring->fd_wanted = true;
	if (ring->count)
		raise_fd(ring);
	else if (!ring->stopped)
		lower_fd(ring);
	pthread_mutex_unlock(&ring->lock);
	return ring->fd;
}

uint32_t xps_ring_size(struct xps_ring *ring)
{
	uint32_t count;

	pthread_mutex_lock(&ring->lock);
	count = ring->count;
	pthread_mutex_unlock(&ring->lock);
	return count;
}
