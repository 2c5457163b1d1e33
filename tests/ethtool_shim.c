// SPDX-License-Identifier: Apache-2.0
/*
 * A driver with receive-flow rules, for interfaces that have none: preloaded (LD_PRELOAD), it answers the ioctls that
 * make, list and delete them, and keeps them in files, so that all processes that are given the same folder see the
 * same table.
 *
 *   SHIM_DIR    folder: `table` is the table as it is in memory, `rules` the same for people, a line for each rule
 *   SHIM_SIZE   how many rules there is room for
 *   SHIM_PLACE  "any": the driver chooses locations; "named": it wants to be told; "silent": the same, and it does not
 *               tell its size when rules are counted, but when they are listed
 *   SHIM_REFUSE errno with which it refuses the rules for SHIM_PORT
 *   SHIM_PORT   (0: all)
 *   SHIM_NTUPLE 0 if ntuple-filters is off
 *
 * All layouts are those of linux/ethtool.h.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/ethtool.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

enum { MAX_RULES = 64 };

struct table {
	bool used[MAX_RULES];
	struct ethtool_rx_flow_spec rules[MAX_RULES];
};

static const char *setting(const char *name, const char *otherwise)
{
	const char *value = getenv(name);

	return value ? value : otherwise;
}

static uint32_t size_of_table(void)
{
	const uint32_t size = (uint32_t)atoi(setting("SHIM_SIZE", "16"));

	return size < MAX_RULES ? size : MAX_RULES;
}

static bool places(const char *how)
{
	return !strcmp(setting("SHIM_PLACE", "any"), how);
}

static bool is_udp4(const struct ethtool_rx_flow_spec *rule)
{
	return (rule->flow_type & ~(uint32_t)FLOW_RSS) == UDP_V4_FLOW;
}

/* ---------------------------------------------------------------- the table, as people read it */

static void print_address(FILE *out, const char *what, int family, const void *address, const void *mask)
{
	char text[INET6_ADDRSTRLEN], mask_text[INET6_ADDRSTRLEN];

	inet_ntop(family, address, text, sizeof(text));
	inet_ntop(family, mask, mask_text, sizeof(mask_text));
	fprintf(out, " %s %s/%s", what, text, mask_text);
}

static void print_port(FILE *out, const char *what, uint16_t port, uint16_t mask)
{
	fprintf(out, " %s %u/%04x", what, ntohs(port), ntohs(mask));
}

static void print_rule(FILE *out, uint32_t location, const struct ethtool_rx_flow_spec *rule)
{
	const struct ethtool_tcpip4_spec *h4 = &rule->h_u.udp_ip4_spec, *m4 = &rule->m_u.udp_ip4_spec;
	const struct ethtool_tcpip6_spec *h6 = &rule->h_u.udp_ip6_spec, *m6 = &rule->m_u.udp_ip6_spec;

	fprintf(out, "%u: type %#x", location, rule->flow_type);
	if (is_udp4(rule)) {
		print_address(out, "from", AF_INET, &h4->ip4src, &m4->ip4src);
		print_port(out, "port", h4->psrc, m4->psrc);
		print_address(out, "to", AF_INET, &h4->ip4dst, &m4->ip4dst);
		print_port(out, "port", h4->pdst, m4->pdst);
		fprintf(out, " tos %u/%02x", h4->tos, m4->tos);
	} else {
		print_address(out, "from", AF_INET6, h6->ip6src, m6->ip6src);
		print_port(out, "port", h6->psrc, m6->psrc);
		print_address(out, "to", AF_INET6, h6->ip6dst, m6->ip6dst);
		print_port(out, "port", h6->pdst, m6->pdst);
		fprintf(out, " tos %u/%02x", h6->tclass, m6->tclass);
	}
	fprintf(out, " queue %lld\n", (long long)rule->ring_cookie);
}

/* ---------------------------------------------------------------- the table in its files */

static int open_in_folder(const char *name, int flags)
{
	char path[4096];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", setting("SHIM_DIR", "/nonexistent"), name);
	fd = open(path, flags | O_CLOEXEC, 0600);
	if (fd < 0)
		abort();
	return fd;
}

static int load(struct table *table)
{
	int fd = open_in_folder("table", O_RDWR | O_CREAT);

	memset(table, 0, sizeof(*table));
	if (flock(fd, LOCK_EX) || pread(fd, table, sizeof(*table), 0) < 0)
		abort();
	return fd;
}

static void store(int fd, const struct table *table)
{
	FILE *out = fdopen(open_in_folder("rules", O_WRONLY | O_CREAT | O_TRUNC), "w");

	if (!out || pwrite(fd, table, sizeof(*table), 0) != sizeof(*table))
		abort();
	for (uint32_t i = 0; i < MAX_RULES; i++)
		if (table->used[i])
			print_rule(out, i, &table->rules[i]);
	fclose(out);
}

/* ---------------------------------------------------------------- requests */

static uint32_t count(const struct table *table)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < MAX_RULES; i++)
		n += table->used[i];
	return n;
}

static int count_rules(struct table *table, struct ethtool_rxnfc *request)
{
	request->rule_cnt = count(table);
	request->data = places("silent") ? 0 : size_of_table();
	if (places("any"))
		request->data |= RX_CLS_LOC_SPECIAL;
	return 0;
}

static int list_rules(struct table *table, struct ethtool_rxnfc *request)
{
	uint32_t n = 0;

	if (request->rule_cnt < count(table))
		return EMSGSIZE;
	for (uint32_t i = 0; i < MAX_RULES; i++)
		if (table->used[i])
			request->rule_locs[n++] = i;
	request->rule_cnt = n;
	request->data = size_of_table();
	return 0;
}

static int tell_rule(struct table *table, struct ethtool_rxnfc *request)
{
	const uint32_t location = request->fs.location;

	if (location >= MAX_RULES || !table->used[location])
		return ENOENT;
	request->fs = table->rules[location];
	return 0;
}

static int refused(const struct ethtool_rx_flow_spec *rule)
{
	const uint16_t port = is_udp4(rule) ? rule->h_u.udp_ip4_spec.pdst : rule->h_u.udp_ip6_spec.pdst;
	const int which = atoi(setting("SHIM_PORT", "0"));

	return !which || which == ntohs(port) ? atoi(setting("SHIM_REFUSE", "0")) : 0;
}

static int insert_rule(struct table *table, struct ethtool_rxnfc *request)
{
	const uint32_t size = size_of_table();
	uint32_t location = request->fs.location;
	int err = refused(&request->fs);

	if (err)
		return err;
	if (location & RX_CLS_LOC_SPECIAL) {
		if (!places("any") || location != RX_CLS_LOC_ANY)
			return EINVAL;
		for (location = 0; location < size && table->used[location];)
			location++;
		if (location == size)
			return ENOSPC;
	}
	if (location >= size)
		return EINVAL;
	request->fs.location = location;
	table->used[location] = true;
	table->rules[location] = request->fs;
	return 0;
}

static int delete_rule(struct table *table, struct ethtool_rxnfc *request)
{
	if (request->fs.location >= MAX_RULES || !table->used[request->fs.location])
		return ENOENT;
	table->used[request->fs.location] = false;
	return 0;
}

static int tell_flags(struct table *table, struct ethtool_rxnfc *request)
{
	struct ethtool_value *value = (void *)request;

	(void)table;
	value->data = atoi(setting("SHIM_NTUPLE", "1")) ? ETH_FLAG_NTUPLE : 0;
	return 0;
}

static const struct {
	uint32_t command;
	int (*answer)(struct table *table, struct ethtool_rxnfc *request);
} requests[] = {
	{ ETHTOOL_GFLAGS, tell_flags },      { ETHTOOL_GRXCLSRLCNT, count_rules }, { ETHTOOL_GRXCLSRULE, tell_rule },
	{ ETHTOOL_GRXCLSRLALL, list_rules }, { ETHTOOL_SRXCLSRLINS, insert_rule }, { ETHTOOL_SRXCLSRLDEL, delete_rule },
};

static int answer(size_t which, const char *interface, struct ethtool_rxnfc *request)
{
	struct table table;
	const int fd = load(&table);
	const int err = if_nametoindex(interface) ? requests[which].answer(&table, request) : ENODEV;

	if (!err)
		store(fd, &table);
	close(fd);
	errno = err;
	return err ? -1 : 0;
}

int ioctl(int fd, unsigned long number, ...)
{
	int (*next)(int, unsigned long, void *);
	struct ifreq *ifr;
	va_list arguments;
	void *argument;

	va_start(arguments, number);
	argument = va_arg(arguments, void *);
	va_end(arguments);
	ifr = argument;
	if (number == SIOCETHTOOL)
		for (size_t i = 0; i < sizeof(requests) / sizeof(requests[0]); i++)
			if (*(uint32_t *)(void *)ifr->ifr_data == requests[i].command)
				return answer(i, ifr->ifr_name, (void *)ifr->ifr_data);
	*(void **)&next = dlsym(RTLD_NEXT, "ioctl");
	return next(fd, number, argument);
}
