// SPDX-License-Identifier: Apache-2.0
/* Packets one after the other in memory, which doubles whenever it is full. */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "bits.h"
#include "writer.h"

#define FIRST_CAPACITY 4096

struct bytes_writer {
	struct xps_writer base;
	pthread_mutex_t lock; /* guards all below: the user may look while a worker is sending */
	uint8_t *data;
	uint64_t length, capacity;
};

/* Lock held. */
static int make_room(struct bytes_writer *bytes, uint64_t more)
{
	uint64_t capacity = bytes->capacity ? bytes->capacity : FIRST_CAPACITY;
	uint8_t *data;

	while (capacity - bytes->length < more)
		capacity *= 2;
	if (capacity == bytes->capacity)
		return 0;
	data = realloc(bytes->data, capacity);
	if (!data)
		return -ENOMEM;
	bytes->data = data;
	bytes->capacity = capacity;
	return 0;
}

/* Lock held. */
static int append(struct bytes_writer *bytes, const struct xps_out_packet *packet)
{
	int err = make_room(bytes, packet->length);

	if (err)
		return err;
	for (uint32_t i = 0; i < packet->n_slices; i++) {
		memcpy(bytes->data + bytes->length, packet->slices[i].iov_base, packet->slices[i].iov_len);
		bytes->length += packet->slices[i].iov_len;
	}
	return 0;
}

static int bytes_write(struct xps_writer *writer, const struct xps_write *packets, uint32_t n)
{
	struct bytes_writer *bytes = XPS_CONTAINER_OF(writer, struct bytes_writer, base);
	uint32_t done;
	int err = 0;

	pthread_mutex_lock(&bytes->lock);
	for (done = 0; done < n; done++) {
		err = append(bytes, &packets[done].packet);
		if (err)
			break;
	}
	pthread_mutex_unlock(&bytes->lock);
	return done ? (int)done : err;
}

static void bytes_close(struct xps_writer *writer)
{
	struct bytes_writer *bytes = XPS_CONTAINER_OF(writer, struct bytes_writer, base);

	pthread_mutex_destroy(&bytes->lock);
	free(bytes->data);
	free(bytes);
}

static void bytes_forget(struct xps_writer *writer)
{
	struct bytes_writer *bytes = XPS_CONTAINER_OF(writer, struct bytes_writer, base);

	free(bytes->data);
	free(bytes);
}

struct xps_sender *xps_bytes_sender_new(struct xps_pool *pool, const struct xps_sender_config *config,
					struct xps_fail *fail)
{
	static const struct xps_writer_ops ops = {
		.name = "bytes", .write = bytes_write, .close = bytes_close, .forget = bytes_forget
	};
	struct bytes_writer *bytes = calloc(1, sizeof(*bytes));

	if (!bytes) {
		xps_fail_set(fail, ENOMEM, "make stream", "no memory");
		return NULL;
	}
	pthread_mutex_init(&bytes->lock, NULL);
	bytes->base = (struct xps_writer){ .ops = &ops, .fd = -1, .n_substreams = 1, .batch = 64 };
	return xps_sender_new(pool, config, &bytes->base, fail);
}

uint64_t xps_bytes_sender_value(struct xps_sender *sender, uint8_t *data, uint64_t room)
{
	struct bytes_writer *bytes = XPS_CONTAINER_OF(xps_sender_writer(sender), struct bytes_writer, base);
	uint64_t length;

	pthread_mutex_lock(&bytes->lock);
	length = bytes->length;
	if (length && room)
		memcpy(data, bytes->data, xps_min_u64(length, room));
	pthread_mutex_unlock(&bytes->lock);
	return length;
}
