/* SPDX-License-Identifier: Apache-2.0 */
/*
 * xdp_claims - which reader has which endpoint of an interface.
 *
 * A claim is an endpoint, from any source or from one, and the slot that has it. Claims of different slots never overlap:
 * no packet is for two readers. Those of one slot may. The table knows neither the kernel nor the program's maps; who
 * adds and takes claims keeps those up to date (xdp_port.c).
 *
 * How it works
 *
 * Each claim is in four groups, of claims that are alike in some way (enum below), and a hash table finds the group of a
 * key. So what is asked of the table is the oldest claim of a group, and adding to it does not get slower as it grows.
 * Two kinds of question go through a whole group: a new endpoint of any address through all claims for its port, and a
 * new endpoint of any source through all that are for its address and port, or for its port on any address.
 *
 * Not locked.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "steer.h"

enum xps_xdp_likeness {
	XPS_XDP_SAME_ALL,      /* address, port and source: never of two slots */
	XPS_XDP_SAME_ENDPOINT, /* address and port */
	XPS_XDP_SAME_ADDRESS,
	XPS_XDP_SAME_PORT, /* and family */
	XPS_XDP_N_LIKENESSES
};

struct xps_xdp_claim_group;

struct xps_xdp_claim {
	struct xps_steer_source key; /* address of zeros: any source */
	int slot;
	struct xps_xdp_claim *next; /* of the slot, in no order */
	struct {
		struct xps_xdp_claim_group *group;
		struct xps_xdp_claim *older, *newer;
	} in[XPS_XDP_N_LIKENESSES];
};

/* Begins as zeros. */
struct xps_xdp_claims {
	struct xps_xdp_claim_group **buckets;
	uint32_t n_buckets, n_groups;
	struct xps_xdp_claim *slots[XPS_STEER_SLOTS];
};

/*
 * 0, also if the slot has this claim already; -EADDRINUSE, and `other`, if another slot has one that overlaps with it;
 * -ENOMEM.
 */
int xps_xdp_claims_add(struct xps_xdp_claims *claims, const struct xps_steer_source *key, int slot,
		       const struct xps_xdp_claim **other);
/* Take all claims of a slot out of the table. The list is the caller's, to be freed. */
struct xps_xdp_claim *xps_xdp_claims_take(struct xps_xdp_claims *claims, int slot);
void xps_xdp_claims_free_list(struct xps_xdp_claim *list);

/* The oldest claim that is like `key` in this way, or NULL. */
const struct xps_xdp_claim *xps_xdp_claims_oldest(const struct xps_xdp_claims *claims, enum xps_xdp_likeness likeness,
						  const struct xps_steer_source *key);

static inline bool xps_xdp_is_zero(const __u8 address[16])
{
	static const __u8 zeros[16];

	return !__builtin_memcmp(address, zeros, sizeof(zeros));
}
