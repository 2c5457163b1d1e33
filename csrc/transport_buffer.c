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

#define VIEWS_PER_PUSH 8
/*
 * Packets, and about how many bytes, between two turns of the other readers on the loop: 50 to 200 us. At the end of a
 * turn the loop asks the kernel for news, and users are woken, which costs as much as hundreds of small packets.
 */
#define VIEWS_PER_POLL 2048
#define BYTES_PER_POLL (UINT64_C(2) << 20)
/* How far ahead of the packet at work packets are fetched into the cache, if they are all as long as this one. */
#define AHEAD 8

struct buffer_reader {
	struct xps_reader base;
	const uint8_t *next, *end;
	struct xps_view views[VIEWS_PER_PUSH];
	struct xps_packet packets[VIEWS_PER_PUSH];
	uint32_t n_views, taken; /* views made, and those of them that the stream has taken */
	bool begun;
	int bad_stat; /* why the packet at `next` cannot be decoded, 0: it can */
};

/* Decode the packet at `data`. Returns its bytes, or 0 if it cannot be decoded or is not all there. */
static uint32_t decode(struct buffer_reader *buffer, struct xps_packet *packet, const uint8_t *data, size_t left)
{
	uint64_t length;

	buffer->bad_stat = xps_packet_decode(packet, data, left);
	if (buffer->bad_stat)
		return 0;
	length = packet->header_size + packet->payload_length;
	if (length > left || length > UINT32_MAX) {
		buffer->bad_stat = XPS_STAT_SHORT_PACKET;
		return 0;
	}
	return (uint32_t)length;
}

static void make_views(struct buffer_reader *buffer)
{
	buffer->n_views = buffer->taken = 0;
	while (buffer->n_views < VIEWS_PER_PUSH && buffer->next < buffer->end) {
		struct xps_packet *packet = &buffer->packets[buffer->n_views];
		uint32_t length = decode(buffer, packet, buffer->next, (size_t)(buffer->end - buffer->next));
		const uint8_t *ahead;

		if (!length)
			break;
		ahead = buffer->next + AHEAD * (size_t)length;
		if (length < XPS_FETCH_STEP) { /* now, because soon comes too soon */
			xps_fetch(ahead, length);
			ahead = NULL;
		}
		buffer->views[buffer->n_views++] =
			(struct xps_view){ .data = buffer->next, .length = length, .decoded = packet, .ahead = ahead };
		buffer->next += length;
	}
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
	for (int i = 0; i < VIEWS_PER_POLL / VIEWS_PER_PUSH; i++) {
		if (i > 0 && buffer->next >= enough && buffer->next < buffer->end)
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
