// SPDX-License-Identifier: Apache-2.0
#include "limiter.h"

/* Keeps every product and sum below finite, and is more than anybody can wait for. */
static const double max_cost_ns = 1e30;
static const double max_wait_ns = 0x1p61;

/* Not those of math.h, which are in a library of their own. */
static double min_double(double a, double b)
{
	return a < b ? a : b;
}

static double max_double(double a, double b)
{
	return a > b ? a : b;
}

/* A nanosecond too early would be more than the burst. */
static int64_t round_up(double ns)
{
	const int64_t whole = (int64_t)ns;

	return whole + ((double)whole < ns);
}

double xps_limiter_cost(double rate)
{
	if (!(rate > 0))
		return 0;
	return min_double(1e9 / rate, max_cost_ns);
}

int64_t xps_limiter_when(const struct xps_limiter *limiter, uint64_t bytes, double cost_ns)
{
	const double slack_ns = max_double(limiter->burst_size - (double)bytes, 0) * cost_ns;
	const double when_ns =
		max_double(limiter->due_ns - slack_ns, limiter->burst_due_ns - slack_ns / limiter->burst_ratio);
	const double bounded_ns = min_double(max_double(when_ns, -max_wait_ns), max_wait_ns);

	if (cost_ns <= 0 || !limiter->since_ns)
		return 0;
	return limiter->since_ns + round_up(bounded_ns);
}

/* From now on the clocks are told from `now_ns`. */
static void pass_time(struct xps_limiter *limiter, int64_t now_ns)
{
	if (limiter->since_ns) {
		const double passed_ns = (double)(now_ns - limiter->since_ns);

		limiter->due_ns -= passed_ns;
		limiter->burst_due_ns -= passed_ns;
	}
	limiter->since_ns = now_ns;
}

void xps_limiter_sent(struct xps_limiter *limiter, int64_t now_ns, uint64_t bytes, double cost_ns)
{
	const double took_ns = (double)bytes * cost_ns;

	if (cost_ns <= 0) {
		xps_limiter_idle(limiter, now_ns);
		return;
	}
	pass_time(limiter, now_ns);
	limiter->due_ns += took_ns;
	limiter->burst_due_ns = max_double(limiter->burst_due_ns, 0) + took_ns / limiter->burst_ratio;
}

void xps_limiter_cap(struct xps_limiter *limiter, int64_t now_ns, int64_t delay_ns)
{
	pass_time(limiter, now_ns);
	limiter->due_ns = max_double(limiter->due_ns, -(double)delay_ns);
}

void xps_limiter_idle(struct xps_limiter *limiter, int64_t now_ns)
{
	xps_limiter_cap(limiter, now_ns, 0);
}
