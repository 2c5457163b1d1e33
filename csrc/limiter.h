/* SPDX-License-Identifier: Apache-2.0 */
/*
 * limiter - when the next packet may be sent. It knows the time only from its callers, who wait and send.
 *
 * Two virtual clocks run ahead of the real one by what has been sent: `due`, at the rate asked for, remembers a delay, so
 * that it is caught up; `burst_due`, at burst_ratio times the rate, forgets it. A packet may go if afterwards neither is
 * ahead by more than a burst; one that is larger than a burst, if neither is ahead before. (Both are the generic cell rate
 * algorithm, ITU-T I.371, A.1, with the duration of a burst as its tolerance.)
 *
 * Hence, over any time t: sent <= burst_size + burst_ratio * rate * t, with the size of its last packet for burst_size if
 * that is more; and on average, as long as there always is something to send and it is sent not too late for burst_ratio
 * to make up for: the rate. After an idle time at most one burst goes at once, and then the rate.
 *
 * Times are those of one clock that starts at 0 and never goes back, up to 2**62 ns.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct xps_limiter {
	double burst_ratio; /* at least 1 */
	double burst_size;  /* bytes */
	/*
	 * The limiter's own; zero in the beginning. The clocks are kept as how far they are ahead of a time shortly ago,
	 * because a double that holds nanoseconds since boot would drop their fractions, and a cost is a fraction.
	 */
	int64_t since_ns;
	double due_ns;
	double burst_due_ns;
};

/* Nanoseconds for one byte at `rate` bytes per second; 0 for no limit. */
double xps_limiter_cost(double rate);
/*
 * The earliest time at which `bytes` may be sent, in nanoseconds; at most `now_ns` if they may go now. 0 if `cost_ns` is,
 * or if nothing was ever sent.
 */
int64_t xps_limiter_when(const struct xps_limiter *limiter, uint64_t bytes, double cost_ns);
/* A packet is being sent. Without a cost it counts for nothing, and the time up to it as idle. */
void xps_limiter_sent(struct xps_limiter *limiter, int64_t now_ns, uint64_t bytes, double cost_ns);
/* There was nothing to send until now: the time that passed is no delay to be caught up. */
void xps_limiter_idle(struct xps_limiter *limiter, int64_t now_ns);
/* A delay of more than `delay_ns` is not to be caught up. */
void xps_limiter_cap(struct xps_limiter *limiter, int64_t now_ns, int64_t delay_ns);
