// SPDX-License-Identifier: Apache-2.0
/* The helper's rules: each is read as it is written, the first that is for somebody decides, and mistakes name their line. */
#include <errno.h>

#include "check.h"
#include "helper_rules.h"

static struct xps_helper_rules rules;

static bool look_up(const char *name, bool group, uint32_t *id)
{
	if (!strcmp(name, "observer") && !group)
		*id = 1001;
	else if (!strcmp(name, "spead") && group)
		*id = 2001;
	else
		return false;
	return true;
}

static int parse(const char *text, struct xps_fail *fail)
{
	return xps_helper_rules_parse(&rules, text, strlen(text), look_up, fail);
}

static void test_rule_is_read_as_it_is_written(void)
{
	struct xps_fail fail;
	char text[100];

	CHECK_EQ(
		parse("# nobody else\n\n allow user=observer\tinterface=eth1 queues=0-3,7 ports=7148-7200 memory=2G readers=3 "
		      "mode=native # end",
		      &fail),
		0);
	CHECK_EQ(rules.n, 1);
	CHECK_EQ(rules.list[0].line, 3);
	CHECK(!rules.list[0].group);
	CHECK_EQ(rules.list[0].id, 1001);
	CHECK(!strcmp(rules.list[0].interface, "eth1"));
	xps_helper_print_ranges(&rules.list[0].queues, text, sizeof(text));
	CHECK(!strcmp(text, "0-3,7"));
	xps_helper_print_ranges(&rules.list[0].ports, text, sizeof(text));
	CHECK(!strcmp(text, "7148-7200"));
	CHECK_EQ(rules.list[0].memory, 2 * INT64_C(1073741824));
	CHECK_EQ(rules.list[0].readers, 3);
	CHECK_EQ(rules.list[0].mode, XPS_XDP_NATIVE);
}

static void test_what_is_not_said_has_a_default(void)
{
	struct xps_fail fail;

	CHECK_EQ(parse("allow group=spead interface=eth1\n", &fail), 0);
	CHECK(rules.list[0].group);
	CHECK(xps_helper_in_ranges(&rules.list[0].queues, 0) && xps_helper_in_ranges(&rules.list[0].queues, 4095));
	CHECK(!xps_helper_in_ranges(&rules.list[0].ports, 1023) && xps_helper_in_ranges(&rules.list[0].ports, 1024));
	CHECK_EQ(rules.list[0].memory, 256 * 1048576);
	CHECK_EQ(rules.list[0].readers, 16);
	CHECK_EQ(rules.list[0].mode, XPS_XDP_AUTO);
}

static void test_first_rule_for_user_and_interface_decides(void)
{
	const uint32_t groups[] = { 50, 2001 };
	struct xps_fail fail;

	CHECK_EQ(
		parse("allow group=spead interface=eth1\nallow user=observer interface=eth1\nallow user=7 interface=eth2\n",
		      &fail),
		0);
	CHECK_EQ(xps_helper_rules_find(&rules, 1001, groups, 2, "eth1")->line, 1);
	CHECK_EQ(xps_helper_rules_find(&rules, 1001, groups, 1, "eth1")->line, 2);
	CHECK(!xps_helper_rules_find(&rules, 1001, groups, 2, "eth2"));
	CHECK_EQ(xps_helper_rules_find(&rules, 7, groups, 0, NULL)->line, 3);
	CHECK(!xps_helper_rules_find(&rules, 8, groups, 1, NULL));
	CHECK(!xps_helper_rules_find(&rules, 2001, NULL, 0, NULL)); /* a group's number is no user's */
}

static void test_mistakes_are_told_with_their_line(void)
{
	static const struct {
		const char *text, *said;
	} cases[] = {
		{ "deny user=1 interface=a", "line 1: it begins with 'deny'" },
		{ "\n\nallow interface=a", "line 3: the rule does not say who" },
		{ "allow user=1", "line 1: the rule does not say which interface" },
		{ "allow user=stranger interface=a", "line 1: user=stranger: there is no such user" },
		{ "allow group=observer interface=a", "group=observer: there is no such group" },
		{ "allow user=1 group=spead interface=a", "a rule is for one user or one group" },
		{ "allow user=1 interface=abcdefghijklmnop", "has 1 to 15 characters" },
		{ "allow user=1 interface=a queues=3-1", "queues=3-1: numbers and ranges" },
		{ "allow user=1 interface=a queues=4096", "queues=4096: numbers" },
		{ "allow user=1 interface=a ports=0-5", "ports=0-5: numbers" },
		{ "allow user=1 interface=a memory=0", "memory=0: a size" },
		{ "allow user=1 interface=a memory=1GB", "memory=1GB: a size" },
		{ "allow user=1 interface=a memory=18446744073709551617", "a size" },
		{ "allow user=1 interface=a readers=0", "from 1 to 64" },
		{ "allow user=1 interface=a mode=fast", "native or generic" },
		{ "allow user=1 interface=a mode=native mode=native", "it is said twice" },
		{ "allow user=1 interface=a colour=red", "'colour' is not understood" },
		{ "allow user = 1 interface=a", "'user' is not understood" },
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct xps_fail fail = { 0 };

		CHECK_EQ(parse(cases[i].text, &fail), -EINVAL);
		if (!strstr(fail.text, cases[i].said))
			fprintf(stderr, "%s: %s\n", cases[i].text, fail.text);
		CHECK(strstr(fail.text, cases[i].said));
	}
}

int main(void)
{
	test_rule_is_read_as_it_is_written();
	test_what_is_not_said_has_a_default();
	test_first_rule_for_user_and_interface_decides();
	test_mistakes_are_told_with_their_line();
	return 0;
}
