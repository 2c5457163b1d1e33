// SPDX-License-Identifier: Apache-2.0
/*
 * How it works
 *
 * A datagram under construction has a slot. Slots are taken in turn: a datagram that begins takes the next one, whoever
 * has it, so that one whose fragments never come does not stay. A slot has memory for the largest datagram, taken when
 * the slot is first used, and a bitmap with one bit for each 8 bytes, the unit of fragment offsets: a fragment lies on
 * bits that are all clear (it is new), all set (it may repeat one), or mixed (an attack). Since no byte is ever written
 * twice, a datagram is complete when as many bytes have come as it has.
 *
 * A datagram that was given up keeps its slot, without its fragments, so that those which are still to come are given
 * up too and do not begin another.
 */
#include "fragment.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "bits.h"
#include "frame.h"

enum {
	MAX_DATAGRAM = 65535, /* IP payload; what RFC 791 and RFC 8200 allow at most */
	UNIT = 8,
	WORDS = (MAX_DATAGRAM / UNIT + 1) / 64,
};

enum state { EMPTY, BUILDING, GIVEN_UP };

struct key {
	uint8_t src[16], dst[16];
	uint32_t id;
	uint8_t family;
};

struct slot {
	enum state state;
	struct key key;
	int64_t begin_s;
	uint8_t protocol;     /* of the fragment at offset 0 */
	uint32_t n_fragments; /* that it holds */
	uint32_t received;    /* bytes */
	uint32_t end;         /* highest byte seen, exclusive */
	bool has_last;        /* then `end` is the datagram's length */
	uint8_t *payload;     /* MAX_DATAGRAM bytes, or NULL */
	uint64_t bitmap[WORDS];
};

struct xps_fragments {
	struct slot slots[XPS_FRAGMENT_SLOTS];
	uint32_t next; /* slot that is taken next */
	uint64_t n_lost;
};

struct xps_fragments *xps_fragments_new(void)
{
	return calloc(1, sizeof(struct xps_fragments));
}

void xps_fragments_free(struct xps_fragments *fragments)
{
	if (!fragments)
		return;
	for (int i = 0; i < XPS_FRAGMENT_SLOTS; i++)
		free(fragments->slots[i].payload);
	free(fragments);
}

static void give_up(struct xps_fragments *fragments, struct slot *slot, enum state state)
{
	fragments->n_lost += slot->n_fragments;
	slot->n_fragments = 0;
	slot->state = state;
}

void xps_fragments_drop(struct xps_fragments *fragments)
{
	for (int i = 0; i < XPS_FRAGMENT_SLOTS; i++)
		give_up(fragments, &fragments->slots[i], EMPTY);
}

uint64_t xps_fragments_lost(const struct xps_fragments *fragments)
{
	return fragments->n_lost;
}

/* ---------------------------------------------------------------- slots */

static struct key key_of(const struct xps_frame *frame)
{
	struct key key;

	memset(&key, 0, sizeof(key)); /* the padding too: keys are compared as bytes */
	memcpy(key.src, frame->src, sizeof(key.src));
	memcpy(key.dst, frame->dst, sizeof(key.dst));
	key.id = frame->fragment_id;
	key.family = frame->family;
	return key;
}

/* The slot of the datagram, or NULL. Slots whose time is over are emptied on the way. */
static struct slot *find(struct xps_fragments *fragments, const struct key *key, int64_t now_s)
{
	for (int i = 0; i < XPS_FRAGMENT_SLOTS; i++) {
		struct slot *slot = &fragments->slots[i];

		if (slot->state == EMPTY || memcmp(&slot->key, key, sizeof(*key)))
			continue;
		if (now_s > slot->begin_s && (uint64_t)now_s - (uint64_t)slot->begin_s > XPS_FRAGMENT_SECONDS) {
			give_up(fragments, slot, EMPTY);
			continue;
		}
		return slot;
	}
	return NULL;
}

/* Take the next slot, whoever has it. NULL: no memory. */
static struct slot *begin(struct xps_fragments *fragments, const struct key *key, int64_t now_s)
{
	struct slot *slot = &fragments->slots[fragments->next];
	uint8_t *payload = slot->payload ? slot->payload : malloc(MAX_DATAGRAM);

	if (!payload)
		return NULL;
	fragments->next = (fragments->next + 1) % XPS_FRAGMENT_SLOTS;
	give_up(fragments, slot, EMPTY);
	*slot = (struct slot){ .state = BUILDING, .key = *key, .begin_s = now_s, .payload = payload };
	return slot;
}

/* ---------------------------------------------------------------- one fragment */

/* How many of the units from `first` to `last`, inclusive, are there; marks all of them if none is. */
static uint32_t mark(struct slot *slot, uint32_t first, uint32_t last)
{
	uint32_t set = 0;

	for (uint32_t i = first; i <= last; i++)
		set += slot->bitmap[i / 64] >> i % 64 & 1;
	if (!set)
		for (uint32_t i = first; i <= last; i++)
			slot->bitmap[i / 64] |= UINT64_C(1) << i % 64;
	return set;
}

/* Whether the fragment's place can be right. Those cut from one datagram end on a unit, but for the last. */
static bool is_possible(const struct xps_frame *frame)
{
	const uint32_t length = frame->payload_length;

	return length > 0 && length <= MAX_DATAGRAM - (uint32_t)frame->fragment_offset &&
	       !(frame->more_fragments && length % UNIT);
}

/* Whether it agrees with what is known of the datagram's length, which it may be the first to tell. */
static bool fits(const struct slot *slot, uint32_t end, bool more)
{
	if (slot->has_last)
		return more ? end < slot->end : end == slot->end;
	return more || end >= slot->end;
}

enum outcome { NEW, REPEATED, CONTRADICTS };

static enum outcome place(struct slot *slot, const struct xps_frame *frame, const uint8_t *payload)
{
	const uint32_t offset = frame->fragment_offset, length = frame->payload_length;
	const uint32_t first = offset / UNIT, last = (offset + length - 1) / UNIT;
	uint32_t set;

	if (!fits(slot, offset + length, frame->more_fragments))
		return CONTRADICTS;
	set = mark(slot, first, last);
	if (!set) {
		memcpy(slot->payload + offset, payload, length);
		return NEW;
	}
	if (set != last - first + 1 || (!frame->more_fragments && !slot->has_last))
		return CONTRADICTS;
	return memcmp(slot->payload + offset, payload, length) ? CONTRADICTS : REPEATED;
}

static int add(struct xps_fragments *fragments, struct slot *slot, const struct xps_frame *frame,
	       struct xps_joined *joined)
{
	const uint32_t end = frame->fragment_offset + frame->payload_length;

	slot->n_fragments++;
	slot->received += frame->payload_length;
	if (end > slot->end)
		slot->end = end;
	if (!frame->more_fragments)
		slot->has_last = true;
	if (frame->fragment_offset == 0)
		slot->protocol = frame->protocol;
	if (!slot->has_last || slot->received < slot->end)
		return 0;
	*joined = (struct xps_joined){
		.payload = slot->payload,
		.length = slot->end,
		.n_fragments = slot->n_fragments,
		.protocol = slot->protocol,
	};
	slot->n_fragments = 0; /* they are not lost */
	give_up(fragments, slot, EMPTY);
	return 1;
}

int xps_fragments_add(struct xps_fragments *fragments, const struct xps_frame *frame, const uint8_t *payload,
		      int64_t now_s, struct xps_joined *joined)
{
	const struct key key = key_of(frame);
	struct slot *slot = find(fragments, &key, now_s);

	if (!is_possible(frame)) {
		fragments->n_lost++;
		return 0;
	}
	if (!slot)
		slot = begin(fragments, &key, now_s);
	if (!slot) {
		fragments->n_lost++;
		return -ENOMEM;
	}
	if (slot->state == BUILDING) {
		switch (place(slot, frame, payload)) {
		case NEW:
			return add(fragments, slot, frame, joined);
		case REPEATED:
			break;
		case CONTRADICTS:
			give_up(fragments, slot, GIVEN_UP);
			break;
		}
	}
	fragments->n_lost++;
	return 0;
}
