// SPDX-License-Identifier: Apache-2.0
/*
 * Busy polling: when the worker calls the driver, when it sleeps, and what it says. On a veth in a network namespace of
 * its own, as root. Few virtual drivers tell the kernel which NAPI serves a queue, so the kernel's answer to that
 * question, and its version, are made up here; the rest is the kernel's.
 */
#include <dirent.h>
#include <errno.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "frames.h"
#include "packets.h"
#include "streams.h"
#include "xdp_uapi.h"

enum { PORT = 8888, PAYLOAD = 64, NAPI_ID = 4711 };

#define NEW "6.18.0"
#define OLD "5.15.0"

/* ---------------------------------------------------------------- what the kernel says */

static atomic_uint napi_id;       /* of every socket */
static atomic_int refusal;        /* errno of SO_PREFER_BUSY_POLL */
static const char *release = NEW; /* of the kernel */
static atomic_int busy_fd;        /* the last socket that was prepared */
static atomic_int budget_wanted;  /* for it */

int getsockopt(int fd, int level, int option, void *value, socklen_t *length)
{
	if (level == SOL_SOCKET && option == SO_INCOMING_NAPI_ID) {
		*(unsigned *)value = atomic_load(&napi_id);
		return 0;
	}
	return (int)syscall(SYS_getsockopt, fd, level, option, value, length);
}

int setsockopt(int fd, int level, int option, const void *value, socklen_t length)
{
	if (level == SOL_SOCKET && option == SO_PREFER_BUSY_POLL) {
		atomic_store(&busy_fd, fd);
		if (atomic_load(&refusal)) {
			errno = atomic_load(&refusal);
			return -1;
		}
	}
	if (level == SOL_SOCKET && option == SO_BUSY_POLL_BUDGET)
		atomic_store(&budget_wanted, *(const int *)value);
	return (int)syscall(SYS_setsockopt, fd, level, option, value, length);
}

int uname(struct utsname *name)
{
	long err = syscall(SYS_uname, name);

	if (!err)
		strcpy(name->release, release);
	return (int)err;
}

/* ---------------------------------------------------------------- a stream on a veth */

static int wire; /* packet socket on the other end */

struct fixture {
	struct xps_allocator *allocator;
	struct xps_pool *pool;
	struct xps_log *log;
	struct xps_stream *stream;
	struct xps_xdp_port *port;
	struct xps_xdp_obtained obtained;
	uint32_t napi_ids[2];
};

static int add_reader(struct fixture *fixture, struct xps_fail *fail)
{
	const struct xps_xdp_endpoint endpoint = { .address = { 10, 77, 0, 2 }, .port = PORT, .family = 4 };
	const uint32_t queues[] = { 0, 1 };
	const struct xps_xdp_reader_config config = {
		.endpoints = &endpoint,
		.n_endpoints = 1,
		.queues = queues,
		.n_queues = 2,
		.n_workers = 1,
		.buffer_size = 1 << 20,
		.max_size = 9200,
		.busy_poll_budget = 32,
		.napi_ids = fixture->napi_ids,
	};

	return xps_add_xdp_reader(fixture->stream, fixture->port, &config, &fixture->obtained, fail);
}

static void set_up(struct fixture *fixture, int mode)
{
	const struct xps_stream_config config = {
		.max_heaps = 4,
		.substreams = 1,
		.max_heap_size = 1 << 20,
		.ring_heaps = 2,
		.contiguous_only = true,
	};
	const struct xps_xdp_port_config port = {
		.ifindex = (int)if_nametoindex("v0"),
		.mode = mode,
		.n_queues = 2,
		.mtu = 1500,
	};
	struct xps_fail fail = { 0 };

	*fixture = (struct fixture){ .allocator = xps_allocator_new(), .log = xps_log_new() };
	fixture->pool = xps_pool_new(1, NULL, 0, &fail);
	fixture->stream = xps_stream_new(fixture->pool, &config, fixture->allocator, fixture->log, &fail);
	fixture->port = xps_xdp_port_new(&port, &fail);
	if (!fixture->port)
		fprintf(stderr, "%s: %s\n", fail.step, fail.text);
	CHECK(fixture->pool && fixture->stream && fixture->port);
}

static void open_reader(struct fixture *fixture, int mode)
{
	struct xps_fail fail = { 0 };

	set_up(fixture, mode);
	if (add_reader(fixture, &fail))
		fprintf(stderr, "%s: %s\n", fail.step, fail.text);
	CHECK_EQ(fail.err, 0);
}

static void tear_down(struct fixture *fixture)
{
	xps_stream_free(fixture->stream);
	xps_xdp_port_free(fixture->port);
	xps_pool_free(fixture->pool);
	xps_log_free(fixture->log);
	xps_allocator_free(fixture->allocator);
	atomic_store(&napi_id, 0);
	atomic_store(&refusal, 0);
	release = NEW;
}

/* A heap of one packet. */
static void send_heap(uint64_t cnt)
{
	const struct spec spec = { .cnt = cnt, .heap_length = PAYLOAD, .length = PAYLOAD };
	struct frame f;

	make_ipv4(&f, 0, 0, PORT, (unsigned)spec_size(&spec));
	put_packet(f.bytes + f.length - spec_size(&spec), &spec);
	CHECK_EQ(send(wire, f.bytes, f.length, 0), f.length);
}

static void check_receives(struct fixture *fixture, uint64_t cnt)
{
	struct xps_heap *heap;

	CHECK_EQ(xps_stream_pop(fixture->stream, &heap, 1, DEADLINE_MS), 1);
	CHECK_EQ(heap->cnt, cnt);
	CHECK_EQ(heap->received, PAYLOAD);
	xps_heap_free(heap);
}

static pid_t worker(void)
{
	DIR *tasks = opendir("/proc/self/task");
	struct dirent *entry;
	pid_t found = 0;

	CHECK(tasks);
	while ((entry = readdir(tasks))) {
		char path[300], name[32] = "";
		FILE *file;

		snprintf(path, sizeof(path), "/proc/self/task/%s/comm", entry->d_name);
		file = fopen(path, "r");
		if (!file)
			continue;
		if (fgets(name, sizeof(name), file) && !strncmp(name, "xdpspead-0", 10))
			found = atoi(entry->d_name);
		fclose(file);
	}
	closedir(tasks);
	CHECK(found);
	return found;
}

static uint64_t calls(struct fixture *fixture)
{
	return stat_of(fixture->stream, XPS_STAT_XDP_BUSY_POLLS);
}

/* Many calls of the driver, although nothing comes. */
static void check_busy(struct fixture *fixture)
{
	const uint64_t before = calls(fixture);

	AWAIT(calls(fixture) > before + 1000);
}

static void check_sleeps(struct fixture *fixture)
{
	uint64_t before;

	await_asleep(worker());
	before = calls(fixture);
	await_asleep(worker());
	CHECK_EQ(calls(fixture), before);
}

/* How many of the messages in the log have these words. */
static int count_messages(struct fixture *fixture, const char *words)
{
	struct xps_log_line lines[8];
	int found = 0;

	while (xps_log_take(fixture->log, lines, 1, 100) == 1)
		found += lines[0].level == XPS_LOG_WARNING && strstr(lines[0].text, words) != NULL;
	return found;
}

/* ---------------------------------------------------------------- tests */

static void test_worker_calls_the_driver_while_nothing_comes(int mode)
{
	struct fixture fixture;

	atomic_store(&napi_id, NAPI_ID);
	open_reader(&fixture, mode);
	CHECK_EQ(fixture.obtained.busy_poll, XPS_XDP_BUSY_POLLS);
	CHECK_EQ(fixture.napi_ids[0], NAPI_ID);
	CHECK_EQ(fixture.napi_ids[1], NAPI_ID);
	check_busy(&fixture);
	for (uint64_t cnt = 1; cnt < 20; cnt++) {
		send_heap(cnt);
		check_receives(&fixture, cnt);
	}
	check_busy(&fixture);
	CHECK_EQ(count_messages(&fixture, ""), 0);
	tear_down(&fixture);
}

static void test_kernel_gets_the_options(void)
{
	struct fixture fixture;
	int prefer = 0, timeout = 0;
	socklen_t length = sizeof(int);

	atomic_store(&napi_id, NAPI_ID);
	open_reader(&fixture, XPS_XDP_NATIVE);
	CHECK_EQ(getsockopt(atomic_load(&busy_fd), SOL_SOCKET, SO_PREFER_BUSY_POLL, &prefer, &length), 0);
	CHECK_EQ(getsockopt(atomic_load(&busy_fd), SOL_SOCKET, SO_BUSY_POLL, &timeout, &length), 0);
	CHECK_EQ(prefer, 1);
	CHECK(timeout > 0);
	CHECK_EQ(atomic_load(&budget_wanted), 32);
	tear_down(&fixture);
}

static void test_blocked_stream_lets_the_worker_sleep(void)
{
	struct fixture fixture;

	atomic_store(&napi_id, NAPI_ID);
	open_reader(&fixture, XPS_XDP_NATIVE);
	for (uint64_t cnt = 1; cnt < 6; cnt++)
		send_heap(cnt);
	AWAIT(stat_of(fixture.stream, XPS_STAT_WORKER_BLOCKED) > 0);
	check_sleeps(&fixture);
	for (uint64_t cnt = 1; cnt < 6; cnt++)
		check_receives(&fixture, cnt);
	check_busy(&fixture);
	tear_down(&fixture);
}

static void test_interface_that_is_down_lets_the_worker_sleep(void)
{
	struct fixture fixture;

	atomic_store(&napi_id, NAPI_ID);
	open_reader(&fixture, XPS_XDP_NATIVE);
	CHECK_EQ(system("ip link set v0 down"), 0);
	check_sleeps(&fixture);
	CHECK_EQ(system("ip link set v0 up"), 0);
	send_heap(1);
	check_receives(&fixture, 1);
	check_busy(&fixture);
	tear_down(&fixture);
}

static void test_queue_without_a_napi_id_sleeps_and_says_so_once(int mode)
{
	struct fixture fixture;

	open_reader(&fixture, mode);
	CHECK_EQ(fixture.obtained.busy_poll, XPS_XDP_SLEEPS);
	CHECK_EQ(fixture.napi_ids[0], 0);
	for (uint64_t cnt = 1; cnt < 4; cnt++) {
		send_heap(cnt);
		check_receives(&fixture, cnt);
	}
	check_sleeps(&fixture);
	CHECK_EQ(calls(&fixture), 0);
	CHECK_EQ(count_messages(&fixture, "no busy polling of queue"), 1);
	tear_down(&fixture);
}

/* Until 6.12 a packet tells. */

static void test_old_kernel_tells_with_the_first_packet(void)
{
	struct fixture fixture;

	release = OLD;
	open_reader(&fixture, XPS_XDP_NATIVE);
	CHECK_EQ(fixture.obtained.busy_poll, XPS_XDP_MAY_BUSY_POLL);
	check_sleeps(&fixture);
	atomic_store(&napi_id, NAPI_ID);
	send_heap(1);
	check_receives(&fixture, 1);
	check_busy(&fixture);
	CHECK_EQ(count_messages(&fixture, ""), 0);
	tear_down(&fixture);
}

static void test_old_kernel_whose_packets_do_not_tell_is_left_alone(void)
{
	struct fixture fixture;

	release = OLD;
	open_reader(&fixture, XPS_XDP_NATIVE);
	for (uint64_t cnt = 1; cnt < 4; cnt++) {
		send_heap(cnt);
		check_receives(&fixture, cnt);
	}
	check_sleeps(&fixture);
	CHECK_EQ(count_messages(&fixture, "no busy polling of queue"), 1);
	tear_down(&fixture);
}

static void test_old_kernel_in_generic_mode_will_never_tell(void)
{
	struct fixture fixture;

	release = OLD;
	open_reader(&fixture, XPS_XDP_GENERIC);
	CHECK_EQ(fixture.obtained.busy_poll, XPS_XDP_SLEEPS);
	CHECK_EQ(count_messages(&fixture, "no busy polling of queue"), 1);
	tear_down(&fixture);
}

static void test_refusal_names_what_is_missing(int err, int expected, const char *words)
{
	struct fixture fixture;
	struct xps_fail fail = { 0 };

	set_up(&fixture, XPS_XDP_NATIVE);
	atomic_store(&refusal, err);
	CHECK_EQ(add_reader(&fixture, &fail), -expected);
	CHECK(strstr(fail.text, words));
	CHECK(!strcmp(fail.step, "set up busy polling"));
	CHECK(!xps_xdp_port_in_use(fixture.port));
	tear_down(&fixture);
}

static void enter_namespace(void)
{
	struct sockaddr_ll address = { .sll_family = AF_PACKET };

	if (geteuid() != 0)
		SKIP("needs root");
	if (unshare(CLONE_NEWNET))
		SKIP("cannot make a network namespace");
	if (system("ip link add v0 numrxqueues 2 type veth peer name v1 numtxqueues 2 && ip link set v0 up && ip link set v1 up"))
		SKIP("cannot make a veth pair");
	wire = socket(AF_PACKET, SOCK_RAW, 0);
	address.sll_ifindex = (int)if_nametoindex("v1");
	CHECK_EQ(bind(wire, (const struct sockaddr *)&address, sizeof(address)), 0);
}

int main(void)
{
	enter_namespace();
	for (int mode = XPS_XDP_NATIVE; mode <= XPS_XDP_GENERIC; mode++) {
		test_worker_calls_the_driver_while_nothing_comes(mode);
		test_queue_without_a_napi_id_sleeps_and_says_so_once(mode);
	}
	test_kernel_gets_the_options();
	test_blocked_stream_lets_the_worker_sleep();
	test_interface_that_is_down_lets_the_worker_sleep();
	test_old_kernel_tells_with_the_first_packet();
	test_old_kernel_whose_packets_do_not_tell_is_left_alone();
	test_old_kernel_in_generic_mode_will_never_tell();
	test_refusal_names_what_is_missing(EPERM, EPERM, "CAP_NET_ADMIN");
	test_refusal_names_what_is_missing(ENOPROTOOPT, EOPNOTSUPP, "Linux 5.11");
	return 0;
}
