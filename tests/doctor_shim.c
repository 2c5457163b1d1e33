// SPDX-License-Identifier: Apache-2.0
/*
 * A driver that tells more than that of a veth, which it is preloaded in front of (LD_PRELOAD). It has two queues: its
 * hash takes in addresses of UDP over IPv4, and ports too over IPv6; all values of the hash lead to the second queue; it
 * sends pause frames and obeys none; it interrupts after 2,000 us. All layouts are those of linux/ethtool.h.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <linux/ethtool.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <stdarg.h>
#include <string.h>

enum { TABLE_SIZE = 8 };

static int tell_hash(void *request)
{
	struct ethtool_rxnfc *about = request;

	switch (about->flow_type) {
	case UDP_V4_FLOW:
		about->data = RXH_IP_SRC | RXH_IP_DST;
		return 0;
	case UDP_V6_FLOW:
		about->data = RXH_IP_SRC | RXH_IP_DST | RXH_L4_B_0_1 | RXH_L4_B_2_3;
		return 0;
	default:
		return EINVAL;
	}
}

static int tell_table(void *request)
{
	struct ethtool_rxfh_indir *table = request;

	if (table->size && table->size != TABLE_SIZE)
		return EINVAL;
	for (__u32 i = 0; i < table->size; i++)
		table->ring_index[i] = 1;
	table->size = TABLE_SIZE;
	return 0;
}

static int tell_pause(void *request)
{
	struct ethtool_pauseparam *pause = request;

	pause->autoneg = 0;
	pause->rx_pause = 0;
	pause->tx_pause = 1;
	return 0;
}

static int tell_coalescing(void *request)
{
	struct ethtool_coalesce *coalescing = request;

	memset(coalescing, 0, sizeof(*coalescing));
	coalescing->cmd = ETHTOOL_GCOALESCE;
	coalescing->rx_coalesce_usecs = 2000;
	return 0;
}

static int tell_driver(void *request)
{
	struct ethtool_drvinfo *info = request;

	memset(info, 0, sizeof(*info));
	info->cmd = ETHTOOL_GDRVINFO;
	strcpy(info->driver, "shim");
	strcpy(info->bus_info, "0000:81:00.0");
	return 0;
}

static const struct {
	__u32 command;
	int (*answer)(void *request);
} requests[] = {
	{ ETHTOOL_GRXFH, tell_hash },           { ETHTOOL_GRXFHINDIR, tell_table }, { ETHTOOL_GPAUSEPARAM, tell_pause },
	{ ETHTOOL_GCOALESCE, tell_coalescing }, { ETHTOOL_GDRVINFO, tell_driver },
};

int ioctl(int fd, unsigned long number, ...)
{
	int (*next)(int, unsigned long, void *);
	struct ifreq *ifr;
	va_list arguments;

	va_start(arguments, number);
	ifr = va_arg(arguments, void *);
	va_end(arguments);
	if (number == SIOCETHTOOL) {
		for (size_t i = 0; i < sizeof(requests) / sizeof(requests[0]); i++) {
			if (*(__u32 *)(void *)ifr->ifr_data == requests[i].command) {
				errno = requests[i].answer(ifr->ifr_data);
				return errno ? -1 : 0;
			}
		}
	}
	*(void **)&next = dlsym(RTLD_NEXT, "ioctl");
	return next(fd, number, ifr);
}
