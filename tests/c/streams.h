/* SPDX-License-Identifier: Apache-2.0 */
/* What tests ask of a stream, whatever it reads. */
#pragma once

#include <errno.h>

#include "await.h"
#include "check.h"
#include "xdpspead.h"

static inline uint64_t stat_of(struct xps_stream *stream, enum xps_stat stat)
{
	uint64_t stats[XPS_N_STATS];

	xps_stream_stats(stream, stats);
	return stats[stat];
}

static inline void check_ended(struct xps_stream *stream)
{
	struct xps_heap *heap;

	CHECK_EQ(xps_stream_pop(stream, &heap, 1, DEADLINE_MS), -EPIPE);
	CHECK(xps_stream_stopped(stream));
}
