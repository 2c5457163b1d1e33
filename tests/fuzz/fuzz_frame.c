// SPDX-License-Identifier: Apache-2.0
/*
 * Proves that no frame makes the Ethernet/IP/UDP walk read a byte beyond it, or report a payload that is not inside, and
 * that the short way for usual frames finds what the walk finds.
 */
#include <stdlib.h>
#include <string.h>

#include "frame.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The first two bytes say how much longer the whole packet is than its first piece. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct xps_frame out;
	size_t length, total;
	uint32_t usual_length;
	bool usual;

	if (size < 2)
		return 0;
	length = size - 2;
	total = length + ((size_t)data[0] << 8 | data[1]);
	usual = xps_frame_is_usual(data + 2, length, total, &usual_length);
	if (xps_frame_parse(&out, data + 2, length, total) != XPS_FRAME_UDP) {
		if (usual)
			abort();
		return 0;
	}
	if (usual &&
	    (out.payload_offset != XPS_FRAME_USUAL_OFFSET || out.payload_length != usual_length || out.family != 4))
		abort();
	if (out.payload_offset > length || out.payload_length > total - out.payload_offset)
		abort();
	if ((out.family != 4 && out.family != 6) || out.n_vlans > 2)
		abort();
	/* The eight bytes before the payload are the UDP header that it was taken from. */
	if (data[2 + out.payload_offset - 6] != out.dst_port >> 8 ||
	    data[2 + out.payload_offset - 5] != (out.dst_port & 0xff))
		abort();
	return 0;
}
