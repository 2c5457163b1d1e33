// SPDX-License-Identifier: Apache-2.0
#include "helper_privileges.h"

#include <errno.h>
#include <linux/capability.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Newer than some headers. */
#ifndef CAP_BPF
#define CAP_BPF 39
#endif

static const char step[] = "limit privileges";

static uint64_t bit(int capability)
{
	return UINT64_C(1) << capability;
}

static void raise_limit(int which)
{
	struct rlimit limit;

	if (getrlimit(which, &limit))
		return;
	limit.rlim_cur = limit.rlim_max;
	setrlimit(which, &limit);
}

int xps_helper_limit_privileges(struct xps_fail *fail)
{
	const uint64_t needed = bit(CAP_NET_RAW) | bit(CAP_NET_ADMIN) | bit(CAP_BPF);
	struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2];
	uint64_t permitted;

	raise_limit(RLIMIT_MEMLOCK);
	raise_limit(RLIMIT_NOFILE);
	if (syscall(SYS_capget, &head, data))
		return xps_fail_set(fail, errno, step, "Cannot read the capabilities: %s.", strerror(errno));
	permitted = (data[0].permitted | (uint64_t)data[1].permitted << 32) & (needed | bit(CAP_IPC_LOCK));
	if ((permitted & needed) != needed)
		return xps_fail_set(
			fail, EPERM, step,
			"CAP_NET_RAW, CAP_NET_ADMIN and CAP_BPF are needed: run it as root, as a service with "
			"AmbientCapabilities=, or give them to the file: 'setcap cap_net_raw,cap_net_admin,cap_bpf+ep "
			"xdpspead-helper'.");
	memset(data, 0, sizeof(data));
	data[0].permitted = data[0].effective = (uint32_t)permitted;
	data[1].permitted = data[1].effective = (uint32_t)(permitted >> 32);
	if (syscall(SYS_capset, &head, data) || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		return xps_fail_set(fail, errno, step, "Cannot give up capabilities: %s.", strerror(errno));
	return 0;
}
