// SPDX-License-Identifier: GPL-2.0
/*
 * What the director would do with a frame, and why: it is attached nowhere, and asked by
 * BPF_PROG_TEST_RUN. The director is compiled once more with its counters and writes left out, and
 * the answer is written over the frame. Of two ways to a server it knows the longer one: what XDP
 * leaves, tc ingress forwards.
 */
#define DIRECTOR_EXPLAIN
#include <uapi/linux/bpf.h>

#include "explain.h"

static __always_inline int direct(context *ctx);
#define lbdr_director direct /* static, by the line before */
#include "director.c"
#undef lbdr_director

int lbdr_director(context *ctx)
{
	struct explaining *memory = explaining();
	int verdict;

	if (!memory)
		return XDP_ABORTED;
	__builtin_memset(memory, 0, sizeof(*memory));
	memory->said.server = NOBODY;
	verdict = direct(ctx);
	memory->said.service = memory->packet.service;
	if (start_of(ctx) + sizeof(memory->said) > end_of(ctx))
		return XDP_ABORTED;
	__builtin_memcpy(start_of(ctx), &memory->said, sizeof(memory->said));
	return verdict;
}
