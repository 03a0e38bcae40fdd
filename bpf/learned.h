/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Flows of services whose server IPVS chooses: the choice is learned where its packets leave
 * (learn.c), and repeated here. IPVS sees the beginning, the end, and a packet from time to time,
 * so that its timers, counters and synchronisation go on.
 */
#ifndef LBDR_LEARNED_H
#define LBDR_LEARNED_H

#include "flows4.h"
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

/* What is known of a flow; 0 for nothing. */
static __always_inline int find_learned(struct flow *flow, u64 decision, u32 version,
					struct learned *found)
{
	struct flow4 flow4 = flow4_of(flow);
	struct learned *there;

	if (is_small(decision, version)) {
		if (!find_flow4(&flow4, found))
			return 0;
	} else {
		there = map_lookup(MAP(flows), flow);
		if (!there)
			return 0;
		*found = *there;
	}
	say_learned(found);
	return 1;
}

#ifdef DIRECTOR_EXPLAIN /* who only asks writes nothing */

#define change_learned(flow, learned, decision, version)
#define forget(flow, decision, version)

#else

/* Change a flow that is there. */
static __always_inline void change_learned(struct flow *flow, struct learned *learned, u64 decision,
					   u32 version)
{
	struct flow4 flow4 = flow4_of(flow);
	struct learned *there;

	if (is_small(decision, version)) {
		change_flow4(&flow4, learned);
		return;
	}
	there = map_lookup(MAP(flows), flow);
	if (there)
		*there = *learned;
}

static __always_inline void remember(struct flow *flow, struct learned *learned, u64 decision,
				     u32 version, u32 timeout)
{
	struct flow4 flow4 = flow4_of(flow);

	if (is_small(decision, version))
		remember_flow4(&flow4, learned, timeout);
	else
		map_update(MAP(flows), flow, learned, BPF_ANY);
}

static __always_inline void forget(struct flow *flow, u64 decision, u32 version)
{
	struct flow4 flow4 = flow4_of(flow);

	if (is_small(decision, version))
		forget_flow4(&flow4);
	else
		map_delete(MAP(flows), flow);
}

#endif

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
	struct learned flow = {};
	u32 tick;

	*reason = REASON_NOT_LEARNED;
	if (!find_learned(&key, decision, p->version, &flow))
		return NOBODY;
	if (p->protocol == IPPROTO_TCP && !(p->odd & ODD_QUOTED)) {
		struct tcp_start *tcp = l4_of(ctx, p);

		if ((void *)(tcp + 1) > end_of(ctx))
			return NOBODY;
		if (tcp->flags & TCP_SYN) { /* IPVS may decide anew */
			forget(&key, decision, p->version);
			return NOBODY;
		}
		if (tcp->flags & (TCP_FIN | TCP_RST) && flow.state == LEARNED_OPEN) {
			flow.state = LEARNED_CLOSING;
			change_learned(&key, &flow, decision, p->version);
		}
	}
	*reason = REASON_CLOSING;
	if (flow.state == LEARNED_CLOSING)
		return NOBODY;
	*reason = REASON_NO_SERVER;
	if (!is_alive(flow.server))
		return NOBODY;
	tick = now();
	if (!(p->odd & ODD_QUOTED) && is_due(&flow, tick, service->timeout)) {
		flow.refreshed = tick;
		change_learned(&key, &flow, decision, p->version);
		*reason = REASON_REFRESH;
		return NOBODY;
	}
	return say_by(BY_LEARNED, flow.server);
}

#endif
