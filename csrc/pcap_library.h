/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pcap_library - libpcap, which is loaded when a capture file is opened.
 *
 * Receivers from the network do without it. With the libraries that it wants in turn, where it can capture from D-Bus
 * these are systemd's and those of cryptography, it would take almost a MiB of each of them.
 */
#pragma once

#include <pcap/pcap.h>

#include "fail.h"

/* Its functions, by their names without "pcap_". */
struct xps_pcap_library {
	__typeof__(&pcap_close) close;
	__typeof__(&pcap_compile) compile;
	__typeof__(&pcap_datalink) datalink;
	__typeof__(&pcap_datalink_val_to_description) datalink_val_to_description;
	__typeof__(&pcap_file) file;
	__typeof__(&pcap_fopen_offline) fopen_offline;
	__typeof__(&pcap_freecode) freecode;
	__typeof__(&pcap_geterr) geterr;
	__typeof__(&pcap_next_ex) next_ex;
	__typeof__(&pcap_offline_filter) offline_filter;
};

/* Load it, or find it loaded; it stays until the process ends. -ENOSYS if it is not there. */
int xps_pcap_library_load(struct xps_pcap_library *library, struct xps_fail *fail);
