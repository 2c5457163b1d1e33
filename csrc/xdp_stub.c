// SPDX-License-Identifier: Apache-2.0
/* In the place of transport_xdp.c, writer_xdp.c and the xdp_*.c where clang or libbpf was missing when the package was built. */
#include <errno.h>

#include "fail.h"

static int not_built(struct xps_fail *fail)
{
	return xps_fail_set(
		fail, ENOTSUP, "use AF_XDP",
		"This build of xdpspead has no AF_XDP: clang or libbpf was missing when it was made. Install them "
		"(Debian, Ubuntu: apt install clang libbpf-dev) and build the package again.");
}

bool xps_has_xdp(void)
{
	return false;
}

int xps_find_libbpf(struct xps_fail *fail)
{
	return not_built(fail);
}

struct xps_xdp_port *xps_xdp_port_new(const struct xps_xdp_port_config *config, struct xps_fail *fail)
{
	(void)config;
	not_built(fail);
	return NULL;
}

struct xps_xdp_port *xps_xdp_port_through(const char *path, const struct xps_xdp_port_config *config,
					  struct xps_fail *fail)
{
	(void)path;
	(void)config;
	not_built(fail);
	return NULL;
}

void xps_xdp_port_free(struct xps_xdp_port *port)
{
	(void)port;
}

void xps_xdp_port_forget(struct xps_xdp_port *port)
{
	(void)port;
}

uint32_t xps_xdp_port_program_id(struct xps_xdp_port *port)
{
	(void)port;
	return 0;
}

int xps_xdp_port_mode(struct xps_xdp_port *port)
{
	(void)port;
	return XPS_XDP_AUTO;
}

void xps_xdp_port_passed(struct xps_xdp_port *port, uint64_t *unparsed, uint64_t *others)
{
	(void)port;
	*unparsed = *others = 0;
}

bool xps_xdp_port_in_use(struct xps_xdp_port *port)
{
	(void)port;
	return false;
}

int xps_add_xdp_reader(struct xps_stream *stream, struct xps_xdp_port *port, const struct xps_xdp_reader_config *config,
		       struct xps_xdp_obtained *obtained, struct xps_fail *fail)
{
	(void)stream;
	(void)port;
	(void)config;
	(void)obtained;
	return not_built(fail);
}

struct xps_sender *xps_xdp_sender_new(struct xps_pool *pool, const struct xps_sender_config *config,
				      const struct xps_xdp_sender_config *xdp, struct xps_xdp_obtained *obtained,
				      struct xps_fail *fail)
{
	(void)pool;
	(void)config;
	(void)xdp;
	(void)obtained;
	not_built(fail);
	return NULL;
}

void xps_xdp_sender_disown(struct xps_sender *sender)
{
	(void)sender;
}
