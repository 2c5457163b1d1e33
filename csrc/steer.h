/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * steer - what the BPF program and the process that loads it tell each other: keys and values of the five maps.
 *
 * A *slot* is one reader's share of the maps. It owns as many consecutive entries in `sockets` and `counters` as the
 * interface has receive queues; the entry of (slot, queue) is `slot * n_queues + queue`. An endpoint carries the first
 * entry of its slot, so that the program needs to know nothing but the maps.
 *
 *     endpoints  hash, written by the process, read by the program
 *     sources    hash, likewise: for endpoints that are received from certain sources only
 *     sockets    XSKMAP, written by the process, read by the program
 *     counters   per-CPU array, written by the program, read (and zeroed before a slot is used again) by the process
 *     passed     per-CPU array of one entry, written by the program, read by the process: what is for no slot
 */
#pragma once

#include <linux/types.h>

#define XPS_STEER_SLOTS 64
#define XPS_STEER_ENDPOINTS (1 << 17) /* entries, those for fragments included; they take memory when they are used */

/*
 * Key of `endpoints`. An address of zeros stands for any address of the family; port 0 stands for "fragments to this
 * address", and other packets whose port is not looked at.
 */
struct xps_steer_endpoint {
	__u8 address[16]; /* IPv4 in the first four bytes, the rest zero */
	__be16 port;
	__u8 family; /* 4 or 6 */
	__u8 zero;
};

/* Key of `sources`. */
struct xps_steer_source {
	struct xps_steer_endpoint to;
	__u8 address[16]; /* of the source; IPv4 in the first four bytes, the rest zero */
};

/* Value of `endpoints` and of `sources`. */
struct xps_steer_target {
	__u32 first; /* entry of the slot's queue 0 */
	__u32 n_queues;
	__u32 by_source; /* in `endpoints`: `sources` tells where the packet goes. This one counts those it does not know */
};

/* Value of `counters`: packets. matched = redirected + no_socket + bad_length. */
struct xps_steer_counters {
	__u64 matched;      /* addressed to an endpoint, not fragments */
	__u64 redirected;   /* given to the socket, which may still drop and count them */
	__u64 no_socket;    /* passed: the queue has no socket */
	__u64 bad_length;   /* passed: UDP, IP and frame length disagree */
	__u64 fragments;    /* passed: fragments of UDP datagrams to the endpoint's address */
	__u64 extensions;   /* passed: likewise, with IPv6 extension headers in front of UDP */
	__u64 other_source; /* passed: addressed to an endpoint, but from none of its sources */
};

/* Value of `passed`: packets that were passed and are in no slot's counters. */
struct xps_steer_passed {
	__u64 unparsed; /* IP, perhaps: more than two VLAN tags, or headers that are cut short or contradict themselves */
	__u64 others;   /* for no endpoint: other ports, addresses and protocols */
};

_Static_assert(sizeof(struct xps_steer_endpoint) == 20, "no padding in a hash key");
_Static_assert(sizeof(struct xps_steer_source) == 36, "no padding in a hash key");
_Static_assert(sizeof(struct xps_steer_target) == 12, "same layout on both sides");
_Static_assert(sizeof(struct xps_steer_counters) == 56, "same layout on both sides");
_Static_assert(sizeof(struct xps_steer_passed) == 16, "same layout on both sides");
