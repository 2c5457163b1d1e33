// SPDX-License-Identifier: Apache-2.0
#include "window.h"

#include <errno.h>
#include <stdlib.h>

#define NO_SLOT UINT32_MAX
#define MAX_SLOTS (UINT64_C(1) << 24)

int xps_window_init(struct xps_window *window, const struct xps_window_config *config)
{
	uint64_t n_slots;

	if (config->max_heaps == 0 || config->substreams == 0 || config->max_heaps > MAX_SLOTS ||
	    config->substreams > MAX_SLOTS || config->max_heaps * config->substreams > MAX_SLOTS)
		return -EINVAL;
	n_slots = config->max_heaps * config->substreams;
	*window = (struct xps_window){ .config = *config, .bucket_bits = 4 };
	/* At least two buckets a slot keep the chains short. */
	while ((UINT64_C(1) << window->bucket_bits) < 2 * n_slots)
		window->bucket_bits++;
	window->n_recent = (uint32_t)xps_min_u64(2 * config->max_heaps, XPS_MAX_RECENT);
	window->slots = calloc(n_slots, sizeof(*window->slots));
	window->heads = calloc(config->substreams, sizeof(*window->heads));
	window->recent = calloc(config->substreams * window->n_recent, sizeof(*window->recent));
	window->recent_heads = calloc(config->substreams, sizeof(*window->recent_heads));
	window->buckets = malloc(sizeof(*window->buckets) << window->bucket_bits);
	if (!window->slots || !window->heads || !window->buckets || !window->recent || !window->recent_heads) {
		xps_window_fini(window);
		return -ENOMEM;
	}
	memset(window->buckets, 0xff, sizeof(*window->buckets) << window->bucket_bits);
	return 0;
}

static uint32_t n_slots(const struct xps_window *window)
{
	return (uint32_t)(window->config.max_heaps * window->config.substreams);
}

void xps_window_fini(struct xps_window *window)
{
	for (uint32_t i = 0; window->slots && i < n_slots(window); i++)
		xps_heap_free(window->slots[i]);
	for (uint32_t i = 0; i < window->n_out; i++)
		xps_heap_free(window->out[i]);
	free(window->slots);
	free(window->heads);
	free(window->recent);
	free(window->recent_heads);
	free(window->buckets);
	*window = (struct xps_window){ 0 };
}

/* ---------------------------------------------------------------- slots and the hash table over them */

static uint32_t *bucket_of(const struct xps_window *window, uint64_t cnt)
{
	return &window->buckets[xps_hash(cnt, window->buckets) >> (64 - window->bucket_bits)];
}

static struct xps_heap *find(struct xps_window *window, uint64_t cnt)
{
	uint32_t slot;

	window->stats[XPS_STAT_SEARCH_DIST]++;
	if (window->last && window->last->cnt == cnt)
		return window->last;
	for (slot = *bucket_of(window, cnt); slot != NO_SLOT; slot = window->slots[slot]->next) {
		if (window->slots[slot]->cnt == cnt)
			return window->slots[slot];
		window->stats[XPS_STAT_SEARCH_DIST]++;
	}
	return NULL;
}

static void insert(struct xps_window *window, struct xps_heap *heap, uint32_t slot)
{
	uint32_t *bucket = bucket_of(window, heap->cnt);

	heap->slot = slot;
	heap->next = *bucket;
	*bucket = slot;
	window->slots[slot] = heap;
}

static void take_out(struct xps_window *window, struct xps_heap *heap)
{
	uint32_t *link = bucket_of(window, heap->cnt);

	while (*link != heap->slot)
		link = &window->slots[*link]->next;
	*link = heap->next;
	window->slots[heap->slot] = NULL;
	if (window->last == heap)
		window->last = NULL;
}

static uint64_t substream_of(const struct xps_window *window, uint64_t cnt)
{
	return likely(window->config.substreams == 1) ? 0 : cnt % window->config.substreams;
}

/* ---------------------------------------------------------------- heaps that began last */

static void remember(struct xps_window *window, uint64_t substream, uint64_t cnt)
{
	uint32_t *head = &window->recent_heads[substream];

	window->recent[substream * window->n_recent + *head] = cnt + 1;
	if (++*head == window->n_recent)
		*head = 0;
}

static bool began_lately(const struct xps_window *window, uint64_t cnt)
{
	const uint64_t *recent = window->recent + substream_of(window, cnt) * window->n_recent;
	bool found = false;

	for (uint32_t i = 0; i < window->n_recent; i++)
		found |= recent[i] == cnt + 1;
	return found;
}

/* ---------------------------------------------------------------- heaps that leave */

static void discard(struct xps_window *window, struct xps_heap *heap)
{
	window->stats[XPS_STAT_HEAPS_DISCARDED]++;
	window->news.discarded_cnt = heap->cnt;
	window->news.discarded_received = heap->received;
	window->news.discarded_expected = heap->min_size;
	xps_heap_free(heap);
}

/* The one way out for heaps: everything that happens to a finished heap begins here. */
static void emit(struct xps_window *window, struct xps_heap *heap)
{
	window->stats[XPS_STAT_HEAPS]++;
	heap = xps_heap_finish(heap, &window->config.rules);
	if (window->config.contiguous_only && !(heap->flags & XPS_HEAP_CONTIGUOUS)) {
		discard(window, heap);
		return;
	}
	window->out[window->n_out++] = heap;
	window->out_bytes += heap->received;
}

static void complete(struct xps_window *window, struct xps_heap *heap)
{
	if (window->ended)
		xps_heap_free(heap); /* it held the stop item, and is nobody's data */
	else
		emit(window, heap);
}

/* ---------------------------------------------------------------- packets */

static bool refuse(struct xps_window *window, const struct xps_packet *packet, int stat)
{
	window->stats[stat]++;
	/* these are common, and only counted */
	if (stat != XPS_STAT_GAP && stat != XPS_STAT_LATE && stat != XPS_STAT_DUPLICATE) {
		window->news.refused_stat = stat;
		window->news.refused_cnt = packet->heap_cnt;
	}
	return false;
}

/* Add to the heap; on success see whether it brought the end of the stream. */
static bool add(struct xps_window *window, struct xps_heap *heap, const struct xps_packet *packet,
		const struct xps_view *view)
{
	int stat = xps_heap_add(heap, &window->config.rules, packet, view);

	if (unlikely(stat))
		return refuse(window, packet, stat);
	if (unlikely(heap->flags & XPS_HEAP_STOP) && window->config.stop_on_stop_item)
		window->ended = true;
	return true;
}

/* A heap that the window does not know: it takes the next slot of its substream, whoever is there. */
static void open_heap(struct xps_window *window, const struct xps_packet *packet, const struct xps_view *view)
{
	uint64_t substream = substream_of(window, packet->heap_cnt);
	uint32_t slot = (uint32_t)(substream * window->config.max_heaps) + window->heads[substream];
	struct xps_heap *victim = window->slots[slot];
	struct xps_heap *heap;

	if (++window->heads[substream] == window->config.max_heaps)
		window->heads[substream] = 0;
	if (victim) {
		take_out(window, victim);
		window->stats[XPS_STAT_INCOMPLETE_HEAPS_EVICTED]++;
		emit(window, victim);
	}
	heap = xps_heap_open(packet, &window->config.rules);
	if (unlikely(!heap)) {
		refuse(window, packet, XPS_STAT_NO_MEMORY);
		return;
	}
	if (unlikely(!add(window, heap, packet, view))) {
		xps_heap_free(heap);
		return;
	}
	remember(window, substream, packet->heap_cnt);
	if (xps_heap_complete(heap)) {
		complete(window, heap);
	} else {
		insert(window, heap, slot);
		window->last = heap;
	}
}

static bool is_whole_heap(const struct xps_packet *packet)
{
	return packet->heap_length >= 0 && packet->payload_length == (uint64_t)packet->heap_length;
}

/* What can be said without knowing the heap. Packets that fail here open no heap and evict none. */
static int check_packet(const struct xps_window *window, const struct xps_packet *packet)
{
	uint64_t max = window->config.rules.max_heap_size;

	if (unlikely(packet->heap_length < 0 && !window->config.allow_unsized_heaps))
		return XPS_STAT_UNSIZED;
	if (unlikely(packet->payload_offset + packet->payload_length > max ||
		     (packet->heap_length >= 0 && (uint64_t)packet->heap_length > max)))
		return XPS_STAT_TOO_LARGE;
	return 0;
}

static void finish(struct xps_window *window, struct xps_heap *heap)
{
	take_out(window, heap);
	complete(window, heap);
}

/* Almost every packet is the next piece of the heap that the last one belonged to. False: it is not, or not in one piece. */
static inline bool process_next(struct xps_window *window, const struct xps_packet *packet, const struct xps_view *view)
{
	struct xps_heap *heap = window->last;

	if (unlikely(!heap || heap->cnt != packet->heap_cnt || is_whole_heap(packet) || view->n_more ||
		     !xps_heap_just_continues(heap, &window->config.rules, packet)))
		return false;
	window->stats[XPS_STAT_PACKETS]++;
	window->stats[XPS_STAT_SEARCH_DIST]++;
	xps_heap_continue(heap, &window->config.rules, packet, view);
	if (unlikely(xps_heap_complete(heap)))
		finish(window, heap);
	return true;
}

static void process(struct xps_window *window, const struct xps_packet *packet, const struct xps_view *view)
{
	struct xps_heap *heap;
	int stat = check_packet(window, packet);

	window->stats[XPS_STAT_PACKETS]++;
	if (unlikely(stat)) {
		refuse(window, packet, stat);
		return;
	}
	if (is_whole_heap(packet)) {
		window->stats[XPS_STAT_SINGLE_PACKET_HEAPS]++;
		open_heap(window, packet, view);
		return;
	}
	heap = find(window, packet->heap_cnt);
	if (!heap) {
		/* In order, a heap begins at its first byte: anything else is the rest of one that is gone. */
		if (packet->payload_offset && !window->config.rules.allow_out_of_order)
			refuse(window, packet, began_lately(window, packet->heap_cnt) ? XPS_STAT_LATE : XPS_STAT_GAP);
		else
			open_heap(window, packet, view);
		return;
	}
	window->last = heap;
	if (add(window, heap, packet, view) && xps_heap_complete(heap))
		finish(window, heap);
}

/* ---------------------------------------------------------------- views */

static uint64_t view_length(const struct xps_view *view)
{
	uint64_t length = view->length;

	for (uint32_t i = 0; i < view->n_more; i++)
		length += view->more[i].length;
	return length;
}

/* Decode the packet, and see that the view is exactly the packet. */
static int decode(struct xps_packet *packet, const struct xps_view *view)
{
	int stat = xps_packet_decode(packet, view->data, view->length);
	uint64_t expected;

	if (unlikely(stat))
		return stat;
	expected = packet->header_size + packet->payload_length;
	if (likely(expected == view_length(view)))
		return 0;
	return expected > view_length(view) ? XPS_STAT_SHORT_PACKET : XPS_STAT_LONG_PACKET;
}

uint32_t xps_window_push(struct xps_window *window, const struct xps_view *views, uint32_t n, uint32_t credit)
{
	struct xps_packet scratch;
	uint32_t i;

	for (i = 0; i < n; i++) {
		const struct xps_packet *packet = views[i].decoded;
		int stat = 0;

		if (unlikely(window->ended)) { /* first: these need no room */
			window->stats[XPS_STAT_AFTER_STOP] += n - i;
			return n;
		}
		if (unlikely(window->n_out > credit))
			break;
		if (!packet) {
			packet = &scratch;
			stat = decode(&scratch, &views[i]);
		}
		if (unlikely(stat)) {
			window->stats[stat]++;
			window->news.bad_stat = stat;
		} else if (unlikely(!process_next(window, packet, &views[i]))) {
			process(window, packet, &views[i]);
		}
	}
	return i;
}

bool xps_window_flush(struct xps_window *window, uint32_t credit)
{
	const uint32_t max_heaps = (uint32_t)window->config.max_heaps;

	while (window->flushed < n_slots(window) && window->n_out <= credit) {
		uint32_t substream = window->flushed / max_heaps;
		/* The oldest is where the next one would go. */
		uint32_t slot = (window->heads[substream] + window->flushed % max_heaps) % max_heaps;
		struct xps_heap *heap = window->slots[substream * max_heaps + slot];

		window->flushed++;
		if (!heap)
			continue;
		take_out(window, heap);
		window->stats[XPS_STAT_INCOMPLETE_HEAPS_FLUSHED]++;
		emit(window, heap);
	}
	return window->flushed == n_slots(window);
}
