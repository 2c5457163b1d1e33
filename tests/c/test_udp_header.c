// SPDX-License-Identifier: Apache-2.0
/* Headers: what `frame` reads is what was asked for, and checksums hold by the definition in RFC 1071. */
#include "check.h"
#include "frame.h"
#include "udp_header.h"

static uint32_t state = 1;

static uint8_t next_byte(void)
{
	state = state * 1664525 + 1013904223;
	return (uint8_t)(state >> 24);
}

static void fill(uint8_t *bytes, size_t n)
{
	for (size_t i = 0; i < n; i++)
		bytes[i] = next_byte();
}

/* The sum of RFC 1071, byte by byte: over what includes its own checksum it is 0xffff. */
static uint32_t plain_sum(uint32_t sum, const uint8_t *bytes, size_t n)
{
	for (size_t i = 0; i < n; i++)
		sum += (uint32_t)bytes[i] << (i % 2 ? 0 : 8);
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

static struct xps_xdp_destination destination(uint8_t family)
{
	struct xps_xdp_destination to = { .source_port = 4660, .port = 8888, .family = family, .ttl = 7 };

	fill(to.source_mac, 6);
	fill(to.mac, 6);
	fill(to.source_address, 16);
	fill(to.address, 16);
	return to;
}

/* A frame to `to` with `length` bytes of payload, whose checksum is added up in two parts, the first of `first` bytes. */
static size_t make(uint8_t *frame, const struct xps_xdp_destination *to, uint32_t length, uint32_t first)
{
	struct xps_udp_header header;
	uint64_t sum;

	xps_udp_header_init(&header, to);
	fill(frame + header.length, length);
	xps_udp_header_write(&header, frame, length);
	if (xps_udp_header_wants_checksum(&header)) {
		sum = xps_checksum_add(0, frame + header.length, first);
		sum = xps_checksum_add(sum, frame + header.length + first, length - first);
		xps_udp_header_set_checksum(&header, frame, length, sum);
	}
	return header.length + length;
}

static void test_what_is_read_is_what_was_asked_for(uint8_t family, uint32_t length)
{
	const struct xps_xdp_destination to = destination(family);
	const size_t n_address = family == 4 ? 4 : 16;
	uint8_t frame[10000];
	size_t n = make(frame, &to, length, 0);
	struct xps_frame read;

	CHECK_EQ(n, (family == 4 ? 42 : 62) + length);
	CHECK_EQ(xps_frame_parse(&read, frame, n, n), XPS_FRAME_UDP);
	CHECK(!memcmp(frame, to.mac, 6));
	CHECK(!memcmp(frame + 6, to.source_mac, 6));
	CHECK_EQ(read.family, family);
	CHECK_EQ(read.src_port, to.source_port);
	CHECK_EQ(read.dst_port, to.port);
	CHECK(!memcmp(read.src, to.source_address, n_address));
	CHECK(!memcmp(read.dst, to.address, n_address));
	CHECK_EQ(read.payload_offset, n - length);
	CHECK_EQ(read.payload_length, length);
	CHECK_EQ(frame[family == 4 ? 22 : 21], to.ttl);
}

static void test_ipv4_header_checksum_holds_and_udp_has_none(uint32_t length)
{
	const struct xps_xdp_destination to = destination(4);
	uint8_t frame[10000];

	make(frame, &to, length, 0);
	CHECK_EQ(plain_sum(0, frame + 14, 20), 0xffff);
	CHECK_EQ(frame[20], 0x40); /* don't fragment */
	CHECK_EQ(frame[40] | frame[41], 0);
}

static void test_ipv6_udp_checksum_holds(uint32_t length, uint32_t first)
{
	const struct xps_xdp_destination to = destination(6);
	uint8_t frame[10000];
	uint32_t sum;

	make(frame, &to, length, first);
	sum = plain_sum(17 + 8 + length, frame + 22, 32); /* pseudo-header */
	CHECK_EQ(plain_sum(sum, frame + 54, 8 + length), 0xffff);
	CHECK(frame[60] | frame[61]);
}

/* With 64K payloads that choose their last two bytes, every checksum is seen, and with it the one that must not be sent. */
static void test_ipv6_checksum_is_never_zero(void)
{
	const struct xps_xdp_destination to = destination(6);
	struct xps_udp_header header;
	uint8_t frame[64], payload[2];
	int n_ffff = 0;

	xps_udp_header_init(&header, &to);
	for (uint32_t i = 0; i < 65536; i++) {
		payload[0] = (uint8_t)(i >> 8);
		payload[1] = (uint8_t)i;
		xps_udp_header_write(&header, frame, 2);
		xps_udp_header_set_checksum(&header, frame, 2, xps_checksum_add(0, payload, 2));
		CHECK(frame[60] | frame[61]);
		n_ffff += frame[60] == 0xff && frame[61] == 0xff;
	}
	CHECK(n_ffff >= 1);
}

static void test_checksum_of_all_ones_loses_no_carry(void)
{
	static uint8_t ones[1 << 20];
	uint64_t sum = 0;

	memset(ones, 0xff, sizeof(ones));
	for (int i = 0; i < 100; i++)
		sum = xps_checksum_add(sum, ones, sizeof(ones));
	CHECK_EQ(xps_checksum_finish(sum), 0);
}

int main(void)
{
	static const uint32_t lengths[] = { 0, 1, 2, 3, 4, 7, 8, 9, 18, 1000, 1471, 1472, 8951, 8972 };

	for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
		test_what_is_read_is_what_was_asked_for(4, lengths[i]);
		test_what_is_read_is_what_was_asked_for(6, lengths[i]);
		test_ipv4_header_checksum_holds_and_udp_has_none(lengths[i]);
		for (uint32_t first = 0; first <= lengths[i]; first += 2 + 2 * (lengths[i] / 16))
			test_ipv6_udp_checksum_holds(lengths[i], first);
	}
	test_ipv6_checksum_is_never_zero();
	test_checksum_of_all_ones_loses_no_carry();
	return 0;
}
