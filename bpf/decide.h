/* SPDX-License-Identifier: GPL-2.0 */
/* Which service a packet is for, whether it is this director's to forward, and who gets it. */
#ifndef LBDR_DECIDE_H
#define LBDR_DECIDE_H

#include "parse.h"
#include "ports.h"

#define PACKET_HOST 0    /* include/uapi/linux/if_packet.h: the frame has the device's own MAC */
#define FTP_DATA_PORT 20 /* IPVS leaves what comes from it alone (ip_vs_schedule) */

static __always_inline u32 find_range(struct port_ranges *ranges, u32 port)
{
	int i;

	for (i = 0; i < RANGES; i++) {
		if (!ranges->range[i].service)
			return 0;
		if (port >= ranges->range[i].first && port <= ranges->range[i].last)
			return ranges->range[i].service;
	}
	return 0;
}

/* The service of a VIP, protocol and port: the exact port's, else that of a range; 0 for none. */
static __always_inline u32 find_service(struct packet *p)
{
	u64 port = PORT_WORD(p->port, p->protocol);
	struct port_ranges *ranges;
	u32 *service, found;

	if (p->version == 4) {
		struct service_key4 key = { p->vip[0], p->port, p->protocol, 0 };

		found = find_port4(p->vip[0], port);
		if (found)
			return found;
		service = map_lookup(MAP(services4), &key);
		if (service)
			return *service;
		key.port = 0;
		ranges = map_lookup(MAP(ranges4), &key);
	} else {
		struct service_key6 key = {
			{ p->vip[0], p->vip[1], p->vip[2], p->vip[3] }, p->port, p->protocol, 0
		};

		found = find_port6(pair(p->vip), pair(p->vip + 2), port);
		if (found)
			return found;
		service = map_lookup(MAP(services6), &key);
		if (service)
			return *service;
		key.port = 0;
		ranges = map_lookup(MAP(ranges6), &key);
	}
	return ranges ? find_range(ranges, bpf_ntohs(p->port)) : 0;
}

/*
 * Whether a frame is this director's to forward: IPVS, too, has only what is addressed to this
 * host. 0, or the reason why not; nothing of others' is ever dropped.
 */
static __always_inline u32 not_ours(context *ctx, struct packet *p, struct service *service,
				    u64 decision)
{
	struct ethernet *ethernet = start_of(ctx);

	if ((void *)(ethernet + 1) > end_of(ctx))
		return REASON_LENGTH;
	if (!same_mac(ethernet->destination, service->mac))
		return REASON_OTHER_HOST;
	if (service->tags != p->tags || (p->tags && service->tag[0] != p->tag[0]) ||
	    (p->tags > 1 && service->tag[1] != p->tag[1]))
		return REASON_OTHER_VLAN;
#ifdef DIRECTOR_TC
	if (service->ifindex != ctx->ifindex)
		return REASON_OTHER_VLAN;
#else
	if (service->ifindex != ctx->ingress_ifindex)
		return REASON_OTHER_VLAN;
#endif
	if (service->has_peer && same_mac(ethernet->source, service->peer))
		return REASON_PEER;
	if (p->odd & ODD_MARTIAN)
		return REASON_MARTIAN;
	return decision >> 32 & SERVICE_ACTIVE ? 0 : REASON_INACTIVE;
}

/*
 * Whether the local stack would take a frame that came another way than the VIP's, and answer it
 * with a reset: without IPVS nobody else has it.
 */
static __always_inline int is_guarded(context *ctx, u64 decision, u32 reason)
{
#ifdef DIRECTOR_TC
	u64 wanted = SERVICE_ACTIVE | SERVICE_GUARDED;

	return (decision >> 32 & wanted) == wanted && ctx->pkt_type == PACKET_HOST &&
	       (reason == REASON_OTHER_HOST || reason == REASON_OTHER_VLAN);
#else
	return 0;
#endif
}

/* Why a packet of a service cannot go the fast way, or 0. */
static __always_inline u32 unfit(struct packet *p, u64 decision, u32 least)
{
	if (p->length > p->room || p->length < least)
		return REASON_LENGTH;
	if (p->hops <= 1)
		return REASON_TTL;
	if (p->client_port == bpf_htons(FTP_DATA_PORT))
		return REASON_FTP_DATA;
	if (p->odd & ODD_OPTIONS)
		return REASON_OPTIONS;
	if (p->odd & (ODD_FRAGMENT | ODD_LATER_FRAGMENT) && !(decision >> 32 & SERVICE_ALONE))
		return REASON_FRAGMENT;
	return 0;
}

#endif
