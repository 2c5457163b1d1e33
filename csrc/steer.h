/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * steer - what the BPF program and the process that loads it tell each other: keys and values of the three maps.
 *
 * A *slot* is one reader's share of the maps. It owns as many consecutive entries in `sockets` and `counters` as the
 * interface has receive queues; the entry of (slot, queue) is `slot * n_queues + queue`. An endpoint carries the first
 * entry of its slot, so that the program needs to know nothing but the maps.
 *
 *     endpoints  hash, written by the process, read by the program
 *     sockets    XSKMAP, written by the process, read by the program
 *     counters   per-CPU array, written by the program, read (and zeroed before a slot is used again) by the process
 */
#pragma once

#include <linux/types.h>

#define XPS_STEER_SLOTS 64
#define XPS_STEER_ENDPOINTS 4096

/*
 * Key of `endpoints`. An address of zeros stands for any address of the family; port 0 stands for "fragments to this
 * address", which carry no port.
 */
struct xps_steer_endpoint {
	__u8 address[16]; /* IPv4 in the first four bytes, the rest zero */
	__be16 port;
	__u8 family; /* 4 or 6 */
	__u8 zero;
};

/* Value of `endpoints`. */
struct xps_steer_target {
	__u32 first; /* entry of the slot's queue 0 */
	__u32 n_queues;
};

/* Value of `counters`: packets. matched = redirected + no_socket + bad_length. */
struct xps_steer_counters {
	__u64 matched;    /* addressed to an endpoint, not fragments */
	__u64 redirected; /* given to the socket, which may still drop and count them */
	__u64 no_socket;  /* passed: the queue has no socket */
	__u64 bad_length; /* passed: UDP, IP and frame length disagree */
	__u64 fragments;  /* passed: fragments of UDP datagrams to the endpoint's address */
};

_Static_assert(sizeof(struct xps_steer_endpoint) == 20, "no padding in a hash key");
_Static_assert(sizeof(struct xps_steer_target) == 8, "same layout on both sides");
_Static_assert(sizeof(struct xps_steer_counters) == 40, "same layout on both sides");
