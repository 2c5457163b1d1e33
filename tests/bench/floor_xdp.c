// SPDX-License-Identifier: Apache-2.0
/* The floor of AF_XDP: a loop that peeks, reads the SPEAD header and releases. */
#define _GNU_SOURCE
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <endian.h>
#include <linux/if_link.h>
#include <linux/if_xdp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "floor.h"
#include "floor_wait.h"

#define FRAME_SIZE 2048
#define BATCH 64
#define SPEAD_AT 42 /* after Ethernet, IPv4 and UDP */
#define POINTERS_AT (SPEAD_AT + 8)
#define HEAP_CNT 1
#define PAYLOAD_OFFSET 3
#define PAYLOAD_LENGTH 4

struct ring {
	uint32_t *producer, *consumer, *flags;
	void *entries;
	void *map;
	size_t map_size;
	uint32_t mask;
	uint32_t mine;
};

struct floor_xdp {
	struct bpf_object *object;
	int link_fd;
	int fd;
	uint32_t n_frames;
	uint8_t *frames;
	struct ring rx, fill;
};

/* What is in a header. */
struct spead {
	uint64_t heap_cnt, offset, length;
	const uint8_t *payload;
};

static bool failed(char *error, size_t size, const char *format, ...) __attribute__((format(printf, 3, 4)));

static bool failed(char *error, size_t size, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(error, size, format, arguments);
	va_end(arguments);
	return false;
}

/* ---- setting up ---------------------------------------------------------------------------- */

static bool map_ring(struct ring *ring, int fd, const struct xdp_ring_offset *at, uint32_t n, size_t entry, off_t where)
{
	ring->map_size = at->desc + n * entry;
	ring->map = mmap(NULL, ring->map_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, where);
	if (ring->map == MAP_FAILED) {
		ring->map = NULL;
		return false;
	}
	ring->producer = (void *)((uint8_t *)ring->map + at->producer);
	ring->consumer = (void *)((uint8_t *)ring->map + at->consumer);
	ring->flags = (void *)((uint8_t *)ring->map + at->flags);
	ring->entries = (uint8_t *)ring->map + at->desc;
	ring->mask = n - 1;
	return true;
}

static bool make_socket(struct floor_xdp *f, unsigned int ifindex, char *error, size_t size)
{
	struct sockaddr_xdp address = { .sxdp_family = AF_XDP,
					.sxdp_ifindex = ifindex,
					.sxdp_flags = XDP_COPY | XDP_USE_NEED_WAKEUP };
	size_t bytes = (size_t)f->n_frames * FRAME_SIZE;
	struct xdp_umem_reg umem = { .len = bytes, .chunk_size = FRAME_SIZE };
	struct xdp_mmap_offsets at;
	socklen_t at_size = sizeof(at);
	uint32_t n = f->n_frames, completion = 2;

	f->fd = socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0);
	f->frames = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (f->frames == MAP_FAILED) {
		f->frames = NULL;
		return failed(error, size, "memory for frames: %s", strerror(errno));
	}
	umem.addr = (uintptr_t)f->frames;
	if (f->fd < 0 || setsockopt(f->fd, SOL_XDP, XDP_UMEM_REG, &umem, sizeof(umem)) ||
	    setsockopt(f->fd, SOL_XDP, XDP_UMEM_FILL_RING, &n, sizeof(n)) ||
	    setsockopt(f->fd, SOL_XDP, XDP_UMEM_COMPLETION_RING, &completion, sizeof(completion)) ||
	    setsockopt(f->fd, SOL_XDP, XDP_RX_RING, &n, sizeof(n)) ||
	    getsockopt(f->fd, SOL_XDP, XDP_MMAP_OFFSETS, &at, &at_size) ||
	    !map_ring(&f->rx, f->fd, &at.rx, n, sizeof(struct xdp_desc), XDP_PGOFF_RX_RING) ||
	    !map_ring(&f->fill, f->fd, &at.fr, n, sizeof(uint64_t), XDP_UMEM_PGOFF_FILL_RING))
		return failed(error, size, "AF_XDP socket: %s", strerror(errno));
	for (uint32_t i = 0; i < n; i++)
		((uint64_t *)f->fill.entries)[f->fill.mine++ & f->fill.mask] = (uint64_t)i * FRAME_SIZE;
	__atomic_store_n(f->fill.producer, f->fill.mine, __ATOMIC_RELEASE);
	if (bind(f->fd, (struct sockaddr *)&address, sizeof(address)))
		return failed(error, size, "binding to queue 0: %s", strerror(errno));
	return true;
}

static bool attach(struct floor_xdp *f, const char *path, unsigned int ifindex, uint16_t port, char *error, size_t size)
{
	LIBBPF_OPTS(bpf_link_create_opts, options, .flags = XDP_FLAGS_DRV_MODE);
	struct bpf_program *program;
	struct bpf_map *knobs, *sockets;
	uint32_t key = 0;
	int link;

	f->object = bpf_object__open_file(path, NULL);
	if (!f->object)
		return failed(error, size, "%s: %s", path, strerror(errno));
	knobs = bpf_object__find_map_by_name(f->object, ".rodata");
	if (!knobs || bpf_map__set_initial_value(knobs, &port, sizeof(port)))
		return failed(error, size, "%s has no knob of the size of a port: rebuild it", path);
	if (bpf_object__load(f->object))
		return failed(error, size, "loading %s: %s", path, strerror(errno));
	program = bpf_object__find_program_by_name(f->object, "to_socket");
	sockets = bpf_object__find_map_by_name(f->object, "sockets");
	if (!program || !sockets || bpf_map_update_elem(bpf_map__fd(sockets), &key, &f->fd, BPF_ANY))
		return failed(error, size, "giving the socket to the program: %s", strerror(errno));
	/* Not bpf_program__attach_xdp(), which cannot ask for the driver's mode. */
	link = bpf_link_create(bpf_program__fd(program), (int)ifindex, BPF_XDP, &options);
	if (link < 0)
		return failed(error, size, "attaching to interface %u: %s", ifindex, strerror(-link));
	/* Held by its descriptor: the kernel takes the program off with this process at the latest. */
	f->link_fd = link;
	return true;
}

struct floor_xdp *floor_xdp_open(const char *object, unsigned int ifindex, uint16_t port, uint32_t n_frames,
				 char *error, size_t error_size)
{
	struct floor_xdp *f = calloc(1, sizeof(*f));

	if (!f) {
		failed(error, error_size, "out of memory");
		return NULL;
	}
	f->fd = -1;
	f->link_fd = -1;
	f->n_frames = n_frames;
	if (make_socket(f, ifindex, error, error_size) && attach(f, object, ifindex, port, error, error_size))
		return f;
	floor_xdp_close(f);
	return NULL;
}

void floor_xdp_close(struct floor_xdp *f)
{
	if (f->link_fd >= 0)
		close(f->link_fd);
	if (f->object)
		bpf_object__close(f->object);
	if (f->rx.map)
		munmap(f->rx.map, f->rx.map_size);
	if (f->fill.map)
		munmap(f->fill.map, f->fill.map_size);
	if (f->fd >= 0)
		close(f->fd);
	if (f->frames)
		munmap(f->frames, (size_t)f->n_frames * FRAME_SIZE);
	free(f);
}

/* ---- receiving ----------------------------------------------------------------------------- */

static uint64_t read_pointer(const uint8_t *at)
{
	uint64_t value;

	memcpy(&value, at, sizeof(value));
	return be64toh(value);
}

static bool read_header(const uint8_t *frame, uint32_t size, struct spead *spead)
{
	uint32_t n, end;

	if (size < POINTERS_AT || frame[SPEAD_AT] != 0x53 || frame[SPEAD_AT + 1] != 4)
		return false;
	n = (uint32_t)frame[SPEAD_AT + 6] << 8 | frame[SPEAD_AT + 7];
	if (n > (size - POINTERS_AT) / 8)
		return false;
	end = POINTERS_AT + 8 * n;
	for (uint32_t at = POINTERS_AT; at < end; at += 8) {
		uint64_t pointer = read_pointer(frame + at);
		uint64_t value = pointer & ((1ULL << 48) - 1);

		switch (pointer >> 48 & 0x7fff) {
		case HEAP_CNT:
			spead->heap_cnt = value;
			break;
		case PAYLOAD_OFFSET:
			spead->offset = value;
			break;
		case PAYLOAD_LENGTH:
			spead->length = value;
			break;
		}
	}
	spead->payload = frame + end;
	return spead->length <= size - end;
}

static void take(struct floor_xdp *f, const struct xdp_desc *desc, uint8_t *const *heaps, size_t n_heaps,
		 size_t heap_size, struct floor_counts *counts)
{
	struct spead spead = { 0 };

	if (!read_header(f->frames + desc->addr, desc->len, &spead)) {
		counts->other++;
		return;
	}
	counts->packets++;
	counts->bytes += desc->len - SPEAD_AT;
	if (n_heaps && spead.offset <= heap_size && spead.length <= heap_size - spead.offset)
		memcpy(heaps[spead.heap_cnt % n_heaps] + spead.offset, spead.payload, spead.length);
}

int floor_xdp_run(struct floor_xdp *f, uint8_t *const *heaps, size_t n_heaps, size_t heap_size, uint64_t nap_ns,
		  struct floor_counts *counts, const int *stop)
{
	uint64_t *fill = f->fill.entries;
	const struct xdp_desc *rx = f->rx.entries;
	bool had_packets = false;

	while (!__atomic_load_n(stop, __ATOMIC_RELAXED)) {
		uint32_t n = __atomic_load_n(f->rx.producer, __ATOMIC_ACQUIRE) - f->rx.mine;

		if (n > BATCH)
			n = BATCH;
		for (uint32_t i = 0; i < n; i++) {
			const struct xdp_desc *desc = &rx[f->rx.mine++ & f->rx.mask];

			take(f, desc, heaps, n_heaps, heap_size, counts);
			fill[f->fill.mine++ & f->fill.mask] = desc->addr & ~(uint64_t)(FRAME_SIZE - 1);
		}
		if (n) {
			__atomic_store_n(f->rx.consumer, f->rx.mine, __ATOMIC_RELEASE);
			__atomic_store_n(f->fill.producer, f->fill.mine, __ATOMIC_RELEASE);
			counts->calls++;
			counts->messages += n;
			had_packets = true;
		}
		if (n == BATCH)
			continue;
		if (__atomic_load_n(f->fill.flags, __ATOMIC_RELAXED) & XDP_RING_NEED_WAKEUP)
			recvfrom(f->fd, NULL, 0, MSG_DONTWAIT, NULL, NULL);
		floor_wait(f->fd, had_packets, nap_ns);
		had_packets = false;
	}
	return 0;
}
