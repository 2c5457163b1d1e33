// SPDX-License-Identifier: Apache-2.0
/* The walk from an Ethernet frame to the UDP payload: what it finds, and what it refuses and why. */
#include "check.h"
#include "frame.h"
#include "frames.h"

/* The short way never says anything but what the walk says. */
static void check_short_way(enum xps_frame_verdict verdict, const struct xps_frame *out, const uint8_t *frame,
			    size_t length, size_t total)
{
	uint32_t payload_length;

	if (!xps_frame_is_usual(frame, length, total, &payload_length))
		return;
	CHECK_EQ(verdict, XPS_FRAME_UDP);
	CHECK_EQ(out->family, 4);
	CHECK_EQ(out->payload_offset, XPS_FRAME_USUAL_OFFSET);
	CHECK_EQ(out->payload_length, payload_length);
}

/* In memory of exactly the frame's size, so that a sanitizer sees a read beyond it. */
static enum xps_frame_verdict parse_of(const struct frame *f, size_t length, size_t total, struct xps_frame *out)
{
	uint8_t *exact = malloc(length ? length : 1);
	enum xps_frame_verdict verdict;

	memcpy(exact, f->bytes, length);
	memset(out, 0xee, sizeof(*out));
	verdict = xps_frame_parse(out, exact, length, total);
	check_short_way(verdict, out, exact, length, total);
	free(exact);
	return verdict;
}

static enum xps_frame_verdict parse(const struct frame *f, struct xps_frame *out)
{
	return parse_of(f, f->length, f->length, out);
}

static void test_ipv4_datagram_is_found(void)
{
	struct xps_frame out;
	struct frame f;

	make_ipv4(&f, 0, 0, 8888, 100);
	CHECK_EQ(parse(&f, &out), XPS_FRAME_UDP);
	CHECK_EQ(out.family, 4);
	CHECK_EQ(out.n_vlans, 0);
	CHECK_EQ(out.src_port, 4000);
	CHECK_EQ(out.dst_port, 8888);
	CHECK(!memcmp(out.src, "\x0a\x4d\0\1\0\0\0\0\0\0\0\0\0\0\0\0", 16));
	CHECK(!memcmp(out.dst, "\x0a\x4d\0\2\0\0\0\0\0\0\0\0\0\0\0\0", 16));
	CHECK_EQ(out.payload_offset, 42);
	CHECK_EQ(out.payload_length, 100);
}

static void test_ipv6_datagram_is_found(void)
{
	struct xps_frame out;
	struct frame f;

	make_ipv6(&f, 0, 8888, 100);
	CHECK_EQ(parse(&f, &out), XPS_FRAME_UDP);
	CHECK_EQ(out.family, 6);
	CHECK_EQ(out.dst_port, 8888);
	CHECK(!memcmp(out.src, frame_src6, 16));
	CHECK(!memcmp(out.dst, frame_dst6, 16));
	CHECK_EQ(out.payload_offset, 62);
	CHECK_EQ(out.payload_length, 100);
}

static void test_up_to_two_vlan_tags_are_walked_over(void)
{
	struct xps_frame out;
	struct frame f;

	for (unsigned tags = 0; tags <= 2; tags++) {
		make_ipv4(&f, tags, 0, 8888, 30);
		CHECK_EQ(parse(&f, &out), XPS_FRAME_UDP);
		CHECK_EQ(out.n_vlans, tags);
		CHECK_EQ(out.payload_offset, 42 + 4 * tags);
	}
	make_ipv4(&f, 3, 0, 8888, 30);
	CHECK_EQ(parse(&f, &out), XPS_FRAME_NOT_IP);
}

static void test_ipv4_options_are_walked_over(void)
{
	struct xps_frame out;
	struct frame f;

	for (unsigned words = 0; words <= 10; words++) {
		make_ipv4(&f, 0, words, 8888, 30);
		CHECK_EQ(parse(&f, &out), XPS_FRAME_UDP);
		CHECK_EQ(out.payload_offset, 42 + 4 * words);
		CHECK_EQ(out.payload_length, 30);
	}
}

static void test_ethernet_padding_is_not_payload(void)
{
	struct xps_frame out;
	struct frame f;

	make_ipv4(&f, 0, 0, 8888, 5);
	put_zeros(&f, 60 - f.length);
	CHECK_EQ(parse(&f, &out), XPS_FRAME_UDP);
	CHECK_EQ(out.payload_length, 5);
}

static void test_empty_datagram_is_a_datagram(void)
{
	struct xps_frame out;
	struct frame f;

	make_ipv4(&f, 0, 0, 8888, 0);
	CHECK_EQ(parse(&f, &out), XPS_FRAME_UDP);
	CHECK_EQ(out.payload_offset, f.length);
	CHECK_EQ(out.payload_length, 0);
}

/* Every proper prefix of a good frame is refused, and none is read beyond. */
static void check_prefixes(const struct frame *f, size_t headers)
{
	struct xps_frame out, untouched;

	memset(&untouched, 0xee, sizeof(untouched));
	for (size_t length = 0; length < f->length; length++) {
		enum xps_frame_verdict cut = parse_of(f, length, length, &out);

		CHECK(cut == XPS_FRAME_TRUNCATED || cut == XPS_FRAME_BAD_LENGTH);
		CHECK(!memcmp(&out, &untouched, sizeof(out)));
		/* The rest of the packet is in other pieces: all is well once the headers are at hand. */
		CHECK_EQ(parse_of(f, length, f->length, &out), length < headers ? XPS_FRAME_TRUNCATED : XPS_FRAME_UDP);
	}
}

static void test_every_prefix_of_a_good_frame_is_refused(void)
{
	struct frame f;

	make_ipv4(&f, 0, 0, 8888, 20);
	check_prefixes(&f, 42);
	make_ipv4(&f, 2, 3, 8888, 20);
	check_prefixes(&f, 62);
	make_ipv6(&f, 1, 8888, 20);
	check_prefixes(&f, 66);
}

static void test_pieces_beyond_the_first_count_for_the_length(void)
{
	struct xps_frame out;
	struct frame f;

	put_ethernet(&f, 0, 0x0800);
	put_ipv4(&f, 0, 9000, 0, 17);
	put_udp(&f, 8888, 8980, 100);
	CHECK_EQ(parse_of(&f, f.length, 9014, &out), XPS_FRAME_UDP);
	CHECK_EQ(out.payload_offset, 42);
	CHECK_EQ(out.payload_length, 8972);
	CHECK_EQ(parse_of(&f, f.length, 9013, &out), XPS_FRAME_BAD_LENGTH);
}

static void test_total_below_length_is_believed(void)
{
	struct xps_frame out;
	struct frame f;

	make_ipv4(&f, 0, 0, 8888, 20);
	CHECK_EQ(parse_of(&f, f.length, f.length - 1, &out), XPS_FRAME_BAD_LENGTH);
	CHECK_EQ(parse_of(&f, f.length, 30, &out), XPS_FRAME_TRUNCATED);
}

static void test_ipv4_total_length_must_fit_the_frame(void)
{
	struct xps_frame out;
	struct frame f;

	put_ethernet(&f, 0, 0x0800);
	put_ipv4(&f, 0, 20 + 8 + 21, 0, 17);
	put_udp(&f, 8888, 8 + 21, 20);
	CHECK_EQ(parse(&f, &out), XPS_FRAME_BAD_LENGTH);
}

static void test_ipv4_total_length_must_hold_its_header(void)
{
	struct xps_frame out;
	struct frame f;

	put_ethernet(&f, 0, 0x0800);
	put_ipv4(&f, 0, 19, 0, 17);
	put_udp(&f, 8888, 28, 20);
	CHECK_EQ(parse(&f, &out), XPS_FRAME_BAD_LENGTH);
}

static void test_ipv4_header_length_must_be_at_least_five_words(void)
{
	struct xps_frame out;
	struct frame f;

	for (unsigned words = 0; words < 5; words++) {
		make_ipv4(&f, 0, 0, 8888, 20);
		f.bytes[14] = (uint8_t)(0x40 + words);
		CHECK_EQ(parse(&f, &out), XPS_FRAME_BAD_LENGTH);
	}
}

static void test_ip_version_must_be_that_of_the_ethernet_type(void)
{
	struct xps_frame out;
	struct frame f;

	make_ipv4(&f, 0, 0, 8888, 40);
	f.bytes[14] = 0x65;
	CHECK_EQ(parse(&f, &out), XPS_FRAME_NOT_IP);
	make_ipv6(&f, 0, 8888, 40);
	f.bytes[14] = 0x40;
	CHECK_EQ(parse(&f, &out), XPS_FRAME_NOT_IP);
}

static void test_udp_length_must_be_what_ip_leaves(void)
{
	static const unsigned lengths[] = { 0, 7, 27, 29, 65535 };
	struct xps_frame out;
	struct frame f;

	for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
		put_ethernet(&f, 0, 0x0800);
		put_ipv4(&f, 0, 48, 0, 17);
		put_udp(&f, 8888, lengths[i], 20);
		CHECK_EQ(parse(&f, &out), XPS_FRAME_BAD_LENGTH);
		put_ethernet(&f, 0, 0x86dd);
		put_ipv6(&f, 28, 17);
		put_udp(&f, 8888, lengths[i], 20);
		CHECK_EQ(parse(&f, &out), XPS_FRAME_BAD_LENGTH);
	}
}

static void test_udp_length_below_its_header_is_refused_even_if_ip_agrees(void)
{
	struct xps_frame out;
	struct frame f;

	put_ethernet(&f, 0, 0x0800);
	put_ipv4(&f, 0, 27, 0, 17);
	put_udp(&f, 8888, 7, 20);
	CHECK_EQ(parse(&f, &out), XPS_FRAME_BAD_LENGTH);
}

static void test_fragments_are_told_apart(void)
{
	static const unsigned fragments[] = { 0x2000, 0x2001, 0x0001, 0x1fff };
	struct xps_frame out;
	struct frame f;

	for (size_t i = 0; i < sizeof(fragments) / sizeof(fragments[0]); i++) {
		put_ethernet(&f, 0, 0x0800);
		put_ipv4(&f, 0, 48, fragments[i], 17);
		put_udp(&f, 8888, 28, 20);
		CHECK_EQ(parse(&f, &out), XPS_FRAME_FRAGMENT);
	}
	put_ethernet(&f, 0, 0x86dd);
	put_ipv6(&f, 36, 44);
	put(&f, "\x11\0\0\x01\0\0\0\x07", 8);
	put_udp(&f, 8888, 28, 20);
	CHECK_EQ(parse(&f, &out), XPS_FRAME_FRAGMENT);
}

static void test_ipv4_fragment_is_described(void)
{
	struct xps_frame out;
	struct frame f;

	put_ethernet(&f, 1, 0x0800);
	put_ipv4(&f, 2, 28 + 24, 0x2000 | 3, 17);
	put_zeros(&f, 24);
	CHECK_EQ(parse(&f, &out), XPS_FRAME_FRAGMENT);
	CHECK_EQ(out.family, 4);
	CHECK(!memcmp(out.src, "\x0a\x4d\0\1\0\0\0\0\0\0\0\0\0\0\0\0", 16));
	CHECK(!memcmp(out.dst, "\x0a\x4d\0\2\0\0\0\0\0\0\0\0\0\0\0\0", 16));
	CHECK_EQ(out.fragment_id, 0x1234);
	CHECK_EQ(out.fragment_offset, 24);
	CHECK_EQ(out.more_fragments, true);
	CHECK_EQ(out.protocol, 17);
	CHECK_EQ(out.payload_offset, 18 + 28);
	CHECK_EQ(out.payload_length, 24);
	put_ethernet(&f, 0, 0x0800);
	put_ipv4(&f, 0, 27, 0x1fff, 17);
	put_zeros(&f, 40); /* padding */
	CHECK_EQ(parse(&f, &out), XPS_FRAME_FRAGMENT);
	CHECK_EQ(out.fragment_offset, 65528);
	CHECK_EQ(out.more_fragments, false);
	CHECK_EQ(out.payload_length, 7);
}

static void test_ipv6_fragment_is_described(void)
{
	struct xps_frame out;
	struct frame f;

	put_ethernet(&f, 0, 0x86dd);
	put_ipv6(&f, 8 + 8 + 24, 0);
	put(&f, "\x2c\0\1\4\0\0\0\0", 8);             /* hop by hop, then fragment */
	put(&f, "\x3c\0\x05\x31\x12\x34\x56\x78", 8); /* then destination */
	put_zeros(&f, 24);
	CHECK_EQ(parse(&f, &out), XPS_FRAME_FRAGMENT);
	CHECK_EQ(out.family, 6);
	CHECK(!memcmp(out.src, frame_src6, 16));
	CHECK(!memcmp(out.dst, frame_dst6, 16));
	CHECK_EQ(out.fragment_id, 0x12345678);
	CHECK_EQ(out.fragment_offset, 0x530);
	CHECK_EQ(out.more_fragments, true);
	CHECK_EQ(out.protocol, 60);
	CHECK_EQ(out.payload_offset, 14 + 40 + 16);
	CHECK_EQ(out.payload_length, 24);
}

static void test_fragments_of_other_protocols_are_not_udp(void)
{
	struct xps_frame out;
	struct frame f;

	put_ethernet(&f, 0, 0x0800);
	put_ipv4(&f, 0, 44, 0x2000, 6);
	put_zeros(&f, 24);
	CHECK_EQ(parse(&f, &out), XPS_FRAME_NOT_UDP);
	put_ethernet(&f, 0, 0x86dd);
	put_ipv6(&f, 32, 44);
	put(&f, "\x06\0\0\x01\0\0\0\x07", 8);
	put_zeros(&f, 24);
	CHECK_EQ(parse(&f, &out), XPS_FRAME_NOT_UDP);
}

static void test_fragment_header_must_be_at_hand_and_fit(void)
{
	struct xps_frame out;
	struct frame f;

	put_ethernet(&f, 0, 0x86dd);
	put_ipv6(&f, 32, 44);
	put(&f, "\x11\0\0\x01\0\0\0\x07", 8);
	put_zeros(&f, 24);
	for (size_t length = 54; length < 62; length++)
		CHECK_EQ(parse_of(&f, length, f.length, &out), XPS_FRAME_TRUNCATED);
	put_ethernet(&f, 0, 0x86dd);
	put_ipv6(&f, 7, 44);
	put(&f, "\x11\0\0\x01\0\0\0\x07", 8);
	CHECK_EQ(parse(&f, &out), XPS_FRAME_BAD_LENGTH);
}

static void test_ipv6_datagram_in_one_fragment_is_whole(void)
{
	struct xps_frame out;
	struct frame f;

	put_ethernet(&f, 0, 0x86dd);
	put_ipv6(&f, 36, 44);
	put(&f, "\x11\0\0\0\0\0\0\x07", 8);
	put_udp(&f, 8888, 28, 20);
	CHECK_EQ(parse(&f, &out), XPS_FRAME_UDP);
	CHECK_EQ(out.payload_offset, 14 + 40 + 8 + 8);
	CHECK_EQ(out.payload_length, 20);
}

/* ---------------------------------------------------------------- captures */

static enum xps_frame_verdict parse_link(const struct frame *f, enum xps_link link, struct xps_frame *out)
{
	uint8_t *exact = malloc(f->length ? f->length : 1);
	enum xps_frame_verdict verdict;

	memcpy(exact, f->bytes, f->length);
	memset(out, 0xee, sizeof(*out));
	verdict = xps_frame_parse_link(out, link, exact, f->length, f->length);
	free(exact);
	return verdict;
}

/* A link header, then a good packet of each family; every prefix of them is refused. */
static void check_link(enum xps_link link, const char *head4, const char *head6, size_t n, unsigned vlans)
{
	struct xps_frame out;
	struct frame f;

	for (int family = 4; family <= 6; family += 2) {
		f.length = 0;
		put(&f, family == 4 ? head4 : head6, n);
		if (family == 4)
			put_ipv4(&f, 0, 48, 0, 17);
		else
			put_ipv6(&f, 28, 17);
		put_udp(&f, 8888, 28, 20);
		CHECK_EQ(parse_link(&f, link, &out), XPS_FRAME_UDP);
		CHECK_EQ(out.family, family);
		CHECK_EQ(out.n_vlans, vlans);
		CHECK_EQ(out.payload_offset, n + (family == 4 ? 28u : 48u));
		CHECK_EQ(out.payload_length, 20);
		while (f.length--) {
			enum xps_frame_verdict cut = parse_link(&f, link, &out);

			CHECK(cut == XPS_FRAME_TRUNCATED || cut == XPS_FRAME_BAD_LENGTH);
			if (!f.length)
				break;
		}
	}
}

static void test_links_of_captures(void)
{
	check_link(XPS_LINK_ETHERNET, "\0\0\0\0\0\0\0\0\0\0\0\0\x08\0", "\0\0\0\0\0\0\0\0\0\0\0\0\x86\xdd", 14, 0);
	check_link(XPS_LINK_RAW, "", "", 0, 0);
	check_link(XPS_LINK_NULL, "\2\0\0\0", "\0\0\0\x0a", 4, 0);
	check_link(XPS_LINK_NULL, "\0\0\0\2", "\x1e\0\0\0", 4, 0);
	check_link(XPS_LINK_SLL, "\0\0\0\1\0\6\0\0\0\0\0\0\0\0\x08\0", "\0\0\0\1\0\6\0\0\0\0\0\0\0\0\x86\xdd", 16, 0);
	check_link(XPS_LINK_SLL, "\0\0\0\1\0\6\0\0\0\0\0\0\0\0\x81\0\0\5\x08\0",
		   "\0\0\0\1\0\6\0\0\0\0\0\0\0\0\x81\0\0\5\x86\xdd", 20, 1);
	check_link(XPS_LINK_SLL2, "\x08\0\0\0\0\0\0\1\0\1\0\6\0\0\0\0\0\0\0\0",
		   "\x86\xdd\0\0\0\0\0\1\0\1\0\6\0\0\0\0\0\0\0\0", 20, 0);
	check_link(XPS_LINK_SLL2, "\x81\0\0\0\0\0\0\1\0\1\0\6\0\0\0\0\0\0\0\0\0\5\x08\0",
		   "\x81\0\0\0\0\0\0\1\0\1\0\6\0\0\0\0\0\0\0\0\0\5\x86\xdd", 24, 1);
}

static void test_link_that_says_no_ip_is_believed(void)
{
	struct xps_frame out;
	struct frame f = { .length = 0 };

	put(&f, "\7\0\0\0", 4);
	put_ipv4(&f, 0, 48, 0, 17);
	put_udp(&f, 8888, 28, 20);
	CHECK_EQ(parse_link(&f, XPS_LINK_NULL, &out), XPS_FRAME_NOT_IP);
	f.bytes[0] = f.bytes[3] = 2;
	CHECK_EQ(parse_link(&f, XPS_LINK_NULL, &out), XPS_FRAME_NOT_IP);
}

static void test_ip_length_of_zero_is_that_of_the_frame_in_captures_only(void)
{
	struct xps_frame out;
	struct frame f;

	put_ethernet(&f, 0, 0x0800);
	put_ipv4(&f, 0, 0, 0, 17);
	put_udp(&f, 8888, 28, 20);
	put_zeros(&f, 4); /* padding */
	CHECK_EQ(parse(&f, &out), XPS_FRAME_BAD_LENGTH);
	CHECK_EQ(parse_link(&f, XPS_LINK_ETHERNET, &out), XPS_FRAME_UDP);
	CHECK_EQ(out.payload_length, 20);
	f.length -= 5; /* no longer all there */
	CHECK_EQ(parse_link(&f, XPS_LINK_ETHERNET, &out), XPS_FRAME_BAD_LENGTH);
	put_ethernet(&f, 0, 0x86dd);
	put_ipv6(&f, 0, 17);
	put_udp(&f, 8888, 28, 20);
	CHECK_EQ(parse(&f, &out), XPS_FRAME_BAD_LENGTH);
	CHECK_EQ(parse_link(&f, XPS_LINK_ETHERNET, &out), XPS_FRAME_UDP);
	CHECK_EQ(out.payload_length, 20);
}

static void test_fragment_whose_length_is_unknown_is_refused(void)
{
	struct xps_frame out;
	struct frame f;

	put_ethernet(&f, 0, 0x0800);
	put_ipv4(&f, 0, 0, 0x2000, 17);
	put_zeros(&f, 24);
	CHECK_EQ(parse_link(&f, XPS_LINK_ETHERNET, &out), XPS_FRAME_BAD_LENGTH);
}

static void test_joined_payload_is_walked_from_its_first_header(void)
{
	struct xps_frame out = { .family = 6, .protocol = 60 };
	struct frame f = { .length = 0 };

	put(&f, "\x11\0\1\4\0\0\0\0", 8); /* destination, then UDP */
	put_udp(&f, 8888, 28, 20);
	CHECK_EQ(xps_frame_parse_joined(&out, f.bytes, f.length), XPS_FRAME_UDP);
	CHECK_EQ(out.family, 6);
	CHECK_EQ(out.dst_port, 8888);
	CHECK_EQ(out.payload_offset, 16);
	CHECK_EQ(out.payload_length, 20);
	out.protocol = 17;
	CHECK_EQ(xps_frame_parse_joined(&out, f.bytes + 8, f.length - 8), XPS_FRAME_UDP);
	CHECK_EQ(xps_frame_parse_joined(&out, f.bytes + 8, f.length - 9), XPS_FRAME_BAD_LENGTH);
	CHECK_EQ(xps_frame_parse_joined(&out, f.bytes + 8, 7), XPS_FRAME_TRUNCATED);
	out.protocol = 6;
	CHECK_EQ(xps_frame_parse_joined(&out, f.bytes, f.length), XPS_FRAME_NOT_UDP);
}

static void test_other_protocols_are_told_apart(void)
{
	struct xps_frame out;
	struct frame f;

	put_ethernet(&f, 0, 0x0800);
	put_ipv4(&f, 0, 48, 0, 6);
	put_zeros(&f, 28);
	CHECK_EQ(parse(&f, &out), XPS_FRAME_NOT_UDP);
	put_ethernet(&f, 0, 0x86dd);
	put_ipv6(&f, 28, 58);
	put_zeros(&f, 28);
	CHECK_EQ(parse(&f, &out), XPS_FRAME_NOT_UDP);
	put_ethernet(&f, 0, 0x0806);
	put_zeros(&f, 46);
	CHECK_EQ(parse(&f, &out), XPS_FRAME_NOT_IP);
}

static void test_ipv6_extension_headers_are_walked_over(void)
{
	struct xps_frame out;
	struct frame f;

	put_ethernet(&f, 0, 0x86dd);
	put_ipv6(&f, 8 + 16 + 24 + 12 + 28, 0);
	put(&f, "\x3c\0\1\4\0\0\0\0", 8);                    /* hop by hop, then destination */
	put(&f, "\x2b\1\1\014\0\0\0\0\0\0\0\0\0\0\0\0", 16); /* destination, then routing */
	put(&f, "\x33\2\4\0", 4), put_zeros(&f, 20);         /* routing, then authentication */
	put(&f, "\x11\1\0\0\0\0\0\1\0\0\0\1", 12);           /* authentication, then UDP */
	put_udp(&f, 8888, 28, 20);
	CHECK_EQ(parse(&f, &out), XPS_FRAME_UDP);
	CHECK_EQ(out.dst_port, 8888);
	CHECK_EQ(out.payload_offset, 14 + 40 + 60 + 8);
	CHECK_EQ(out.payload_length, 20);
	check_prefixes(&f, out.payload_offset);
}

static void test_ipv6_extension_header_must_fit_the_packet(void)
{
	struct xps_frame out;
	struct frame f;

	put_ethernet(&f, 0, 0x86dd);
	put_ipv6(&f, 36, 0);
	put(&f, "\x11\x04\1\4\0\0\0\0", 8); /* 40 bytes, of 36 */
	put_udp(&f, 8888, 28, 20);
	put_zeros(&f, 100);
	CHECK_EQ(parse(&f, &out), XPS_FRAME_BAD_LENGTH);
}

static void test_usual_frame_goes_the_short_way(void)
{
	uint32_t payload_length;
	struct frame f;

	make_ipv4(&f, 0, 0, 8888, 20);
	CHECK(xps_frame_is_usual(f.bytes, f.length, f.length, &payload_length));
	CHECK_EQ(payload_length, 20);
	CHECK(xps_frame_is_usual(f.bytes, 42, f.length, &payload_length)); /* in pieces */
	CHECK(!xps_frame_is_usual(f.bytes, 41, f.length, &payload_length));
	put_zeros(&f, 18); /* padding */
	CHECK(xps_frame_is_usual(f.bytes, f.length, f.length, &payload_length));
	CHECK_EQ(payload_length, 20);
	make_ipv4(&f, 1, 0, 8888, 20);
	CHECK(!xps_frame_is_usual(f.bytes, f.length, f.length, &payload_length));
	make_ipv4(&f, 0, 1, 8888, 20);
	CHECK(!xps_frame_is_usual(f.bytes, f.length, f.length, &payload_length));
}

static void test_usual_frame_with_any_byte_changed_means_what_the_walk_says(void)
{
	struct xps_frame out;
	struct frame f;

	make_ipv4(&f, 0, 0, 8888, 20);
	for (size_t at = 0; at < XPS_FRAME_USUAL_OFFSET; at++) {
		const uint8_t was = f.bytes[at];

		for (unsigned value = 0; value < 256; value++) {
			f.bytes[at] = (uint8_t)value;
			parse(&f, &out);
		}
		f.bytes[at] = was;
	}
}

int main(void)
{
	test_ipv4_datagram_is_found();
	test_ipv6_datagram_is_found();
	test_up_to_two_vlan_tags_are_walked_over();
	test_ipv4_options_are_walked_over();
	test_ethernet_padding_is_not_payload();
	test_empty_datagram_is_a_datagram();
	test_every_prefix_of_a_good_frame_is_refused();
	test_pieces_beyond_the_first_count_for_the_length();
	test_total_below_length_is_believed();
	test_ipv4_total_length_must_fit_the_frame();
	test_ipv4_total_length_must_hold_its_header();
	test_ipv4_header_length_must_be_at_least_five_words();
	test_ip_version_must_be_that_of_the_ethernet_type();
	test_udp_length_must_be_what_ip_leaves();
	test_udp_length_below_its_header_is_refused_even_if_ip_agrees();
	test_fragments_are_told_apart();
	test_ipv4_fragment_is_described();
	test_ipv6_fragment_is_described();
	test_fragments_of_other_protocols_are_not_udp();
	test_fragment_header_must_be_at_hand_and_fit();
	test_ipv6_datagram_in_one_fragment_is_whole();
	test_links_of_captures();
	test_link_that_says_no_ip_is_believed();
	test_ip_length_of_zero_is_that_of_the_frame_in_captures_only();
	test_fragment_whose_length_is_unknown_is_refused();
	test_joined_payload_is_walked_from_its_first_header();
	test_other_protocols_are_told_apart();
	test_ipv6_extension_headers_are_walked_over();
	test_ipv6_extension_header_must_fit_the_packet();
	test_usual_frame_goes_the_short_way();
	test_usual_frame_with_any_byte_changed_means_what_the_walk_says();
	return 0;
}
