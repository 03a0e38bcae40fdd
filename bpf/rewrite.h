/* SPDX-License-Identifier: GPL-2.0 */
/* Direct Routing: the frame goes on to the server as it is, but for MACs, VLAN tags and TTL. */
#ifndef LBDR_REWRITE_H
#define LBDR_REWRITE_H

#include "count.h"

/* One hop less, with the checksum updated (RFC 1624; ip_decrease_ttl in include/net/ip.h). */
static __always_inline void decrease_ttl(struct ipv4 *ip)
{
	u64 check = ip->checksum;

	check += bpf_htons(0x0100);
	ip->checksum = check + (check >= 0xffff);
	ip->ttl--;
}

#define PRIORITY 0xf000 /* of a VLAN tag, which stays: the outer one's, and for a new tag */

#ifdef DIRECTOR_TC

/* Whether a packet fits; a large one is cut up later, and its pieces are to fit. */
static __always_inline int fits(context *ctx, struct packet *p, u32 mtu)
{
	u32 headers = p->l4 - p->l3 + 8;

	if (!ctx->gso_size)
		return p->length <= mtu;
	if (p->protocol == IPPROTO_TCP) {
		struct tcp_start *tcp = l4_of(ctx, p);

		if ((void *)(tcp + 1) > end_of(ctx))
			return 0;
		headers = p->l4 - p->l3 + (tcp->offset >> 4) * 4;
	}
	return headers + ctx->gso_size <= mtu;
}

static __always_inline int exchange_tags(context *ctx, struct packet *p, struct server *server)
{
	u16 outer = p->tags ? ctx->vlan_tci & PRIORITY : 0, inner = outer;
	int i;

	if (p->tags > 1) {
		__be16 *word = start_of(ctx) + sizeof(struct ethernet);

		if ((void *)(word + 1) > end_of(ctx))
			return -1;
		inner = bpf_ntohs(*word) & PRIORITY;
	}
	for (i = 0; i < 2; i++)
		if (i < p->tags && skb_vlan_pop(ctx))
			return -1;
	for (i = 1; i >= 0; i--)
		if (i < server->tags &&
		    skb_vlan_push(ctx, (__be16)server->tag[i],
				  bpf_ntohs((__be16)(server->tag[i] >> 16)) | (i ? inner : outer)))
			return -1;
	return 0;
}

/* Whether a server's device is there: what is redirected to none is lost. */
static __always_inline int is_reachable(struct server *server, u64 flags)
{
	return 1;
}

#else

static __always_inline int fits(context *ctx, struct packet *p, u32 mtu)
{
	return p->length <= mtu;
}

/* Make room for other tags, and write them and the type; the MACs are written later. */
static __always_inline int exchange_tags(context *ctx, struct packet *p, struct server *server)
{
	__be16 type = p->version == 6 ? bpf_htons(ETH_P_IPV6) : bpf_htons(ETH_P_IP);
	int tags = server->tags;
	__be16 outer = 0, inner = 0;
	__be16 *word;

	if (p->tags) {
		word = start_of(ctx) + sizeof(struct ethernet);
		if ((void *)(word + 3) > end_of(ctx))
			return -1;
		outer = word[0] & bpf_htons(PRIORITY);
		inner = p->tags > 1 ? word[2] & bpf_htons(PRIORITY) : outer;
	}
	if (xdp_adjust_head(ctx, 4 * ((int)p->tags - tags)))
		return -1;
	word = start_of(ctx) + 12;
	if ((void *)(word + 5) > end_of(ctx))
		return -1;
	if (tags == 0) {
		word[0] = type;
		return 0;
	}
	word[0] = (__be16)server->tag[0];
	word[1] = (__be16)(server->tag[0] >> 16) | outer;
	if (tags == 1) {
		word[2] = type;
		return 0;
	}
	word[2] = (__be16)server->tag[1];
	word[3] = (__be16)(server->tag[1] >> 16) | inner;
	word[4] = type;
	return 0;
}

/* Whether a server's device is there: the map forgets one that is gone. */
static __always_inline int is_reachable(struct server *server, u64 flags)
{
#ifdef DIRECTOR_EXPLAIN
	return 1; /* tc ingress has what XDP does not reach */
#endif
	return flags & SERVER_SAME_DEVICE || map_lookup(MAP(devices), &server->device);
}

#endif

static __always_inline int send(struct server *server, u64 flags)
{
#ifdef DIRECTOR_TC
	return redirect(server->ifindex, 0);
#else
	if (flags & SERVER_SAME_DEVICE)
		return XDP_TX;
	return redirect_map(MAP(devices), server->device, XDP_DROP); /* if it just went */
#endif
}

/* Forward a packet to a server; unmodified to IPVS where that cannot be. */
static __always_inline int forward(context *ctx, struct packet *p, u64 decision, u32 index)
{
	struct server *server = server_at(index);
	u64 destination;
	void *start;
	u32 length = p->length;

	if (!server)
		return pass(ctx, p, decision, REASON_NO_SERVER);
	say_server(index, server);
	/* MAC and flags in one load, as they are written */
	destination = *(volatile u64 *)server->mac;
	if ((destination >> 48 & (SERVER_PLAIN | SERVER_LOCAL)) != SERVER_PLAIN) {
		if (destination >> 48 & SERVER_LOCAL)
			return pass_up(p, REASON_LOCAL);
		if (!(destination >> 48 & SERVER_ALIVE))
			return pass(ctx, p, decision, REASON_NO_SERVER);
		if (!(destination >> 48 & SERVER_RESOLVED))
			return pass(ctx, p, decision, REASON_NEIGHBOUR);
	}
	if (!is_reachable(server, destination >> 48))
		return pass(ctx, p, decision, REASON_NEIGHBOUR);
	if (!fits(ctx, p, server->mtu))
		return pass(ctx, p, decision, REASON_MTU);
	if (!(destination >> 48 & SERVER_SAME_TAGS)) {
		if (exchange_tags(ctx, p, server))
			return pass(ctx, p, decision, REASON_TAGS);
#ifdef DIRECTOR_TC
		/* the outer tag is beside the data */
		p->l3 = sizeof(struct ethernet) + (server->tags > 1 ? 4 : 0);
#else
		p->l3 = sizeof(struct ethernet) + 4 * server->tags;
#endif
	}
	if (p->version == 6) {
		struct ipv6 *ip6 = l3_of(ctx, p);

		if ((void *)(ip6 + 1) > end_of(ctx))
			return VERDICT_DROP;
		ip6->hop_limit--;
	} else {
		struct ipv4 *ip = l3_of(ctx, p);

		if ((void *)(ip + 1) > end_of(ctx))
			return VERDICT_DROP;
		decrease_ttl(ip);
	}
	start = start_of(ctx);
	if (start + sizeof(struct ethernet) > end_of(ctx))
		return VERDICT_DROP;
	write_macs(start, destination, server->source);
	count_served(index, length);
	return send(server, destination >> 48);
}

#endif
