/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A packet as both kinds of program see it, and what differs between them: XDP has a frame with its
 * VLAN tags, tc ingress a socket buffer whose outer tag the kernel took off already.
 */
#ifndef LBDR_PACKET_H
#define LBDR_PACKET_H

#include "maps.h"
#include "network.h"

#ifdef DIRECTOR_TC
typedef struct __sk_buff context;
#define VERDICT_PASS -1 /* TC_ACT_UNSPEC: filters of others go on */
#define VERDICT_DROP 2  /* TC_ACT_SHOT */
#else
typedef struct xdp_md context;
#define VERDICT_PASS XDP_PASS
#define VERDICT_DROP XDP_DROP
#endif

#define IP_FRAGMENT 0x3fff /* more fragments, or an offset */

/*
 * What is known of a packet, in per-CPU memory: on the stack, the verifier would follow every
 * combination of its values through all that comes after. Places are bytes from the frame's start.
 */
struct packet {
	u32 l3;
	u32 l4;     /* of this packet, not of one that an ICMP error quotes */
	u32 room;   /* bytes of the frame from l3 on, padding included */
	u32 length; /* bytes of the IP packet */
	u32 version;
	u32 service;   /* its index */
	u32 mark;      /* of the service, where IPVS tells it by a mark */
	__be32 vip[4]; /* IPv4: the first word alone */
	__be32 client[4];
	__be16 client_port;
	__be16 port; /* of the service */
	u8 protocol;
	u8 hops; /* TTL or hop limit */
	u16 tags;
	__be32 tag[2];
	u32 odd; /* what makes it one that is not forwarded like others */
};

_Static_assert(sizeof(struct packet) == 80, "xdp_layout.PACKET_SIZE");

#define ODD_OPTIONS 1
#define ODD_FRAGMENT 2 /* the first one: it has ports */
#define ODD_LATER_FRAGMENT 4
#define ODD_QUOTED 8   /* the flow is that of the packet which an ICMP error quotes */
#define ODD_MARTIAN 16 /* from an address that no packet may come from */

/* Of l3 and l4, which are whole words away from IP's alignment: strict kernels want to see it. */
#define FURTHEST 124

static __always_inline void *start_of(context *ctx)
{
	return (void *)(long)ctx->data;
}

static __always_inline void *end_of(context *ctx)
{
	return (void *)(long)ctx->data_end;
}

static __always_inline void *l3_of(context *ctx, struct packet *p)
{
	return start_of(ctx) + 2 + ((p->l3 - 2) & FURTHEST);
}

static __always_inline void *l4_of(context *ctx, struct packet *p)
{
	return start_of(ctx) + 2 + ((p->l4 - 2) & FURTHEST);
}

/*
 * MACs, in as few steps as the kernel allows: where it has no efficient unaligned access, none of
 * packets is allowed, and frames begin two bytes off.
 */
static __always_inline int same_mac(const void *one, const void *other)
{
#ifdef STRICT_ALIGNMENT
	const u16 *a = one, *b = other;

	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2];
#else
	return *(u32 *)one == *(u32 *)other && *(u16 *)(one + 4) == *(u16 *)(other + 4);
#endif
}

/* Two words of an address in one, as they lie in memory. */
static __always_inline u64 pair(const __be32 *words)
{
#ifdef STRICT_ALIGNMENT
	return (u64)words[1] << 32 | words[0];
#else
	return *(u64 *)words;
#endif
}

/* The MACs of a frame that goes to a server; its own is in one word, as it was loaded. */
static __always_inline void write_macs(void *start, u64 destination, const u8 *source)
{
#ifdef STRICT_ALIGNMENT
	u16 *mac = start;
	const u16 *from = (const u16 *)source;

	mac[0] = destination;
	mac[1] = destination >> 16;
	mac[2] = destination >> 32;
	mac[3] = from[0];
	mac[4] = from[1];
	mac[5] = from[2];
#else
	*(u32 *)start = destination;
	*(u16 *)(start + 4) = destination >> 32;
	*(u32 *)(start + 6) = *(u32 *)source;
	*(u16 *)(start + 10) = *(u16 *)(source + 4);
#endif
}

/* A VLAN tag without its priority bits. */
static __always_inline __be32 vlan_tag(__be16 tpid, __be16 tci)
{
	return (__be32)(tci & bpf_htons(0x0fff)) << 16 | tpid;
}

static __always_inline int is_vlan(__be16 protocol)
{
	return protocol == bpf_htons(ETH_P_8021Q) || protocol == bpf_htons(ETH_P_8021AD);
}

static __always_inline u32 whole_length(context *ctx)
{
#ifdef DIRECTOR_TC
	return ctx->len;
#elif defined(XDP_FRAGS)
	return xdp_length(ctx);
#else
	return (long)ctx->data_end - (long)ctx->data;
#endif
}

/* A tag at next, and what follows it; returns the protocol, or 0. */
static __always_inline __be16 take_tag(context *ctx, struct packet *p, int place, void **next,
				       __be16 protocol)
{
	struct vlan *vlan = *next;

	if ((void *)(vlan + 1) > end_of(ctx))
		return 0;
	p->tag[place] = vlan_tag(protocol, vlan->tci);
	p->tags = place + 1;
	*next = vlan + 1;
	return vlan->protocol;
}

/* Take the tags off; returns the protocol of what follows, or one that nobody asks for. */
static __always_inline __be16 parse_ethernet(context *ctx, struct packet *p)
{
	struct ethernet *ethernet = start_of(ctx);
	void *next = ethernet + 1;
	__be16 protocol;

	if (next > end_of(ctx))
		return 0;
	p->tags = 0;
	protocol = ethernet->protocol;
#ifdef DIRECTOR_TC
	if (ctx->vlan_present) { /* the kernel took the outer tag off */
		p->tag[0] = vlan_tag(ctx->vlan_proto, bpf_htons(ctx->vlan_tci));
		p->tags = 1;
		if (is_vlan(protocol))
			protocol = take_tag(ctx, p, 1, &next, protocol);
	}
#else
	if (is_vlan(protocol)) {
		protocol = take_tag(ctx, p, 0, &next, protocol);
		if (is_vlan(protocol))
			protocol = take_tag(ctx, p, 1, &next, protocol);
	}
#endif
	p->l3 = next - start_of(ctx);
	p->room = whole_length(ctx) - p->l3;
	return protocol;
}

#endif
