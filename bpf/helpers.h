/* SPDX-License-Identifier: GPL-2.0 */
/* The kernel's helpers by number (include/uapi/linux/bpf.h), and byte order at no cost. */
#ifndef LBDR_HELPERS_H
#define LBDR_HELPERS_H

#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif

#define bpf_htons(x) __builtin_bswap16(x)
#define bpf_ntohs(x) __builtin_bswap16(x)
#define bpf_ntohl(x) __builtin_bswap32(x)

#define MAP(name) ((void *)bpf_pseudo_fd(1, MAP_##name))

/*
 * The one value of an array: its address is in the instruction, so that no key is stored and no
 * entry looked for. Who goes into it shows the verifier that the offset is bounded.
 */
#define VALUE(name) ((void *)bpf_pseudo_fd(2, MAP_##name))

static void *(*map_lookup)(void *map, const void *key) = (void *)1;
#ifdef DIRECTOR_EXPLAIN /* who only asks writes nothing */
#define map_update(map, key, value, flags) 0
#define map_delete(map, key) 0
#else
static long (*map_update)(void *map, const void *key, const void *value, u64 flags) = (void *)2;
static long (*map_delete)(void *map, const void *key) = (void *)3;
#endif
static long (*tail_call)(void *ctx, void *map, u32 index) = (void *)12;
static long (*skb_vlan_push)(void *skb, u16 protocol, u16 tci) = (void *)18;
static long (*skb_vlan_pop)(void *skb) = (void *)19;
static long (*redirect)(u32 ifindex, u64 flags) = (void *)23;
static long (*skb_pull)(void *skb, u32 length) = (void *)39;
static long (*xdp_adjust_head)(void *ctx, int delta) = (void *)44;
static long (*redirect_map)(void *map, u64 key, u64 flags) = (void *)51;
static u64 (*jiffies64)(void) = (void *)118;
static u64 (*coarse_clock)(void) = (void *)160;
static u64 (*xdp_length)(void *ctx) = (void *)188;

#endif
