// SPDX-License-Identifier: Apache-2.0
/*
 * Sending through AF_XDP: frames arrive as they were described, what was taken is sent and what was not can be sent again,
 * nothing is lost without being told. On a veth in a network namespace of its own, as root; a packet socket reads the
 * other end.
 */
#include <errno.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <stdarg.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "frame.h"
#include "writer_xdp.h"
#include "xdp_tx.h"

enum {
	PORT = 8888,
	MTU = 9000,
	N = 64,
	MOST = 1 << 22, /* packets of a slow device */
	DEADLINE_MS = 5000,
	BUFFER = 1 << 20,
};

static int wire; /* packet socket on the other end */
static uint8_t memory[1 << 20];

static void run(const char *format, ...)
{
	char command[256];
	va_list args;

	va_start(args, format);
	vsnprintf(command, sizeof(command), format, args);
	va_end(args);
	CHECK_EQ(system(command), 0);
}

/* ---------------------------------------------------------------- opening */

static const struct xps_xdp_destination *destination(uint8_t family)
{
	static struct xps_xdp_destination to;

	to = (struct xps_xdp_destination){
		.source_mac = { 2, 0, 0, 0, 0, 1 },
		.mac = { 2, 0, 0, 0, 0, 2 },
		.source_address = { 10, 77, 0, 1 },
		.address = { 10, 77, 0, 2 },
		.source_port = 4660,
		.port = PORT,
		.family = family,
		.ttl = 3,
	};
	return &to;
}

static struct xps_xdp_sender_config config_of(const char *interface, uint8_t family)
{
	return (struct xps_xdp_sender_config){
		.ifindex = (int)if_nametoindex(interface),
		.mtu = MTU,
		.destinations = destination(family),
		.n_destinations = 1,
		.buffer_size = BUFFER,
	};
}

static struct xps_writer *open_writer(const struct xps_xdp_sender_config *config, uint32_t size)
{
	struct xps_xdp_obtained obtained;
	struct xps_fail fail = { 0 };
	struct xps_writer *writer = xps_xdp_writer_open(config, size, &obtained, &fail);

	if (!writer)
		fprintf(stderr, "%s: %s\n", fail.step, fail.text);
	CHECK(writer);
	CHECK(!obtained.zero_copy);
	CHECK_EQ(obtained.multi_buffer, size + 64 > 4096);
	CHECK(obtained.memory >= BUFFER);
	return writer;
}

static struct xps_writer *open_plain(uint8_t family, uint32_t size)
{
	const struct xps_xdp_sender_config config = config_of("v0", family);

	return open_writer(&config, size);
}

static void check_refused(const struct xps_xdp_sender_config *config, uint32_t size, int err, const char *says)
{
	struct xps_xdp_obtained obtained;
	struct xps_fail fail = { 0 };

	CHECK(!xps_xdp_writer_open(config, size, &obtained, &fail));
	if (fail.err != err || !strstr(fail.text, says))
		fprintf(stderr, "%d %s: %s\n", fail.err, fail.step, fail.text);
	CHECK_EQ(fail.err, err);
	CHECK(strstr(fail.text, says));
}

static void close_writer(struct xps_writer *writer)
{
	writer->ops->close(writer);
}

static uint64_t stat_of(struct xps_writer *writer, int stat)
{
	uint64_t stats[XPS_N_SEND_STATS] = { 0 };

	writer->ops->add_stats(writer, stats);
	return stats[stat];
}

/* ---------------------------------------------------------------- writing and reading */

/* Packet `number` begins with its number and goes on with bytes of `memory`, in slices of very different lengths. */
static void make_packet(struct xps_write *write, struct iovec *slices, uint32_t *numbers, uint32_t number,
			uint32_t size)
{
	uint32_t done = 0, n = 0;

	numbers[0] = number;
	slices[n++] = (struct iovec){ numbers, size < 4 ? size : 4 };
	done = size < 4 ? size : 4;
	while (done < size) {
		const uint32_t parts[] = { size, 1, 64, 4095, 7, 4096, 0, 333 };
		uint32_t part = n == 7 ? size : parts[(number + n) % 8];

		part = part < size - done ? part : size - done;
		slices[n++] = (struct iovec){ memory + number % 1000 + done, part };
		done += part;
	}
	*write = (struct xps_write){ .packet = { .slices = slices, .n_slices = n, .length = size } };
}

struct batch {
	struct xps_write writes[N];
	struct iovec slices[N][9];
	uint32_t numbers[N];
};

static void make_batch(struct batch *batch, uint32_t first, uint32_t n, uint32_t size)
{
	for (uint32_t i = 0; i < n; i++)
		make_packet(&batch->writes[i], batch->slices[i], &batch->numbers[i], first + i, size);
}

static double now_s(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* Write all, as a sender would. */
static void write_all(struct xps_writer *writer, const struct batch *batch, uint32_t n)
{
	const double start = now_s();

	for (uint32_t done = 0; done < n;) {
		int taken = writer->ops->write(writer, batch->writes + done, n - done);

		CHECK(taken == -EAGAIN || taken > 0);
		CHECK(now_s() - start < DEADLINE_MS / 1000);
		done += taken > 0 ? (uint32_t)taken : 0;
	}
}

/* The next frame of ours; its length. */
static size_t read_frame(uint8_t *bytes, size_t room)
{
	struct pollfd wait = { .fd = wire, .events = POLLIN };

	for (;;) {
		struct sockaddr_ll from;
		socklen_t length = sizeof(from);
		ssize_t n;

		CHECK_EQ(poll(&wait, 1, DEADLINE_MS), 1);
		n = recvfrom(wire, bytes, room, MSG_TRUNC, (struct sockaddr *)&from, &length);
		CHECK(n > 0 && (size_t)n <= room);
		if (from.sll_pkttype != PACKET_OUTGOING)
			return (size_t)n;
	}
}

static void check_payload(const uint8_t *payload, uint32_t number, uint32_t size)
{
	CHECK(!memcmp(payload, &number, size < 4 ? size : 4));
	if (size > 4)
		CHECK(!memcmp(payload + 4, memory + number % 1000 + 4, size - 4));
}

/* The next datagram, whole. Returns the number that it begins with, as far as it has room for that. */
static uint32_t check_next(uint8_t family, uint32_t size)
{
	uint8_t bytes[MTU + 100];
	size_t n = read_frame(bytes, sizeof(bytes));
	struct xps_frame frame;
	uint32_t number = 0;

	CHECK_EQ(xps_frame_parse(&frame, bytes, n, n), XPS_FRAME_UDP);
	CHECK_EQ(frame.family, family);
	CHECK_EQ(frame.dst_port, PORT);
	CHECK_EQ(frame.payload_length, size);
	CHECK_EQ(n, frame.payload_offset + size);
	CHECK(!memcmp(bytes, destination(family)->mac, 6));
	memcpy(&number, bytes + frame.payload_offset, size < 4 ? size : 4);
	check_payload(bytes + frame.payload_offset, number, size);
	return number;
}

static void check_arrives(uint8_t family, uint32_t number, uint32_t size)
{
	CHECK_EQ(check_next(family, size), size < 4 ? number & ((1u << 8 * size) - 1) : number);
}

static void check_nothing_arrives(void)
{
	struct pollfd wait = { .fd = wire, .events = POLLIN };

	CHECK_EQ(poll(&wait, 1, 50), 0);
}

/* ---------------------------------------------------------------- tests */

static void test_every_byte_arrives(uint8_t family, uint32_t size)
{
	struct xps_writer *writer = open_plain(family, size);
	struct batch batch;

	for (uint32_t first = 0; first < 1000; first += 40) {
		make_batch(&batch, first, 40, size);
		write_all(writer, &batch, 40);
		for (uint32_t i = 0; i < 40; i++)
			check_arrives(family, first + i, size);
	}
	CHECK_EQ(stat_of(writer, XPS_SEND_STAT_XDP_COMPLETED), 1000);
	CHECK_EQ(stat_of(writer, XPS_SEND_STAT_XDP_INVALID), 0);
	CHECK_EQ(stat_of(writer, XPS_SEND_STAT_XDP_DROPPED), 0);
	close_writer(writer);
}

static void test_packets_may_be_shorter_than_the_longest(void)
{
	static const uint32_t sizes[] = { 8972, 1, 4031, 4032, 4033, 4096, 8064, 8127, 8128, 8129, 100 };
	struct xps_writer *writer = open_plain(4, 8972);
	struct batch batch;

	for (uint32_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		make_batch(&batch, i, 1, sizes[i]);
		write_all(writer, &batch, 1);
		check_arrives(4, i, sizes[i]);
	}
	close_writer(writer);
}

static void test_each_substream_has_its_destination(void)
{
	struct xps_xdp_destination to[2] = { *destination(4), *destination(6) };
	struct xps_xdp_sender_config config = config_of("v0", 4);
	struct xps_writer *writer;
	struct batch batch;

	config.destinations = to;
	config.n_destinations = 2;
	writer = open_writer(&config, 100);
	CHECK_EQ(writer->n_substreams, 2);
	make_batch(&batch, 0, 4, 100);
	for (uint32_t i = 0; i < 4; i++)
		batch.writes[i].substream = i % 2;
	write_all(writer, &batch, 4);
	for (uint32_t i = 0; i < 4; i++)
		check_arrives(i % 2 ? 6 : 4, i, 100);
	close_writer(writer);
}

/* Down: an error, at once and each time, and what it concerned is not sent when the interface is up again. */
static void test_interface_that_is_down_is_an_error(uint32_t size)
{
	struct xps_writer *writer = open_plain(4, size);
	struct batch batch;

	make_batch(&batch, 0, 3, size);
	write_all(writer, &batch, 3);
	for (uint32_t i = 0; i < 3; i++)
		check_arrives(4, i, size);
	run("ip link set v0 down");
	make_batch(&batch, 100, N, size);
	for (int i = 0; i < 1000; i++) /* more than there are frames for */
		CHECK_EQ(writer->ops->write(writer, batch.writes, N), -ENETDOWN);
	run("ip link set v0 up");
	make_batch(&batch, 200, 3, size);
	write_all(writer, &batch, 3);
	for (uint32_t i = 0; i < 3; i++)
		check_arrives(4, 200 + i, size);
	check_nothing_arrives();
	CHECK_EQ(stat_of(writer, XPS_SEND_STAT_XDP_COMPLETED), 6);
	close_writer(writer);
}

static void test_closing_does_not_hang_when_the_interface_is_gone(void)
{
	struct xps_writer *writer;
	struct batch batch;
	double start;

	run("ip link add x0 mtu 9000 type veth peer name x1 mtu 9000 && ip link set x0 up && ip link set x1 up");
	writer = open_writer(&(struct xps_xdp_sender_config){ .ifindex = (int)if_nametoindex("x0"),
							      .mtu = MTU,
							      .destinations = destination(4),
							      .n_destinations = 1,
							      .buffer_size = BUFFER },
			     1000);
	make_batch(&batch, 0, 3, 1000);
	write_all(writer, &batch, 3);
	run("ip link del x0");
	CHECK_EQ(writer->ops->write(writer, batch.writes, 3), -ENXIO);
	start = now_s();
	close_writer(writer);
	CHECK(now_s() - start < 5);
}

static void test_packets_without_a_carrier_are_counted(void)
{
	struct xps_writer *writer = open_plain(4, 1000);
	struct batch batch;
	int error;

	run("ip link set v1 down");
	make_batch(&batch, 0, N, 1000);
	write_all(writer, &batch, N);
	CHECK_EQ(stat_of(writer, XPS_SEND_STAT_XDP_DROPPED), N);
	run("ip link set v1 up");
	/* the packet socket was told too */
	CHECK_EQ(getsockopt(wire, SOL_SOCKET, SO_ERROR, &error, &(socklen_t){ sizeof(error) }), 0);
	close_writer(writer);
}

/* Of the writer's socket, which it does not tell: how much memory the kernel may take for packets on their way. */
static void limit_kernel_memory(int bytes)
{
	for (int fd = 3; fd < 64; fd++) {
		int domain = 0;

		getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &(socklen_t){ sizeof(domain) });
		if (domain != AF_XDP)
			continue;
		CHECK_EQ(setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes)), 0);
		return;
	}
	CHECK(!"a socket of AF_XDP");
}

/*
 * A macvlan's frames go through the queueing discipline of the device below, which sends them slowly here: the frames of
 * the socket are out for long.
 */
static struct xps_writer *open_slow(const char *rate, uint32_t size)
{
	struct xps_xdp_sender_config config;

	run("tc qdisc add dev v0 root tbf rate %s burst 20k limit 100m", rate);
	run("ip link add m0 link v0 type macvlan && ip link set m0 mtu 9000 up");
	config = config_of("m0", 4);
	return open_writer(&config, size);
}

static void close_slow(struct xps_writer *writer)
{
	uint8_t bytes[MTU + 100];

	close_writer(writer);
	run("ip link del m0 && tc qdisc del dev v0 root");
	while (poll(&(struct pollfd){ .fd = wire, .events = POLLIN }, 1, 50) > 0)
		CHECK(recv(wire, bytes, sizeof(bytes), 0) > 0);
}

/* Write once. Returns how many packets were taken, and adds up the calls that took none, or not all. */
static uint32_t write_some(struct xps_writer *writer, uint32_t first, uint32_t size, int *n_short)
{
	struct batch batch;
	int taken;

	make_batch(&batch, first, N, size);
	taken = writer->ops->write(writer, batch.writes, N);
	CHECK(taken == -EAGAIN || taken > 0);
	*n_short += taken < N;
	return taken > 0 ? (uint32_t)taken : 0;
}

/* Packets of which each has arrived once, in whatever order: a slow device sends from any processor. */
static void check_arrives_once(uint8_t *seen, uint32_t n, uint32_t size)
{
	const uint32_t number = check_next(4, size);

	CHECK(number < n && !seen[number]);
	seen[number] = 1;
}

/* With few frames, or with little memory for the kernel, which then leaves packets in the ring. */
static void test_slow_device_is_waited_for_and_nothing_is_lost(uint32_t size, int kernel_memory)
{
	struct xps_writer *writer = open_slow("200mbit", size);
	const double start = now_s();
	uint8_t *seen = calloc(MOST, 1);
	uint32_t written = 0, read = 0;
	int n_short = 0;

	CHECK(seen);
	if (kernel_memory)
		limit_kernel_memory(kernel_memory);
	while (!n_short || written < 600) {
		CHECK(now_s() - start < DEADLINE_MS / 1000);
		CHECK(written + N < MOST);
		written += write_some(writer, written, size, &n_short);
		if (kernel_memory || n_short)
			for (; read < written; read++)
				check_arrives_once(seen, written, size);
	}
	free(seen);
	CHECK_EQ(stat_of(writer, XPS_SEND_STAT_XDP_DROPPED), 0);
	CHECK_EQ(stat_of(writer, XPS_SEND_STAT_XDP_INVALID), 0);
	close_slow(writer);
}

/* Packets are in the ring that the kernel has not taken; what is written once it is up again arrives. */
static void test_going_down_while_packets_wait_is_an_error(void)
{
	struct xps_writer *writer = open_slow("20mbit", 8000);
	struct batch batch;
	uint32_t number = 0;
	uint8_t bytes[MTU + 100];
	int n_short = 0;

	limit_kernel_memory(100000);
	while (!n_short)
		number += write_some(writer, number, 8000, &n_short);
	run("ip link set m0 down");
	make_batch(&batch, number, N, 8000);
	for (int i = 0; i < 1000; i++)
		CHECK_EQ(writer->ops->write(writer, batch.writes, N), -ENETDOWN);
	run("ip link set m0 up");
	make_batch(&batch, 5000, 1, 1000);
	for (;;) {
		int taken = writer->ops->write(writer, batch.writes, 1);

		CHECK(taken == -EAGAIN || taken == 1);
		if (taken == 1)
			break;
	}
	while (read_frame(bytes, sizeof(bytes)) != 1042)
		;
	check_payload(bytes + 42, 5000, 1000);
	close_slow(writer);
}

/* What is on its way when a writer is closed still arrives. */
static void test_closing_waits_for_what_was_taken(void)
{
	struct xps_writer *writer = open_slow("10mbit", 1000);
	uint8_t seen[N] = { 0 };
	struct batch batch;

	make_batch(&batch, 0, N, 1000);
	write_all(writer, &batch, N);
	CHECK(stat_of(writer, XPS_SEND_STAT_XDP_COMPLETED) < N);
	close_writer(writer);
	for (uint32_t i = 0; i < N; i++)
		check_arrives_once(seen, N, 1000);
	run("ip link del m0 && tc qdisc del dev v0 root");
}

static void test_queue_has_one_user(void)
{
	const struct xps_xdp_sender_config config = config_of("v0", 4);
	struct xps_writer *writer = open_plain(4, 1000);

	check_refused(&config, 1000, EBUSY, "taken by another AF_XDP socket");
	close_writer(writer);
	close_writer(open_plain(4, 1000));
}

static void test_what_cannot_be_had_is_refused_clearly(void)
{
	struct xps_xdp_sender_config config = config_of("v0", 4);

	check_refused(&config, 8973, EMSGSIZE, "leaves room for 8972");
	config.queue = 7;
	check_refused(&config, 1000, EINVAL, "Is there such a queue?");
	config.queue = 0;
	config.zero_copy = 1;
	check_refused(&config, 1000, EOPNOTSUPP, "does not do zero-copy");
	config.zero_copy = 0;
	config.buffer_size = 0;
	check_refused(&config, 1000, EINVAL, "buffer_size");
	config.buffer_size = BUFFER;
	config.n_destinations = 0;
	check_refused(&config, 1000, EINVAL, "endpoint");
	config = config_of("v0", 5);
	check_refused(&config, 1000, EINVAL, "neither");
	config = config_of("v0", 6);
	check_refused(&config, 8953, EMSGSIZE, "leaves room for 8952");
	config.ifindex = 12345;
	check_refused(&config, 1000, ENODEV, "no interface");
	run("ip link set v0 down");
	config = config_of("v0", 4);
	check_refused(&config, 1000, ENETDOWN, "is down");
	run("ip link set v0 up");
}

/* The kernel binds to a queue that only receives, and then never takes a frame. */
static void test_queue_that_does_not_transmit_is_an_error(void)
{
	struct xps_xdp_sender_config config;
	struct xps_writer *writer;
	struct batch batch;

	run("ip link add x0 numrxqueues 2 numtxqueues 1 type veth peer name x1 && ip link set x0 up && ip link set x1 up");
	config = config_of("x0", 4);
	config.queue = 1;
	writer = open_writer(&config, 1000);
	make_batch(&batch, 0, 3, 1000);
	CHECK_EQ(writer->ops->write(writer, batch.writes, 3), -ENXIO);
	CHECK_EQ(writer->ops->write(writer, batch.writes, 3), -ENXIO);
	close_writer(writer);
	run("ip link del x0");
}

static void test_forgetting_sends_nothing_and_leaves_the_queue_to_its_owner(void)
{
	struct xps_writer *writer = open_plain(4, 1000);
	struct batch batch;
	pid_t child = fork();
	int status;

	CHECK(child >= 0);
	if (!child) {
		writer->ops->forget(writer);
		_exit(0);
	}
	CHECK_EQ(waitpid(child, &status, 0), child);
	CHECK_EQ(status, 0);
	make_batch(&batch, 0, 1, 1000);
	write_all(writer, &batch, 1);
	check_arrives(4, 0, 1000);
	close_writer(writer);
	close_writer(open_plain(4, 1000));
}

static void enter_namespace(void)
{
	struct sockaddr_ll address = { .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL) };
	const int room = 64 << 20;

	if (geteuid() != 0)
		SKIP("needs root");
	if (unshare(CLONE_NEWNET))
		SKIP("cannot make a network namespace");
	/* otherwise the kernel has things of its own to send */
	if (system("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1"))
		SKIP("cannot switch IPv6 off");
	if (system("ip link add v0 mtu 9000 type veth peer name v1 mtu 9000 && ip link set v0 up && ip link set v1 up"))
		SKIP("cannot make a veth pair");
	wire = socket(AF_PACKET, SOCK_RAW, 0);
	CHECK_EQ(setsockopt(wire, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof(room)), 0);
	address.sll_ifindex = (int)if_nametoindex("v1");
	CHECK_EQ(bind(wire, (const struct sockaddr *)&address, sizeof(address)), 0);
	for (size_t i = 0; i < sizeof(memory); i++)
		memory[i] = (uint8_t)(i * 7 + i / 256);
}

/* Packets that a process sends from different processors overtake each other in the kernel. */
static cpu_set_t stay_on_this_processor(void)
{
	cpu_set_t all, one;

	CHECK_EQ(sched_getaffinity(0, sizeof(all), &all), 0);
	CPU_ZERO(&one);
	CPU_SET(sched_getcpu(), &one);
	CHECK_EQ(sched_setaffinity(0, sizeof(one), &one), 0);
	return all;
}

int main(void)
{
	static const uint32_t sizes[] = { 1, 5, 8, 1000, 1472, 1984, 4032, 4033, 8000, 8129, 8952 };

	cpu_set_t all;

	enter_namespace();
	all = stay_on_this_processor();
	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		test_every_byte_arrives(4, sizes[i]);
		test_every_byte_arrives(6, sizes[i]);
	}
	test_packets_may_be_shorter_than_the_longest();
	test_each_substream_has_its_destination();
	test_interface_that_is_down_is_an_error(1000);
	test_interface_that_is_down_is_an_error(8972);
	test_closing_does_not_hang_when_the_interface_is_gone();
	test_packets_without_a_carrier_are_counted();
	CHECK_EQ(sched_setaffinity(0, sizeof(all), &all), 0);
	test_slow_device_is_waited_for_and_nothing_is_lost(1000, 0);
	test_slow_device_is_waited_for_and_nothing_is_lost(8972, 0);
	test_slow_device_is_waited_for_and_nothing_is_lost(1000, 40000);
	test_slow_device_is_waited_for_and_nothing_is_lost(8972, 100000);
	test_going_down_while_packets_wait_is_an_error();
	test_closing_waits_for_what_was_taken();
	test_queue_has_one_user();
	test_what_cannot_be_had_is_refused_clearly();
	test_queue_that_does_not_transmit_is_an_error();
	test_forgetting_sends_nothing_and_leaves_the_queue_to_its_owner();
	return 0;
}
