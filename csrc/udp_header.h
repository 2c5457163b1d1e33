/* SPDX-License-Identifier: Apache-2.0 */
/*
 * udp_header - what stands in front of a UDP payload on Ethernet: the counterpart of `frame`. Bytes only; it knows no
 * socket.
 *
 * Everything that is the same for all datagrams to one place is made once. IPv4: "don't fragment" is set, so that the
 * identification may be 0 (RFC 6864, 4.1), and there is no UDP checksum. IPv6 demands one (RFC 8200, 8.1): the caller adds
 * up the payload.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "xdpspead.h"

#define XPS_UDP_HEADER_IPV4 42 /* bytes, Ethernet, IP and UDP together */
#define XPS_UDP_HEADER_IPV6 62

struct xps_udp_header {
	uint8_t bytes[64]; /* lengths and checksums are still 0 */
	uint8_t length;    /* XPS_UDP_HEADER_* */
	uint64_t sum; /* of what the checksum covers in any case: IPv4's own header, IPv6's pseudo-header and ports */
};

void xps_udp_header_init(struct xps_udp_header *header, const struct xps_xdp_destination *to);
/* Write the headers of a datagram with `length` bytes of payload. IPv6: the checksum is not there yet. */
void xps_udp_header_write(const struct xps_udp_header *header, uint8_t *frame, uint32_t length);
/* Whether it has to be put in. */
static inline bool xps_udp_header_wants_checksum(const struct xps_udp_header *header)
{
	return header->length == XPS_UDP_HEADER_IPV6;
}
/* Put it in: `payload` is the sum of all of the payload. */
void xps_udp_header_set_checksum(const struct xps_udp_header *header, uint8_t *frame, uint32_t length,
				 uint64_t payload);

/*
 * Add bytes to an Internet checksum (RFC 1071) that begins with 0, in the machine's byte order. What is added in pieces
 * has an even length in each but the last. At most 2**32 bytes.
 */
uint64_t xps_checksum_add(uint64_t sum, const uint8_t *bytes, size_t n);
/* The checksum to be stored, in the machine's byte order. */
uint16_t xps_checksum_finish(uint64_t sum);
