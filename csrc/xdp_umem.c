// SPDX-License-Identifier: Apache-2.0
#include "xdp_umem.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

enum {
	BIND_TRIES = 25,
	BIND_PAUSE_NS = 20 * 1000 * 1000,
};

/* Linux 5.1 */
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

bool xps_kernel_at_least(unsigned major, unsigned minor)
{
	struct utsname name;
	unsigned a = 0, b = 0;

	if (uname(&name) || sscanf(name.release, "%u.%u", &a, &b) != 2)
		return false;
	return a > major || (a == major && b >= minor);
}

int xps_xdp_fd_open(struct xps_fail *fail)
{
	static const char step[] = "create socket";
	int fd = socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0);

	if (fd >= 0)
		return fd;
	switch (errno) {
	case EPERM:
		return xps_fail_set(fail, EPERM, step, "An AF_XDP socket needs CAP_NET_RAW: run as root, or grant it.");
	case EAFNOSUPPORT:
		return xps_fail_set(fail, EAFNOSUPPORT, step,
				    "This kernel has no AF_XDP sockets (CONFIG_XDP_SOCKETS); use a kernel that has.");
	case EMFILE:
		return xps_fail_set(fail, EMFILE, step, "Too many open files: raise RLIMIT_NOFILE (ulimit -n).");
	default:
		return xps_fail_set(fail, errno, step, "Cannot create an AF_XDP socket: %s.", strerror(errno));
	}
}

void xps_xdp_fd_forget(int fd)
{
	int domain = 0;
	socklen_t length = sizeof(domain);

	/* What a number stood for when another thread's memory was copied it may not stand for in the copied descriptors. */
	if (!getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &length) && domain == AF_XDP)
		close(fd);
}

/* ---------------------------------------------------------------- memory */

static uint8_t *map_fail(size_t size, const struct xps_xdp_place *place, struct xps_fail *fail)
{
	xps_fail_set(fail, ENOMEM, "allocate frames",
		     "Cannot allocate %zu bytes for queue %u of %s. Use a smaller buffer_size.", size, place->queue,
		     place->name);
	return NULL;
}

uint8_t *xps_xdp_frames_map(size_t size, const struct xps_xdp_place *place, struct xps_fail *fail)
{
	void *map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (map == MAP_FAILED)
		return map_fail(size, place, fail);
	/* Fewer TLB misses; and a forked child must not share pages that the kernel uses. */
	madvise(map, size, MADV_HUGEPAGE);
	madvise(map, size, MADV_DONTFORK);
	return map;
}

/* Sealed after our own mapping, which alone can be written through then. */
static int map_and_seal(struct xps_xdp_shared_frames *frames)
{
	void *map;

	if (ftruncate(frames->fd, (off_t)frames->size))
		return -errno;
	map = mmap(NULL, frames->size, PROT_READ | PROT_WRITE, MAP_SHARED, frames->fd, 0);
	if (map == MAP_FAILED)
		return -errno;
	frames->map = map;
	madvise(map, frames->size, MADV_HUGEPAGE);
	return fcntl(frames->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL) ? -errno
													       : 0;
}

int xps_xdp_frames_share(struct xps_xdp_shared_frames *frames, size_t size, const struct xps_xdp_place *place,
			 struct xps_fail *fail)
{
	*frames = (struct xps_xdp_shared_frames){
		.size = size,
		.fd = memfd_create("xdpspead-frames", MFD_CLOEXEC | MFD_ALLOW_SEALING),
	};
	if (frames->fd >= 0 && !map_and_seal(frames))
		return 0;
	xps_xdp_frames_unshare(frames);
	map_fail(size, place, fail);
	return -ENOMEM;
}

bool xps_xdp_frames_are_there(const struct xps_xdp_shared_frames *frames)
{
	struct stat status;

	return frames->map && !fstat(frames->fd, &status) && (size_t)status.st_blocks * 512 >= frames->size;
}

void xps_xdp_frames_unshare(struct xps_xdp_shared_frames *frames)
{
	if (frames->map)
		munmap(frames->map, frames->size);
	if (frames->size && frames->fd >= 0)
		close(frames->fd);
	*frames = (struct xps_xdp_shared_frames){ 0 };
}

uint8_t *xps_xdp_frames_map_given(size_t size, int fd, const struct xps_xdp_place *place, struct xps_fail *fail)
{
	void *map = mmap(NULL, size, PROT_READ, MAP_SHARED | MAP_POPULATE, fd, 0);

	if (map == MAP_FAILED)
		return map_fail(size, place, fail);
	madvise(map, size, MADV_DONTFORK);
	return map;
}

void xps_xdp_frames_unmap(uint8_t *frames, size_t size)
{
	if (frames)
		munmap(frames, size);
}

int xps_xdp_frames_register(int fd, const uint8_t *frames, size_t size, uint32_t frame_size,
			    const struct xps_xdp_place *place, struct xps_fail *fail)
{
	static const char step[] = "register UMEM";
	const struct xdp_umem_reg reg = {
		.addr = (uintptr_t)frames,
		.len = size,
		.chunk_size = frame_size,
	};
	const size_t all = size * (place->n_alike ? place->n_alike : 1);
	struct rlimit limit = { 0 };

	if (!setsockopt(fd, SOL_XDP, XDP_UMEM_REG, &reg, sizeof(reg)))
		return 0;
	if (errno != ENOBUFS)
		return xps_fail_set(fail, errno, step, "The kernel does not take %zu bytes of packet memory: %s.%s",
				    size, strerror(errno), errno == ENOMEM ? " Use a smaller buffer_size." : "");
	getrlimit(RLIMIT_MEMLOCK, &limit);
	return xps_fail_set(
		fail, ENOBUFS, step,
		"Locking %zu bytes of packet memory for queue %u of %s goes beyond RLIMIT_MEMLOCK, which is %llu "
		"bytes for all AF_XDP sockets of this user. %zu bytes are needed here in all: raise it ('ulimit -l "
		"%zu', or 'LimitMEMLOCK=%zu' in a systemd unit), grant CAP_IPC_LOCK, or use a smaller buffer_size.",
		size, place->queue, place->name, (unsigned long long)limit.rlim_cur, all, (all + 1023) / 1024, all);
}

/* ---------------------------------------------------------------- rings */

int xps_xdp_ring_make(int fd, int option, const char *name, uint32_t n_entries, struct xps_fail *fail)
{
	if (!setsockopt(fd, SOL_XDP, option, &n_entries, sizeof(n_entries)))
		return 0;
	return xps_fail_set(fail, errno, "create ring", "Cannot make the %s ring of %u entries: %s.%s", name, n_entries,
			    strerror(errno), errno == ENOMEM ? " Use a smaller buffer_size." : "");
}

int xps_xdp_ring_map(struct xps_xdp_ring *ring, int fd, const struct xdp_ring_offset *offsets, uint32_t n_entries,
		     size_t entry_size, uint64_t page_offset)
{
	const size_t size = (size_t)offsets->desc + n_entries * entry_size;
	uint8_t *map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, (off_t)page_offset);

	if (map == MAP_FAILED)
		return -errno;
	/* A mapped ring keeps its socket alive: not in a forked child, which would swallow packets for ever. */
	madvise(map, size, MADV_DONTFORK);
	*ring = (struct xps_xdp_ring){
		.producer = (uint32_t *)(void *)(map + offsets->producer),
		.consumer = (uint32_t *)(void *)(map + offsets->consumer),
		.flags = (uint32_t *)(void *)(map + offsets->flags),
		.entries = map + offsets->desc,
		.mask = n_entries - 1,
		.map = map,
		.map_size = size,
	};
	return 0;
}

void xps_xdp_ring_unmap(struct xps_xdp_ring *ring)
{
	if (ring->map)
		munmap(ring->map, ring->map_size);
	ring->map = NULL;
}

/* ---------------------------------------------------------------- binding */

static int bind_once(int fd, const struct xps_xdp_place *place, int flags)
{
	const struct sockaddr_xdp address = {
		.sxdp_family = AF_XDP,
		.sxdp_flags = (uint16_t)flags,
		.sxdp_ifindex = (uint32_t)place->ifindex,
		.sxdp_queue_id = place->queue,
	};

	return bind(fd, (const struct sockaddr *)&address, sizeof(address)) ? -errno : 0;
}

int xps_xdp_bind(int fd, const struct xps_xdp_place *place, int flags)
{
	const struct timespec pause = { .tv_nsec = BIND_PAUSE_NS };
	int err = bind_once(fd, place, flags);

	for (int i = 1; i < BIND_TRIES && !place->once && err == -EBUSY; i++) {
		nanosleep(&pause, NULL);
		err = bind_once(fd, place, flags);
	}
	return err;
}

int xps_xdp_bind_fail(int err, const struct xps_xdp_place *place, struct xps_fail *fail)
{
	static const char step[] = "bind";

	switch (err) {
	case ENODEV:
		return xps_fail_set(fail, err, step, "The interface %s is gone.", place->name);
	case ENETDOWN:
		return xps_fail_set(fail, err, step, "The interface %s is down: 'ip link set dev %s up'.", place->name,
				    place->name);
	case EPERM:
		return xps_fail_set(fail, err, step,
				    "Binding to %s is not permitted: grant CAP_NET_RAW and CAP_NET_ADMIN.",
				    place->name);
	}
	return xps_fail_set(fail, err, step, "Cannot bind to queue %u of %s: %s.%s", place->queue, place->name,
			    strerror(err), err == EINVAL ? " Is there such a queue?" : "");
}

bool xps_xdp_zero_copy_refused(int err)
{
	return err == -EOPNOTSUPP || err == -EINVAL;
}
