/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Without IPVS nobody puts fragments together, and those after the first one have no ports: they go
 * where the first one went.
 */
#ifndef LBDR_FRAGMENTS_H
#define LBDR_FRAGMENTS_H

#include "packet.h"

struct fragment_key {
	__be32 source;
	__be32 destination;
	__be16 id;
	u16 protocol;
};

static __always_inline struct fragment_key fragment_of(context *ctx, struct packet *p)
{
	struct fragment_key key = { p->client[0], p->vip[0], 0, p->protocol };
	struct ipv4 *ip = l3_of(ctx, p);

	if ((void *)(ip + 1) <= end_of(ctx))
		key.id = ip->id;
	return key;
}

static __always_inline void remember_fragment(context *ctx, struct packet *p, u32 server)
{
	struct fragment_key key = fragment_of(ctx, p);

	server |= p->service << 16;
	map_update(MAP(fragments), &key, &server, BPF_ANY);
}

/* The server of the first fragment, or NOBODY; its service is the packet's then. */
static __always_inline u32 recall_fragment(context *ctx, struct packet *p)
{
	struct fragment_key key = fragment_of(ctx, p);
	u32 *found = map_lookup(MAP(fragments), &key);

	if (!found)
		return NOBODY;
	p->service = *found >> 16;
	return *found & 0xffff;
}

#endif
