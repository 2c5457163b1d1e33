// SPDX-License-Identifier: Apache-2.0
/*
 * How it works
 *
 * A cursor moves over the frame in one direction: link, VLAN tags, IPv4 or IPv6, UDP. Each step first asks whether
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
	IPV4_MORE = 0x2000, /* fragments */
	IPV4_OFFSET = 0x1fff,
	IPV4_FRAGMENT = IPV4_MORE | IPV4_OFFSET,
	IPV6_HEADER = 40,
	IPV6_FRAGMENT_HEADER = 8,
	IPV6_MORE = 1,
	IPV6_OFFSET = 0xfff8,
	UDP_HEADER = 8,

	PROTO_HOP_BY_HOP = 0,
	PROTO_UDP = 17,
	PROTO_ROUTING = 43,
	PROTO_FRAGMENT = 44,
	PROTO_AUTH = 51,
	PROTO_DESTINATION = 60,

	SLL_PROTOCOL = 14, /* where it is in the header, after which the packet begins */
	SLL2_PROTOCOL = 0,
	SLL2_HEADER = 20,
	NULL_HEADER = 4,
};

struct cursor {
	const uint8_t *frame;
	size_t pos;    /* <= length */
	size_t length; /* bytes at hand */
	size_t total;  /* bytes that exist */
	/* IP may say that its length is 0. Then `rest` is what the frame has, which may be padding in part. */
	bool may_be_unsized;
	bool unsized;
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
	if (length < UDP_HEADER || length > rest || (length < rest && !c->unsized))
		return XPS_FRAME_BAD_LENGTH;
	f->src_port = xps_load_be16(udp);
	f->dst_port = xps_load_be16(udp + 2);
	f->payload_offset = (uint32_t)c->pos;
	f->payload_length = length - UDP_HEADER;
	return XPS_FRAME_UDP;
}

/* The IP header says that the packet ends `length` after its beginning. What does the frame say? */
static uint32_t believed_length(struct cursor *c, uint32_t length, size_t room)
{
	if (likely(length || !c->may_be_unsized || room > UINT32_MAX))
		return length;
	c->unsized = true;
	return (uint32_t)room;
}

static enum xps_frame_verdict fragment(struct xps_frame *f, const struct cursor *c, uint32_t rest)
{
	if (c->unsized)
		return XPS_FRAME_BAD_LENGTH; /* padding would get into the datagram */
	f->payload_offset = (uint32_t)c->pos;
	f->payload_length = rest;
	return XPS_FRAME_FRAGMENT;
}

static enum xps_frame_verdict walk_ipv4(struct xps_frame *f, struct cursor *c)
{
	const size_t start = c->pos;
	const uint8_t *ip = take(c, IPV4_HEADER);
	uint32_t header, length;
	uint16_t fragments;

	if (!ip)
		return XPS_FRAME_TRUNCATED;
	if (ip[0] >> 4 != 4)
		return XPS_FRAME_NOT_IP;
	header = (ip[0] & 15u) * 4;
	length = believed_length(c, xps_load_be16(ip + 2), c->total - start);
	if (header < IPV4_HEADER || length < header || length > c->total - start)
		return XPS_FRAME_BAD_LENGTH;
	if (ip[9] != PROTO_UDP)
		return XPS_FRAME_NOT_UDP;
	if (!take(c, header - IPV4_HEADER))
		return XPS_FRAME_TRUNCATED;
	f->family = 4;
	memcpy(f->src, ip + 12, 4);
	memcpy(f->dst, ip + 16, 4);
	fragments = xps_load_be16(ip + 6);
	if (unlikely(fragments & IPV4_FRAGMENT)) {
		f->fragment_id = xps_load_be16(ip + 4);
		f->fragment_offset = (uint16_t)((fragments & IPV4_OFFSET) * 8);
		f->more_fragments = fragments & IPV4_MORE;
		f->protocol = PROTO_UDP;
		return fragment(f, c, length - header);
	}
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

/* The fragment header that begins with `head`. A datagram in one fragment (RFC 6946) is like one without. */
static bool is_fragment(struct xps_frame *f, const uint8_t *head)
{
	const uint16_t fragments = xps_load_be16(head + 2);

	if (!(fragments & (IPV6_OFFSET | IPV6_MORE)))
		return false;
	f->protocol = head[0];
	f->fragment_id = xps_load_be32(head + 4);
	f->fragment_offset = fragments & IPV6_OFFSET;
	f->more_fragments = fragments & IPV6_MORE;
	return true;
}

/* Whether a header can lead to UDP. */
static bool is_known(uint8_t proto)
{
	return proto == PROTO_UDP || proto == PROTO_FRAGMENT || extension_length(proto, (const uint8_t[2]){ 0 });
}

/* What follows the IPv6 header: extension headers, the first of them `proto`, then UDP, in all `rest` bytes. */
static enum xps_frame_verdict walk_extensions(struct xps_frame *f, struct cursor *c, uint8_t proto, uint32_t rest)
{
	/* Every extension header takes at least 8 bytes of `rest`, so this ends. */
	while (proto != PROTO_UDP) {
		const uint8_t *head = c->frame + c->pos;
		uint32_t length;

		if (!is_known(proto))
			return XPS_FRAME_NOT_UDP;
		if (c->length - c->pos < 2)
			return XPS_FRAME_TRUNCATED;
		length = proto == PROTO_FRAGMENT ? IPV6_FRAGMENT_HEADER : extension_length(proto, head);
		if (length > rest)
			return XPS_FRAME_BAD_LENGTH;
		if (!take(c, length))
			return XPS_FRAME_TRUNCATED;
		rest -= length;
		if (proto == PROTO_FRAGMENT && is_fragment(f, head))
			return is_known(head[0]) ? fragment(f, c, rest) : XPS_FRAME_NOT_UDP;
		proto = head[0];
	}
	return walk_udp(f, c, rest);
}

static enum xps_frame_verdict walk_ipv6(struct xps_frame *f, struct cursor *c)
{
	const uint8_t *ip = take(c, IPV6_HEADER);
	uint32_t rest;

	if (!ip)
		return XPS_FRAME_TRUNCATED;
	if (ip[0] >> 4 != 6)
		return XPS_FRAME_NOT_IP;
	rest = believed_length(c, xps_load_be16(ip + 4), c->total - c->pos);
	if (rest > c->total - c->pos)
		return XPS_FRAME_BAD_LENGTH;
	f->family = 6;
	memcpy(f->src, ip + 8, 16);
	memcpy(f->dst, ip + 24, 16);
	return walk_extensions(f, c, ip[6], rest);
}

/* VLAN tags, of which `type` is the first or which it is not, then IP. */
static inline enum xps_frame_verdict walk_type(struct xps_frame *f, struct cursor *c, uint16_t type)
{
	while (is_vlan(type) && f->n_vlans < MAX_VLANS) {
		const uint8_t *tag = take(c, 4);

		if (!tag)
			return XPS_FRAME_TRUNCATED;
		type = xps_load_be16(tag + 2);
		f->n_vlans++;
	}
	if (type == ETHER_IPV4)
		return walk_ipv4(f, c);
	if (type == ETHER_IPV6)
		return walk_ipv6(f, c);
	return XPS_FRAME_NOT_IP;
}

/* A header whose last two bytes are an Ethernet type. */
static inline enum xps_frame_verdict walk_ethernet(struct xps_frame *f, struct cursor *c, size_t type_at)
{
	const uint8_t *header = take(c, type_at + 2);

	return header ? walk_type(f, c, xps_load_be16(header + type_at)) : XPS_FRAME_TRUNCATED;
}

static enum xps_frame_verdict walk_sll2(struct xps_frame *f, struct cursor *c)
{
	const uint8_t *header = take(c, SLL2_HEADER);

	return header ? walk_type(f, c, xps_load_be16(header + SLL2_PROTOCOL)) : XPS_FRAME_TRUNCATED;
}

static enum xps_frame_verdict walk_ip(struct xps_frame *f, struct cursor *c)
{
	if (c->pos == c->length)
		return XPS_FRAME_TRUNCATED;
	return c->frame[c->pos] >> 4 == 6 ? walk_ipv6(f, c) : walk_ipv4(f, c);
}

/* Whether it says IPv4 or IPv6, in the byte order and by the numbers of any system. The packet tells them apart. */
static bool is_ip_family(const uint8_t *header)
{
	static const uint8_t families[] = { 2, 10, 24, 28, 30 }; /* IPv4, then IPv6: Linux, NetBSD, FreeBSD, Darwin */

	if (header[1] || header[2] || (header[0] && header[3]))
		return false;
	return memchr(families, header[0] | header[3], sizeof(families));
}

static enum xps_frame_verdict walk_null(struct xps_frame *f, struct cursor *c)
{
	const uint8_t *header = take(c, NULL_HEADER);

	if (!header)
		return XPS_FRAME_TRUNCATED;
	return is_ip_family(header) ? walk_ip(f, c) : XPS_FRAME_NOT_IP;
}

enum xps_frame_verdict xps_frame_parse(struct xps_frame *out, const uint8_t *frame, size_t length, size_t total)
{
	struct cursor c = { .frame = frame, .length = length < total ? length : total, .total = total };
	struct xps_frame f = { 0 };
	enum xps_frame_verdict verdict = walk_ethernet(&f, &c, ETHER_ADDRESSES);

	if (verdict == XPS_FRAME_UDP || verdict == XPS_FRAME_FRAGMENT)
		*out = f;
	return verdict;
}

static enum xps_frame_verdict walk_link(struct xps_frame *f, struct cursor *c, enum xps_link link)
{
	switch (link) {
	case XPS_LINK_ETHERNET:
		return walk_ethernet(f, c, ETHER_ADDRESSES);
	case XPS_LINK_RAW:
		return walk_ip(f, c);
	case XPS_LINK_NULL:
		return walk_null(f, c);
	case XPS_LINK_SLL:
		return walk_ethernet(f, c, SLL_PROTOCOL);
	case XPS_LINK_SLL2:
		return walk_sll2(f, c);
	}
	return XPS_FRAME_NOT_IP;
}

enum xps_frame_verdict xps_frame_parse_link(struct xps_frame *out, enum xps_link link, const uint8_t *frame,
					    size_t length, size_t total)
{
	struct cursor c = {
		.frame = frame,
		.length = length < total ? length : total,
		.total = total,
		.may_be_unsized = true,
	};
	struct xps_frame f = { 0 };
	enum xps_frame_verdict verdict = walk_link(&f, &c, link);

	if (verdict == XPS_FRAME_UDP || verdict == XPS_FRAME_FRAGMENT)
		*out = f;
	return verdict;
}

enum xps_frame_verdict xps_frame_parse_joined(struct xps_frame *out, const uint8_t *payload, size_t length)
{
	struct cursor c = { .frame = payload, .length = length, .total = length };
	struct xps_frame f = *out;
	enum xps_frame_verdict verdict = walk_extensions(&f, &c, f.protocol, (uint32_t)length);

	if (verdict == XPS_FRAME_UDP)
		*out = f;
	return verdict;
}
