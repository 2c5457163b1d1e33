// SPDX-License-Identifier: Apache-2.0
/*
 * Proves that in any stream of bytes, however it is cut into pieces, the framing finds the packets that a second, plain
 * framing finds in the whole stream, accounts for every byte, reads none beyond those at hand, and never needs more of
 * them than it says.
 */
#include <string.h>

#include "framing.h"
#include "slow_packet.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MAX_PACKETS = 4096 };

struct found {
	uint64_t n_packets;
	uint64_t places[MAX_PACKETS], lengths[MAX_PACKETS];
	uint64_t skipped;
	uint64_t counts[XPS_N_STATS];
};

static void note_packet(struct found *found, uint64_t at, uint64_t length)
{
	if (found->n_packets < MAX_PACKETS) {
		found->places[found->n_packets] = at;
		found->lengths[found->n_packets] = length;
	}
	found->n_packets++;
}

/* ---------------------------------------------------------------- the plain framing: all bytes at hand, one step a call */

/* Returns whether there is one; of several the last counts. */
static bool slow_length(const uint8_t *data, size_t header, uint64_t *length)
{
	bool have = false;

	for (size_t i = 8; i < header; i += 8) {
		const struct slow_item item = slow_item_at(data + i, 8u * data[3]);

		if (item.immediate && item.id == 4) {
			*length = item.value;
			have = true;
		}
	}
	return have;
}

static void slow_framing(struct found *found, const uint8_t *data, size_t size, uint64_t max_size)
{
	static struct slow_packet packet;
	bool lost = false;

	for (size_t at = 0; at < size;) {
		const size_t left = size - at;
		int stat = slow_decode(&packet, data + at, left);
		const size_t header = left < 8 ? 0 : 8 + 8 * (data[at + 6] * (size_t)256 + data[at + 7]);
		uint64_t length = 0;

		if (stat == XPS_STAT_TRUNCATED_HEADER) {
			if (!lost || left >= 8)
				found->counts[stat]++;
			found->skipped += left;
			return;
		}
		if (stat == XPS_STAT_BAD_MAGIC || stat == XPS_STAT_BAD_FLAVOUR ||
		    !slow_length(data + at, header, &length)) {
			if (!lost)
				found->counts[stat]++;
			lost = true;
			found->skipped += 8;
			at += 8;
			continue;
		}
		lost = false;
		length += header;
		if (length > max_size)
			stat = XPS_STAT_TRUNCATED_DATAGRAM;
		else if (!stat && length > left)
			stat = XPS_STAT_SHORT_PACKET;
		if (stat) {
			found->counts[stat]++;
			found->skipped += xps_min_u64(length, left);
		} else {
			note_packet(found, at, length);
		}
		at += xps_min_u64(length, left);
	}
}

/* ---------------------------------------------------------------- the framing under test, a piece at a time */

static void check_packet(const struct xps_packet *packet, const uint8_t *data, uint64_t length)
{
	static struct slow_packet slow;

	EXPECT(slow_decode(&slow, data, length) == 0);
	EXPECT(packet->header_size == slow.header && packet->payload_length == slow.length);
	EXPECT(packet->heap_cnt == slow.cnt && packet->payload_offset == slow.offset);
	EXPECT(slow.header + slow.length == length);
}

/* Everything that can be cut off the `n` bytes at hand, which begin at byte `at` of the stream. Returns their number. */
static size_t cut_off(struct xps_framing *framing, struct found *found, const uint8_t *data, size_t n, uint64_t at)
{
	struct xps_packet packet;
	size_t done = 0;

	for (;;) {
		const struct xps_piece piece = xps_framing_next(framing, &packet, data + done, n - done);

		EXPECT(piece.length <= n - done);
		if (!piece.length)
			return done;
		if (piece.packet) {
			check_packet(&packet, data + done, piece.length);
			note_packet(found, at + done, piece.length);
		} else {
			found->skipped += piece.length;
			if (piece.stat)
				found->counts[piece.stat]++;
		}
		done += piece.length;
	}
}

/* The bytes at hand lie in memory of exactly their size, so that a sanitizer sees a read beyond them. */
static void framing_in_pieces(struct found *found, const uint8_t *data, size_t size, uint64_t max_size, uint32_t seed)
{
	struct xps_framing framing = { .max_size = max_size };
	size_t at = 0, end = 0;

	while (end < size) {
		uint8_t *hand;

		seed = seed * 1664525 + 1013904223;
		/* From a byte at a time to everything at once. */
		end += 1 + (seed >> 8) % (UINT64_C(1) << (seed >> 28));
		if (end > size)
			end = size;
		hand = malloc(end - at);
		EXPECT(hand);
		memcpy(hand, data + at, end - at);
		at += cut_off(&framing, found, hand, end - at, at);
		free(hand);
		EXPECT(end - at < xps_framing_room(max_size));
	}
	if (xps_framing_end(&framing, data + at, size - at))
		found->counts[xps_framing_end(&framing, data + at, size - at)]++;
	found->skipped += size - at;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct found slow, quick;
	uint64_t max_size;

	if (size < 5)
		return 0;
	/* Packets of up to 8, 16, ... bytes. */
	max_size = UINT64_C(8) << (data[0] % 16);
	memset(&slow, 0, sizeof(slow));
	memset(&quick, 0, sizeof(quick));
	slow_framing(&slow, data + 5, size - 5, max_size);
	framing_in_pieces(&quick, data + 5, size - 5, max_size, xps_load_be32(data + 1));
	EXPECT(memcmp(&slow, &quick, sizeof(slow)) == 0);
	return 0;
}
