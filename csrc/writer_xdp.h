/* SPDX-License-Identifier: Apache-2.0 */
/* writer_xdp - datagrams through AF_XDP: the writer without a sender, for those who test and measure it. */
#pragma once

#include "writer.h"

/* `max_packet_size` as in struct xps_sender_config; it decides how many frames a packet may lie in. */
struct xps_writer *xps_xdp_writer_open(const struct xps_xdp_sender_config *config, uint64_t max_packet_size,
				       struct xps_xdp_obtained *obtained, struct xps_fail *fail);
