// SPDX-License-Identifier: Apache-2.0
/*
 * Who has which endpoint: claims of two slots never overlap, and the oldest claim is the one that counts. Compared with
 * a list that is searched from end to end; and large tables are made in no time.
 */
#include <errno.h>
#include <time.h>

#include "check.h"
#include "xdp_claims.h"

enum {
	SLOTS = 3,
	MAX_CLAIMS = 512,
};

/* Address 0 is any, source 0 is any. */
static struct xps_steer_source claim_key(unsigned family, unsigned address, unsigned port, unsigned source)
{
	struct xps_steer_source key = { .to = { .port = (__be16)port, .family = (__u8)family } };

	memcpy(key.to.address, &address, sizeof(address));
	memcpy(key.address, &source, sizeof(source));
	return key;
}

static int add(struct xps_xdp_claims *claims, int slot, struct xps_steer_source key)
{
	const struct xps_xdp_claim *other;

	return xps_xdp_claims_add(claims, &key, slot, &other);
}

static void drop(struct xps_xdp_claims *claims, int slot)
{
	xps_xdp_claims_free_list(xps_xdp_claims_take(claims, slot));
}

static void check_empty(const struct xps_xdp_claims *claims)
{
	CHECK(!claims->buckets);
	CHECK_EQ(claims->n_groups, 0);
}

static void test_what_overlaps_is_refused_and_what_does_not_is_not(void)
{
	static const struct {
		unsigned a[4], b[4];
		bool overlap;
	} cases[] = {
		{ { 4, 1, 7, 0 }, { 4, 1, 7, 0 }, true },  /* the same */
		{ { 4, 1, 7, 0 }, { 4, 2, 7, 0 }, false }, /* another address, */
		{ { 4, 1, 7, 0 }, { 4, 1, 8, 0 }, false }, /* port, */
		{ { 4, 1, 7, 0 }, { 6, 1, 7, 0 }, false }, /* family */
		{ { 4, 1, 7, 0 }, { 4, 0, 7, 0 }, true },  /* any address and one */
		{ { 4, 1, 7, 0 }, { 4, 0, 8, 0 }, false },
		{ { 4, 1, 7, 0 }, { 6, 0, 7, 0 }, false },
		{ { 4, 1, 7, 0 }, { 4, 1, 7, 5 }, true }, /* any source and one */
		{ { 4, 1, 7, 5 }, { 4, 1, 7, 5 }, true },
		{ { 4, 1, 7, 5 }, { 4, 1, 7, 6 }, false }, /* another source */
		{ { 4, 1, 7, 5 }, { 4, 0, 7, 0 }, true },
		{ { 4, 1, 7, 0 }, { 4, 0, 7, 5 }, true },
		{ { 4, 1, 7, 5 }, { 4, 0, 7, 5 }, true },
		{ { 4, 1, 7, 5 }, { 4, 0, 7, 6 }, false },
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		const unsigned *a = cases[i].a, *b = cases[i].b;
		const struct xps_steer_source keys[] = { claim_key(a[0], a[1], a[2], a[3]),
							 claim_key(b[0], b[1], b[2], b[3]) };

		for (int first = 0; first < 2; first++) { /* and in the other order */
			struct xps_xdp_claims claims = { 0 };
			const struct xps_xdp_claim *other;
			const int expected = cases[i].overlap ? -EADDRINUSE : 0;

			CHECK_EQ(add(&claims, 5, keys[first]), 0);
			CHECK_EQ(add(&claims, 5, keys[!first]), 0); /* of one slot they may */
			drop(&claims, 5);
			CHECK_EQ(add(&claims, 5, keys[first]), 0);
			CHECK_EQ(xps_xdp_claims_add(&claims, &keys[!first], 6, &other), expected);
			if (cases[i].overlap) {
				CHECK_EQ(other->slot, 5);
				CHECK(!memcmp(&other->key, &keys[first], sizeof(other->key)));
			}
			drop(&claims, 5);
			drop(&claims, 6);
			check_empty(&claims);
		}
	}
}

/* ---------------------------------------------------------------- against a list */

struct model {
	struct entry {
		unsigned family, address, port, source;
		int slot;
	} entries[MAX_CLAIMS];
	int n;
};

static bool meet(unsigned a, unsigned b)
{
	return a == b || !a || !b;
}

static bool model_add(struct model *m, struct entry e)
{
	for (int i = 0; i < m->n; i++) {
		const struct entry *o = &m->entries[i];
		const bool same = o->address == e.address && o->source == e.source;

		if (o->family != e.family || o->port != e.port)
			continue;
		if (o->slot == e.slot && same)
			return true;
		if (o->slot != e.slot && meet(o->address, e.address) && meet(o->source, e.source))
			return false;
	}
	CHECK(m->n < MAX_CLAIMS);
	m->entries[m->n++] = e;
	return true;
}

static void model_drop(struct model *m, int slot)
{
	int n = 0;

	for (int i = 0; i < m->n; i++)
		if (m->entries[i].slot != slot)
			m->entries[n++] = m->entries[i];
	m->n = n;
}

static int model_oldest(const struct model *m, enum xps_xdp_likeness likeness, struct entry e)
{
	for (int i = 0; i < m->n; i++) {
		const struct entry *o = &m->entries[i];
		const bool port = o->port == e.port, address = o->address == e.address;
		const bool like[] = {
			[XPS_XDP_SAME_ALL] = port && address && o->source == e.source,
			[XPS_XDP_SAME_ENDPOINT] = port && address,
			[XPS_XDP_SAME_ADDRESS] = address,
			[XPS_XDP_SAME_PORT] = port,
		};

		if (o->family == e.family && like[likeness])
			return o->slot;
	}
	return -1;
}

static void check_oldest(const struct xps_xdp_claims *claims, const struct model *m, struct entry e)
{
	const struct xps_steer_source key = claim_key(e.family, e.address, e.port, e.source);

	for (enum xps_xdp_likeness i = 0; i < XPS_XDP_N_LIKENESSES; i++) {
		const struct xps_xdp_claim *oldest = xps_xdp_claims_oldest(claims, i, &key);

		CHECK_EQ(oldest ? oldest->slot : -1, model_oldest(m, i, e));
	}
}

static unsigned below(unsigned n)
{
	static uint32_t state = 1;

	state = state * 1664525u + 1013904223u;
	return (state >> 16) % n;
}

static void test_table_does_what_a_list_would(void)
{
	struct xps_xdp_claims claims = { 0 };
	struct model model = { .n = 0 };
	int refused = 0;

	for (int i = 0; i < 200000; i++) {
		const struct entry e = {
			.family = below(8) ? 4 : 6,
			.address = below(6),
			.port = 1 + below(4),
			.source = below(6),
			.slot = (int)below(SLOTS),
		};
		const struct xps_steer_source key = claim_key(e.family, e.address, e.port, e.source);

		if (below(20) == 0) {
			drop(&claims, e.slot);
			model_drop(&model, e.slot);
		} else {
			const int expected = model_add(&model, e) ? 0 : -EADDRINUSE;

			CHECK_EQ(add(&claims, e.slot, key), expected);
			refused += expected != 0;
		}
		check_oldest(&claims, &model, e);
	}
	CHECK(refused > 1000);
	for (int slot = 0; slot < SLOTS; slot++)
		drop(&claims, slot);
	check_empty(&claims);
}

/* ---------------------------------------------------------------- many */

static double seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
	return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* 64 slots with 1024 endpoints each, which differ in one way. A list would be searched for minutes. */
static void test_many_endpoints_take_no_time(struct xps_steer_source (*nth)(unsigned i))
{
	struct xps_xdp_claims claims = { 0 };
	const double start = seconds();

	for (unsigned i = 0; i < 64 * 1024; i++)
		CHECK_EQ(add(&claims, (int)(i / 1024), nth(i + 1)), 0);
	for (unsigned i = 0; i < 64 * 1024; i++) {
		const struct xps_steer_source key = nth(i + 1);

		CHECK_EQ(xps_xdp_claims_oldest(&claims, XPS_XDP_SAME_ALL, &key)->slot, i / 1024);
	}
	for (int slot = 0; slot < 64; slot++)
		drop(&claims, slot);
	check_empty(&claims);
	CHECK(seconds() - start < 5);
}

static struct xps_steer_source nth_address(unsigned i)
{
	return claim_key(4, i, 7148, 0);
}

static struct xps_steer_source nth_port(unsigned i)
{
	return claim_key(4, 1 + i / 60000, i % 60000, 0);
}

static struct xps_steer_source nth_source(unsigned i)
{
	return claim_key(4, 1, 7148, i);
}

static struct xps_steer_source nth_any_address(unsigned i)
{
	return claim_key(i & 1 ? 4 : 6, 0, i / 2, 0);
}

int main(void)
{
	test_what_overlaps_is_refused_and_what_does_not_is_not();
	test_table_does_what_a_list_would();
	test_many_endpoints_take_no_time(nth_address);
	test_many_endpoints_take_no_time(nth_port);
	test_many_endpoints_take_no_time(nth_source);
	test_many_endpoints_take_no_time(nth_any_address);
	return 0;
}
