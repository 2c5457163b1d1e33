// SPDX-License-Identifier: Apache-2.0
#include "xdp_claims.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { MIN_BUCKETS = 64 };

struct xps_xdp_claim_group {
	struct xps_steer_source key; /* see group_key() */
	struct xps_xdp_claim *oldest, *newest;
	struct xps_xdp_claim_group *next; /* in its bucket */
};

/* ---------------------------------------------------------------- groups */

/* What claims of a group have in common; zeros elsewhere, and the likeness where an endpoint has a zero. */
static struct xps_steer_source group_key(const struct xps_steer_source *key, enum xps_xdp_likeness likeness)
{
	struct xps_steer_source common = *key;

	if (likeness != XPS_XDP_SAME_ALL)
		memset(common.address, 0, sizeof(common.address));
	if (likeness == XPS_XDP_SAME_ADDRESS)
		common.to.port = 0;
	if (likeness == XPS_XDP_SAME_PORT)
		memset(common.to.address, 0, sizeof(common.to.address));
	common.to.zero = (__u8)likeness;
	return common;
}

/* FNV-1a: keys are the user's own, nobody has a reason to make them collide. */
static uint32_t hash(const struct xps_steer_source *key)
{
	const uint8_t *bytes = (const uint8_t *)key;
	uint32_t h = 2166136261u;

	for (size_t i = 0; i < sizeof(*key); i++)
		h = (h ^ bytes[i]) * 16777619u;
	return h ^ h >> 15;
}

static struct xps_xdp_claim_group **bucket_of(const struct xps_xdp_claims *claims, const struct xps_steer_source *key)
{
	return &claims->buckets[hash(key) & (claims->n_buckets - 1)];
}

static struct xps_xdp_claim_group *find_group(const struct xps_xdp_claims *claims, enum xps_xdp_likeness likeness,
					      const struct xps_steer_source *key)
{
	const struct xps_steer_source common = group_key(key, likeness);
	struct xps_xdp_claim_group *group = claims->n_buckets ? *bucket_of(claims, &common) : NULL;

	while (group && memcmp(&group->key, &common, sizeof(common)))
		group = group->next;
	return group;
}

/* Without memory for that the table gets slower, no more. */
static void grow(struct xps_xdp_claims *claims)
{
	const struct xps_xdp_claims old = *claims;
	const uint32_t n = old.n_buckets ? 2 * old.n_buckets : MIN_BUCKETS;
	struct xps_xdp_claim_group **buckets = calloc(n, sizeof(buckets[0]));

	if (!buckets)
		return;
	claims->buckets = buckets;
	claims->n_buckets = n;
	for (uint32_t i = 0; i < old.n_buckets; i++) {
		for (struct xps_xdp_claim_group *group = old.buckets[i], *next; group; group = next) {
			struct xps_xdp_claim_group **bucket = bucket_of(claims, &group->key);

			next = group->next;
			group->next = *bucket;
			*bucket = group;
		}
	}
	free(old.buckets);
}

static struct xps_xdp_claim_group *make_group(struct xps_xdp_claims *claims, enum xps_xdp_likeness likeness,
					      const struct xps_steer_source *key)
{
	struct xps_xdp_claim_group *group = calloc(1, sizeof(*group)), **bucket;

	if (group && claims->n_groups >= claims->n_buckets)
		grow(claims);
	if (!group || !claims->n_buckets) {
		free(group);
		return NULL;
	}
	group->key = group_key(key, likeness);
	bucket = bucket_of(claims, &group->key);
	group->next = *bucket;
	*bucket = group;
	claims->n_groups++;
	return group;
}

static void drop_group(struct xps_xdp_claims *claims, struct xps_xdp_claim_group *group)
{
	struct xps_xdp_claim_group **link = bucket_of(claims, &group->key);

	while (*link != group)
		link = &(*link)->next;
	*link = group->next;
	free(group);
	if (--claims->n_groups)
		return;
	free(claims->buckets);
	claims->buckets = NULL;
	claims->n_buckets = 0;
}

/* ---------------------------------------------------------------- claims in groups */

static int join(struct xps_xdp_claims *claims, struct xps_xdp_claim *claim, enum xps_xdp_likeness likeness)
{
	struct xps_xdp_claim_group *group = find_group(claims, likeness, &claim->key);

	if (!group)
		group = make_group(claims, likeness, &claim->key);
	if (!group)
		return -ENOMEM;
	claim->in[likeness].group = group;
	claim->in[likeness].older = group->newest;
	if (group->newest)
		group->newest->in[likeness].newer = claim;
	else
		group->oldest = claim;
	group->newest = claim;
	return 0;
}

static void leave(struct xps_xdp_claims *claims, struct xps_xdp_claim *claim, enum xps_xdp_likeness likeness)
{
	struct xps_xdp_claim_group *group = claim->in[likeness].group;
	struct xps_xdp_claim *older = claim->in[likeness].older, *newer = claim->in[likeness].newer;

	if (!group)
		return;
	*(older ? &older->in[likeness].newer : &group->oldest) = newer;
	*(newer ? &newer->in[likeness].older : &group->newest) = older;
	if (!group->oldest)
		drop_group(claims, group);
}

static void leave_all(struct xps_xdp_claims *claims, struct xps_xdp_claim *claim)
{
	for (enum xps_xdp_likeness i = 0; i < XPS_XDP_N_LIKENESSES; i++)
		leave(claims, claim, i);
}

/* ---------------------------------------------------------------- overlaps */

static bool sources_overlap(const struct xps_steer_source *a, const struct xps_steer_source *b)
{
	return xps_xdp_is_zero(a->address) || xps_xdp_is_zero(b->address) ||
	       !memcmp(a->address, b->address, sizeof(a->address));
}

/* Among the claims that are like `key` in this way, the first of another slot whose source is in the way. */
static const struct xps_xdp_claim *search(const struct xps_xdp_claims *claims, enum xps_xdp_likeness likeness,
					  const struct xps_steer_source *key, int slot)
{
	const struct xps_xdp_claim *claim = xps_xdp_claims_oldest(claims, likeness, key);

	while (claim && (claim->slot == slot || !sources_overlap(&claim->key, key)))
		claim = claim->in[likeness].newer;
	return claim;
}

/* The same for address and port of one source: it is either itself or any source that is in the way. */
static const struct xps_xdp_claim *look_up(const struct xps_xdp_claims *claims, const struct xps_steer_source *key,
					   int slot)
{
	const struct xps_steer_source any = { .to = key->to };
	const struct xps_xdp_claim *claim = xps_xdp_claims_oldest(claims, XPS_XDP_SAME_ALL, key);

	if (!claim || claim->slot == slot)
		claim = xps_xdp_claims_oldest(claims, XPS_XDP_SAME_ALL, &any);
	return claim && claim->slot != slot ? claim : NULL;
}

static const struct xps_xdp_claim *find_at(const struct xps_xdp_claims *claims, const struct xps_steer_source *key,
					   int slot)
{
	if (xps_xdp_is_zero(key->address))
		return search(claims, XPS_XDP_SAME_ENDPOINT, key, slot);
	return look_up(claims, key, slot);
}

static const struct xps_xdp_claim *find_overlap(const struct xps_xdp_claims *claims, const struct xps_steer_source *key,
						int slot)
{
	const struct xps_xdp_claim *claim;
	struct xps_steer_source anywhere = *key;

	if (xps_xdp_is_zero(key->to.address))
		return search(claims, XPS_XDP_SAME_PORT, key, slot);
	claim = find_at(claims, key, slot);
	memset(anywhere.to.address, 0, sizeof(anywhere.to.address));
	return claim ? claim : find_at(claims, &anywhere, slot);
}

/* ---------------------------------------------------------------- adding, taking, asking */

int xps_xdp_claims_add(struct xps_xdp_claims *claims, const struct xps_steer_source *key, int slot,
		       const struct xps_xdp_claim **other)
{
	struct xps_xdp_claim *claim;
	int err = 0;

	*other = find_overlap(claims, key, slot);
	if (*other)
		return -EADDRINUSE;
	if (xps_xdp_claims_oldest(claims, XPS_XDP_SAME_ALL, key))
		return 0;
	claim = calloc(1, sizeof(*claim));
	if (!claim)
		return -ENOMEM;
	claim->key = *key;
	claim->slot = slot;
	for (enum xps_xdp_likeness i = 0; i < XPS_XDP_N_LIKENESSES && !err; i++)
		err = join(claims, claim, i);
	if (err) {
		leave_all(claims, claim);
		free(claim);
		return err;
	}
	claim->next = claims->slots[slot];
	claims->slots[slot] = claim;
	return 0;
}

struct xps_xdp_claim *xps_xdp_claims_take(struct xps_xdp_claims *claims, int slot)
{
	struct xps_xdp_claim *list = claims->slots[slot];

	for (struct xps_xdp_claim *claim = list; claim; claim = claim->next)
		leave_all(claims, claim);
	claims->slots[slot] = NULL;
	return list;
}

void xps_xdp_claims_free_list(struct xps_xdp_claim *list)
{
	while (list) {
		struct xps_xdp_claim *next = list->next;

		free(list);
		list = next;
	}
}

const struct xps_xdp_claim *xps_xdp_claims_oldest(const struct xps_xdp_claims *claims, enum xps_xdp_likeness likeness,
						  const struct xps_steer_source *key)
{
	const struct xps_xdp_claim_group *group = find_group(claims, likeness, key);

	return group ? group->oldest : NULL;
}
