/* SPDX-License-Identifier: Apache-2.0 */
/*
 * xdp_program - the steering program: its four maps, loading it, and the link that attaches it to an interface.
 *
 * The only unit that speaks to libbpf. It does not know what is in the maps; see steer.h and xdp_port.h.
 */
#pragma once

#include "fail.h"

struct bpf_object;

/* Which of the programs, from the most able to the one that loads everywhere. */
enum xps_xdp_variant {
	XPS_XDP_FRAGS, /* takes packets in several buffers */
	XPS_XDP_PLAIN,
	XPS_XDP_OLD, /* for kernels before 5.18; needs CAP_PERFMON */
};

struct xps_xdp_program {
	struct bpf_object *object;
	int fd;
	int link_fd; /* -1 until attached */
	int endpoints_fd, sources_fd, sockets_fd, counters_fd, passed_fd;
	uint32_t id;
	uint32_t n_cpus; /* values per entry of `counters` */
	bool frags;      /* takes packets in several buffers */
	int mode;        /* once attached XPS_XDP_NATIVE or XPS_XDP_GENERIC */
};

/* Load `best`, or the next one that the kernel takes, and make its maps for `n_queues` receive queues. */
int xps_xdp_program_load(struct xps_xdp_program *program, uint32_t n_queues, enum xps_xdp_variant best,
			 struct xps_fail *fail);
/*
 * Attach it; XPS_XDP_AUTO tries native mode first. The kernel takes it off when `link_fd` is closed, however that
 * happens.
 */
int xps_xdp_program_attach(struct xps_xdp_program *program, const struct xps_xdp_port_config *config,
			   struct xps_fail *fail);
void xps_xdp_program_detach(struct xps_xdp_program *program);
void xps_xdp_program_unload(struct xps_xdp_program *program);
