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

#define FURTHEST 127 /* of l3 and l4 */

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
	return start_of(ctx) + (p->l3 & FURTHEST);
}

static __always_inline void *l4_of(context *ctx, struct packet *p)
{
	return start_of(ctx) + (p->l4 & FURTHEST);
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
