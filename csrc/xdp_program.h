/* SPDX-License-Identifier: Apache-2.0 */
/*
 * xdp_program - the steering program: loading it with its maps, and the link that attaches it to an interface.
 *
 * It does not know what is in the maps; see steer.h and xdp_port.h.
 */
#pragma once

#include "fail.h"
#include "xdp_load.h"

struct xps_xdp_program {
	struct xps_xdp_loaded loaded;
	int link_fd; /* -1 until attached */
	uint32_t id;
	int mode; /* once attached XPS_XDP_NATIVE or XPS_XDP_GENERIC */
};

#define XPS_XDP_NO_PROGRAM \
	((struct xps_xdp_program){ .loaded = { -1, -1, -1, -1, -1, -1, .n_cpus = 0 }, .link_fd = -1 })

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
