/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bpf_call - the system call bpf(2), as far as maps and links of a program that is loaded need it.
 *
 * All return 0 or a descriptor, or -1 and errno, as the call does.
 */
#pragma once

#include <linux/bpf.h>

#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static inline int xps_bpf(enum bpf_cmd command, union bpf_attr *attr)
{
	return (int)syscall(SYS_bpf, command, attr, sizeof(*attr));
}

/* Padding included: the kernel wants all that it does not know to be zero. */
static inline union bpf_attr xps_bpf_attr(void)
{
	union bpf_attr attr;

	memset(&attr, 0, sizeof(attr));
	return attr;
}

static inline union bpf_attr xps_bpf_element(int map_fd, const void *key, const void *value)
{
	union bpf_attr attr = xps_bpf_attr();

	attr.map_fd = (uint32_t)map_fd;
	attr.key = (uintptr_t)key;
	attr.value = (uintptr_t)value;
	return attr;
}

/* Of a map of values for each CPU these are 8 bytes or a multiple apart, all possible CPUs in a row. */
static inline int xps_bpf_lookup(int map_fd, const void *key, void *value)
{
	union bpf_attr attr = xps_bpf_element(map_fd, key, value);

	return xps_bpf(BPF_MAP_LOOKUP_ELEM, &attr);
}

static inline int xps_bpf_update(int map_fd, const void *key, const void *value)
{
	union bpf_attr attr = xps_bpf_element(map_fd, key, value);

	return xps_bpf(BPF_MAP_UPDATE_ELEM, &attr);
}

static inline int xps_bpf_delete(int map_fd, const void *key)
{
	union bpf_attr attr = xps_bpf_element(map_fd, key, NULL);

	return xps_bpf(BPF_MAP_DELETE_ELEM, &attr);
}

/* Attach an XDP program with XDP_FLAGS_...; the descriptor of the link. */
static inline int xps_bpf_link_xdp(int program_fd, int ifindex, uint32_t flags)
{
	union bpf_attr attr = xps_bpf_attr();

	attr.link_create.prog_fd = (uint32_t)program_fd;
	attr.link_create.target_ifindex = (uint32_t)ifindex;
	attr.link_create.attach_type = BPF_XDP;
	attr.link_create.flags = flags;
	return xps_bpf(BPF_LINK_CREATE, &attr);
}

static inline int xps_bpf_link_detach(int link_fd)
{
	union bpf_attr attr = xps_bpf_attr();

	attr.link_detach.link_fd = (uint32_t)link_fd;
	return xps_bpf(BPF_LINK_DETACH, &attr);
}

/* The id of a program; 0 if the kernel does not say. */
static inline uint32_t xps_bpf_program_id(int program_fd)
{
	struct bpf_prog_info info;
	union bpf_attr attr = xps_bpf_attr();

	memset(&info, 0, sizeof(info));
	attr.info.bpf_fd = (uint32_t)program_fd;
	attr.info.info_len = sizeof(info);
	attr.info.info = (uintptr_t)&info;
	return xps_bpf(BPF_OBJ_GET_INFO_BY_FD, &attr) ? 0 : info.id;
}
