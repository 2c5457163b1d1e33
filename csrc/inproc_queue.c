// SPDX-License-Identifier: Apache-2.0
/*
 * How it works
 *
 * The queue is a list under a lock. Its eventfd is raised by the first packet that comes while it is down, and lowered
 * by the reader that finds the list empty; so while packets keep coming and are being taken there is no system call at
 * all. It is read and written with the lock held, hence it is up whenever there are packets. The end raises it for
 * good: every reader sees that, whoever took the last packet.
 */
#include "inproc_queue.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "bits.h"
#include "fail.h"
#include "process.h"

struct xps_inproc_queue {
	uint32_t process;
	uint32_t references; /* atomic */
	int fd;              /* eventfd */

	pthread_mutex_t lock; /* guards all below; never held over anything that waits */
	struct xps_inproc_packet *first, **last;
	bool signalled; /* fd is up */
	bool stopped;
};

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

void xps_inproc_queue_ref(struct xps_inproc_queue *queue)
{
	__atomic_add_fetch(&queue->references, 1, __ATOMIC_RELAXED);
}

void xps_inproc_queue_free(struct xps_inproc_queue *queue)
{
	if (!queue || __atomic_sub_fetch(&queue->references, 1, __ATOMIC_ACQ_REL) != 0)
		return;
	while (queue->first) {
		struct xps_inproc_packet *packet = queue->first;

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

struct xps_inproc_packet *xps_inproc_packet_new(const struct iovec *slices, uint32_t n, uint64_t length)
{
	struct xps_inproc_packet *packet = malloc(sizeof(*packet) + length);
	uint8_t *to;

	if (!packet)
		return NULL;
	packet->next = NULL;
	packet->length = (uint32_t)length;
	to = packet->data;
	for (uint32_t i = 0; i < n; i++) {
		if (slices[i].iov_len) /* NULL is no place to copy from */
			memcpy(to, slices[i].iov_base, slices[i].iov_len);
		to += slices[i].iov_len;
	}
	return packet;
}

int xps_inproc_queue_append(struct xps_inproc_queue *queue, struct xps_inproc_packet *first,
			    struct xps_inproc_packet *last)
{
	bool stopped;

	if (!xps_process_is(queue->process))
		return -ECHILD;
	pthread_mutex_lock(&queue->lock);
	stopped = queue->stopped;
	if (!stopped) {
		*queue->last = first;
		queue->last = &last->next;
		raise_fd(queue);
	}
	pthread_mutex_unlock(&queue->lock);
	return stopped ? -EPIPE : 0;
}

int xps_inproc_queue_add(struct xps_inproc_queue *queue, const uint8_t *packet, uint64_t length)
{
	const struct iovec slice = { .iov_base = (void *)packet, .iov_len = length };
	struct xps_inproc_packet *copy;
	int err;

	if (!xps_process_is(queue->process))
		return -ECHILD;
	if (length > UINT32_MAX)
		return -EMSGSIZE;
	copy = xps_inproc_packet_new(&slice, 1, length);
	if (!copy)
		return -ENOMEM;
	err = xps_inproc_queue_append(queue, copy, copy);
	if (err)
		free(copy);
	return err;
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

struct xps_inproc_packet *xps_inproc_queue_take(struct xps_inproc_queue *queue, bool *ended)
{
	struct xps_inproc_packet *packet;

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

void xps_inproc_queue_put_back(struct xps_inproc_queue *queue, struct xps_inproc_packet *packet)
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

bool xps_inproc_queue_is_ours(const struct xps_inproc_queue *queue)
{
	return xps_process_is(queue->process);
}

int xps_inproc_queue_dup_fd(struct xps_inproc_queue *queue)
{
	int fd = fcntl(queue->fd, F_DUPFD_CLOEXEC, 0);

	return fd < 0 ? -errno : fd;
}
