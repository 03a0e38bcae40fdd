// SPDX-License-Identifier: GPL-2.0
/*
 * The director: a packet for a DR service goes to its real server, everything else passes as it is.
 * Compiled for XDP, and with DIRECTOR_TC for tc ingress, on the same maps: what XDP missed, and
 * devices that have no native XDP, are served there.
 */
#include <uapi/linux/bpf.h>

#include "decide.h"
#include "fragments.h"
#include "learned.h"
#include "rewrite.h"
#include "track.h"

#define HEADERS (14 + 4 + 40 + 8 + 40 + 8) /* IPv6 in ICMPv6, the most that is looked at */

int lbdr_director(context *ctx)
{
	u32 zero = 0, least, reason, server = NOBODY;
	struct service *service;
	struct packet *p;
	u64 decision;

	p = map_lookup(MAP(packet), &zero);
	if (!p)
		return VERDICT_PASS;
#ifdef DIRECTOR_TC
	if (ctx->data_end - ctx->data < HEADERS)
		skb_pull(ctx, ctx->len < HEADERS ? ctx->len : HEADERS);
#endif
	if (!parse(ctx, p))
		return VERDICT_PASS;
	p->service = p->mark = 0;
	if (p->odd & ODD_LATER_FRAGMENT) {
		server = recall_fragment(ctx, p);
		if (server == NOBODY)
			return pass_up(p, REASON_FRAGMENT);
		least = sizeof(struct ipv4);
	} else {
		p->service = find_service(p);
		least = p->version == 4 ? 28 : 48;
	}
	service = p->service ? service_at(p->service) : NULL;
	if (!service)
		return VERDICT_PASS;
	decision = *(volatile u64 *)&service->decision;
	reason = not_ours(ctx, p, service, decision);
	if (is_guarded(ctx, decision, reason))
		return pass(ctx, p, decision, reason);
	if (reason && reason != REASON_INACTIVE)
		return pass_up(p, reason);
	p->mark = service->mark;
	if (reason) /* IPVS has it, and may know it by its mark alone */
		return pass(ctx, p, 0, reason);
	reason = unfit(p, decision, least);
	if (reason)
		return pass(ctx, p, decision, reason);
	if (server == NOBODY) {
		server = decision >> 32 & SERVICE_LEARNED
				 ? recall(ctx, p, service, decision, &reason)
				 : choose(ctx, p, service, decision, &reason);
		if (server == NOBODY)
			return pass(ctx, p, decision, reason);
		if (p->odd & ODD_FRAGMENT)
			remember_fragment(ctx, p, server);
	}
	return forward(ctx, p, decision, server);
}
