// SPDX-License-Identifier: Apache-2.0
/* One connection, every byte of it accounted for, and an end that always comes. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "await.h"
#include "check.h"
#include "memory.h"
#include "packets.h"
#include "streams.h"
#include "xdpspead.h"

enum { MAX_SIZE = 65536, HEAP_BYTES = 1000 };

static struct xps_allocator *allocator;

/* A stream that reads a port, and what belongs to it. */
struct fixture {
	struct xps_pool *pool;
	struct xps_log *log;
	struct xps_stream *stream;
	int listener; /* the user's */
	struct sockaddr_in address;
};

static void set_up(struct fixture *fixture, uint64_t ring_heaps, int64_t nap_ns)
{
	const struct xps_stream_config config = {
		.max_heaps = 4,
		.substreams = 1,
		.max_heap_size = 1 << 20,
		.ring_heaps = ring_heaps,
		.nap_ns = nap_ns,
		.stop_on_stop_item = true,
		.allow_unsized_heaps = true,
		.contiguous_only = true,
	};
	socklen_t length = sizeof(fixture->address);
	struct xps_fail fail = { 0 };

	*fixture = (struct fixture){
		.log = xps_log_new(),
		.address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) },
	};
	fixture->pool = xps_pool_new(1, NULL, 0, &fail);
	CHECK(fixture->pool);
	fixture->stream = xps_stream_new(fixture->pool, &config, allocator, fixture->log, &fail);
	CHECK(fixture->stream);
	fixture->listener = socket(AF_INET, SOCK_STREAM, 0);
	CHECK_EQ(bind(fixture->listener, (struct sockaddr *)&fixture->address, length), 0);
	CHECK_EQ(listen(fixture->listener, 1), 0);
	CHECK_EQ(getsockname(fixture->listener, (struct sockaddr *)&fixture->address, &length), 0);
	CHECK_EQ(xps_add_tcp_reader(fixture->stream, fixture->listener, MAX_SIZE, &fail), 0);
}

static void tear_down(struct fixture *fixture)
{
	if (fixture->listener >= 0)
		close(fixture->listener);
	xps_stream_free(fixture->stream);
	xps_pool_free(fixture->pool);
	xps_log_free(fixture->log);
}

static int try_connect(const struct fixture *fixture)
{
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	CHECK(fd >= 0);
	if (connect(fd, (const struct sockaddr *)&fixture->address, sizeof(fixture->address)) == 0)
		return fd;
	close(fd);
	return -errno;
}

static int new_connection(const struct fixture *fixture)
{
	int fd = try_connect(fixture);

	CHECK(fd >= 0);
	return fd;
}

static void send_all(int fd, const uint8_t *data, size_t n)
{
	while (n) {
		ssize_t sent = send(fd, data, n, MSG_NOSIGNAL);

		CHECK(sent > 0);
		data += sent;
		n -= (size_t)sent;
	}
}

static struct spec heap_spec(uint64_t cnt)
{
	return (struct spec){ .cnt = cnt, .heap_length = HEAP_BYTES, .length = HEAP_BYTES };
}

static void send_heap(int fd, uint64_t cnt)
{
	const struct spec spec = heap_spec(cnt);
	uint8_t *packet = new_packet(&spec);

	send_all(fd, packet, spec_size(&spec));
	free(packet);
}

static void reset(int fd)
{
	const struct linger none = { .l_onoff = 1 };

	CHECK_EQ(setsockopt(fd, SOL_SOCKET, SO_LINGER, &none, sizeof(none)), 0);
	close(fd);
}

static void pop(struct xps_stream *stream, uint64_t cnt)
{
	struct xps_heap *heap;

	CHECK_EQ(xps_stream_pop(stream, &heap, 1, DEADLINE_MS), 1);
	CHECK_EQ(heap->cnt, cnt);
	for (uint64_t i = 0; i < heap->size; i++)
		CHECK_EQ(heap->payload[i], pattern(cnt, i));
	xps_heap_free(heap);
}

static void check_closed(struct xps_stream *stream)
{
	check_ended(stream);
	/* The ring is stopped as the very last thing but one: this waits for the worker. */
	xps_stream_stop(stream);
}

static void await_log(struct xps_log *log, int err)
{
	struct xps_log_line line;

	do
		CHECK_EQ(xps_log_take(log, &line, 1, DEADLINE_MS), 1);
	while (!strstr(line.text, strerror(err)));
	CHECK_EQ(line.level, XPS_LOG_WARNING);
}

/* Milliseconds of CPU that the worker uses in `ms`. */
static int64_t busy_ms(const struct fixture *fixture, int ms)
{
	const struct timespec time = { .tv_nsec = (long)ms * 1000000 };
	const int64_t before = xps_pool_cpu_ns(fixture->pool);

	nanosleep(&time, NULL);
	return (xps_pool_cpu_ns(fixture->pool) - before) / 1000000;
}

/* ---------------------------------------------------------------- packets */

static void test_heaps_come_and_the_end_of_the_connection_ends_the_stream(void)
{
	struct fixture fixture;
	int fd;

	set_up(&fixture, 100, 0);
	fd = new_connection(&fixture);
	for (uint64_t cnt = 0; cnt < 50; cnt++)
		send_heap(fd, cnt);
	close(fd);
	for (uint64_t cnt = 0; cnt < 50; cnt++)
		pop(fixture.stream, cnt);
	check_closed(fixture.stream);
	CHECK_EQ(stat_of(fixture.stream, XPS_STAT_PACKETS), 50);
	CHECK_EQ(stat_of(fixture.stream, XPS_STAT_TCP_SKIPPED_BYTES), 0);
	tear_down(&fixture);
}

static void test_what_completes_no_packet_is_no_batch(void)
{
	const struct spec spec = heap_spec(7);
	uint8_t *packet = new_packet(&spec);
	struct fixture fixture;
	int fd, on = 1;

	set_up(&fixture, 100, 0);
	fd = new_connection(&fixture);
	CHECK_EQ(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)), 0);
	for (size_t i = 0; i < spec_size(&spec); i++)
		send_all(fd, packet + i, 1);
	pop(fixture.stream, 7);
	close(fd);
	check_closed(fixture.stream);
	CHECK_EQ(stat_of(fixture.stream, XPS_STAT_BATCHES), 1);
	CHECK_EQ(stat_of(fixture.stream, XPS_STAT_MAX_BATCH), 1);
	free(packet);
	tear_down(&fixture);
}

struct sender {
	int fd;
	uint64_t n;
};

static void *send_heaps(void *argument)
{
	const struct sender *sender = argument;

	for (uint64_t cnt = 0; cnt < sender->n; cnt++)
		send_heap(sender->fd, cnt);
	close(sender->fd);
	return NULL;
}

static void test_full_ring_holds_the_sender_back_and_nothing_is_lost(void)
{
	enum { N = 20000 };
	const int64_t naps[] = { 0, 100000 };

	for (unsigned i = 0; i < 2; i++) {
		struct fixture fixture;
		struct sender sender;
		pthread_t thread;

		set_up(&fixture, 3, naps[i]);
		sender = (struct sender){ new_connection(&fixture), N };
		thread = start(send_heaps, &sender);
		AWAIT(stat_of(fixture.stream, XPS_STAT_WORKER_BLOCKED) > 0);
		for (uint64_t cnt = 0; cnt < N; cnt++)
			pop(fixture.stream, cnt);
		join(thread);
		check_closed(fixture.stream);
		CHECK_EQ(stat_of(fixture.stream, XPS_STAT_PACKETS), N);
		CHECK_EQ(stat_of(fixture.stream, XPS_STAT_TCP_SKIPPED_BYTES), 0);
		tear_down(&fixture);
	}
}

/* ---------------------------------------------------------------- ends */

static void test_reset_ends_the_stream_and_is_in_the_log(void)
{
	struct fixture fixture;
	int fd;

	set_up(&fixture, 10, 0);
	fd = new_connection(&fixture);
	send_heap(fd, 1);
	pop(fixture.stream, 1);
	reset(fd);
	check_closed(fixture.stream);
	await_log(fixture.log, ECONNRESET);
	tear_down(&fixture);
}

static void test_connection_that_is_reset_before_it_is_accepted_ends_the_stream_too(void)
{
	struct fixture fixture;

	/* Whether the worker accepts it before or after the reset, it is the one connection. */
	for (int i = 0; i < 20; i++) {
		set_up(&fixture, 10, 0);
		reset(new_connection(&fixture));
		check_closed(fixture.stream);
		tear_down(&fixture);
	}
}

static void test_only_one_connection_is_taken(void)
{
	struct fixture fixture;
	int fd;

	set_up(&fixture, 10, 0);
	close(fixture.listener);
	fixture.listener = -1;
	fd = new_connection(&fixture);
	send_heap(fd, 1);
	pop(fixture.stream, 1);
	CHECK_EQ(try_connect(&fixture), -ECONNREFUSED);
	close(fd);
	check_closed(fixture.stream);
	tear_down(&fixture);
}

static void test_stop_before_a_connection_closes_the_port(void)
{
	struct fixture fixture;

	set_up(&fixture, 10, 0);
	close(fixture.listener);
	fixture.listener = -1;
	xps_stream_stop(fixture.stream);
	CHECK_EQ(try_connect(&fixture), -ECONNREFUSED);
	check_closed(fixture.stream);
	tear_down(&fixture);
}

static void test_stop_closes_the_connection(void)
{
	struct fixture fixture;
	uint8_t byte;
	int fd;

	set_up(&fixture, 10, 0);
	fd = new_connection(&fixture);
	send_heap(fd, 1);
	pop(fixture.stream, 1);
	xps_stream_stop(fixture.stream);
	await_readable(fd);
	CHECK_EQ(recv(fd, &byte, 1, 0), 0);
	close(fd);
	tear_down(&fixture);
}

static void test_stop_with_data_in_flight_counts_what_was_received(void)
{
	enum { N = 100 };
	const struct spec spec = heap_spec(0);
	uint64_t packets, skipped;
	struct fixture fixture;
	uint8_t *packet = new_packet(&spec);
	int fd;

	set_up(&fixture, 1, 0);
	fd = new_connection(&fixture);
	for (uint64_t cnt = 0; cnt < N; cnt++)
		send_heap(fd, cnt);
	send_all(fd, packet, 333);
	AWAIT(stat_of(fixture.stream, XPS_STAT_WORKER_BLOCKED) > 0);
	xps_stream_stop(fixture.stream);
	packets = stat_of(fixture.stream, XPS_STAT_PACKETS);
	skipped = stat_of(fixture.stream, XPS_STAT_TCP_SKIPPED_BYTES);
	/* What recv(2) returned in one piece, as far as it was there by then. */
	CHECK(packets > 1);
	CHECK(packets <= N);
	CHECK_EQ(packets, stat_of(fixture.stream, XPS_STAT_HEAPS));
	CHECK_EQ(packets, 1 + stat_of(fixture.stream, XPS_STAT_HEAPS_DROPPED_STOP));
	CHECK(skipped < spec_size(&spec));
	CHECK_EQ(stat_of(fixture.stream, XPS_STAT_SHORT_PACKET), 0);
	free(packet);
	close(fd);
	tear_down(&fixture);
}

static void test_what_stands_behind_a_stop_item_is_counted(void)
{
	const uint64_t stop = immediate(48, 6, 2);
	const struct spec ending = { .cnt = 2, .items = &stop, .n_items = 1 };
	struct spec spec = heap_spec(1);
	struct fixture fixture;
	uint8_t data[8192], *at;
	int fd;

	set_up(&fixture, 10, 0);
	fd = new_connection(&fixture);
	at = put_packet(put_packet(data, &spec), &ending);
	at = put_packet(put_packet(at, &spec), &spec);
	memcpy(at, data, 100); /* the beginning of one more */
	at += 100;
	/* One segment, so that it comes with one recv(2). */
	send_all(fd, data, (size_t)(at - data));
	pop(fixture.stream, 1);
	check_closed(fixture.stream);
	CHECK_EQ(stat_of(fixture.stream, XPS_STAT_PACKETS), 2);
	CHECK_EQ(stat_of(fixture.stream, XPS_STAT_AFTER_STOP), 2);
	CHECK_EQ(stat_of(fixture.stream, XPS_STAT_TCP_SKIPPED_BYTES), 100);
	close(fd);
	tear_down(&fixture);
}

static void test_end_of_the_connection_while_the_ring_is_full_waits_without_spinning(void)
{
	struct fixture fixture;
	int fd;

	set_up(&fixture, 1, 0);
	fd = new_connection(&fixture);
	for (uint64_t cnt = 0; cnt < 3; cnt++)
		send_heap(fd, cnt);
	reset(fd);
	AWAIT(stat_of(fixture.stream, XPS_STAT_WORKER_BLOCKED) > 0);
	CHECK(busy_ms(&fixture, 300) < 100);
	for (uint64_t cnt = 0; cnt < 2; cnt++)
		pop(fixture.stream, cnt);
	xps_stream_stop(fixture.stream);
	CHECK(busy_ms(&fixture, 300) < 100);
	tear_down(&fixture);
}

/* ---------------------------------------------------------------- trouble with the listening socket */

/* The descriptors of the whole process. */
static rlim_t limit_descriptors(rlim_t n)
{
	struct rlimit limit;
	rlim_t before;

	CHECK_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
	before = limit.rlim_cur;
	limit.rlim_cur = n;
	CHECK_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
	return before;
}

static void test_connection_waits_while_there_is_no_descriptor_for_it(void)
{
	const int64_t naps[] = { 0, 100000 };

	for (unsigned i = 0; i < 2; i++) {
		int fd = socket(AF_INET, SOCK_STREAM, 0);
		struct fixture fixture;
		struct xps_log_line line;
		rlim_t before;

		set_up(&fixture, 10, naps[i]);
		before = limit_descriptors(0);
		CHECK_EQ(connect(fd, (struct sockaddr *)&fixture.address, sizeof(fixture.address)), 0);
		await_log(fixture.log, EMFILE);
		CHECK(busy_ms(&fixture, 500) < 100);
		limit_descriptors(before);
		/* Said once, however often it was tried. */
		CHECK_EQ(xps_log_take(fixture.log, &line, 1, 0), 0);
		send_heap(fd, 1);
		pop(fixture.stream, 1);
		close(fd);
		check_closed(fixture.stream);
		tear_down(&fixture);
	}
}

static void test_stop_while_a_connection_waits_for_a_descriptor(void)
{
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	struct fixture fixture;
	rlim_t before;

	set_up(&fixture, 10, 0);
	before = limit_descriptors(0);
	CHECK_EQ(connect(fd, (struct sockaddr *)&fixture.address, sizeof(fixture.address)), 0);
	await_log(fixture.log, EMFILE);
	xps_stream_stop(fixture.stream);
	limit_descriptors(before);
	close(fd);
	tear_down(&fixture);
}

static void test_listening_socket_that_its_user_shuts_down_ends_the_stream(void)
{
	struct fixture fixture;

	set_up(&fixture, 10, 0);
	CHECK_EQ(shutdown(fixture.listener, SHUT_RDWR), 0);
	check_closed(fixture.stream);
	await_log(fixture.log, EINVAL);
	tear_down(&fixture);
}

static void test_other_sockets_and_sizes_are_refused(void)
{
	const int datagram = socket(AF_INET, SOCK_DGRAM, 0), idle = socket(AF_INET, SOCK_STREAM, 0);
	struct fixture fixture;
	struct xps_fail fail = { 0 };

	set_up(&fixture, 10, 0);
	CHECK_EQ(xps_add_tcp_reader(fixture.stream, datagram, MAX_SIZE, &fail), -EINVAL);
	CHECK_EQ(xps_add_tcp_reader(fixture.stream, idle, MAX_SIZE, &fail), -EINVAL);
	CHECK(strstr(fail.text, "listen"));
	CHECK_EQ(xps_add_tcp_reader(fixture.stream, -1, MAX_SIZE, &fail), -EINVAL);
	CHECK_EQ(xps_add_tcp_reader(fixture.stream, fixture.listener, UINT64_C(1) << 32, &fail), -EINVAL);
	close(datagram);
	close(idle);
	tear_down(&fixture);
}

static void test_reader_for_a_stopped_stream_is_none(void)
{
	struct fixture fixture;
	struct xps_fail fail = { 0 };

	set_up(&fixture, 10, 0);
	xps_stream_stop(fixture.stream);
	CHECK_EQ(xps_add_tcp_reader(fixture.stream, fixture.listener, MAX_SIZE, &fail), 0);
	tear_down(&fixture);
}

int main(void)
{
	allocator = xps_allocator_new();
	test_heaps_come_and_the_end_of_the_connection_ends_the_stream();
	test_what_completes_no_packet_is_no_batch();
	test_full_ring_holds_the_sender_back_and_nothing_is_lost();
	test_reset_ends_the_stream_and_is_in_the_log();
	test_connection_that_is_reset_before_it_is_accepted_ends_the_stream_too();
	test_only_one_connection_is_taken();
	test_stop_before_a_connection_closes_the_port();
	test_stop_closes_the_connection();
	test_stop_with_data_in_flight_counts_what_was_received();
	test_what_stands_behind_a_stop_item_is_counted();
	test_end_of_the_connection_while_the_ring_is_full_waits_without_spinning();
	test_connection_waits_while_there_is_no_descriptor_for_it();
	test_stop_while_a_connection_waits_for_a_descriptor();
	test_listening_socket_that_its_user_shuts_down_ends_the_stream();
	test_other_sockets_and_sizes_are_refused();
	test_reader_for_a_stopped_stream_is_none();
	xps_allocator_free(allocator);
	return 0;
}
