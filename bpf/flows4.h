/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Learned flows of IPv4 to services of one port, by the line: a packet of one costs one cache line.
 *
 * A flow's 64 bits are multiplied, which loses nothing; the upper ones say the line, and the lower
 * 48 lie in its word, beside the server. A word is read and written at once: whatever happens at
 * the same time on other CPUs, it names the server that one flow was learned to have. A flow that
 * is lost is IPVS's, and learned again. The tick of the last packet that went up lies apart; in the
 * moment when a word becomes another flow's it is that one's, and a refresh comes early or late.
 */
#ifndef LBDR_FLOWS4_H
#define LBDR_FLOWS4_H

#include "maps.h"

#define FLOW4_KNOWN 0x8000
#define FLOW4_CLOSING 0x4000 /* and the server in the bits below */

/* Flows whose packets went up within so many ticks are not made room of. */
#define KEEP_TICKS (2 * REFRESH_TICKS)

static __always_inline u64 mix_flow4(struct flow4 *flow)
{
	return ((u64)flow->service << 48 | (u64)flow->client_port << 32 | flow->client) * MIX;
}

static __always_inline struct flow_line *flow_line(u64 mixed)
{
	return VALUE(flows4) + (mixed >> (64 - FLOW_BITS)) * sizeof(struct flow_line);
}

/* A flow's word, but for its server. */
static __always_inline u64 flow_word(u64 mixed)
{
	return mixed << 16 | FLOW4_KNOWN;
}

/* The place of a flow in its line, or FLOWS_IN_LINE; its word is said. */
static __always_inline u32 find_in_line(struct flow_line *line, u64 wanted, u64 *word)
{
	u32 i;

#pragma unroll
	for (i = 0; i < FLOWS_IN_LINE; i++) {
		*word = *(volatile u64 *)&line->word[i];
		if ((*word ^ wanted) < FLOW4_KNOWN)
			return i;
	}
	return FLOWS_IN_LINE;
}

/* The server of an open flow that went up less than REFRESH_TICKS ago, or NOBODY. */
static __always_inline u32 steady_flow4(struct flow4 *flow, u32 tick)
{
	u64 mixed = mix_flow4(flow), wanted = flow_word(mixed), server;
	struct flow_line *line = flow_line(mixed);
	int i;

#pragma unroll
	for (i = 0; i < FLOWS_IN_LINE; i++) {
		server = *(volatile u64 *)&line->word[i] ^ wanted;
		if (server < FLOW4_CLOSING)
			return (s32)(tick - line->refreshed[i]) < REFRESH_TICKS ? server : NOBODY;
	}
	return NOBODY;
}

/* What is known of a flow; 0 for nothing. */
static __always_inline int find_flow4(struct flow4 *flow, struct learned *found)
{
	u64 mixed = mix_flow4(flow), word;
	struct flow_line *line = flow_line(mixed);
	u32 place;

	place = find_in_line(line, flow_word(mixed), &word);
	if (place >= FLOWS_IN_LINE)
		return 0;
	found->server = word & (FLOW4_CLOSING - 1);
	found->state = word & FLOW4_CLOSING ? LEARNED_CLOSING : LEARNED_OPEN;
	found->refreshed = line->refreshed[place];
	return 1;
}

/* Change a flow that is there; one that is not stays away. */
static __always_inline void change_flow4(struct flow4 *flow, struct learned *learned)
{
	u64 mixed = mix_flow4(flow), wanted = flow_word(mixed), word;
	struct flow_line *line = flow_line(mixed);
	u32 place;

	place = find_in_line(line, wanted, &word);
	if (place >= FLOWS_IN_LINE)
		return;
	wanted |= learned->server;
	if (learned->state == LEARNED_CLOSING)
		wanted |= FLOW4_CLOSING;
	if (word != wanted)
		*(volatile u64 *)&line->word[place] = wanted;
	line->refreshed[place] = learned->refreshed;
}

/* Two CPUs may have learned a flow at the same time, so it may be there twice. */
static __always_inline void forget_flow4(struct flow4 *flow)
{
	u64 mixed = mix_flow4(flow), wanted = flow_word(mixed);
	struct flow_line *line = flow_line(mixed);
	int i;

#pragma unroll
	for (i = 0; i < FLOWS_IN_LINE; i++)
		if ((*(volatile u64 *)&line->word[i] ^ wanted) < FLOW4_KNOWN)
			*(volatile u64 *)&line->word[i] = 0;
}

/*
 * How gladly a place is given to another flow; 0: not at all. One that IPVS knows loses nothing,
 * one that IPVS forgot is known here alone: it goes where all others are in use.
 */
static __always_inline u32 spare(u64 word, u32 age, u32 timeout)
{
	if (!word)
		return ~0U;
	if (age < KEEP_TICKS || age >> 30) /* another CPU's clock may be ahead a little */
		return 0;
	return age < timeout || word & FLOW4_CLOSING ? 1U << 30 | age : age;
}

/* Learn a flow that is not there, if there is room; timeout as its service has it. */
static __always_inline void remember_flow4(struct flow4 *flow, struct learned *learned, u32 timeout)
{
	u64 mixed = mix_flow4(flow);
	struct flow_line *line = flow_line(mixed);
	u32 i, place = 0, best = 0, found;

#pragma unroll
	for (i = 0; i < FLOWS_IN_LINE; i++) {
		found = spare(*(volatile u64 *)&line->word[i],
			      learned->refreshed - line->refreshed[i], timeout);
		if (found > best) {
			best = found;
			place = i;
		}
	}
	if (!best || place >= FLOWS_IN_LINE)
		return;
	line->refreshed[place] = learned->refreshed;
	*(volatile u64 *)&line->word[place] = flow_word(mixed) | learned->server;
}

#endif
