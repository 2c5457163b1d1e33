/* SPDX-License-Identifier: Apache-2.0 */
/*
 * packetise - from the description of a heap to its packets. The counterpart of `packet` and `heap`: it makes no system
 * call and knows no socket, thread or clock.
 *
 * A packet is a list of slices: headers, and pieces of items too short to be worth a slice of their own, are written into
 * memory of the caller (the arena); longer pieces are slices of the user's memory, which nobody copies here.
 *
 * The same heap becomes the same packets as in spead2, byte for byte:
 *
 * - max_packet_size counts in whole multiples of eight, what is over is not used.
 * - Every packet has HEAP_CNT (modulo 2**address_bits), HEAP_LENGTH, PAYLOAD_OFFSET and PAYLOAD_LENGTH, in this order, then
 *   item pointers, then payload. The payload of the heap is that of all addressed items, back to back.
 * - Item pointers come in the order of the items: as many as leave room for eight bytes of payload, until there are no
 *   more; or all of them in every packet. A packet after which there are more has just those eight bytes, and any other
 *   has as much as goes in. Nothing but the size of packets decides where the payload is cut.
 * - No packet is without payload. A heap with too little, be it none at all, is given one more item pointer, addressed,
 *   with identifier NULL, after all others: it points to zeros behind the payload that make it as long as it takes for
 *   the last packet that has item pointers, this one counted, to have one byte. HEAP_LENGTH counts them.
 * - There has to be room for this pointer too when all of them are in every packet, whether it is needed or not.
 *
 * Where spead2's packets cannot be read back as what was put in, ours differ: zeros stand behind the payload also where
 * both are in one packet, a packet has at most 65,535 item pointers, and what does not fit in its bits is refused.
 */
#pragma once

#include <sys/uio.h>

#include "fail.h"
#include "xdpspead.h"

struct xps_out_packet {
	struct iovec *slices;
	uint32_t n_slices;
	uint32_t length; /* bytes in all slices */
};

/* Memory for the headers and slices of some packets. What is free shrinks from the front. */
struct xps_arena {
	uint8_t *bytes;
	uint64_t n_bytes;
	struct iovec *slices;
	uint64_t n_slices;
};

/* A heap that is being cut into packets. It can be copied and moved. */
struct xps_packetiser {
	const struct xps_send_heap *heap;
	uint64_t cnt;
	uint64_t max_packet_size; /* a multiple of eight */
	uint64_t max_pointers;    /* item pointers in one packet */
	uint64_t n_pointers;      /* in the heap, that to the zeros included */
	uint64_t length;          /* of the payload, zeros included */
	/* where it is; the packetiser's own */
	uint64_t pointers_done; /* item pointers in earlier packets */
	uint64_t offset;        /* payload in earlier packets, bytes */
	uint64_t item_offset;   /* in the item in which the payload goes on, bytes */
	uint32_t item;
	bool done;
};

/* How much of an arena one packet may need at most. Packets are shorter than 4 GiB, whatever max_packet_size. */
uint64_t xps_packetise_bytes(uint64_t max_packet_size);
uint64_t xps_packetise_slices(uint64_t max_packet_size);

void xps_send_heap_ref(struct xps_send_heap *heap);
/* Bytes of payload, but for the zeros that packets may need. */
uint64_t xps_send_heap_length(const struct xps_send_heap *heap);
/* Whether a heap identifier can be sent in an item of the heap's address bits. */
bool xps_send_heap_cnt_fits(const struct xps_send_heap *heap, uint64_t cnt);
/* The smallest max_packet_size with which the heap can be sent. */
uint64_t xps_send_heap_min_packet_size(const struct xps_send_heap *heap);

/* max_packet_size is at least xps_send_heap_min_packet_size(). Does not hold the heap. */
void xps_packetiser_start(struct xps_packetiser *p, const struct xps_send_heap *heap, uint64_t cnt,
			  uint64_t max_packet_size);
/* Make the next packet in the arena, which has room for one. Returns false after the last: there was none. */
bool xps_packetise(struct xps_packetiser *p, struct xps_arena *arena, struct xps_out_packet *packet);
/* Whether the last packet has been made. */
static inline bool xps_packetiser_done(const struct xps_packetiser *p)
{
	return p->done;
}
