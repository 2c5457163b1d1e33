// SPDX-License-Identifier: Apache-2.0
#include "xdp_watch.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/filter.h>
#include <linux/if.h>
#include <linux/if_link.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "bits.h"

enum {
	DATAGRAM = 16 * 1024, /* a link with all its attributes takes one to three kilobytes */
	DATAGRAMS = 64,       /* in one go; who is called again reads on */
};

static const char step[] = "receive";

/* ---------------------------------------------------------------- opening and closing */

/* Links other than ours are not even copied for us. What is no link (an error that answers us) passes. */
static int filter_others(const struct xps_xdp_watch *watch)
{
	const uint32_t type = offsetof(struct nlmsghdr, nlmsg_type);
	const uint32_t index = NLMSG_HDRLEN + offsetof(struct ifinfomsg, ifi_index);
	/* Loads are big-endian, and netlink is not. */
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_H | BPF_ABS, type),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, htons(RTM_NEWLINK), 1, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, htons(RTM_DELLINK), 0, 2),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, index),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, htonl((uint32_t)watch->ifindex), 0, 1),
		BPF_STMT(BPF_RET | BPF_K, UINT32_MAX),
		BPF_STMT(BPF_RET | BPF_K, 0),
	};
	const struct sock_fprog program = { .len = XPS_ARRAY_LEN(code), .filter = code };

	return setsockopt(watch->fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof(program)) ? -errno : 0;
}

static int join(const struct xps_xdp_watch *watch)
{
	const struct sockaddr_nl address = { .nl_family = AF_NETLINK, .nl_groups = RTMGRP_LINK };
	int err = filter_others(watch);

	if (err)
		return err;
	return bind(watch->fd, (const struct sockaddr *)&address, sizeof(address)) ? -errno : 0;
}

int xps_xdp_watch_open(struct xps_xdp_watch *watch, struct xps_fail *fail)
{
	int err = 0;

	watch->fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_ROUTE);
	if (watch->fd < 0)
		err = -errno;
	else
		err = join(watch);
	if (err) {
		xps_xdp_watch_close(watch);
		return xps_fail_set(fail, -err, "watch interface", "Cannot watch %s through netlink: %s.%s",
				    watch->name, strerror(-err),
				    err == -EMFILE ? " Raise RLIMIT_NOFILE (ulimit -n)." : "");
	}
	xps_xdp_watch_ask(watch);
	return 0;
}

void xps_xdp_watch_close(struct xps_xdp_watch *watch)
{
	if (watch->fd >= 0)
		close(watch->fd);
	watch->fd = -1;
}

/* ---------------------------------------------------------------- what a message says */

/* One attribute: where its bytes are, and how many. */
struct attribute {
	uint16_t type;
	const uint8_t *data;
	size_t length;
};

/* The next attribute of the `*left` bytes at `*at`. False at the end, and where they make no sense. */
static bool next_attribute(const uint8_t **at, size_t *left, struct attribute *attribute)
{
	struct nlattr head;
	size_t step_length;

	if (*left < sizeof(head))
		return false;
	memcpy(&head, *at, sizeof(head));
	if (head.nla_len < sizeof(head) || head.nla_len > *left)
		return false;
	*attribute = (struct attribute){
		.type = head.nla_type & NLA_TYPE_MASK,
		.data = *at + sizeof(head),
		.length = head.nla_len - sizeof(head),
	};
	step_length = NLA_ALIGN(head.nla_len);
	if (step_length > *left)
		step_length = *left;
	*at += step_length;
	*left -= step_length;
	return true;
}

static uint32_t u32_of(const struct attribute *attribute)
{
	uint32_t value = 0;

	memcpy(&value, attribute->data, attribute->length < sizeof(value) ? attribute->length : sizeof(value));
	return value;
}

/* What a message says of an interface. */
struct link {
	char name[16];    /* empty: nothing */
	int mtu;          /* 0: nothing */
	bool tells_xdp;   /* which programs it has, or none */
	bool has_program; /* ours is among them */
	bool moved;       /* it lives on in another network namespace */
	unsigned int flags;
};

static void read_xdp(struct link *link, const struct attribute *xdp, uint32_t program_id)
{
	const uint8_t *at = xdp->data;
	size_t left = xdp->length;
	struct attribute a;

	link->tells_xdp = true;
	while (next_attribute(&at, &left, &a))
		if (a.type >= IFLA_XDP_PROG_ID && a.type <= IFLA_XDP_HW_PROG_ID && u32_of(&a) == program_id)
			link->has_program = true;
}

static void read_attribute(struct link *link, const struct attribute *a, uint32_t program_id)
{
	switch (a->type) {
	case IFLA_IFNAME:
		snprintf(link->name, sizeof(link->name), "%.*s", (int)xps_min_u64(a->length, sizeof(link->name)),
			 (const char *)a->data);
		break;
	case IFLA_MTU:
		link->mtu = (int)u32_of(a);
		break;
	case IFLA_XDP:
		read_xdp(link, a, program_id);
		break;
	case IFLA_NEW_NETNSID:
		link->moved = true;
		break;
	}
}

/* ---------------------------------------------------------------- what that means */

static void tell(struct xps_xdp_watch *watch, int level, const char *text)
{
	if (watch->tell)
		watch->tell(watch->user, level, text);
}

static int gone(const struct xps_xdp_watch *watch, bool moved, struct xps_fail *fail)
{
	return xps_fail_set(
		fail, ENODEV, step,
		"the interface %s (index %d) was %s while it was read, and no packet comes from it any more. %s",
		watch->name, watch->ifindex, moved ? "moved to another network namespace" : "deleted",
		moved ? "Move it back, or receive in that namespace, with a new stream."
		      : "When there is one again, make a new stream.");
}

static int robbed(const struct xps_xdp_watch *watch, struct xps_fail *fail)
{
	return xps_fail_set(
		fail, ENOLINK, step,
		"the XDP program (id %u) was taken off the interface %s by somebody else while it was read, and no "
		"packet comes any more. 'ip link show dev %s' says whether another program has its place; make a new "
		"stream.",
		watch->program_id, watch->name, watch->name);
}

static void see_name(struct xps_xdp_watch *watch, const char *name)
{
	char text[200];

	if (!*name || !strcmp(name, watch->name))
		return;
	snprintf(text, sizeof(text), "%s is called %s now; it is read as before", watch->name, name);
	memcpy(watch->name, name, sizeof(watch->name));
	tell(watch, XPS_LOG_INFO, text);
}

static void see_mtu(struct xps_xdp_watch *watch, int mtu)
{
	const bool fits = !watch->max_mtu || mtu <= watch->max_mtu;
	char text[252];

	if (!mtu || mtu == watch->mtu)
		return;
	if (fits)
		snprintf(text, sizeof(text), "%s: its MTU was %d and is %d now; it is read as before", watch->name,
			 watch->mtu, mtu);
	else
		snprintf(
			text, sizeof(text),
			"%s: its MTU was %d and is %d now, but packets of more than %d do not fit the frames that were "
			"made for it, and are lost (xdpspead.xdp_rx_dropped); make a new stream to receive them",
			watch->name, watch->mtu, mtu, watch->max_mtu);
	watch->mtu = mtu;
	tell(watch, fits ? XPS_LOG_INFO : XPS_LOG_WARNING, text);
}

static void see_state(struct xps_xdp_watch *watch, unsigned int flags)
{
	const enum xps_xdp_state state = !(flags & IFF_UP)         ? XPS_XDP_DOWN
					 : !(flags & IFF_LOWER_UP) ? XPS_XDP_NO_CARRIER
								   : XPS_XDP_RUNNING;
	char text[200];

	if (state == watch->state)
		return;
	watch->state = state;
	switch (state) {
	case XPS_XDP_DOWN:
		snprintf(text, sizeof(text),
			 "%s is down, and nothing is received until it is up again ('ip link set dev %s up')",
			 watch->name, watch->name);
		break;
	case XPS_XDP_NO_CARRIER:
		snprintf(text, sizeof(text),
			 "%s has no carrier, and nothing is received until it has: look at the cable and the other end",
			 watch->name);
		break;
	case XPS_XDP_RUNNING:
		snprintf(text, sizeof(text), "%s is up again, and read as before", watch->name);
		break;
	}
	tell(watch, state == XPS_XDP_RUNNING ? XPS_LOG_INFO : XPS_LOG_WARNING, text);
}

/* ---------------------------------------------------------------- messages */

static int see_link(struct xps_xdp_watch *watch, uint16_t type, const uint8_t *data, size_t length,
		    struct xps_fail *fail)
{
	struct link link = { 0 };
	struct ifinfomsg head;
	struct attribute a;

	if (length < sizeof(head))
		return 0;
	memcpy(&head, data, sizeof(head));
	/* Bridges speak of their ports by the same messages, but with a family. */
	if (head.ifi_index != watch->ifindex || head.ifi_family != AF_UNSPEC)
		return 0;
	link.flags = head.ifi_flags;
	data += sizeof(head);
	length -= sizeof(head);
	while (next_attribute(&data, &length, &a))
		read_attribute(&link, &a, watch->program_id);
	if (type == RTM_DELLINK)
		return gone(watch, link.moved, fail);
	see_name(watch, link.name);
	if (watch->program_id && link.tells_xdp && !link.has_program)
		return robbed(watch, fail);
	see_mtu(watch, link.mtu);
	see_state(watch, link.flags);
	return 0;
}

/* Only what we ask is answered so. */
static int see_error(struct xps_xdp_watch *watch, const uint8_t *data, size_t length, struct xps_fail *fail)
{
	int32_t error;

	if (length < sizeof(error))
		return 0;
	memcpy(&error, data, sizeof(error));
	if (error != -ENODEV)
		return 0;
	return xps_fail_set(
		fail, ENODEV, step,
		"the interface %s (index %d) was deleted, or moved to another network namespace, while it was read, and "
		"no packet comes from it any more. When there is one again, make a new stream.",
		watch->name, watch->ifindex);
}

int xps_xdp_watch_parse(struct xps_xdp_watch *watch, const uint8_t *data, size_t length, struct xps_fail *fail)
{
	struct nlmsghdr head;
	size_t step_length;
	int err = 0;

	while (length >= sizeof(head) && !err) {
		memcpy(&head, data, sizeof(head));
		if (head.nlmsg_len < NLMSG_HDRLEN || head.nlmsg_len > length)
			break;
		if (head.nlmsg_type == RTM_NEWLINK || head.nlmsg_type == RTM_DELLINK)
			err = see_link(watch, head.nlmsg_type, data + NLMSG_HDRLEN, head.nlmsg_len - NLMSG_HDRLEN,
				       fail);
		else if (head.nlmsg_type == NLMSG_ERROR)
			err = see_error(watch, data + NLMSG_HDRLEN, head.nlmsg_len - NLMSG_HDRLEN, fail);
		step_length = NLMSG_ALIGN(head.nlmsg_len);
		if (step_length > length)
			break;
		data += step_length;
		length -= step_length;
	}
	return err;
}

void xps_xdp_watch_ask(struct xps_xdp_watch *watch)
{
	const struct {
		struct nlmsghdr head;
		struct ifinfomsg link;
		struct nlattr mask;
		uint32_t filter;
	} question = {
		.head = { .nlmsg_len = sizeof(question), .nlmsg_type = RTM_GETLINK, .nlmsg_flags = NLM_F_REQUEST },
		.link = { .ifi_family = AF_UNSPEC, .ifi_index = watch->ifindex },
		.mask = { .nla_len = sizeof(struct nlattr) + sizeof(uint32_t), .nla_type = IFLA_EXT_MASK },
		.filter = RTEXT_FILTER_SKIP_STATS,
	};
	const struct sockaddr_nl kernel = { .nl_family = AF_NETLINK };

	/* Whoever could not ask now asks again later. */
	if (sendto(watch->fd, &question, sizeof(question), MSG_DONTWAIT, (const struct sockaddr *)&kernel,
		   sizeof(kernel)) < 0)
		return;
}

int xps_xdp_watch_read(struct xps_xdp_watch *watch, struct xps_fail *fail)
{
	uint8_t data[DATAGRAM] __attribute__((aligned(NLMSG_ALIGNTO)));
	bool missed = false;
	int err = 0, came = 0;

	for (int i = 0; i < DATAGRAMS && !err; i++) {
		struct sockaddr_nl from = { 0 };
		socklen_t from_length = sizeof(from);
		ssize_t n = recvfrom(watch->fd, data, sizeof(data), MSG_DONTWAIT | MSG_TRUNC, (struct sockaddr *)&from,
				     &from_length);

		if (n < 0 && errno == ENOBUFS)
			missed = true;
		else if (n < 0 && errno != EINTR)
			break;
		else if (n > DATAGRAM)
			missed = true;
		else if (n > 0 && from.nl_pid == 0 && ++came) /* other processes can write to us, too */
			err = xps_xdp_watch_parse(watch, data, (size_t)n, fail);
	}
	if (missed && !err)
		xps_xdp_watch_ask(watch);
	return err ? err : came;
}
