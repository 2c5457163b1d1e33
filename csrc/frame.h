/* SPDX-License-Identifier: Apache-2.0 */
/*
 * frame - from a frame to the UDP payload in it, without trusting a byte.
 *
 * Used on frames that come out of AF_XDP rings and capture files. It knows no socket and copies nothing. IPv4 with
 * options, IPv6 with extension headers and up to two VLAN tags are walked; fragments, other protocols and lengths that
 * do not agree are told apart so that each can be counted. Frames of AF_XDP are Ethernet; those of capture files may
 * begin with other headers. Fragments are described, to be put together by fragment.h.
 */
#pragma once

#include "bits.h"

enum xps_frame_verdict {
	XPS_FRAME_UDP,       /* a whole UDP datagram: the result is filled in */
	XPS_FRAME_TRUNCATED, /* ends inside a header */
	XPS_FRAME_NOT_IP,    /* neither IPv4 nor IPv6 */
	XPS_FRAME_NOT_UDP,
	XPS_FRAME_FRAGMENT,   /* part of a fragmented datagram, the first part included: the result is filled in */
	XPS_FRAME_BAD_LENGTH, /* IP or UDP length disagree with each other or with the frame */
};

struct xps_frame {
	uint8_t family;  /* 4 or 6 */
	uint8_t n_vlans; /* tags walked over, 0 to 2 */
	uint16_t src_port, dst_port;
	uint8_t src[16], dst[16]; /* IPv4 addresses use the first four bytes */
	uint32_t payload_offset;  /* from the start of the frame to the UDP payload */
	uint32_t payload_length;  /* from the UDP header; Ethernet padding is not part of it */

	/*
	 * Of a fragment, which has no ports. Its payload is the part of the datagram's IP payload that it carries; the
	 * IPv6 extension headers behind the fragment header are part of that.
	 */
	uint32_t fragment_id;
	uint16_t fragment_offset; /* bytes, a multiple of 8 */
	bool more_fragments;
	uint8_t protocol; /* of the first header in the datagram's IP payload */
};

/*
 * Walk `frame`, of which `length` bytes are at hand and `total` bytes exist in all (`total` > `length` for a packet in
 * several pieces: the headers must lie in the first). `out` is written only for XPS_FRAME_UDP and XPS_FRAME_FRAGMENT,
 * and then payload_offset <= length and payload_offset + payload_length <= total hold.
 */
enum xps_frame_verdict xps_frame_parse(struct xps_frame *out, const uint8_t *frame, size_t length, size_t total);

/* What a captured frame begins with. */
enum xps_link {
	XPS_LINK_ETHERNET,
	XPS_LINK_RAW,  /* nothing: IPv4 or IPv6 at once */
	XPS_LINK_NULL, /* the address family, 4 bytes in the byte order of whoever captured it */
	XPS_LINK_SLL,  /* Linux "cooked" capture, as by `tcpdump -i any` */
	XPS_LINK_SLL2,
};

/*
 * The same for a captured frame, which may begin with something else than Ethernet, and which may never have been on a
 * wire: where its sender was still to be segmented by the device, IP says that its length is 0, and that of the frame
 * is believed.
 */
enum xps_frame_verdict xps_frame_parse_link(struct xps_frame *out, enum xps_link link, const uint8_t *frame,
					    size_t length, size_t total);
/*
 * The same for the IP payload of a datagram that was put together from fragments, as the first of them described it:
 * `out` has family, addresses and protocol. Offsets are from `payload`, all of which is at hand.
 */
enum xps_frame_verdict xps_frame_parse_joined(struct xps_frame *out, const uint8_t *payload, size_t length);

/* ---------------------------------------------------------------- the usual frame */

#define XPS_FRAME_USUAL_OFFSET 42 /* where its UDP payload begins: Ethernet 14, IPv4 20, UDP 8 */

/*
 * Whether the frame is the one that almost all are: Ethernet without VLAN tags, IPv4 without options, a whole UDP
 * datagram. Then `payload_length` is what xps_frame_parse() would find. False says nothing.
 */
static inline bool xps_frame_is_usual(const uint8_t *frame, size_t length, size_t total, uint32_t *payload_length)
{
	const uint8_t *ip = frame + 14;
	uint32_t ip_length, udp_length;

	if (unlikely(length < XPS_FRAME_USUAL_OFFSET || total < length))
		return false;
	/* Ethernet type, version and header length in one; then fragments; then the protocol. */
	if (unlikely((xps_load_be32(frame + 12) & 0xffffff00) != 0x08004500 || (xps_load_be16(ip + 6) & 0x3fff) ||
		     ip[9] != 17))
		return false;
	ip_length = xps_load_be16(ip + 2);
	udp_length = xps_load_be16(ip + 24);
	if (unlikely(ip_length > total - 14 || udp_length < 8 || udp_length + 20 != ip_length))
		return false;
	*payload_length = udp_length - 8;
	return true;
}
