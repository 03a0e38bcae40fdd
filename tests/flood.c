// SPDX-License-Identifier: GPL-2.0
/*
 * A flood: BPF_PROG_TEST_RUN gives each repeat the packet as the one before left it, and here it
 * becomes one from another sender before the director has it.
 */
#include <uapi/linux/bpf.h>

#define lbdr_director behind
#ifdef DIRECTOR_TC
static inline __attribute__((always_inline)) int behind(struct __sk_buff *ctx);
#include "director.c"
#else
static inline __attribute__((always_inline)) int behind(struct xdp_md *ctx);
#include "steady.c"
#endif
#undef lbdr_director

static u32 (*random32)(void) = (void *)7;

#define OWN_UPPER 0x00000002 /* 02:00:00:00:00:01, as it lies in memory */
#define OWN_LOWER 0x0100

int lbdr_director(context *ctx)
{
	void *start = start_of(ctx);
	struct ethernet *ethernet = start;
	struct ipv4 *ip = start + sizeof(*ethernet);
	struct ipv6 *ip6 = start + sizeof(*ethernet);
	struct ports *ports;
	u8 protocol;

	if ((void *)(ip + 1) > end_of(ctx))
		return VERDICT_DROP;
	*(u32 *)start = OWN_UPPER;
	*(u16 *)(start + 4) = OWN_LOWER;
	if (ethernet->protocol == bpf_htons(ETH_P_IPV6)) {
		ports = (void *)(ip6 + 1);
		if ((void *)(ports + 1) > end_of(ctx))
			return VERDICT_DROP;
		protocol = ip6->next_header;
		ip6->hop_limit = 64;
		ip6->source[2] = random32();
		ip6->source[3] = random32();
	} else {
		ports = (void *)(ip + 1);
		if ((void *)(ports + 1) > end_of(ctx))
			return VERDICT_DROP;
		protocol = ip->protocol;
		ip->ttl = 64;
		ip->source = 10 | (random32() & 0xffffff00);
	}
	ports->source = random32() | 0x0080; /* no port that is anything's */
	if (protocol == IPPROTO_TCP) {
		struct tcp_start *tcp = (void *)ports;

		if ((void *)(tcp + 1) > end_of(ctx))
			return VERDICT_DROP;
		tcp->sequence = random32();
	}
	asm volatile("" ::: "memory"); /* nothing of the packet is known to what comes now */
	return behind(ctx);
}
