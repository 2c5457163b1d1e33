/* SPDX-License-Identifier: Apache-2.0 */
/*
 * stats - the names, reasons and arithmetic of the statistics in enum xps_stat.
 *
 * A set of statistics is a plain array uint64_t[XPS_N_STATS]. Who owns one adds to it without locks; the stream adds
 * its window's to the public ones once a batch.
 */
#pragma once

#include "xdpspead.h"

/* Why a packet was refused, for people: "payload overflows the packet". */
const char *xps_stat_reason(int stat);

/* Add `from` to `to`, and clear it. */
void xps_stats_move(uint64_t *to, uint64_t *from);
