// SPDX-License-Identifier: Apache-2.0
/* The queue of heaps that are sent: order, results, room, rates, who sends, and the end. The transport is a fake. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "await.h"
#include "bits.h"
#include "check.h"
#include "writer.h"

/* ---------------------------------------------------------------- a writer that does as it is told */

#define MAX_PACKETS 4096

struct fake {
	struct xps_writer base;
	pthread_mutex_t lock; /* guards all below */
	uint32_t most;        /* packets that it takes in one call */
	int refuse;           /* this for the next packets: 0, -EAGAIN or an error */
	uint32_t n_refuse;
	uint32_t n;
	uint64_t cnts[MAX_PACKETS]; /* of the packets taken */
	uint32_t substreams[MAX_PACKETS];
	pthread_t threads[MAX_PACKETS];
	int64_t when[MAX_PACKETS];
	uint64_t bytes;
	bool ended;
	bool *closed;
};

static uint32_t take_packets(struct fake *fake, const struct xps_write *packets, uint32_t n)
{
	uint32_t take = n < fake->most ? n : fake->most;

	for (uint32_t i = 0; i < take; i++, fake->n++) {
		CHECK(fake->n < MAX_PACKETS);
		/* The first item pointer is the heap's identifier, immediate. */
		fake->cnts[fake->n] = xps_load_be64((const uint8_t *)packets[i].packet.slices[0].iov_base + 8) &
				      ((UINT64_C(1) << 48) - 1);
		fake->substreams[fake->n] = packets[i].substream;
		fake->threads[fake->n] = pthread_self();
		fake->when[fake->n] = now_ms();
		fake->bytes += packets[i].packet.length;
	}
	return take;
}

static int fake_write(struct xps_writer *writer, const struct xps_write *packets, uint32_t n)
{
	struct fake *fake = XPS_CONTAINER_OF(writer, struct fake, base);
	int result;

	CHECK(n > 0);
	pthread_mutex_lock(&fake->lock);
	if (fake->n_refuse) {
		fake->n_refuse--;
		result = fake->refuse;
	} else {
		result = (int)take_packets(fake, packets, n);
	}
	pthread_mutex_unlock(&fake->lock);
	return result;
}

static void fake_end(struct xps_writer *writer)
{
	struct fake *fake = XPS_CONTAINER_OF(writer, struct fake, base);

	CHECK(!fake->ended);
	fake->ended = true;
}

static void fake_close(struct xps_writer *writer)
{
	struct fake *fake = XPS_CONTAINER_OF(writer, struct fake, base);

	if (fake->closed)
		*fake->closed = true;
	free(fake);
}

static struct fake *new_fake(void)
{
	static const struct xps_writer_ops ops = {
		.name = "fake", .write = fake_write, .end = fake_end, .close = fake_close, .forget = fake_close
	};
	struct fake *fake = calloc(1, sizeof(*fake));

	CHECK(fake);
	pthread_mutex_init(&fake->lock, NULL);
	fake->most = UINT32_MAX;
	fake->base = (struct xps_writer){ .ops = &ops, .fd = -1, .n_substreams = 2, .batch = 16 };
	return fake;
}

static uint32_t n_taken(struct fake *fake)
{
	uint32_t n;

	pthread_mutex_lock(&fake->lock);
	n = fake->n;
	pthread_mutex_unlock(&fake->lock);
	return n;
}

static void refuse(struct fake *fake, int err, uint32_t n)
{
	pthread_mutex_lock(&fake->lock);
	fake->refuse = err;
	fake->n_refuse = n;
	pthread_mutex_unlock(&fake->lock);
}

/* ---------------------------------------------------------------- what the tests are made of */

enum { PACKET = 1024, FOREVER = 30000 };

struct setup {
	struct xps_pool *pool;
	struct fake *fake;
	struct xps_sender *sender;
	struct xps_send_heap *heap; /* of `n_packets` packets */
	uint8_t payload[8 * PACKET];
};

static struct xps_send_heap *new_heap(struct setup *setup, uint32_t n_packets)
{
	/* Four item pointers and that of the item leave this much room in the first packet, and 8 more in the others. */
	struct xps_send_item item = {
		.id = 0x1000,
		.data = (uintptr_t)setup->payload,
		.length = (uint64_t)n_packets * (PACKET - 40) - 8,
	};
	struct xps_fail fail = { 0 };
	struct xps_send_heap *heap = xps_send_heap_new(&item, 1, 48, false, &fail);

	CHECK(heap);
	return heap;
}

static struct xps_sender_config default_config(void)
{
	return (struct xps_sender_config){
		.max_packet_size = PACKET, .max_heaps = 4, .burst_size = 4 * PACKET, .burst_rate_ratio = 1.05
	};
}

static void set_up(struct setup *setup, struct xps_sender_config config, uint32_t n_packets)
{
	struct xps_fail fail = { 0 };

	memset(setup, 0, sizeof(*setup));
	setup->pool = xps_pool_new(1, NULL, 0, &fail);
	CHECK(setup->pool);
	setup->fake = new_fake();
	setup->sender = xps_sender_new(setup->pool, &config, &setup->fake->base, &fail);
	CHECK(setup->sender);
	setup->heap = new_heap(setup, n_packets);
}

static void tear_down(struct setup *setup)
{
	bool closed = false;

	setup->fake->closed = &closed;
	xps_sender_free(setup->sender);
	CHECK(closed);
	xps_send_heap_free(setup->heap);
	xps_pool_free(setup->pool);
}

static struct xps_heap_reference reference(struct setup *setup)
{
	return (struct xps_heap_reference){ .heap = setup->heap, .cnt = -1, .rate = -1 };
}

/* Post a heap that is not sent at once, because the transport has no room. */
static int64_t post_one(struct setup *setup)
{
	struct xps_heap_reference heap = reference(setup);
	struct xps_send_result result;
	int64_t ticket;
	bool open;

	pthread_mutex_lock(&setup->fake->lock);
	open = setup->fake->n_refuse == 0; /* only this thread changes that from none to some */
	pthread_mutex_unlock(&setup->fake->lock);
	if (open)
		refuse(setup->fake, -EAGAIN, UINT32_MAX);
	ticket = xps_sender_post(setup->sender, &heap, 1, XPS_GROUP_SERIAL, &result);
	if (open)
		refuse(setup->fake, 0, 0);
	CHECK(!result.done);
	CHECK_EQ(result.ticket, ticket);
	return ticket;
}

static int64_t send_one(struct setup *setup, struct xps_send_result *result)
{
	struct xps_heap_reference heap = reference(setup);

	return xps_sender_send(setup->sender, &heap, 1, XPS_GROUP_SERIAL, FOREVER, result);
}

static uint64_t stat_of(struct setup *setup, int stat)
{
	uint64_t stats[XPS_N_SEND_STATS];

	xps_sender_stats(setup->sender, stats);
	return stats[stat];
}

/* ---------------------------------------------------------------- tests */

static void a_waiting_thread_sends_by_itself(void)
{
	struct xps_send_result result;
	struct setup setup;

	set_up(&setup, default_config(), 3);
	CHECK_EQ(send_one(&setup, &result), 1);
	CHECK(result.done);
	CHECK_EQ(result.ticket, 1);
	CHECK_EQ(result.error, 0);
	CHECK_EQ(result.bytes, 3 * PACKET);
	CHECK_EQ(setup.fake->n, 3);
	for (int i = 0; i < 3; i++)
		CHECK(pthread_equal(setup.fake->threads[i], pthread_self()));
	tear_down(&setup);
}

static void what_nobody_waits_for_is_sent_by_the_pool(void)
{
	struct xps_send_result results[2];
	struct setup setup;

	set_up(&setup, default_config(), 3);
	CHECK(!readable(xps_sender_fd(setup.sender)));
	CHECK_EQ(post_one(&setup), 1);
	await_readable(xps_sender_fd(setup.sender));
	CHECK_EQ(n_taken(setup.fake), 3);
	CHECK(!pthread_equal(setup.fake->threads[0], pthread_self()));
	CHECK_EQ(xps_sender_take(setup.sender, results, 2), 1);
	CHECK_EQ(results[0].ticket, 1);
	CHECK_EQ(results[0].bytes, 3 * PACKET);
	CHECK(!readable(xps_sender_fd(setup.sender)));
	CHECK_EQ(xps_sender_take(setup.sender, results, 2), 0);
	tear_down(&setup);
}

static void small_heaps_are_sent_by_whoever_posts_them(void)
{
	struct xps_heap_reference heap;
	struct xps_send_result result;
	struct setup setup;

	set_up(&setup, default_config(), 3);
	heap = reference(&setup);
	CHECK_EQ(xps_sender_post(setup.sender, &heap, 1, XPS_GROUP_SERIAL, &result), 1);
	CHECK(result.done);
	CHECK_EQ(result.ticket, 1);
	CHECK_EQ(result.bytes, 3 * PACKET);
	CHECK(pthread_equal(setup.fake->threads[0], pthread_self()));
	CHECK_EQ(xps_sender_take(setup.sender, &result, 1), 0); /* it is known already */
	refuse(setup.fake, -EPERM, 3);
	CHECK_EQ(xps_sender_post(setup.sender, &heap, 1, XPS_GROUP_SERIAL, &result), 2);
	tear_down(&setup);
}

static void large_heaps_are_not_sent_by_whoever_posts_them(void)
{
	struct xps_heap_reference heap;
	struct xps_send_result result;
	struct setup setup;
	struct xps_send_heap *large;
	uint8_t *payload = calloc(1, 70 * PACKET);
	struct xps_send_item item = { .id = 0x1000, .data = (uintptr_t)payload, .length = 70 * PACKET };
	struct xps_fail fail = { 0 };

	set_up(&setup, default_config(), 1);
	large = xps_send_heap_new(&item, 1, 48, false, &fail);
	heap = reference(&setup);
	heap.heap = large;
	CHECK_EQ(xps_sender_post(setup.sender, &heap, 1, XPS_GROUP_SERIAL, &result), 1);
	AWAIT(n_taken(setup.fake) > 70);
	CHECK(!pthread_equal(setup.fake->threads[0], pthread_self()));
	tear_down(&setup);
	xps_send_heap_free(large);
	free(payload);
}

static void check_order(const struct fake *fake, const char *expected)
{
	CHECK_EQ(fake->n, strlen(expected));
	for (uint32_t i = 0; i < fake->n; i++)
		CHECK_EQ(fake->cnts[i], expected[i] - '0');
}

static void groups_go_in_turn_or_one_by_one(void)
{
	static const struct {
		int mode;
		const char *order;
	} cases[] = { { XPS_GROUP_SERIAL, "11123333" }, { XPS_GROUP_ROUND_ROBIN, "12313133" } };

	for (size_t c = 0; c < XPS_ARRAY_LEN(cases); c++) {
		struct xps_send_result result;
		struct setup setup;
		struct xps_heap_reference heaps[3];

		set_up(&setup, default_config(), 3);
		heaps[0] = heaps[1] = heaps[2] = reference(&setup);
		heaps[1].heap = new_heap(&setup, 1);
		heaps[2].heap = new_heap(&setup, 4);
		heaps[1].substream = 1;
		setup.fake->most = 3; /* also when the writer takes them in parts */
		CHECK_EQ(xps_sender_send(setup.sender, heaps, 3, cases[c].mode, FOREVER, &result), 1);
		CHECK_EQ(result.bytes, 8 * PACKET);
		check_order(setup.fake, cases[c].order);
		for (uint32_t i = 0; i < setup.fake->n; i++)
			CHECK_EQ(setup.fake->substreams[i], setup.fake->cnts[i] == 2);
		xps_send_heap_free(heaps[1].heap);
		xps_send_heap_free(heaps[2].heap);
		tear_down(&setup);
	}
}

static void a_refused_packet_fails_its_heap_alone(void)
{
	struct xps_heap_reference heaps[2];
	struct xps_send_result result;
	struct setup setup;

	set_up(&setup, default_config(), 3);
	heaps[0] = heaps[1] = reference(&setup);
	refuse(setup.fake, -EMSGSIZE, 1);
	CHECK_EQ(xps_sender_send(setup.sender, heaps, 2, XPS_GROUP_SERIAL, FOREVER, &result), 1);
	CHECK_EQ(result.error, -EMSGSIZE);
	CHECK_EQ(result.bytes, 5 * PACKET); /* the rest was tried */
	check_order(setup.fake, "11222");
	CHECK_EQ(stat_of(&setup, XPS_SEND_STAT_FAILED_HEAPS), 1);
	CHECK_EQ(stat_of(&setup, XPS_SEND_STAT_FAILED_PACKETS), 1);
	CHECK_EQ(stat_of(&setup, XPS_SEND_STAT_HEAPS), 1);
	CHECK_EQ(stat_of(&setup, XPS_SEND_STAT_PACKETS), 5);
	CHECK_EQ(stat_of(&setup, XPS_SEND_STAT_BYTES), 5 * PACKET);

	refuse(setup.fake, -EPERM, 3); /* all packets of a heap */
	CHECK_EQ(send_one(&setup, &result), 2);
	CHECK_EQ(result.error, -EPERM);
	CHECK_EQ(result.bytes, 0);
	CHECK_EQ(send_one(&setup, &result), 3);
	CHECK_EQ(result.error, 0);
	tear_down(&setup);
}

static void bad_groups_are_refused_and_use_no_identifier(void)
{
	struct xps_sender_config config = default_config();
	struct xps_heap_reference heaps[5];
	struct xps_send_result result;
	struct setup setup;

	set_up(&setup, config, 1);
	for (int i = 0; i < 5; i++)
		heaps[i] = reference(&setup);
	CHECK_EQ(xps_sender_post(setup.sender, heaps, 0, XPS_GROUP_SERIAL, &result), -EINVAL);
	CHECK_EQ(xps_sender_post(setup.sender, heaps, 5, XPS_GROUP_SERIAL, &result), -EAGAIN);
	heaps[1].substream = 2;
	CHECK_EQ(xps_sender_post(setup.sender, heaps, 2, XPS_GROUP_SERIAL, &result), -ECHRNG);
	heaps[1].substream = 0;
	heaps[1].cnt = INT64_C(1) << 48;
	CHECK_EQ(xps_sender_post(setup.sender, heaps, 2, XPS_GROUP_SERIAL, &result), -ERANGE);
	CHECK_EQ(send_one(&setup, &result), 1);
	check_order(setup.fake, "1");
	tear_down(&setup);

	config.max_packet_size = 48;
	set_up(&setup, config, 1);
	CHECK_EQ(post_one(&setup), -EMSGSIZE);
	tear_down(&setup);
}

static void identifiers_follow_the_sequence(void)
{
	struct xps_heap_reference heaps[3];
	struct xps_send_result result;
	struct setup setup;

	set_up(&setup, default_config(), 1);
	for (int i = 0; i < 3; i++)
		heaps[i] = reference(&setup);
	heaps[1].cnt = 9; /* leaves the sequence alone */
	xps_sender_set_cnt_sequence(setup.sender, 3, 2);
	CHECK_EQ(xps_sender_send(setup.sender, heaps, 3, XPS_GROUP_SERIAL, FOREVER, &result), 1);
	CHECK_EQ(send_one(&setup, &result), 2);
	check_order(setup.fake, "3957");
	tear_down(&setup);
}

static void room_is_free_again_when_heaps_are_done(void)
{
	struct xps_send_result results[16];
	struct setup setup;

	set_up(&setup, default_config(), 1);
	for (int round = 0; round < 3; round++) {
		refuse(setup.fake, -EAGAIN, UINT32_MAX);
		for (int i = 0; i < 4; i++)
			CHECK_EQ(post_one(&setup), round * 4 + i + 1);
		CHECK_EQ(post_one(&setup), -EAGAIN);
		refuse(setup.fake, 0, 0);
		CHECK_EQ(xps_sender_flush(setup.sender, FOREVER), 1);
	}
	/* What nobody took has been kept. */
	CHECK_EQ(xps_sender_take(setup.sender, results, 5), 5);
	CHECK_EQ(xps_sender_take(setup.sender, results + 5, 11), 7);
	for (int i = 0; i < 12; i++) {
		CHECK_EQ(results[i].ticket, i + 1);
		CHECK_EQ(results[i].bytes, PACKET);
	}
	tear_down(&setup);
}

static void who_forgets_a_group_gets_no_result(void)
{
	struct xps_heap_reference heap;
	struct xps_send_result result;
	struct setup setup;

	set_up(&setup, default_config(), 1);
	heap = reference(&setup);
	refuse(setup.fake, -EAGAIN, UINT32_MAX);
	CHECK_EQ(xps_sender_send(setup.sender, &heap, 1, XPS_GROUP_SERIAL, 0, &result), 1);
	CHECK_EQ(xps_sender_send(setup.sender, &heap, 1, XPS_GROUP_SERIAL, 0, &result), 2);
	CHECK(!result.done);
	xps_sender_forget(setup.sender, 1);
	refuse(setup.fake, 0, 0);
	CHECK_EQ(xps_sender_flush(setup.sender, FOREVER), 1);
	xps_sender_forget(setup.sender, 2);
	CHECK_EQ(xps_sender_take(setup.sender, &result, 1), 0);
	for (int64_t ticket = 0; ticket < 4; ticket++) /* two were forgotten, the others never given out */
		CHECK_EQ(xps_sender_wait(setup.sender, ticket, 0, &result), -EINVAL);
	CHECK_EQ(n_taken(setup.fake), 2);
	CHECK_EQ(send_one(&setup, &result), 3);
	CHECK(result.done);
	CHECK_EQ(xps_sender_wait(setup.sender, 3, 0, &result), -EINVAL); /* taken */
	tear_down(&setup);
}

static void the_pool_goes_on_after_a_time_out(void)
{
	struct xps_heap_reference heap;
	struct xps_send_result result;
	struct setup setup;

	set_up(&setup, default_config(), 2);
	heap = reference(&setup);
	refuse(setup.fake, -EAGAIN, UINT32_MAX);
	CHECK_EQ(xps_sender_send(setup.sender, &heap, 1, XPS_GROUP_SERIAL, 10, &result), 1);
	CHECK(!result.done);
	CHECK_EQ(result.ticket, 1);
	refuse(setup.fake, 0, 0);
	AWAIT(n_taken(setup.fake) == 2);
	CHECK_EQ(xps_sender_wait(setup.sender, 1, FOREVER, &result), 1);
	CHECK_EQ(result.bytes, 2 * PACKET);
	tear_down(&setup);
}

static void blocked_writers_are_waited_for_by_descriptor(void)
{
	struct xps_send_result result;
	struct xps_fail fail = { 0 };
	struct xps_sender_config config = default_config();
	struct setup setup;
	struct fake *fake;
	int ends[2];

	/* The writer's descriptor is a pipe that is full; it becomes writable when we read from it. */
	set_up(&setup, config, 2);
	CHECK_EQ(pipe2(ends, O_NONBLOCK | O_CLOEXEC), 0);
	while (write(ends[1], setup.payload, sizeof(setup.payload)) > 0)
		;
	fake = new_fake();
	fake->base.fd = ends[1];
	refuse(fake, -EAGAIN, 2); /* whoever posts, and the worker */
	xps_sender_free(setup.sender);
	setup.fake = fake;
	setup.sender = xps_sender_new(setup.pool, &config, &fake->base, &fail);
	CHECK(setup.sender);
	CHECK(post_one(&setup) > 0);
	AWAIT(stat_of(&setup, XPS_SEND_STAT_BLOCKED) == 2);
	CHECK_EQ(n_taken(fake), 0);
	while (read(ends[0], setup.payload, sizeof(setup.payload)) > 0)
		;
	AWAIT(n_taken(fake) == 2);
	CHECK_EQ(stat_of(&setup, XPS_SEND_STAT_BLOCKED), 2); /* no busy loop in between */
	CHECK_EQ(xps_sender_flush(setup.sender, FOREVER), 1);
	CHECK_EQ(xps_sender_take(setup.sender, &result, 1), 1);
	tear_down(&setup);
	close(ends[0]);
	close(ends[1]);
}

static void a_rate_of_its_own_is_for_one_heap(void)
{
	struct xps_sender_config config = default_config();
	struct xps_heap_reference heap;
	struct xps_send_result result;
	struct setup setup;
	int64_t begin;

	config.rate = 100 * PACKET; /* 8 packets: 80 ms */
	begin = now_ms();
	set_up(&setup, config, 8);
	heap = reference(&setup);
	CHECK_EQ(xps_sender_send(setup.sender, &heap, 1, XPS_GROUP_SERIAL, FOREVER, &result), 1);
	CHECK(setup.fake->when[7] - begin >= 79);
	heap.rate = 0;
	begin = now_ms();
	CHECK_EQ(xps_sender_send(setup.sender, &heap, 1, XPS_GROUP_SERIAL, FOREVER, &result), 2);
	CHECK(setup.fake->when[15] - begin < 79);
	heap.rate = 200 * PACKET;
	begin = now_ms();
	CHECK_EQ(xps_sender_send(setup.sender, &heap, 1, XPS_GROUP_SERIAL, FOREVER, &result), 3);
	CHECK(setup.fake->when[23] - setup.fake->when[16] >= 15); /* less the burst that it may begin with */
	tear_down(&setup);
}

struct stopper {
	struct setup *setup;
	bool pool;
};

static void *stop_soon(void *argument)
{
	struct stopper *stopper = argument;

	AWAIT(xps_sender_last_ticket(stopper->setup->sender) == 2);
	if (stopper->pool)
		xps_pool_stop(stopper->setup->pool);
	else
		xps_sender_stop(stopper->setup->sender);
	return NULL;
}

static void stopping_fails_what_is_left_and_waits_for_nobody(void)
{
	for (int pool = 0; pool < 2; pool++) {
		struct xps_send_result result;
		struct setup setup;
		struct stopper stopper = { &setup, pool };
		struct xps_heap_reference heap;
		pthread_t thread;

		set_up(&setup, default_config(), 2);
		refuse(setup.fake, -EAGAIN, UINT32_MAX);
		CHECK_EQ(post_one(&setup), 1);
		heap = reference(&setup);
		CHECK_EQ(xps_sender_send(setup.sender, &heap, 1, XPS_GROUP_SERIAL, 0, &result), 2);
		CHECK_EQ(pthread_create(&thread, NULL, stop_soon, &stopper), 0);
		/* Driven by this thread or by the worker, whoever came first. */
		while (!result.done)
			CHECK(xps_sender_wait(setup.sender, 2, FOREVER, &result) >= 0);
		CHECK_EQ(result.error, -ECANCELED);
		pthread_join(thread, NULL);
		CHECK_EQ(xps_sender_take(setup.sender, &result, 1), 1);
		CHECK_EQ(result.error, -ECANCELED);
		CHECK_EQ(stat_of(&setup, XPS_SEND_STAT_FAILED_HEAPS), 2);
		CHECK_EQ(post_one(&setup), -EPIPE);
		CHECK_EQ(setup.fake->ended, !pool);
		CHECK_EQ(xps_sender_flush(setup.sender, FOREVER), 1);
		xps_sender_stop(setup.sender);
		CHECK(setup.fake->ended);
		tear_down(&setup);
	}
}

static void a_stopped_pool_takes_no_senders(void)
{
	struct xps_sender_config config = default_config();
	struct xps_fail fail = { 0 };
	struct setup setup;
	struct fake *fake = new_fake();
	bool closed = false;

	set_up(&setup, config, 1);
	xps_pool_stop(setup.pool);
	fake->closed = &closed;
	CHECK(!xps_sender_new(setup.pool, &config, &fake->base, &fail));
	CHECK_EQ(fail.err, EPIPE);
	CHECK(closed);
	tear_down(&setup);
}

static void on_signal(int signal)
{
	(void)signal;
}

struct poke {
	struct setup *setup;
	pthread_t whom;
};

static void *send_signal(void *argument)
{
	struct poke *poke = argument;

	AWAIT(stat_of(poke->setup, XPS_SEND_STAT_PACKETS) > 0);
	pthread_kill(poke->whom, SIGUSR1);
	return NULL;
}

static void a_signal_ends_the_wait_but_not_the_sending(void)
{
	const struct sigaction action = { .sa_handler = on_signal };
	struct xps_sender_config config = default_config();
	struct xps_send_result result;
	struct setup setup;
	struct poke poke = { &setup, pthread_self() };
	pthread_t thread;

	sigaction(SIGUSR1, &action, NULL);
	config.rate = 4 * PACKET; /* 8 packets: 2 s */
	set_up(&setup, config, 8);
	CHECK_EQ(pthread_create(&thread, NULL, send_signal, &poke), 0);
	CHECK_EQ(send_one(&setup, &result), 1);
	CHECK(!result.done);
	CHECK(n_taken(setup.fake) < 8);
	pthread_join(thread, NULL);
	AWAIT(n_taken(setup.fake) == 8);
	CHECK_EQ(xps_sender_wait(setup.sender, 1, FOREVER, &result), 1);
	tear_down(&setup);
}

enum { N_THREADS = 4, N_SENDS = 200 };

static void *send_many(void *argument)
{
	struct setup *setup = argument;
	struct xps_send_result result;

	for (int i = 0; i < N_SENDS; i++) {
		CHECK(send_one(setup, &result) > 0);
		while (!result.done)
			CHECK(xps_sender_wait(setup->sender, result.ticket, FOREVER, &result) >= 0);
		CHECK_EQ(result.bytes, PACKET);
	}
	return NULL;
}

/* Returns how many results there were. */
static int take_all(struct setup *setup)
{
	struct xps_send_result result;
	int n = 0;

	for (; xps_sender_take(setup->sender, &result, 1); n++)
		CHECK_EQ(result.bytes, PACKET);
	return n;
}

static void many_threads_send_and_post_at_once(void)
{
	struct xps_sender_config config = default_config();
	struct xps_heap_reference heap;
	struct xps_send_result result;
	pthread_t threads[N_THREADS];
	struct setup setup;
	int n_results = 0;
	bool seen[(N_THREADS + 1) * N_SENDS + 1] = { false };

	config.max_heaps = N_THREADS + 1; /* room for everybody who waits */
	set_up(&setup, config, 1);
	for (int i = 0; i < N_THREADS; i++)
		CHECK_EQ(pthread_create(&threads[i], NULL, send_many, &setup), 0);
	heap = reference(&setup);
	for (int i = 0; i < N_SENDS; i++) {
		CHECK(xps_sender_post(setup.sender, &heap, 1, XPS_GROUP_SERIAL, &result) > 0);
		CHECK(!result.done || result.bytes == PACKET);
		n_results += result.done;
		AWAIT((n_results += take_all(&setup)) == i + 1);
	}
	for (int i = 0; i < N_THREADS; i++)
		pthread_join(threads[i], NULL);
	CHECK_EQ(xps_sender_flush(setup.sender, FOREVER), 1);
	CHECK_EQ(setup.fake->n, (N_THREADS + 1) * N_SENDS);
	for (uint32_t i = 0; i < setup.fake->n; i++) {
		CHECK(!seen[setup.fake->cnts[i]]);
		seen[setup.fake->cnts[i]] = true;
	}
	tear_down(&setup);
}

static void a_forked_child_sends_nothing_and_can_free(void)
{
	struct setup setup;
	int status;
	pid_t child;

	set_up(&setup, default_config(), 1);
	refuse(setup.fake, -EAGAIN, UINT32_MAX);
	CHECK_EQ(post_one(&setup), 1);
	child = fork();
	if (child == 0) {
		struct xps_send_result result;

		CHECK_EQ(post_one(&setup), -ECHILD);
		CHECK_EQ(xps_sender_flush(setup.sender, FOREVER), -ECHILD);
		CHECK_EQ(xps_sender_wait(setup.sender, 1, FOREVER, &result), -ECHILD);
		xps_sender_stop(setup.sender);
		xps_sender_free(setup.sender);
		_exit(0);
	}
	CHECK_EQ(waitpid(child, &status, 0), child);
	CHECK_EQ(status, 0);
	refuse(setup.fake, 0, 0);
	CHECK_EQ(xps_sender_flush(setup.sender, FOREVER), 1);
	tear_down(&setup);
}

int main(void)
{
	a_waiting_thread_sends_by_itself();
	what_nobody_waits_for_is_sent_by_the_pool();
	small_heaps_are_sent_by_whoever_posts_them();
	large_heaps_are_not_sent_by_whoever_posts_them();
	groups_go_in_turn_or_one_by_one();
	a_refused_packet_fails_its_heap_alone();
	bad_groups_are_refused_and_use_no_identifier();
	identifiers_follow_the_sequence();
	room_is_free_again_when_heaps_are_done();
	who_forgets_a_group_gets_no_result();
	the_pool_goes_on_after_a_time_out();
	blocked_writers_are_waited_for_by_descriptor();
	a_rate_of_its_own_is_for_one_heap();
	stopping_fails_what_is_left_and_waits_for_nobody();
	a_stopped_pool_takes_no_senders();
	a_signal_ends_the_wait_but_not_the_sending();
	many_threads_send_and_post_at_once();
	a_forked_child_sends_nothing_and_can_free();
	return 0;
}
