// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * steer - give UDP packets for the endpoints asked for to their AF_XDP socket, and pass everything else.
 *
 * One cursor moves forward over Ethernet, up to two VLAN tags, IPv4 (with options) or IPv6 (without extension headers)
 * and UDP. Whatever is not surely an endpoint's goes to the kernel as if this program were not there, and what
 * concerns an endpoint is counted.
 *
 * There are two programs that differ in how they learn a frame's length: `steer` asks the kernel, which can tell since
 * 5.18, also of a packet in several buffers; `steer_old` is for kernels before that and subtracts pointers. Pointers are
 * only ever advanced by constants in `steer`, because anything else takes one capability more (CAP_PERFMON).
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "steer.h"

#define IPV4_FRAGMENT 0x3fff /* more-fragments bit and offset */
#define MAX_VLANS 2
#define MAX_OPTIONS 10 /* words of IPv4 options */

/* The process enlarges sockets and counters to XPS_STEER_SLOTS times its number of queues before it loads them. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, XPS_STEER_ENDPOINTS);
	__type(key, struct xps_steer_endpoint);
	__type(value, struct xps_steer_target);
} endpoints SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, XPS_STEER_ENDPOINTS);
	__type(key, struct xps_steer_source);
	__type(value, struct xps_steer_target);
} sources SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, XPS_STEER_SLOTS);
	__type(key, __u32);
	__type(value, __u32);
} sockets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, XPS_STEER_SLOTS);
	__type(key, __u32);
	__type(value, struct xps_steer_counters);
} counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct xps_steer_passed);
} passed SEC(".maps");

struct vlan {
	__be16 tag;
	__be16 proto;
};

/* Newer than some of the libbpf headers this is built with. */
static __u64 (*const xdp_get_buff_len)(struct xdp_md *ctx) = (void *)188;

enum shape {
	WHOLE,
	FRAGMENT,
	EXTENDED, /* IPv6 with extension headers */
};

struct packet {
	void *pos, *end; /* cursor, and end of the bytes at hand */
	__u32 offset;    /* of the IP header in the frame */
	__u32 ip_length; /* by the IP header: all of it, */
	__u32 ip_rest;   /* and from the UDP header on */
	__u8 proto;
	__u8 shape;
	struct xps_steer_source from; /* and to; port still 0 */
};

/* What the parsers return. */
enum verdict {
	PARSED,
	OTHER,    /* nothing that could be for an endpoint */
	UNPARSED, /* it might be */
};

static __always_inline int is_vlan(__be16 proto)
{
	return proto == bpf_htons(ETH_P_8021Q) || proto == bpf_htons(ETH_P_8021AD);
}

static __always_inline enum verdict parse_ethernet(struct packet *p, __be16 *proto)
{
	struct ethhdr *eth = p->pos;
	struct vlan *vlan;

	if ((void *)(eth + 1) > p->end)
		return UNPARSED;
	p->pos = eth + 1;
	p->offset = sizeof(*eth);
	*proto = eth->h_proto;
#pragma unroll
	for (int i = 0; i < MAX_VLANS; i++) {
		if (!is_vlan(*proto))
			break;
		vlan = p->pos;
		if ((void *)(vlan + 1) > p->end)
			return UNPARSED;
		p->pos = vlan + 1;
		p->offset += sizeof(*vlan);
		*proto = vlan->proto;
	}
	return is_vlan(*proto) ? UNPARSED : PARSED;
}

/* Word by word: see the top. The barrier keeps the compiler from making one sum of it. */
static __always_inline void skip_options(struct packet *p, __u32 n_words)
{
	void *pos = p->pos;

#pragma unroll
	for (__u32 i = 0; i < MAX_OPTIONS; i++) {
		if (i < n_words) {
			pos += 4;
			asm volatile("" : "+r"(pos));
		}
	}
	p->pos = pos;
}

static __always_inline enum verdict parse_ipv4(struct packet *p)
{
	struct iphdr *ip = p->pos;
	__u32 header;

	if ((void *)(ip + 1) > p->end || ip->version != 4 || ip->ihl < 5)
		return UNPARSED;
	header = ip->ihl * 4;
	p->proto = ip->protocol;
	p->shape = ip->frag_off & bpf_htons(IPV4_FRAGMENT) ? FRAGMENT : WHOLE;
	p->ip_length = bpf_ntohs(ip->tot_len);
	/* wraps for a length below the header's, and then agrees with no UDP length */
	p->ip_rest = p->ip_length - header;
	p->from.to.family = 4;
	__builtin_memcpy(p->from.to.address, &ip->daddr, 4);
	__builtin_memcpy(p->from.address, &ip->saddr, 4);
	p->pos = ip + 1;
	skip_options(p, ip->ihl - 5);
	return PARSED;
}

static __always_inline int is_extension(__u8 proto)
{
	return proto == IPPROTO_HOPOPTS || proto == IPPROTO_ROUTING || proto == IPPROTO_DSTOPTS || proto == IPPROTO_AH;
}

/*
 * One header is looked into, for what follows it: what a querier or a neighbour says to everybody is not for an
 * endpoint. What begins with two may be.
 */
static __always_inline enum verdict parse_extension(struct packet *p)
{
	__u8 *next = p->pos;

	if ((void *)(next + 1) > p->end)
		return UNPARSED;
	p->shape = p->proto == IPPROTO_FRAGMENT ? FRAGMENT : EXTENDED;
	p->proto = is_extension(*next) || *next == IPPROTO_FRAGMENT ? IPPROTO_UDP : *next;
	return PARSED;
}

static __always_inline enum verdict parse_ipv6(struct packet *p)
{
	struct ipv6hdr *ip = p->pos;

	if ((void *)(ip + 1) > p->end || ip->version != 6)
		return UNPARSED;
	p->proto = ip->nexthdr;
	p->ip_rest = bpf_ntohs(ip->payload_len);
	p->ip_length = sizeof(*ip) + p->ip_rest;
	p->from.to.family = 6;
	__builtin_memcpy(p->from.to.address, &ip->daddr, 16);
	__builtin_memcpy(p->from.address, &ip->saddr, 16);
	p->pos = ip + 1;
	return p->proto == IPPROTO_FRAGMENT || is_extension(p->proto) ? parse_extension(p) : PARSED;
}

/* Address and port first, then any address and the port. If only the source is wrong, `other` is who counts that. */
static __always_inline struct xps_steer_target *find(struct packet *p, struct xps_steer_target **other)
{
	struct xps_steer_target *target;

#pragma unroll
	for (int i = 0; i < 2; i++) {
		target = bpf_map_lookup_elem(&endpoints, &p->from.to);
		if (target && !target->by_source)
			return target;
		if (target) {
			if (!*other)
				*other = target;
			target = bpf_map_lookup_elem(&sources, &p->from);
			if (target)
				return target;
		}
		__builtin_memset(p->from.to.address, 0, sizeof(p->from.to.address));
	}
	return NULL;
}

/* A queue that came into being after the program was loaded has no entries; what happens there counts for the last. */
static __always_inline struct xps_steer_counters *counters_of(struct xps_steer_target *target, __u32 queue)
{
	__u32 last = target->n_queues - 1;
	__u32 entry = target->first + (queue < last ? queue : last);

	return bpf_map_lookup_elem(&counters, &entry);
}

static __always_inline int pass(enum verdict verdict)
{
	struct xps_steer_passed *count;
	__u32 entry = 0;

	count = bpf_map_lookup_elem(&passed, &entry);
	if (count && verdict == UNPARSED)
		count->unparsed++;
	else if (count)
		count->others++;
	return XDP_PASS;
}

/* The port is not known: whoever has the address counts. */
static __always_inline int pass_shape(struct packet *p, __u32 queue)
{
	struct xps_steer_target *other = NULL, *target = find(p, &other);
	struct xps_steer_counters *count = target ? counters_of(target, queue) : NULL;

	if (!count)
		return pass(OTHER);
	if (p->shape == FRAGMENT)
		count->fragments++;
	else
		count->extensions++;
	return XDP_PASS;
}

/* No endpoint; or one of `other`, but from none of its sources. */
static __always_inline int pass_without(struct xps_steer_target *other, __u32 queue)
{
	struct xps_steer_counters *count = other ? counters_of(other, queue) : NULL;

	if (!count)
		return pass(OTHER);
	count->other_source++;
	return XDP_PASS;
}

static __always_inline int redirect(struct xps_steer_target *target, struct xps_steer_counters *count, __u32 queue)
{
	__u32 entry = target->first + queue;

	/* Asked first, because redirecting to an empty entry passes the packet without saying so. */
	if (queue >= target->n_queues || !bpf_map_lookup_elem(&sockets, &entry)) {
		count->no_socket++;
		return XDP_PASS;
	}
	count->redirected++;
	return bpf_redirect_map(&sockets, entry, XDP_PASS);
}

static __always_inline __u32 frame_length(struct xdp_md *ctx, int old)
{
	return old ? ctx->data_end - ctx->data : xdp_get_buff_len(ctx);
}

static __always_inline int has_bad_length(struct xdp_md *ctx, struct packet *p, struct udphdr *udp, int old)
{
	__u32 length = bpf_ntohs(udp->len);

	return length < sizeof(*udp) || length != p->ip_rest || p->offset + p->ip_length > frame_length(ctx, old);
}

static __always_inline enum verdict parse(struct packet *p)
{
	enum verdict verdict;
	__be16 proto;

	verdict = parse_ethernet(p, &proto);
	if (verdict != PARSED)
		return verdict;
	if (proto == bpf_htons(ETH_P_IP))
		verdict = parse_ipv4(p);
	else if (proto == bpf_htons(ETH_P_IPV6))
		verdict = parse_ipv6(p);
	else
		return OTHER;
	return verdict == PARSED && p->proto != IPPROTO_UDP ? OTHER : verdict;
}

static __always_inline int steer_packet(struct xdp_md *ctx, int old)
{
	struct packet p = { .pos = (void *)(long)ctx->data, .end = (void *)(long)ctx->data_end };
	struct xps_steer_target *target, *other = NULL;
	struct xps_steer_counters *count;
	enum verdict verdict = parse(&p);
	struct udphdr *udp;

	if (verdict != PARSED)
		return pass(verdict);
	if (p.shape != WHOLE)
		return pass_shape(&p, ctx->rx_queue_index);
	udp = p.pos;
	if ((void *)(udp + 1) > p.end || !udp->dest)
		return pass(UNPARSED);
	p.from.to.port = udp->dest;
	target = find(&p, &other);
	count = target ? counters_of(target, ctx->rx_queue_index) : NULL;
	if (!count)
		return pass_without(other, ctx->rx_queue_index);
	count->matched++;
	if (has_bad_length(ctx, &p, udp, old)) {
		count->bad_length++;
		return XDP_PASS;
	}
	return redirect(target, count, ctx->rx_queue_index);
}

SEC("xdp")
int steer(struct xdp_md *ctx)
{
	return steer_packet(ctx, 0);
}

SEC("xdp")
int steer_old(struct xdp_md *ctx)
{
	return steer_packet(ctx, 1);
}

char _license[] SEC("license") = "Dual BSD/GPL";
