// SPDX-License-Identifier: Apache-2.0
/*
 * Reads back-to-back packets from memory. The whole buffer is one batch. The first packet that cannot be decoded ends
 * the stream, because where the next one begins is not known.
 */
#include <errno.h>
#include <stdlib.h>

#include "copy.h"
#include "packet.h"
#include "transport.h"

/* Packets, and about how many bytes, that are found before they are pushed. */
#define VIEWS_PER_PUSH 32
#define BYTES_PER_PUSH (8 << 10)
/*
 * Packets, and about how many bytes, between two turns of the other readers on the loop: 50 to 200 us. At the end of a
 * turn the loop asks the kernel for news, and users are woken, which costs as much as hundreds of small packets.
 */
#define VIEWS_PER_POLL 4096
#define BYTES_PER_POLL (UINT64_C(2) << 20)
/* How far ahead of the packet at work bytes are fetched into the cache. */
#define BYTES_AHEAD (8 << 10)

struct buffer_reader {
	struct xps_reader base;
	const uint8_t *next, *end;
	struct xps_view views[VIEWS_PER_PUSH];
	struct xps_packet packets[VIEWS_PER_PUSH];
	uint32_t n_views, taken; /* views made, and those of them that the stream has taken */
	bool begun;
	int bad_stat; /* why the packet at `next` cannot be decoded, 0: it can */
};

/*
 * The last packet, if it was a usual one without items, and where it lies; else NULL. The compiler keeps it in registers,
 * where the next packet does not have to wait for its length to come back from memory.
 */
struct usual {
	struct xps_packet packet;
	const uint8_t *data;
};

/* Decode the packet at `data`. Returns its bytes, or 0 if it cannot be decoded or is not all there. */
static inline uint64_t decode(struct buffer_reader *buffer, struct usual *usual, struct xps_packet *packet,
			      const uint8_t *data, size_t left)
{
	uint64_t length;

	if (likely((usual->data && xps_packet_decode_like(&usual->packet, usual->data, data, left)) ||
		   xps_packet_decode_usual(&usual->packet, data, left))) {
		usual->data = usual->packet.n_pointers ? NULL : data;
		length = usual->packet.header_size + usual->packet.payload_length;
		*packet = usual->packet;
	} else {
		usual->data = NULL;
		buffer->bad_stat = xps_packet_decode_any(packet, data, left);
		if (buffer->bad_stat)
			return 0;
		length = packet->header_size + packet->payload_length;
	}
	if (unlikely(length > left || length > UINT32_MAX)) {
		buffer->bad_stat = XPS_STAT_SHORT_PACKET;
		return 0;
	}
	return length;
}

static void make_views(struct buffer_reader *buffer)
{
	const uint8_t *const begin = buffer->next, *const end = buffer->end, *next = begin;
	struct usual usual = { .data = NULL };
	uint32_t n = 0;

	while (n < VIEWS_PER_PUSH && next < end && next - begin < BYTES_PER_PUSH) {
		const uint64_t length = decode(buffer, &usual, &buffer->packets[n], next, (size_t)(end - next));
		const uint8_t *ahead;

		if (!length)
			break;
		ahead = next + BYTES_AHEAD;
		if (length < XPS_FETCH_STEP) { /* now, because soon comes too soon */
			xps_fetch(ahead, length);
			ahead = NULL;
		}
		buffer->views[n] = (struct xps_view){
			.data = next, .length = (uint32_t)length, .decoded = &buffer->packets[n], .ahead = ahead
		};
		next += length;
		n++;
	}
	buffer->next = next;
	buffer->n_views = n;
	buffer->taken = 0;
}

static enum xps_poll finish(struct buffer_reader *buffer)
{
	if (buffer->bad_stat && !xps_reader_ended(&buffer->base))
		xps_reader_count(&buffer->base, buffer->bad_stat, 1);
	if (buffer->base.batch_packets)
		xps_batch_end(&buffer->base);
	return XPS_POLL_END;
}

static enum xps_poll buffer_poll(struct xps_reader *reader)
{
	struct buffer_reader *buffer = XPS_CONTAINER_OF(reader, struct buffer_reader, base);

	const uint8_t *enough = buffer->next + xps_min_u64(BYTES_PER_POLL, (uint64_t)(buffer->end - buffer->next));

	if (!buffer->begun) {
		buffer->begun = true;
		xps_batch_begin(reader);
	}
	/* Whoever has come to the end says so in the same turn: the next reader's packets come after it. */
	for (uint32_t n = 0; n < VIEWS_PER_POLL; n += buffer->n_views) {
		if (n > 0 && buffer->next >= enough && buffer->next < buffer->end)
			return XPS_POLL_AGAIN;
		if (buffer->taken == buffer->n_views)
			make_views(buffer);
		if (buffer->n_views == 0)
			return finish(buffer);
		buffer->taken += xps_batch_push(reader, buffer->views + buffer->taken, buffer->n_views - buffer->taken);
		if (xps_reader_ended(reader))
			return finish(buffer);
		if (buffer->taken < buffer->n_views)
			return XPS_POLL_BLOCKED;
	}
	return XPS_POLL_AGAIN;
}

static void buffer_close(struct xps_reader *reader)
{
	free(XPS_CONTAINER_OF(reader, struct buffer_reader, base));
}

int xps_add_buffer_reader(struct xps_stream *stream, const uint8_t *data, uint64_t length)
{
	static const struct xps_reader_ops ops = { .name = "buffer", .poll = buffer_poll, .close = buffer_close };
	struct buffer_reader *buffer = calloc(1, sizeof(*buffer));
	int err;

	if (!buffer)
		return -ENOMEM;
	buffer->base.ops = &ops;
	buffer->next = data;
	buffer->end = length ? data + length : data; /* NULL plus nothing is undefined */
	err = xps_reader_attach(stream, &buffer->base);
	if (err)
		free(buffer);
	return err == -EPIPE ? 0 : err;
}
