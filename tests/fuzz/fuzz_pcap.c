// SPDX-License-Identifier: Apache-2.0
/*
 * Proves that no capture file, through libpcap, decompression, reassembly and a whole stream, does harm or keeps the
 * stream from ending, and that every packet read is accounted for in exactly one statistic.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "slow_packet.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { DEADLINE_MS = 60000 };

struct fixture {
	struct xps_pool *pool;
	struct xps_allocator *allocator;
	struct xps_log *log;
};

static const struct fixture *fixture(void)
{
	static struct fixture f;
	struct xps_fail fail = { 0 };

	if (!f.pool) {
		f.pool = xps_pool_new(1, NULL, 0, &fail);
		f.allocator = xps_allocator_new();
		f.log = xps_log_new();
		EXPECT(f.pool && f.allocator && f.log);
	}
	return &f;
}

static struct xps_stream *new_stream(uint8_t flags)
{
	const struct fixture *f = fixture();
	const struct xps_stream_config config = {
		.max_heaps = 2,
		.substreams = 1,
		.max_heap_size = 1 << 20,
		.ring_heaps = flags & 1 ? 1 : 1000,
		.stop_on_stop_item = true,
		.allow_unsized_heaps = true,
		.allow_out_of_order = true,
	};
	struct xps_fail fail = { 0 };
	struct xps_stream *stream = xps_stream_new(f->pool, &config, f->allocator, f->log, &fail);

	EXPECT(stream);
	return stream;
}

static void check_stats(struct xps_stream *stream)
{
	uint64_t stats[XPS_N_STATS], sum;

	xps_stream_stats(stream, stats);
	sum = stats[XPS_STAT_PACKETS] + stats[XPS_STAT_AFTER_STOP] + stats[XPS_STAT_PCAP_FILTERED] +
	      stats[XPS_STAT_PCAP_NOT_UDP] + stats[XPS_STAT_PCAP_FRAGMENTS] + stats[XPS_STAT_PCAP_JOINED] +
	      stats[XPS_STAT_PCAP_BAD_LENGTH] + stats[XPS_STAT_PCAP_SNAPPED];
	for (int i = XPS_STAT_EMPTY_DATAGRAM; i <= XPS_STAT_OFFSET_OVERFLOW; i++)
		sum += stats[i];
	EXPECT(stats[XPS_STAT_PCAP_PACKETS] == sum);
}

static void read_to_the_end(struct xps_stream *stream)
{
	struct xps_heap *heap;
	int n;

	do {
		n = xps_stream_pop(stream, &heap, 1, DEADLINE_MS);
		if (n == 1)
			xps_heap_free(heap);
	} while (n == 1 || n == -EINTR); /* the fuzzer has an alarm clock */
	EXPECT(n == -EPIPE);
}

/* The first byte chooses a filter and how the stream is read; the rest is the file. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const char *const filters[] = { "", "udp", "ip6 or vlan", "udp port 7148" };
	struct xps_fail fail = { 0 };
	struct xps_capture *capture;
	struct xps_stream *stream;
	char path[64];
	int fd;

	if (size < 1)
		return 0;
	fd = memfd_create("capture", MFD_CLOEXEC);
	EXPECT(fd >= 0 && write(fd, data + 1, size - 1) == (ssize_t)(size - 1));
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	capture = xps_capture_open(path, filters[data[0] >> 2 & 3], &fail);
	close(fd);
	if (!capture) {
		EXPECT(fail.err && fail.step[0] && fail.text[0]);
		return 0;
	}
	stream = new_stream(data[0]);
	EXPECT(xps_add_pcap_reader(stream, capture, &fail) == 0);
	xps_capture_free(capture);
	if (data[0] & 2)
		xps_stream_stop(stream);
	read_to_the_end(stream);
	xps_stream_stop(stream);
	check_stats(stream);
	xps_stream_free(stream);
	return 0;
}
