// SPDX-License-Identifier: Apache-2.0
/* The helper's messages: what is sent arrives, with its descriptors, and none is left open; what is no request is none. */
#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "helper_protocol.h"

static int ends[2];

static void connect_ends(void)
{
	CHECK_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends), 0);
}

static void close_ends(void)
{
	close(ends[0]);
	close(ends[1]);
}

/* The number that the next descriptor would have: whether one was left open shows in it. */
static int next_fd(void)
{
	const int fd = dup(ends[0]);

	CHECK(fd >= 0);
	close(fd);
	return fd;
}

static void test_request_arrives_as_it_was_sent(void)
{
	static struct xps_helper_request sent, got;
	static uint8_t bytes[sizeof(got)];
	uint32_t n_fds;
	ssize_t n;

	connect_ends();
	sent.kind = XPS_HELPER_ADD_ENDPOINTS;
	sent.sequence = 9;
	sent.endpoints.slot = 63;
	sent.endpoints.n = XPS_HELPER_MAX_ENDPOINTS;
	for (uint32_t i = 0; i < sent.endpoints.n; i++)
		sent.endpoints.list[i].port = (uint16_t)i;
	CHECK_EQ(xps_helper_send(ends[0], &sent, xps_helper_request_size(&sent), NULL, 0), 0);
	n = xps_helper_receive(ends[1], bytes, sizeof(bytes), NULL, 0, &n_fds);
	CHECK_EQ(n, 16 + 36 * XPS_HELPER_MAX_ENDPOINTS);
	CHECK_EQ(xps_helper_parse(&got, bytes, (size_t)n), 0);
	CHECK(!memcmp(&got, &sent, (size_t)n));
	CHECK_EQ(xps_helper_receive(ends[1], bytes, sizeof(bytes), NULL, 0, &n_fds), -EAGAIN);
	close_ends();
}

static void test_message_that_is_too_long_is_no_request(void)
{
	static struct xps_helper_request got;
	static uint8_t bytes[sizeof(got)], longer[sizeof(got) + 1] = { XPS_HELPER_PASSED };
	uint32_t n_fds;
	ssize_t n;

	connect_ends();
	CHECK_EQ(xps_helper_send(ends[0], longer, sizeof(longer), NULL, 0), 0);
	n = xps_helper_receive(ends[1], bytes, sizeof(bytes), NULL, 0, &n_fds);
	CHECK_EQ(xps_helper_parse(&got, bytes, (size_t)n), -EBADMSG);
	close_ends();
}

static void test_descriptors_arrive_and_those_not_wanted_are_closed(void)
{
	int fds[XPS_HELPER_MAX_FDS], given[2], before;
	uint32_t n_fds;
	char byte = 0;

	connect_ends();
	before = next_fd();
	for (uint32_t wanted = 0; wanted <= 2; wanted++) {
		CHECK_EQ(pipe2(given, O_CLOEXEC), 0);
		CHECK_EQ(xps_helper_send(ends[0], &byte, 1, given, 2), 0);
		close(given[0]);
		close(given[1]);
		CHECK_EQ(xps_helper_receive(ends[1], &byte, 1, fds, wanted, &n_fds), 1);
		CHECK_EQ(n_fds, wanted);
		for (uint32_t i = 0; i < n_fds; i++) {
			CHECK_EQ(fcntl(fds[i], F_GETFD), FD_CLOEXEC);
			close(fds[i]);
		}
		CHECK_EQ(next_fd(), before);
	}
	close_ends();
}

static void test_end_of_the_connection_is_told(void)
{
	uint32_t n_fds;
	char byte = 0;

	connect_ends();
	close(ends[0]);
	CHECK_EQ(xps_helper_receive(ends[1], &byte, 1, NULL, 0, &n_fds), 0);
	CHECK_EQ(xps_helper_send(ends[1], &byte, 1, NULL, 0), -EPIPE);
	close(ends[1]);
}

int main(void)
{
	test_request_arrives_as_it_was_sent();
	test_message_that_is_too_long_is_no_request();
	test_descriptors_arrive_and_those_not_wanted_are_closed();
	test_end_of_the_connection_is_told();
	return 0;
}
