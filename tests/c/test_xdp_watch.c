// SPDX-License-Identifier: Apache-2.0
/*
 * What a watch makes of the kernel's messages about an interface: the right sentence once, an error at the end, and
 * nothing of what is nonsense. Messages are built here; the last tests ask the kernel, in a network namespace of their own.
 */
#include <errno.h>
#include <linux/if.h>
#include <linux/if_link.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "await.h"
#include "check.h"
#include "xdp_watch.h"

enum { INDEX = 7, PROGRAM = 42, UP = IFF_UP | IFF_LOWER_UP };

/* ---------------------------------------------------------------- messages */

struct message {
	uint8_t bytes[512];
	size_t length;
};

static void put(struct message *m, const void *data, size_t length)
{
	memcpy(m->bytes + m->length, data, length);
	m->length += (length + 3) & ~(size_t)3;
}

static void put_attribute(struct message *m, uint16_t type, const void *data, size_t length)
{
	const struct nlattr head = { .nla_len = (uint16_t)(sizeof(head) + length), .nla_type = type };

	put(m, &head, sizeof(head));
	put(m, data, length);
}

static void put_u32(struct message *m, uint16_t type, uint32_t value)
{
	put_attribute(m, type, &value, sizeof(value));
}

static void finish(struct message *m)
{
	const uint32_t length = (uint32_t)m->length;

	memcpy(m->bytes, &length, sizeof(length));
}

static struct message link_message(uint16_t type, int family, int index, unsigned flags)
{
	const struct nlmsghdr head = { .nlmsg_type = type };
	const struct ifinfomsg info = {
		.ifi_family = (unsigned char)family,
		.ifi_index = index,
		.ifi_flags = flags,
	};
	struct message m = { .length = 0 };

	put(&m, &head, sizeof(head));
	put(&m, &info, sizeof(info));
	return m;
}

/* All that the kernel says of an interface that has our program. */
static struct message usual(const char *name, uint32_t mtu, unsigned flags, uint32_t program)
{
	struct message m = link_message(RTM_NEWLINK, AF_UNSPEC, INDEX, flags), xdp = { .length = 0 };
	const uint8_t attached = XDP_ATTACHED_DRV;

	put_attribute(&m, IFLA_IFNAME, name, strlen(name) + 1);
	put_u32(&m, IFLA_MTU, mtu);
	put_attribute(&xdp, IFLA_XDP_ATTACHED, &attached, 1);
	put_u32(&xdp, IFLA_XDP_PROG_ID, program);
	put_attribute(&m, IFLA_XDP | NLA_F_NESTED, xdp.bytes, xdp.length);
	finish(&m);
	return m;
}

/* ---------------------------------------------------------------- the watch */

static int n_told, last_level;
static char last_text[256];

static void hear(void *user, int level, const char *text)
{
	CHECK(user == &n_told);
	n_told++;
	last_level = level;
	snprintf(last_text, sizeof(last_text), "%s", text);
}

static struct xps_xdp_watch new_watch(void)
{
	n_told = 0;
	return (struct xps_xdp_watch){
		.fd = -1,
		.ifindex = INDEX,
		.program_id = PROGRAM,
		.max_mtu = 1770,
		.name = "eth1",
		.mtu = 1500,
		.tell = hear,
		.user = &n_told,
	};
}

/* In memory of just its length, so that a sanitizer sees what is read beyond. */
static int parse(struct xps_xdp_watch *watch, const uint8_t *data, size_t length, struct xps_fail *fail)
{
	uint8_t *copy = malloc(length ? length : 1);
	int err;

	memcpy(copy, data, length);
	err = xps_xdp_watch_parse(watch, copy, length, fail);
	free(copy);
	return err;
}

static void check_told(struct xps_xdp_watch *watch, const struct message *m, int level, const char *words)
{
	struct xps_fail fail = { 0 };

	for (int again = 0; again < 2; again++)
		CHECK_EQ(parse(watch, m->bytes, m->length, &fail), 0);
	CHECK_EQ(n_told, 1);
	CHECK_EQ(last_level, level);
	CHECK(strstr(last_text, words));
	n_told = 0;
}

static void check_silent(const struct message *m)
{
	struct xps_xdp_watch watch = new_watch();
	struct xps_fail fail = { 0 };

	CHECK_EQ(parse(&watch, m->bytes, m->length, &fail), 0);
	CHECK_EQ(n_told, 0);
}

static void check_end(const struct message *m, int err, const char *words)
{
	struct xps_xdp_watch watch = new_watch();
	struct xps_fail fail = { 0 };

	CHECK_EQ(parse(&watch, m->bytes, m->length, &fail), -err);
	CHECK_EQ(fail.err, err);
	CHECK(strstr(fail.text, words));
	CHECK(strstr(fail.text, "eth1"));
	CHECK_EQ(n_told, 0);
}

/* ---------------------------------------------------------------- tests */

static void test_each_change_is_told_once(void)
{
	struct xps_xdp_watch watch = new_watch();
	struct message m = usual("eth1", 1500, 0, PROGRAM);

	check_told(&watch, &m, XPS_LOG_WARNING, "eth1 is down");
	m = usual("eth1", 1500, IFF_UP, PROGRAM);
	check_told(&watch, &m, XPS_LOG_WARNING, "eth1 has no carrier");
	m = usual("eth1", 1500, UP, PROGRAM);
	check_told(&watch, &m, XPS_LOG_INFO, "eth1 is up again");
	m = usual("a-name-of-15-by", 1500, UP, PROGRAM);
	check_told(&watch, &m, XPS_LOG_INFO, "eth1 is called a-name-of-15-by now");
	m = usual("a-name-of-15-by", 1770, UP, PROGRAM);
	check_told(&watch, &m, XPS_LOG_INFO, "a-name-of-15-by: its MTU was 1500 and is 1770");
	m = usual("a-name-of-15-by", 1771, UP, PROGRAM);
	check_told(&watch, &m, XPS_LOG_WARNING, "more than 1770 do not fit");
	watch.max_mtu = 0;
	m = usual("a-name-of-15-by", 65535, UP, PROGRAM);
	check_told(&watch, &m, XPS_LOG_INFO, "is 65535 now");
}

static void test_what_has_not_changed_is_not_told(void)
{
	const struct message same = usual("eth1", 1500, UP | IFF_RUNNING | IFF_MULTICAST, PROGRAM);
	struct message little = link_message(RTM_NEWLINK, AF_UNSPEC, INDEX, UP);

	finish(&little);
	check_silent(&same);
	check_silent(&little);
}

static void test_others_are_none_of_our_business(void)
{
	struct message other = link_message(RTM_DELLINK, AF_UNSPEC, INDEX + 1, 0);
	struct message bridge = link_message(RTM_DELLINK, AF_BRIDGE, INDEX, 0);
	struct message address = link_message(RTM_DELADDR, AF_UNSPEC, INDEX, 0);

	finish(&other);
	finish(&bridge);
	finish(&address);
	check_silent(&other);
	check_silent(&bridge);
	check_silent(&address);
}

static void test_interface_that_goes_is_the_end(void)
{
	struct message deleted = link_message(RTM_DELLINK, AF_UNSPEC, INDEX, 0), moved = deleted, error = deleted;
	const struct nlmsghdr head = { .nlmsg_type = NLMSG_ERROR };
	const int32_t number = -ENODEV;

	finish(&deleted);
	check_end(&deleted, ENODEV, "was deleted while");
	put_u32(&moved, IFLA_NEW_NETNSID, 3);
	finish(&moved);
	check_end(&moved, ENODEV, "was moved to another network namespace");
	error.length = 0;
	put(&error, &head, sizeof(head));
	put(&error, &number, sizeof(number));
	finish(&error);
	check_end(&error, ENODEV, "was deleted, or moved");
}

static void test_program_that_is_not_there_is_the_end(void)
{
	const struct message other = usual("eth1", 1500, UP, PROGRAM + 1);
	struct message none = link_message(RTM_NEWLINK, AF_UNSPEC, INDEX, UP), several = none, xdp = { .length = 0 };
	struct xps_xdp_watch unknown = new_watch();
	struct xps_fail fail = { 0 };
	const uint8_t multi = XDP_ATTACHED_MULTI, nothing = XDP_ATTACHED_NONE;

	check_end(&other, ENOLINK, "program (id 42) was taken off");
	put_attribute(&xdp, IFLA_XDP_ATTACHED, &nothing, 1);
	put_attribute(&none, IFLA_XDP, xdp.bytes, xdp.length);
	finish(&none);
	check_end(&none, ENOLINK, "program (id 42) was taken off");
	xdp.length = 0;
	put_attribute(&xdp, IFLA_XDP_ATTACHED, &multi, 1);
	put_u32(&xdp, IFLA_XDP_HW_PROG_ID, 7);
	put_u32(&xdp, IFLA_XDP_DRV_PROG_ID, PROGRAM);
	put_attribute(&several, IFLA_XDP, xdp.bytes, xdp.length);
	finish(&several);
	check_silent(&several);
	unknown.program_id = 0;
	CHECK_EQ(parse(&unknown, none.bytes, none.length, &fail), 0);
}

static void test_message_that_is_cut_short_anywhere_is_left_alone(void)
{
	const struct message whole = usual("eth2", 9000, 0, PROGRAM);

	for (size_t length = 0; length < whole.length; length++) {
		struct message cut = whole;

		cut.length = length;
		check_silent(&cut);
		if (length < NLMSG_HDRLEN + sizeof(struct ifinfomsg))
			continue;
		/* With a length that agrees all attributes that are whole count, and our program may be missing. */
		finish(&cut);
		{
			struct xps_xdp_watch watch = new_watch();
			struct xps_fail fail = { 0 };
			const int err = parse(&watch, cut.bytes, cut.length, &fail);

			CHECK(err == 0 || err == -ENOLINK);
		}
	}
}

static void test_nonsense_does_no_harm(void)
{
	const struct message good = usual("eth2", 9000, 0, PROGRAM);
	uint32_t random = 1;

	for (int i = 0; i < 200000; i++) {
		struct xps_xdp_watch watch = new_watch();
		struct message bad = good;
		struct xps_fail fail = { 0 };
		int err;

		for (int flips = 0; flips < 1 + i % 4; flips++) {
			random = random * 1664525 + 1013904223;
			bad.bytes[(random >> 8) % bad.length] = (uint8_t)(random >> 24);
		}
		err = parse(&watch, bad.bytes, bad.length, &fail);
		CHECK(err == 0 || err == -ENODEV || err == -ENOLINK);
		CHECK_EQ(fail.err, -err);
		CHECK(memchr(watch.name, 0, sizeof(watch.name)));
	}
}

static void test_several_messages_in_one_datagram(void)
{
	struct xps_xdp_watch watch = new_watch();
	const struct message first = usual("eth1", 1400, UP, PROGRAM), second = usual("eth1", 1300, UP, PROGRAM);
	struct message both = first;
	struct xps_fail fail;

	put(&both, second.bytes, second.length);
	CHECK_EQ(parse(&watch, both.bytes, both.length, &fail), 0);
	CHECK_EQ(n_told, 2);
	CHECK_EQ(watch.mtu, 1300);
}

/* ---------------------------------------------------------------- the kernel */

static void set_mtu(int fd, int mtu)
{
	struct ifreq request = { .ifr_name = "lo", .ifr_mtu = mtu };

	CHECK_EQ(ioctl(fd, SIOCSIFMTU, &request), 0);
}

static struct xps_xdp_watch watch_loopback(int mtu)
{
	struct xps_xdp_watch watch = new_watch();
	struct xps_fail fail;

	watch.ifindex = 1;
	watch.program_id = 0;
	watch.max_mtu = 0;
	watch.mtu = mtu;
	watch.state = XPS_XDP_DOWN;
	strcpy(watch.name, "lo");
	CHECK_EQ(xps_xdp_watch_open(&watch, &fail), 0);
	await_readable(watch.fd); /* the answer to what open() asked */
	CHECK_EQ(xps_xdp_watch_read(&watch, &fail), 1);
	CHECK_EQ(xps_xdp_watch_read(&watch, &fail), 0);
	CHECK_EQ(n_told, 0);
	return watch;
}

static void test_kernel_tells_and_answers(int fd)
{
	struct xps_xdp_watch watch = watch_loopback(65536);
	struct xps_fail fail;

	set_mtu(fd, 2000);
	await_readable(watch.fd);
	CHECK_EQ(xps_xdp_watch_read(&watch, &fail), 1);
	CHECK_EQ(n_told, 1);
	CHECK_EQ(watch.mtu, 2000);
	xps_xdp_watch_ask(&watch);
	await_readable(watch.fd);
	CHECK_EQ(xps_xdp_watch_read(&watch, &fail), 1);
	CHECK_EQ(n_told, 1);
	/* No message of an interface that there is not; but an answer to who asks. */
	watch.ifindex = 4711;
	xps_xdp_watch_ask(&watch);
	await_readable(watch.fd);
	CHECK_EQ(xps_xdp_watch_read(&watch, &fail), -ENODEV);
	xps_xdp_watch_close(&watch);
}

static void test_what_there_was_no_room_for_is_asked(int fd)
{
	struct xps_xdp_watch watch = watch_loopback(2000);
	const int little = 1;
	struct xps_fail fail;

	CHECK_EQ(setsockopt(watch.fd, SOL_SOCKET, SO_RCVBUF, &little, sizeof(little)), 0);
	for (int i = 0; i < 100; i++)
		set_mtu(fd, 3000 + i);
	for (int i = 0; i < 200 && watch.mtu != 3099; i++)
		CHECK(xps_xdp_watch_read(&watch, &fail) >= 0);
	CHECK_EQ(watch.mtu, 3099);
	CHECK(n_told < 50); /* some were lost, or nothing has been tested */
	xps_xdp_watch_close(&watch);
}

int main(void)
{
	int fd;

	test_each_change_is_told_once();
	test_what_has_not_changed_is_not_told();
	test_others_are_none_of_our_business();
	test_interface_that_goes_is_the_end();
	test_program_that_is_not_there_is_the_end();
	test_message_that_is_cut_short_anywhere_is_left_alone();
	test_nonsense_does_no_harm();
	test_several_messages_in_one_datagram();
	if (unshare(CLONE_NEWNET))
		SKIP("network namespaces need root");
	fd = socket(AF_INET, SOCK_DGRAM, 0);
	test_kernel_tells_and_answers(fd);
	test_what_there_was_no_room_for_is_asked(fd);
	close(fd);
	return 0;
}
