// SPDX-License-Identifier: Apache-2.0
/* The table of statistics: complete, without doubles, and added up as each kind needs. */
#include "check.h"
#include "stats.h"

static void test_every_statistic_has_a_name_of_its_own(void)
{
	for (int i = 0; i < XPS_N_STATS; i++) {
		CHECK(xps_stat_name(i));
		CHECK(xps_stat_name(i)[0]);
		for (int j = 0; j < i; j++)
			CHECK(strcmp(xps_stat_name(i), xps_stat_name(j)));
	}
	CHECK(!xps_stat_name(-1));
	CHECK(!xps_stat_name(XPS_N_STATS));
}

static void test_those_of_our_own_say_so(void)
{
	for (int i = 0; i < XPS_N_STATS; i++)
		CHECK_EQ(!strncmp(xps_stat_name(i), "xdpspead.", 9), i >= XPS_N_CORE_STATS);
}

static void test_every_refusal_has_a_reason(void)
{
	for (int i = XPS_STAT_EMPTY_DATAGRAM; i <= XPS_STAT_AFTER_STOP; i++)
		CHECK(strcmp(xps_stat_reason(i), "unknown"));
	CHECK(!strcmp(xps_stat_reason(-1), "unknown"));
	CHECK(!strcmp(xps_stat_reason(XPS_N_STATS), "unknown"));
}

static void test_only_the_largest_batch_is_a_maximum(void)
{
	for (int i = -1; i <= XPS_N_STATS; i++)
		CHECK_EQ(xps_stat_is_maximum(i), i == XPS_STAT_MAX_BATCH);
}

static void test_moving_adds_or_keeps_the_larger_and_clears(void)
{
	uint64_t to[XPS_N_STATS], from[XPS_N_STATS];

	for (uint64_t i = 0; i < XPS_N_STATS; i++) {
		to[i] = 1000 + i;
		from[i] = 10 * i;
	}
	from[XPS_STAT_MAX_BATCH] = 5000;
	xps_stats_move(to, from);
	for (uint64_t i = 0; i < XPS_N_STATS; i++) {
		CHECK_EQ(to[i], i == XPS_STAT_MAX_BATCH ? 5000 : 1000 + 11 * i);
		CHECK_EQ(from[i], 0);
	}
	from[XPS_STAT_MAX_BATCH] = 4999;
	xps_stats_move(to, from);
	CHECK_EQ(to[XPS_STAT_MAX_BATCH], 5000);
}

int main(void)
{
	test_every_statistic_has_a_name_of_its_own();
	test_those_of_our_own_say_so();
	test_every_refusal_has_a_reason();
	test_only_the_largest_batch_is_a_maximum();
	test_moving_adds_or_keeps_the_larger_and_clears();
	return 0;
}
