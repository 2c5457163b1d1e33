/* SPDX-License-Identifier: Apache-2.0 */
/* frames - hand-made Ethernet frames for tests, written byte by byte and not with the code under test. */
#pragma once

#include <stdint.h>
#include <string.h>

struct frame {
	uint8_t bytes[9216];
	size_t length;
};

static const uint8_t frame_src6[16] = { 0xfd, 0x77, [15] = 1 };
static const uint8_t frame_dst6[16] = { 0xfd, 0x77, [15] = 2 };

static inline void put(struct frame *f, const void *bytes, size_t n)
{
	memcpy(f->bytes + f->length, bytes, n);
	f->length += n;
}

static inline void put16(struct frame *f, unsigned value)
{
	const uint8_t bytes[2] = { (uint8_t)(value >> 8), (uint8_t)value };

	put(f, bytes, 2);
}

static inline void put_zeros(struct frame *f, size_t n)
{
	memset(f->bytes + f->length, 0, n);
	f->length += n;
}

/* Addresses, `n_tags` VLAN tags (the outer one 0x88a8 if there are two or more), type. */
static inline void put_ethernet(struct frame *f, unsigned n_tags, unsigned type)
{
	f->length = 0;
	put(f, "\x02\0\0\0\0\x02\x02\0\0\0\0\x01", 12);
	for (unsigned i = 0; i < n_tags; i++) {
		put16(f, i == 0 && n_tags > 1 ? 0x88a8 : 0x8100);
		put16(f, 100 + i);
	}
	put16(f, type);
}

/* 10.77.0.1 to 10.77.0.2, `options` words of options (all 1: no operation); no checksum. */
static inline void put_ipv4(struct frame *f, unsigned options, unsigned total, unsigned fragment, unsigned proto)
{
	const uint8_t head[2] = { (uint8_t)(0x45 + options), 0 };
	const uint8_t rest[12] = { 64, (uint8_t)proto, 0, 0, 10, 77, 0, 1, 10, 77, 0, 2 };

	put(f, head, 2);
	put16(f, total);
	put16(f, 0x1234);
	put16(f, fragment);
	put(f, rest, sizeof(rest));
	memset(f->bytes + f->length, 1, options * 4);
	f->length += options * 4;
}

/* fd77::1 to fd77::2. */
static inline void put_ipv6(struct frame *f, unsigned payload_length, unsigned next)
{
	const uint8_t head[4] = { 0x60 }, tail[2] = { (uint8_t)next, 64 };

	put(f, head, sizeof(head));
	put16(f, payload_length);
	put(f, tail, sizeof(tail));
	put(f, frame_src6, 16);
	put(f, frame_dst6, 16);
}

/* From port 4000, `payload` bytes 0, 1, 2, ..., and the length that it has or claims. */
static inline void put_udp(struct frame *f, unsigned port, unsigned length, unsigned payload)
{
	put16(f, 4000);
	put16(f, port);
	put16(f, length);
	put16(f, 0);
	for (unsigned i = 0; i < payload; i++)
		f->bytes[f->length++] = (uint8_t)i;
}

/* A good one of each family. */
static inline void make_ipv4(struct frame *f, unsigned n_tags, unsigned options, unsigned port, unsigned payload)
{
	put_ethernet(f, n_tags, 0x0800);
	put_ipv4(f, options, 20 + options * 4 + 8 + payload, 0x4000, 17);
	put_udp(f, port, 8 + payload, payload);
}

static inline void make_ipv6(struct frame *f, unsigned n_tags, unsigned port, unsigned payload)
{
	put_ethernet(f, n_tags, 0x86dd);
	put_ipv6(f, 8 + payload, 17);
	put_udp(f, port, 8 + payload, payload);
}
