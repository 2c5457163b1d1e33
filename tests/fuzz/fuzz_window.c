// SPDX-License-Identifier: Apache-2.0
/*
 * Proves that for any sequence of packets, whole or in pieces, a window delivers exactly the heaps, bytes and counts
 * that a plain model made of byte maps does, whatever the credit, and gives all payload memory back.
 *
 * The input: three bytes of configuration, then packets. A packet is six bytes that say what it shall be, or, if the
 * first of them says so, bytes as they come.
 */
#include "../c/packets.h"
#include "memory.h"
#include "packet.h"
#include "slow_packet.h"
#include "window.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum {
	MAX_SIZE = 256, /* max_heap_size */
	MAX_PACKETS = 400,
	MAX_BATCH = 16,
	MAX_HEAPS = 4,
	MAX_SUBSTREAMS = 3,
	MAX_LIVE = MAX_HEAPS * MAX_SUBSTREAMS + XPS_OUTBOX_SIZE + 2, /* payloads at a time, one of them growing */
};

/* ---------------------------------------------------------------- the model */

struct model_heap {
	struct model_heap *next; /* in the list of those that came out */
	uint64_t cnt;
	unsigned bits;
	int64_t length;
	uint64_t min_size, received;
	bool there[MAX_SIZE + 1];
	bool marks[MAX_SIZE + 1]; /* out of order: a packet without payload came here, apart from all others */
	uint8_t bytes[MAX_SIZE];
	uint64_t *pointers;
	unsigned n_pointers;
	bool start, stop;
};

struct model {
	struct xps_window_config config;
	struct model_heap *slots[MAX_SUBSTREAMS][MAX_HEAPS];
	unsigned heads[MAX_SUBSTREAMS];
	uint64_t began[MAX_SUBSTREAMS][2 * MAX_HEAPS]; /* the last ones first */
	unsigned n_began[MAX_SUBSTREAMS];
	struct model_heap *out, **out_tail;
	bool ended;
	uint64_t stats[XPS_N_STATS];
};

static void model_free(struct model_heap *heap)
{
	if (heap)
		free(heap->pointers);
	free(heap);
}

static bool model_contiguous(const struct model_heap *heap)
{
	return heap->received == heap->min_size;
}

static void model_emit(struct model *model, struct model_heap *heap)
{
	model->stats[XPS_STAT_HEAPS]++;
	if (model->config.contiguous_only && !model_contiguous(heap)) {
		model->stats[XPS_STAT_HEAPS_DISCARDED]++;
		model_free(heap);
		return;
	}
	heap->next = NULL;
	*model->out_tail = heap;
	model->out_tail = &heap->next;
}

/* Why the heap does not take the packet, or 0. */
static int model_refusal(const struct model *model, const struct model_heap *heap, const struct slow_packet *packet)
{
	if (packet->heap_length >= 0 && heap->length >= 0 && packet->heap_length != heap->length)
		return XPS_STAT_LENGTH_MISMATCH;
	if (packet->heap_length >= 0 && (uint64_t)packet->heap_length < heap->min_size)
		return XPS_STAT_LENGTH_MISMATCH;
	if (packet->bits != heap->bits)
		return XPS_STAT_FLAVOUR_MISMATCH;
	if (!model->config.rules.allow_out_of_order) {
		if (packet->offset == heap->received)
			return 0;
		return packet->offset < heap->received ? XPS_STAT_BEHIND : XPS_STAT_GAP;
	}
	/* A later part begins inside the packet, or else the packet begins inside an earlier one. */
	for (uint64_t i = packet->offset + 1; i < packet->offset + packet->length; i++)
		if (heap->marks[i] || (heap->there[i] && !heap->there[i - 1]))
			return XPS_STAT_OVERLAP;
	return heap->there[packet->offset] ? XPS_STAT_DUPLICATE : 0;
}

static void model_store(struct model_heap *heap, const struct slow_packet *packet, const uint8_t *payload)
{
	const uint64_t start = packet->offset, end = start + packet->length;

	heap->marks[start] = heap->marks[end] = false;
	if (start == end)
		heap->marks[start] = !heap->there[start] && !(start && heap->there[start - 1]);
	for (uint64_t i = start; i < end; i++) {
		heap->there[i] = true;
		heap->bytes[i] = payload[i - start];
	}
	heap->received += packet->length;
}

static void model_add_item(struct model_heap *heap, const struct slow_item *item)
{
	if (slow_special(item))
		return;
	for (unsigned i = 0; i < heap->n_pointers; i++)
		if (heap->pointers[i] == item->word)
			return;
	heap->pointers = realloc(heap->pointers, (heap->n_pointers + 1) * sizeof(*heap->pointers));
	heap->pointers[heap->n_pointers++] = item->word;
	if (!item->immediate && item->value > heap->min_size)
		heap->min_size = item->value;
	heap->start |= item->immediate && item->id == 6 && item->value == 0;
	heap->stop |= item->immediate && item->id == 6 && item->value == 2;
}

/* Returns whether the packet was taken. */
static bool model_add(struct model *model, struct model_heap *heap, const struct slow_packet *packet,
		      const uint8_t *payload)
{
	const uint64_t end = packet->offset + packet->length;
	int stat = model_refusal(model, heap, packet);

	if (stat) {
		model->stats[stat]++;
		return false;
	}
	if (packet->heap_length >= 0)
		heap->length = packet->heap_length;
	if (heap->length >= 0 && (uint64_t)heap->length > heap->min_size)
		heap->min_size = (uint64_t)heap->length;
	if (end > heap->min_size)
		heap->min_size = end;
	model_store(heap, packet, payload);
	for (unsigned i = 0; i < packet->n_items; i++)
		model_add_item(heap, &packet->items[i]);
	model->ended |= heap->stop && model->config.stop_on_stop_item;
	return true;
}

static void model_finish(struct model *model, struct model_heap **slot)
{
	struct model_heap *heap = *slot;

	if (heap->length < 0 || heap->received != (uint64_t)heap->length || !model_contiguous(heap))
		return;
	*slot = NULL;
	if (model->ended)
		model_free(heap);
	else
		model_emit(model, heap);
}

static void model_remember(struct model *model, uint64_t cnt)
{
	const uint64_t substream = cnt % model->config.substreams;
	uint64_t *began = model->began[substream];

	memmove(began + 1, began, (2 * MAX_HEAPS - 1) * sizeof(*began));
	began[0] = cnt;
	if (model->n_began[substream] < 2 * model->config.max_heaps)
		model->n_began[substream]++;
}

static bool model_began(const struct model *model, uint64_t cnt)
{
	const uint64_t substream = cnt % model->config.substreams;

	for (unsigned i = 0; i < model->n_began[substream]; i++)
		if (model->began[substream][i] == cnt)
			return true;
	return false;
}

static void model_open(struct model *model, const struct slow_packet *packet, const uint8_t *payload)
{
	const uint64_t substream = packet->cnt % model->config.substreams;
	struct model_heap **slot = &model->slots[substream][model->heads[substream]];

	model->heads[substream] = (model->heads[substream] + 1) % (unsigned)model->config.max_heaps;
	if (*slot) {
		model->stats[XPS_STAT_INCOMPLETE_HEAPS_EVICTED]++;
		model_emit(model, *slot);
	}
	*slot = calloc(1, sizeof(**slot));
	model_remember(model, packet->cnt);
	(*slot)->cnt = packet->cnt;
	(*slot)->bits = packet->bits;
	(*slot)->length = -1;
	EXPECT(model_add(model, *slot, packet, payload));
	model_finish(model, slot);
}

/* The youngest of that name. */
static struct model_heap **model_find(struct model *model, uint64_t cnt)
{
	const uint64_t substream = cnt % model->config.substreams;
	const unsigned n = (unsigned)model->config.max_heaps;

	for (unsigned age = 1; age <= n; age++) {
		struct model_heap **slot = &model->slots[substream][(model->heads[substream] + n - age) % n];

		if (*slot && (*slot)->cnt == cnt)
			return slot;
	}
	return NULL;
}

static void model_packet(struct model *model, const struct slow_packet *packet, const uint8_t *payload)
{
	struct model_heap **slot;

	model->stats[XPS_STAT_PACKETS]++;
	if (packet->heap_length < 0 && !model->config.allow_unsized_heaps) {
		model->stats[XPS_STAT_UNSIZED]++;
	} else if (packet->offset + packet->length > MAX_SIZE || packet->heap_length > MAX_SIZE) {
		model->stats[XPS_STAT_TOO_LARGE]++;
	} else if (packet->heap_length >= 0 && packet->length == (uint64_t)packet->heap_length) {
		model->stats[XPS_STAT_SINGLE_PACKET_HEAPS]++;
		model_open(model, packet, payload);
	} else if ((slot = model_find(model, packet->cnt))) {
		if (model_add(model, *slot, packet, payload))
			model_finish(model, slot);
	} else if (packet->offset && !model->config.rules.allow_out_of_order) {
		model->stats[model_began(model, packet->cnt) ? XPS_STAT_LATE : XPS_STAT_GAP]++;
	} else {
		model_open(model, packet, payload);
	}
}

/* A packet of `size` bytes, of which the first piece has `first`. */
static void model_push(struct model *model, const uint8_t *data, size_t first, size_t size)
{
	static struct slow_packet packet;
	int stat;

	if (model->ended) {
		model->stats[XPS_STAT_AFTER_STOP]++;
		return;
	}
	stat = slow_decode(&packet, data, first);
	if (!stat && packet.length > size - packet.header)
		stat = XPS_STAT_SHORT_PACKET;
	else if (!stat && packet.length < size - packet.header)
		stat = XPS_STAT_LONG_PACKET;
	if (stat)
		model->stats[stat]++;
	else
		model_packet(model, &packet, data + packet.header);
}

static void model_flush(struct model *model)
{
	const unsigned n = (unsigned)model->config.max_heaps;

	for (unsigned substream = 0; substream < model->config.substreams; substream++) {
		for (unsigned i = 0; i < n; i++) {
			struct model_heap **slot = &model->slots[substream][(model->heads[substream] + i) % n];

			if (*slot) {
				model->stats[XPS_STAT_INCOMPLETE_HEAPS_FLUSHED]++;
				model_emit(model, *slot);
			}
			*slot = NULL;
		}
	}
}

/* ---------------------------------------------------------------- comparing */

/* Addressed items ascend and do not overlap, immediates follow. */
static void check_items(struct xps_heap *heap)
{
	struct xps_item *items = malloc((heap->n_pointers + 1) * sizeof(*items));
	const int n = xps_heap_items(heap, items);
	uint64_t end = 0;
	bool immediates = false;

	EXPECT(n >= 0 && (uint32_t)n <= heap->n_pointers);
	for (int i = 0; i < n; i++) {
		EXPECT(items[i].id);
		if (items[i].immediate) {
			EXPECT(!immediates || items[i].value >= items[i - 1].value);
			immediates = true;
			continue;
		}
		EXPECT(!immediates && items[i].offset >= end && items[i].length);
		EXPECT(items[i].offset <= heap->size && items[i].length <= heap->size - items[i].offset);
		end = items[i].offset + items[i].length;
	}
	free(items);
}

/* Out of order the ranges are what the byte map says; a range of no length is a packet without payload. */
static void check_ranges(const struct xps_heap *heap, const struct model_heap *expected)
{
	uint64_t covered = 0;

	for (uint32_t i = 0; i < heap->n_ranges; i++) {
		const uint64_t first = heap->ranges[2 * i], last = heap->ranges[2 * i + 1];

		EXPECT(first <= last && last <= MAX_SIZE);
		EXPECT(i == 0 || first > heap->ranges[2 * i - 1]);
		for (uint64_t j = first; j < last; j++)
			EXPECT(expected->there[j]);
		covered += last - first;
	}
	EXPECT(covered == expected->received);
}

static void check_heap(struct xps_heap *heap, const struct model_heap *expected, bool ranges)
{
	const bool whole = model_contiguous(expected);

	EXPECT(heap->cnt == expected->cnt && heap->address_bits == expected->bits);
	EXPECT(heap->length == expected->length && heap->received == expected->received);
	EXPECT(heap->flags == (whole ? XPS_HEAP_CONTIGUOUS : 0) + (expected->start ? XPS_HEAP_START : 0) +
				      (expected->stop ? XPS_HEAP_STOP : 0));
	EXPECT(heap->size == (whole ? expected->received : 0));
	EXPECT(!heap->size || !memcmp(heap->payload, expected->bytes, heap->size));
	EXPECT(whole || !heap->payload);
	EXPECT(heap->n_pointers == expected->n_pointers);
	EXPECT(!heap->n_pointers || !memcmp(heap->pointers, expected->pointers, 8 * (size_t)heap->n_pointers));
	if (ranges && !whole)
		check_ranges(heap, expected);
	else
		EXPECT(!heap->n_ranges);
	check_items(heap);
}

/* Take all heaps out of the outbox; the model has said what they must be. */
static void drain(struct xps_window *window, struct model *model)
{
	for (uint32_t i = 0; i < window->n_out; i++) {
		struct model_heap *expected = model->out;

		EXPECT(expected);
		model->out = expected->next;
		if (!model->out)
			model->out_tail = &model->out;
		check_heap(window->out[i], expected, model->config.rules.keep_payload_ranges);
		xps_heap_free(window->out[i]);
		model_free(expected);
	}
	window->n_out = 0;
}

static void check_stats(const struct xps_window *window, const struct model *model)
{
	uint64_t refused = 0;

	for (int i = 0; i < XPS_N_STATS; i++)
		if (i != XPS_STAT_SEARCH_DIST)
			EXPECT(window->stats[i] == model->stats[i]);
	EXPECT(window->ended == model->ended);
	/* What was decoded was refused for one reason at most. */
	for (int i = XPS_STAT_GAP; i <= XPS_STAT_NO_MEMORY; i++)
		refused += window->stats[i];
	EXPECT(refused <= window->stats[XPS_STAT_PACKETS]);
	EXPECT(window->stats[XPS_STAT_INCOMPLETE_HEAPS_EVICTED] + window->stats[XPS_STAT_INCOMPLETE_HEAPS_FLUSHED] <=
	       window->stats[XPS_STAT_HEAPS]);
}

/* ---------------------------------------------------------------- packets from the input */

/* The packets of one batch, each in pieces of memory of exactly their size. */
struct batch {
	struct xps_view views[MAX_BATCH];
	struct xps_view more[MAX_BATCH];
	struct xps_packet decoded[MAX_BATCH];
	uint8_t *pieces[MAX_BATCH][2];
	unsigned n;
};

static uint8_t *copy_of(const uint8_t *data, size_t n)
{
	uint8_t *copy = malloc(n ? n : 1);

	if (n)
		memcpy(copy, data, n);
	return copy;
}

/* Cut the packet after `first` bytes; a transport may also have decoded it already. */
static void batch_add(struct batch *batch, const uint8_t *data, size_t first, size_t size, bool decode)
{
	const unsigned i = batch->n++;
	struct xps_view *view = &batch->views[i];
	struct xps_packet *packet = &batch->decoded[i];

	batch->pieces[i][0] = copy_of(data, first);
	batch->pieces[i][1] = copy_of(data + first, size - first);
	*view = (struct xps_view){ .data = batch->pieces[i][0], .length = (uint32_t)first };
	if (first < size) {
		batch->more[i] = (struct xps_view){ .data = batch->pieces[i][1], .length = (uint32_t)(size - first) };
		view->more = &batch->more[i];
		view->n_more = 1;
	} else if (decode && !xps_packet_decode(packet, view->data, size) &&
		   packet->header_size + packet->payload_length == size) {
		view->decoded = packet;
	}
}

static void batch_push(struct batch *batch, struct xps_window *window, struct model *model, uint32_t credit)
{
	uint32_t taken = 0;

	while (taken < batch->n) {
		taken += xps_window_push(window, batch->views + taken, batch->n - taken, credit);
		EXPECT(window->n_out <= credit + 2);
		EXPECT(taken == batch->n || window->n_out > credit);
		drain(window, model);
	}
	for (unsigned i = 0; i < batch->n; i++) {
		free(batch->pieces[i][0]);
		free(batch->pieces[i][1]);
	}
	batch->n = 0;
}

struct input {
	const uint8_t *next, *end;
};

static uint8_t next_byte(struct input *input)
{
	return input->next < input->end ? *input->next++ : 0;
}

enum kind {
	KIND_RAW = 1,      /* bytes as they come */
	KIND_UNSIZED = 2,  /* no heap length */
	KIND_ITEM = 4,     /* has an item pointer */
	KIND_STOP = 8,     /* that one is stream control */
	KIND_PIECES = 16,  /* in two pieces */
	KIND_FLAVOUR = 32, /* SPEAD-64-40 instead of 48 */
	KIND_TRIM = 64,    /* the last byte is missing */
	KIND_DECODED = 128,
};

/* Write a packet made of the next bytes. Returns its size. */
static size_t make_packet(struct input *input, uint8_t kind, uint8_t *packet)
{
	const uint8_t cnt = next_byte(input), offset = next_byte(input), length = next_byte(input);
	const uint8_t heap_length = next_byte(input), what = next_byte(input);
	const unsigned bits = kind & KIND_FLAVOUR ? 40 : 48;
	uint8_t payload[256];
	uint64_t item = what & 0x80 ? immediate(bits, 0x1000, what) : addressed(bits, 0x1000, what);
	const struct spec spec = {
		.cnt = cnt % 8,
		.heap_length = kind & KIND_UNSIZED ? -1 : heap_length,
		.offset = offset,
		.length = length,
		.payload = payload,
		.items = &item,
		.n_items = !!(kind & KIND_ITEM),
		.address_bits = bits,
	};

	if (kind & KIND_STOP)
		item = immediate(bits, 6, what % 4);
	for (unsigned i = 0; i < length; i++)
		payload[i] = (uint8_t)(what + cnt + i * 3); /* so that two packets for one place differ */
	return (size_t)(put_packet(packet, &spec) - packet) - !!(kind & KIND_TRIM);
}

static size_t take_packet(struct input *input, uint8_t *packet)
{
	size_t size = next_byte(input) * (size_t)2;

	if (size > (size_t)(input->end - input->next))
		size = (size_t)(input->end - input->next);
	if (size)
		memcpy(packet, input->next, size);
	input->next += size;
	return size;
}

/* ---------------------------------------------------------------- one input */

static struct xps_window_config next_config(struct input *input, struct xps_allocator *pool)
{
	const uint8_t flags = next_byte(input), shape = next_byte(input);

	return (struct xps_window_config){
		.rules = {
			.allocator = pool,
			.max_heap_size = MAX_SIZE,
			.memcpy = flags & 1 ? XPS_MEMCPY_NONTEMPORAL : XPS_MEMCPY_STD,
			.allow_out_of_order = flags & 2,
			.keep_payload_ranges = flags & 4,
		},
		.max_heaps = 1 + shape % MAX_HEAPS,
		.substreams = 1 + shape / MAX_HEAPS % MAX_SUBSTREAMS,
		.stop_on_stop_item = flags & 8,
		.allow_unsized_heaps = flags & 16,
		.contiguous_only = flags & 32,
	};
}

/* All payloads come from this pool, which holds as many blocks as can be out: afterwards all must be home. */
static struct xps_allocator *payload_pool(void)
{
	static struct xps_allocator *pool;
	struct xps_fail fail = { 0 };

	if (!pool) {
		struct xps_allocator *base = xps_allocator_new();
		struct xps_log *log = xps_log_new();

		pool = xps_memory_pool_new(NULL, 0, MAX_SIZE, MAX_LIVE, MAX_LIVE, 0, base, log, &fail);
		EXPECT(pool);
		xps_allocator_free(base);
		xps_log_free(log);
	}
	return pool;
}

static void run(struct input *input, struct xps_window *window, struct model *model)
{
	static const uint32_t credits[] = { 0, 1, 7, XPS_MAX_CREDIT };
	static struct batch batch;
	const uint8_t pace = next_byte(input);
	const uint32_t credit = credits[pace % 4];
	const unsigned batch_size = 1 + pace / 4 % MAX_BATCH;
	bool flushed;

	for (int i = 0; i < MAX_PACKETS && input->next < input->end; i++) {
		uint8_t packet[1024];
		const uint8_t kind = next_byte(input);
		size_t size = kind & KIND_RAW ? take_packet(input, packet) : make_packet(input, kind, packet);
		size_t first = kind & KIND_PIECES ? next_byte(input) : size;

		if (first > size)
			first = size;
		model_push(model, packet, first, size);
		batch_add(&batch, packet, first, size, kind & KIND_DECODED);
		if (batch.n == batch_size)
			batch_push(&batch, window, model, credit);
	}
	batch_push(&batch, window, model, credit);
	EXPECT(!model->out);
	if (pace & 0x80) /* stopped from outside: what is under construction is dropped */
		return;
	model_flush(model);
	do {
		flushed = xps_window_flush(window, credit);
		EXPECT(window->n_out <= credit + 1);
		EXPECT(flushed || window->n_out > credit);
		drain(window, model);
	} while (!flushed);
	EXPECT(!model->out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct xps_allocator *pool = payload_pool();
	struct input input = { data, data + size };
	struct model model = { .config = next_config(&input, pool) };
	static struct xps_window window;

	model.out_tail = &model.out;
	EXPECT(xps_window_init(&window, &model.config) == 0);
	run(&input, &window, &model);
	check_stats(&window, &model);
	xps_window_fini(&window);
	for (int i = 0; i < MAX_SUBSTREAMS * MAX_HEAPS; i++)
		model_free(model.slots[i / MAX_HEAPS][i % MAX_HEAPS]);
	EXPECT(xps_memory_pool_n_free(pool) == MAX_LIVE);
	return 0;
}
