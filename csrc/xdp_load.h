/* SPDX-License-Identifier: Apache-2.0 */
/*
 * xdp_load - from the object that clang made to a program and its maps in the kernel, by libbpf.
 *
 * The only unit that speaks to libbpf. It is needed once for an interface, so the Python package has it in a library of
 * its own, which xdp_loader.c opens for the time of a call: libbpf, and what that wants in turn, would take most of a MiB
 * of each receiver. Programs in C have it linked.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What to say in front of what a library is to export; it hides all else. */
#ifndef XPS_LOAD_API
#define XPS_LOAD_API
#endif

/* Which of the programs, from the most able to the one that loads everywhere. */
enum xps_xdp_variant {
	XPS_XDP_FRAGS, /* takes packets in several buffers */
	XPS_XDP_PLAIN,
	XPS_XDP_OLD, /* for kernels before 5.18; needs CAP_PERFMON */
};

struct xps_xdp_loaded {
	/* Descriptors, which are the caller's. */
	int fd;
	int endpoints_fd, sources_fd, sockets_fd, counters_fd, passed_fd;
	uint32_t n_cpus; /* values per entry of `counters` */
	bool frags;      /* takes packets in several buffers */
};

/*
 * Load `best`, or the next one that the kernel takes, and make its maps for `n_queues` receive queues. 0 or a negative
 * errno, and the end of what libbpf and the kernel said, in one line, in `said`, which has `size` bytes. -ELIBACC: libbpf
 * cannot be had.
 */
XPS_LOAD_API int xps_xdp_load(struct xps_xdp_loaded *loaded, uint32_t n_queues, enum xps_xdp_variant best, char *said,
			      size_t size);
/* Whether libbpf can be had: 0, or -ELIBACC and the reason in `said`. */
XPS_LOAD_API int xps_xdp_can_load(char *said, size_t size);
/* The id of the XDP program that is attached to an interface; 0 if there is none or it cannot be told. */
XPS_LOAD_API uint32_t xps_xdp_attached(int ifindex);
