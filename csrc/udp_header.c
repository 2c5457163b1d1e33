// SPDX-License-Identifier: Apache-2.0
#include "udp_header.h"

#include <endian.h>
#include <netinet/in.h>
#include <string.h>

/* Where things are in the frame; RFC 791, RFC 8200, RFC 768. */
enum {
	ETHER = 14,
	IPV4_LENGTH = ETHER + 2,
	IPV4_FLAGS = ETHER + 6,
	IPV4_TTL = ETHER + 8,
	IPV4_PROTOCOL = ETHER + 9,
	IPV4_CHECKSUM = ETHER + 10,
	IPV4_SOURCE = ETHER + 12,
	IPV4_DESTINATION = ETHER + 16,
	IPV6_LENGTH = ETHER + 4,
	IPV6_NEXT = ETHER + 6,
	IPV6_HOPS = ETHER + 7,
	IPV6_SOURCE = ETHER + 8,
	IPV6_DESTINATION = ETHER + 24,
	UDP = 8, /* bytes, from the end of the headers */
	UDP_LENGTH = 4,
	UDP_CHECKSUM = 2,
};

static void store_be16(uint8_t *p, uint32_t value)
{
	const uint16_t v = htobe16((uint16_t)value);

	memcpy(p, &v, sizeof(v));
}

static void store_16(uint8_t *p, uint16_t value)
{
	memcpy(p, &value, sizeof(value));
}

uint64_t xps_checksum_add(uint64_t sum, const uint8_t *bytes, size_t n)
{
	uint64_t words = 0;
	uint32_t word;
	size_t i;

	/* 32 bits at a time into 64: no carry can be lost, and compilers make vector instructions of it */
	for (i = 0; i + sizeof(word) <= n; i += sizeof(word)) {
		memcpy(&word, bytes + i, sizeof(word));
		words += word;
	}
	word = 0;
	memcpy(&word, bytes + i, n - i);
	words += word;
	/* the sums of many calls could still overflow */
	return sum + (words & UINT32_MAX) + (words >> 32);
}

uint16_t xps_checksum_finish(uint64_t sum)
{
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)~sum;
}

static void init_ipv4(struct xps_udp_header *header, const struct xps_xdp_destination *to)
{
	uint8_t *b = header->bytes;

	header->length = XPS_UDP_HEADER_IPV4;
	store_be16(b + 12, 0x0800);
	b[ETHER] = 0x45; /* version 4, header of five words */
	b[IPV4_FLAGS] = 0x40;
	b[IPV4_TTL] = to->ttl;
	b[IPV4_PROTOCOL] = IPPROTO_UDP;
	memcpy(b + IPV4_SOURCE, to->source_address, 4);
	memcpy(b + IPV4_DESTINATION, to->address, 4);
	header->sum = xps_checksum_add(0, b + ETHER, 20);
}

static void init_ipv6(struct xps_udp_header *header, const struct xps_xdp_destination *to)
{
	uint8_t *b = header->bytes;

	header->length = XPS_UDP_HEADER_IPV6;
	store_be16(b + 12, 0x86dd);
	b[ETHER] = 0x60;
	b[IPV6_NEXT] = IPPROTO_UDP;
	b[IPV6_HOPS] = to->ttl;
	memcpy(b + IPV6_SOURCE, to->source_address, 16);
	memcpy(b + IPV6_DESTINATION, to->address, 16);
	header->sum = xps_checksum_add(htobe16(IPPROTO_UDP), b + IPV6_SOURCE, 32);
}

void xps_udp_header_init(struct xps_udp_header *header, const struct xps_xdp_destination *to)
{
	uint8_t *b = header->bytes, *udp;

	memset(header, 0, sizeof(*header));
	memcpy(b, to->mac, 6);
	memcpy(b + 6, to->source_mac, 6);
	if (to->family == 4)
		init_ipv4(header, to);
	else
		init_ipv6(header, to);
	udp = b + header->length - UDP;
	store_be16(udp, to->source_port);
	store_be16(udp + 2, to->port);
	if (xps_udp_header_wants_checksum(header))
		header->sum = xps_checksum_add(header->sum, udp, 4);
}

void xps_udp_header_write(const struct xps_udp_header *header, uint8_t *frame, uint32_t length)
{
	const uint32_t udp_length = UDP + length;

	memcpy(frame, header->bytes, header->length);
	store_be16(frame + header->length - UDP_LENGTH, udp_length);
	if (xps_udp_header_wants_checksum(header)) {
		store_be16(frame + IPV6_LENGTH, udp_length);
		return;
	}
	store_be16(frame + IPV4_LENGTH, 20 + udp_length);
	store_16(frame + IPV4_CHECKSUM, xps_checksum_finish(header->sum + htobe16((uint16_t)(20 + udp_length))));
}

void xps_udp_header_set_checksum(const struct xps_udp_header *header, uint8_t *frame, uint32_t length, uint64_t payload)
{
	/* the length is covered twice, in the pseudo-header and in UDP's own */
	const uint64_t lengths = 2 * (uint64_t)htobe16((uint16_t)(UDP + length));
	const uint16_t checksum = xps_checksum_finish(header->sum + lengths + payload);

	/* 0 would say that there is none; both stand for the same number */
	store_16(frame + header->length - UDP_CHECKSUM, checksum ? checksum : 0xffff);
}
