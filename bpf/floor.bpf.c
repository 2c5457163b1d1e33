// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * The least that a program has to do for an AF_XDP socket: IPv4 UDP to one port goes to the queue's
 * socket, all else to the kernel. It belongs to a floor of the benchmark (tests/bench/floor_xdp.c),
 * knows only frames of that benchmark's generator, and is nothing to steer a network with.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define PROTOCOL_AT 23
#define PORT_AT 36
#define UDP_END 42

const volatile __u16 port = 0;

struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} sockets SEC(".maps");

SEC("xdp")
int to_socket(struct xdp_md *ctx)
{
	const __u8 *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	const struct ethhdr *eth = (const void *)data;

	if (data + UDP_END > end || eth->h_proto != bpf_htons(ETH_P_IP) || data[PROTOCOL_AT] != IPPROTO_UDP ||
	    *(const __be16 *)(data + PORT_AT) != bpf_htons(port))
		return XDP_PASS;
	return bpf_redirect_map(&sockets, 0, XDP_PASS);
}

char _license[] SEC("license") = "Dual BSD/GPL";
