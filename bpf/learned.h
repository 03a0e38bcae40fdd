/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Flows of services whose server IPVS chooses: the choice is learned where its packets leave
 * (learn.c), and repeated here. IPVS sees the beginning, the end, and a packet from time to time,
 * so that its timers, counters and synchronisation go on.
 */
#ifndef LBDR_LEARNED_H
#define LBDR_LEARNED_H

#include "track.h"

/* Whether a flow is one of flows4. */
static __always_inline int is_small(u64 decision, u32 version)
{
	return version == 4 && !(decision >> 32 & SERVICE_PORTS);
}

static __always_inline struct flow4 flow4_of(struct flow *flow)
{
	struct flow4 flow4 = { flow->client[0], flow->client_port, flow->service };

	return flow4;
}

static __always_inline struct learned *find_learned(struct flow *flow, u64 decision, u32 version)
{
	struct flow4 flow4 = flow4_of(flow);

	return say_learned(is_small(decision, version) ? map_lookup(MAP(flows4), &flow4)
						       : map_lookup(MAP(flows), flow));
}

static __always_inline void remember(struct flow *flow, struct learned *learned, u64 decision,
				     u32 version)
{
	struct flow4 flow4 = flow4_of(flow);

	if (is_small(decision, version))
		map_update(MAP(flows4), &flow4, learned, BPF_ANY);
	else
		map_update(MAP(flows), flow, learned, BPF_ANY);
}

static __always_inline void forget(struct flow *flow, u64 decision, u32 version)
{
	struct flow4 flow4 = flow4_of(flow);

	if (is_small(decision, version))
		map_delete(MAP(flows4), &flow4);
	else
		map_delete(MAP(flows), flow);
}

/* Whether it is time for a packet of a flow to go up, and IPVS still knows the flow. */
static __always_inline int is_due(struct learned *flow, u32 tick, u32 timeout)
{
	u32 since = tick - flow->refreshed;

#ifdef DIRECTOR_TC
	if (!since) /* it may be the very packet that XDP sent up */
		return 1;
#endif
	return since >= REFRESH_TICKS && since < timeout;
}

/* The server of a packet; NOBODY, and why, where IPVS is to have it. */
static __always_inline u32 recall(context *ctx, struct packet *p, struct service *service,
				  u64 decision, u32 *reason)
{
	struct flow key = flow_of(p);
	struct learned *flow = find_learned(&key, decision, p->version);
	u32 tick;

	*reason = REASON_NOT_LEARNED;
	if (!flow)
		return NOBODY;
	if (p->protocol == IPPROTO_TCP && !(p->odd & ODD_QUOTED)) {
		struct tcp_start *tcp = l4_of(ctx, p);

		if ((void *)(tcp + 1) > end_of(ctx))
			return NOBODY;
		if (tcp->flags & TCP_SYN) { /* IPVS may decide anew */
			forget(&key, decision, p->version);
			return NOBODY;
		}
		if (tcp->flags & (TCP_FIN | TCP_RST))
			flow->state = LEARNED_CLOSING;
	}
	*reason = REASON_CLOSING;
	if (flow->state == LEARNED_CLOSING)
		return NOBODY;
	*reason = REASON_NO_SERVER;
	if (!is_alive(flow->server))
		return NOBODY;
	tick = now();
	if (!(p->odd & ODD_QUOTED) && is_due(flow, tick, service->timeout)) {
		flow->refreshed = tick;
		*reason = REASON_REFRESH;
		return NOBODY;
	}
	return say_by(BY_LEARNED, flow->server);
}

#endif
