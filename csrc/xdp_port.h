/* SPDX-License-Identifier: Apache-2.0 */
/*
 * xdp_port - an interface on which packets are steered: the attached program, and who owns what in its maps.
 *
 * A reader takes a *slot*, puts its sockets into it (one per queue), then its endpoints, and gives all back in the
 * opposite order. Endpoints belong to one reader at a time (xdp_claims.h). The port also keeps the table of the queues that are in use
 * (xdp_queue.h), under the same lock.
 *
 * Program and maps are this process's own, or another's that does for it what takes privileges (xdp_remote.c). Which it is
 * the port's table of operations knows, and nobody else.
 *
 * Threads: all functions lock for themselves, except where they say that the caller does.
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>
#include <sys/types.h>

#include "steer.h"
#include "xdp_claims.h"
#include "xdp_program.h"

struct xps_xdp_port;
struct xps_xdp_queue;
struct xps_xdp_queue_config;
struct xps_xdp_remote;

/* More than any NIC has; keeps the maps' sizes far from overflow. */
enum { XPS_XDP_MAX_QUEUES = 4096 };

/* What is done by whoever has the program. Those without a remark are as the functions of their names below. */
struct xps_xdp_port_ops {
	int (*take_slot)(struct xps_xdp_port *port, const char *owner, struct xps_fail *fail);
	int (*set_socket)(struct xps_xdp_port *port, int slot, uint32_t queue, int fd, struct xps_fail *fail);
	int (*add_endpoints)(struct xps_xdp_port *port, int slot, const struct xps_xdp_endpoint *endpoints, uint32_t n,
			     struct xps_fail *fail);
	void (*drop_endpoints)(struct xps_xdp_port *port, int slot);
	void (*clear_slot)(struct xps_xdp_port *port, int slot);
	void (*give_slot)(struct xps_xdp_port *port, int slot); /* its part of it */
	void (*counters)(struct xps_xdp_port *port, int slot, bool last, struct xps_steer_counters *counters);
	void (*passed)(struct xps_xdp_port *port, struct xps_steer_passed *passed);
	/*
	 * Fill in what a queue consists of, and let go of all that again. NULL, as the next: this process can do it itself.
	 */
	int (*open_queue)(struct xps_xdp_queue *queue, const struct xps_xdp_queue_config *config,
			  struct xps_fail *fail);
	void (*close_queue)(struct xps_xdp_queue *queue);
	/* A bound socket on the queue, in the slot's part of the map. */
	int (*open_socket)(struct xps_xdp_queue *queue, int slot, struct xps_fail *fail);
	/* A descriptor that hangs up when program and maps are gone; -1: they cannot go. */
	int (*lifeline)(const struct xps_xdp_port *port);
	void (*forget)(struct xps_xdp_port *port);
	void (*unload)(struct xps_xdp_port *port);
};

/* A socket that keeps multicast groups joined. */
struct xps_xdp_member_socket {
	int fd;
	ino_t inode;
};

struct xps_xdp_slot {
	bool taken;
	char owner[256]; /* what the user knows the reader by */
	struct xps_xdp_member_socket *joined;
	uint32_t n_joined;
};

struct xps_xdp_port {
	const struct xps_xdp_port_ops *ops;
	struct xps_xdp_port_config config;
	struct xps_xdp_program program;
	char name[16];                 /* of the interface, when the port was made */
	struct xps_xdp_remote *remote; /* of a port whose program is another process's */

	atomic_uint refs;
	pthread_mutex_t lock;          /* for everything below */
	struct xps_xdp_queue **queues; /* config.n_queues, NULL if not in use */
	struct xps_xdp_claims claims;
	struct xps_xdp_slot slots[XPS_STEER_SLOTS];
};

void xps_xdp_port_ref(struct xps_xdp_port *port);

/* For units that make ports of another kind: one with nothing but its configuration, to be freed as any. NULL: no memory. */
struct xps_xdp_port *xps_xdp_port_alloc(const struct xps_xdp_port_config *config, const struct xps_xdp_port_ops *ops);

/*
 * A free slot, its counters at zero; or a negative errno. The first slot taken attaches the program if it is not. `owner`
 * is how the user knows the reader, for messages to whoever wants the same endpoint, or NULL.
 */
int xps_xdp_port_take_slot(struct xps_xdp_port *port, const char *owner, struct xps_fail *fail);
/* Takes the slot's endpoints out of the map: from here on packets to them pass to the kernel, uncounted. */
void xps_xdp_port_drop_endpoints(struct xps_xdp_port *port, int slot);
/* Likewise, and the sockets. */
void xps_xdp_port_clear_slot(struct xps_xdp_port *port, int slot);
/* Clears it, and lets others have it. The last slot given detaches the program. */
void xps_xdp_port_give_slot(struct xps_xdp_port *port, int slot);

/* Sockets that have joined groups: duplicated, and open until the slot is given back. */
int xps_xdp_port_keep_joined(struct xps_xdp_port *port, int slot, const int *fds, uint32_t n, struct xps_fail *fail);
/* In a forked child: close its copies of those, with which the groups would stay joined. */
void xps_xdp_port_forget_joined(struct xps_xdp_port *port);
/* Packets of (slot, queue) go to the socket. */
int xps_xdp_port_set_socket(struct xps_xdp_port *port, int slot, uint32_t queue, int fd, struct xps_fail *fail);
/* Steer the endpoints to the slot, all or none. */
int xps_xdp_port_add_endpoints(struct xps_xdp_port *port, int slot, const struct xps_xdp_endpoint *endpoints,
			       uint32_t n, struct xps_fail *fail);

/*
 * Bring the slot's counters up to date, one for each queue of the interface, summed over CPUs. What cannot be had in time
 * stays as it was: with `last`, when the slot is cleared and they are final, that takes long.
 */
void xps_xdp_port_counters(struct xps_xdp_port *port, int slot, bool last, struct xps_steer_counters *counters);
/* A descriptor that hangs up when program and maps are gone; -1: they are this process's, and cannot go. */
int xps_xdp_port_lifeline(const struct xps_xdp_port *port);
