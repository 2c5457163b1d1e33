// SPDX-License-Identifier: Apache-2.0
#include "helper_rules.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

enum {
	MAX_LINE = 1024,
	DEFAULT_READERS = 16,
	MAX_READERS = 64,
	MAX_QUEUE = 4095,
	MAX_PORT = 65535,
};

#define DEFAULT_MEMORY (UINT64_C(256) << 20)
#define MAX_MEMORY (UINT64_C(1) << 50)

static const char step[] = "read configuration";

/* A line that is being parsed. */
struct line {
	struct xps_helper_rule *rule;
	xps_helper_lookup lookup;
	struct xps_fail *fail;
	bool have_memory, have_readers;
};

/* ---------------------------------------------------------------- values */

static int bad(const struct line *line, const char *key, const char *value, const char *what)
{
	return xps_fail_set(line->fail, EINVAL, step, "line %d: %s=%.40s: %s", line->rule->line, key, value, what);
}

/* Digits at *text, up to `most`. Moves *text behind them. */
static bool parse_number(const char **text, uint64_t most, uint64_t *number)
{
	const char *begin = *text;

	*number = 0;
	for (; **text >= '0' && **text <= '9'; (*text)++) {
		const uint64_t digit = (uint64_t)(**text - '0');

		if (*number > (most - digit) / 10)
			return false;
		*number = *number * 10 + digit;
	}
	return *text != begin && *number <= most;
}

static int parse_who(struct line *line, const char *key, const char *value)
{
	struct xps_helper_rule *rule = line->rule;
	const char *end = value;
	uint64_t number;

	if (*rule->who)
		return bad(line, key, value, "a rule is for one user or one group");
	if (!*value || strlen(value) >= sizeof(rule->who))
		return bad(line, key, value, "that is no name");
	strcpy(rule->who, value);
	rule->group = !strcmp(key, "group");
	/* UINT32_MAX stands for none. */
	if (parse_number(&end, UINT32_MAX - 1, &number) && !*end)
		rule->id = (uint32_t)number;
	else if (!line->lookup(value, rule->group, &rule->id))
		return bad(line, key, value, rule->group ? "there is no such group" : "there is no such user");
	return 0;
}

static int parse_interface(struct line *line, const char *key, const char *value)
{
	if (*line->rule->interface)
		return bad(line, key, value, "a rule is for one interface");
	if (!*value || strlen(value) >= sizeof(line->rule->interface))
		return bad(line, key, value, "an interface's name has 1 to 15 characters");
	strcpy(line->rule->interface, value);
	return 0;
}

static int parse_ranges(struct line *line, const char *key, const char *value, uint64_t least, uint64_t most,
			struct xps_helper_ranges *ranges)
{
	const char *at = value;

	if (ranges->n)
		return bad(line, key, value, "it is said twice");
	for (;;) {
		uint64_t first, last;

		if (ranges->n == XPS_HELPER_MAX_RANGES)
			return bad(line, key, value, "there can be at most 16 ranges");
		if (!parse_number(&at, most, &first))
			break;
		last = first;
		if (*at == '-' && (at++, !parse_number(&at, most, &last)))
			break;
		if (last < first || first < least)
			break;
		ranges->list[ranges->n++] =
			(struct xps_helper_range){ .first = (uint32_t)first, .last = (uint32_t)last };
		if (!*at)
			return 0;
		if (*at++ != ',')
			break;
	}
	return bad(line, key, value, "numbers and ranges are needed, such as 0-3,7, and not beyond what there can be");
}

static int parse_queues(struct line *line, const char *key, const char *value)
{
	return parse_ranges(line, key, value, 0, MAX_QUEUE, &line->rule->queues);
}

static int parse_ports(struct line *line, const char *key, const char *value)
{
	return parse_ranges(line, key, value, 1, MAX_PORT, &line->rule->ports);
}

static int parse_memory(struct line *line, const char *key, const char *value)
{
	static const struct {
		char unit;
		int shift;
	} units[] = { { 'K', 10 }, { 'M', 20 }, { 'G', 30 }, { 0, 0 } };
	const char *end = value;
	uint64_t number;

	if (line->have_memory)
		return bad(line, key, value, "it is said twice");
	line->have_memory = true;
	if (parse_number(&end, MAX_MEMORY, &number) && number) {
		for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++) {
			if (*end != units[i].unit || (*end && end[1]) || number > MAX_MEMORY >> units[i].shift)
				continue;
			line->rule->memory = number << units[i].shift;
			return 0;
		}
	}
	return bad(line, key, value, "a size is needed, such as 512M or 2G");
}

static int parse_readers(struct line *line, const char *key, const char *value)
{
	const char *end = value;
	uint64_t number;

	if (line->have_readers)
		return bad(line, key, value, "it is said twice");
	line->have_readers = true;
	if (!parse_number(&end, MAX_READERS, &number) || *end || !number)
		return bad(line, key, value, "a number from 1 to 64 is needed");
	line->rule->readers = (uint32_t)number;
	return 0;
}

static int parse_mode(struct line *line, const char *key, const char *value)
{
	if (line->rule->mode != XPS_XDP_AUTO)
		return bad(line, key, value, "it is said twice");
	if (!strcmp(value, "native"))
		line->rule->mode = XPS_XDP_NATIVE;
	else if (!strcmp(value, "generic"))
		line->rule->mode = XPS_XDP_GENERIC;
	else
		return bad(line, key, value, "it is native or generic");
	return 0;
}

static const struct {
	const char *key;
	int (*parse)(struct line *line, const char *key, const char *value);
} keys[] = {
	{ "user", parse_who },        { "group", parse_who },   { "interface", parse_interface },
	{ "queues", parse_queues },   { "ports", parse_ports }, { "memory", parse_memory },
	{ "readers", parse_readers }, { "mode", parse_mode },
};

/* ---------------------------------------------------------------- lines */

static int parse_word(struct line *line, char *word)
{
	char *value = strchr(word, '=');

	if (value) {
		*value++ = 0;
		for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++)
			if (!strcmp(word, keys[i].key))
				return keys[i].parse(line, word, value);
	}
	return xps_fail_set(line->fail, EINVAL, step,
			    "line %d: '%.40s' is not understood: user=, group=, interface=, queues=, ports=, memory=, "
			    "readers= or mode= is needed, without blanks",
			    line->rule->line, word);
}

static int complete(struct line *line)
{
	struct xps_helper_rule *rule = line->rule;

	if (!*rule->who || !*rule->interface)
		return xps_fail_set(line->fail, EINVAL, step, "line %d: the rule does not say %s", rule->line,
				    *rule->who ? "which interface: interface=NAME" : "who: user=NAME or group=NAME");
	if (!rule->queues.n)
		rule->queues = (struct xps_helper_ranges){ .n = 1, .list = { { 0, MAX_QUEUE } } };
	if (!rule->ports.n)
		rule->ports = (struct xps_helper_ranges){ .n = 1, .list = { { 1024, MAX_PORT } } };
	if (!line->have_memory)
		rule->memory = DEFAULT_MEMORY;
	if (!line->have_readers)
		rule->readers = DEFAULT_READERS;
	return 0;
}

/* Returns 1 if it is a rule, 0 if it is empty. */
static int parse_line(struct line *line, char *text)
{
	static const char blanks[] = " \t\r";
	char *rest, *word = strtok_r(text, blanks, &rest);
	int err;

	if (!word)
		return 0;
	if (strcmp(word, "allow"))
		return xps_fail_set(line->fail, EINVAL, step,
				    "line %d: it begins with '%.40s'; rules begin with 'allow'", line->rule->line,
				    word);
	while ((word = strtok_r(NULL, blanks, &rest))) {
		err = parse_word(line, word);
		if (err)
			return err;
	}
	err = complete(line);
	return err ? err : 1;
}

static int copy_line(const struct line *line, char *to, const char *from, size_t n)
{
	const char *comment = memchr(from, '#', n);

	if (comment)
		n = (size_t)(comment - from);
	if (n >= MAX_LINE || memchr(from, 0, n))
		return xps_fail_set(line->fail, EINVAL, step, "line %d: it is %s", line->rule->line,
				    n >= MAX_LINE ? "longer than 1023 characters" : "no text");
	memcpy(to, from, n);
	to[n] = 0;
	return 0;
}

int xps_helper_rules_parse(struct xps_helper_rules *rules, const char *text, size_t n, xps_helper_lookup lookup,
			   struct xps_fail *fail)
{
	const char *const end = text + n;
	char copy[MAX_LINE];

	rules->n = 0;
	for (int number = 1; text < end; number++) {
		const char *newline = memchr(text, '\n', (size_t)(end - text));
		const size_t length = (size_t)((newline ? newline : end) - text);
		struct xps_helper_rule rule = { .line = number };
		struct line line = { .rule = &rule, .lookup = lookup, .fail = fail };
		int err = copy_line(&line, copy, text, length);

		if (!err)
			err = parse_line(&line, copy);
		if (err < 0)
			return err;
		if (err && rules->n == XPS_HELPER_MAX_RULES)
			return xps_fail_set(fail, EINVAL, step, "line %d: there can be at most %d rules", number,
					    XPS_HELPER_MAX_RULES);
		if (err)
			rules->list[rules->n++] = rule;
		text += length + (newline ? 1 : 0);
	}
	return 0;
}

/* ---------------------------------------------------------------- questions */

static bool is_for(const struct xps_helper_rule *rule, uint32_t uid, const uint32_t *gids, uint32_t n_gids)
{
	if (!rule->group)
		return rule->id == uid;
	for (uint32_t i = 0; i < n_gids; i++)
		if (rule->id == gids[i])
			return true;
	return false;
}

const struct xps_helper_rule *xps_helper_rules_find(const struct xps_helper_rules *rules, uint32_t uid,
						    const uint32_t *gids, uint32_t n_gids, const char *interface)
{
	for (uint32_t i = 0; i < rules->n; i++) {
		const struct xps_helper_rule *rule = &rules->list[i];

		if (is_for(rule, uid, gids, n_gids) && (!interface || !strcmp(rule->interface, interface)))
			return rule;
	}
	return NULL;
}

bool xps_helper_in_ranges(const struct xps_helper_ranges *ranges, uint32_t number)
{
	for (uint32_t i = 0; i < ranges->n; i++)
		if (number >= ranges->list[i].first && number <= ranges->list[i].last)
			return true;
	return false;
}

void xps_helper_print_ranges(const struct xps_helper_ranges *ranges, char *text, size_t size)
{
	size_t at = 0;

	*text = 0;
	for (uint32_t i = 0; i < ranges->n && at < size; i++) {
		const struct xps_helper_range *range = &ranges->list[i];
		int n = snprintf(text + at, size - at, "%s%u", i ? "," : "", range->first);

		if (range->last != range->first && (size_t)n < size - at)
			n += snprintf(text + at + n, size - at - (size_t)n, "-%u", range->last);
		at += (size_t)n;
	}
}
