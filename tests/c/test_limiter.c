// SPDX-License-Identifier: Apache-2.0
/* Whoever sends when the limiter says so keeps the rate, and never sends more at once than a burst. In simulated time. */
#include "limiter.h"

#include <stdbool.h>

#include "check.h"

static const int64_t US = 1000, MS = 1000 * 1000, S = 1000 * 1000 * 1000;

/* ---------------------------------------------------------------- a sender in simulated time */

enum { MAX_SENT = 1 << 21 };

struct sent {
	int64_t time_ns;
	uint64_t bytes;
};

static struct sent sent[MAX_SENT];
static uint64_t n_sent;
static uint32_t random_state;

/* From 0 to `n` - 1. */
static uint32_t random_below(uint32_t n)
{
	random_state = random_state * 1664525 + 1013904223;
	return (uint32_t)((uint64_t)random_state * n >> 32);
}

struct sender {
	struct xps_limiter limiter;
	int64_t now_ns;
	uint32_t max_late_us;   /* of an ordinary wake-up */
	int64_t hiccup_ns;      /* of one in a thousand, */
	int64_t hiccups_end_ns; /* up to then */
};

static struct sender new_sender(double burst_size, double burst_ratio, int64_t now_ns)
{
	n_sent = 0;
	random_state = 1;
	return (struct sender){ .limiter = { .burst_ratio = burst_ratio, .burst_size = burst_size }, .now_ns = now_ns };
}

/* Wait until the packet may go, and as much longer as a thread sleeps too long, and send it. */
static void send_packet(struct sender *s, uint64_t bytes, double cost_ns)
{
	const int64_t when_ns = xps_limiter_when(&s->limiter, bytes, cost_ns);

	if (when_ns > s->now_ns) {
		s->now_ns = when_ns + random_below(s->max_late_us * 1000 + 1);
		if (s->now_ns < s->hiccups_end_ns && !random_below(1000))
			s->now_ns += s->hiccup_ns;
		CHECK(xps_limiter_when(&s->limiter, bytes, cost_ns) <= s->now_ns);
	}
	xps_limiter_sent(&s->limiter, s->now_ns, bytes, cost_ns);
	CHECK(n_sent < MAX_SENT);
	sent[n_sent++] = (struct sent){ s->now_ns, bytes };
}

static uint64_t total_sent(void)
{
	uint64_t bytes = 0;

	for (uint64_t i = 0; i < n_sent; i++)
		bytes += sent[i].bytes;
	return bytes;
}

/* Over every time from one packet to another, both included. */
static void check_bursts(double burst_size, double burst_rate)
{
	for (uint64_t i = 0; i < n_sent; i++) {
		uint64_t bytes = 0;

		for (uint64_t j = i; j < n_sent; j++) {
			const double burst = burst_size > (double)sent[j].bytes ? burst_size : (double)sent[j].bytes;
			const double time_s = (double)(sent[j].time_ns - sent[i].time_ns) * 1e-9;

			bytes += sent[j].bytes;
			CHECK((double)bytes <= burst + burst_rate * time_s + 1e-3);
		}
	}
}

/* ---------------------------------------------------------------- the rate */

static void check_average(double rate, uint64_t burst_size, struct sender *s, bool vary)
{
	const int64_t start_ns = s->now_ns;
	const double cost_ns = xps_limiter_cost(rate);
	double expected;

	xps_limiter_idle(&s->limiter, s->now_ns);
	while (s->now_ns - start_ns < S)
		send_packet(s, vary ? 64 + random_below(1920) : 1024, cost_ns);
	expected = rate * (double)(s->now_ns - start_ns) * 1e-9;
	/* A burst goes at once in the beginning. */
	CHECK((double)total_sent() >= expected * 0.999);
	CHECK((double)total_sent() <= expected * 1.001 + (double)burst_size);
}

static const double packet_rates[] = { 10e3, 33333, 100e3, 500e3 };

static void test_average_is_the_rate(void)
{
	for (int i = 0; i < 4; i++) {
		for (int vary = 0; vary < 2; vary++) {
			struct sender s = new_sender(65536, 1.05, 17 * S);

			check_average(packet_rates[i] * 1024, 65536, &s, vary);
		}
	}
}

static void test_average_is_the_rate_though_every_wake_up_is_late(void)
{
	for (int i = 0; i < 4; i++) {
		struct sender s = new_sender(65536, 1.05, 17 * S);

		s.max_late_us = 60;
		check_average(packet_rates[i] * 1024, 65536, &s, true);
	}
}

static void test_delays_of_milliseconds_are_caught_up(void)
{
	for (int i = 0; i < 4; i++) {
		struct sender s = new_sender(65536, 1.25, 17 * S);

		s.max_late_us = 60;
		s.hiccup_ns = 5 * MS;
		/* Enough of the second is left to catch up in. */
		s.hiccups_end_ns = 17 * S + 500 * MS;
		check_average(packet_rates[i] * 1024, 65536, &s, true);
	}
}

/* A double has no fractions of a nanosecond there, and then not even all whole ones. */
static void test_average_is_the_rate_however_long_the_clock_has_run(void)
{
	for (int i = 50; i <= 62; i++) {
		struct sender s = new_sender(65536, 1.05, INT64_C(1) << i);

		s.max_late_us = 60;
		check_average(500e3 * 1024, 65536, &s, false);
	}
}

static void test_each_packet_has_its_own_rate(void)
{
	struct sender s = new_sender(3000, 1.0, S);
	const double slow_ns = xps_limiter_cost(1e6), quick_ns = xps_limiter_cost(50e6);
	double expected_ns = 0;

	xps_limiter_idle(&s.limiter, s.now_ns);
	while (s.now_ns < 2 * S) {
		const bool slow = random_below(10) == 0;
		const uint64_t bytes = 100 + random_below(900);

		send_packet(&s, bytes, slow ? slow_ns : quick_ns);
		expected_ns += (double)bytes * (slow ? 1000 : 20);
	}
	/* But for a burst at the slower rate. */
	CHECK(expected_ns >= 0.999e9);
	CHECK(expected_ns <= 1.001e9 + 3000 * 1000);
}

/* ---------------------------------------------------------------- bursts */

static void test_no_window_has_more_than_a_burst_beyond_the_burst_rate(void)
{
	static const double burst_sizes[] = { 0, 1500, 65536 }, ratios[] = { 1, 1.05, 2 };

	for (int i = 0; i < 9; i++) {
		const double burst = burst_sizes[i % 3], ratio = ratios[i / 3], rate = 100e3 * 1024;
		struct sender s = new_sender(burst, ratio, 17 * S);

		s.max_late_us = 60;
		s.hiccup_ns = 5 * MS;
		s.hiccups_end_ns = INT64_MAX;
		for (int packet = 0; packet < 10000; packet++) {
			/* Now and then there is nothing to send, for as long as a packet takes or a burst. */
			if (random_below(200) == 0) {
				s.now_ns += random_below(1000000);
				xps_limiter_idle(&s.limiter, s.now_ns);
			}
			send_packet(&s, 1 + random_below(2000), xps_limiter_cost(rate));
		}
		check_bursts(burst, ratio * rate);
	}
}

static void test_burst_goes_at_once_and_not_a_byte_more(void)
{
	struct sender s = new_sender(3000, 1.05, S);
	const double cost_ns = xps_limiter_cost(1e6);

	xps_limiter_idle(&s.limiter, s.now_ns);
	for (int i = 0; i < 3; i++) {
		CHECK(xps_limiter_when(&s.limiter, 1000, cost_ns) <= S);
		xps_limiter_sent(&s.limiter, S, 1000, cost_ns);
	}
	CHECK_EQ(xps_limiter_when(&s.limiter, 1, cost_ns), S + 1 * US);
	CHECK_EQ(xps_limiter_when(&s.limiter, 1000, cost_ns), S + 1000 * US);
}

static void test_packet_larger_than_a_burst_waits_until_all_before_it_is_paid_for(void)
{
	struct sender s = new_sender(3000, 1.05, S);
	const double cost_ns = xps_limiter_cost(1e6);

	xps_limiter_idle(&s.limiter, s.now_ns);
	CHECK(xps_limiter_when(&s.limiter, 9000, cost_ns) <= S);
	xps_limiter_sent(&s.limiter, S, 9000, cost_ns);
	CHECK_EQ(xps_limiter_when(&s.limiter, 1000, cost_ns), S + 7 * MS);
	CHECK_EQ(xps_limiter_when(&s.limiter, 5000, cost_ns), S + 9 * MS);
}

static void test_idle_time_gives_one_burst_and_no_more(void)
{
	struct sender s = new_sender(3000, 2, S);
	const double cost_ns = xps_limiter_cost(1e6);

	xps_limiter_idle(&s.limiter, s.now_ns);
	for (int i = 0; i < 100; i++)
		send_packet(&s, 1000, cost_ns);
	s.now_ns += 10 * S;
	xps_limiter_idle(&s.limiter, s.now_ns);
	n_sent = 0;
	for (int i = 0; i < 100; i++)
		send_packet(&s, 1000, cost_ns);
	/* At the rate, and not at the burst rate as after a delay. */
	for (int i = 0; i < 100; i++)
		CHECK_EQ(sent[i].time_ns - sent[0].time_ns, i < 3 ? 0 : (i - 2) * MS);
}

static void test_delay_is_caught_up_at_the_burst_rate(void)
{
	struct sender s = new_sender(1000, 2, S);
	const double cost_ns = xps_limiter_cost(1e6);

	xps_limiter_idle(&s.limiter, s.now_ns);
	send_packet(&s, 1000, cost_ns);
	s.now_ns += 50 * MS;
	for (int i = 0; i < 200; i++)
		send_packet(&s, 1000, cost_ns);
	/* 50 packets too late, and in a millisecond two go where one is due. */
	CHECK_EQ(sent[2].time_ns - sent[1].time_ns, 500 * US);
	CHECK_EQ(sent[95].time_ns - sent[94].time_ns, 500 * US);
	CHECK_EQ(sent[105].time_ns - sent[104].time_ns, 1 * MS);
	/* As if nothing had happened. */
	CHECK_EQ(sent[200].time_ns, S + 200 * MS);
}

/* ---------------------------------------------------------------- edges */

static void test_without_a_limit_everything_may_go_and_counts_for_nothing(void)
{
	struct sender s = new_sender(3000, 1.05, S);
	const double cost_ns = xps_limiter_cost(1e6);

	CHECK(xps_limiter_cost(0) == 0);
	CHECK(xps_limiter_cost(-1) == 0);
	CHECK(xps_limiter_cost(__builtin_inf()) == 0);
	CHECK(xps_limiter_cost(__builtin_nan("")) == 0);
	xps_limiter_idle(&s.limiter, s.now_ns);
	xps_limiter_sent(&s.limiter, S, 3000, cost_ns);
	for (int i = 0; i < 100; i++) {
		CHECK(xps_limiter_when(&s.limiter, UINT32_MAX, 0) <= S);
		xps_limiter_sent(&s.limiter, S, UINT32_MAX, 0);
	}
	CHECK_EQ(xps_limiter_when(&s.limiter, 1000, cost_ns), S + 1 * MS);
	/* Nor is the time it took a delay: the next packets go at the rate. */
	xps_limiter_sent(&s.limiter, 9 * S, 1000, 0);
	xps_limiter_sent(&s.limiter, 9 * S, 3000, cost_ns);
	CHECK_EQ(xps_limiter_when(&s.limiter, 3000, cost_ns), 9 * S + 3 * MS);
}

static void test_first_packet_may_go_and_the_time_before_it_is_no_delay(void)
{
	struct sender s = new_sender(3000, 1.05, S);
	const double cost_ns = xps_limiter_cost(1e6);

	CHECK(xps_limiter_when(&s.limiter, 3000, cost_ns) <= 0);
	xps_limiter_sent(&s.limiter, 1000 * S, 3000, cost_ns);
	xps_limiter_sent(&s.limiter, 1000 * S + 3 * MS, 3000, cost_ns);
	CHECK_EQ(xps_limiter_when(&s.limiter, 3000, cost_ns), 1000 * S + 6 * MS);
}

static void test_times_do_not_overflow_at_any_rate(void)
{
	static const double rates[] = { 1e-310, 1e-30, 1, 1e18, 1e300 };

	for (int i = 0; i < 5; i++) {
		const int64_t now_ns = INT64_C(1) << 62;
		struct sender s = new_sender(65536, 1.05, now_ns);
		const double cost_ns = xps_limiter_cost(rates[i]);

		xps_limiter_idle(&s.limiter, now_ns);
		for (int packet = 0; packet < 1000; packet++) {
			xps_limiter_sent(&s.limiter, now_ns, UINT32_MAX, cost_ns);
			CHECK(xps_limiter_when(&s.limiter, 65536, cost_ns) >= now_ns);
		}
		CHECK(xps_limiter_when(&s.limiter, 65536, cost_ns) > now_ns);
		if (rates[i] < 1)
			CHECK(xps_limiter_when(&s.limiter, 1, cost_ns) - now_ns > S * (INT64_C(3600) * 24 * 365));
	}
}

int main(void)
{
	test_average_is_the_rate();
	test_average_is_the_rate_though_every_wake_up_is_late();
	test_delays_of_milliseconds_are_caught_up();
	test_average_is_the_rate_however_long_the_clock_has_run();
	test_each_packet_has_its_own_rate();
	test_no_window_has_more_than_a_burst_beyond_the_burst_rate();
	test_burst_goes_at_once_and_not_a_byte_more();
	test_packet_larger_than_a_burst_waits_until_all_before_it_is_paid_for();
	test_idle_time_gives_one_burst_and_no_more();
	test_delay_is_caught_up_at_the_burst_rate();
	test_without_a_limit_everything_may_go_and_counts_for_nothing();
	test_first_packet_may_go_and_the_time_before_it_is_no_delay();
	test_times_do_not_overflow_at_any_rate();
	return 0;
}
