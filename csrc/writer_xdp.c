// SPDX-License-Identifier: Apache-2.0
/*
 * Datagrams through an AF_XDP socket.
 *
 * How it works
 *
 * write() takes back the frames that the kernel is done with, copies headers and payload of as many packets as there are
 * frames for, and pushes them. A packet has been taken when the kernel took it: what it left in the ring is `pending`,
 * those are the first packets of the next call, and that one only pushes again.
 *
 * After an error it is pending no more: the caller has been told that it is not sent. It is withdrawn from the ring, or,
 * if that cannot be, stays there; either way nothing is added until the kernel goes on (`failing`).
 *
 * There is no descriptor to wait for: see xdp_tx.h. The sender asks again and again, which is what moves packets in copy
 * mode.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "bits.h"
#include "udp_header.h"
#include "writer_xdp.h"
#include "xdp_tx.h"

enum {
	BATCH = 64,
	PAYLOAD = XPS_CACHE_LINE, /* where it begins in a packet's first frame */
};

struct xdp_writer {
	struct xps_writer base;
	struct xps_xdp_tx tx;
	uint32_t n_pending;
	uint8_t pieces[BATCH]; /* of each packet that was staged last */
	bool failing;
	bool ended;                      /* `tx` has been closed */
	uint64_t invalid;                /* what it told last */
	struct xps_udp_header headers[]; /* one for each substream */
};

static struct xdp_writer *writer_of(struct xps_writer *writer)
{
	return XPS_CONTAINER_OF(writer, struct xdp_writer, base);
}

/* ---------------------------------------------------------------- packets into frames */

/* Where the next byte of a packet goes. */
struct cursor {
	uint64_t address; /* of the frame */
	uint32_t begin;   /* what belongs to the packet is from here in the frame, */
	uint32_t used;    /* to here, */
	uint32_t end;     /* and at last to here */
	uint64_t sum;     /* of the payload in earlier frames */
};

static uint32_t count_pieces(const struct xps_xdp_tx *tx, uint32_t length)
{
	return (PAYLOAD + length + tx->frame_size - 1) / tx->frame_size;
}

/*
 * How full the first of several frames gets: such that the others are full. The kernel copies the first into memory of
 * any size, which costs the more the larger it is, and the others into pages. A multiple of two, for the checksum.
 */
static uint32_t first_end(const struct xps_xdp_tx *tx, uint32_t length, uint32_t pieces)
{
	const uint32_t rest = PAYLOAD + length - (pieces - 1) * tx->frame_size;

	return (uint32_t)xps_round_up(rest, XPS_CACHE_LINE);
}

/* Add up the payload of the frame, as far as it is written. */
static void add_up(const struct xps_xdp_tx *tx, struct cursor *at)
{
	const uint32_t from = at->begin ? PAYLOAD : 0;

	at->sum = xps_checksum_add(at->sum, xps_xdp_tx_at(tx, at->address) + from, at->used - from);
}

/* The frame is full: begin another. */
static void next_frame(struct xps_xdp_tx *tx, struct cursor *at)
{
	xps_xdp_tx_stage(tx, at->address + at->begin, at->used - at->begin, false);
	at->address = xps_xdp_tx_take(tx);
	at->begin = at->used = 0;
	at->end = tx->frame_size;
}

static void put_bytes(struct xps_xdp_tx *tx, struct cursor *at, const uint8_t *from, size_t n, bool checksum)
{
	while (n > at->end - at->used) {
		const uint32_t part = at->end - at->used;

		memcpy(xps_xdp_tx_at(tx, at->address) + at->used, from, part);
		from += part;
		n -= part;
		at->used += part;
		if (checksum)
			add_up(tx, at);
		next_frame(tx, at);
	}
	memcpy(xps_xdp_tx_at(tx, at->address) + at->used, from, n);
	at->used += (uint32_t)n;
}

static void put_packet(struct xdp_writer *w, const struct xps_write *write, uint32_t pieces)
{
	const struct xps_udp_header *header = &w->headers[write->substream];
	const bool checksum = xps_udp_header_wants_checksum(header);
	const uint32_t length = write->packet.length;
	struct xps_xdp_tx *tx = &w->tx;
	struct cursor at = {
		.address = xps_xdp_tx_take(tx),
		.begin = PAYLOAD - header->length, /* so that the payload begins with a cache line */
		.used = PAYLOAD,
		.end = first_end(tx, length, pieces),
	};
	uint8_t *headers = xps_xdp_tx_at(tx, at.address) + at.begin;

	xps_udp_header_write(header, headers, length);
	for (uint32_t i = 0; i < write->packet.n_slices; i++)
		put_bytes(tx, &at, write->packet.slices[i].iov_base, write->packet.slices[i].iov_len, checksum);
	if (checksum) {
		add_up(tx, &at);
		xps_udp_header_set_checksum(header, headers, length, at.sum);
	}
	xps_xdp_tx_stage(tx, at.address + at.begin, at.used - at.begin, true);
}

/* Returns how many packets there were frames for. */
static uint32_t put_packets(struct xdp_writer *w, const struct xps_write *packets, uint32_t n)
{
	uint32_t i;

	n = n < BATCH ? n : BATCH;
	for (i = 0; i < n; i++) {
		const uint32_t pieces = count_pieces(&w->tx, packets[i].packet.length);

		if (pieces > w->tx.n_free)
			break;
		put_packet(w, &packets[i], pieces);
		w->pieces[i] = (uint8_t)pieces;
	}
	return i;
}

/* ---------------------------------------------------------------- writing */

/* How many of the pending packets the kernel has taken whole. */
static uint32_t count_taken(const struct xdp_writer *w)
{
	uint32_t waiting = xps_xdp_tx_waiting(&w->tx.tx), taken = w->n_pending;

	while (waiting && taken) {
		taken--;
		waiting -= waiting < w->pieces[taken] ? waiting : w->pieces[taken];
	}
	return taken;
}

/* Push what is pending. Returns how many packets were taken, or why none. */
static int push_pending(struct xdp_writer *w)
{
	bool withdrawn;
	int err = xps_xdp_tx_push(&w->tx, &withdrawn);
	uint32_t taken;

	if (err && !withdrawn && !w->tx.zero_copy)
		taken = count_taken(w);
	else
		taken = err ? 0 : w->n_pending;
	if (err && !taken && err != -EAGAIN) {
		w->n_pending = 0;
		w->failing = true;
		return err;
	}
	w->n_pending -= taken;
	memmove(w->pieces, w->pieces + taken, w->n_pending);
	return taken ? (int)taken : -EAGAIN;
}

static int xdp_write(struct xps_writer *writer, const struct xps_write *packets, uint32_t n)
{
	struct xdp_writer *w = writer_of(writer);
	bool withdrawn;
	int taken;

	xps_xdp_tx_reclaim(&w->tx);
	if (unlikely(w->failing)) {
		int err = xps_xdp_tx_push(&w->tx, &withdrawn);

		if (err)
			return err;
		w->failing = false;
	}
	if (!w->n_pending)
		w->n_pending = put_packets(w, packets, n);
	if (!w->n_pending)
		return -EAGAIN;
	taken = push_pending(w);
	/* Often all is back already, and nobody may come again for long. */
	xps_xdp_tx_reclaim(&w->tx);
	return taken;
}

static void xdp_end(struct xps_writer *writer)
{
	struct xdp_writer *w = writer_of(writer);

	if (w->ended)
		return;
	w->ended = true;
	w->invalid = xps_xdp_tx_invalid(&w->tx);
	xps_xdp_tx_close(&w->tx);
}

static void xdp_close(struct xps_writer *writer)
{
	xdp_end(writer);
	free(writer_of(writer));
}

static void xdp_forget(struct xps_writer *writer)
{
	struct xdp_writer *w = writer_of(writer);

	if (!w->ended)
		xps_xdp_tx_forget(&w->tx);
	free(w);
}

static void xdp_add_stats(struct xps_writer *writer, uint64_t *stats)
{
	struct xdp_writer *w = writer_of(writer);

	stats[XPS_SEND_STAT_XDP_COMPLETED] += atomic_load_explicit(&w->tx.completed, memory_order_relaxed);
	stats[XPS_SEND_STAT_XDP_DROPPED] += atomic_load_explicit(&w->tx.dropped, memory_order_relaxed);
	stats[XPS_SEND_STAT_XDP_INVALID] += w->ended ? w->invalid : xps_xdp_tx_invalid(&w->tx);
}

static const struct xps_writer_ops xdp_ops = {
	.name = "xdp",
	.write = xdp_write,
	.end = xdp_end,
	.close = xdp_close,
	.forget = xdp_forget,
	.add_stats = xdp_add_stats,
};

/* ---------------------------------------------------------------- opening */

/* The longest UDP payload for all destinations, by the interface's MTU. */
static uint32_t longest_payload(const struct xps_xdp_sender_config *config)
{
	uint32_t longest = 65535 - 28;

	for (uint32_t i = 0; i < config->n_destinations; i++) {
		const uint32_t headers = config->destinations[i].family == 4 ? 28 : 48;

		longest = (uint32_t)xps_min_u64(longest, config->mtu > headers ? config->mtu - headers : 0);
	}
	return (uint32_t)xps_min_u64(longest, XPS_XDP_TX_MAX_PIECES * XPS_XDP_LARGE_FRAME - PAYLOAD);
}

static int check_config(const struct xps_xdp_sender_config *config, uint64_t max_packet_size, struct xps_fail *fail)
{
	static const char step[] = "check configuration";
	const uint32_t longest = longest_payload(config);

	if (!config->n_destinations)
		return xps_fail_set(fail, EINVAL, step, "At least one endpoint is needed.");
	for (uint32_t i = 0; i < config->n_destinations; i++)
		if (config->destinations[i].family != 4 && config->destinations[i].family != 6)
			return xps_fail_set(fail, EINVAL, step, "Endpoint %u is neither IPv4 nor IPv6.", i);
	if (max_packet_size > longest)
		return xps_fail_set(fail, EMSGSIZE, step,
				    "max_packet_size is %llu, but the interface's MTU of %u bytes leaves room for %u, "
				    "and AF_XDP does not fragment. Set max_packet_size to that, or raise the MTU.",
				    (unsigned long long)max_packet_size, config->mtu, longest);
	return 0;
}

struct xps_writer *xps_xdp_writer_open(const struct xps_xdp_sender_config *config, uint64_t max_packet_size,
				       struct xps_xdp_obtained *obtained, struct xps_fail *fail)
{
	const struct xps_xdp_tx_config tx = {
		.ifindex = config->ifindex,
		.queue = config->queue,
		.max_packet = (uint32_t)max_packet_size + PAYLOAD,
		.buffer_size = config->buffer_size,
		.zero_copy = config->zero_copy,
	};
	struct xdp_writer *w;

	if (check_config(config, max_packet_size, fail))
		return NULL;
	w = calloc(1, sizeof(*w) + config->n_destinations * sizeof(w->headers[0]));
	if (!w) {
		xps_fail_set(fail, ENOMEM, "allocate", "Not enough memory for the state of a sender.");
		return NULL;
	}
	w->base = (struct xps_writer){
		.ops = &xdp_ops,
		.fd = -1,
		.n_substreams = config->n_destinations,
		.batch = BATCH,
	};
	for (uint32_t i = 0; i < config->n_destinations; i++)
		xps_udp_header_init(&w->headers[i], &config->destinations[i]);
	if (xps_xdp_tx_open(&w->tx, &tx, fail)) {
		free(w);
		return NULL;
	}
	*obtained = (struct xps_xdp_obtained){
		.zero_copy = w->tx.zero_copy,
		.multi_buffer = w->tx.multi_buffer,
		.frame_size = w->tx.frame_size,
		.memory = xps_xdp_tx_memory(&w->tx),
	};
	return &w->base;
}

struct xps_sender *xps_xdp_sender_new(struct xps_pool *pool, const struct xps_sender_config *config,
				      const struct xps_xdp_sender_config *xdp, struct xps_xdp_obtained *obtained,
				      struct xps_fail *fail)
{
	struct xps_writer *writer = xps_xdp_writer_open(xdp, config->max_packet_size, obtained, fail);

	return writer ? xps_sender_new(pool, config, writer, fail) : NULL;
}

void xps_xdp_sender_disown(struct xps_sender *sender)
{
	struct xdp_writer *w = writer_of(xps_sender_writer(sender));

	if (!w->ended)
		xps_xdp_tx_disown(&w->tx);
}
