// SPDX-License-Identifier: Apache-2.0
/*
 * Reads packets that threads of this process put into a queue.
 *
 * How it works
 *
 * The queue is a list under a lock. Its eventfd is raised by the first packet that comes while it is down, and lowered
 * by the reader that finds the list empty; so while packets keep coming and are being taken there is no system call at
 * all. It is read and written with the lock held, hence it is up whenever there are packets. The end raises it for
 * good: every reader sees that, whoever took the last packet. Each reader watches a duplicate of its own, because one
 * epoll does not take one descriptor twice.
 *
 * A reader takes one packet, pushes it, and frees it. If the stream is blocked the packet goes back to where it was, so
 * that a stream which is not being read never keeps a packet from another that is. Nor does one that ends: what it has
 * not taken stays in the queue for whoever reads it next.
 *
 * Threads: the queue's functions are for any thread, the reader's as in transport.h.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "bits.h"
#include "process.h"
#include "transport.h"

/* Packets between two turns of the other readers on the loop. */
#define PACKETS_PER_POLL 64

struct packet {
	struct packet *next;
	uint32_t length;
	uint8_t data[];
};

struct xps_inproc_queue {
	uint32_t process;
	uint32_t references; /* atomic */
	int fd;              /* eventfd */

	pthread_mutex_t lock; /* guards all below; never held over anything that waits */
	struct packet *first, **last;
	bool signalled; /* fd is up */
	bool stopped;
};

/* ---------------------------------------------------------------- the queue */

struct xps_inproc_queue *xps_inproc_queue_new(struct xps_fail *fail)
{
	struct xps_inproc_queue *queue = calloc(1, sizeof(*queue));

	if (!queue) {
		xps_fail_set(fail, ENOMEM, "make queue", "no memory");
		return NULL;
	}
	queue->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (queue->fd < 0) {
		xps_fail_set(fail, errno, "make queue", "eventfd: %s", strerror(errno));
		free(queue);
		return NULL;
	}
	queue->process = xps_process();
	queue->references = 1;
	queue->last = &queue->first;
	pthread_mutex_init(&queue->lock, NULL);
	return queue;
}

static void ref_queue(struct xps_inproc_queue *queue)
{
	__atomic_add_fetch(&queue->references, 1, __ATOMIC_RELAXED);
}

void xps_inproc_queue_free(struct xps_inproc_queue *queue)
{
	if (!queue || __atomic_sub_fetch(&queue->references, 1, __ATOMIC_ACQ_REL) != 0)
		return;
	while (queue->first) {
		struct packet *packet = queue->first;

		queue->first = packet->next;
		free(packet);
	}
	close(queue->fd);
	pthread_mutex_destroy(&queue->lock);
	free(queue);
}

/* Lock held. */
static void raise_fd(struct xps_inproc_queue *queue)
{
	if (!queue->signalled)
		eventfd_write(queue->fd, 1);
	queue->signalled = true;
}

/* Lock held, the queue is empty and not stopped. */
static void lower_fd(struct xps_inproc_queue *queue)
{
	eventfd_t value;

	if (queue->signalled)
		eventfd_read(queue->fd, &value);
	queue->signalled = false;
}

int xps_inproc_queue_add(struct xps_inproc_queue *queue, const uint8_t *packet, uint64_t length)
{
	struct packet *copy;
	bool stopped;

	if (!xps_process_is(queue->process))
		return -ECHILD;
	if (length > UINT32_MAX)
		return -EMSGSIZE;
	copy = malloc(sizeof(*copy) + length);
	if (!copy)
		return -ENOMEM;
	copy->next = NULL;
	copy->length = (uint32_t)length;
	if (length) /* NULL is no place to copy from */
		memcpy(copy->data, packet, length);

	pthread_mutex_lock(&queue->lock);
	stopped = queue->stopped;
	if (!stopped) {
		*queue->last = copy;
		queue->last = &copy->next;
		raise_fd(queue);
	}
	pthread_mutex_unlock(&queue->lock);
	if (stopped)
		free(copy);
	return stopped ? -EPIPE : 0;
}

void xps_inproc_queue_stop(struct xps_inproc_queue *queue)
{
	if (!xps_process_is(queue->process))
		return;
	pthread_mutex_lock(&queue->lock);
	queue->stopped = true;
	raise_fd(queue);
	pthread_mutex_unlock(&queue->lock);
}

/* The next packet, which is the caller's now. NULL: there is none, and whether there will be is in `ended`. */
static struct packet *take(struct xps_inproc_queue *queue, bool *ended)
{
	struct packet *packet;

	pthread_mutex_lock(&queue->lock);
	packet = queue->first;
	if (packet) {
		queue->first = packet->next;
		if (!queue->first)
			queue->last = &queue->first;
	} else if (!queue->stopped) {
		lower_fd(queue);
	}
	*ended = queue->stopped;
	pthread_mutex_unlock(&queue->lock);
	return packet;
}

/* Undo take(), as if it had not been. */
static void put_back(struct xps_inproc_queue *queue, struct packet *packet)
{
	pthread_mutex_lock(&queue->lock);
	packet->next = queue->first;
	if (!queue->first)
		queue->last = &packet->next;
	queue->first = packet;
	/* Others may have looked in the meantime. */
	raise_fd(queue);
	pthread_mutex_unlock(&queue->lock);
}

/* ---------------------------------------------------------------- the reader */

struct inproc_reader {
	struct xps_reader base;
	struct xps_reader_watch watch;
	struct xps_inproc_queue *queue;
};

/* One packet is one batch. Returns false if the stream did not take it. */
static bool push(struct xps_reader *reader, const struct packet *packet)
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
		struct packet *packet = take(queue, &ended);

		if (!packet)
			return ended ? XPS_POLL_END : XPS_POLL_WAIT;
		if (!push(reader, packet)) {
			put_back(queue, packet);
			return XPS_POLL_BLOCKED;
		}
		free(packet);
		if (xps_stream_ended(reader->stream))
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

	if (!xps_process_is(queue->process))
		return xps_fail_set(fail, ECHILD, "read queue",
				    "the queue was made before a fork and belongs to the parent process");
	inproc = calloc(1, sizeof(*inproc));
	if (!inproc)
		return xps_fail_set(fail, ENOMEM, "allocate reader", "no memory");
	ref_queue(queue);
	inproc->queue = queue;
	inproc->base.ops = &ops;
	inproc->base.watches = &inproc->watch;
	inproc->base.n_watches = 1;
	inproc->watch.watch.fd = fcntl(queue->fd, F_DUPFD_CLOEXEC, 0);
	if (inproc->watch.watch.fd < 0) {
		err = xps_fail_set(fail, errno, "read queue", "cannot duplicate a descriptor: %s", strerror(errno));
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
