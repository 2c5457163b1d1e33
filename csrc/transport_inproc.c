// SPDX-License-Identifier: Apache-2.0
/*
 * Reads packets that threads of this process put into a queue.
 *
 * A reader takes one packet, pushes it, and frees it. If the stream is blocked the packet goes back to where it was, so
 * that a stream which is not being read never keeps a packet from another that is. Nor does one that ends: what it has
 * not taken stays in the queue for whoever reads it next.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bits.h"
#include "inproc_queue.h"
#include "transport.h"

/* Packets between two turns of the other readers on the loop. */
#define PACKETS_PER_POLL 64

struct inproc_reader {
	struct xps_reader base;
	struct xps_reader_watch watch;
	struct xps_inproc_queue *queue;
};

/* One packet is one batch. Returns false if the stream did not take it. */
static bool push(struct xps_reader *reader, const struct xps_inproc_packet *packet)
{
	const struct xps_view view = { .data = packet->data, .length = packet->length };

	xps_batch_begin(reader);
	if (!xps_batch_push(reader, &view, 1))
		return false;
	xps_batch_end(reader);
	return true;
}

static enum xps_poll inproc_poll(struct xps_reader *reader)
{
	struct xps_inproc_queue *queue = XPS_CONTAINER_OF(reader, struct inproc_reader, base)->queue;

	/* A stream that is being stopped while it is blocked asks for what we have in hand: nothing, ever. */
	if (reader->blocked)
		return XPS_POLL_BLOCKED;
	for (int i = 0; i < PACKETS_PER_POLL; i++) {
		bool ended;
		struct xps_inproc_packet *packet = xps_inproc_queue_take(queue, &ended);

		if (!packet)
			return ended ? XPS_POLL_END : XPS_POLL_WAIT;
		if (!push(reader, packet)) {
			xps_inproc_queue_put_back(queue, packet);
			return XPS_POLL_BLOCKED;
		}
		free(packet);
		if (xps_reader_ended(reader))
			return XPS_POLL_END;
	}
	return XPS_POLL_AGAIN;
}

static void free_reader(struct inproc_reader *inproc)
{
	if (inproc->watch.watch.fd >= 0)
		close(inproc->watch.watch.fd);
	xps_inproc_queue_free(inproc->queue);
	free(inproc);
}

static void inproc_close(struct xps_reader *reader)
{
	free_reader(XPS_CONTAINER_OF(reader, struct inproc_reader, base));
}

int xps_add_inproc_reader(struct xps_stream *stream, struct xps_inproc_queue *queue, struct xps_fail *fail)
{
	static const struct xps_reader_ops ops = { .name = "inproc", .poll = inproc_poll, .close = inproc_close };
	struct inproc_reader *inproc;
	int err;

	if (!xps_inproc_queue_is_ours(queue))
		return xps_fail_set(fail, ECHILD, "read queue",
				    "the queue was made before a fork and belongs to the parent process");
	inproc = calloc(1, sizeof(*inproc));
	if (!inproc)
		return xps_fail_set(fail, ENOMEM, "allocate reader", "no memory");
	xps_inproc_queue_ref(queue);
	inproc->queue = queue;
	inproc->base.ops = &ops;
	inproc->base.watches = &inproc->watch;
	inproc->base.n_watches = 1;
	inproc->watch.watch.fd = err = xps_inproc_queue_dup_fd(queue);
	if (err < 0) {
		xps_fail_set(fail, -err, "read queue", "cannot duplicate a descriptor: %s", strerror(-err));
		goto free_reader;
	}
	err = xps_reader_attach(stream, &inproc->base);
	if (!err)
		return 0;
	if (err == -EPIPE)
		err = 0;
	else
		xps_fail_set(fail, -err, "read queue", "cannot watch a descriptor: %s", strerror(-err));

free_reader:
	free_reader(inproc);
	return err;
}
