// SPDX-License-Identifier: Apache-2.0
/*
 * Sockets that share a queue: packets arrive whole and in order, a reader keeps to its share of the frames, and no frame
 * is ever lost. On a veth in a network namespace of its own, as root; packets are written to its other end.
 */
#include <errno.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "check.h"
#include "frames.h"
#include "slots.h"
#include "xdp_socket.h"

enum {
	FRAMES = 1024,
	PORT = 8888, /* of the first reader; the next has the next */
	DEADLINE_MS = 5000,
};

struct reader {
	struct xps_xdp_socket socket;
	struct xps_xdp_port *port;
	atomic_bool kicked;
	int slot;
};

static int wire; /* packet socket on the other end */

static struct xps_xdp_port *open_port(int mode, int mtu)
{
	const struct xps_xdp_port_config config = {
		.ifindex = (int)if_nametoindex("v0"),
		.mode = mode,
		.n_queues = 1,
		.mtu = mtu,
		.multi_buffer = mtu > 1500,
	};
	struct xps_fail fail = { 0 };
	struct xps_xdp_port *port = xps_xdp_port_new(&config, &fail);

	if (!port)
		fprintf(stderr, "%s: %s\n", fail.step, fail.text);
	CHECK(port);
	return port;
}

static void reader_open(struct reader *reader, struct xps_xdp_port *port, int n)
{
	const uint64_t frame = port->config.mtu > 1500 ? 4096 : 2048;
	const struct xps_xdp_queue_config config = { .buffer_size = FRAMES * frame };
	const struct xps_xdp_endpoint endpoint = { .address = { 10, 77, 0, 2 },
						   .port = (uint16_t)(PORT + n),
						   .family = 4 };
	struct xps_fail fail = { 0 };

	memset(reader, 0, sizeof(*reader));
	reader->port = port;
	reader->socket.member.kick_fd = eventfd(0, EFD_NONBLOCK);
	reader->socket.member.kicked = &reader->kicked;
	reader->slot = xps_xdp_port_take_slot(port, NULL, &fail);
	CHECK(reader->slot >= 0);
	if (xps_xdp_socket_open(&reader->socket, port, 0, &config, &fail))
		fprintf(stderr, "%s: %s\n", fail.step, fail.text);
	CHECK(reader->socket.queue);
	CHECK_EQ(reader->socket.queue->n_frames, FRAMES);
	CHECK_EQ(xps_xdp_port_set_socket(port, reader->slot, 0, reader->socket.fd, &fail), 0);
	CHECK_EQ(xps_xdp_port_add_endpoints(port, reader->slot, &endpoint, 1, &fail), 0);
}

/* Returns the packets that nobody took. */
static uint32_t reader_close(struct reader *reader)
{
	uint32_t lost;

	xps_xdp_port_clear_slot(reader->port, reader->slot);
	xps_xdp_quiesce();
	lost = xps_xdp_socket_drain(&reader->socket);
	xps_xdp_port_give_slot(reader->port, reader->slot);
	close(reader->socket.member.kick_fd);
	xps_xdp_socket_close(&reader->socket);
	return lost;
}

/* A packet for reader `n` with a number in the first bytes of its payload. */
static void send_packet(int n, uint32_t number, unsigned payload)
{
	struct frame f;

	make_ipv4(&f, 0, 0, (unsigned)(PORT + n), payload);
	memcpy(f.bytes + 42, &number, sizeof(number));
	CHECK_EQ(send(wire, f.bytes, f.length, 0), f.length);
}

/* The kernel has redirected that many packets to the reader. */
static void wait_redirected(const struct reader *reader, uint64_t n)
{
	for (int ms = 0; slot_counters(reader->port, reader->slot).redirected < n; ms++) {
		CHECK(ms < DEADLINE_MS);
		usleep(1000);
	}
	xps_xdp_quiesce();
}

/* The next whole packets; waits for some. */
static uint32_t take(struct reader *reader)
{
	struct pollfd wait = { .fd = reader->socket.fd, .events = POLLIN };
	uint32_t n;

	while (!(n = xps_xdp_socket_take(&reader->socket)))
		CHECK(poll(&wait, 1, DEADLINE_MS) == 1);
	return n;
}

/* Check and give back packets `first` to `last` of reader `n`, each in `pieces` frames. */
static void check_packets(struct reader *reader, uint32_t first, uint32_t last, unsigned payload)
{
	const struct xps_xdp_socket *s = &reader->socket;
	uint8_t bytes[sizeof(((struct frame *)0)->bytes)];
	uint32_t length = 0, number;

	while (first <= last) {
		const uint32_t n = take(reader);

		for (uint32_t i = 0; i < n; i++) {
			CHECK(s->held[i].len <= sizeof(bytes) - length);
			memcpy(bytes + length, s->queue->frames + s->held[i].addr, s->held[i].len);
			length += s->held[i].len;
			if (s->held[i].options & XDP_PKT_CONTD)
				continue;
			memcpy(&number, bytes + 42, sizeof(number));
			CHECK_EQ(number, first);
			CHECK_EQ(length, 42 + payload);
			for (unsigned k = 4; k < payload; k++)
				CHECK_EQ(bytes[42 + k], (uint8_t)k);
			length = 0;
			first++;
		}
		xps_xdp_socket_done(&reader->socket);
	}
	CHECK_EQ(first, last + 1);
}

static void check_all_frames_are_back(struct xps_xdp_queue *queue)
{
	CHECK_EQ(xps_xdp_fill_level(&queue->fill), FRAMES);
}

static void test_two_readers_get_their_packets_whole_and_in_order(int mode, int mtu, unsigned payload)
{
	struct xps_xdp_port *port = open_port(mode, mtu);
	struct reader a, b;

	reader_open(&a, port, 0);
	reader_open(&b, port, 1);
	for (uint32_t i = 0; i < 3000; i += 100) {
		for (uint32_t k = i; k < i + 100; k++) {
			send_packet(0, k, payload);
			send_packet(1, k, payload);
		}
		check_packets(&a, i, i + 99, payload);
		check_packets(&b, i, i + 99, payload);
	}
	check_all_frames_are_back(a.socket.queue);
	CHECK_EQ(reader_close(&a), 0);
	CHECK_EQ(reader_close(&b), 0);
	xps_xdp_port_free(port);
}

/* Sends and absorbs in steps, so that the veth's own queue holds. Returns the packets dropped. */
static uint32_t send_and_absorb(struct reader *reader, uint32_t n, unsigned payload)
{
	uint32_t dropped = 0;

	for (uint32_t i = 0; i < n; i++) {
		send_packet(0, i, payload);
		if (i % 50 < 49)
			continue;
		wait_redirected(reader, i + 1);
		dropped += xps_xdp_socket_absorb(&reader->socket);
	}
	return dropped;
}

static void test_reader_that_is_not_read_keeps_to_its_share(int mode, int mtu, unsigned payload, unsigned pieces)
{
	struct xps_xdp_port *port = open_port(mode, mtu);
	struct reader a, b;
	uint32_t dropped, kept;

	reader_open(&a, port, 0);
	reader_open(&b, port, 1);
	dropped = send_and_absorb(&a, 1000, payload);
	kept = 1000 - dropped;
	CHECK(dropped > 0);
	CHECK(kept * pieces <= FRAMES / 2);
	CHECK(kept * pieces >= FRAMES / 4);
	for (uint32_t i = 0; i < 1000; i += 100) { /* the other has what it needs */
		for (uint32_t k = i; k < i + 100; k++)
			send_packet(1, k, payload);
		check_packets(&b, i, i + 99, payload);
	}
	check_packets(&a, 0, kept - 1, payload); /* the oldest were kept */
	check_all_frames_are_back(a.socket.queue);
	CHECK_EQ(reader_close(&a), 0);
	CHECK_EQ(reader_close(&b), 0);
	xps_xdp_port_free(port);
}

static void test_alone_a_reader_may_keep_all_frames_until_another_joins(int mode, int mtu, unsigned payload,
									unsigned pieces)
{
	struct xps_xdp_port *port = open_port(mode, mtu);
	struct xdp_statistics stats;
	struct reader a, b;
	uint32_t dropped, kept;

	reader_open(&a, port, 0);
	CHECK_EQ(send_and_absorb(&a, 1200, payload), 0);
	xps_xdp_socket_stats(&a.socket, &stats);
	kept = 1200 - (uint32_t)stats.rx_dropped;
	CHECK(kept == FRAMES / pieces);
	CHECK(!atomic_load(&a.kicked));

	reader_open(&b, port, 1);
	CHECK(atomic_load(&a.kicked));
	dropped = xps_xdp_socket_absorb(&a.socket);
	CHECK((kept - dropped) * pieces <= FRAMES / 2);
	for (uint32_t k = 0; k < 100; k++)
		send_packet(1, k, payload);
	check_packets(&b, 0, 99, payload);
	check_packets(&a, 0, kept - dropped - 1, payload);
	check_all_frames_are_back(a.socket.queue);
	CHECK_EQ(reader_close(&a), 0);
	CHECK_EQ(reader_close(&b), 0);
	xps_xdp_port_free(port);
}

static void test_reader_that_closes_gives_its_frames_back(int mode, int mtu, unsigned payload)
{
	struct xps_xdp_port *port = open_port(mode, mtu);
	struct reader a, b;

	reader_open(&b, port, 1);
	for (int round = 0; round < 4; round++) {
		reader_open(&a, port, 0);
		for (uint32_t i = 0; i < 120; i++) {
			send_packet(0, i, payload);
			if (i == 59) { /* some in the backlog, some in the ring, some held */
				wait_redirected(&a, 60);
				CHECK_EQ(xps_xdp_socket_absorb(&a.socket), 0);
			}
		}
		wait_redirected(&a, 120);
		CHECK_EQ(reader_close(&a), 120);
		check_all_frames_are_back(b.socket.queue);
	}
	CHECK_EQ(reader_close(&b), 0);
	xps_xdp_port_free(port);
}

static void test_queue_counters_are_credited_once(int mode)
{
	struct xps_xdp_port *port = open_port(mode, 1500);
	struct xdp_statistics stats[2];
	struct reader a, b;

	reader_open(&a, port, 0);
	reader_open(&b, port, 1);
	for (uint32_t i = 0; i < 1400; i++) { /* nobody absorbs: the frames run out */
		send_packet(1, i, 100);
		if (i % 50 == 49)
			wait_redirected(&b, i + 1);
	}
	xps_xdp_socket_stats(&b.socket, &stats[1]);
	xps_xdp_socket_stats(&a.socket, &stats[0]);
	CHECK_EQ(stats[0].rx_dropped, 0);
	CHECK_EQ(stats[1].rx_dropped, 1400 - FRAMES);
	CHECK_EQ(stats[0].rx_fill_ring_empty_descs + stats[1].rx_fill_ring_empty_descs, 1400 - FRAMES);
	CHECK_EQ(reader_close(&a), 0);
	CHECK_EQ(reader_close(&b), FRAMES);
	xps_xdp_port_free(port);
}

/* What check_straddling() expects of packet `number`. */
struct mix {
	uint32_t n_small; /* packets of one frame, before those of several */
	unsigned small, large;
};

static void check_mixed_packet(const uint8_t *bytes, uint32_t length, uint32_t expected, const struct mix *mix)
{
	const unsigned payload = expected < mix->n_small ? mix->small : mix->large;
	uint32_t number;

	memcpy(&number, bytes + 42, sizeof(number));
	CHECK_EQ(number, expected);
	CHECK_EQ(length, 42 + payload);
	for (unsigned k = 4; k < payload; k++)
		CHECK_EQ(bytes[42 + k], (uint8_t)k);
}

/* Take everything, put the pieces together. Returns how many frames of the next packet the first batch ended with. */
static uint32_t check_straddling(struct reader *reader, uint32_t n, const struct mix *mix)
{
	const struct xps_xdp_socket *s = &reader->socket;
	uint8_t bytes[sizeof(((struct frame *)0)->bytes)];
	uint32_t length = 0, packets = 0, cut = UINT32_MAX;

	while (packets < n) {
		const uint32_t whole = take(reader);

		if (cut == UINT32_MAX) {
			CHECK_EQ(s->n_held, XPS_XDP_BATCH);
			cut = s->n_held - whole;
		}
		for (uint32_t i = 0; i < whole; i++) {
			memcpy(bytes + length, s->queue->frames + s->held[i].addr, s->held[i].len);
			length += s->held[i].len;
			if (s->held[i].options & XDP_PKT_CONTD)
				continue;
			check_mixed_packet(bytes, length, packets++, mix);
			length = 0;
		}
		CHECK_EQ(length, 0);
		xps_xdp_socket_done(&reader->socket);
	}
	return cut;
}

static void test_packets_are_whole_wherever_a_batch_cuts_them(int mode, unsigned payload, uint32_t pieces, bool absorb)
{
	struct xps_xdp_port *port = open_port(mode, 9000);
	uint64_t sent = 0;
	struct reader a;

	reader_open(&a, port, 0);
	for (uint32_t shift = 0; shift < pieces; shift++) {
		const struct mix mix = { .n_small = shift, .small = 100, .large = payload };
		const uint32_t n = shift + 200 / pieces;

		for (uint32_t i = 0; i < n; i++)
			send_packet(0, i, i < shift ? mix.small : mix.large);
		wait_redirected(&a, sent += n);
		if (absorb)
			CHECK_EQ(xps_xdp_socket_absorb(&a.socket), 0);
		CHECK_EQ(check_straddling(&a, n, &mix), (XPS_XDP_BATCH - shift) % pieces);
	}
	check_all_frames_are_back(a.socket.queue);
	CHECK_EQ(reader_close(&a), 0);
	xps_xdp_port_free(port);
}

static void test_mtu_that_needs_several_frames_is_refused_where_there_is_only_one(void)
{
	const struct xps_xdp_port_config config = {
		.ifindex = (int)if_nametoindex("v0"), .mode = XPS_XDP_GENERIC, .n_queues = 1, .mtu = 9000
	};
	const struct xps_xdp_queue_config queue = { .buffer_size = 1 << 20 };
	struct xps_xdp_socket s = { .fd = -1 };
	struct xps_fail fail = { 0 };
	struct xps_xdp_port *port = xps_xdp_port_new(&config, &fail);

	CHECK(port);
	CHECK_EQ(xps_xdp_socket_open(&s, port, 0, &queue, &fail), -EMSGSIZE);
	CHECK(strstr(fail.text, "v0 has MTU 9000"));
	CHECK(strstr(fail.text, "need Linux 6.6 and libbpf 0.6. Set the MTU to 3818 or less."));
	xps_xdp_port_free(port);
}

static void enter_namespace(void)
{
	struct sockaddr_ll address = { .sll_family = AF_PACKET };

	if (geteuid() != 0)
		SKIP("needs root");
	if (unshare(CLONE_NEWNET))
		SKIP("cannot make a network namespace");
	if (system("ip link add v0 mtu 9000 type veth peer name v1 mtu 9000 && ip link set v0 up && ip link set v1 up"))
		SKIP("cannot make a veth pair");
	wire = socket(AF_PACKET, SOCK_RAW, 0);
	address.sll_ifindex = (int)if_nametoindex("v1");
	CHECK_EQ(bind(wire, (const struct sockaddr *)&address, sizeof(address)), 0);
}

static void set_mtu(int mtu)
{
	char command[128];

	snprintf(command, sizeof(command), "ip link set v0 mtu %d && ip link set v1 mtu %d", mtu, mtu);
	CHECK_EQ(system(command), 0);
}

static void test_all(int mode, int mtu, unsigned payload, unsigned pieces)
{
	set_mtu(mtu);
	test_two_readers_get_their_packets_whole_and_in_order(mode, mtu, payload);
	test_reader_that_is_not_read_keeps_to_its_share(mode, mtu, payload, pieces);
	test_alone_a_reader_may_keep_all_frames_until_another_joins(mode, mtu, payload, pieces);
	test_reader_that_closes_gives_its_frames_back(mode, mtu, payload);
}

int main(void)
{
	enter_namespace();
	for (int mode = XPS_XDP_NATIVE; mode <= XPS_XDP_GENERIC; mode++) {
		test_all(mode, 1500, 1000, 1);
		test_queue_counters_are_credited_once(mode);
		test_all(mode, 9000, 8972, 3);
		for (int absorb = 0; absorb < 2; absorb++) {
			test_packets_are_whole_wherever_a_batch_cuts_them(mode, 8972, 3, absorb);
			test_packets_are_whole_wherever_a_batch_cuts_them(mode, 5000, 2, absorb);
		}
	}
	test_mtu_that_needs_several_frames_is_refused_where_there_is_only_one();
	return 0;
}
