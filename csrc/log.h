/* SPDX-License-Identifier: Apache-2.0 */
/*
 * log - how workers tell the user's log what happened, cheaply when everything goes wrong.
 *
 * A worker reports kinds of events, with a count and up to three numbers. The first few of a kind in a second become
 * lines of their own; the rest are added up and come as one line when the second is over. Not for statistics: the
 * counters are exact and complete, the log is for people.
 */
#pragma once

#include "xdpspead.h"

enum xps_log_kind {
	XPS_LOG_BAD_PACKET,      /* first, second: enum xps_stat that counts it, heap cnt */
	XPS_LOG_REFUSED_PACKET,  /* first, second: enum xps_stat that counts it, heap cnt */
	XPS_LOG_BEHIND,          /* first: heap cnt */
	XPS_LOG_INCOMPLETE_HEAP, /* first to third: heap cnt, bytes received, bytes expected */
	XPS_LOG_STOPPED_HEAP,    /* first: heap cnt */
	XPS_LOG_RING_FULL,       /* first: heap cnt */
	XPS_LOG_POOL_EMPTY,      /* first: bytes asked for */
	XPS_LOG_KERNEL_DROPS,    /* no numbers */
	XPS_LOG_READER_ERROR,    /* first: errno */
	XPS_N_LOG_KINDS
};

struct xps_log *xps_log_ref(struct xps_log *log);

/* `n` events of a kind, of which the numbers describe one. n == 0 does nothing. */
void xps_log(struct xps_log *log, enum xps_log_kind kind, uint64_t n, uint64_t first, uint64_t second, uint64_t third);
/* A line of its own, cut where a line ends, for what happens seldom; level of enum xps_log_level. */
void xps_log_text(struct xps_log *log, int level, const char *text);
