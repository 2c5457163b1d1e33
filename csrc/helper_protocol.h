/* SPDX-License-Identifier: Apache-2.0 */
/*
 * helper_protocol - what xdpspead-helper and the processes that receive through it say to each other.
 *
 * The helper holds the privileges that AF_XDP needs, so it makes sockets, program, maps and link. Who receives is an
 * ordinary user, and connects to the helper's Unix socket (SOCK_SEQPACKET), one connection for each interface. What is
 * asked for on a connection belongs to it: when it ends, whyever, all of it is given back.
 *
 *     OPEN            an interface; first of all, and once. With the reply comes the *lifeline*: the reading end of a
 *                     pipe into which nothing is ever written. It hangs up when the helper has died or takes all back.
 *     TAKE_SLOT       a reader's share of the program's maps
 *     OPEN_QUEUE      a queue, which is then this connection's alone. With the reply come a memfd with the frames, which
 *                     can only be mapped for reading, and the base socket, whose FILL ring holds all frames. The first
 *                     reply is -EAGAIN, and with it comes the memfd alone: making its pages takes long, so the client
 *                     does that, by looking at each, and then asks again.
 *     OPEN_SOCKET     a socket on such a queue, which packets to the slot's endpoints come to. With the reply it comes.
 *     ADD_ENDPOINTS   packets to these go to the slot
 *     COUNTERS        of the slot, for some of the queues
 *     PASSED          packets that were for no slot
 *     DROP_ENDPOINTS  no packet is counted as redirected from here on,
 *     CLEAR_SLOT      and after that, when the kernel has delivered what it was about to, none comes to the sockets
 *     GIVE_SLOT, CLOSE_QUEUE
 *
 * What is passed on cannot be turned into more: the sockets are bound, so the kernel takes no further ring (in particular
 * none to send from) and no other place for them; maps, program and link stay in the helper. Rings of a bound socket can
 * be mapped since Linux 6.4.
 *
 * Each message is one struct of this file, in the machine's own layout. Every request gets one reply, with its sequence
 * number. The helper trusts no byte of a request: xps_helper_parse() is the only way in, and is fuzzed.
 */
#pragma once

#include <sys/types.h>

#include "fail.h"
#include "steer.h"

#define XPS_HELPER_VERSION 1
#define XPS_HELPER_SOCKET "/run/xdpspead/helper.sock"

enum {
	XPS_HELPER_MAX_ENDPOINTS = 1024, /* of one reader */
	XPS_HELPER_MAX_COUNTERS = 64,    /* queues told at a time */
	XPS_HELPER_MAX_FDS = 2,
	XPS_HELPER_OWNER_SIZE = 128,
};

enum xps_helper_kind {
	XPS_HELPER_OPEN = 1,
	XPS_HELPER_TAKE_SLOT,
	XPS_HELPER_OPEN_QUEUE,
	XPS_HELPER_OPEN_SOCKET,
	XPS_HELPER_ADD_ENDPOINTS,
	XPS_HELPER_COUNTERS,
	XPS_HELPER_PASSED,
	XPS_HELPER_DROP_ENDPOINTS,
	XPS_HELPER_CLEAR_SLOT,
	XPS_HELPER_GIVE_SLOT,
	XPS_HELPER_CLOSE_QUEUE,
	XPS_HELPER_N_KINDS
};

struct xps_helper_open {
	uint32_t version;
	int32_t mode;           /* enum xps_xdp_mode */
	uint64_t net_namespace; /* inode number of the one in which the interface has this name */
	char interface[16];
};

struct xps_helper_open_queue {
	uint32_t slot, queue; /* the slot of the reader that opens it */
	uint64_t buffer_size;
	int32_t zero_copy; /* as in struct xps_xdp_reader_config */
	uint32_t zero;
};

/* One of the interface's queues; or `n` from there on. */
struct xps_helper_queues {
	uint32_t slot, queue, n;
	uint32_t zero;
};

struct xps_helper_endpoints {
	uint32_t slot, n;
	struct xps_xdp_endpoint list[XPS_HELPER_MAX_ENDPOINTS]; /* n of them are sent */
};

struct xps_helper_request {
	uint32_t kind, sequence;
	union {
		struct xps_helper_open open;
		struct xps_helper_open_queue open_queue;
		struct xps_helper_queues queues;       /* OPEN_SOCKET, COUNTERS, CLOSE_QUEUE */
		struct xps_helper_endpoints endpoints; /* ADD_ENDPOINTS */
		char owner[XPS_HELPER_OWNER_SIZE];     /* TAKE_SLOT: how the user knows the reader */
		struct {
			uint32_t slot, zero;
		} slot; /* DROP_ENDPOINTS, CLEAR_SLOT, GIVE_SLOT */
	};
};

struct xps_helper_opened {
	int32_t n_queues, mtu;
	int32_t mode; /* XPS_XDP_NATIVE or XPS_XDP_GENERIC */
	uint32_t program_id;
	uint32_t frags; /* the program takes packets in several buffers */
	uint32_t zero;
};

struct xps_helper_queue_opened {
	uint32_t frame_size, n_frames, ring_size;
	uint32_t zero_copy, multi_buffer;
	uint32_t zero;
};

struct xps_helper_reply {
	uint32_t kind, sequence; /* of the request */
	int32_t result;          /* the slot, or 0; or -errno, and then `fail` says why */
	uint32_t zero;
	union {
		struct xps_fail fail;
		struct xps_helper_opened opened;
		struct xps_helper_queue_opened queue;
		struct xps_steer_counters counters[XPS_HELPER_MAX_COUNTERS];
		struct xps_steer_passed passed;
	};
};

/* How many bytes of the request are sent. */
size_t xps_helper_request_size(const struct xps_helper_request *request);
/*
 * Take the bytes of a message apart. 0; or -EBADMSG if they are no request: of a kind and a length that exist, with text
 * that ends, and with numbers that are not beyond all bounds. Whether the client may have what it asks for is another
 * question.
 */
int xps_helper_parse(struct xps_helper_request *request, const void *bytes, size_t n);

/* Send a message with up to XPS_HELPER_MAX_FDS descriptors, at once or not at all. 0 or -errno. */
int xps_helper_send(int fd, const void *bytes, size_t n, const int *fds, uint32_t n_fds);
/*
 * Receive one, without waiting. Returns its length, 0 at the end of the connection, or -errno. Descriptors beyond
 * `max_fds` are closed.
 */
ssize_t xps_helper_receive(int fd, void *bytes, size_t size, int *fds, uint32_t max_fds, uint32_t *n_fds);
