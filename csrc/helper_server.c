// SPDX-License-Identifier: Apache-2.0
#include "helper_server.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "helper_interface.h"
#include "helper_protocol.h"
#include "xdp_socket.h"

enum {
	MAX_GROUPS = 256,
	/* Beyond this MTU the program takes packets in several buffers; drivers that cannot do without draw the line higher. */
	LARGEST_MTU_OF_ONE_FRAME = 3000,
	RX_ENTRY = sizeof(struct xdp_desc),
};

/* A queue that a client has. */
struct held_queue {
	struct xps_xdp_queue *queue;
	struct xps_xdp_member member;
	atomic_bool kicked;
	uint64_t memory; /* the sockets' rings included, as long as the queue is open: who has them is not known */
	struct held_queue *next;
};

/* An interface that clients have. */
struct helper_port {
	struct xps_xdp_port *port;
	uint32_t refs;
	struct xps_helper_client **owners; /* of each queue, or NULL */
	uint32_t *readers;                 /* the slot of the reader that each was opened for */
	/* A slot has been given back, and packets may still be on their way that count for it. */
	bool unquiet;
	struct helper_port *next;
};

struct xps_helper_client {
	int fd, lifeline_fd; /* the pipe's writing end, -1 until OPEN */
	uint32_t uid;
	pid_t pid;
	uint32_t gids[MAX_GROUPS], n_gids;
	char name[64]; /* for people: "user observer, process 1234" */
	struct xps_helper_rule rule;
	struct helper_port *port; /* NULL until OPEN */
	uint64_t slots;           /* a bit for each */
	uint64_t memory;
	struct xps_xdp_shared_frames allotted; /* for the queue that is opened next */
	struct held_queue *queues;
	struct xps_helper_client *next;
};

struct xps_helper_server {
	const char *config;
	void (*log)(const char *text);
	struct xps_helper_rules rules;
	struct xps_helper_client *clients;
	struct helper_port *ports;
	struct xps_helper_request request;
	struct xps_helper_reply reply;
	int fds[XPS_HELPER_MAX_FDS]; /* that go with the reply, */
	uint32_t n_fds;
	bool close_fds; /* and are not ours any more then */
};

_Static_assert(XPS_STEER_SLOTS <= 64, "a client's slots are bits");

static void XPS_PRINTF(2, 3) say(const struct xps_helper_server *server, const char *format, ...)
{
	char text[512];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	server->log(text);
}

/* ---------------------------------------------------------------- interfaces */

static void release_port(struct xps_helper_server *server, struct helper_port *p)
{
	struct helper_port **link = &server->ports;

	if (--p->refs)
		return;
	while (*link != p)
		link = &(*link)->next;
	*link = p->next;
	xps_xdp_port_free(p->port);
	free(p->owners);
	free(p->readers);
	free(p);
}

static struct helper_port *new_port(struct xps_helper_server *server, const struct xps_helper_interface *interface,
				    int mode, struct xps_fail *fail)
{
	const struct xps_xdp_port_config config = {
		.ifindex = interface->ifindex,
		.mode = mode,
		.n_queues = interface->n_queues,
		.mtu = interface->mtu,
		.multi_buffer = interface->mtu > LARGEST_MTU_OF_ONE_FRAME,
		.for_others = true,
	};
	struct helper_port *p = calloc(1, sizeof(*p));

	if (p) {
		p->refs = 1;
		p->owners = calloc((size_t)interface->n_queues, sizeof(p->owners[0]));
		p->readers = calloc((size_t)interface->n_queues, sizeof(p->readers[0]));
	}
	if (p && p->owners && p->readers)
		p->port = xps_xdp_port_new(&config, fail);
	else
		xps_fail_set(fail, ENOMEM, "allocate", "Not enough memory for the interface's state.");
	if (p && p->port) {
		p->next = server->ports;
		server->ports = p;
		return p;
	}
	if (p) {
		free(p->owners);
		free(p->readers);
	}
	free(p);
	return NULL;
}

static struct helper_port *get_port(struct xps_helper_server *server, const struct xps_helper_interface *interface,
				    int mode, struct xps_fail *fail)
{
	struct helper_port *p = server->ports;

	while (p && p->port->config.ifindex != interface->ifindex)
		p = p->next;
	if (!p)
		return new_port(server, interface, mode, fail);
	if (mode != XPS_XDP_AUTO && mode != xps_xdp_port_mode(p->port)) {
		xps_fail_set(fail, EBUSY, "choose mode",
			     "others receive on %s in %s mode already; all have to use the same, or mode='auto'.",
			     p->port->name, xps_xdp_port_mode(p->port) == XPS_XDP_NATIVE ? "native" : "generic");
		return NULL;
	}
	p->refs++;
	return p;
}

/* ---------------------------------------------------------------- taking back */

static void close_held(struct xps_helper_client *client, struct held_queue **link)
{
	struct held_queue *held = *link;

	*link = held->next;
	client->memory -= held->memory;
	client->port->owners[held->queue->index] = NULL;
	xps_xdp_queue_leave(held->queue, &held->member);
	free(held);
}

static void give_slot(struct xps_helper_client *client, uint32_t slot)
{
	client->slots &= ~(UINT64_C(1) << slot);
	client->port->unquiet = true;
	xps_xdp_port_give_slot(client->port->port, (int)slot);
}

static void drop_client(struct xps_helper_server *server, struct xps_helper_client *client)
{
	struct xps_helper_client **link = &server->clients;

	while (*link != client)
		link = &(*link)->next;
	*link = client->next;
	for (uint32_t slot = 0; slot < XPS_STEER_SLOTS; slot++)
		if (client->slots >> slot & 1)
			give_slot(client, slot);
	while (client->queues)
		close_held(client, &client->queues);
	xps_xdp_frames_unshare(&client->allotted);
	if (client->port) {
		say(server, "%s no longer receives on %s", client->name, client->port->port->name);
		release_port(server, client->port);
	}
	if (client->lifeline_fd >= 0)
		close(client->lifeline_fd);
	close(client->fd);
	free(client);
}

/* ---------------------------------------------------------------- what a user has */

static uint32_t count_clients(const struct xps_helper_server *server, const uint32_t *uid)
{
	uint32_t n = 0;

	for (const struct xps_helper_client *c = server->clients; c; c = c->next)
		n += !uid || c->uid == *uid;
	return n;
}

static uint64_t memory_of_user(const struct xps_helper_server *server, uint32_t uid)
{
	uint64_t sum = 0;

	for (const struct xps_helper_client *c = server->clients; c; c = c->next)
		if (c->uid == uid)
			sum += c->memory;
	return sum;
}

static uint32_t readers_of_user(const struct xps_helper_server *server, const struct xps_helper_client *client)
{
	uint32_t n = 0;

	for (const struct xps_helper_client *c = server->clients; c; c = c->next)
		if (c->uid == client->uid && c->port == client->port)
			n += (uint32_t)__builtin_popcountll(c->slots);
	return n;
}

static int check_memory(const struct xps_helper_server *server, const struct xps_helper_client *client, uint64_t more,
			struct xps_fail *fail)
{
	const uint64_t used = memory_of_user(server, client->uid), limit = client->rule.memory;

	if (used <= limit && more <= limit - used)
		return 0;
	return xps_fail_set(fail, ENOBUFS, "allot memory",
			    "%s would have %llu bytes of packet memory more, but of the %llu bytes that line %d of %s "
			    "gives to this user for everything, %llu are in use. Use a smaller buffer_size, or have "
			    "memory= raised there.",
			    client->name, (unsigned long long)more, (unsigned long long)limit, client->rule.line,
			    server->config, (unsigned long long)used);
}

/* ---------------------------------------------------------------- requests: the interface */

static int check_namespace(uint64_t theirs, struct xps_fail *fail)
{
	struct stat ours;

	if (!stat("/proc/self/ns/net", &ours) && ours.st_ino == theirs)
		return 0;
	return xps_fail_set(fail, EXDEV, "find interface",
			    "it serves another network namespace than the one that asks. Run one there.");
}

static int find_rule(const struct xps_helper_server *server, struct xps_helper_client *client, const char *interface,
		     struct xps_fail *fail)
{
	const struct xps_helper_rule *rule =
		xps_helper_rules_find(&server->rules, client->uid, client->gids, client->n_gids, interface);

	if (!rule)
		return xps_fail_set(
			fail, EACCES, "ask for permission",
			"%s may not receive on %s. Whoever administers this machine can allow it with a line "
			"'allow user=%u interface=%s' in %s.",
			client->name, interface, client->uid, interface, server->config);
	client->rule = *rule;
	return 0;
}

static int choose_mode(const struct xps_helper_server *server, const struct xps_helper_client *client, int asked,
		       struct xps_fail *fail)
{
	const int ruled = client->rule.mode;

	if (ruled == XPS_XDP_AUTO || asked == XPS_XDP_AUTO || asked == ruled)
		return asked == XPS_XDP_AUTO ? ruled : asked;
	return xps_fail_set(fail, EACCES, "choose mode", "line %d of %s allows %s mode only. Use mode='auto'.",
			    client->rule.line, server->config, ruled == XPS_XDP_NATIVE ? "native" : "generic");
}

static int make_lifeline(struct xps_helper_server *server, struct xps_helper_client *client, struct xps_fail *fail)
{
	int ends[2];

	if (pipe2(ends, O_CLOEXEC | O_NONBLOCK))
		return xps_fail_set(fail, errno, "make pipe", "Cannot make a pipe: %s.", strerror(errno));
	client->lifeline_fd = ends[1];
	server->fds[server->n_fds++] = ends[0];
	server->close_fds = true;
	return 0;
}

static int open_interface(struct xps_helper_server *server, struct xps_helper_client *client, struct xps_fail *fail)
{
	const struct xps_helper_open *open = &server->request.open;
	struct xps_helper_interface interface;
	struct helper_port *p;
	int mode, err;

	if (open->version != XPS_HELPER_VERSION)
		return xps_fail_set(
			fail, EPROTO, "speak",
			"it speaks version %d of its protocol, and was asked in version %u. Install the same "
			"version of xdpspead on both sides.",
			XPS_HELPER_VERSION, open->version);
	if (!xps_kernel_at_least(6, 4))
		return xps_fail_set(fail, EOPNOTSUPP, "check kernel",
				    "to pass AF_XDP sockets on takes Linux 6.4, and this kernel is older. Grant the "
				    "receiver the capabilities instead.");
	err = check_namespace(open->net_namespace, fail);
	if (!err)
		err = find_rule(server, client, open->interface, fail);
	if (err)
		return err;
	mode = choose_mode(server, client, open->mode, fail);
	if (mode < 0)
		return mode;
	err = xps_helper_interface_find(open->interface, &interface);
	if (err)
		return xps_fail_set(fail, -err, "find interface", "it cannot find %s: %s.", open->interface,
				    strerror(-err));
	p = get_port(server, &interface, mode, fail);
	if (!p)
		return -fail->err;
	err = make_lifeline(server, client, fail);
	if (err) {
		release_port(server, p);
		return err;
	}
	client->port = p;
	say(server, "%s receives on %s, by line %d", client->name, p->port->name, client->rule.line);
	server->reply.opened = (struct xps_helper_opened){
		.n_queues = p->port->config.n_queues,
		.mtu = p->port->config.mtu,
		.mode = xps_xdp_port_mode(p->port),
		.program_id = xps_xdp_port_program_id(p->port),
		.frags = p->port->program.loaded.frags,
	};
	return 0;
}

/* ---------------------------------------------------------------- requests: slots and endpoints */

/* What comes from one user and is shown to others. */
static void make_printable(char *text)
{
	for (; *text; text++)
		if (*text < ' ' || *text > '~')
			*text = '?';
}

static int take_slot(struct xps_helper_server *server, struct xps_helper_client *client, struct xps_fail *fail)
{
	char owner[sizeof(client->name) + sizeof(server->request.owner) + 2];
	int slot;

	if (readers_of_user(server, client) >= client->rule.readers)
		return xps_fail_set(
			fail, EDQUOT, "take slot",
			"%s has the %u readers that line %d of %s allows. Give one reader several endpoints, "
			"or have readers= raised there.",
			client->name, client->rule.readers, client->rule.line, server->config);
	make_printable(server->request.owner);
	snprintf(owner, sizeof(owner), "%s: %s", client->name, server->request.owner);
	/* Counters of a slot begin at zero, and stay there. */
	if (client->port->unquiet)
		xps_xdp_quiesce();
	client->port->unquiet = false;
	slot = xps_xdp_port_take_slot(client->port->port, owner, fail);
	if (slot >= 0)
		client->slots |= UINT64_C(1) << slot;
	return slot;
}

static int add_endpoints(struct xps_helper_server *server, struct xps_helper_client *client, struct xps_fail *fail)
{
	const struct xps_helper_endpoints *e = &server->request.endpoints;
	char ports[200];

	for (uint32_t i = 0; i < e->n; i++) {
		if (xps_helper_in_ranges(&client->rule.ports, e->list[i].port))
			continue;
		xps_helper_print_ranges(&client->rule.ports, ports, sizeof(ports));
		return xps_fail_set(fail, EACCES, "steer endpoint",
				    "%s may not receive port %u: line %d of %s allows %s.", client->name,
				    e->list[i].port, client->rule.line, server->config, ports);
	}
	return xps_xdp_port_add_endpoints(client->port->port, (int)e->slot, e->list, e->n, fail);
}

static int tell_counters(struct xps_helper_server *server, struct xps_helper_client *client, struct xps_fail *fail)
{
	const struct xps_helper_queues *q = &server->request.queues;
	const uint32_t n_queues = (uint32_t)client->port->port->config.n_queues;
	struct xps_steer_counters *all;

	if (q->n > n_queues || q->queue > n_queues - q->n)
		return xps_fail_set(fail, EINVAL, "read counters", "there are no such queues.");
	all = calloc(n_queues, sizeof(*all));
	if (!all)
		return xps_fail_set(fail, ENOMEM, "read counters", "not enough memory.");
	xps_xdp_port_counters(client->port->port, (int)q->slot, false, all);
	memcpy(server->reply.counters, all + q->queue, q->n * sizeof(all[0]));
	free(all);
	return 0;
}

/* ---------------------------------------------------------------- requests: queues and sockets */

static struct held_queue **find_held(struct xps_helper_client *client, uint32_t index)
{
	struct held_queue **link = &client->queues;

	while (*link && (*link)->queue->index != index)
		link = &(*link)->next;
	return link;
}

static int not_yours(uint32_t queue, struct xps_fail *fail)
{
	return xps_fail_set(fail, EINVAL, "find queue", "queue %u is not this connection's.", queue);
}

static int check_queue(const struct xps_helper_server *server, const struct xps_helper_client *client, uint32_t queue,
		       struct xps_fail *fail)
{
	const struct helper_port *p = client->port;
	char queues[200];

	if (queue >= (uint32_t)p->port->config.n_queues)
		return xps_fail_set(fail, EINVAL, "find queue",
				    "%s has no receive queue %u: it has %d, counted from 0.", p->port->name, queue,
				    p->port->config.n_queues);
	if (!xps_helper_in_ranges(&client->rule.queues, queue)) {
		xps_helper_print_ranges(&client->rule.queues, queues, sizeof(queues));
		return xps_fail_set(
			fail, EACCES, "ask for permission",
			"%s may not receive on queue %u of %s: line %d of %s allows %s. Say so with queues=.",
			client->name, queue, p->port->name, client->rule.line, server->config, queues);
	}
	if (p->owners[queue]) {
		const char *owner = p->port->slots[p->readers[queue]].owner;

		return xps_fail_set(
			fail, EBUSY, "bind",
			"queue %u of %s is taken by another reader (%s). Stop that, or choose other queues.", queue,
			p->port->name, *owner ? owner : p->owners[queue]->name);
	}
	return 0;
}

/* Memory that the client has to look at before it is used: this takes long, and others would have to wait for us. */
static int allot(struct xps_helper_server *server, struct xps_helper_client *client, size_t size, struct xps_fail *fail)
{
	const struct xps_xdp_place place = { .name = client->port->port->name,
					     .queue = server->request.open_queue.queue };
	int err = 0;

	if (client->allotted.size != size) {
		client->memory -= client->allotted.size;
		xps_xdp_frames_unshare(&client->allotted);
		err = check_memory(server, client, size, fail);
		if (!err)
			err = xps_xdp_frames_share(&client->allotted, size, &place, fail);
		client->memory += client->allotted.size;
	}
	if (err)
		return err;
	server->fds[server->n_fds++] = client->allotted.fd;
	return -EAGAIN;
}

static int join_queue(struct xps_helper_server *server, struct xps_helper_client *client, struct held_queue *held,
		      struct xps_fail *fail)
{
	const struct xps_helper_open_queue *open = &server->request.open_queue;
	const uint64_t allotted = client->allotted.size;
	size_t wanted = 0;
	const struct xps_xdp_queue_config config = {
		.buffer_size = open->buffer_size,
		.zero_copy = open->zero_copy,
		.frames = &client->allotted,
		.wanted = &wanted,
	};
	int err;

	held->member.kick_fd = -1;
	held->member.kicked = &held->kicked;
	err = xps_xdp_queue_join(&held->queue, client->port->port, open->queue, &config, &held->member, fail);
	if (err == -EAGAIN && wanted)
		return allot(server, client, wanted, fail);
	if (err)
		return err;
	client->memory -= allotted;
	/* There are rings besides. */
	err = check_memory(server, client, held->queue->memory, fail);
	if (err)
		xps_xdp_queue_leave(held->queue, &held->member);
	return err;
}

static void tell_queue(struct xps_helper_server *server, const struct xps_xdp_queue *queue)
{
	server->fds[server->n_fds++] = queue->shared.fd;
	server->fds[server->n_fds++] = queue->fd;
	server->reply.queue = (struct xps_helper_queue_opened){
		.frame_size = queue->frame_size,
		.n_frames = queue->n_frames,
		.ring_size = queue->ring_size,
		.zero_copy = queue->zero_copy,
		.multi_buffer = queue->multi_buffer,
	};
}

static int open_queue(struct xps_helper_server *server, struct xps_helper_client *client, struct xps_fail *fail)
{
	const struct xps_helper_open_queue *open = &server->request.open_queue;
	struct held_queue *held;
	int err = check_queue(server, client, open->queue, fail);

	if (!err && open->buffer_size > client->allotted.size)
		err = check_memory(server, client, open->buffer_size - client->allotted.size, fail);
	if (err)
		return err;
	held = calloc(1, sizeof(*held));
	if (!held)
		return xps_fail_set(fail, ENOMEM, "allocate", "not enough memory for the state of a queue.");
	err = join_queue(server, client, held, fail);
	if (err) {
		free(held);
		return err;
	}
	held->memory = held->queue->memory;
	client->memory += held->memory;
	held->next = client->queues;
	client->queues = held;
	client->port->owners[open->queue] = client;
	client->port->readers[open->queue] = open->slot;
	tell_queue(server, held->queue);
	return 0;
}

static int close_queue(struct xps_helper_server *server, struct xps_helper_client *client, struct xps_fail *fail)
{
	struct held_queue **link = find_held(client, server->request.queues.queue);

	if (!*link)
		return not_yours(server->request.queues.queue, fail);
	close_held(client, link);
	return 0;
}

static int open_socket(struct xps_helper_server *server, struct xps_helper_client *client, struct xps_fail *fail)
{
	const struct xps_helper_queues *q = &server->request.queues;
	struct held_queue *held = *find_held(client, q->queue);
	uint64_t memory;
	int fd, err;

	if (!held)
		return not_yours(q->queue, fail);
	memory = (uint64_t)held->queue->ring_size * RX_ENTRY;
	err = check_memory(server, client, memory, fail);
	if (err)
		return err;
	fd = xps_xdp_socket_bind(held->queue, NULL, fail);
	if (fd < 0)
		return fd;
	err = xps_xdp_port_set_socket(client->port->port, (int)q->slot, q->queue, fd, fail);
	if (err) {
		close(fd);
		return err;
	}
	held->memory += memory;
	client->memory += memory;
	server->fds[server->n_fds++] = fd;
	server->close_fds = true;
	return 0;
}

/* ---------------------------------------------------------------- requests: all */

static uint32_t slot_of(const struct xps_helper_request *request)
{
	switch (request->kind) {
	case XPS_HELPER_OPEN_QUEUE:
		return request->open_queue.slot;
	case XPS_HELPER_OPEN_SOCKET:
	case XPS_HELPER_COUNTERS:
		return request->queues.slot;
	case XPS_HELPER_ADD_ENDPOINTS:
		return request->endpoints.slot;
	case XPS_HELPER_DROP_ENDPOINTS:
	case XPS_HELPER_CLEAR_SLOT:
	case XPS_HELPER_GIVE_SLOT:
		return request->slot.slot;
	default:
		return UINT32_MAX; /* has none */
	}
}

static int check_order(const struct xps_helper_client *client, const struct xps_helper_request *request,
		       struct xps_fail *fail)
{
	const uint32_t slot = slot_of(request);

	if ((request->kind == XPS_HELPER_OPEN) != !client->port)
		return xps_fail_set(fail, EPROTO, "speak", "an interface is opened first, and once in a connection.");
	if (slot != UINT32_MAX && !(client->slots >> slot & 1))
		return xps_fail_set(fail, EINVAL, "find slot", "slot %u is not this connection's.", slot);
	return 0;
}

static int handle(struct xps_helper_server *server, struct xps_helper_client *client, struct xps_fail *fail)
{
	const struct xps_helper_request *request = &server->request;
	uint64_t unparsed, others;
	int err = check_order(client, request, fail);

	if (err)
		return err;
	switch (request->kind) {
	case XPS_HELPER_OPEN:
		return open_interface(server, client, fail);
	case XPS_HELPER_TAKE_SLOT:
		return take_slot(server, client, fail);
	case XPS_HELPER_OPEN_QUEUE:
		return open_queue(server, client, fail);
	case XPS_HELPER_OPEN_SOCKET:
		return open_socket(server, client, fail);
	case XPS_HELPER_ADD_ENDPOINTS:
		return add_endpoints(server, client, fail);
	case XPS_HELPER_COUNTERS:
		return tell_counters(server, client, fail);
	case XPS_HELPER_PASSED:
		xps_xdp_port_passed(client->port->port, &unparsed, &others);
		server->reply.passed = (struct xps_steer_passed){ .unparsed = unparsed, .others = others };
		return 0;
	case XPS_HELPER_DROP_ENDPOINTS:
		xps_xdp_port_drop_endpoints(client->port->port, (int)request->slot.slot);
		return 0;
	case XPS_HELPER_CLEAR_SLOT:
		xps_xdp_port_clear_slot(client->port->port, (int)request->slot.slot);
		return 0;
	case XPS_HELPER_GIVE_SLOT:
		give_slot(client, request->slot.slot);
		return 0;
	case XPS_HELPER_CLOSE_QUEUE:
		return close_queue(server, client, fail);
	}
	return -EPROTO; /* the parser lets nothing else through */
}

/* 0, or -errno if the client does not take it: then it has not kept to one request at a time. */
static int answer(struct xps_helper_server *server, int fd)
{
	const int err = xps_helper_send(fd, &server->reply, sizeof(server->reply), server->fds, server->n_fds);

	for (uint32_t i = 0; i < server->n_fds && server->close_fds; i++)
		close(server->fds[i]);
	return err;
}

static void begin_reply(struct xps_helper_server *server, uint32_t kind, uint32_t sequence)
{
	memset(&server->reply, 0, sizeof(server->reply));
	server->reply.kind = kind;
	server->reply.sequence = sequence;
	server->n_fds = 0;
	server->close_fds = false;
}

static int reply_to(struct xps_helper_server *server, struct xps_helper_client *client)
{
	struct xps_fail fail = { 0 };
	int result;

	begin_reply(server, server->request.kind, server->request.sequence);
	result = handle(server, client, &fail);
	server->reply.result = result;
	if (result < 0)
		server->reply.fail = fail;
	return answer(server, client->fd);
}

/* Before there is a client. */
static void refuse(struct xps_helper_server *server, int fd, int err, const char *text)
{
	begin_reply(server, 0, 0);
	server->reply.result = -err;
	xps_fail_set(&server->reply.fail, err, "ask for permission", "%s", text);
	answer(server, fd);
	close(fd);
}

/* ---------------------------------------------------------------- clients */

/* The primary group is not among those that the kernel tells. */
static void find_groups(struct xps_helper_client *client, gid_t primary)
{
	socklen_t length = (MAX_GROUPS - 1) * sizeof(client->gids[0]);

	_Static_assert(sizeof(gid_t) == sizeof(uint32_t), "groups are read as they are");
	/* Who is in more counts as in none: only rules for users then hold. */
	if (getsockopt(client->fd, SOL_SOCKET, SO_PEERGROUPS, client->gids, &length))
		length = 0;
	client->n_gids = length / sizeof(client->gids[0]);
	client->gids[client->n_gids++] = primary;
}

static void name_client(const struct xps_helper_server *server, struct xps_helper_client *client)
{
	/* By the rules, because a user database may be far away. */
	for (uint32_t i = 0; i < server->rules.n; i++) {
		const struct xps_helper_rule *rule = &server->rules.list[i];

		if (rule->group || rule->id != client->uid)
			continue;
		snprintf(client->name, sizeof(client->name), "user %s, process %d", rule->who, (int)client->pid);
		return;
	}
	snprintf(client->name, sizeof(client->name), "user %u, process %d", client->uid, (int)client->pid);
}

static struct xps_helper_client *client_new(const struct xps_helper_server *server, int fd)
{
	struct xps_helper_client *client = calloc(1, sizeof(*client));
	struct ucred peer;
	socklen_t length = sizeof(peer);

	if (!client)
		return NULL;
	client->fd = fd;
	client->lifeline_fd = -1;
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length)) {
		free(client);
		return NULL;
	}
	client->uid = peer.uid;
	client->pid = peer.pid;
	find_groups(client, peer.gid);
	name_client(server, client);
	return client;
}

void xps_helper_server_accept(struct xps_helper_server *server, int fd)
{
	struct xps_helper_client *client = client_new(server, fd);
	char text[400];

	if (!client) {
		refuse(server, fd, ENOMEM, "not enough memory for another client.");
		return;
	}
	if (!xps_helper_rules_find(&server->rules, client->uid, client->gids, client->n_gids, NULL)) {
		snprintf(text, sizeof(text),
			 "%s may not receive anything here. Whoever administers this machine can allow it with a line "
			 "'allow user=%u interface=...' in %s.",
			 client->name, client->uid, server->config);
		say(server, "%s was refused: no rule is for this user", client->name);
		refuse(server, fd, EACCES, text);
	} else if (count_clients(server, NULL) >= XPS_HELPER_MAX_CLIENTS ||
		   count_clients(server, &client->uid) >= XPS_HELPER_MAX_CLIENTS_PER_USER) {
		refuse(server, fd, EBUSY, "too many processes are connected, of this user or of all.");
	} else {
		client->next = server->clients;
		server->clients = client;
		return;
	}
	free(client);
}

uint32_t xps_helper_server_fds(const struct xps_helper_server *server, int fds[XPS_HELPER_MAX_CLIENTS])
{
	uint32_t n = 0;

	for (const struct xps_helper_client *client = server->clients; client; client = client->next)
		fds[n++] = client->fd;
	return n;
}

static struct xps_helper_client *client_of(const struct xps_helper_server *server, int fd)
{
	struct xps_helper_client *client = server->clients;

	while (client && client->fd != fd)
		client = client->next;
	return client;
}

void xps_helper_server_serve(struct xps_helper_server *server, int fd)
{
	static uint8_t bytes[sizeof(struct xps_helper_request)];
	struct xps_helper_client *client = client_of(server, fd);
	uint32_t n_fds;
	ssize_t n;

	if (!client)
		return;
	n = xps_helper_receive(fd, bytes, sizeof(bytes), NULL, 0, &n_fds);
	if (n == -EAGAIN || n == -EINTR)
		return;
	if (n > 0 && xps_helper_parse(&server->request, bytes, (size_t)n)) {
		say(server, "%s does not keep to the protocol, and is dropped", client->name);
		n = 0;
	}
	if (n <= 0 || reply_to(server, client))
		drop_client(server, client);
}

/* ---------------------------------------------------------------- the server */

struct xps_helper_server *xps_helper_server_new(const char *config, void (*log)(const char *text))
{
	struct xps_helper_server *server = calloc(1, sizeof(*server));

	if (server) {
		server->config = config;
		server->log = log;
	}
	return server;
}

void xps_helper_server_set_rules(struct xps_helper_server *server, const struct xps_helper_rules *rules)
{
	struct xps_helper_client *next;

	server->rules = *rules;
	for (struct xps_helper_client *client = server->clients; client; client = next) {
		const char *interface = client->port ? client->rule.interface : NULL;

		next = client->next;
		if (xps_helper_rules_find(rules, client->uid, client->gids, client->n_gids, interface))
			continue;
		say(server, "%s may not receive any more", client->name);
		drop_client(server, client);
	}
}

void xps_helper_server_free(struct xps_helper_server *server)
{
	if (!server)
		return;
	while (server->clients)
		drop_client(server, server->clients);
	free(server);
}
