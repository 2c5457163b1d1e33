/* SPDX-License-Identifier: Apache-2.0 */
/*
 * frame - from an Ethernet frame to the UDP payload in it, without trusting a byte.
 *
 * Used on frames that come out of AF_XDP rings and capture files. It knows no socket and copies nothing. IPv4 with
 * options, IPv6 with extension headers and up to two VLAN tags are walked; fragments, other protocols and lengths that
 * do not agree are told apart so that each can be counted.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum xps_frame_verdict {
	XPS_FRAME_UDP,       /* a whole UDP datagram: the result is filled in */
	XPS_FRAME_TRUNCATED, /* ends inside a header */
	XPS_FRAME_NOT_IP,    /* neither IPv4 nor IPv6 */
	XPS_FRAME_NOT_UDP,
	XPS_FRAME_FRAGMENT,   /* part of a fragmented datagram, the first part included */
	XPS_FRAME_BAD_LENGTH, /* IP or UDP length disagree with each other or with the frame */
};

struct xps_frame {
	uint8_t family;  /* 4 or 6 */
	uint8_t n_vlans; /* tags walked over, 0 to 2 */
	uint16_t src_port, dst_port;
	uint8_t src[16], dst[16]; /* IPv4 addresses use the first four bytes */
	uint32_t payload_offset;  /* from the start of the frame to the UDP payload */
	uint32_t payload_length;  /* from the UDP header; Ethernet padding is not part of it */
};

/*
 * Walk `frame`, of which `length` bytes are at hand and `total` bytes exist in all (`total` > `length` for a packet in
 * several pieces: the headers must lie in the first). `out` is written only for XPS_FRAME_UDP, and then
 * payload_offset <= length and payload_offset + payload_length <= total hold.
 */
enum xps_frame_verdict xps_frame_parse(struct xps_frame *out, const uint8_t *frame, size_t length, size_t total);
