/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Floors: what the least possible work on the same packets costs. Libraries that Python loads with ctypes
 * (tests/bench/floors.py), so that a floor runs in the same kind of process, on the same core and under the same
 * counters as the receivers that are held against it. They share no line with xdpspead: a floor must not move with it.
 *
 * Floors that receive wait as xdpspead does by default: while packets come they sleep `nap_ns` and take what came
 * meanwhile, otherwise they wait on the descriptor.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

/* Written by the floor's thread, read by another one at any time. */
struct floor_counts {
	uint64_t packets;
	uint64_t bytes;    /* of UDP payload */
	uint64_t other;    /* packets that are not what the generator sends */
	uint64_t messages; /* as the kernel handed them over: fewer than packets where GRO put some together */
	uint64_t calls;    /* of the kernel that brought packets, or looks at the ring that found some */
};

/*
 * Copies every packet's payload of a buffer of equal heaps into heap-sized buffers, taken in turn.
 */
void floor_memcpy(const uint8_t *packets, size_t n_heaps, size_t heap_stride, const uint32_t *payload_at,
		  size_t packets_per_heap, size_t payload_size, uint8_t *const *buffers, size_t n_buffers);

/* Counts datagrams of a UDP socket, those that GRO put together too, until *stop. Returns 0 or a negative errno. */
int floor_udp_run(int fd, uint64_t nap_ns, struct floor_counts *counts, const int *stop);

struct floor_xdp;

/*
 * Attaches `object` (bpf/floor.bpf.c) to an interface, in the driver, and binds a socket to its queue 0, with 2 KiB
 * frames and rings that hold all of them. Returns NULL after writing what failed into `error`.
 */
struct floor_xdp *floor_xdp_open(const char *object, unsigned int ifindex, uint16_t port, uint32_t n_frames,
				 char *error, size_t error_size);

/*
 * Until *stop: takes what is in the ring, reads every SPEAD header to its end, and gives the frames back. With `heaps`
 * the payload is also copied to its place in heap-sized buffers, of which there are `n_heaps`, by heap id.
 */
int floor_xdp_run(struct floor_xdp *f, uint8_t *const *heaps, size_t n_heaps, size_t heap_size, uint64_t nap_ns,
		  struct floor_counts *counts, const int *stop);

void floor_xdp_close(struct floor_xdp *f);
