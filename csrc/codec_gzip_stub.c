// SPDX-License-Identifier: Apache-2.0
/* A build that cannot read gzip. */
#include "codec.h"
#include "xdpspead.h"

bool xps_has_gzip(void)
{
	return false;
}

const struct xps_codec xps_codec_gzip = {
	.name = "gzip",
	.missing =
		"zlib was missing; install it (Debian, Ubuntu: apt install zlib1g-dev; Fedora: dnf install zlib-devel)",
};
