// SPDX-License-Identifier: Apache-2.0
/* A build that cannot read Zstandard. */
#include "codec.h"
#include "xdpspead.h"

bool xps_has_zstd(void)
{
	return false;
}

const struct xps_codec xps_codec_zstd = {
	.name = "Zstandard",
	.missing = "libzstd was missing; install it (Debian, Ubuntu: apt install libzstd-dev; Fedora: dnf install "
		   "libzstd-devel)",
};
