// SPDX-License-Identifier: GPL-2.0
/*
 * At tc egress of every device towards servers: what IPVS forwards shows, by the MAC it goes to,
 * whom IPVS chose. A flow is learned from its first packet that is not a SYN: learned at the SYN,
 * IPVS would never see the handshake end. The director's own packets come from no device.
 */
#define DIRECTOR_TC
#include <uapi/linux/bpf.h>

#include "decide.h"
#include "learned.h"

#define HEADERS (14 + 4 + 40 + 14) /* IPv6, and TCP as far as its flags */

int lbdr_director(context *ctx)
{
	struct server_key who = {};
	struct learned learned = {};
	struct ethernet *ethernet;
	struct service *service;
	struct packet *p;
	struct flow flow;
	u32 zero = 0, *server;
	u64 decision;

	p = map_lookup(MAP(leaving), &zero);
	if (!p || !ctx->ingress_ifindex)
		return VERDICT_PASS;
	if (ctx->data_end - ctx->data < HEADERS)
		skb_pull(ctx, ctx->len < HEADERS ? ctx->len : HEADERS);
	if (!parse(ctx, p))
		return VERDICT_PASS;
	if (p->odd & (ODD_OPTIONS | ODD_FRAGMENT | ODD_LATER_FRAGMENT | ODD_QUOTED))
		return VERDICT_PASS;
	p->service = find_service(p);
	service = p->service ? service_at(p->service) : NULL;
	decision = service ? *(volatile u64 *)&service->decision : 0;
	if (!service || !(decision >> 32 & SERVICE_LEARNED))
		return VERDICT_PASS;
	if (p->protocol == IPPROTO_TCP) {
		struct tcp_start *tcp = l4_of(ctx, p);

		if ((void *)(tcp + 1) > end_of(ctx) || tcp->flags & (TCP_SYN | TCP_FIN | TCP_RST))
			return VERDICT_PASS;
	}
	ethernet = start_of(ctx);
	if ((void *)(ethernet + 1) > end_of(ctx))
		return VERDICT_PASS;
	who.service = p->service;
	__builtin_memcpy(who.mac, ethernet->destination, sizeof(who.mac));
	server = map_lookup(MAP(macs), &who);
	if (!server)
		return VERDICT_PASS;
	flow = flow_of(p);
	if (find_learned(&flow, decision, p->version, &learned)) {
		if (learned.state == LEARNED_OPEN && learned.server != *server) {
			learned.server = *server;
			change_learned(&flow, &learned, decision, p->version);
		}
		return VERDICT_PASS;
	}
	learned.server = *server;
	learned.refreshed = now();
	remember(&flow, &learned, decision, p->version, service->timeout);
	return VERDICT_PASS;
}
