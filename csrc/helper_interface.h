/* SPDX-License-Identifier: Apache-2.0 */
/* helper_interface - what xdpspead-helper has to know of an interface, asked of the kernel and not of those who want it. */
#pragma once

struct xps_helper_interface {
	int ifindex;
	int mtu;
	int n_queues; /* that receive */
};

/* 0, or -ENODEV or another errno. */
int xps_helper_interface_find(const char *name, struct xps_helper_interface *interface);
