// SPDX-License-Identifier: Apache-2.0
/* The queue between a stream's workers and its users: order, room, waiting, the descriptor, the end. */
#include <errno.h>
#include <signal.h>

#include "await.h"
#include "check.h"
#include "futex.h"
#include "heap.h"
#include "ring.h"

static struct xps_heap *new_heap(uint64_t cnt)
{
	return xps_heap_new(&(struct xps_packet){ .heap_cnt = cnt, .address_bits = 48 });
}

static struct xps_ring *open_ring(uint64_t capacity)
{
	struct xps_ring *ring = malloc(sizeof(*ring));

	CHECK_EQ(xps_ring_init(ring, capacity, 0), 0);
	return ring;
}

static void close_ring(struct xps_ring *ring)
{
	xps_ring_fini(ring);
	free(ring);
}

/* Push heaps first..first+n-1; those that do not fit are freed. Returns how many fitted. */
static uint32_t push_as(struct xps_ring *ring, uint32_t producer, uint64_t first, uint32_t n)
{
	struct xps_heap *heaps[16] = { NULL };
	uint32_t room, pushed;

	for (uint32_t i = 0; i < n; i++)
		heaps[i] = new_heap(first + i);
	pushed = xps_ring_push(ring, producer, heaps, n, &room);
	xps_ring_wake(ring);
	for (uint32_t i = pushed; i < n; i++)
		xps_heap_free(heaps[i]);
	return pushed;
}

static uint32_t push(struct xps_ring *ring, uint64_t first, uint32_t n)
{
	return push_as(ring, 0, first, n);
}

/* Without waiting. Returns which producers are to be woken. */
static uint64_t pop(struct xps_ring *ring, uint64_t cnt)
{
	struct xps_heap *heap;
	uint64_t unparked;

	CHECK_EQ(xps_ring_pop(ring, &heap, 1, 0, &unparked), 1);
	CHECK_EQ(heap->cnt, cnt);
	xps_heap_free(heap);
	return unparked;
}

static int pop_nothing(struct xps_ring *ring, int timeout_ms)
{
	struct xps_heap *heap;
	uint64_t unparked;
	int result = xps_ring_pop(ring, &heap, 1, timeout_ms, &unparked);

	CHECK(!unparked);
	return result;
}

static uint32_t n_waiting(struct xps_ring *ring)
{
	uint32_t n;

	pthread_mutex_lock(&ring->lock);
	n = ring->n_waiting;
	pthread_mutex_unlock(&ring->lock);
	return n;
}

/* ---------------------------------------------------------------- a queue */

static void test_capacity_must_make_sense(void)
{
	struct xps_ring ring;

	CHECK_EQ(xps_ring_init(&ring, 0, 0), -EINVAL);
	CHECK_EQ(xps_ring_init(&ring, UINT64_MAX, 0), -EINVAL);
}

static void test_heaps_come_out_in_order(void)
{
	struct xps_ring *ring = open_ring(5);

	/* Often round the ring, with other steps in than out. */
	for (uint64_t in = 0, out = 0; out < 100;) {
		in += push(ring, in, 3);
		CHECK(xps_ring_size(ring) <= 5);
		for (int i = 0; i < 2; i++, out++)
			pop(ring, out);
		CHECK_EQ(xps_ring_size(ring), in - out);
	}
	close_ring(ring);
}

static void test_pop_takes_as_many_as_are_there_and_asked_for(void)
{
	struct xps_ring *ring = open_ring(10);
	struct xps_heap *heaps[10];
	uint64_t unparked;

	CHECK_EQ(push(ring, 0, 7), 7);
	CHECK_EQ(xps_ring_pop(ring, heaps, 4, 0, &unparked), 4);
	CHECK_EQ(xps_ring_pop(ring, heaps + 4, 6, -1, &unparked), 3);
	for (uint64_t i = 0; i < 7; i++) {
		CHECK_EQ(heaps[i]->cnt, i);
		xps_heap_free(heaps[i]);
	}
	close_ring(ring);
}

static void test_ring_frees_what_nobody_took(void)
{
	struct xps_ring *ring = open_ring(4);

	/* For the leak checker; past the end of the array. */
	CHECK_EQ(push(ring, 0, 3), 3);
	pop(ring, 0);
	pop(ring, 1);
	CHECK_EQ(push(ring, 3, 3), 3);
	close_ring(ring);
}

/* ---------------------------------------------------------------- a full ring */

static void test_push_tells_how_many_fitted_and_the_room_left(void)
{
	struct xps_heap *heaps[5];
	struct xps_ring *ring = open_ring(3);
	uint32_t room;

	for (uint64_t i = 0; i < 5; i++)
		heaps[i] = new_heap(i);
	CHECK_EQ(xps_ring_push(ring, 0, heaps, 0, &room), 0);
	CHECK_EQ(room, 3);
	CHECK_EQ(xps_ring_push(ring, 0, heaps, 2, &room), 2);
	CHECK_EQ(room, 1);
	CHECK_EQ(xps_ring_push(ring, 0, heaps + 2, 3, &room), 1);
	CHECK_EQ(room, 0);
	xps_heap_free(heaps[3]);
	xps_heap_free(heaps[4]);
	close_ring(ring);
}

/* A heap with a payload of so many bytes, and what it takes up beside them. */
static struct xps_heap *heap_of(struct xps_allocator *allocator, uint64_t bytes)
{
	const struct xps_heap_rules rules = { .allocator = allocator };
	struct xps_packet packet = { .heap_length = (int64_t)bytes, .address_bits = 48 };

	return xps_heap_open(&packet, &rules);
}

/* Push heaps of so many bytes, each for itself, until one does not fit. Returns how many did. */
static uint32_t fill(struct xps_ring *ring, struct xps_allocator *allocator, uint64_t bytes, uint32_t *room)
{
	for (uint32_t n = 0;; n++) {
		struct xps_heap *heap = heap_of(allocator, bytes);

		if (!xps_ring_push(ring, 0, &heap, 1, room)) {
			xps_heap_free(heap);
			return n;
		}
	}
}

static void test_small_heaps_fit_in_by_their_bytes(void)
{
	const uint64_t all = 100 * (sizeof(struct xps_heap) + 1000);
	struct xps_allocator *allocator = xps_allocator_new();
	struct xps_heap *heaps[40], *large;
	struct xps_ring ring;
	uint64_t unparked;
	uint32_t room;

	CHECK_EQ(xps_ring_init(&ring, 4, all), 0);
	xps_ring_push(&ring, 0, NULL, 0, &room);
	CHECK_EQ(room, 4); /* how large heaps are is not known yet */
	CHECK_EQ(fill(&ring, allocator, 1000, &room), 100);
	CHECK_EQ(room, 0);
	/* The worker is woken when a quarter of that is free, and half of it can be popped ahead. */
	for (int i = 0; i < 25; i++) {
		CHECK_EQ(xps_ring_pop(&ring, heaps, 1, 0, &unparked), 1);
		CHECK_EQ(unparked, i == 24);
		xps_heap_free(heaps[0]);
	}
	CHECK_EQ(fill(&ring, allocator, 1000, &room), 25);
	CHECK_EQ(xps_ring_pop_ahead(&ring, heaps, 40, 0, &unparked), 40);
	CHECK_EQ(fill(&ring, allocator, 1000, &room), 1);
	for (int i = 0; i < 40; i++)
		xps_heap_free(heaps[i]);
	/* However small: not more than somebody would ever want at once. */
	xps_ring_fini(&ring);
	CHECK_EQ(xps_ring_init(&ring, 4, UINT64_MAX), 0);
	CHECK_EQ(fill(&ring, allocator, 1, &room), 256);
	xps_ring_fini(&ring);
	/* However large: four. */
	CHECK_EQ(xps_ring_init(&ring, 4, all), 0);
	CHECK_EQ(fill(&ring, allocator, all, &room), 4);
	CHECK_EQ(xps_ring_pop(&ring, &large, 1, 0, &unparked), 1);
	CHECK_EQ(unparked, 1);
	xps_heap_free(large);
	CHECK_EQ(fill(&ring, allocator, 1, &room), 1);
	xps_ring_fini(&ring);
	xps_allocator_free(allocator);
}

static void test_first_pop_after_a_push_that_did_not_fit_wakes_the_worker(void)
{
	struct xps_ring *ring = open_ring(2);

	CHECK_EQ(push(ring, 0, 2), 2);
	CHECK(!pop(ring, 0)); /* full, but nothing was left over */
	CHECK_EQ(push(ring, 2, 2), 1);
	CHECK_EQ(pop(ring, 1), 1);
	CHECK(!pop(ring, 2)); /* it has been told */
	close_ring(ring);
}

static void test_push_that_fits_takes_the_wish_to_be_woken_back(void)
{
	struct xps_ring *ring = open_ring(1);

	CHECK_EQ(push(ring, 0, 2), 1);
	CHECK(pop(ring, 0));
	CHECK_EQ(push(ring, 1, 2), 1);
	CHECK_EQ(push(ring, 1, 0), 0);
	CHECK(!pop(ring, 1));
	close_ring(ring);
}

static void test_worker_is_woken_when_a_quarter_of_the_ring_is_free(void)
{
	struct xps_ring *ring = open_ring(8);

	CHECK_EQ(push(ring, 0, 9), 8);
	CHECK(!pop(ring, 0));
	CHECK_EQ(pop(ring, 1), 1);
	CHECK(!pop(ring, 2)); /* it has been told */
	close_ring(ring);
}

/* ---------------------------------------------------------------- ahead of their time */

/* Without waiting, at most `n`. Returns how many; they began with `cnt`. */
static int pop_ahead(struct xps_ring *ring, uint64_t cnt, int n, uint64_t *unparked)
{
	struct xps_heap *heaps[16];
	int popped = xps_ring_pop_ahead(ring, heaps, n, 0, unparked);

	for (int i = 0; i < popped; i++) {
		CHECK_EQ(heaps[i]->cnt, cnt + (uint64_t)i);
		xps_heap_free(heaps[i]);
	}
	return popped;
}

static void test_half_of_the_ring_can_be_popped_ahead_but_at_least_one(void)
{
	for (uint32_t capacity = 1; capacity <= 9; capacity++) {
		struct xps_ring *ring = open_ring(capacity);
		uint64_t unparked;

		CHECK_EQ(push(ring, 0, capacity), capacity);
		CHECK_EQ(pop_ahead(ring, 0, 16, &unparked), capacity < 2 ? 1 : (int)capacity / 2);
		close_ring(ring);
	}
}

static void test_heaps_popped_ahead_take_up_room_until_somebody_pops_again(void)
{
	struct xps_ring *ring = open_ring(8);
	uint64_t unparked;

	CHECK_EQ(push(ring, 0, 8), 8);
	CHECK_EQ(pop_ahead(ring, 0, 4, &unparked), 4);
	CHECK_EQ(push(ring, 8, 4), 1); /* of four that went three are still the stream's */
	CHECK_EQ(pop_ahead(ring, 4, 2, &unparked), 2);
	CHECK_EQ(unparked, 1);
	CHECK_EQ(push(ring, 9, 8), 4);
	pop(ring, 6);
	CHECK_EQ(push(ring, 13, 8), 2);
	close_ring(ring);
}

static void test_worker_is_never_left_asleep_by_who_pops_ahead(void)
{
	for (uint32_t capacity = 1; capacity <= 9; capacity++) {
		struct xps_ring *ring = open_ring(capacity);
		uint64_t unparked = 0;
		uint64_t next = 0;
		int popped;

		CHECK_EQ(push(ring, 0, capacity + 1), capacity);
		while ((popped = pop_ahead(ring, next, 16, &unparked)) > 0 && !unparked)
			next += (uint64_t)popped;
		CHECK_EQ(unparked, 1);
		close_ring(ring);
	}
}

/* ---------------------------------------------------------------- several producers */

static void test_every_producer_that_was_left_with_heaps_is_woken_once(void)
{
	struct xps_ring *ring = open_ring(2);

	CHECK_EQ(push_as(ring, 0, 0, 1), 1);
	CHECK_EQ(push_as(ring, 5, 1, 2), 1);
	CHECK_EQ(push_as(ring, XPS_RING_PRODUCERS - 1, 2, 1), 0);
	CHECK_EQ(pop(ring, 0), (UINT64_C(1) << 5) | (UINT64_C(1) << (XPS_RING_PRODUCERS - 1)));
	CHECK(!pop(ring, 1));
	close_ring(ring);
}

static void test_push_of_one_producer_leaves_the_wish_of_another_alone(void)
{
	struct xps_ring *ring = open_ring(1);

	CHECK_EQ(push_as(ring, 3, 0, 2), 1);
	CHECK_EQ(push_as(ring, 4, 0, 0), 0); /* all of it fits */
	CHECK_EQ(pop(ring, 0), UINT64_C(1) << 3);
	close_ring(ring);
}

/* ---------------------------------------------------------------- waiting */

static void test_pop_of_an_empty_ring_waits_as_long_as_it_was_told(void)
{
	struct xps_ring *ring = open_ring(1);
	int64_t begin = now_ms();

	CHECK_EQ(pop_nothing(ring, 0), 0);
	CHECK_EQ(pop_nothing(ring, 50), 0);
	CHECK(now_ms() - begin >= 50);
	CHECK_EQ(n_waiting(ring), 0);
	close_ring(ring);
}

static void *pop_one(void *argument)
{
	struct xps_heap *heap;
	uint64_t unparked;
	int result = xps_ring_pop(argument, &heap, 1, DEADLINE_MS, &unparked);

	if (result > 0)
		xps_heap_free(heap);
	return (void *)(intptr_t)result;
}

static void test_every_waiting_user_gets_a_heap(void)
{
	struct xps_ring *ring = open_ring(10);
	pthread_t users[4];

	for (int i = 0; i < 4; i++)
		users[i] = start(pop_one, ring);
	AWAIT(n_waiting(ring) == 4);
	CHECK_EQ(push(ring, 0, 4), 4);
	for (int i = 0; i < 4; i++)
		CHECK_EQ((intptr_t)join(users[i]), 1);
	CHECK_EQ(n_waiting(ring), 0);
	close_ring(ring);
}

static void test_heaps_one_by_one_reach_waiting_users_one_by_one(void)
{
	struct xps_ring *ring = open_ring(10);
	pthread_t users[4];

	for (int i = 0; i < 4; i++)
		users[i] = start(pop_one, ring);
	AWAIT(n_waiting(ring) == 4);
	for (unsigned i = 0; i < 4; i++) {
		CHECK_EQ(push(ring, i, 1), 1);
		AWAIT(n_waiting(ring) == 3 - i && xps_ring_size(ring) == 0);
	}
	for (int i = 0; i < 4; i++)
		CHECK_EQ((intptr_t)join(users[i]), 1);
	close_ring(ring);
}

static void *pop_several(void *argument)
{
	struct xps_heap *heaps[4];
	uint64_t unparked;
	int n = xps_ring_pop(argument, heaps, 4, DEADLINE_MS, &unparked);

	for (int i = 0; i < n; i++)
		xps_heap_free(heaps[i]);
	return (void *)(intptr_t)n;
}

static void test_user_who_had_to_wait_gets_one_and_leaves_the_rest_to_others(void)
{
	struct xps_ring *ring = open_ring(10);
	pthread_t users[3];

	for (int i = 0; i < 3; i++)
		users[i] = start(pop_several, ring);
	AWAIT(n_waiting(ring) == 3);
	CHECK_EQ(push(ring, 0, 4), 4);
	for (int i = 0; i < 3; i++)
		CHECK_EQ((intptr_t)join(users[i]), 1);
	pop(ring, 3);
	close_ring(ring);
}

static void test_user_who_waited_alone_gets_all_that_came(void)
{
	struct xps_ring *ring = open_ring(10);
	struct xps_heap *heaps[3] = { new_heap(0), new_heap(1), new_heap(2) };
	uint32_t room;
	pthread_t user = start(pop_several, ring);

	AWAIT(n_waiting(ring) == 1);
	CHECK_EQ(xps_ring_push(ring, 0, heaps, 3, &room), 3);
	xps_ring_wake(ring);
	CHECK_EQ((intptr_t)join(user), 3);
	close_ring(ring);
}

static void test_stop_wakes_every_waiting_user(void)
{
	struct xps_ring *ring = open_ring(10);
	pthread_t users[4];

	for (int i = 0; i < 4; i++)
		users[i] = start(pop_one, ring);
	AWAIT(n_waiting(ring) == 4);
	xps_ring_stop(ring);
	for (int i = 0; i < 4; i++)
		CHECK_EQ((intptr_t)join(users[i]), -EPIPE);
	close_ring(ring);
}

static void ignore(int signal)
{
	(void)signal;
}

static void test_signal_interrupts_a_waiting_user(void)
{
	const struct sigaction action = { .sa_handler = ignore }, before = { .sa_handler = SIG_DFL };
	struct xps_ring *ring = open_ring(1);
	pthread_t user;

	CHECK_EQ(sigaction(SIGUSR1, &action, NULL), 0);
	user = start(pop_one, ring);
	AWAIT(n_waiting(ring) == 1);
	/* It counts as waiting a moment before it does, so one signal might come too early. */
	AWAIT(n_waiting(ring) == 0 || pthread_kill(user, SIGUSR1));
	CHECK_EQ((intptr_t)join(user), -EINTR);
	CHECK_EQ(sigaction(SIGUSR1, &before, NULL), 0);
	close_ring(ring);
}

/* ---------------------------------------------------------------- the descriptor */

static void test_descriptor_is_readable_while_heaps_are_there(void)
{
	struct xps_ring *ring = open_ring(4);
	int fd = xps_ring_fd(ring);

	for (uint64_t round = 0; round < 3; round++) {
		CHECK(!readable(fd));
		CHECK_EQ(push(ring, 2 * round, 1), 1);
		CHECK(readable(fd));
		CHECK_EQ(push(ring, 2 * round + 1, 1), 1);
		pop(ring, 2 * round);
		CHECK(readable(fd));
		pop(ring, 2 * round + 1);
		CHECK(!readable(fd));
		CHECK_EQ(pop_nothing(ring, 0), 0);
		CHECK(!readable(fd));
	}
	close_ring(ring);
}

static void test_descriptor_shows_what_came_before_it_was_asked_for(void)
{
	struct xps_ring *ring = open_ring(4);

	CHECK_EQ(push(ring, 0, 1), 1);
	CHECK(readable(xps_ring_fd(ring)));
	pop(ring, 0);
	CHECK(!readable(xps_ring_fd(ring)));
	close_ring(ring);
}

static void test_descriptor_is_not_readable_when_a_waiting_user_took_the_heap(void)
{
	struct xps_ring *ring = open_ring(4);
	pthread_t user = start(pop_one, ring);

	AWAIT(n_waiting(ring) == 1);
	CHECK_EQ(push(ring, 0, 1), 1);
	CHECK_EQ((intptr_t)join(user), 1);
	CHECK(!readable(xps_ring_fd(ring)));
	close_ring(ring);
}

static void test_descriptor_tells_of_new_heaps_when_the_worker_says_so(void)
{
	struct xps_heap *heaps[2] = { new_heap(0), new_heap(1) };
	struct xps_ring *ring = open_ring(4);
	int fd = xps_ring_fd(ring);
	uint32_t room;

	xps_ring_wake(ring);
	CHECK(!readable(fd)); /* there is nothing */
	CHECK_EQ(xps_ring_push(ring, 0, heaps, 2, &room), 2);
	CHECK(!readable(fd));
	pop(ring, 0); /* whoever looks finds it */
	xps_ring_wake(ring);
	CHECK(readable(fd));
	pop(ring, 1);
	CHECK(!readable(fd));
	xps_ring_wake(ring);
	CHECK(!readable(fd));
	close_ring(ring);
}

static void test_descriptor_stays_readable_after_stop(void)
{
	struct xps_ring *ring = open_ring(4);
	int fd = xps_ring_fd(ring);

	CHECK_EQ(push(ring, 0, 1), 1);
	xps_ring_stop(ring);
	CHECK(readable(fd));
	pop(ring, 0);
	CHECK(readable(fd));
	CHECK_EQ(pop_nothing(ring, 0), -EPIPE);
	CHECK(readable(fd));
	CHECK(readable(xps_ring_fd(ring)));
	close_ring(ring);
}

/* ---------------------------------------------------------------- a listener */

struct ear {
	struct xps_ring_listener listener;
	int told;
};

static _Atomic uint32_t *hear(struct xps_ring_listener *listener)
{
	XPS_CONTAINER_OF(listener, struct ear, listener)->told++;
	return NULL;
}

/* How often it was told since the last look. */
static int told(struct ear *ear)
{
	int n = ear->told;

	ear->told = 0;
	return n;
}

static void listen_to(struct xps_ring *ring, struct ear *ear)
{
	*ear = (struct ear){ .listener.tell = hear };
	CHECK_EQ(xps_ring_listen(ring, &ear->listener), 0);
}

static void test_listener_is_told_at_once_and_of_heaps_after_the_ring_was_found_empty(void)
{
	struct xps_ring *ring = open_ring(8);
	struct ear ear;

	listen_to(ring, &ear);
	CHECK_EQ(told(&ear), 1);
	CHECK_EQ(pop_nothing(ring, 0), 0);
	CHECK_EQ(told(&ear), 0);
	push(ring, 0, 2);
	CHECK_EQ(told(&ear), 1);
	push(ring, 2, 1); /* it knows, and has not looked yet */
	CHECK_EQ(told(&ear), 0);
	pop(ring, 0);
	CHECK_EQ(told(&ear), 1); /* there are more */
	pop(ring, 1);
	CHECK_EQ(told(&ear), 1);
	pop(ring, 2); /* the last one: that counts as finding it empty */
	CHECK_EQ(told(&ear), 0);
	push(ring, 3, 1);
	CHECK_EQ(told(&ear), 1);
	close_ring(ring);
}

static void test_listener_is_told_of_the_stop_until_the_last_heap_is_gone(void)
{
	struct xps_ring *ring = open_ring(8);
	struct ear ear;

	push(ring, 0, 2);
	listen_to(ring, &ear);
	CHECK_EQ(told(&ear), 1);
	xps_ring_stop(ring);
	CHECK_EQ(told(&ear), 1);
	pop(ring, 0);
	CHECK_EQ(told(&ear), 1);
	pop(ring, 1);
	CHECK_EQ(told(&ear), 1); /* whoever pops now is told the end */
	CHECK_EQ(pop_nothing(ring, 0), -EPIPE);
	CHECK_EQ(told(&ear), 0);
	close_ring(ring);
}

static void test_ring_has_one_listener_which_can_go(void)
{
	struct xps_ring *ring = open_ring(8);
	struct ear ear, other = { .listener.tell = hear };

	listen_to(ring, &ear);
	CHECK_EQ(xps_ring_listen(ring, &other.listener), -EBUSY);
	CHECK_EQ(told(&other), 0);
	CHECK_EQ(xps_ring_listen(ring, NULL), 0);
	told(&ear);
	CHECK_EQ(pop_nothing(ring, 0), 0);
	push(ring, 0, 1);
	CHECK_EQ(told(&ear), 0);
	CHECK_EQ(xps_ring_listen(ring, &other.listener), 0);
	CHECK_EQ(told(&other), 1);
	close_ring(ring);
}

static void test_whom_to_wake_can_be_left_to_the_caller(void)
{
	struct xps_ring *ring = open_ring(8);
	_Atomic uint32_t *sleepers[2];
	struct xps_heap *heaps[] = { new_heap(0) };
	uint32_t room;
	pthread_t user = start(pop_one, ring);

	AWAIT(n_waiting(ring) == 1);
	CHECK_EQ(xps_ring_push(ring, 0, heaps, 1, &room), 1);
	CHECK_EQ(xps_ring_tell(ring, sleepers), 1);
	CHECK(sleepers[0] == &ring->pushes);
	CHECK_EQ(xps_ring_tell(ring, sleepers), 0); /* they have been told */
	xps_futex_wake(sleepers[0]);
	CHECK_EQ((intptr_t)join(user), 1);
	close_ring(ring);
}

/* ---------------------------------------------------------------- the end */

static void test_heaps_can_be_popped_after_stop_and_none_be_pushed(void)
{
	struct xps_ring *ring = open_ring(4);

	CHECK_EQ(push(ring, 0, 2), 2);
	CHECK(!xps_ring_stopped(ring));
	xps_ring_stop(ring);
	CHECK(xps_ring_stopped(ring));
	CHECK_EQ(push(ring, 2, 1), 0);
	pop(ring, 0);
	pop(ring, 1);
	CHECK_EQ(pop_nothing(ring, 0), -EPIPE);
	CHECK_EQ(pop_nothing(ring, DEADLINE_MS), -EPIPE);
	close_ring(ring);
}

static void test_stop_forgets_the_worker_that_wanted_room(void)
{
	struct xps_ring *ring = open_ring(1);

	CHECK_EQ(push(ring, 0, 2), 1);
	xps_ring_stop(ring);
	CHECK(!pop(ring, 0));
	close_ring(ring);
}

/* ---------------------------------------------------------------- all at once */

enum { HEAPS = 20000, USERS = 3 };

struct shared {
	struct xps_ring *ring;
	pthread_mutex_t lock;
	pthread_cond_t unparked;
	bool wake;
	uint8_t seen[HEAPS];
};

/* Whoever pops sees heaps in rising order, and each goes to one user only. */
static void *pop_until_stopped(void *argument)
{
	struct shared *shared = argument;
	struct xps_heap *heaps[3];
	int64_t last = -1;

	for (;;) {
		uint64_t unparked;
		int n = xps_ring_pop(shared->ring, heaps, 3, DEADLINE_MS, &unparked);

		if (unparked) {
			pthread_mutex_lock(&shared->lock);
			shared->wake = true;
			pthread_cond_signal(&shared->unparked);
			pthread_mutex_unlock(&shared->lock);
		}
		if (n == -EPIPE)
			return NULL;
		CHECK(n > 0);
		for (int i = 0; i < n; i++) {
			CHECK((int64_t)heaps[i]->cnt > last);
			last = (int64_t)heaps[i]->cnt;
			CHECK_EQ(__atomic_add_fetch(&shared->seen[last], 1, __ATOMIC_RELAXED), 1);
			xps_heap_free(heaps[i]);
		}
	}
}

/* As a worker does it: push what fits, and wait to be woken for the rest. */
static void push_all(struct shared *shared)
{
	struct xps_heap *heaps[5];
	uint64_t made = 0;
	uint32_t n = 0, room, pushed;

	while (made < HEAPS || n) {
		while (n < 5 && made < HEAPS)
			heaps[n++] = new_heap(made++);
		pushed = xps_ring_push(shared->ring, 0, heaps, n, &room);
		xps_ring_wake(shared->ring);
		n -= pushed;
		memmove(heaps, heaps + pushed, n * sizeof(*heaps));
		pthread_mutex_lock(&shared->lock);
		while (n && !shared->wake)
			pthread_cond_wait(&shared->unparked, &shared->lock);
		shared->wake = false;
		pthread_mutex_unlock(&shared->lock);
	}
}

static void test_many_users_get_every_heap_once_and_never_leave_the_worker_asleep(void)
{
	struct shared *shared = calloc(1, sizeof(*shared));
	pthread_t users[USERS];

	pthread_mutex_init(&shared->lock, NULL);
	pthread_cond_init(&shared->unparked, NULL);
	shared->ring = open_ring(4);
	for (int i = 0; i < USERS; i++)
		users[i] = start(pop_until_stopped, shared);
	push_all(shared);
	xps_ring_stop(shared->ring);
	for (int i = 0; i < USERS; i++)
		join(users[i]);
	for (int i = 0; i < HEAPS; i++)
		CHECK_EQ(shared->seen[i], 1);
	close_ring(shared->ring);
	free(shared);
}

static void *poll_until_stopped(void *argument)
{
	struct shared *shared = argument;
	struct xps_heap *heap;
	uint64_t next = 0;
	uint64_t unparked;

	for (;;) {
		int n;

		await_readable(xps_ring_fd(shared->ring));
		n = xps_ring_pop(shared->ring, &heap, 1, 0, &unparked);
		if (n == -EPIPE)
			return NULL;
		CHECK_EQ(n, 1); /* the only user: readable means that there is one */
		CHECK_EQ(heap->cnt, next++);
		xps_heap_free(heap);
		if (unparked) {
			pthread_mutex_lock(&shared->lock);
			shared->wake = true;
			pthread_cond_signal(&shared->unparked);
			pthread_mutex_unlock(&shared->lock);
		}
	}
}

static void test_user_that_polls_gets_every_heap(void)
{
	struct shared *shared = calloc(1, sizeof(*shared));
	pthread_t user;

	pthread_mutex_init(&shared->lock, NULL);
	pthread_cond_init(&shared->unparked, NULL);
	shared->ring = open_ring(4);
	user = start(poll_until_stopped, shared);
	push_all(shared);
	xps_ring_stop(shared->ring);
	join(user);
	close_ring(shared->ring);
	free(shared);
}

int main(void)
{
	test_capacity_must_make_sense();
	test_heaps_come_out_in_order();
	test_pop_takes_as_many_as_are_there_and_asked_for();
	test_ring_frees_what_nobody_took();

	test_push_tells_how_many_fitted_and_the_room_left();
	test_small_heaps_fit_in_by_their_bytes();
	test_first_pop_after_a_push_that_did_not_fit_wakes_the_worker();
	test_push_that_fits_takes_the_wish_to_be_woken_back();
	test_worker_is_woken_when_a_quarter_of_the_ring_is_free();

	test_half_of_the_ring_can_be_popped_ahead_but_at_least_one();
	test_heaps_popped_ahead_take_up_room_until_somebody_pops_again();
	test_worker_is_never_left_asleep_by_who_pops_ahead();

	test_every_producer_that_was_left_with_heaps_is_woken_once();
	test_push_of_one_producer_leaves_the_wish_of_another_alone();

	test_pop_of_an_empty_ring_waits_as_long_as_it_was_told();
	test_every_waiting_user_gets_a_heap();
	test_heaps_one_by_one_reach_waiting_users_one_by_one();
	test_user_who_had_to_wait_gets_one_and_leaves_the_rest_to_others();
	test_user_who_waited_alone_gets_all_that_came();
	test_stop_wakes_every_waiting_user();
	test_signal_interrupts_a_waiting_user();

	test_descriptor_is_readable_while_heaps_are_there();
	test_descriptor_shows_what_came_before_it_was_asked_for();
	test_descriptor_is_not_readable_when_a_waiting_user_took_the_heap();
	test_descriptor_tells_of_new_heaps_when_the_worker_says_so();
	test_descriptor_stays_readable_after_stop();

	test_listener_is_told_at_once_and_of_heaps_after_the_ring_was_found_empty();
	test_listener_is_told_of_the_stop_until_the_last_heap_is_gone();
	test_ring_has_one_listener_which_can_go();
	test_whom_to_wake_can_be_left_to_the_caller();

	test_heaps_can_be_popped_after_stop_and_none_be_pushed();
	test_stop_forgets_the_worker_that_wanted_room();

	test_many_users_get_every_heap_once_and_never_leave_the_worker_asleep();
	test_user_that_polls_gets_every_heap();
	return 0;
}
