// SPDX-License-Identifier: Apache-2.0
/* A build that cannot read capture files. */
#include "xdpspead.h"

bool xps_has_pcap(void)
{
	return false;
}
