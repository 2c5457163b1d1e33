/* SPDX-License-Identifier: Apache-2.0 */
/*
 * xdp_umem - what every kind of AF_XDP socket needs: the socket itself, packet memory that is shared with the kernel
 * (UMEM), rings, and the queue that it is bound to. Each says what went wrong in the same words for all of them.
 *
 * The order of tearing down matters: a mapped ring keeps a closed socket alive, and the kernel may use frames until that
 * is gone. So first the rings, then the socket, then the frames.
 */
#pragma once

#include "fail.h"
#include "xdp_ring.h"

enum {
	XPS_XDP_SMALL_FRAME = 2048,
	XPS_XDP_LARGE_FRAME = 4096, /* a page, the largest there is */
	XPS_XDP_MAX_FRAMES = 1 << 24,
};

/* A queue of an interface. */
struct xps_xdp_place {
	int ifindex;
	const char *name; /* of the interface */
	uint32_t queue;
	bool once;        /* do not wait until somebody else has let go of it */
	uint32_t n_alike; /* queues that are opened in one go, each with as much memory; 0 is as good as 1 */
};

bool xps_kernel_at_least(unsigned major, unsigned minor);

int xps_xdp_fd_open(struct xps_fail *fail);
/* In a forked child: close it, if it still is such a socket. */
void xps_xdp_fd_forget(int fd);

/* Map `size` bytes for frames. NULL if that fails. */
uint8_t *xps_xdp_frames_map(size_t size, const struct xps_xdp_place *place, struct xps_fail *fail);
/* Memory for frames that can be passed on. Zeros: none. */
struct xps_xdp_shared_frames {
	uint8_t *map;
	size_t size;
	int fd; /* whoever is given it can map it too, but for reading only, and change nothing about it */
};

/* The memory is not there yet: it comes into being page by page, when somebody looks at it. */
int xps_xdp_frames_share(struct xps_xdp_shared_frames *frames, size_t size, const struct xps_xdp_place *place,
			 struct xps_fail *fail);
/* Whether all of it is there. */
bool xps_xdp_frames_are_there(const struct xps_xdp_shared_frames *frames);
void xps_xdp_frames_unshare(struct xps_xdp_shared_frames *frames);
/* What somebody else has made so. */
uint8_t *xps_xdp_frames_map_given(size_t size, int fd, const struct xps_xdp_place *place, struct xps_fail *fail);
void xps_xdp_frames_unmap(uint8_t *frames, size_t size);
/* Lock them in memory and hand them to the kernel as the socket's UMEM. */
int xps_xdp_frames_register(int fd, const uint8_t *frames, size_t size, uint32_t frame_size,
			    const struct xps_xdp_place *place, struct xps_fail *fail);

/* `option` is XDP_TX_RING or the like, `name` says which it is. */
int xps_xdp_ring_make(int fd, int option, const char *name, uint32_t n_entries, struct xps_fail *fail);
/* Map the ring `page_offset` of socket `fd`. */
int xps_xdp_ring_map(struct xps_xdp_ring *ring, int fd, const struct xdp_ring_offset *offsets, uint32_t n_entries,
		     size_t entry_size, uint64_t page_offset);
void xps_xdp_ring_unmap(struct xps_xdp_ring *ring);

/* Bind, and unless place->once wait a while for a queue that has just been given up: the kernel lets go of it later. Returns -errno. */
int xps_xdp_bind(int fd, const struct xps_xdp_place *place, int flags);
/* Say why that failed. Who calls it knows what EBUSY, EINVAL and EOPNOTSUPP mean in particular. */
int xps_xdp_bind_fail(int err, const struct xps_xdp_place *place, struct xps_fail *fail);
/* Drivers without zero-copy say so in two ways. */
bool xps_xdp_zero_copy_refused(int err);
