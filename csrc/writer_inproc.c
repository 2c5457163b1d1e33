// SPDX-License-Identifier: Apache-2.0
/* Packets into queues of this process, one for each substream. The queues grow, so there always is room. */
#include <errno.h>
#include <stdlib.h>

#include "bits.h"
#include "inproc_queue.h"
#include "writer.h"

struct inproc_writer {
	struct xps_writer base;
	struct xps_inproc_queue *queues[];
};

/* Packets that go to one queue, in a chain. */
struct chain {
	struct xps_inproc_packet *first, *last;
	uint32_t n;
};

/* Copy the first packets, as far as they go to the same queue and there is memory. */
static struct chain copy_packets(const struct xps_write *packets, uint32_t n)
{
	struct chain chain = { 0 };
	struct xps_inproc_packet **link = &chain.first;

	for (; chain.n < n && packets[chain.n].substream == packets[0].substream; chain.n++) {
		const struct xps_out_packet *packet = &packets[chain.n].packet;
		struct xps_inproc_packet *copy =
			xps_inproc_packet_new(packet->slices, packet->n_slices, packet->length);

		if (!copy)
			break;
		*link = chain.last = copy;
		link = &copy->next;
	}
	return chain;
}

static void free_chain(struct xps_inproc_packet *packet)
{
	while (packet) {
		struct xps_inproc_packet *next = packet->next;

		free(packet);
		packet = next;
	}
}

static int inproc_write(struct xps_writer *writer, const struct xps_write *packets, uint32_t n)
{
	struct inproc_writer *inproc = XPS_CONTAINER_OF(writer, struct inproc_writer, base);
	struct chain chain = copy_packets(packets, n);
	int err;

	if (!chain.n)
		return -ENOMEM;
	err = xps_inproc_queue_append(inproc->queues[packets[0].substream], chain.first, chain.last);
	if (!err)
		return (int)chain.n;
	free_chain(chain.first);
	return err == -EPIPE ? -ECANCELED : err; /* the queue has been stopped */
}

static void inproc_close(struct xps_writer *writer)
{
	struct inproc_writer *inproc = XPS_CONTAINER_OF(writer, struct inproc_writer, base);

	for (uint32_t i = 0; i < writer->n_substreams; i++)
		xps_inproc_queue_free(inproc->queues[i]);
	free(inproc);
}

struct xps_sender *xps_inproc_sender_new(struct xps_pool *pool, const struct xps_sender_config *config,
					 struct xps_inproc_queue *const *queues, uint32_t n_queues,
					 struct xps_fail *fail)
{
	static const struct xps_writer_ops ops = {
		.name = "inproc", .write = inproc_write, .close = inproc_close, .forget = inproc_close
	};
	struct inproc_writer *inproc = calloc(1, sizeof(*inproc) + n_queues * sizeof(inproc->queues[0]));

	if (!inproc) {
		xps_fail_set(fail, ENOMEM, "make stream", "no memory");
		return NULL;
	}
	for (uint32_t i = 0; i < n_queues; i++) {
		xps_inproc_queue_ref(queues[i]);
		inproc->queues[i] = queues[i];
	}
	inproc->base = (struct xps_writer){ .ops = &ops, .fd = -1, .n_substreams = n_queues, .batch = 64 };
	return xps_sender_new(pool, config, &inproc->base, fail);
}
