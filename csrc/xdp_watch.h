/* SPDX-License-Identifier: Apache-2.0 */
/*
 * xdp_watch - what happens to an interface while it is read: it goes down or loses its carrier, gets another name or MTU,
 * is deleted or moved to another network namespace, or loses its XDP program.
 *
 * How it works
 *
 * The kernel tells all of that but the last through a netlink socket. What it does not tell, or told while there was no
 * room for it, is asked for; the answer comes to the same socket. Whatever comes is compared with what was known, so it
 * makes no difference how often something is told. An interface is known by its index, which it keeps when it is renamed;
 * a filter in the kernel leaves out all others, of which a machine with containers has many.
 *
 * Threads: open by the user's, which is in the interface's network namespace; the rest by one worker. No function waits,
 * except that the kernel may let who asks wait for somebody who is just changing an interface.
 */
#pragma once

#include "fail.h"

/* Whether packets can come. */
enum xps_xdp_state { XPS_XDP_RUNNING, XPS_XDP_NO_CARRIER, XPS_XDP_DOWN };

struct xps_xdp_watch {
	int fd; /* readable when there is something to read; -1: closed */
	int ifindex;
	uint32_t program_id; /* of the program that must be attached; 0: not known, and so not looked at */
	int max_mtu;         /* with a larger one packets can come that do not fit; 0: any fits */

	/* what is known */
	char name[16];
	int mtu;
	enum xps_xdp_state state;

	/* who is told of changes that do not end anything: a sentence, and a level of enum xps_log_level */
	void (*tell)(void *user, int level, const char *text);
	void *user;
};

/* `watch` has everything but the descriptor, which this opens; it also asks for how things are now. */
int xps_xdp_watch_open(struct xps_xdp_watch *watch, struct xps_fail *fail);
void xps_xdp_watch_close(struct xps_xdp_watch *watch);

/*
 * Read what has come, and tell of changes. Returns how many messages that were, 0 if none; or a negative errno, and `fail` says why no packet will ever come any more:
 * -ENODEV the interface is not in this namespace any more, -ENOLINK it has lost our program.
 */
int xps_xdp_watch_read(struct xps_xdp_watch *watch, struct xps_fail *fail);
/* Ask how things are. The descriptor becomes readable. */
void xps_xdp_watch_ask(struct xps_xdp_watch *watch);

/* What read() does with one datagram of `length` bytes from the kernel, whatever is in it. */
int xps_xdp_watch_parse(struct xps_xdp_watch *watch, const uint8_t *data, size_t length, struct xps_fail *fail);
