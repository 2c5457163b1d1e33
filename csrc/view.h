/* SPDX-License-Identifier: Apache-2.0 */
/*
 * view - one packet as a transport shows it to the stream: bytes that stay where they are until the batch is done.
 *
 * `data` points at the first byte of the SPEAD header. A packet that lies in several frames (jumbo packets on AF_XDP)
 * has `n_more` further pieces, in order; their `n_more` is 0. A transport that has to decode headers to find where
 * packets end hands them over in `decoded`. The bytes belong to the transport.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

struct xps_packet;

struct xps_view {
	const uint8_t *data;
	uint32_t length; /* bytes in this piece */
	uint32_t n_more; /* further pieces, 0 for almost every packet */
	const struct xps_view *more;
	const struct xps_packet *decoded; /* the header, if the transport had to read it anyway; or NULL */
	/* Where the transport sees another packet, about as long, that it will show soon and that is in no cache; or NULL. */
	const uint8_t *ahead;
};
