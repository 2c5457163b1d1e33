// SPDX-License-Identifier: Apache-2.0
#include "stats.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bits.h"

struct stat {
	const char *name;
	const char *reason;
	bool maximum;
};

_Static_assert(XPS_N_CORE_STATS == XPS_STAT_EMPTY_DATAGRAM, "the first statistic of our own follows spead2's");

static const struct stat table[XPS_N_STATS] = {
	[XPS_STAT_HEAPS] = { "heaps", NULL, false },
	[XPS_STAT_INCOMPLETE_HEAPS_EVICTED] = { "incomplete_heaps_evicted", NULL, false },
	[XPS_STAT_INCOMPLETE_HEAPS_FLUSHED] = { "incomplete_heaps_flushed", NULL, false },
	[XPS_STAT_PACKETS] = { "packets", NULL, false },
	[XPS_STAT_BATCHES] = { "batches", NULL, false },
	[XPS_STAT_MAX_BATCH] = { "max_batch", NULL, true },
	[XPS_STAT_SINGLE_PACKET_HEAPS] = { "single_packet_heaps", NULL, false },
	[XPS_STAT_SEARCH_DIST] = { "search_dist", NULL, false },
	[XPS_STAT_WORKER_BLOCKED] = { "worker_blocked", NULL, false },
	[XPS_STAT_EMPTY_DATAGRAM] = { "xdpspead.empty_datagram", "the datagram is empty", false },
	[XPS_STAT_TRUNCATED_DATAGRAM] = { "xdpspead.truncated_datagram", "longer than max_size", false },
	[XPS_STAT_BAD_MAGIC] = { "xdpspead.bad_magic", "not a SPEAD version 4 packet", false },
	[XPS_STAT_BAD_FLAVOUR] = { "xdpspead.bad_flavour", "item id and heap address widths do not make 64 bits",
				   false },
	[XPS_STAT_TRUNCATED_HEADER] = { "xdpspead.truncated_header", "shorter than its header", false },
	[XPS_STAT_MISSING_ITEM] = { "xdpspead.missing_item", "heap id, payload offset or payload length is missing",
				    false },
	[XPS_STAT_SHORT_PACKET] = { "xdpspead.short_packet", "payload length overflows the packet", false },
	[XPS_STAT_LONG_PACKET] = { "xdpspead.long_packet", "bytes after the payload", false },
	[XPS_STAT_OFFSET_OVERFLOW] = { "xdpspead.offset_overflow", "payload reaches beyond the end of the heap",
				       false },
	[XPS_STAT_GAP] = { "xdpspead.gap", "packets before it are missing", false },
	[XPS_STAT_LATE] = { "xdpspead.late", "its heap has gone out already", false },
	[XPS_STAT_BEHIND] = { "xdpspead.behind", "duplicate or out of order", false },
	[XPS_STAT_DUPLICATE] = { "xdpspead.duplicate", "duplicate", false },
	[XPS_STAT_OVERLAP] = { "xdpspead.overlap", "partially overlaps others", false },
	[XPS_STAT_LENGTH_MISMATCH] = { "xdpspead.length_mismatch", "heap length differs from the one known", false },
	[XPS_STAT_FLAVOUR_MISMATCH] = { "xdpspead.flavour_mismatch", "flavour differs from the heap's", false },
	[XPS_STAT_UNSIZED] = { "xdpspead.unsized", "no heap length, and allow_unsized_heaps is False", false },
	[XPS_STAT_TOO_LARGE] = { "xdpspead.too_large", "heap is larger than max_heap_size", false },
	[XPS_STAT_TOO_MANY_ITEMS] = { "xdpspead.too_many_items", "too many items in one heap", false },
	[XPS_STAT_TOO_MANY_RANGES] = { "xdpspead.too_many_ranges", "too many separate ranges in one heap", false },
	[XPS_STAT_NO_MEMORY] = { "xdpspead.no_memory", "no memory for the heap", false },
	[XPS_STAT_AFTER_STOP] = { "xdpspead.after_stop", "after the end of the stream", false },
	[XPS_STAT_HEAPS_DISCARDED] = { "xdpspead.heaps_discarded", NULL, false },
	[XPS_STAT_HEAPS_DROPPED_STOP] = { "xdpspead.heaps_dropped_stop", NULL, false },
	[XPS_STAT_UDP_PACKETS] = { "xdpspead.udp_packets", NULL, false },
	[XPS_STAT_UDP_KERNEL_DROPS] = { "xdpspead.udp_kernel_drops", NULL, false },
	[XPS_STAT_TCP_SKIPPED_BYTES] = { "xdpspead.tcp_skipped_bytes", NULL, false },
	[XPS_STAT_PCAP_PACKETS] = { "xdpspead.pcap_packets", NULL, false },
	[XPS_STAT_PCAP_FILTERED] = { "xdpspead.pcap_filtered", NULL, false },
	[XPS_STAT_PCAP_NOT_UDP] = { "xdpspead.pcap_not_udp", "not UDP over IP", false },
	[XPS_STAT_PCAP_FRAGMENTS] = { "xdpspead.pcap_fragments", "fragments of incomplete datagrams", false },
	[XPS_STAT_PCAP_BAD_LENGTH] = { "xdpspead.pcap_bad_length", "with wrong lengths", false },
	[XPS_STAT_PCAP_SNAPPED] = { "xdpspead.pcap_snapped", "cut short when captured", false },
	[XPS_STAT_PCAP_JOINED] = { "xdpspead.pcap_joined", NULL, false },
	[XPS_STAT_XDP_MATCHED] = { "xdpspead.xdp_matched", NULL, false },
	[XPS_STAT_XDP_REDIRECTED] = { "xdpspead.xdp_redirected", NULL, false },
	[XPS_STAT_XDP_NO_SOCKET] = { "xdpspead.xdp_no_socket", NULL, false },
	[XPS_STAT_XDP_BAD_LENGTH] = { "xdpspead.xdp_bad_length", NULL, false },
	[XPS_STAT_XDP_FRAGMENTS] = { "xdpspead.xdp_fragments", NULL, false },
	[XPS_STAT_XDP_EXTENSION_HEADERS] = { "xdpspead.xdp_extension_headers", NULL, false },
	[XPS_STAT_XDP_OTHER_SOURCE] = { "xdpspead.xdp_other_source", NULL, false },
	[XPS_STAT_XDP_BAD_FRAME] = { "xdpspead.xdp_bad_frame", "not a whole UDP datagram", false },
	[XPS_STAT_XDP_UNREAD_DROPS] = { "xdpspead.xdp_unread_drops", "the stream was not read in time", false },
	[XPS_STAT_XDP_RX_DROPPED] = { "xdpspead.xdp_rx_dropped", NULL, false },
	[XPS_STAT_XDP_RX_INVALID] = { "xdpspead.xdp_rx_invalid", NULL, false },
	[XPS_STAT_XDP_RX_RING_FULL] = { "xdpspead.xdp_rx_ring_full", NULL, false },
	[XPS_STAT_XDP_FILL_RING_EMPTY] = { "xdpspead.xdp_fill_ring_empty", NULL, false },
	[XPS_STAT_XDP_BUSY_POLLS] = { "xdpspead.xdp_busy_polls", NULL, false },
};

const char *xps_stat_name(int stat)
{
	return stat >= 0 && stat < XPS_N_STATS ? table[stat].name : NULL;
}

const char *xps_stat_reason(int stat)
{
	return stat >= 0 && stat < XPS_N_STATS && table[stat].reason ? table[stat].reason : "unknown";
}

bool xps_stat_is_maximum(int stat)
{
	return stat >= 0 && stat < XPS_N_STATS && table[stat].maximum;
}

void xps_stats_move(uint64_t *to, uint64_t *from)
{
	uint64_t *largest = &from[XPS_STAT_MAX_BATCH]; /* the only maximum */

	/* What it adds to the other: then all is a sum, and the compiler makes several at a time. */
	*largest = xps_max_u64(*largest, to[XPS_STAT_MAX_BATCH]) - to[XPS_STAT_MAX_BATCH];
	for (int i = 0; i < XPS_N_STATS; i++)
		to[i] += from[i];
	memset(from, 0, XPS_N_STATS * sizeof(*from));
}

struct xps_queue_table *xps_queue_table_new(const char *interface, uint32_t n)
{
	struct xps_queue_table *queues = calloc(1, sizeof(*queues) + n * sizeof(queues->rows[0]));

	if (!queues)
		return NULL;
	queues->n = n;
	for (uint32_t i = 0; i < n; i++) {
		snprintf(queues->rows[i].interface, sizeof(queues->rows[i].interface), "%s", interface);
		queues->rows[i].queue = i;
	}
	return queues;
}

uint64_t *xps_queue_stat(struct xps_queue_stats *row, int stat)
{
	return &row->values[stat - XPS_STAT_XDP_MATCHED];
}

bool xps_queue_matters(const struct xps_queue_stats *row)
{
	bool any = row->read;

	for (int i = 0; i < XPS_N_QUEUE_STATS; i++)
		any |= row->values[i] > 0;
	return any;
}

void xps_queue_add(uint64_t *stats, const struct xps_queue_stats *row)
{
	for (int i = 0; i < XPS_N_QUEUE_STATS; i++)
		stats[XPS_STAT_XDP_MATCHED + i] += row->values[i];
}
