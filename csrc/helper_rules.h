/* SPDX-License-Identifier: Apache-2.0 */
/*
 * helper_rules - who may receive what through xdpspead-helper: the rules of its configuration file.
 *
 * One rule a line; empty lines and what follows a '#' do not count:
 *
 *     allow user=observer interface=eth1 queues=0-3 ports=7148-7200 memory=1G
 *     allow group=spead   interface=eth1 queues=4,5
 *
 *     user=NAME or group=NAME   who; a name or a number. One of the two is needed
 *     interface=NAME            needed
 *     queues=LIST               receive queues; without, all
 *     ports=LIST                UDP ports of endpoints; without, 1024-65535
 *     memory=SIZE               of packets and rings, all queues and processes of one user together, with K, M or G;
 *                               without, 256M
 *     readers=N                 of one user; without, 16
 *     mode=native|generic       how the program is attached; without, as the reader asks
 *
 * The first rule that is for the user and the interface decides; later ones are not looked at. Whoever no rule is for
 * gets nothing.
 *
 * Parsing knows no files and no user database, so it can be fuzzed.
 */
#pragma once

#include <sys/types.h>

#include "fail.h"

enum { XPS_HELPER_MAX_RULES = 256, XPS_HELPER_MAX_RANGES = 16 };

struct xps_helper_range {
	uint32_t first, last;
};

struct xps_helper_ranges {
	uint32_t n;
	struct xps_helper_range list[XPS_HELPER_MAX_RANGES];
};

struct xps_helper_rule {
	int line;
	bool group; /* `id` is a group's */
	uint32_t id;
	char who[33];
	char interface[16];
	struct xps_helper_ranges queues, ports;
	uint64_t memory;
	uint32_t readers;
	int mode; /* enum xps_xdp_mode */
};

struct xps_helper_rules {
	uint32_t n;
	struct xps_helper_rule list[XPS_HELPER_MAX_RULES];
};

/* Whether there is such a user or group, and its number. */
typedef bool (*xps_helper_lookup)(const char *name, bool group, uint32_t *id);

/* 0, or -EINVAL with a text that names the line. */
int xps_helper_rules_parse(struct xps_helper_rules *rules, const char *text, size_t n, xps_helper_lookup lookup,
			   struct xps_fail *fail);
/* The rule that decides, or NULL. An `interface` of NULL: any rule for the user. */
const struct xps_helper_rule *xps_helper_rules_find(const struct xps_helper_rules *rules, uint32_t uid,
						    const uint32_t *gids, uint32_t n_gids, const char *interface);

bool xps_helper_in_ranges(const struct xps_helper_ranges *ranges, uint32_t number);
/* "0-3,7" */
void xps_helper_print_ranges(const struct xps_helper_ranges *ranges, char *text, size_t size);
