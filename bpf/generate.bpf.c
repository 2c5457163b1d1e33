// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * A packet generator for tests and benchmarks: writes SPEAD packets and redirects them into an
 * interface. It is attached to nothing; its loader, tests/bench/generate.c, runs it with
 * BPF_PROG_TEST_RUN and BPF_F_TEST_XDP_LIVE_FRAMES.
 *
 * How it works: each run is handed a page whose payload the loader wrote once and which comes back
 * after a packet was consumed, with the headers some earlier packet had. So every run that sends
 * writes all headers from one of two plans, and patches what changes. Each test-run call costs
 * milliseconds of set-up, so one call runs for the whole measurement and pacing is done here: a run
 * before the next packet is due, or after the last one, gives its page back with XDP_DROP, which
 * takes some 30 ns. The schedule is absolute, so that a late packet does not lower the rate, but it
 * is moved when the program ran later than max_behind, so that no burst is longer than that.
 */
#include <linux/bpf.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "generate.h"

/* The knobs, set by the loader before the program is loaded. */
const volatile __u32 ifindex = 0;
const volatile __u64 count = 0;
const volatile __u64 interval = 0;   /* between packets in 2^-10 ns; 0: no pacing */
const volatile __u64 max_behind = 0; /* in 2^-10 ns */
const volatile __u64 first_heap = 1;
const volatile __u32 packets_per_heap = 64;
const volatile __u32 payload_size = 1024;
const volatile __u32 flows = 1;
const volatile __u16 port = 0;
const volatile __u16 port_step = 1;
const volatile __u16 source_port = 0;
const volatile __u8 udp_checksum = 0;
const volatile __u8 whole_heaps = 0; /* flows take turns heap by heap, not packet by packet */
const volatile __u8 timestamp = 0;   /* write the time behind the stamp */

/* Written by the loader before the program runs. */
struct generate_plan first_plan = {};
struct generate_plan other_plan = {};

/* Written here, read by the loader. */
struct generate_state state = {};

static __always_inline int is_due(void)
{
	__u64 now, elapsed;

	if (!interval && state.start_ns)
		return 1;
	now = bpf_ktime_get_ns();
	if (!state.start_ns)
		state.start_ns = now;
	elapsed = (now - state.start_ns) << GENERATE_TIME_SHIFT;
	if (elapsed < state.due)
		return 0;
	if (elapsed - state.due > max_behind) {
		state.due = elapsed - max_behind;
		state.slips++;
	}
	state.due += interval;
	state.last_ns = now;
	return 1;
}

/* Along the heap, then round the flows, then to the next heap of each. */
static __always_inline void advance_whole_heaps(void)
{
	if (++state.index < packets_per_heap)
		return;
	state.index = 0;
	if (++state.flow < flows)
		return;
	state.flow = 0;
	state.heap++;
}

/* Steps to the next packet: round the flows, then along the heap, then to the next heap. */
static __always_inline void advance(void)
{
	state.sent++;
	if (whole_heaps) {
		advance_whole_heaps();
		return;
	}
	if (++state.flow < flows)
		return;
	state.flow = 0;
	if (++state.index < packets_per_heap)
		return;
	state.index = 0;
	state.heap++;
}

static __always_inline __u32 add_words(__u32 sum, __u64 value)
{
	return sum + (__u16)value + (__u16)(value >> 16) + (__u16)(value >> 32) + (value >> 48);
}

static __always_inline __u16 fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = ~sum & 0xffff;
	return sum ? sum : 0xffff; /* 0 would say that there is no checksum */
}

/* A page's data is aligned to 8 bytes, and so are the plans; the headers' type cannot say so. */
#define COPY(to, from, size) __builtin_memcpy(__builtin_assume_aligned(to, 8), from, size)

/* The wire's fields are not aligned; the two architectures that run this do not mind. */
static __always_inline void store(void *to, __u64 value)
{
	*(__be64 *)to = bpf_cpu_to_be64(value);
}

static __always_inline void patch(struct generate_headers *h, void *stamp, __u32 udp_sum)
{
	__u64 heap_id = first_heap + state.heap * flows + state.flow;
	__u64 offset = (__u64)state.index * payload_size;
	__u64 mark = heap_id << 16 | state.index;
	__u16 step = port_step * state.flow;
	__u64 now = 0;

	store(&h->heap_id, GENERATE_IMMEDIATE(GENERATE_HEAP_CNT, heap_id));
	store(&h->payload_offset, GENERATE_IMMEDIATE(GENERATE_PAYLOAD_OFFSET, offset));
	h->udp_src = bpf_htons(source_port + state.flow);
	h->udp_dst = bpf_htons(port + step);
	store(stamp, mark);
	if (timestamp) {
		now = bpf_ktime_get_ns();
		store(stamp + GENERATE_STAMP_SIZE, now);
	}
	if (!udp_checksum)
		return;
	udp_sum = add_words(udp_sum, heap_id);
	udp_sum = add_words(udp_sum, offset);
	udp_sum = add_words(udp_sum, mark);
	udp_sum = add_words(udp_sum, now);
	udp_sum += (__u16)(source_port + state.flow) + (__u16)(port + step);
	h->udp_check = bpf_htons(fold(udp_sum));
}

static __always_inline int stamps_size(void)
{
	return timestamp ? GENERATE_STAMP_SIZE + GENERATE_TIMESTAMP_SIZE : GENERATE_STAMP_SIZE;
}

static __always_inline int write_first(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct generate_headers *h = data;
	void *stamp = data + sizeof(*h);

	if (stamp + stamps_size() > end)
		return -1;
	COPY(h, &first_plan.headers, sizeof(*h));
	patch(h, stamp, first_plan.udp_sum);
	return 0;
}

static __always_inline int write_other(struct xdp_md *ctx)
{
	const int size = sizeof(struct generate_headers) - GENERATE_POINTER_SIZE;
	struct generate_headers *h;
	void *stamp;
	void *end;

	if (bpf_xdp_adjust_head(ctx, GENERATE_POINTER_SIZE))
		return -1;
	h = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	stamp = (void *)h + size;
	if (stamp + stamps_size() > end)
		return -1;
	COPY(h, &other_plan.headers, size);
	patch(h, stamp, other_plan.udp_sum);
	return 0;
}

SEC("xdp")
int generate(struct xdp_md *ctx)
{
	int error;

	if (state.sent >= count || !is_due())
		return XDP_DROP;
	error = state.index ? write_other(ctx) : write_first(ctx);
	if (error)
		return XDP_ABORTED;
	advance();
	return bpf_redirect(ifindex, 0);
}

char _license[] SEC("license") = "Dual BSD/GPL";
