// SPDX-License-Identifier: Apache-2.0
#include "helper_protocol.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { HEAD = offsetof(struct xps_helper_request, open) };

/* What follows the head, by kind; of ADD_ENDPOINTS what stands before the list. */
static const size_t bodies[XPS_HELPER_N_KINDS] = {
	[XPS_HELPER_OPEN] = sizeof(struct xps_helper_open),
	[XPS_HELPER_TAKE_SLOT] = XPS_HELPER_OWNER_SIZE,
	[XPS_HELPER_OPEN_QUEUE] = sizeof(struct xps_helper_open_queue),
	[XPS_HELPER_OPEN_SOCKET] = sizeof(struct xps_helper_queues),
	[XPS_HELPER_ADD_ENDPOINTS] = offsetof(struct xps_helper_endpoints, list),
	[XPS_HELPER_COUNTERS] = sizeof(struct xps_helper_queues),
	[XPS_HELPER_PASSED] = 0,
	[XPS_HELPER_DROP_ENDPOINTS] = sizeof(((struct xps_helper_request *)0)->slot),
	[XPS_HELPER_CLEAR_SLOT] = sizeof(((struct xps_helper_request *)0)->slot),
	[XPS_HELPER_GIVE_SLOT] = sizeof(((struct xps_helper_request *)0)->slot),
	[XPS_HELPER_CLOSE_QUEUE] = sizeof(struct xps_helper_queues),
};

size_t xps_helper_request_size(const struct xps_helper_request *request)
{
	size_t size = HEAD + bodies[request->kind];

	if (request->kind == XPS_HELPER_ADD_ENDPOINTS)
		size += request->endpoints.n * sizeof(request->endpoints.list[0]);
	return size;
}

/* ---------------------------------------------------------------- parsing */

static bool ends(const char *text, size_t size)
{
	return memchr(text, 0, size);
}

/* The body is there in full; but of ADD_ENDPOINTS the list may not be. */
static bool makes_sense(const struct xps_helper_request *r)
{
	switch (r->kind) {
	case XPS_HELPER_OPEN:
		return ends(r->open.interface, sizeof(r->open.interface)) && r->open.mode >= XPS_XDP_AUTO &&
		       r->open.mode <= XPS_XDP_GENERIC;
	case XPS_HELPER_TAKE_SLOT:
		return ends(r->owner, sizeof(r->owner));
	case XPS_HELPER_OPEN_QUEUE:
		return r->open_queue.slot < XPS_STEER_SLOTS && r->open_queue.zero_copy >= -2 &&
		       r->open_queue.zero_copy <= 1;
	case XPS_HELPER_COUNTERS:
		return r->queues.slot < XPS_STEER_SLOTS && r->queues.n <= XPS_HELPER_MAX_COUNTERS;
	case XPS_HELPER_OPEN_SOCKET:
	case XPS_HELPER_CLOSE_QUEUE:
		return r->queues.slot < XPS_STEER_SLOTS;
	case XPS_HELPER_ADD_ENDPOINTS:
		return r->endpoints.slot < XPS_STEER_SLOTS && r->endpoints.n <= XPS_HELPER_MAX_ENDPOINTS;
	case XPS_HELPER_DROP_ENDPOINTS:
	case XPS_HELPER_CLEAR_SLOT:
	case XPS_HELPER_GIVE_SLOT:
		return r->slot.slot < XPS_STEER_SLOTS;
	default:
		return true;
	}
}

int xps_helper_parse(struct xps_helper_request *request, const void *bytes, size_t n)
{
	if (n < HEAD || n > sizeof(*request))
		return -EBADMSG;
	memcpy(request, bytes, HEAD);
	if (request->kind < XPS_HELPER_OPEN || request->kind >= XPS_HELPER_N_KINDS || n < HEAD + bodies[request->kind])
		return -EBADMSG;
	memcpy(request, bytes, n);
	if (!makes_sense(request) || n != xps_helper_request_size(request))
		return -EBADMSG;
	return 0;
}

/* ---------------------------------------------------------------- sending and receiving */

union control {
	struct cmsghdr align;
	char bytes[CMSG_SPACE(XPS_HELPER_MAX_FDS * sizeof(int))];
};

int xps_helper_send(int fd, const void *bytes, size_t n, const int *fds, uint32_t n_fds)
{
	struct iovec part = { .iov_base = (void *)(uintptr_t)bytes, .iov_len = n };
	union control control = { 0 };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1 };

	if (n_fds) {
		struct cmsghdr *head;

		message.msg_control = control.bytes;
		message.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
		head = CMSG_FIRSTHDR(&message);
		head->cmsg_level = SOL_SOCKET;
		head->cmsg_type = SCM_RIGHTS;
		head->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
		memcpy(CMSG_DATA(head), fds, n_fds * sizeof(int));
	}
	return sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 ? -errno : 0;
}

/* There is room for no more than XPS_HELPER_MAX_FDS; the kernel drops what is beyond that. */
static void take_fds(struct msghdr *message, int *fds, uint32_t max_fds, uint32_t *n_fds)
{
	for (struct cmsghdr *head = CMSG_FIRSTHDR(message); head; head = CMSG_NXTHDR(message, head)) {
		size_t n;

		if (head->cmsg_level != SOL_SOCKET || head->cmsg_type != SCM_RIGHTS)
			continue;
		n = (head->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < n; i++) {
			int passed;

			memcpy(&passed, CMSG_DATA(head) + i * sizeof(int), sizeof(passed));
			if (*n_fds < max_fds)
				fds[(*n_fds)++] = passed;
			else
				close(passed);
		}
	}
}

ssize_t xps_helper_receive(int fd, void *bytes, size_t size, int *fds, uint32_t max_fds, uint32_t *n_fds)
{
	struct iovec part = { .iov_base = bytes, .iov_len = size };
	union control control;
	struct msghdr message = {
		.msg_iov = &part,
		.msg_iovlen = 1,
		.msg_control = control.bytes,
		/* Without room for descriptors the kernel closes those that come. */
		.msg_controllen = max_fds ? sizeof(control.bytes) : 0,
	};
	const ssize_t n = recvmsg(fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

	*n_fds = 0;
	if (n < 0)
		return -errno;
	take_fds(&message, fds, max_fds, n_fds);
	/* A message that is longer than any is none. */
	return message.msg_flags & MSG_TRUNC ? (ssize_t)size + 1 : n;
}
