// SPDX-License-Identifier: Apache-2.0
/* A build that cannot read capture files. */
#include <errno.h>

#include "fail.h"

bool xps_has_pcap(void)
{
	return false;
}

int xps_load_pcap(struct xps_fail *fail)
{
	return xps_fail_set(fail, ENOSYS, "load libpcap", "this build of xdpspead cannot read capture files");
}

bool xps_has_gzip(void)
{
	return false;
}

bool xps_has_zstd(void)
{
	return false;
}

struct xps_capture *xps_capture_open(const char *filename, const char *filter, struct xps_fail *fail)
{
	(void)filter;
	xps_fail_set(fail, ENOSYS, "open capture file",
		     "%s: this build of xdpspead cannot read capture files, because libpcap was missing; install it "
		     "(Debian, Ubuntu: apt install libpcap-dev; Fedora: dnf install libpcap-devel), then build "
		     "xdpspead from source again",
		     filename);
	return NULL;
}

void xps_capture_free(struct xps_capture *capture)
{
	(void)capture;
}

int xps_add_pcap_reader(struct xps_stream *stream, struct xps_capture *capture, struct xps_fail *fail)
{
	(void)stream, (void)capture;
	return xps_fail_set(fail, ENOSYS, "read capture file", "this build of xdpspead cannot read capture files");
}
