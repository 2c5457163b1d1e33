// SPDX-License-Identifier: Apache-2.0
#include "helper_interface.h"

#include <errno.h>
#include <linux/ethtool.h>
#include <linux/rtnetlink.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

/* The queues in use, as the driver says; 0 if it does not. */
static int ask_driver(int fd, struct ifreq *request)
{
	struct ethtool_channels channels = { .cmd = ETHTOOL_GCHANNELS };

	request->ifr_data = (char *)&channels;
	return ioctl(fd, SIOCETHTOOL, request) ? 0 : (int)(channels.rx_count + channels.combined_count);
}

static int find_count(const struct nlmsghdr *head, size_t n)
{
	const struct rtattr *attribute;
	int length;

	if (!NLMSG_OK(head, n) || head->nlmsg_type != RTM_NEWLINK)
		return 0;
	attribute = IFLA_RTA((const struct ifinfomsg *)NLMSG_DATA(head));
	length = (int)IFLA_PAYLOAD(head);
	for (; RTA_OK(attribute, length); attribute = RTA_NEXT(attribute, length)) {
		__u32 count;

		if (attribute->rta_type != IFLA_NUM_RX_QUEUES || RTA_PAYLOAD(attribute) < sizeof(count))
			continue;
		memcpy(&count, RTA_DATA(attribute), sizeof(count));
		return (int)count;
	}
	return 0;
}

/* Those that there are, as the kernel says. */
static int ask_kernel(int ifindex)
{
	struct {
		struct nlmsghdr head;
		struct ifinfomsg info;
	} request = {
		.head = { .nlmsg_len = sizeof(request), .nlmsg_type = RTM_GETLINK, .nlmsg_flags = NLM_F_REQUEST },
		.info = { .ifi_index = ifindex },
	};
	union {
		struct nlmsghdr head;
		char bytes[16384];
	} reply;
	const int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
	ssize_t n = -1;

	if (fd < 0)
		return 0;
	/* The kernel answers while it is asked. */
	if (send(fd, &request, sizeof(request), 0) == (ssize_t)sizeof(request))
		n = recv(fd, &reply, sizeof(reply), MSG_DONTWAIT);
	close(fd);
	return n > 0 ? find_count(&reply.head, (size_t)n) : 0;
}

static int ask(int fd, struct ifreq *request, struct xps_helper_interface *interface)
{
	if (ioctl(fd, SIOCGIFINDEX, request))
		return -errno;
	interface->ifindex = request->ifr_ifindex;
	if (ioctl(fd, SIOCGIFMTU, request))
		return -errno;
	interface->mtu = request->ifr_mtu;
	interface->n_queues = ask_driver(fd, request);
	if (interface->n_queues < 1)
		interface->n_queues = ask_kernel(interface->ifindex);
	if (interface->n_queues < 1)
		interface->n_queues = 1;
	return 0;
}

int xps_helper_interface_find(const char *name, struct xps_helper_interface *interface)
{
	const int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	struct ifreq request = { 0 };
	int err;

	if (fd < 0)
		return -errno;
	snprintf(request.ifr_name, sizeof(request.ifr_name), "%s", name);
	err = ask(fd, &request, interface);
	close(fd);
	return err;
}
