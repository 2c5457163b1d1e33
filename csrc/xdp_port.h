/* SPDX-License-Identifier: Apache-2.0 */
/*
 * xdp_port - an interface on which this process steers packets: the attached program, and who owns what in its maps.
 *
 * A reader takes a *slot*, puts its sockets into it (one per queue), then its endpoints, and gives all back in the
 * opposite order. Endpoints belong to one reader at a time (xdp_claims.h). The port also keeps the table of the queues that are in use
 * (xdp_queue.h), under the same lock.
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

struct xps_xdp_queue;

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
	struct xps_xdp_port_config config;
	struct xps_xdp_program program;
	char name[16]; /* of the interface, when the port was made */

	atomic_uint refs;
	pthread_mutex_t lock;          /* for everything below */
	struct xps_xdp_queue **queues; /* config.n_queues, NULL if not in use */
	struct xps_xdp_claims claims;
	struct xps_xdp_slot slots[XPS_STEER_SLOTS];
};

void xps_xdp_port_ref(struct xps_xdp_port *port);

/* A free slot, its counters at zero; or a negative errno. The first slot taken attaches the program if it is not. */
int xps_xdp_port_take_slot(struct xps_xdp_port *port, struct xps_fail *fail);
/* Takes the slot's endpoints out of the map: from here on packets to them pass to the kernel, uncounted. */
void xps_xdp_port_drop_endpoints(struct xps_xdp_port *port, int slot);
/* Likewise, and the sockets. */
void xps_xdp_port_clear_slot(struct xps_xdp_port *port, int slot);
/* Clears it, and lets others have it. The last slot given detaches the program. */
void xps_xdp_port_give_slot(struct xps_xdp_port *port, int slot);

/* How the user knows the reader, for messages to whoever wants the same endpoint. May be NULL. */
void xps_xdp_port_set_owner(struct xps_xdp_port *port, int slot, const char *owner);
/* Sockets that have joined groups: duplicated, and open until the slot is given back. */
int xps_xdp_port_keep_joined(struct xps_xdp_port *port, int slot, const int *fds, uint32_t n, struct xps_fail *fail);
/* In a forked child: close its copies of those, with which the groups would stay joined. */
void xps_xdp_port_forget_joined(struct xps_xdp_port *port);
/* Packets of (slot, queue) go to the socket. */
int xps_xdp_port_set_socket(struct xps_xdp_port *port, int slot, uint32_t queue, int fd, struct xps_fail *fail);
/* Steer the endpoints to the slot, all or none. */
int xps_xdp_port_add_endpoints(struct xps_xdp_port *port, int slot, const struct xps_xdp_endpoint *endpoints,
			       uint32_t n, struct xps_fail *fail);

/* The slot's counters for one queue, summed over CPUs. */
struct xps_steer_counters xps_xdp_port_queue_counters(struct xps_xdp_port *port, int slot, uint32_t queue);
