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

static void test_queues_are_told_from_the_first_statistic_of_af_xdp_on(void)
{
	struct xps_queue_table *table = xps_queue_table_new("veth0", 3);

	CHECK_EQ(table->n, 3);
	for (uint32_t i = 0; i < 3; i++) {
		CHECK(!strcmp(table->rows[i].interface, "veth0"));
		CHECK_EQ(table->rows[i].queue, i);
		for (int stat = 0; stat < XPS_N_QUEUE_STATS; stat++)
			CHECK_EQ(table->rows[i].values[stat], 0);
	}
	CHECK_EQ(xps_queue_stat(&table->rows[1], XPS_STAT_XDP_MATCHED) - table->rows[1].values, 0);
	CHECK_EQ(xps_queue_stat(&table->rows[1], XPS_N_STATS) - table->rows[1].values, XPS_N_QUEUE_STATS);
	for (int i = XPS_STAT_XDP_MATCHED; i < XPS_N_STATS; i++)
		CHECK(!strncmp(xps_stat_name(i), "xdpspead.xdp_", 13));
	free(table);
}

static void test_queue_matters_if_it_is_read_or_something_came(void)
{
	struct xps_queue_stats row = { .queue = 3 };

	CHECK(!xps_queue_matters(&row));
	row.read = 1;
	CHECK(xps_queue_matters(&row));
	row.read = 0;
	row.values[XPS_N_QUEUE_STATS - 1] = 1;
	CHECK(xps_queue_matters(&row));
}

static void test_queues_are_added_to_what_is_there(void)
{
	uint64_t stats[XPS_N_STATS];
	struct xps_queue_stats row = { .queue = 3 };

	for (uint64_t i = 0; i < XPS_N_STATS; i++)
		stats[i] = i;
	for (uint64_t i = 0; i < XPS_N_QUEUE_STATS; i++)
		row.values[i] = 100 * (i + 1);
	xps_queue_add(stats, &row);
	for (uint64_t i = 0; i < XPS_N_STATS; i++)
		CHECK_EQ(stats[i], i < XPS_STAT_XDP_MATCHED ? i : i + 100 * (i - XPS_STAT_XDP_MATCHED + 1));
}

int main(void)
{
	test_every_statistic_has_a_name_of_its_own();
	test_those_of_our_own_say_so();
	test_every_refusal_has_a_reason();
	test_only_the_largest_batch_is_a_maximum();
	test_moving_adds_or_keeps_the_larger_and_clears();
	test_queues_are_told_from_the_first_statistic_of_af_xdp_on();
	test_queue_matters_if_it_is_read_or_something_came();
	test_queues_are_added_to_what_is_there();
	return 0;
}
