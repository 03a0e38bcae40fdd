// SPDX-License-Identifier: GPL-2.0
/*
 * What the benchmark runs. BEHIND says what comes after the restoring: nothing, the steady program,
 * or the director at tc.
 *
 * BPF_PROG_TEST_RUN gives each repeat the packet as the one before left it: sent already, one hop
 * older. RESTORE makes it again the packet that came in; what that costs is measured by itself,
 * with nothing behind it, and taken off. FLOWS makes it one of so many flows as well, each in its
 * turn; FLOWS 1 is a new flow each time. V6 and TAGS say what the packet is.
 */
#include <uapi/linux/bpf.h>

#define BEHIND_NOTHING 0
#define BEHIND_STEADY 1
#define BEHIND_TC 2
#define BEHIND_SWAP 3

#define lbdr_director behind
#if BEHIND == BEHIND_STEADY
static inline __attribute__((always_inline)) int behind(struct xdp_md *ctx);
#include "steady.c"
#elif BEHIND == BEHIND_TC
static inline __attribute__((always_inline)) int behind(struct __sk_buff *ctx);
#include "director.c"
#else
#include "packet.h"

static __always_inline int behind(context *ctx)
{
#if BEHIND == BEHIND_SWAP && defined(STRICT_ALIGNMENT)
	u16 *mac = start_of(ctx), half;
	int i;

	if ((void *)(mac + 6) > end_of(ctx))
		return VERDICT_DROP;
	for (i = 0; i < 3; i++) {
		half = mac[i];
		mac[i] = mac[i + 3];
		mac[i + 3] = half;
	}
	return XDP_TX;
#elif BEHIND == BEHIND_SWAP
	u32 *word = start_of(ctx), upper;
	u16 *half = start_of(ctx), lower;

	if ((void *)(word + 4) > end_of(ctx))
		return VERDICT_DROP;
	upper = word[0]; /* bytes 0 to 3, and 4 to 5, against 6 to 9, and 10 to 11 */
	lower = half[2];
	word[0] = *(u32 *)(half + 3);
	half[2] = half[5];
	*(u32 *)(half + 3) = upper;
	half[5] = lower;
	return XDP_TX;
#else
	return VERDICT_PASS;
#endif
}
#endif
#undef lbdr_director

#define OWN_UPPER 0x00000002 /* 02:00:00:00:00:01, as it lies in memory */
#define OWN_LOWER 0x0100
#define HOPS 64
#define L3 (14 + 4 * TAGS)
#if V6
#define L4 (L3 + 40)
#else
#define L4 (L3 + 20)
#endif
#define COUNTER (L4 + 20) /* behind the TCP header: the flow's number */
#define STRIDE 61803      /* from one flow to the next: no factor of FLOWS in it */

static __always_inline void restore(context *ctx)
{
	void *start = start_of(ctx);
	struct ipv4 *ip = start + L3;
	struct ipv6 *ip6 = start + L3;
	u32 *counter = start + COUNTER, number;

	if ((void *)(counter + 1) > end_of(ctx))
		return;
#ifdef STRICT_ALIGNMENT
	*(u16 *)start = OWN_UPPER;
	*(u16 *)(start + 2) = 0;
#else
	*(u32 *)start = OWN_UPPER;
#endif
	*(u16 *)(start + 4) = OWN_LOWER;
#if V6
	ip6->hop_limit = HOPS;
#else
	ip->ttl = HOPS;
#endif
#if FLOWS == 1
	number = (*counter)++ * 2654435761U; /* another one for each value of the counter */
	ip->source = 10 | (number & 0xffffff00);
	*(u16 *)(start + L4) = number | 0x8000;
#elif FLOWS
	number = *counter + STRIDE;
	if (number >= FLOWS)
		number -= FLOWS;
	*counter = number;
	ip->source = bpf_ntohl(0x0a000000 + number);
#endif
}

int lbdr_director(context *ctx)
{
#if RESTORE
	restore(ctx);
	asm volatile("" ::: "memory"); /* nothing of the packet is known to what comes now */
#endif
#if GENERATE
	return redirect(GENERATE, 0);
#elif SINK
	u32 zero = 0;
	u64 *count = map_lookup(MAP(sink), &zero);

	if (count)
		(*count)++;
	return XDP_DROP;
#else
	return behind(ctx);
#endif
}
