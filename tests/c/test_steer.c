// SPDX-License-Identifier: Apache-2.0
/*
 * What the steering program does with every kind of packet, run by the kernel on hand-made frames (BPF_PROG_TEST_RUN),
 * and what the port's functions make of its maps. On a veth in a network namespace of its own, as root.
 */
#include <errno.h>
#include <net/if.h>
#include <sched.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <bpf/bpf.h>
#include <linux/bpf.h>

#include "check.h"
#include "frames.h"
#include "slots.h"
#include "xdp_port.h"
#include "xdp_uapi.h"

#define PORT 8888

enum { QUEUES = 2 };

/* A port with one slot that has a socket on queue 0 only, and PORT on the IPv4 and the IPv6 address. */
struct rig {
	struct xps_xdp_port *port;
	int slot, fd;
};

static struct xps_xdp_endpoint endpoint4(uint16_t port)
{
	return (struct xps_xdp_endpoint){ .address = { 10, 77, 0, 2 }, .port = port, .family = 4 };
}

static struct xps_xdp_endpoint endpoint6(uint16_t port)
{
	struct xps_xdp_endpoint endpoint = { .port = port, .family = 6 };

	memcpy(endpoint.address, frame_dst6, 16);
	return endpoint;
}

/* The same, but only what the host with this number sends. */
static struct xps_xdp_endpoint from4(uint16_t port, uint8_t source)
{
	struct xps_xdp_endpoint endpoint = endpoint4(port);

	memcpy(endpoint.source, (const uint8_t[4]){ 10, 77, 0, source }, 4);
	return endpoint;
}

static struct xps_xdp_endpoint from6(uint16_t port, uint8_t source)
{
	struct xps_xdp_endpoint endpoint = endpoint6(port);

	memcpy(endpoint.source, frame_src6, 16);
	endpoint.source[15] = source;
	return endpoint;
}

/* What kernels before 5.18 get. */
static void use_old_program(struct xps_xdp_port *port)
{
	struct xps_fail fail = { 0 };

	xps_xdp_program_unload(&port->program);
	CHECK_EQ(xps_xdp_program_load(&port->program, (uint32_t)port->config.n_queues, XPS_XDP_OLD, &fail), 0);
	CHECK_EQ(xps_xdp_program_attach(&port->program, &port->config, &fail), 0);
}

static struct xps_xdp_port *open_port(int n_queues, enum xps_xdp_variant variant)
{
	const struct xps_xdp_port_config config = {
		.ifindex = (int)if_nametoindex("v0"),
		.mode = XPS_XDP_NATIVE,
		.n_queues = n_queues,
		.mtu = 1500,
		.multi_buffer = variant == XPS_XDP_FRAGS,
	};
	struct xps_fail fail = { 0 };
	struct xps_xdp_port *port = xps_xdp_port_new(&config, &fail);

	if (!port)
		fprintf(stderr, "%s: %s\n", fail.step, fail.text);
	CHECK(port);
	if (variant == XPS_XDP_OLD)
		use_old_program(port);
	CHECK_EQ(port->program.loaded.frags, variant == XPS_XDP_FRAGS);
	return port;
}

static int take_slot(struct xps_xdp_port *port, int fd)
{
	struct xps_fail fail = { 0 };
	int slot = xps_xdp_port_take_slot(port, "stream 7, queue 0", &fail);

	CHECK(slot >= 0);
	CHECK_EQ(xps_xdp_port_set_socket(port, slot, 0, fd, &fail), 0);
	return slot;
}

static struct rig setup(int n_queues, enum xps_xdp_variant variant)
{
	const struct xps_xdp_endpoint endpoints[] = { endpoint4(PORT), endpoint6(PORT) };
	struct xps_fail fail = { 0 };
	struct rig rig = { .port = open_port(n_queues, variant), .fd = socket(AF_XDP, SOCK_RAW, 0) };

	CHECK(rig.fd >= 0);
	rig.slot = take_slot(rig.port, rig.fd);
	CHECK_EQ(xps_xdp_port_add_endpoints(rig.port, rig.slot, endpoints, 2, &fail), 0);
	return rig;
}

static void teardown(struct rig *rig)
{
	xps_xdp_port_give_slot(rig->port, rig->slot);
	xps_xdp_port_free(rig->port);
	close(rig->fd);
}

static uint32_t run_on(const struct rig *rig, const struct frame *f, uint32_t queue)
{
	struct xdp_md context = {
		.data_end = (uint32_t)f->length,
		.ingress_ifindex = if_nametoindex("v0"),
		.rx_queue_index = queue,
	};
	DECLARE_LIBBPF_OPTS(bpf_test_run_opts, options, .data_in = f->bytes, .data_size_in = (uint32_t)f->length,
			    .ctx_in = &context, .ctx_size_in = sizeof(context));

	CHECK_EQ(bpf_prog_test_run_opts(rig->port->program.loaded.fd, &options), 0);
	return options.retval;
}

static uint32_t run(const struct rig *rig, const struct frame *f)
{
	return run_on(rig, f, 0);
}

/* A good packet from the host with this number. */
static uint32_t run_from(const struct rig *rig, int family, unsigned port, uint8_t source)
{
	struct frame f;

	if (family == 4)
		make_ipv4(&f, 0, 0, port, 100);
	else
		make_ipv6(&f, 0, port, 100);
	f.bytes[family == 4 ? 29 : 37] = source;
	return run(rig, &f);
}

static struct xps_steer_counters counters(const struct rig *rig)
{
	return slot_counters(rig->port, rig->slot);
}

static void check_counters(const struct rig *rig, struct xps_steer_counters expected)
{
	const struct xps_steer_counters c = counters(rig);

	CHECK_EQ(c.matched, expected.matched);
	CHECK_EQ(c.redirected, expected.redirected);
	CHECK_EQ(c.no_socket, expected.no_socket);
	CHECK_EQ(c.bad_length, expected.bad_length);
	CHECK_EQ(c.fragments, expected.fragments);
	CHECK_EQ(c.extensions, expected.extensions);
	CHECK_EQ(c.other_source, expected.other_source);
}

/* What is in no slot's counters. The kernel talks to its neighbours in the meantime: those are others. */
static void check_passed(const struct rig *rig, uint64_t unparsed, uint64_t others)
{
	uint64_t n_unparsed, n_others;

	xps_xdp_port_passed(rig->port, &n_unparsed, &n_others);
	CHECK_EQ(n_unparsed, unparsed);
	CHECK(n_others >= others);
}

static void test_endpoint_is_redirected(enum xps_xdp_variant variant)
{
	struct rig rig = setup(QUEUES, variant);
	struct frame f;

	make_ipv4(&f, 0, 0, PORT, 100);
	CHECK_EQ(run(&rig, &f), XDP_REDIRECT);
	make_ipv6(&f, 0, PORT, 100);
	CHECK_EQ(run(&rig, &f), XDP_REDIRECT);
	check_counters(&rig, (struct xps_steer_counters){ .matched = 2, .redirected = 2 });
	teardown(&rig);
}

static void test_vlans_and_options_are_walked_over(enum xps_xdp_variant variant)
{
	struct rig rig = setup(QUEUES, variant);
	struct frame f;

	for (unsigned tags = 0; tags <= 2; tags++) {
		make_ipv4(&f, tags, 0, PORT, 100);
		CHECK_EQ(run(&rig, &f), XDP_REDIRECT);
		make_ipv6(&f, tags, PORT, 100);
		CHECK_EQ(run(&rig, &f), XDP_REDIRECT);
		make_ipv4(&f, tags, 1 + 4 * tags, PORT, 100);
		CHECK_EQ(run(&rig, &f), XDP_REDIRECT);
	}
	make_ipv4(&f, 0, 10, PORT, 100);
	CHECK_EQ(run(&rig, &f), XDP_REDIRECT);
	check_counters(&rig, (struct xps_steer_counters){ .matched = 10, .redirected = 10 });
	teardown(&rig);
}

static void test_everything_else_passes_and_counts_for_no_reader(enum xps_xdp_variant variant)
{
	struct rig rig = setup(QUEUES, variant);
	struct frame f;

	make_ipv4(&f, 0, 0, PORT + 1, 100); /* other port */
	CHECK_EQ(run(&rig, &f), XDP_PASS);
	make_ipv4(&f, 0, 0, 0, 100); /* port 0, which means fragments in the map */
	CHECK_EQ(run(&rig, &f), XDP_PASS);
	make_ipv4(&f, 0, 0, PORT, 100); /* other address */
	f.bytes[33] = 3;
	CHECK_EQ(run(&rig, &f), XDP_PASS);
	make_ipv6(&f, 0, PORT, 100);
	f.bytes[53] = 3;
	CHECK_EQ(run(&rig, &f), XDP_PASS);
	make_ipv4(&f, 3, 0, PORT, 100); /* three VLAN tags */
	CHECK_EQ(run(&rig, &f), XDP_PASS);
	make_ipv4(&f, 0, 0, PORT, 100); /* TCP */
	f.bytes[23] = 6;
	CHECK_EQ(run(&rig, &f), XDP_PASS);
	make_ipv4(&f, 0, 0, PORT, 100); /* ARP */
	f.bytes[13] = 6;
	CHECK_EQ(run(&rig, &f), XDP_PASS);
	make_ipv4(&f, 0, 0, PORT, 100); /* wrong IP version, wrong header length */
	f.bytes[14] = 0x65;
	CHECK_EQ(run(&rig, &f), XDP_PASS);
	f.bytes[14] = 0x44;
	CHECK_EQ(run(&rig, &f), XDP_PASS);
	put_ethernet(&f, 0, 0x86dd); /* ICMPv6 after an extension header, as queries for groups are */
	put_ipv6(&f, 36, 0);
	put(&f, "\x3a\0\5\2\0\0\0\0", 8);
	put_zeros(&f, 28);
	CHECK_EQ(run(&rig, &f), XDP_PASS);
	check_counters(&rig, (struct xps_steer_counters){ 0 });
	check_passed(&rig, 4, 6);
	teardown(&rig);
}

static void test_frames_that_end_inside_a_header_pass(enum xps_xdp_variant variant)
{
	struct rig rig = setup(QUEUES, variant);
	struct frame f;

	for (size_t length = 14; length < 42; length++) {
		make_ipv4(&f, 0, 0, PORT, 100);
		f.length = length;
		CHECK_EQ(run(&rig, &f), XDP_PASS);
	}
	for (size_t length = 14; length < 62; length++) {
		make_ipv6(&f, 0, PORT, 100);
		f.length = length;
		CHECK_EQ(run(&rig, &f), XDP_PASS);
	}
	check_counters(&rig, (struct xps_steer_counters){ 0 });
	check_passed(&rig, 42 - 14 + 62 - 14, 0);
	teardown(&rig);
}

static void test_wrong_lengths_pass_and_count(enum xps_xdp_variant variant)
{
	struct rig rig = setup(QUEUES, variant);
	struct frame f;

	make_ipv4(&f, 0, 0, PORT, 100); /* the frame lacks a byte */
	f.length--;
	CHECK_EQ(run(&rig, &f), XDP_PASS);
	put_ethernet(&f, 0, 0x0800); /* UDP says more than IP */
	put_ipv4(&f, 0, 48, 0, 17);
	put_udp(&f, PORT, 29, 30);
	CHECK_EQ(run(&rig, &f), XDP_PASS);
	put_ethernet(&f, 0, 0x0800); /* and less */
	put_ipv4(&f, 0, 48, 0, 17);
	put_udp(&f, PORT, 27, 30);
	CHECK_EQ(run(&rig, &f), XDP_PASS);
	put_ethernet(&f, 0, 0x0800); /* less than a header */
	put_ipv4(&f, 0, 27, 0, 17);
	put_udp(&f, PORT, 7, 30);
	CHECK_EQ(run(&rig, &f), XDP_PASS);
	put_ethernet(&f, 0, 0x0800); /* IP says less than its own header */
	put_ipv4(&f, 0, 10, 0, 17);
	put_udp(&f, PORT, 65526, 30);
	CHECK_EQ(run(&rig, &f), XDP_PASS);
	put_ethernet(&f, 0, 0x86dd); /* as in a jumbogram */
	put_ipv6(&f, 0, 17);
	put_udp(&f, PORT, 0, 30);
	CHECK_EQ(run(&rig, &f), XDP_PASS);
	check_counters(&rig, (struct xps_steer_counters){ .matched = 6, .bad_length = 6 });
	teardown(&rig);
}

static void test_padding_is_no_wrong_length(enum xps_xdp_variant variant)
{
	struct rig rig = setup(QUEUES, variant);
	struct frame f;

	make_ipv4(&f, 0, 0, PORT, 3);
	put_zeros(&f, 60 - f.length);
	CHECK_EQ(run(&rig, &f), XDP_REDIRECT);
	teardown(&rig);
}

static void test_fragments_pass_and_count_for_their_address(enum xps_xdp_variant variant)
{
	struct rig rig = setup(QUEUES, variant);
	struct frame f;

	for (unsigned fragment = 0x2000; fragment; fragment = fragment == 0x2000 ? 1 : 0) {
		put_ethernet(&f, 0, 0x0800);
		put_ipv4(&f, 0, 48, fragment, 17);
		put_udp(&f, PORT, 28, 20);
		CHECK_EQ(run(&rig, &f), XDP_PASS);
		f.bytes[33] = 3; /* to somebody else */
		CHECK_EQ(run(&rig, &f), XDP_PASS);
	}
	put_ethernet(&f, 0, 0x0800); /* of TCP */
	put_ipv4(&f, 0, 48, 0x2000, 6);
	put_udp(&f, PORT, 28, 20);
	CHECK_EQ(run(&rig, &f), XDP_PASS);
	put_ethernet(&f, 0, 0x86dd);
	put_ipv6(&f, 36, 44);
	put(&f, "\x11\0\0\1\0\0\0\7", 8);
	put_udp(&f, PORT, 28, 20);
	CHECK_EQ(run(&rig, &f), XDP_PASS);
	check_counters(&rig, (struct xps_steer_counters){ .fragments = 3 });
	check_passed(&rig, 0, 3);
	teardown(&rig);
}

static void test_extension_headers_pass_and_count_for_their_address(enum xps_xdp_variant variant)
{
	static const unsigned headers[] = { 0, 43, 51, 60 };
	struct rig rig = setup(QUEUES, variant);
	struct frame f;

	for (size_t i = 0; i < sizeof(headers) / sizeof(headers[0]); i++) {
		put_ethernet(&f, 0, 0x86dd);
		put_ipv6(&f, 36, headers[i]);
		put(&f, "\x11\0\1\4\0\0\0\0", 8);
		put_udp(&f, PORT, 28, 20);
		CHECK_EQ(run(&rig, &f), XDP_PASS);
		f.bytes[53] = 3; /* to somebody else */
		CHECK_EQ(run(&rig, &f), XDP_PASS);
	}
	put_ethernet(&f, 0, 0x86dd); /* two of them: what follows is not known */
	put_ipv6(&f, 44, 0);
	put(&f, "\x3c\0\1\4\0\0\0\0\x11\0\1\4\0\0\0\0", 16);
	put_udp(&f, PORT, 28, 20);
	CHECK_EQ(run(&rig, &f), XDP_PASS);
	f.length = 54; /* none, although announced */
	CHECK_EQ(run(&rig, &f), XDP_PASS);
	check_counters(&rig, (struct xps_steer_counters){ .extensions = 5 });
	teardown(&rig);
}

static void test_queue_without_socket_passes_and_counts(enum xps_xdp_variant variant)
{
	struct rig rig = setup(QUEUES, variant);
	struct frame f;

	make_ipv4(&f, 0, 0, PORT, 100);
	CHECK_EQ(run_on(&rig, &f, 1), XDP_PASS);
	check_counters(&rig, (struct xps_steer_counters){ .matched = 1, .no_socket = 1 });
	CHECK_EQ(queue_counters(rig.port, rig.slot, 0).no_socket, 0);
	CHECK_EQ(queue_counters(rig.port, rig.slot, 1).no_socket, 1);
	teardown(&rig);
}

static void test_queue_that_the_port_does_not_know_passes_and_counts(enum xps_xdp_variant variant)
{
	struct rig rig = setup(1, variant);
	const struct xps_xdp_endpoint other = endpoint4(PORT + 1);
	struct xps_fail fail = { 0 };
	int slot = take_slot(rig.port, rig.fd); /* its entry follows the first slot's only one */
	struct frame f;

	CHECK_EQ(xps_xdp_port_add_endpoints(rig.port, slot, &other, 1, &fail), 0);
	make_ipv4(&f, 0, 0, PORT, 100);
	CHECK_EQ(run_on(&rig, &f, 1), XDP_PASS);
	check_counters(&rig, (struct xps_steer_counters){ .matched = 1, .no_socket = 1 });
	CHECK_EQ(slot_counters(rig.port, slot).matched, 0);
	xps_xdp_port_give_slot(rig.port, slot);
	teardown(&rig);
}

static void test_any_address_matches_what_no_other_endpoint_does(enum xps_xdp_variant variant)
{
	struct rig rig = setup(QUEUES, variant);
	const struct xps_xdp_endpoint any[] = { { .port = PORT, .family = 4 }, { .port = 9, .family = 4 } };
	struct xps_fail fail = { 0 };
	struct frame f;

	CHECK_EQ(xps_xdp_port_add_endpoints(rig.port, rig.slot, any, 2, &fail), 0);
	make_ipv4(&f, 0, 0, PORT, 100);
	CHECK_EQ(run(&rig, &f), XDP_REDIRECT);
	f.bytes[33] = 3;
	CHECK_EQ(run(&rig, &f), XDP_REDIRECT);
	make_ipv4(&f, 0, 0, 9, 100);
	CHECK_EQ(run(&rig, &f), XDP_REDIRECT);
	check_counters(&rig, (struct xps_steer_counters){ .matched = 3, .redirected = 3 });
	make_ipv6(&f, 0, 9, 100); /* of the other family */
	CHECK_EQ(run(&rig, &f), XDP_PASS);
	teardown(&rig);
}

static void test_endpoint_of_a_source_takes_its_packets_only(enum xps_xdp_variant variant)
{
	struct rig rig = setup(QUEUES, variant);
	const struct xps_xdp_endpoint endpoints[] = { from4(PORT + 1, 1), from6(PORT + 1, 1), from4(PORT + 1, 5) };
	struct xps_fail fail = { 0 };

	CHECK_EQ(xps_xdp_port_add_endpoints(rig.port, rig.slot, endpoints, 3, &fail), 0);
	CHECK_EQ(run_from(&rig, 4, PORT + 1, 1), XDP_REDIRECT);
	CHECK_EQ(run_from(&rig, 4, PORT + 1, 5), XDP_REDIRECT);
	CHECK_EQ(run_from(&rig, 4, PORT + 1, 2), XDP_PASS);
	CHECK_EQ(run_from(&rig, 6, PORT + 1, 1), XDP_REDIRECT);
	CHECK_EQ(run_from(&rig, 6, PORT + 1, 5), XDP_PASS);
	CHECK_EQ(run_from(&rig, 4, PORT, 2), XDP_REDIRECT); /* the endpoint without a source */
	check_counters(&rig, (struct xps_steer_counters){ .matched = 4, .redirected = 4, .other_source = 2 });
	teardown(&rig);
}

static void test_sources_of_one_endpoint_may_be_of_two_readers(enum xps_xdp_variant variant)
{
	struct rig rig = setup(QUEUES, variant);
	const struct xps_xdp_endpoint mine = from4(PORT + 1, 1), others = from4(PORT + 1, 5);
	struct xps_fail fail = { 0 };
	struct rig other = rig;

	other.slot = take_slot(rig.port, rig.fd);
	CHECK_EQ(xps_xdp_port_add_endpoints(rig.port, rig.slot, &mine, 1, &fail), 0);
	CHECK_EQ(xps_xdp_port_add_endpoints(rig.port, other.slot, &others, 1, &fail), 0);
	CHECK_EQ(run_from(&rig, 4, PORT + 1, 1), XDP_REDIRECT);
	CHECK_EQ(run_from(&rig, 4, PORT + 1, 5), XDP_REDIRECT);
	CHECK_EQ(run_from(&rig, 4, PORT + 1, 2), XDP_PASS); /* counts for the oldest claim */
	check_counters(&rig, (struct xps_steer_counters){ .matched = 1, .redirected = 1, .other_source = 1 });
	check_counters(&other, (struct xps_steer_counters){ .matched = 1, .redirected = 1 });
	xps_xdp_port_give_slot(rig.port, rig.slot);
	CHECK_EQ(run_from(&rig, 4, PORT + 1, 1), XDP_PASS);
	CHECK_EQ(run_from(&rig, 4, PORT + 1, 5), XDP_REDIRECT);
	check_counters(&other, (struct xps_steer_counters){ .matched = 2, .redirected = 2, .other_source = 1 });
	teardown(&other);
}

static void test_overlapping_endpoints_of_one_reader_are_their_union(enum xps_xdp_variant variant)
{
	struct rig rig = setup(QUEUES, variant);
	const struct xps_xdp_endpoint endpoints[] = {
		from4(PORT, 1), /* beside any source */
		from4(9, 1),
		{ .port = 9, .family = 4, .source = { 10, 77, 0, 5 } }, /* an address, and any */
	};
	struct xps_fail fail = { 0 };
	struct frame f;

	CHECK_EQ(xps_xdp_port_add_endpoints(rig.port, rig.slot, endpoints, 3, &fail), 0);
	CHECK_EQ(run_from(&rig, 4, PORT, 2), XDP_REDIRECT);
	CHECK_EQ(run_from(&rig, 4, 9, 1), XDP_REDIRECT);
	CHECK_EQ(run_from(&rig, 4, 9, 5), XDP_REDIRECT);
	CHECK_EQ(run_from(&rig, 4, 9, 2), XDP_PASS);
	make_ipv4(&f, 0, 0, 9, 100);
	f.bytes[33] = 3; /* to another address, for which only the second is good */
	CHECK_EQ(run(&rig, &f), XDP_PASS);
	f.bytes[29] = 5;
	CHECK_EQ(run(&rig, &f), XDP_REDIRECT);
	check_counters(&rig, (struct xps_steer_counters){ .matched = 4, .redirected = 4, .other_source = 2 });
	teardown(&rig);
}

static void test_endpoint_of_another_reader_is_refused(enum xps_xdp_variant variant)
{
	struct rig rig = setup(QUEUES, variant);
	const struct xps_xdp_endpoint both[] = { endpoint4(PORT + 1), from4(PORT, 1) };
	struct xps_fail fail = { 0 };
	int slot = take_slot(rig.port, rig.fd);
	struct frame f;

	CHECK_EQ(xps_xdp_port_add_endpoints(rig.port, slot, both, 2, &fail), -EADDRINUSE);
	CHECK(strstr(fail.text, "10.77.0.2:8888 from 10.77.0.1 on v0 is taken"));
	CHECK(strstr(fail.text, "(stream 7, queue 0) receives 10.77.0.2:8888 there"));
	make_ipv4(&f, 0, 0, PORT, 100); /* the first reader's stays */
	CHECK_EQ(run(&rig, &f), XDP_REDIRECT);
	make_ipv4(&f, 0, 0, PORT + 1, 100); /* and the other was taken back */
	CHECK_EQ(run(&rig, &f), XDP_PASS);
	xps_xdp_port_give_slot(rig.port, slot);
	teardown(&rig);
}

static void test_slot_given_back_passes_and_is_clean_when_taken_again(enum xps_xdp_variant variant)
{
	struct rig rig = setup(QUEUES, variant);
	struct frame f;
	int slot;

	make_ipv4(&f, 0, 0, PORT, 100);
	CHECK_EQ(run(&rig, &f), XDP_REDIRECT);
	xps_xdp_port_give_slot(rig.port, rig.slot);
	CHECK_EQ(run(&rig, &f), XDP_PASS);
	slot = take_slot(rig.port, rig.fd);
	CHECK_EQ(slot, rig.slot);
	check_counters(&rig, (struct xps_steer_counters){ 0 });
	teardown(&rig);
}

static void test_fragments_count_for_the_reader_that_is_left(enum xps_xdp_variant variant)
{
	struct rig rig = setup(QUEUES, variant);
	const struct xps_xdp_endpoint other = endpoint4(PORT + 1);
	struct xps_fail fail = { 0 };
	int slot = take_slot(rig.port, rig.fd);
	struct frame f;

	CHECK_EQ(xps_xdp_port_add_endpoints(rig.port, slot, &other, 1, &fail), 0);
	put_ethernet(&f, 0, 0x0800);
	put_ipv4(&f, 0, 48, 0x2000, 17);
	put_udp(&f, PORT, 28, 20);
	run(&rig, &f);
	CHECK_EQ(counters(&rig).fragments, 1);
	CHECK_EQ(slot_counters(rig.port, slot).fragments, 0);
	xps_xdp_port_give_slot(rig.port, rig.slot);
	run(&rig, &f);
	CHECK_EQ(slot_counters(rig.port, slot).fragments, 1);
	rig.slot = slot;
	teardown(&rig);
}

static void test_length_of_packet_in_several_buffers_is_seen(void)
{
	struct rig rig = setup(QUEUES, XPS_XDP_FRAGS);
	struct frame f;

	make_ipv4(&f, 0, 0, PORT, 8972);
	CHECK_EQ(run(&rig, &f), XDP_REDIRECT);
	f.length--;
	CHECK_EQ(run(&rig, &f), XDP_PASS);
	check_counters(&rig, (struct xps_steer_counters){ .matched = 2, .redirected = 1, .bad_length = 1 });
	teardown(&rig);
}

/* `n` endpoints of as many addresses, from the `first` on. */
static int add_many(struct xps_xdp_port *port, int slot, uint32_t first, uint32_t n, struct xps_fail *fail)
{
	struct xps_xdp_endpoint *endpoints = calloc(n, sizeof(*endpoints));
	int err;

	CHECK(endpoints);
	for (uint32_t i = 0; i < n; i++) {
		endpoints[i] = (struct xps_xdp_endpoint){ .port = PORT, .family = 6 };
		memcpy(endpoints[i].address, &(uint32_t){ 1 + first + i }, sizeof(uint32_t));
	}
	err = xps_xdp_port_add_endpoints(port, slot, endpoints, n, fail);
	free(endpoints);
	return err;
}

static void test_there_is_room_for_a_thousand_endpoints_of_each_reader(void)
{
	struct xps_xdp_port *port = open_port(1, XPS_XDP_PLAIN);
	struct xps_fail fail = { 0 };
	int slots[XPS_STEER_SLOTS];

	for (uint32_t i = 0; i < XPS_STEER_SLOTS; i++) {
		slots[i] = xps_xdp_port_take_slot(port, NULL, &fail);
		CHECK(slots[i] >= 0);
		CHECK_EQ(add_many(port, slots[i], i * 1024, 1024, &fail), 0);
	}
	CHECK_EQ(xps_xdp_port_take_slot(port, NULL, &fail), -ENOSPC);
	CHECK_EQ(add_many(port, slots[5], XPS_STEER_SLOTS * 1024, 1, &fail), -E2BIG);
	CHECK(strstr(fail.text, "too many on this interface"));
	CHECK_EQ(add_many(port, slots[5], 5 * 1024, 1024, &fail), 0); /* all or none */
	for (uint32_t i = 0; i < XPS_STEER_SLOTS; i++)
		xps_xdp_port_give_slot(port, slots[i]);
	CHECK_EQ(port->claims.n_groups, 0);
	xps_xdp_port_free(port);
}

static void test_second_port_on_an_interface_is_refused(void)
{
	const struct xps_xdp_port_config config = {
		.ifindex = (int)if_nametoindex("v0"), .mode = XPS_XDP_AUTO, .n_queues = QUEUES, .mtu = 1500
	};
	struct xps_xdp_port *first = open_port(QUEUES, XPS_XDP_PLAIN);
	struct xps_fail fail = { 0 };
	char id[32];

	CHECK(!xps_xdp_port_new(&config, &fail));
	CHECK_EQ(fail.err, EBUSY);
	CHECK(!strcmp(fail.step, "attach program"));
	snprintf(id, sizeof(id), "(id %u)", xps_xdp_port_program_id(first));
	CHECK(strstr(fail.text, id));
	xps_xdp_port_free(first);
}

static void test_closing_the_port_detaches_the_program(void)
{
	for (int i = 0; i < 3; i++)
		xps_xdp_port_free(open_port(QUEUES, XPS_XDP_PLAIN));
}

static void test_missing_interface_is_named(void)
{
	const struct xps_xdp_port_config config = { .ifindex = 999999, .n_queues = 1, .mtu = 1500 };
	struct xps_fail fail = { 0 };

	CHECK(!xps_xdp_port_new(&config, &fail));
	CHECK_EQ(fail.err, ENODEV);
	CHECK(strstr(fail.text, "999999"));
}

static void test_mtu_too_large_for_the_driver_is_refused_and_says_so(void)
{
	const struct xps_xdp_port_config config = { .ifindex = (int)if_nametoindex("v0"),
						    .mode = XPS_XDP_NATIVE,
						    .n_queues = QUEUES,
						    .mtu = 9000,
						    .multi_buffer = false };
	struct xps_fail fail = { 0 };

	CHECK_EQ(system("ip link set v0 mtu 9000 && ip link set v1 mtu 9000"), 0);
	CHECK(!xps_xdp_port_new(&config, &fail));
	CHECK(!strcmp(fail.step, "attach program"));
	CHECK(strstr(fail.text, "v0 does not take an XDP program in native mode at MTU 9000 without multi-buffer"));
	CHECK(strstr(fail.text, "Use a smaller MTU"));
	CHECK(strstr(fail.text, "or mode='generic'"));
	CHECK_EQ(system("ip link set v0 mtu 1500 && ip link set v1 mtu 1500"), 0);
}

/* The kernel makes no sense of a context with a queue before 5.15, nor of programs with fragments before 5.18. */
static bool kernel_is_new_enough(void)
{
	struct utsname name;
	int major = 0, minor = 0;

	CHECK_EQ(uname(&name), 0);
	CHECK_EQ(sscanf(name.release, "%d.%d", &major, &minor), 2);
	return major > 5 || (major == 5 && minor >= 18);
}

static void enter_namespace(void)
{
	if (geteuid() != 0)
		SKIP("needs root");
	if (!kernel_is_new_enough())
		SKIP("needs Linux 5.18");
	if (unshare(CLONE_NEWNET))
		SKIP("cannot make a network namespace");
	if (system("ip link add v0 numrxqueues 2 numtxqueues 2 type veth peer name v1 numrxqueues 2 numtxqueues 2 && "
		   "ip link set v0 up && ip link set v1 up"))
		SKIP("cannot make a veth pair");
}

int main(void)
{
	enter_namespace();
	for (enum xps_xdp_variant variant = XPS_XDP_FRAGS; variant <= XPS_XDP_OLD; variant++) {
		test_endpoint_is_redirected(variant);
		test_vlans_and_options_are_walked_over(variant);
		test_everything_else_passes_and_counts_for_no_reader(variant);
		test_frames_that_end_inside_a_header_pass(variant);
		test_wrong_lengths_pass_and_count(variant);
		test_padding_is_no_wrong_length(variant);
		test_fragments_pass_and_count_for_their_address(variant);
		test_extension_headers_pass_and_count_for_their_address(variant);
		test_queue_without_socket_passes_and_counts(variant);
		test_queue_that_the_port_does_not_know_passes_and_counts(variant);
		test_any_address_matches_what_no_other_endpoint_does(variant);
		test_endpoint_of_a_source_takes_its_packets_only(variant);
		test_sources_of_one_endpoint_may_be_of_two_readers(variant);
		test_overlapping_endpoints_of_one_reader_are_their_union(variant);
		test_endpoint_of_another_reader_is_refused(variant);
		test_slot_given_back_passes_and_is_clean_when_taken_again(variant);
		test_fragments_count_for_the_reader_that_is_left(variant);
	}
	test_length_of_packet_in_several_buffers_is_seen();
	test_there_is_room_for_a_thousand_endpoints_of_each_reader();
	test_second_port_on_an_interface_is_refused();
	test_closing_the_port_detaches_the_program();
	test_missing_interface_is_named();
	test_mtu_too_large_for_the_driver_is_refused_and_says_so();
	return 0;
}
