/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The kernel's mh hash: SipHash-1-3 of four bytes under a constant key, cut to 32 bits
 * (lib/siphash.c, hsiphash_1u32; net/netfilter/ipvs/ip_vs_mh.c). All in 64 bits: this target has
 * no 32-bit registers, and each narrow step would cost two shifts.
 */
#ifndef LBDR_HASH_H
#define LBDR_HASH_H

#include "constants.h"

#define MH_KEY 2654435761ULL

#define ROTATE(x, n) ((x) << (n) | (x) >> (64 - (n)))

#define SIP_ROUND                                                                                  \
	do {                                                                                       \
		a += b;                                                                            \
		b = ROTATE(b, 13) ^ a;                                                             \
		a = ROTATE(a, 32);                                                                 \
		c += d;                                                                            \
		d = ROTATE(d, 16) ^ c;                                                             \
		a += d;                                                                            \
		d = ROTATE(d, 21) ^ a;                                                             \
		c += b;                                                                            \
		b = ROTATE(b, 17) ^ c;                                                             \
		c = ROTATE(c, 32);                                                                 \
	} while (0)

static __always_inline u64 mh_hash(u64 value)
{
	u64 block = 4ULL << 56 | (value & 0xffffffff);
	u64 a = 0x736f6d6570736575ULL ^ MH_KEY;
	u64 b = 0x646f72616e646f6dULL ^ MH_KEY;
	u64 c = 0x6c7967656e657261ULL ^ MH_KEY;
	u64 d = 0x7465646279746573ULL ^ MH_KEY ^ block;

	SIP_ROUND;
	a ^= block;
	c ^= 0xff;
	SIP_ROUND;
	SIP_ROUND;
	SIP_ROUND;
	return (a ^ b ^ c ^ d) & 0xffffffff;
}

/* The slot of what is hashed: client address, folded, plus port, plus the offset of a retry. */
static __always_inline u64 mh_slot(u64 value)
{
	u64 hash = mh_hash(value);

#if MH_DIVIDE_MULTIPLIER
	return hash - ((hash * MH_DIVIDE_MULTIPLIER) >> MH_DIVIDE_SHIFT) * MH_TABLE_SIZE;
#else
	return hash % MH_TABLE_SIZE;
#endif
}

#endif
