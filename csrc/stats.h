/* SPDX-License-Identifier: Apache-2.0 */
/*
 * stats - the names, reasons and arithmetic of the statistics in enum xps_stat.
 *
 * A set of statistics is a plain array uint64_t[XPS_N_STATS]. Who owns one adds to it without locks; the stream adds
 * its window's to the public ones once a batch. Those that are told queue by queue are kept in tables, and their sums
 * are made when somebody asks.
 */
#pragma once

#include "xdpspead.h"

/* Why a packet was refused, for people: "payload overflows the packet". */
const char *xps_stat_reason(int stat);

/* Add `from` to `to`, and clear it. */
void xps_stats_move(uint64_t *to, uint64_t *from);

/*
 * What a reader counts queue by queue, with a row for each queue of the interface. Made by the reader; once that is
 * attached it belongs to the stream, so that the last values stay. Guarded by the stream's lock.
 */
struct xps_queue_table {
	struct xps_queue_table *next;
	uint32_t n;
	struct xps_queue_stats rows[];
};

/* All zero, with the queues numbered; NULL without memory. Give it back with free(). */
struct xps_queue_table *xps_queue_table_new(const char *interface, uint32_t n);
/* Where the row has `stat`, one from XPS_STAT_XDP_MATCHED on. */
uint64_t *xps_queue_stat(struct xps_queue_stats *row, int stat);
/* Whether there is anything to tell: it is read, or something came. */
bool xps_queue_matters(const struct xps_queue_stats *row);
/* Add the row's values to `stats`. */
void xps_queue_add(uint64_t *stats, const struct xps_queue_stats *row);
