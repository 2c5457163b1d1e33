// SPDX-License-Identifier: Apache-2.0
/*
 * Proves that whatever bytes a client sends, xdpspead-helper reads none beyond them, and takes for a request only what is
 * the message that such a request makes, within the bounds that the rest relies on; and that any text is either refused
 * as a configuration, with its line, or is made of rules that are complete.
 */
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "helper_protocol.h"
#include "helper_rules.h"
#include "slow_packet.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* ---------------------------------------------------------------- requests */

static uint32_t word(const uint8_t *data, size_t at)
{
	uint32_t value;

	memcpy(&value, data + at, sizeof(value));
	return value;
}

/* The same by a plain table of what the bytes must be: -1 if they are no request. */
static int slow_kind(const uint8_t *data, size_t n)
{
	static const size_t sizes[] = { 0, 40, 136, 32, 24, 0, 24, 8, 16, 16, 16, 24 };
	uint32_t kind;

	if (n < 8)
		return -1;
	kind = word(data, 0);
	if (kind < 1 || kind > 11)
		return -1;
	if (kind == 5) {
		if (n < 16 || word(data, 8) >= 64 || word(data, 12) > 1024 || n != 16 + 36 * (size_t)word(data, 12))
			return -1;
		return 5;
	}
	if (n != sizes[kind])
		return -1;
	if (kind == 1 && (word(data, 12) > 2 || !memchr(data + 24, 0, 16)))
		return -1;
	if (kind == 2 && !memchr(data + 8, 0, 128))
		return -1;
	if (kind == 3 && (word(data, 24) + 2 > 3 || word(data, 8) >= 64))
		return -1;
	if (kind == 6 && word(data, 16) > 64)
		return -1;
	if (kind != 1 && kind != 2 && kind != 7 && word(data, 8) >= 64)
		return -1;
	return (int)kind;
}

static void try_request(const uint8_t *data, size_t size)
{
	static struct xps_helper_request request;
	const int expected = slow_kind(data, size);
	int err;

	memset(&request, 0xa5, sizeof(request));
	err = xps_helper_parse(&request, data, size);
	EXPECT(err == (expected < 0 ? -EBADMSG : 0));
	if (err)
		return;
	EXPECT(request.kind == (uint32_t)expected);
	EXPECT(xps_helper_request_size(&request) == size);
	EXPECT(!memcmp(&request, data, size));
}

/* ---------------------------------------------------------------- configurations */

/* Every other name is known. */
static bool look_up(const char *name, bool group, uint32_t *id)
{
	*id = (uint32_t)strlen(name) + group;
	return *name & 1;
}

static void check_rule(const struct xps_helper_rule *rule)
{
	char text[200];

	EXPECT(rule->line > 0 && *rule->who && *rule->interface);
	EXPECT(rule->queues.n >= 1 && rule->queues.n <= XPS_HELPER_MAX_RANGES);
	EXPECT(rule->ports.n >= 1 && rule->ports.n <= XPS_HELPER_MAX_RANGES);
	EXPECT(!xps_helper_in_ranges(&rule->ports, 0) && !xps_helper_in_ranges(&rule->ports, 65536));
	EXPECT(!xps_helper_in_ranges(&rule->queues, 4096));
	EXPECT(rule->memory && rule->memory <= UINT64_C(1) << 50);
	EXPECT(rule->readers >= 1 && rule->readers <= 64);
	xps_helper_print_ranges(&rule->queues, text, sizeof(text));
	EXPECT(*text && strlen(text) < sizeof(text));
}

static void try_rules(const uint8_t *data, size_t size)
{
	static struct xps_helper_rules rules;
	struct xps_fail fail = { 0 };
	int line = 0;

	if (xps_helper_rules_parse(&rules, (const char *)data, size, look_up, &fail)) {
		EXPECT(fail.err == EINVAL && !strncmp(fail.text, "line ", 5));
		return;
	}
	for (uint32_t i = 0; i < rules.n; i++) {
		const struct xps_helper_rule *rule = &rules.list[i];
		const struct xps_helper_rule *found = xps_helper_rules_find(
			&rules, rule->group ? UINT32_MAX : rule->id, &rule->id, rule->group ? 1 : 0, rule->interface);

		check_rule(rule);
		EXPECT(rule->line > line);
		line = rule->line;
		/* It is found, or one before it. */
		EXPECT(found && found <= rule);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	try_request(data, size);
	try_rules(data, size);
	return 0;
}
