// SPDX-License-Identifier: Apache-2.0
/*
 * How it works
 *
 * A cursor moves over the frame in one direction: Ethernet, VLAN tags, IPv4 or IPv6, UDP. Each step first asks whether
 * its header is at hand and takes it, so that no byte is read that was not checked. `rest` is what the IP header says
 * is left of the datagram; it is compared with what the frame really holds before anything inside it is trusted, and
 * all comparisons subtract from the larger known side, so that nothing can wrap.
 */
#include "frame.h"

#include <string.h>

#include "bits.h"

enum {
	ETHER_ADDRESSES = 12,
	ETHER_IPV4 = 0x0800,
	ETHER_IPV6 = 0x86dd,
	ETHER_VLAN = 0x8100,
	ETHER_SERVICE_VLAN = 0x88a8,
	MAX_VLANS = 2,

	IPV4_HEADER = 20,
	IPV4_FRAGMENT = 0x3fff, /* more-fragments bit and offset */
	IPV6_HEADER = 40,
	UDP_HEADER = 8,

	PROTO_HOP_BY_HOP = 0,
	PROTO_UDP = 17,
	PROTO_ROUTING = 43,
	PROTO_FRAGMENT = 44,
	PROTO_AUTH = 51,
	PROTO_DESTINATION = 60,
};

struct cursor {
	const uint8_t *frame;
	size_t pos;    /* <= length */
	size_t length; /* bytes at hand */
	size_t total;  /* bytes that exist */
};

/* The next `n` bytes, or NULL if they are not at hand. */
static const uint8_t *take(struct cursor *c, size_t n)
{
	const uint8_t *p = c->frame + c->pos;

	if (c->length - c->pos < n)
		return NULL;
	c->pos += n;
	return p;
}

static bool is_vlan(uint16_t type)
{
	return type == ETHER_VLAN || type == ETHER_SERVICE_VLAN;
}

static enum xps_frame_verdict walk_udp(struct xps_frame *f, struct cursor *c, uint32_t rest)
{
	const uint8_t *udp = take(c, UDP_HEADER);
	uint32_t length;

	if (!udp)
		return XPS_FRAME_TRUNCATED;
	length = xps_load_be16(udp + 4);
	if (length < UDP_HEADER || length != rest)
		return XPS_FRAME_BAD_LENGTH;
	f->src_port = xps_load_be16(udp);
	f->dst_port = xps_load_be16(udp + 2);
	f->payload_offset = (uint32_t)c->pos;
	f->payload_length = length - UDP_HEADER;
	return XPS_FRAME_UDP;
}

static enum xps_frame_verdict walk_ipv4(struct xps_frame *f, struct cursor *c)
{
	const size_t start = c->pos;
	const uint8_t *ip = take(c, IPV4_HEADER);
	uint32_t header, length;

	if (!ip)
		return XPS_FRAME_TRUNCATED;
	if (ip[0] >> 4 != 4)
		return XPS_FRAME_NOT_IP;
	header = (ip[0] & 15u) * 4;
	length = xps_load_be16(ip + 2);
	if (header < IPV4_HEADER || length < header || length > c->total - start)
		return XPS_FRAME_BAD_LENGTH;
	if (ip[9] != PROTO_UDP)
		return XPS_FRAME_NOT_UDP;
	if (xps_load_be16(ip + 6) & IPV4_FRAGMENT)
		return XPS_FRAME_FRAGMENT;
	if (!take(c, header - IPV4_HEADER))
		return XPS_FRAME_TRUNCATED;
	f->family = 4;
	memcpy(f->src, ip + 12, 4);
	memcpy(f->dst, ip + 16, 4);
	return walk_udp(f, c, length - header);
}

/* Bytes of an extension header that begins with `head`; 0 if it is not one that can be walked over. */
static uint32_t extension_length(uint8_t proto, const uint8_t *head)
{
	switch (proto) {
	case PROTO_HOP_BY_HOP:
	case PROTO_ROUTING:
	case PROTO_DESTINATION:
		return (head[1] + 1u) * 8;
	case PROTO_AUTH:
		return (head[1] + 2u) * 4;
	default:
		return 0;
	}
}

static enum xps_frame_verdict walk_ipv6(struct xps_frame *f, struct cursor *c)
{
	const uint8_t *ip = take(c, IPV6_HEADER);
	uint32_t rest;
	uint8_t proto;

	if (!ip)
		return XPS_FRAME_TRUNCATED;
	if (ip[0] >> 4 != 6)
		return XPS_FRAME_NOT_IP;
	rest = xps_load_be16(ip + 4);
	if (rest > c->total - c->pos)
		return XPS_FRAME_BAD_LENGTH;
	/* Every extension header takes at least 8 bytes of `rest`, so this ends. */
	for (proto = ip[6]; proto != PROTO_UDP;) {
		const uint8_t *head = c->frame + c->pos;
		uint32_t length;

		if (proto == PROTO_FRAGMENT)
			return XPS_FRAME_FRAGMENT;
		if (c->length - c->pos < 2)
			return extension_length(proto, (const uint8_t[2]){ 0 }) ? XPS_FRAME_TRUNCATED
										: XPS_FRAME_NOT_UDP;
		length = extension_length(proto, head);
		if (!length)
			return XPS_FRAME_NOT_UDP;
		if (length > rest)
			return XPS_FRAME_BAD_LENGTH;
		if (!take(c, length))
			return XPS_FRAME_TRUNCATED;
		proto = head[0];
		rest -= length;
	}
	f->family = 6;
	memcpy(f->src, ip + 8, 16);
	memcpy(f->dst, ip + 24, 16);
	return walk_udp(f, c, rest);
}

enum xps_frame_verdict xps_frame_parse(struct xps_frame *out, const uint8_t *frame, size_t length, size_t total)
{
	struct cursor c = { .frame = frame, .length = length < total ? length : total, .total = total };
	enum xps_frame_verdict verdict = XPS_FRAME_NOT_IP;
	struct xps_frame f = { 0 };
	const uint8_t *p;
	uint16_t type;

	if (!take(&c, ETHER_ADDRESSES))
		return XPS_FRAME_TRUNCATED;
	for (;;) {
		p = take(&c, 2);
		if (!p)
			return XPS_FRAME_TRUNCATED;
		type = xps_load_be16(p);
		if (!is_vlan(type) || f.n_vlans == MAX_VLANS)
			break;
		if (!take(&c, 2))
			return XPS_FRAME_TRUNCATED;
		f.n_vlans++;
	}
	if (type == ETHER_IPV4)
		verdict = walk_ipv4(&f, &c);
	else if (type == ETHER_IPV6)
		verdict = walk_ipv6(&f, &c);
	if (verdict == XPS_FRAME_UDP)
		*out = f;
	return verdict;
}
