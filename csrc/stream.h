/* SPDX-License-Identifier: Apache-2.0 */
/*
 * stream - one logical stream, as its users and its transports see it.
 *
 * The interface for users is in xdpspead.h, the one for transports in transport.h.
 */
#pragma once

#include "ring.h"
#include "transport.h"
#include "xdpspead.h"

/* See xps_ring_listen(). -ECHILD in a forked child. */
int xps_stream_listen(struct xps_stream *stream, struct xps_ring_listener *listener);
