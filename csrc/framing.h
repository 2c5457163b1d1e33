/* SPDX-License-Identifier: Apache-2.0 */
/*
 * framing - where packets begin and end in a stream of bytes. It looks at the bytes at hand and says what they begin
 * with: a packet, bytes to skip, or something of which more is needed. It keeps no bytes and knows no socket.
 *
 * A packet tells its length: that of the header, and the payload length in it. Where no packet begins, eight bytes are
 * skipped, and eight more, until one does; so a packet is not found at a distance that is no multiple of eight. A packet
 * that is not wanted but whose length is known (too long, an item is missing, payload beyond the end of its heap) is
 * skipped as a whole, and need not be at hand for that.
 */
#pragma once

#include "packet.h"

/* Initialise with max_size; the rest is zero. */
struct xps_framing {
	uint64_t max_size; /* packets that are longer are skipped, bytes */

	uint64_t at;   /* bytes of the stream before those at hand */
	uint64_t skip; /* bytes to come of a packet that is not wanted */
	uint64_t need; /* until so many bytes are at hand there is nothing to look at */
	bool lost;     /* no packet began at the last place looked at */
	/*
	 * [at % 8][bytes of a heap address]: no item pointer between here and there is a payload length. A header of
	 * 65,535 items could begin in every eight bytes; this is why they are not all read again for each.
	 */
	uint64_t clear[8][8];
};

/* What the bytes at hand begin with. */
struct xps_piece {
	uint64_t length; /* bytes of it, all at hand; 0: more are needed */
	int stat; /* of what is to be skipped: enum xps_stat that counts why; 0: a packet, or the reason was told before */
	bool packet; /* a whole packet */
};

/*
 * Look at the `n` bytes that follow the pieces returned before. `packet` is filled for a whole packet. Once
 * xps_framing_room() bytes are at hand there always is a piece.
 */
struct xps_piece xps_framing_next(struct xps_framing *framing, struct xps_packet *packet, const uint8_t *data,
				  size_t n);
/*
 * The stream is at its end and `n` bytes are left, of which xps_framing_next() needs more. Returns the enum xps_stat
 * that counts what they are, 0 if there is nothing to be counted.
 */
int xps_framing_end(const struct xps_framing *framing, const uint8_t *data, size_t n);
/* The most bytes that have to be at hand at a time. */
static inline uint64_t xps_framing_room(uint64_t max_size)
{
	return xps_max_u64(max_size, XPS_MAX_HEADER);
}
