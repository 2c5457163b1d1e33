// SPDX-License-Identifier: Apache-2.0
/* Proves that fragments are put together byte for byte, or given up, as a slow model of single bytes says. */
#include <stdlib.h>
#include <string.h>

#include "fragment.h"
#include "frame.h"
#include "slow_packet.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The last bounds the work for one input, not what fragments may be. */
enum { MAX_BYTES = 65535, MAX_FRAGMENTS = 4096, MAX_INPUT_BYTES = 1 << 17 };

/* A datagram under construction: each byte by itself. */
struct model_datagram {
	struct model_datagram *next;
	uint8_t key;
	unsigned begin; /* it was the how manyth to begin */
	int64_t begin_s;
	bool given_up;
	unsigned n_fragments, n_bytes, highest;
	int length; /* -1: not known */
	uint8_t protocol;
	bool present[MAX_BYTES];
	uint8_t bytes[MAX_BYTES];
};

struct model {
	struct model_datagram *datagrams;
	unsigned n_begun;
	uint64_t lost;
};

struct fragment {
	uint8_t key; /* which datagram it says it is of */
	unsigned offset, length;
	bool more;
	uint8_t protocol;
	const uint8_t *bytes;
};

static struct model_datagram **find(struct model *model, uint8_t key)
{
	struct model_datagram **at = &model->datagrams;

	while (*at && (*at)->key != key)
		at = &(*at)->next;
	return at;
}

/* They are large: those that are done with are used again. */
static struct model_datagram *spare;

static void forget(struct model_datagram **at)
{
	struct model_datagram *gone = *at;

	*at = gone->next;
	gone->next = spare;
	spare = gone;
}

static struct model_datagram *new_datagram(void)
{
	struct model_datagram *datagram = spare;

	if (!datagram)
		return calloc(1, sizeof(*datagram));
	spare = datagram->next;
	memset(datagram->present, 0, datagram->highest * sizeof(datagram->present[0]));
	datagram->n_fragments = datagram->n_bytes = datagram->highest = 0;
	datagram->given_up = false;
	datagram->protocol = 0;
	return datagram;
}

static void give_up(struct model *model, struct model_datagram *datagram)
{
	model->lost += datagram->n_fragments;
	datagram->n_fragments = 0;
	datagram->given_up = true;
}

static void give_up_old_ones(struct model *model, uint8_t key, int64_t now_s)
{
	struct model_datagram **at = &model->datagrams;

	while (*at) {
		bool late = (*at)->key == key && now_s - (*at)->begin_s > XPS_FRAGMENT_SECONDS;

		if (late || model->n_begun - (*at)->begin > XPS_FRAGMENT_SLOTS) {
			give_up(model, *at);
			forget(at);
		} else {
			at = &(*at)->next;
		}
	}
}

static struct model_datagram *begin(struct model *model, uint8_t key, int64_t now_s)
{
	struct model_datagram *datagram = new_datagram();

	datagram->key = key;
	datagram->begin = model->n_begun++;
	datagram->begin_s = now_s;
	datagram->length = -1;
	datagram->next = model->datagrams;
	model->datagrams = datagram;
	give_up_old_ones(model, key, now_s); /* whoever has to make room for it */
	return datagram;
}

static bool contradicts_length(const struct model_datagram *datagram, const struct fragment *f)
{
	const unsigned end = f->offset + f->length;

	if (datagram->length < 0)
		return !f->more && end < datagram->highest;
	return f->more ? end >= (unsigned)datagram->length : end != (unsigned)datagram->length;
}

static void model_place(struct model *model, struct model_datagram *datagram, const struct fragment *f)
{
	unsigned n_present = 0, n_equal = 0;

	for (unsigned i = 0; i < f->length; i++) {
		n_present += datagram->present[f->offset + i];
		n_equal += datagram->present[f->offset + i] && datagram->bytes[f->offset + i] == f->bytes[i];
	}
	if (contradicts_length(datagram, f) || (n_present && n_equal < f->length) ||
	    (n_present && !f->more && datagram->length < 0)) {
		model->lost++;
		give_up(model, datagram);
		return;
	}
	if (n_present) {
		model->lost++; /* a repetition */
		return;
	}
	for (unsigned i = 0; i < f->length; i++) {
		datagram->present[f->offset + i] = true;
		datagram->bytes[f->offset + i] = f->bytes[i];
	}
	datagram->n_bytes += f->length;
	datagram->n_fragments++;
	if (f->offset + f->length > datagram->highest)
		datagram->highest = f->offset + f->length;
	if (!f->more)
		datagram->length = (int)(f->offset + f->length);
	if (!f->offset)
		datagram->protocol = f->protocol;
}

/* The datagram that the fragment completes, to be forgotten by the caller, or NULL. */
static struct model_datagram **model_add(struct model *model, const struct fragment *f, int64_t now_s)
{
	struct model_datagram *datagram;

	if (!f->length || f->offset + f->length > MAX_BYTES || (f->more && f->length % 8)) {
		give_up_old_ones(model, f->key, now_s);
		model->lost++;
		return NULL;
	}
	give_up_old_ones(model, f->key, now_s);
	datagram = *find(model, f->key);
	if (!datagram)
		datagram = begin(model, f->key, now_s);
	if (datagram->given_up) {
		model->lost++;
		return NULL;
	}
	model_place(model, datagram, f);
	return !datagram->given_up && datagram->n_bytes == (unsigned)datagram->length ? find(model, f->key) : NULL;
}

/* ---------------------------------------------------------------- fragments from the input */

/* The key as addresses, family and identifier, so that each of these tells two datagrams apart. */
static struct xps_frame frame_of(const struct fragment *f)
{
	struct xps_frame frame = {
		.family = f->key & 1 ? 6 : 4,
		.fragment_id = (f->key >> 3 & 31u) << 15,
		.fragment_offset = (uint16_t)f->offset,
		.payload_length = f->length,
		.more_fragments = f->more,
		.protocol = f->protocol,
	};

	frame.src[15] = f->key >> 1 & 1;
	frame.dst[0] = f->key >> 2 & 1;
	return frame;
}

static void check(struct xps_fragments *fragments, struct model *model, const struct fragment *f, int64_t now_s)
{
	const struct xps_frame frame = frame_of(f);
	uint8_t *exact = malloc(f->length ? f->length : 1);
	struct model_datagram **expected = model_add(model, f, now_s);
	struct xps_joined joined;
	int complete;

	if (f->length)
		memcpy(exact, f->bytes, f->length);
	complete = xps_fragments_add(fragments, &frame, exact, now_s, &joined);
	free(exact);
	EXPECT(complete == !!expected);
	if (!expected)
		return;
	EXPECT(joined.length == (uint32_t)(*expected)->length);
	EXPECT(joined.n_fragments == (*expected)->n_fragments);
	EXPECT(joined.protocol == (*expected)->protocol);
	EXPECT(!memcmp(joined.payload, (*expected)->bytes, joined.length));
	forget(expected);
}

/* Six bytes make a fragment: datagram, offset, length in 8 bytes, the rest of the length and flags, time, change. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static uint8_t pattern[MAX_BYTES + 65536], bytes[65536];
	struct xps_fragments *fragments = xps_fragments_new();
	struct model model = { 0 };
	int64_t now_s = 1000;
	size_t total = 0;

	if (!pattern[1])
		for (size_t i = 0; i < sizeof(pattern); i++)
			pattern[i] = (uint8_t)(1 + i * 7 + (i >> 8) * 13);
	for (int n = 0; size >= 6 && n < MAX_FRAGMENTS && total < MAX_INPUT_BYTES; n++, data += 6, size -= 6) {
		const bool far = data[3] & 0x10;
		struct fragment f = {
			.key = data[0],
			.offset = (far ? 8191u - data[1] : data[1]) * 8,
			.length = data[2] * (data[3] & 0x20 ? 256u : 8u) + (data[3] & 7),
			.more = data[3] & 8,
			.protocol = data[3] & 0x40 ? 60 : 17,
			.bytes = bytes,
		};

		total += f.length;
		memcpy(bytes, pattern + f.offset, f.length);
		if (data[5] && f.length)
			bytes[data[5] % f.length] ^= 1;
		now_s += (data[4] & 0x80 ? -1 : 1) * (data[4] & 31);
		check(fragments, &model, &f, now_s);
	}
	xps_fragments_drop(fragments);
	while (model.datagrams) {
		give_up(&model, model.datagrams);
		forget(&model.datagrams);
	}
	EXPECT(xps_fragments_lost(fragments) == model.lost);
	xps_fragments_free(fragments);
	return 0;
}
