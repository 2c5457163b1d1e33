// SPDX-License-Identifier: Apache-2.0
/*
 * How it works
 *
 * Users in pop sleep on a futex, the count of pushes, and are woken when the lock is free again: who is woken wants the
 * lock, and may share the processor. Whoever polls has an eventfd, which is raised when a worker has put heaps in and
 * lowered by whoever empties the ring. Users are told once, and again when one of them has found the ring empty: so while
 * heaps keep coming and are being taken there is no system call at all.
 *
 * Room is what neither heaps in the ring take up nor those that were popped ahead, which are in the user's hands but not
 * used yet: so the ring's capacity bounds both together. How many of these are left nobody tells; the next pop is taken
 * for the sign that none is. A parked producer is woken when a quarter of the ring is free. That comes before the ring is
 * empty, because no more than half of the ring can be popped ahead: so nobody is left asleep.
 */
#include "ring.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "bits.h"
#include "futex.h"
#include "heap.h"

/* About what it takes to put a thread to sleep and wake it. */
#define EXPECT_NS INT64_C(50000)

/* Small heaps, at most: a worker should not get further ahead than this. */
#define SMALL_HEAPS 256

int xps_ring_init(struct xps_ring *ring, uint64_t heaps, uint64_t bytes)
{
	if (heaps == 0 || heaps > UINT32_MAX / 2)
		return -EINVAL;
	*ring = (struct xps_ring){
		.any_heaps = (uint32_t)heaps,
		.n_slots = (uint32_t)(bytes ? xps_max_u64(heaps, SMALL_HEAPS) : heaps),
		.small_bytes = bytes,
		.last_bytes = bytes, /* until it is known how large they are, no more than `heaps` */
		.fd = -1,
		.expected = true, /* whoever looks for the first time often does so when packets begin to come */
	};
	ring->slots = calloc(ring->n_slots, sizeof(struct xps_heap *));
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
		ring->head = (ring->head + 1) % ring->n_slots;
	}
	free(ring->slots);
	close(ring->fd);
	pthread_mutex_destroy(&ring->lock);
}

/* ---------------------------------------------------------------- telling users */

/* Lock held. Whether users have to be told that there are heaps; from now on it counts as if they were. */
static bool must_tell(struct xps_ring *ring)
{
	if (ring->signalled || !(ring->n_waiting || ring->fd_wanted || ring->listener))
		return false;
	ring->signalled = true;
	return true;
}

/* Lock held. */
static void raise_fd(struct xps_ring *ring)
{
	eventfd_write(ring->fd, 1);
	ring->raised = true;
}

/* Lock held. Returns whom to wake when it is not held any more, if anybody. */
static _Atomic uint32_t *tell_listener(struct xps_ring *ring)
{
	return ring->listener ? ring->listener->tell(ring->listener) : NULL;
}

/* Unlock, and tell users, all but waking those who sleep: gets their futexes, and returns how many these are. */
static uint32_t unlock_and_tell(struct xps_ring *ring, bool tell, _Atomic uint32_t *sleepers[2])
{
	_Atomic uint32_t *others = tell ? tell_listener(ring) : NULL;
	uint32_t n = 0;

	if (tell && ring->n_waiting)
		sleepers[n++] = &ring->pushes;
	if (others)
		sleepers[n++] = others;
	if (tell && ring->fd_wanted)
		raise_fd(ring); /* under the lock: poll(2) is to say what the lock's holders know, and nothing else */
	pthread_mutex_unlock(&ring->lock);
	return n;
}

/* Unlock, and tell users. */
static void unlock_and_wake(struct xps_ring *ring, bool tell)
{
	_Atomic uint32_t *sleepers[2];
	const uint32_t n = unlock_and_tell(ring, tell, sleepers);

	for (uint32_t i = 0; i < n; i++)
		xps_futex_wake(sleepers[i]);
}

/* Lock held, the ring is empty and not stopped: the next heap is news. */
static void expect_news(struct xps_ring *ring)
{
	eventfd_t value;

	ring->signalled = false;
	if (ring->raised && eventfd_read(ring->fd, &value) == 0)
		ring->raised = false;
}

/* ---------------------------------------------------------------- room */

/* Lock held. Heaps that take up room. */
static uint32_t used_of(const struct xps_ring *ring)
{
	return ring->count + ring->ahead;
}

/* Lock held. What a heap takes up: its payload, more or less. */
static uint64_t bytes_of(const struct xps_heap *heap)
{
	return sizeof(*heap) + (heap->payload ? heap->capacity : 0);
}

/* Lock held. */
static bool fits(const struct xps_ring *ring, uint64_t bytes)
{
	const uint32_t used = used_of(ring);

	return used < ring->any_heaps ||
	       (used < ring->n_slots && ring->bytes + ring->ahead_bytes + bytes <= ring->small_bytes);
}

/* Lock held. In heaps as large as the last. None while more were popped ahead than a producer left room for. */
static uint32_t room_in(const struct xps_ring *ring)
{
	const uint32_t used = used_of(ring);
	const uint64_t bytes = ring->bytes + ring->ahead_bytes;
	uint64_t room = 0;

	if (bytes < ring->small_bytes && used < ring->n_slots)
		room = xps_min_u64((ring->small_bytes - bytes) / ring->last_bytes, ring->n_slots - used);
	if (used < ring->any_heaps)
		room = xps_max_u64(room, ring->any_heaps - used);
	return (uint32_t)room;
}

/* Lock held. */
static void put(struct xps_ring *ring, struct xps_heap *heap, uint64_t bytes)
{
	const uint32_t tail = ring->head + ring->count;

	ring->slots[tail < ring->n_slots ? tail : tail - ring->n_slots] = heap;
	ring->count++;
	ring->bytes += bytes;
	ring->last_bytes = bytes;
}

uint32_t xps_ring_push(struct xps_ring *ring, uint32_t producer, struct xps_heap *const *heaps, uint32_t n,
		       uint32_t *room)
{
	const uint64_t bit = UINT64_C(1) << producer;
	uint32_t pushed = 0;

	pthread_mutex_lock(&ring->lock);
	for (; !ring->stopped && pushed < n; pushed++) {
		const uint64_t bytes = bytes_of(heaps[pushed]);

		if (!fits(ring, bytes))
			break;
		put(ring, heaps[pushed], bytes);
	}
	if (pushed)
		atomic_fetch_add_explicit(&ring->pushes, 1, memory_order_relaxed);
	ring->parked &= ~bit;
	if (pushed < n && !ring->stopped)
		ring->parked |= bit;
	*room = room_in(ring);
	unlock_and_wake(ring, ring->count && *room < used_of(ring) && must_tell(ring));
	return pushed;
}

void xps_ring_wake(struct xps_ring *ring)
{
	pthread_mutex_lock(&ring->lock);
	unlock_and_wake(ring, ring->count && must_tell(ring));
}

uint32_t xps_ring_tell(struct xps_ring *ring, _Atomic uint32_t *sleepers[2])
{
	pthread_mutex_lock(&ring->lock);
	return unlock_and_tell(ring, ring->count && must_tell(ring), sleepers);
}

void xps_ring_stop(struct xps_ring *ring)
{
	pthread_mutex_lock(&ring->lock);
	ring->stopped = true;
	atomic_fetch_add_explicit(&ring->pushes, 1, memory_order_relaxed);
	ring->parked = 0;
	ring->signalled = true;
	unlock_and_wake(ring, true);
}

bool xps_ring_stopped(struct xps_ring *ring)
{
	bool stopped;

	pthread_mutex_lock(&ring->lock);
	stopped = ring->stopped;
	pthread_mutex_unlock(&ring->lock);
	return stopped;
}

/* Lock held. If they are taken ahead of their time, no more than half of what the ring could hold, but one. */
static int take(struct xps_ring *ring, struct xps_heap **heaps, int n, bool ahead)
{
	int taken = 0;

	ring->ahead = 0;
	ring->ahead_bytes = 0;
	if (ahead)
		n = (int)xps_min_u64((uint64_t)n, xps_max_u64((ring->count + room_in(ring)) / 2, 1));
	while (taken < n && ring->count) {
		const uint64_t bytes = bytes_of(ring->slots[ring->head]);

		if (ahead && taken) { /* the first is for now */
			ring->ahead++;
			ring->ahead_bytes += bytes;
		}
		heaps[taken++] = ring->slots[ring->head];
		if (++ring->head == ring->n_slots)
			ring->head = 0;
		ring->count--;
		ring->bytes -= bytes;
	}
	return taken;
}

/* Lock held. The producers that are to be woken, which are then no longer parked. */
static uint64_t unpark(struct xps_ring *ring)
{
	uint64_t parked = ring->parked;

	if (4 * (uint64_t)room_in(ring) < room_in(ring) + used_of(ring))
		return 0;
	if (parked)
		atomic_store_explicit(&ring->expected, true, memory_order_relaxed);
	ring->parked = 0;
	return parked;
}

/* Take what there is. 0: nothing, after `pushes`, and the caller has been counted as waiting if it wants to wait. */
static int try_pop(struct xps_ring *ring, struct xps_heap **heaps, int n, bool ahead, bool wait, uint32_t *pushes,
		   uint64_t *unparked)
{
	_Atomic uint32_t *others = NULL;
	int taken;

	pthread_mutex_lock(&ring->lock);
	*pushes = atomic_load_explicit(&ring->pushes, memory_order_relaxed);
	taken = take(ring, heaps, n, ahead);
	*unparked = unpark(ring);
	if (taken) {
		if (ring->count || ring->stopped)
			others = tell_listener(ring); /* it was told once, and somebody has seen to that */
		else if (ring->fd_wanted || ring->listener)
			expect_news(ring);
	} else if (ring->stopped) {
		taken = -EPIPE;
	} else {
		expect_news(ring);
		ring->n_waiting += wait;
		ring->crowd |= ring->n_waiting > 1;
	}
	pthread_mutex_unlock(&ring->lock);
	if (others)
		xps_futex_wake(others);
	return taken;
}

/* Positive: look again. `crowd` is whether others waited too. */
static int wait_for_heap(struct xps_ring *ring, uint32_t pushes, int timeout_ms, bool *crowd)
{
	const int ready = xps_futex_sleep(&ring->pushes, pushes, timeout_ms);

	pthread_mutex_lock(&ring->lock);
	*crowd = ring->crowd;
	ring->n_waiting--;
	ring->crowd &= ring->n_waiting > 0;
	pthread_mutex_unlock(&ring->lock);
	return ready;
}

/*
 * A heap is about to come, sooner than sleeping and being woken would take: a producer that was parked is on its way, and
 * has more than enough to do; or whoever slept last was woken at once. If none comes that was wrong, until it is so again.
 */
static void expect_push(struct xps_ring *ring, uint32_t pushes)
{
	const int64_t end = xps_now_ns() + EXPECT_NS;

	do {
		for (int i = 0; i < 32; i++) {
			if (atomic_load_explicit(&ring->pushes, memory_order_relaxed) != pushes)
				return;
			xps_relax();
		}
		sched_yield(); /* it may have to share our processor */
	} while (xps_now_ns() < end);
	atomic_store_explicit(&ring->expected, false, memory_order_relaxed);
}

static int pop(struct xps_ring *ring, struct xps_heap **heaps, int n, bool ahead, int timeout_ms, uint64_t *unparked)
{
	*unparked = 0;
	for (;;) {
		const bool expect = timeout_ms && !*unparked &&
				    atomic_load_explicit(&ring->expected, memory_order_relaxed);
		uint32_t pushes;
		uint64_t also;
		int popped = try_pop(ring, heaps, n, ahead, timeout_ms && !expect, &pushes, &also);
		int64_t begin;
		bool crowd;
		int ready;

		*unparked |= also;
		if (popped || timeout_ms == 0)
			return popped;
		if (expect) {
			expect_push(ring, pushes);
			continue;
		}
		/* Several users may wake for one heap: those who come too late start over, with the same time. */
		begin = xps_now_ns();
		ready = wait_for_heap(ring, pushes, timeout_ms, &crowd);
		if (ready <= 0)
			return ready;
		if (xps_now_ns() - begin < EXPECT_NS)
			atomic_store_explicit(&ring->expected, true, memory_order_relaxed);
		if (crowd)
			n = 1; /* something for everybody */
	}
}

int xps_ring_pop(struct xps_ring *ring, struct xps_heap **heaps, int n, int timeout_ms, uint64_t *unparked)
{
	return pop(ring, heaps, n, false, timeout_ms, unparked);
}

int xps_ring_pop_ahead(struct xps_ring *ring, struct xps_heap **heaps, int n, int timeout_ms, uint64_t *unparked)
{
	return pop(ring, heaps, n, true, timeout_ms, unparked);
}

int xps_ring_fd(struct xps_ring *ring)
{
	pthread_mutex_lock(&ring->lock);
	ring->fd_wanted = true;
	if (!ring->count && !ring->stopped)
		expect_news(ring);
	else if (!ring->raised)
		raise_fd(ring);
	pthread_mutex_unlock(&ring->lock);
	return ring->fd;
}

int xps_ring_listen(struct xps_ring *ring, struct xps_ring_listener *listener)
{
	int err = 0;

	pthread_mutex_lock(&ring->lock);
	if (listener && ring->listener)
		err = -EBUSY;
	else
		ring->listener = listener;
	if (!err)
		tell_listener(ring); /* of what is there already */
	pthread_mutex_unlock(&ring->lock);
	return err;
}

uint32_t xps_ring_size(struct xps_ring *ring)
{
	uint32_t count;

	pthread_mutex_lock(&ring->lock);
	count = ring->count;
	pthread_mutex_unlock(&ring->lock);
	return count;
}
