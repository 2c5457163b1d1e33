/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What the packet generator's two halves share: bpf/generate.bpf.c, which writes the packets inside
 * the kernel, and tests/bench/generate.c, which plans them, loads it and reads its counters.
 *
 * A packet has a fixed layout, so everything but a few fields is worked out once by the loader:
 *
 *   first packet of a heap   Ethernet | IPv4 | UDP | SPEAD header | 5 item pointers | payload
 *   every other packet               Ethernet | IPv4 | UDP | SPEAD header | 4 item pointers | payload
 *
 * Both end at the same byte and their payload starts at the same byte; the shorter headers start
 * GENERATE_POINTER_SIZE bytes later. The payload opens with a stamp (heap id << 16 | index of the
 * packet in its heap, big-endian), byte i after that is i modulo 256. If asked for, the 8 bytes behind
 * the stamp are the time at which the packet was written instead: CLOCK_MONOTONIC in nanoseconds,
 * big-endian.
 */
#ifndef XDPSPEAD_BENCH_GENERATE_H
#define XDPSPEAD_BENCH_GENERATE_H

#include <linux/types.h>

#define GENERATE_POINTER_SIZE 8
#define GENERATE_STAMP_SIZE 8
#define GENERATE_TIMESTAMP_SIZE 8
#define GENERATE_N_ITEMS_FIRST 5
#define GENERATE_N_ITEMS_OTHER 4
#define GENERATE_ITEM_ID 0x1000

/* A SPEAD-64-48 item pointer that holds its value itself. */
#define GENERATE_IMMEDIATE(id, value) (1ULL << 63 | (__u64)(id) << 48 | (value))
#define GENERATE_HEAP_CNT 1
#define GENERATE_HEAP_LENGTH 2
#define GENERATE_PAYLOAD_OFFSET 3
#define GENERATE_PAYLOAD_LENGTH 4

/* Times inside the program are in units of 2^-10 ns, so that a rate of 1.3 Mpps is not rounded. */
#define GENERATE_TIME_SHIFT 10

/* Everything that goes before the payload, as on the wire. */
struct generate_headers {
	__u8 eth_dst[6];
	__u8 eth_src[6];
	__be16 eth_proto;
	__u8 ip_version_ihl;
	__u8 ip_tos;
	__be16 ip_len;
	__be16 ip_id;
	__be16 ip_frag_off;
	__u8 ip_ttl;
	__u8 ip_protocol;
	__be16 ip_check;
	__be32 ip_src;
	__be32 ip_dst;
	__be16 udp_src;
	__be16 udp_dst;
	__be16 udp_len;
	__be16 udp_check;
	__u8 spead_magic;
	__u8 spead_version;
	__u8 spead_item_id_bytes;
	__u8 spead_address_bytes;
	__be16 spead_reserved;
	__be16 spead_n_items;
	__be64 heap_id;
	__be64 heap_length;
	__be64 payload_offset;
	__be64 payload_length;
	__be64 item; /* only in the first packet of a heap */
} __attribute__((packed));

/* The plan of one of the two kinds of packet. Written by the loader, read by the program. */
struct generate_plan {
	struct generate_headers headers __attribute__((aligned(8)));
	__u32 udp_sum; /* of all that does not change, unfolded */
};

/* Written by the program, one instance running on one core; read by the loader. */
struct generate_state {
	__u64 sent;     /* packets handed to the redirect */
	__u64 slips;    /* times the schedule was moved because the program ran too late */
	__u64 start_ns; /* CLOCK_MONOTONIC of the first packet, 0 before it */
	__u64 last_ns;  /* and of the latest one; only kept while pacing */
	__u64 due;      /* when the next one is due, from start_ns, in 2^-10 ns */
	__u64 heap;     /* heaps before this round of flows */
	__u32 index;    /* of the packet in its heap */
	__u32 flow;
};

_Static_assert(sizeof(struct generate_headers) == 14 + 20 + 8 + 8 + 5 * 8, "wire layout");
_Static_assert(sizeof(struct generate_state) == 56, "one layout on both sides");

#endif
