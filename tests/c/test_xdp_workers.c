// SPDX-License-Identifier: Apache-2.0
/*
 * AF_XDP readers with several workers, and what may go wrong between these: packets come on all queues while the stream
 * ends in one way or the other, and all of them are accounted for. On a veth in a network namespace of its own, as root.
 */
#include <errno.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <sched.h>
#include <sys/socket.h>
#include <unistd.h>

#include "await.h"
#include "check.h"
#include "frames.h"
#include "packets.h"
#include "streams.h"
#include "xdpspead.h"

enum { QUEUES = 4, PORT = 8888, HEAP_BYTES = 100, BATCH = 32 };

static int wire; /* packet socket on the other end */
static struct xps_allocator *allocator;
static struct xps_log *quiet; /* nobody reads it */

static struct xps_pool *new_pool(int n_threads)
{
	struct xps_fail fail = { 0 };
	struct xps_pool *pool = xps_pool_new(n_threads, NULL, 0, &fail);

	CHECK(pool);
	return pool;
}

static struct xps_stream *new_stream(struct xps_pool *pool, uint64_t ring_heaps)
{
	const struct xps_stream_config config = {
		.max_heaps = 4,
		.substreams = 1,
		.max_heap_size = 1 << 20,
		.ring_heaps = ring_heaps,
		.nap_ns = 50000,
		.stop_on_stop_item = true,
		.contiguous_only = true,
	};
	struct xps_fail fail = { 0 };
	struct xps_stream *stream = xps_stream_new(pool, &config, allocator, quiet, &fail);

	CHECK(stream);
	return stream;
}

static struct xps_xdp_port *open_port(int mode)
{
	const struct xps_xdp_port_config config = {
		.ifindex = (int)if_nametoindex("v0"),
		.mode = mode,
		.n_queues = QUEUES,
		.mtu = 1500,
	};
	struct xps_fail fail = { 0 };
	struct xps_xdp_port *port = xps_xdp_port_new(&config, &fail);

	if (!port)
		fprintf(stderr, "%s: %s\n", fail.step, fail.text);
	CHECK(port);
	return port;
}

static int add_reader(struct xps_stream *stream, struct xps_xdp_port *port, uint32_t n_queues, uint32_t n_workers,
		      struct xps_fail *fail)
{
	static const uint32_t queues[QUEUES] = { 2, 0, 3, 1 };
	const struct xps_xdp_endpoint endpoint = { .address = { 10, 77, 0, 2 }, .port = PORT, .family = 4 };
	const struct xps_xdp_reader_config config = {
		.endpoints = &endpoint,
		.n_endpoints = 1,
		.queues = queues,
		.n_queues = n_queues,
		.buffer_size = 256 * 2048,
		.max_size = 9200,
		.n_workers = n_workers,
	};
	const int64_t end = now_ms() + DEADLINE_MS;
	struct xps_xdp_obtained obtained;
	int err;

	/* The kernel gives queues back in the background, on a busy machine later than the reader waits. */
	do {
		*fail = (struct xps_fail){ 0 };
		err = xps_add_xdp_reader(stream, port, &config, &obtained, fail);
	} while (err == -EBUSY && now_ms() < end);
	return err;
}

/* From a UDP port that is as good as any: ports decide on the queue. */
static void send_frame(unsigned source, const uint8_t *data, size_t length)
{
	struct frame f;

	make_ipv4(&f, 0, 0, PORT, (unsigned)length);
	f.bytes[34] = (uint8_t)(source >> 8);
	f.bytes[35] = (uint8_t)source;
	memcpy(f.bytes + 42, data, length);
	/* The link is full now and then, goes down and up when the program comes and goes, and in the end away. */
	if (send(wire, f.bytes, f.length, 0) < 0)
		CHECK(errno == ENOBUFS || errno == ENETDOWN || errno == ENXIO);
}

static void send_heap(uint64_t cnt)
{
	const struct spec spec = { .cnt = cnt, .heap_length = HEAP_BYTES, .length = HEAP_BYTES };
	uint8_t *data = new_packet(&spec);

	send_frame((unsigned)(cnt * 7 % 50000) + 1000, data, spec_size(&spec));
	free(data);
}

static void send_stop(unsigned source)
{
	const uint64_t item = immediate(48, 6, 2);
	const struct spec spec = { .cnt = 1, .heap_length = 0, .items = &item, .n_items = 1 };
	uint8_t *data = new_packet(&spec);

	send_frame(source, data, spec_size(&spec));
	free(data);
}

/* ---------------------------------------------------------------- traffic */

static bool enough; /* atomic */

static void *send_on_and_on(void *unused)
{
	(void)unused;
	for (uint64_t cnt = 0; !__atomic_load_n(&enough, __ATOMIC_ACQUIRE); cnt++) {
		send_heap(cnt);
		if (cnt % BATCH == 0)
			sched_yield();
	}
	return NULL;
}

struct popped {
	struct xps_stream *stream;
	uint64_t heaps;
};

static void *pop_until_end(void *argument)
{
	struct popped *popped = argument;
	struct xps_heap *heaps[BATCH];
	int n;

	while ((n = xps_stream_pop(popped->stream, heaps, BATCH, DEADLINE_MS)) > 0) {
		popped->heaps += (uint64_t)n;
		for (int i = 0; i < n; i++) {
			CHECK_EQ(heaps[i]->size, HEAP_BYTES);
			for (uint64_t k = 0; k < HEAP_BYTES; k++)
				CHECK_EQ(heaps[i]->payload[k], pattern(heaps[i]->cnt, k));
			xps_heap_free(heaps[i]);
		}
	}
	CHECK_EQ(n, -EPIPE);
	return NULL;
}

static void *watch_stats(void *argument)
{
	struct xps_stream *stream = argument;
	uint64_t last[XPS_N_STATS] = { 0 };

	while (!xps_stream_stopped(stream)) {
		uint64_t stats[XPS_N_STATS];

		xps_stream_stats(stream, stats);
		for (int i = 0; i < XPS_N_STATS; i++)
			CHECK(stats[i] >= last[i]);
		memcpy(last, stats, sizeof(last));
		sched_yield();
	}
	return NULL;
}

static void check_ledger(struct xps_stream *stream, uint64_t popped)
{
	uint64_t s[XPS_N_STATS];

	xps_stream_stats(stream, s);
	CHECK_EQ(s[XPS_STAT_XDP_MATCHED],
		 s[XPS_STAT_XDP_REDIRECTED] + s[XPS_STAT_XDP_NO_SOCKET] + s[XPS_STAT_XDP_BAD_LENGTH]);
	CHECK_EQ(s[XPS_STAT_XDP_REDIRECTED], s[XPS_STAT_PACKETS] + s[XPS_STAT_AFTER_STOP] + s[XPS_STAT_XDP_BAD_FRAME] +
						     s[XPS_STAT_XDP_UNREAD_DROPS] + s[XPS_STAT_XDP_RX_DROPPED] +
						     s[XPS_STAT_XDP_RX_RING_FULL]);
	CHECK_EQ(s[XPS_STAT_HEAPS], popped + s[XPS_STAT_HEAPS_DROPPED_STOP] + s[XPS_STAT_HEAPS_DISCARDED]);
}

enum end { STOP, STOP_ITEM, POOL_STOP, N_ENDS, DELETED = N_ENDS };

/* Receive for a while, one way or the other to the end. */
static void receive(struct xps_xdp_port *port, uint32_t n_queues, uint32_t n_workers, uint64_t ring_heaps, enum end end)
{
	struct xps_pool *pool = new_pool((int)n_workers);
	struct xps_stream *stream = new_stream(pool, ring_heaps);
	struct popped popped = { .stream = stream };
	struct xps_fail fail = { 0 };
	pthread_t threads[2];

	if (add_reader(stream, port, n_queues, n_workers, &fail))
		fprintf(stderr, "%s: %s\n", fail.step, fail.text);
	CHECK_EQ(fail.err, 0);
	threads[0] = start(pop_until_end, &popped);
	threads[1] = start(watch_stats, stream);
	AWAIT(stat_of(stream, XPS_STAT_PACKETS) > 300);
	if (end == STOP)
		xps_stream_stop(stream);
	else if (end == POOL_STOP)
		xps_pool_stop(pool);
	else if (end == DELETED)
		CHECK_EQ(system("ip link del v0"), 0);
	/* Sent again and again, since one may get lost, or come to a queue that is not read. */
	for (unsigned source = 1; end == STOP_ITEM && !xps_stream_stopped(stream); sched_yield())
		send_stop(source++);
	join(threads[0]);
	join(threads[1]);
	CHECK_EQ(xps_stream_failure(stream, &fail), end == DELETED ? -ENODEV : 0);
	CHECK_EQ(fail.err, end == DELETED ? ENODEV : 0);
	xps_stream_stop(stream);
	check_ledger(stream, popped.heaps);
	CHECK_EQ(xps_xdp_port_in_use(port), false);
	xps_stream_free(stream);
	xps_pool_free(pool);
}

static void test_packets_are_accounted_for_however_and_whenever_the_stream_ends(int mode)
{
	struct xps_xdp_port *port = open_port(mode);
	pthread_t sender;

	__atomic_store_n(&enough, false, __ATOMIC_RELEASE);
	sender = start(send_on_and_on, NULL);
	for (enum end end = 0; end < N_ENDS; end++) {
		receive(port, 2, 1, 64, end); /* two queues are not read */
		receive(port, QUEUES, 2, 2, end);
		receive(port, QUEUES, QUEUES, 64, end);
	}
	__atomic_store_n(&enough, true, __ATOMIC_RELEASE);
	join(sender);
	xps_xdp_port_free(port);
}

static void test_packets_are_accounted_for_when_the_interface_is_deleted(void)
{
	struct xps_xdp_port *port = open_port(XPS_XDP_NATIVE);
	pthread_t sender;

	__atomic_store_n(&enough, false, __ATOMIC_RELEASE);
	sender = start(send_on_and_on, NULL);
	receive(port, QUEUES, QUEUES, 2, DELETED);
	__atomic_store_n(&enough, true, __ATOMIC_RELEASE);
	join(sender);
	xps_xdp_port_free(port);
}

/* ---------------------------------------------------------------- readers that cannot be, or not any more */

static void test_workers_without_a_queue_are_refused(void)
{
	struct xps_xdp_port *port = open_port(XPS_XDP_NATIVE);
	struct xps_pool *pool = new_pool(1);
	struct xps_stream *stream = new_stream(pool, 4);
	const uint32_t wrong[] = { 0, QUEUES + 1, UINT32_MAX };

	for (int i = 0; i < 3; i++) {
		struct xps_fail fail = { 0 };

		CHECK_EQ(add_reader(stream, port, QUEUES, wrong[i], &fail), -EINVAL);
		CHECK(strstr(fail.text, "worker"));
	}
	CHECK(!xps_xdp_port_in_use(port));
	xps_stream_free(stream);
	xps_pool_free(pool);
	xps_xdp_port_free(port);
}

static void *stop(void *stream)
{
	xps_stream_stop(stream);
	return NULL;
}

static void test_reader_that_is_added_while_the_stream_is_stopped_leaves_nothing(void)
{
	struct xps_xdp_port *port = open_port(XPS_XDP_NATIVE);
	struct xps_pool *pool = new_pool(2);

	for (int round = 0; round < 10; round++) {
		struct xps_stream *stream = new_stream(pool, 4);
		pthread_t stopper = start(stop, stream);
		struct xps_fail fail = { 0 };

		CHECK_EQ(add_reader(stream, port, QUEUES, 2, &fail), 0);
		join(stopper);
		CHECK(!xps_xdp_port_in_use(port));
		check_ledger(stream, 0);
		xps_stream_free(stream);
	}
	xps_pool_free(pool);
	xps_xdp_port_free(port);
}

static void enter_namespace(void)
{
	struct sockaddr_ll address = { .sll_family = AF_PACKET };

	if (geteuid() != 0)
		SKIP("needs root");
	if (unshare(CLONE_NEWNET))
		SKIP("cannot make a network namespace");
	if (system("ip link add v0 numrxqueues 4 numtxqueues 4 type veth peer name v1 numrxqueues 4 numtxqueues 4 && "
		   "ip link set v0 up && ip link set v1 up"))
		SKIP("cannot make a veth pair");
	wire = socket(AF_PACKET, SOCK_RAW, 0);
	address.sll_ifindex = (int)if_nametoindex("v1");
	CHECK_EQ(bind(wire, (const struct sockaddr *)&address, sizeof(address)), 0);
}

int main(void)
{
	enter_namespace();
	allocator = xps_allocator_new();
	quiet = xps_log_new();

	for (int mode = XPS_XDP_NATIVE; mode <= XPS_XDP_GENERIC; mode++)
		test_packets_are_accounted_for_however_and_whenever_the_stream_ends(mode);
	test_workers_without_a_queue_are_refused();
	test_reader_that_is_added_while_the_stream_is_stopped_leaves_nothing();
	test_packets_are_accounted_for_when_the_interface_is_deleted();

	xps_log_free(quiet);
	xps_allocator_free(allocator);
	return 0;
}
