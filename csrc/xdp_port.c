// SPDX-License-Identifier: Apache-2.0
#include "xdp_port.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bpf_call.h"

static uint32_t entry_of(const struct xps_xdp_port *port, int slot, uint32_t queue)
{
	return (uint32_t)slot * (uint32_t)port->config.n_queues + queue;
}

/* ---------------------------------------------------------------- port */

static const struct xps_xdp_port_ops local_ops;

static int check_config(const struct xps_xdp_port_config *config, struct xps_fail *fail)
{
	char name[IF_NAMESIZE];

	if (config->ifindex <= 0 || !if_indextoname((unsigned)config->ifindex, name))
		return xps_fail_set(fail, ENODEV, "find interface",
				    "There is no interface with index %d in this network namespace.", config->ifindex);
	if (config->n_queues < 1 || config->n_queues > XPS_XDP_MAX_QUEUES)
		return xps_fail_set(fail, EINVAL, "find queues",
				    "The number of receive queues is %d; it must be 1 to %d.", config->n_queues,
				    XPS_XDP_MAX_QUEUES);
	return 0;
}

struct xps_xdp_port *xps_xdp_port_alloc(const struct xps_xdp_port_config *config, const struct xps_xdp_port_ops *ops)
{
	struct xps_xdp_port *port = calloc(1, sizeof(*port));

	if (!port)
		return NULL;
	port->queues = calloc((size_t)config->n_queues, sizeof(port->queues[0]));
	if (!port->queues) {
		free(port);
		return NULL;
	}
	port->ops = ops;
	port->config = *config;
	port->program = XPS_XDP_NO_PROGRAM;
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
	port = xps_xdp_port_alloc(config, &local_ops);
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
	port->ops->unload(port);
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
	return calloc(port->program.loaded.n_cpus, sizeof(struct xps_steer_counters));
}

static void counters_add(struct xps_steer_counters *sum, const struct xps_steer_counters *c)
{
	sum->matched += c->matched;
	sum->redirected += c->redirected;
	sum->no_socket += c->no_socket;
	sum->bad_length += c->bad_length;
	sum->fragments += c->fragments;
	sum->extensions += c->extensions;
	sum->other_source += c->other_source;
}

static void read_counters(struct xps_xdp_port *port, int slot, bool last, struct xps_steer_counters *counters)
{
	struct xps_steer_counters *values = counters_alloc(port);

	(void)last;
	for (uint32_t queue = 0; values && queue < (uint32_t)port->config.n_queues; queue++) {
		const uint32_t entry = entry_of(port, slot, queue);

		if (xps_bpf_lookup(port->program.loaded.counters_fd, &entry, values))
			continue;
		counters[queue] = (struct xps_steer_counters){ 0 };
		for (uint32_t cpu = 0; cpu < port->program.loaded.n_cpus; cpu++)
			counters_add(&counters[queue], &values[cpu]);
	}
	free(values);
}

static void read_passed(struct xps_xdp_port *port, struct xps_steer_passed *passed)
{
	struct xps_steer_passed *values = calloc(port->program.loaded.n_cpus, sizeof(*values));
	const uint32_t entry = 0;

	if (values && !xps_bpf_lookup(port->program.loaded.passed_fd, &entry, values)) {
		for (uint32_t cpu = 0; cpu < port->program.loaded.n_cpus; cpu++) {
			passed->unparsed += values[cpu].unparsed;
			passed->others += values[cpu].others;
		}
	}
	free(values);
}

static int zero_counters(struct xps_xdp_port *port, int slot)
{
	struct xps_steer_counters *zeros = counters_alloc(port);
	int err = zeros ? 0 : -ENOMEM;

	for (uint32_t queue = 0; !err && queue < (uint32_t)port->config.n_queues; queue++) {
		const uint32_t entry = entry_of(port, slot, queue);

		if (xps_bpf_update(port->program.loaded.counters_fd, &entry, zeros))
			err = -errno;
	}
	free(zeros);
	return err;
}

/* ---------------------------------------------------------------- slots */

static int find_slot(struct xps_xdp_port *port)
{
	for (int slot = 0; slot < XPS_STEER_SLOTS; slot++) {
		if (!port->slots[slot].taken) {
			port->slots[slot].taken = true;
			return slot;
		}
	}
	return -ENOSPC;
}

/* Caller locks. */
static bool in_use(const struct xps_xdp_port *port)
{
	for (int slot = 0; slot < XPS_STEER_SLOTS; slot++)
		if (port->slots[slot].taken)
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

/* Nothing of it is in any map. The last one takes the program off. */
static void free_slot(struct xps_xdp_port *port, int slot)
{
	pthread_mutex_lock(&port->lock);
	port->slots[slot] = (struct xps_xdp_slot){ 0 };
	if (!in_use(port))
		xps_xdp_program_detach(&port->program);
	pthread_mutex_unlock(&port->lock);
}

static int take_slot(struct xps_xdp_port *port, const char *owner, struct xps_fail *fail)
{
	int slot, err = 0;

	(void)owner;

	pthread_mutex_lock(&port->lock);
	/* Its last reader may have gone, and the program with it, just before this one came. */
	if (port->program.link_fd < 0)
		err = xps_xdp_program_attach(&port->program, &port->config, fail);
	slot = err ? err : find_slot(port);
	pthread_mutex_unlock(&port->lock);
	if (err)
		return err;
	if (slot < 0 && port->config.for_others)
		return xps_fail_set(fail, ENOSPC, "take slot",
				    "There are %d AF_XDP readers on %s already, the most there may be.",
				    XPS_STEER_SLOTS, port->name);
	if (slot < 0)
		return xps_fail_set(fail, ENOSPC, "take slot",
				    "This process has %d AF_XDP readers on %s already, the most there may be. Give one "
				    "reader several endpoints instead.",
				    XPS_STEER_SLOTS, port->name);
	err = zero_counters(port, slot);
	if (err) {
		free_slot(port, slot);
		return xps_fail_set(fail, -err, "clear counters", "Cannot write the program's counters: %s.",
				    strerror(-err));
	}
	return slot;
}

static int set_socket(struct xps_xdp_port *port, int slot, uint32_t queue, int fd, struct xps_fail *fail)
{
	const uint32_t entry = entry_of(port, slot, queue);
	int err;

	if (!xps_bpf_update(port->program.loaded.sockets_fd, &entry, &fd))
		return 0;
	err = errno;
	return xps_fail_set(fail, err, "steer queue",
			    "Cannot put the socket of queue %u of %s into the program's map: %s.", queue, port->name,
			    strerror(err));
}

static int duplicate(struct xps_xdp_member_socket *joined, int fd)
{
	struct stat status;

	joined->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	if (joined->fd < 0)
		return -errno;
	if (!fstat(joined->fd, &status))
		joined->inode = status.st_ino;
	return 0;
}

int xps_xdp_port_keep_joined(struct xps_xdp_port *port, int slot, const int *fds, uint32_t n, struct xps_fail *fail)
{
	struct xps_xdp_slot *s = &port->slots[slot];
	int err = 0;

	pthread_mutex_lock(&port->lock);
	s->joined = n ? calloc(n, sizeof(s->joined[0])) : NULL;
	if (n && !s->joined)
		err = -ENOMEM;
	for (uint32_t i = 0; i < n && !err; i++) {
		err = duplicate(&s->joined[i], fds[i]);
		s->n_joined += !err;
	}
	pthread_mutex_unlock(&port->lock);
	return err ? xps_fail_set(fail, -err, "join multicast group", "Cannot keep the socket that joined: %s.",
				  strerror(-err))
		   : 0;
}

/* Caller locks. */
static void leave_groups(struct xps_xdp_slot *slot)
{
	for (uint32_t i = 0; i < slot->n_joined; i++)
		close(slot->joined[i].fd);
	free(slot->joined);
	slot->joined = NULL;
	slot->n_joined = 0;
}

void xps_xdp_port_forget_joined(struct xps_xdp_port *port)
{
	for (int slot = 0; slot < XPS_STEER_SLOTS; slot++) {
		const struct xps_xdp_slot *s = &port->slots[slot];

		for (uint32_t i = 0; i < s->n_joined; i++) {
			struct stat status;

			/* As in xps_xdp_fd_forget(): the number may stand for something else here. */
			if (!fstat(s->joined[i].fd, &status) && S_ISSOCK(status.st_mode) &&
			    status.st_ino == s->joined[i].inode)
				close(s->joined[i].fd);
		}
	}
}

static void clear_sockets(struct xps_xdp_port *port, int slot)
{
	for (uint32_t queue = 0; queue < (uint32_t)port->config.n_queues; queue++) {
		const uint32_t entry = entry_of(port, slot, queue);

		xps_bpf_delete(port->program.loaded.sockets_fd, &entry);
	}
}

/* ---------------------------------------------------------------- endpoints */

static void copy_address(__u8 *to, const uint8_t *from, uint8_t family)
{
	memcpy(to, from, family == 4 ? 4 : 16);
}

static struct xps_steer_source key_of(const struct xps_xdp_endpoint *endpoint)
{
	struct xps_steer_source key = { .to = { .port = htons(endpoint->port), .family = endpoint->family } };

	copy_address(key.to.address, endpoint->address, endpoint->family);
	copy_address(key.address, endpoint->source, endpoint->family);
	return key;
}

static struct xps_steer_target target_of(const struct xps_xdp_port *port, int slot)
{
	return (struct xps_steer_target){
		.first = entry_of(port, slot, 0),
		.n_queues = (uint32_t)port->config.n_queues,
	};
}

static int map_put(int map_fd, const void *key, const struct xps_steer_target *target)
{
	return xps_bpf_update(map_fd, key, target) ? -errno : 0;
}

/* Caller locks. */
static int map_source(struct xps_xdp_port *port, const struct xps_xdp_claim *claim)
{
	const struct xps_steer_target target = target_of(port, claim->slot);

	if (xps_xdp_is_zero(claim->key.address))
		return 0;
	return map_put(port->program.loaded.sources_fd, &claim->key, &target);
}

/*
 * What is left of the claims on an address and port. If one is for any source all are of one slot; otherwise sources
 * decide, and packets from none of them are counted for the oldest claim. Caller locks.
 */
static int map_endpoint(struct xps_xdp_port *port, const struct xps_steer_source *key)
{
	const struct xps_xdp_claim *oldest = xps_xdp_claims_oldest(&port->claims, XPS_XDP_SAME_ENDPOINT, key);
	const struct xps_steer_source any = { .to = key->to };
	struct xps_steer_target target;

	if (!oldest) {
		xps_bpf_delete(port->program.loaded.endpoints_fd, &key->to);
		return 0;
	}
	target = target_of(port, oldest->slot);
	target.by_source = !xps_xdp_claims_oldest(&port->claims, XPS_XDP_SAME_ALL, &any);
	return map_put(port->program.loaded.endpoints_fd, &key->to, &target);
}

/* Packets whose port is not looked at are counted for the oldest claim on their address that is left. Caller locks. */
static int map_address(struct xps_xdp_port *port, const struct xps_steer_source *key)
{
	const struct xps_xdp_claim *oldest = xps_xdp_claims_oldest(&port->claims, XPS_XDP_SAME_ADDRESS, key);
	struct xps_steer_endpoint address = key->to;
	struct xps_steer_target target;

	address.port = 0;
	if (!oldest) {
		xps_bpf_delete(port->program.loaded.endpoints_fd, &address);
		return 0;
	}
	target = target_of(port, oldest->slot);
	return map_put(port->program.loaded.endpoints_fd, &address, &target);
}

/* Sources first, and taken out last, so that no packet counts as another source's in between. Caller locks. */
static int map_claims(struct xps_xdp_port *port, const struct xps_xdp_claim *claims)
{
	int err = 0;

	for (const struct xps_xdp_claim *claim = claims; claim && !err; claim = claim->next)
		err = map_source(port, claim);
	for (const struct xps_xdp_claim *claim = claims; claim && !err; claim = claim->next) {
		err = map_endpoint(port, &claim->key);
		if (!err)
			err = map_address(port, &claim->key);
	}
	return err;
}

/* Caller locks. */
static void drop_claims(struct xps_xdp_port *port, int slot)
{
	struct xps_xdp_claim *claims = xps_xdp_claims_take(&port->claims, slot);

	for (const struct xps_xdp_claim *claim = claims; claim; claim = claim->next) {
		map_endpoint(port, &claim->key);
		map_address(port, &claim->key);
	}
	for (const struct xps_xdp_claim *claim = claims; claim; claim = claim->next)
		if (!xps_xdp_is_zero(claim->key.address))
			xps_bpf_delete(port->program.loaded.sources_fd, &claim->key);
	xps_xdp_claims_free_list(claims);
}

enum { ENDPOINT_TEXT = 128 };

static const char *print_endpoint(const struct xps_steer_source *key, char text[ENDPOINT_TEXT])
{
	const int family = key->to.family == 4 ? AF_INET : AF_INET6;
	char address[INET6_ADDRSTRLEN] = "?", source[INET6_ADDRSTRLEN] = "?";
	int n;

	inet_ntop(family, key->to.address, address, sizeof(address));
	inet_ntop(family, key->address, source, sizeof(source));
	n = snprintf(text, ENDPOINT_TEXT, family == AF_INET ? "%s:%u" : "[%s]:%u", address, ntohs(key->to.port));
	if (!xps_xdp_is_zero(key->address))
		snprintf(text + n, (size_t)(ENDPOINT_TEXT - n), " from %s", source);
	return text;
}

static int overlap_fail(const struct xps_xdp_port *port, const struct xps_steer_source *key,
			const struct xps_xdp_claim *other, struct xps_fail *fail)
{
	const char *owner = port->slots[other->slot].owner;
	char mine[ENDPOINT_TEXT], theirs[ENDPOINT_TEXT];

	return xps_fail_set(fail, EADDRINUSE, "steer endpoint",
			    "%s on %s is taken: another reader%s%s%s%s receives %s there, and a packet can go to one "
			    "reader only. Leave the endpoint out, stop that stream, or give both endpoints to one "
			    "reader.",
			    print_endpoint(key, mine), port->name, port->config.for_others ? "" : " of this process",
			    *owner ? " (" : "", owner, *owner ? ")" : "", print_endpoint(&other->key, theirs));
}

/* Caller locks. */
static int claim_endpoint(struct xps_xdp_port *port, int slot, const struct xps_xdp_endpoint *endpoint,
			  struct xps_fail *fail)
{
	static const char step[] = "steer endpoint";
	const struct xps_steer_source key = key_of(endpoint);
	const struct xps_xdp_claim *other;
	char text[ENDPOINT_TEXT];
	int err;

	if ((endpoint->family != 4 && endpoint->family != 6) || !endpoint->port)
		return xps_fail_set(fail, EINVAL, step, "%s is not an endpoint: family 4 or 6 and a port are needed.",
				    print_endpoint(&key, text));
	err = xps_xdp_claims_add(&port->claims, &key, slot, &other);
	if (err == -EADDRINUSE)
		return overlap_fail(port, &key, other, fail);
	if (err)
		return xps_fail_set(fail, -err, step, "Not enough memory for the endpoints of %s.", port->name);
	return 0;
}

/* Caller locks. */
static int claim_endpoints(struct xps_xdp_port *port, int slot, const struct xps_xdp_endpoint *endpoints, uint32_t n,
			   struct xps_fail *fail)
{
	int err = 0;

	for (uint32_t i = 0; i < n && !err; i++)
		err = claim_endpoint(port, slot, &endpoints[i], fail);
	if (err)
		return err;
	err = map_claims(port, port->claims.slots[slot]);
	if (err)
		return xps_fail_set(fail, -err, "steer endpoint", "Cannot tell the program its endpoints on %s: %s%s.",
				    port->name, strerror(-err),
				    err == -E2BIG ? " (there are too many on this interface)" : "");
	return 0;
}

static int add_endpoints(struct xps_xdp_port *port, int slot, const struct xps_xdp_endpoint *endpoints, uint32_t n,
			 struct xps_fail *fail)
{
	int err;

	pthread_mutex_lock(&port->lock);
	err = claim_endpoints(port, slot, endpoints, n, fail);
	if (err)
		drop_claims(port, slot);
	pthread_mutex_unlock(&port->lock);
	return err;
}

static void drop_endpoints(struct xps_xdp_port *port, int slot)
{
	pthread_mutex_lock(&port->lock);
	drop_claims(port, slot);
	pthread_mutex_unlock(&port->lock);
}

static void clear_slot(struct xps_xdp_port *port, int slot)
{
	pthread_mutex_lock(&port->lock);
	drop_claims(port, slot);
	clear_sockets(port, slot);
	pthread_mutex_unlock(&port->lock);
}

static void give_slot(struct xps_xdp_port *port, int slot)
{
	clear_slot(port, slot);
	free_slot(port, slot);
}

static int no_lifeline(const struct xps_xdp_port *port)
{
	(void)port;
	return -1;
}

static void forget(struct xps_xdp_port *port)
{
	(void)port;
}

static void unload(struct xps_xdp_port *port)
{
	xps_xdp_program_unload(&port->program);
}

static const struct xps_xdp_port_ops local_ops = {
	.take_slot = take_slot,
	.set_socket = set_socket,
	.add_endpoints = add_endpoints,
	.drop_endpoints = drop_endpoints,
	.clear_slot = clear_slot,
	.give_slot = give_slot,
	.counters = read_counters,
	.passed = read_passed,
	.lifeline = no_lifeline,
	.forget = forget,
	.unload = unload,
};

/* ---------------------------------------------------------------- whoever has the program */

int xps_xdp_port_take_slot(struct xps_xdp_port *port, const char *owner, struct xps_fail *fail)
{
	const int slot = port->ops->take_slot(port, owner, fail);

	if (slot < 0)
		return slot;
	pthread_mutex_lock(&port->lock);
	port->slots[slot].taken = true;
	snprintf(port->slots[slot].owner, sizeof(port->slots[slot].owner), "%s", owner ? owner : "");
	pthread_mutex_unlock(&port->lock);
	return slot;
}

int xps_xdp_port_set_socket(struct xps_xdp_port *port, int slot, uint32_t queue, int fd, struct xps_fail *fail)
{
	return port->ops->set_socket(port, slot, queue, fd, fail);
}

int xps_xdp_port_add_endpoints(struct xps_xdp_port *port, int slot, const struct xps_xdp_endpoint *endpoints,
			       uint32_t n, struct xps_fail *fail)
{
	return port->ops->add_endpoints(port, slot, endpoints, n, fail);
}

void xps_xdp_port_drop_endpoints(struct xps_xdp_port *port, int slot)
{
	port->ops->drop_endpoints(port, slot);
}

void xps_xdp_port_clear_slot(struct xps_xdp_port *port, int slot)
{
	port->ops->clear_slot(port, slot);
}

void xps_xdp_port_give_slot(struct xps_xdp_port *port, int slot)
{
	/* First: once it is given it may be another reader's. */
	pthread_mutex_lock(&port->lock);
	leave_groups(&port->slots[slot]);
	pthread_mutex_unlock(&port->lock);
	port->ops->give_slot(port, slot);
}

void xps_xdp_port_counters(struct xps_xdp_port *port, int slot, bool last, struct xps_steer_counters *counters)
{
	port->ops->counters(port, slot, last, counters);
}

void xps_xdp_port_passed(struct xps_xdp_port *port, uint64_t *unparsed, uint64_t *others)
{
	struct xps_steer_passed passed = { 0 };

	port->ops->passed(port, &passed);
	*unparsed = passed.unparsed;
	*others = passed.others;
}

int xps_xdp_port_lifeline(const struct xps_xdp_port *port)
{
	return port->ops->lifeline(port);
}
