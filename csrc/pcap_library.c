// SPDX-License-Identifier: Apache-2.0
#include <dlfcn.h>
#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "bits.h"
#include "pcap_library.h"

/* One library under two names, that which its authors give it and Debian's. */
static const char *const names[] = { "libpcap.so.1", "libpcap.so.0.8" };

#define FUNCTION(name)                                                 \
	{                                                              \
		"pcap_" #name, offsetof(struct xps_pcap_library, name) \
	}

static const struct {
	const char *name;
	size_t at;
} functions[] = {
	FUNCTION(close),   FUNCTION(compile),        FUNCTION(datalink), FUNCTION(datalink_val_to_description),
	FUNCTION(file),    FUNCTION(fopen_offline),  FUNCTION(freecode), FUNCTION(geterr),
	FUNCTION(next_ex), FUNCTION(offline_filter),
};

static int load_fail(struct xps_fail *fail)
{
	const char *why = dlerror();

	return xps_fail_set(
		fail, ENOSYS, "load libpcap",
		"capture files are read by libpcap, which is not there (%s); install it (Debian, Ubuntu: apt "
		"install libpcap0.8; Fedora: dnf install libpcap)",
		why ? why : "unknown reason");
}

int xps_pcap_library_load(struct xps_pcap_library *library, struct xps_fail *fail)
{
	void *handle = NULL;

	for (size_t i = 0; i < XPS_ARRAY_LEN(names) && !handle; i++)
		handle = dlopen(names[i], RTLD_LAZY | RTLD_LOCAL | RTLD_NODELETE);
	if (!handle)
		return load_fail(fail);
	for (size_t i = 0; i < XPS_ARRAY_LEN(functions); i++) {
		void *function = dlsym(handle, functions[i].name);

		if (!function)
			return load_fail(fail);
		/* ISO C does not convert pointers to functions; POSIX has them alike. */
		memcpy((char *)library + functions[i].at, &function, sizeof(function));
	}
	return 0;
}
