// SPDX-License-Identifier: Apache-2.0
#include "xdp_port.h"

#include <arpa/inet.h>
#include <errno.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <bpf/bpf.h>

/* More than any NIC has; keeps the maps' sizes far from overflow. */
#define MAX_QUEUES 4096

/* One endpoint and the slot that owns it. */
struct xps_xdp_claim {
	struct xps_steer_endpoint key;
	int slot;
	struct xps_xdp_claim *next;
};

static uint32_t entry_of(const struct xps_xdp_port *port, int slot, uint32_t queue)
{
	return (uint32_t)slot * (uint32_t)port->config.n_queues + queue;
}

/* ---------------------------------------------------------------- port */

static int check_config(const struct xps_xdp_port_config *config, struct xps_fail *fail)
{
	char name[IF_NAMESIZE];

	if (config->ifindex <= 0 || !if_indextoname((unsigned)config->ifindex, name))
		return xps_fail_set(fail, ENODEV, "find interface",
				    "There is no interface with index %d in this network namespace.", config->ifindex);
	if (config->n_queues < 1 || config->n_queues > MAX_QUEUES)
		return xps_fail_set(fail, EINVAL, "find queues",
				    "The number of receive queues is %d; it must be 1 to %d.", config->n_queues,
				    MAX_QUEUES);
	return 0;
}

static struct xps_xdp_port *port_alloc(const struct xps_xdp_port_config *config)
{
	struct xps_xdp_port *port = calloc(1, sizeof(*port));

	if (!port)
		return NULL;
	port->queues = calloc((size_t)config->n_queues, sizeof(port->queues[0]));
	if (!port->queues) {
		free(port);
		return NULL;
	}
	port->config = *config;
	if_indextoname((unsigned)config->ifindex, port->name);
	atomic_init(&port->refs, 1);
	pthread_mutex_init(&port->lock, NULL);
	return port;
}

struct xps_xdp_port *xps_xdp_port_new(const struct xps_xdp_port_config *config, struct xps_fail *fail)
{
	const enum xps_xdp_variant best = config->multi_buffer ? XPS_XDP_FRAGS : XPS_XDP_PLAIN;
	struct xps_xdp_port *port;

	if (check_config(config, fail))
		return NULL;
	port = port_alloc(config);
	if (!port) {
		xps_fail_set(fail, ENOMEM, "allocate", "Not enough memory for the interface's state.");
		return NULL;
	}
	if (xps_xdp_program_load(&port->program, (uint32_t)config->n_queues, best, fail) ||
	    xps_xdp_program_attach(&port->program, config, fail)) {
		xps_xdp_port_free(port);
		return NULL;
	}
	return port;
}

void xps_xdp_port_ref(struct xps_xdp_port *port)
{
	atomic_fetch_add(&port->refs, 1);
}

void xps_xdp_port_free(struct xps_xdp_port *port)
{
	if (!port || atomic_fetch_sub(&port->refs, 1) != 1)
		return;
	xps_xdp_program_unload(&port->program);
	pthread_mutex_destroy(&port->lock);
	free(port->queues);
	free(port);
}

uint32_t xps_xdp_port_program_id(struct xps_xdp_port *port)
{
	return port->program.id;
}

int xps_xdp_port_mode(struct xps_xdp_port *port)
{
	int mode;

	pthread_mutex_lock(&port->lock);
	mode = port->program.mode;
	pthread_mutex_unlock(&port->lock);
	return mode;
}

/* ---------------------------------------------------------------- counters */

/* Memory for one entry of `counters`: a value for each possible CPU. */
static struct xps_steer_counters *counters_alloc(const struct xps_xdp_port *port)
{
	return calloc(port->program.n_cpus, sizeof(struct xps_steer_counters));
}

static void counters_add(struct xps_steer_counters *sum, const struct xps_steer_counters *c)
{
	sum->matched += c->matched;
	sum->redirected += c->redirected;
	sum->no_socket += c->no_socket;
	sum->bad_length += c->bad_length;
	sum->fragments += c->fragments;
}

static void sum_queue(struct xps_xdp_port *port, int slot, uint32_t queue, struct xps_steer_counters *values,
		      struct xps_steer_counters *sum)
{
	const uint32_t entry = entry_of(port, slot, queue);

	if (bpf_map_lookup_elem(port->program.counters_fd, &entry, values))
		return;
	for (uint32_t cpu = 0; cpu < port->program.n_cpus; cpu++)
		counters_add(sum, &values[cpu]);
}

struct xps_steer_counters xps_xdp_port_queue_counters(struct xps_xdp_port *port, int slot, uint32_t queue)
{
	struct xps_steer_counters sum = { 0 }, *values = counters_alloc(port);

	if (values)
		sum_queue(port, slot, queue, values, &sum);
	free(values);
	return sum;
}

struct xps_steer_counters xps_xdp_port_counters(struct xps_xdp_port *port, int slot)
{
	struct xps_steer_counters sum = { 0 }, *values = counters_alloc(port);

	for (uint32_t queue = 0; values && queue < (uint32_t)port->config.n_queues; queue++)
		sum_queue(port, slot, queue, values, &sum);
	free(values);
	return sum;
}

static int zero_counters(struct xps_xdp_port *port, int slot)
{
	struct xps_steer_counters *zeros = counters_alloc(port);
	int err = zeros ? 0 : -ENOMEM;

	for (uint32_t queue = 0; !err && queue < (uint32_t)port->config.n_queues; queue++) {
		const uint32_t entry = entry_of(port, slot, queue);

		if (bpf_map_update_elem(port->program.counters_fd, &entry, zeros, BPF_ANY))
			err = -errno;
	}
	free(zeros);
	return err;
}

/* ---------------------------------------------------------------- slots */

static int find_slot(struct xps_xdp_port *port)
{
	for (int slot = 0; slot < XPS_STEER_SLOTS; slot++) {
		if (!port->slots[slot]) {
			port->slots[slot] = true;
			return slot;
		}
	}
	return -ENOSPC;
}

/* Caller locks. */
static bool in_use(const struct xps_xdp_port *port)
{
	for (int slot = 0; slot < XPS_STEER_SLOTS; slot++)
		if (port->slots[slot])
			return true;
	return false;
}

bool xps_xdp_port_in_use(struct xps_xdp_port *port)
{
	bool used;

	pthread_mutex_lock(&port->lock);
	used = in_use(port);
	pthread_mutex_unlock(&port->lock);
	return used;
}

int xps_xdp_port_take_slot(struct xps_xdp_port *port, struct xps_fail *fail)
{
	int slot, err = 0;

	pthread_mutex_lock(&port->lock);
	/* Its last reader may have gone, and the program with it, just before this one came. */
	if (port->program.link_fd < 0)
		err = xps_xdp_program_attach(&port->program, &port->config, fail);
	slot = err ? err : find_slot(port);
	pthread_mutex_unlock(&port->lock);
	if (err)
		return err;
	if (slot < 0)
		return xps_fail_set(fail, ENOSPC, "take slot",
				    "This process has %d AF_XDP readers on %s already, the most there may be. Give one "
				    "reader several endpoints instead.",
				    XPS_STEER_SLOTS, port->name);
	err = zero_counters(port, slot);
	if (err) {
		xps_xdp_port_give_slot(port, slot);
		return xps_fail_set(fail, -err, "clear counters", "Cannot write the program's counters: %s.",
				    strerror(-err));
	}
	return slot;
}

int xps_xdp_port_set_socket(struct xps_xdp_port *port, int slot, uint32_t queue, int fd, struct xps_fail *fail)
{
	const uint32_t entry = entry_of(port, slot, queue);
	int err;

	if (!bpf_map_update_elem(port->program.sockets_fd, &entry, &fd, BPF_ANY))
		return 0;
	err = errno;
	return xps_fail_set(fail, err, "steer queue",
			    "Cannot put the socket of queue %u of %s into the program's map: %s.", queue, port->name,
			    strerror(err));
}

static void clear_sockets(struct xps_xdp_port *port, int slot)
{
	for (uint32_t queue = 0; queue < (uint32_t)port->config.n_queues; queue++) {
		const uint32_t entry = entry_of(port, slot, queue);

		bpf_map_delete_elem(port->program.sockets_fd, &entry);
	}
}

/* ---------------------------------------------------------------- endpoints */

static struct xps_steer_endpoint key_of(const struct xps_xdp_endpoint *endpoint)
{
	struct xps_steer_endpoint key = { .port = htons(endpoint->port), .family = endpoint->family };

	memcpy(key.address, endpoint->address, endpoint->family == 4 ? 4 : 16);
	return key;
}

static struct xps_steer_endpoint without_port(const struct xps_steer_endpoint *key)
{
	struct xps_steer_endpoint address = *key;

	address.port = 0;
	return address;
}

static bool same(const struct xps_steer_endpoint *a, const struct xps_steer_endpoint *b)
{
	return !memcmp(a, b, sizeof(*a));
}

static int map_put(struct xps_xdp_port *port, const struct xps_steer_endpoint *key, int slot)
{
	const struct xps_steer_target target = {
		.first = entry_of(port, slot, 0),
		.n_queues = (uint32_t)port->config.n_queues,
	};

	return bpf_map_update_elem(port->program.endpoints_fd, key, &target, BPF_ANY) ? -errno : 0;
}

/* Fragments to an address are counted for the oldest claim on it that is left. Caller locks. */
static int map_fragments(struct xps_xdp_port *port, const struct xps_steer_endpoint *key)
{
	const struct xps_steer_endpoint address = without_port(key);

	for (const struct xps_xdp_claim *claim = port->claims; claim; claim = claim->next) {
		const struct xps_steer_endpoint other = without_port(&claim->key);

		if (same(&other, &address))
			return map_put(port, &address, claim->slot);
	}
	bpf_map_delete_elem(port->program.endpoints_fd, &address);
	return 0;
}

static struct xps_xdp_claim *find_claim(struct xps_xdp_port *port, const struct xps_steer_endpoint *key)
{
	struct xps_xdp_claim *claim = port->claims;

	while (claim && !same(&claim->key, key))
		claim = claim->next;
	return claim;
}

/* Caller locks. */
static int append_claim(struct xps_xdp_port *port, const struct xps_steer_endpoint *key, int slot)
{
	struct xps_xdp_claim *claim = calloc(1, sizeof(*claim)), **end = &port->claims;

	if (!claim)
		return -ENOMEM;
	claim->key = *key;
	claim->slot = slot;
	while (*end)
		end = &(*end)->next;
	*end = claim;
	return 0;
}

/* Caller locks. */
static void drop_claims(struct xps_xdp_port *port, int slot)
{
	for (struct xps_xdp_claim **link = &port->claims; *link;) {
		struct xps_xdp_claim *claim = *link;

		if (claim->slot != slot) {
			link = &claim->next;
			continue;
		}
		*link = claim->next;
		bpf_map_delete_elem(port->program.endpoints_fd, &claim->key);
		map_fragments(port, &claim->key);
		free(claim);
	}
}

static const char *print_endpoint(const struct xps_steer_endpoint *key, char *text, size_t n)
{
	char address[INET6_ADDRSTRLEN] = "?";

	inet_ntop(key->family == 4 ? AF_INET : AF_INET6, key->address, address, sizeof(address));
	snprintf(text, n, key->family == 4 ? "%s:%u" : "[%s]:%u", address, ntohs(key->port));
	return text;
}

/* Caller locks. */
static int add_endpoint(struct xps_xdp_port *port, int slot, const struct xps_xdp_endpoint *endpoint,
			struct xps_fail *fail)
{
	static const char step[] = "steer endpoint";
	const struct xps_steer_endpoint key = key_of(endpoint);
	const struct xps_xdp_claim *other = find_claim(port, &key);
	char text[64];
	int err;

	print_endpoint(&key, text, sizeof(text));
	if ((endpoint->family != 4 && endpoint->family != 6) || !endpoint->port)
		return xps_fail_set(fail, EINVAL, step, "%s is not an endpoint: family 4 or 6 and a port are needed.",
				    text);
	if (other && other->slot == slot)
		return 0;
	if (other)
		return xps_fail_set(fail, EADDRINUSE, step,
				    "%s on %s already goes to another reader of this process; stop that one first.",
				    text, port->name);
	err = append_claim(port, &key, slot);
	if (!err)
		err = map_put(port, &key, slot);
	if (!err)
		err = map_fragments(port, &key);
	if (err)
		return xps_fail_set(fail, -err, step, "Cannot steer %s: %s%s.", text, strerror(-err),
				    err == -E2BIG ? " (too many endpoints on this interface)" : "");
	return 0;
}

int xps_xdp_port_add_endpoints(struct xps_xdp_port *port, int slot, const struct xps_xdp_endpoint *endpoints,
			       uint32_t n, struct xps_fail *fail)
{
	int err = 0;

	pthread_mutex_lock(&port->lock);
	for (uint32_t i = 0; i < n && !err; i++)
		err = add_endpoint(port, slot, &endpoints[i], fail);
	if (err)
		drop_claims(port, slot);
	pthread_mutex_unlock(&port->lock);
	return err;
}

void xps_xdp_port_drop_endpoints(struct xps_xdp_port *port, int slot)
{
	pthread_mutex_lock(&port->lock);
	drop_claims(port, slot);
	pthread_mutex_unlock(&port->lock);
}

/* Caller locks. */
static void clear_slot(struct xps_xdp_port *port, int slot)
{
	drop_claims(port, slot);
	clear_sockets(port, slot);
}

void xps_xdp_port_clear_slot(struct xps_xdp_port *port, int slot)
{
	pthread_mutex_lock(&port->lock);
	clear_slot(port, slot);
	pthread_mutex_unlock(&port->lock);
}

void xps_xdp_port_give_slot(struct xps_xdp_port *port, int slot)
{
	pthread_mutex_lock(&port->lock);
	clear_slot(port, slot);
	port->slots[slot] = false;
	if (!in_use(port))
		xps_xdp_program_detach(&port->program);
	pthread_mutex_unlock(&port->lock);
}
