/* SPDX-License-Identifier: Apache-2.0 */
/*
 * helper_server - what xdpspead-helper does for those who are connected to it: their requests (helper_protocol.h), by
 * the rules (helper_rules.h), and what they were given.
 *
 * Everything is done at once: nothing in here waits for a client, so one that says nothing, or does not listen, costs the
 * others nothing. A client that breaks the protocol is dropped.
 *
 * A queue is one client's at a time; program and maps of an interface are shared by all. What a client has at most is
 * bounded by its rule and by the constants here, and so is the helper.
 */
#pragma once

#include "helper_rules.h"

enum {
	XPS_HELPER_MAX_CLIENTS = 256,
	XPS_HELPER_MAX_CLIENTS_PER_USER = 32,
};

struct xps_helper_client;
struct xps_helper_server;

/* `config` is the name of the configuration file, for messages; `log` gets a line for what an administrator may want to know. */
struct xps_helper_server *xps_helper_server_new(const char *config, void (*log)(const char *text));
/* Takes everything back from everybody. */
void xps_helper_server_free(struct xps_helper_server *server);
/* The rules from now on. Clients that no rule is for any more are dropped; others keep what they have. */
void xps_helper_server_set_rules(struct xps_helper_server *server, const struct xps_helper_rules *rules);

/* Somebody has connected: `fd` is taken, and closed if they may not, after they have been told. */
void xps_helper_server_accept(struct xps_helper_server *server, int fd);
/* The descriptors to wait for: of all clients, readable. Returns how many. */
uint32_t xps_helper_server_fds(const struct xps_helper_server *server, int fds[XPS_HELPER_MAX_CLIENTS]);
/* The descriptor is readable: do one request, or take all back if the connection has ended. */
void xps_helper_server_serve(struct xps_helper_server *server, int fd);
