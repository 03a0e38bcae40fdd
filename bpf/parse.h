/* SPDX-License-Identifier: GPL-2.0 */
/* From a frame to a flow: IPv4 and IPv6, TCP and UDP, and the packets that ICMP errors quote. */
#ifndef LBDR_PARSE_H
#define LBDR_PARSE_H

#include "packet.h"

#define PLAIN_HEADER 0x45 /* IPv4 without options */
#define MORE_FRAGMENTS 0x2000
#define FRAGMENT_OFFSET 0x1fff
#define FRAGMENT_OFFSET6 0xfff8

#define EXTENSIONS 4            /* that are looked over in one packet */
#define FURTHEST_EXTENSION 1020 /* bytes from the frame's start, as FURTHEST */

/* What is known of the addresses that share a word, shifted so that bit 0 is this one's. */
static __always_inline struct vips vips_of(u32 folded)
{
	u32 hash = VIP_HASH(folded);
	struct vips *found = VALUE(vips) + VIP_WORD(hash) * sizeof(*found);
	struct vips shifted = { found->any >> VIP_BIT(hash), found->deep >> VIP_BIT(hash) };

	return shifted;
}

static __always_inline int may_be_vip(u32 folded)
{
	return vips_of(folded).any & 1;
}

/* Whether an address may have ports of which no line tells. */
static __always_inline int is_deep(u32 folded)
{
	return vips_of(folded).deep & 1;
}

static __always_inline u32 fold6(const __be32 *address)
{
	return address[0] ^ address[1] ^ address[2] ^ address[3];
}

static __always_inline int is_balanced(u8 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP;
}

static __always_inline int is_icmp_error(u8 type)
{
	return type == ICMP_DEST_UNREACH || type == ICMP_SOURCE_QUENCH ||
	       type == ICMP_TIME_EXCEEDED || type == ICMP_PARAMETERPROB;
}

/* Addresses that no packet may come from (RFC 1812 section 5.3.7). */
static __always_inline int is_martian4(__be32 source, __be32 destination)
{
	u8 first = source; /* of a little endian machine, as all that lbdr runs on are */

	return first == 0 || first == 127 || first >= 224 || source == destination;
}

static __always_inline int is_martian6(__be32 *source, __be32 *destination)
{
	if ((u8)source[0] == 0xff)
		return 1;
	/* unspecified, loopback, IPv4-compatible and IPv4-mapped (ip6_rcv_core) */
	if (!source[0] && !source[1] && (!source[2] || source[2] == bpf_ntohl(0xffff)))
		return 1;
	return source[0] == destination[0] && source[1] == destination[1] &&
	       source[2] == destination[2] && source[3] == destination[3];
}

/* An error about what a server sent from the VIP to a client: its flow is the quoted one's. */
static __always_inline int parse_quoted4(context *ctx, struct packet *p, struct ipv4 *ip)
{
	struct icmp *icmp = l4_of(ctx, p);
	struct ipv4 *quote = (void *)(icmp + 1);
	struct ports *ports = (void *)(quote + 1);
	u32 before = p->l4 - p->l3 + sizeof(*icmp) + sizeof(*ports), header;

	if ((void *)(ports + 1) > end_of(ctx) || !is_icmp_error(icmp->type))
		return 0;
	header = (quote->version_ihl & 15) * 4;
	if (p->length < before + header) /* what follows the packet in the frame is no quote */
		return 0;
	if (quote->version_ihl != PLAIN_HEADER) {
		if (quote->version_ihl >> 4 != 4 || (quote->version_ihl & 15) < 5)
			return 0;
		ports = (void *)quote + header;
		if ((void *)(ports + 1) > end_of(ctx))
			return 0;
	}
	if (quote->source != ip->destination || quote->fragment & bpf_htons(FRAGMENT_OFFSET) ||
	    !is_balanced(quote->protocol))
		return 0;
	p->protocol = quote->protocol;
	p->client[0] = quote->destination;
	p->client_port = ports->destination;
	p->port = ports->source;
	p->odd |= ODD_QUOTED;
	return 1;
}

/* Whether a packet may be for a service, with what tells it then. */
static __always_inline int parse4(context *ctx, struct packet *p)
{
	struct ipv4 *ip = l3_of(ctx, p);
	struct ports *ports;

	if ((void *)(ip + 1) > end_of(ctx) || !may_be_vip(ip->destination))
		return 0;
	if (ip->version_ihl >> 4 != 4 || (ip->version_ihl & 15) < 5)
		return 0;
	p->version = 4;
	p->length = bpf_ntohs(ip->total_length);
	p->hops = ip->ttl;
	p->vip[0] = ip->destination;
	p->vip[1] = p->vip[2] = p->vip[3] = 0;
	p->client[0] = ip->source;
	p->client[1] = p->client[2] = p->client[3] = 0;
	p->protocol = ip->protocol;
	p->odd = is_martian4(ip->source, ip->destination) ? ODD_MARTIAN : 0;
	if (ip->fragment & bpf_htons(FRAGMENT_OFFSET)) { /* it has no ports */
		p->odd |= ODD_LATER_FRAGMENT;
		p->client_port = p->port = 0;
		return 1;
	}
	if (ip->version_ihl != PLAIN_HEADER)
		p->odd |= ODD_OPTIONS;
	if (ip->fragment & bpf_htons(MORE_FRAGMENTS))
		p->odd |= ODD_FRAGMENT;
	p->l4 = p->l3 + (ip->version_ihl & 15) * 4;
	if (p->protocol == IPPROTO_ICMP)
		return !(p->odd & ODD_FRAGMENT) && parse_quoted4(ctx, p, ip);
	ports = l4_of(ctx, p);
	if (!is_balanced(p->protocol) || (void *)(ports + 1) > end_of(ctx))
		return 0;
	p->client_port = ports->source;
	p->port = ports->destination;
	return 1;
}

static __always_inline int parse_quoted6(context *ctx, struct packet *p, struct ipv6 *ip)
{
	struct icmp *icmp = l4_of(ctx, p);
	struct ipv6 *quote = (void *)(icmp + 1);
	struct ports *ports = (void *)(quote + 1);

	if ((void *)(ports + 1) > end_of(ctx) || icmp->type < ICMPV6_DEST_UNREACH ||
	    icmp->type > ICMPV6_PARAMPROB ||
	    p->length < sizeof(*ip) + sizeof(*icmp) + sizeof(*quote) + sizeof(*ports))
		return 0;
	if (quote->source[0] != ip->destination[0] || quote->source[1] != ip->destination[1] ||
	    quote->source[2] != ip->destination[2] || quote->source[3] != ip->destination[3] ||
	    !is_balanced(quote->next_header))
		return 0;
	p->protocol = quote->next_header;
	__builtin_memcpy(p->client, quote->destination, sizeof(p->client));
	p->client_port = ports->destination;
	p->port = ports->source;
	p->odd |= ODD_QUOTED;
	return 1;
}

/*
 * The ports behind extension headers. Such a packet goes no fast way, but IPVS may know its service
 * by a mark alone, and without IPVS the local stack would answer it.
 */
static __always_inline struct ports *skip_extensions(context *ctx, struct packet *p)
{
	u64 place = p->l4, size, i;
	struct extension *header;

	p->odd |= ODD_OPTIONS;
#pragma unroll
	for (i = 0; i <= EXTENSIONS; i++) {
		if (place > FURTHEST_EXTENSION)
			return NULL;
		asm volatile(""
			     : "+r"(place)); /* or clang takes the mask away, which the verifier
						needs */
		header = start_of(ctx) + 2 + ((place - 2) & FURTHEST_EXTENSION);
		if (is_balanced(p->protocol))
			return (void *)header;
		if (i == EXTENSIONS || (void *)(header + 1) > end_of(ctx))
			return NULL;
		size = sizeof(*header);
		if (p->protocol == IPPROTO_FRAGMENT) {
			if (header->fragment & bpf_htons(FRAGMENT_OFFSET6)) /* it has no ports */
				return NULL;
		} else if (p->protocol == IPPROTO_HOPOPTS || p->protocol == IPPROTO_ROUTING ||
			   p->protocol == IPPROTO_DSTOPTS) {
			size += header->length * 8;
		} else {
			return NULL;
		}
		place += size;
		p->protocol = header->next;
	}
	return NULL;
}

static __always_inline int parse6(context *ctx, struct packet *p)
{
	struct ipv6 *ip = l3_of(ctx, p);
	struct ports *ports;

	if ((void *)(ip + 1) > end_of(ctx) || !may_be_vip(fold6(ip->destination)) ||
	    ip->flow_version >> 4 != 6)
		return 0;
	p->version = 6;
	p->length = bpf_ntohs(ip->payload_length) + sizeof(*ip);
	p->hops = ip->hop_limit;
	__builtin_memcpy(p->vip, ip->destination, sizeof(p->vip));
	__builtin_memcpy(p->client, ip->source, sizeof(p->client));
	p->protocol = ip->next_header;
	p->odd = is_martian6(ip->source, ip->destination) ? ODD_MARTIAN : 0;
	p->l4 = p->l3 + sizeof(*ip);
	if (p->protocol == IPPROTO_ICMPV6)
		return parse_quoted6(ctx, p, ip);
	ports = is_balanced(p->protocol) ? l4_of(ctx, p) : skip_extensions(ctx, p);
	if (!ports || (void *)(ports + 1) > end_of(ctx))
		return 0;
	p->client_port = ports->source;
	p->port = ports->destination;
	return 1;
}

/* Whether a frame may be for a service, with what tells it then. */
static __always_inline int parse(context *ctx, struct packet *p)
{
	__be16 protocol = parse_ethernet(ctx, p);

	if (protocol == bpf_htons(ETH_P_IP))
		return parse4(ctx, p);
	if (protocol == bpf_htons(ETH_P_IPV6))
		return parse6(ctx, p);
	return 0;
}

#endif
