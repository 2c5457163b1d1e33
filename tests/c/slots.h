/* SPDX-License-Identifier: Apache-2.0 */
/* slots - what tests ask of a reader's share of a port. */
#pragma once

#include "xdp_port.h"

#include "check.h"

/* The slot's counters for one queue. */
static inline struct xps_steer_counters queue_counters(struct xps_xdp_port *port, int slot, uint32_t queue)
{
	struct xps_steer_counters *all = calloc((size_t)port->config.n_queues, sizeof(*all)), one;

	CHECK(all);
	xps_xdp_port_counters(port, slot, false, all);
	one = all[queue];
	free(all);
	return one;
}

/* Summed over all queues. */
static inline struct xps_steer_counters slot_counters(struct xps_xdp_port *port, int slot)
{
	struct xps_steer_counters sum = { 0 };

	for (uint32_t queue = 0; queue < (uint32_t)port->config.n_queues; queue++) {
		const struct xps_steer_counters c = queue_counters(port, slot, queue);

		sum.matched += c.matched;
		sum.redirected += c.redirected;
		sum.no_socket += c.no_socket;
		sum.bad_length += c.bad_length;
		sum.fragments += c.fragments;
		sum.extensions += c.extensions;
		sum.other_source += c.other_source;
	}
	return sum;
}
