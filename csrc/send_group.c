// SPDX-License-Identifier: Apache-2.0
#include "send_group.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int xps_send_group_init(struct xps_send_group *group, uint32_t n, int mode)
{
	memset(group, 0, sizeof(*group));
	group->mode = mode;
	group->heaps = n == 1 ? &group->only : calloc(n, sizeof(*group->heaps));
	if (!group->heaps)
		return -ENOMEM;
	group->n = group->n_uncut = group->n_open = n;
	group->before = n - 1;
	for (uint32_t i = 0; i < n; i++)
		group->heaps[i].next = i + 1 < n ? i + 1 : 0;
	return 0;
}

void xps_send_group_fini(struct xps_send_group *group)
{
	for (uint32_t i = 0; i < group->n; i++)
		xps_send_heap_free(group->heaps[i].heap);
	if (group->heaps != &group->only)
		free(group->heaps);
	group->n = 0;
	group->heaps = NULL;
}

static void close_if_done(struct xps_send_group *group, struct xps_sending *heap)
{
	if (heap->cut && heap->n_packets == 0)
		group->n_open--;
}

/* The heap whose turn it is leaves the circle. */
static void leave_circle(struct xps_send_group *group, struct xps_sending *heap)
{
	heap->cut = true;
	group->n_uncut--;
	group->heaps[group->before].next = heap->next;
	group->turn = heap->next;
}

struct xps_sending *xps_send_group_next(struct xps_send_group *group, struct xps_arena *arena,
					struct xps_out_packet *packet)
{
	while (group->n_uncut) {
		struct xps_sending *heap = &group->heaps[group->turn];
		bool made = xps_packetise(&heap->packetiser, arena, packet);

		heap->n_packets += made;
		if (!made || xps_packetiser_done(&heap->packetiser)) {
			leave_circle(group, heap);
		} else if (group->mode == XPS_GROUP_ROUND_ROBIN) {
			group->before = group->turn;
			group->turn = heap->next;
		}
		if (made)
			return heap;
		close_if_done(group, heap);
	}
	return NULL;
}

void xps_send_group_sent(struct xps_send_group *group, struct xps_sending *heap, uint32_t bytes)
{
	group->bytes += bytes;
	heap->n_packets--;
	close_if_done(group, heap);
}

static void fail(struct xps_send_group *group, struct xps_sending *heap, int err)
{
	if (!heap->failed)
		group->n_failed++;
	heap->failed = true;
	if (!group->error)
		group->error = err;
}

void xps_send_group_failed(struct xps_send_group *group, struct xps_sending *heap, int err)
{
	fail(group, heap, err);
	heap->n_packets--;
	close_if_done(group, heap);
}

void xps_send_group_cancel(struct xps_send_group *group, int err)
{
	for (uint32_t i = 0; i < group->n; i++) {
		struct xps_sending *heap = &group->heaps[i];

		if (!heap->cut || heap->n_packets)
			fail(group, heap, err);
	}
	group->n_uncut = group->n_open = 0;
}
