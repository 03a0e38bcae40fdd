/* SPDX-License-Identifier: GPL-2.0 */
/* Counting: what was forwarded, by server, and what was not, by service and reason. */
#ifndef LBDR_COUNT_H
#define LBDR_COUNT_H

#include "explain.h"
#include "packet.h"

#ifdef DIRECTOR_EXPLAIN

#define count_reason(service, reason) say_reason(reason)
#define count_served(server, bytes)

#else

static __always_inline void count_reason(u32 service, u32 reason)
{
#ifdef DIRECTOR_TC
	u32 index = service * REASONS + REASONS_OF_TC + reason;
#else
	u32 index = service * REASONS + reason;
#endif
	u64 *count = map_lookup(MAP(reasons), &index);

	if (count)
		(*count)++;
}

static __always_inline void count_served(u32 server, u32 bytes)
{
	struct served *served = map_lookup(MAP(served), &server);

	if (served) {
		served->packets++;
		served->bytes += bytes;
	}
}

#endif

/*
 * A packet that IPVS is to have, with the mark by which it knows the service. Without IPVS the
 * local stack would answer it with a reset, so it is dropped.
 */
static __always_inline int pass(context *ctx, struct packet *p, u64 decision, u32 reason)
{
	count_reason(p->service, reason);
	if (decision >> 32 & SERVICE_ALONE)
		return VERDICT_DROP;
#ifdef DIRECTOR_TC
	if (p->mark)
		ctx->mark = p->mark;
#endif
	return VERDICT_PASS;
}

/* A packet that this host's own stack must have, whatever forwards. */
static __always_inline int pass_up(struct packet *p, u32 reason)
{
	count_reason(p->service, reason);
	return VERDICT_PASS;
}

#endif
