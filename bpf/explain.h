/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The director as a question (explain.c): what it would do, and why, with nothing written and
 * nothing counted. Other programs are compiled as if this were not here.
 */
#ifndef LBDR_EXPLAIN_H
#define LBDR_EXPLAIN_H

#include "maps.h"

/* How the server of a packet was found. */
#define BY_NOTHING 0
#define BY_CURRENT 1 /* its slot's current server, or the one that the fallback found */
#define BY_OLD 2     /* its slot's old server: it has no record */
#define BY_RECORD 3
#define BY_LEARNED 4

#ifdef DIRECTOR_EXPLAIN

#include "packet.h"

/* What is said, from the frame's first byte on. */
struct explained {
	u32 service; /* its index; 0 for none */
	u32 reason;  /* why it is not forwarded; 0 where it is */
	u32 by;
	u32 slot; /* its number in the table */
	u32 word; /* what it holds */
	u32 tries;
	u32 server; /* its index, or NOBODY */
	u32 found;  /* FOUND_ */
	struct record record;
	struct learned learned;
	struct server out;
};
_Static_assert(sizeof(struct explained) == 96, "xdp_explain.EXPLAINED");

#define FOUND_SLOT 1
#define FOUND_RECORD 2
#define FOUND_LEARNED 4
#define FOUND_SERVER 8

/* The only memory that is written, per CPU; MAP(packet) is the same map here. */
struct explaining {
	struct packet packet;
	struct explained said;
	struct record record; /* a copy, for a director that writes into what it finds */
};
_Static_assert(sizeof(struct explaining) == 192, "xdp_explain.MEMORY");

static __always_inline struct explaining *explaining(void)
{
	u32 zero = 0;

	return map_lookup(MAP(explaining), &zero);
}

static __always_inline u32 say_by(u32 by, u32 server)
{
	struct explaining *memory = explaining();

	if (memory)
		memory->said.by = by;
	return server;
}

static __always_inline void say_reason(u32 reason)
{
	struct explaining *memory = explaining();

	if (memory)
		memory->said.reason = reason;
}

static __always_inline void say_slot(u32 slot, u32 word)
{
	struct explaining *memory = explaining();

	if (!memory)
		return;
	memory->said.slot = slot;
	memory->said.word = word;
	memory->said.found |= FOUND_SLOT;
}

static __always_inline void say_tries(u32 tries)
{
	struct explaining *memory = explaining();

	if (memory)
		memory->said.tries = tries;
}

static __always_inline void say_server(u32 index, struct server *server)
{
	struct explaining *memory = explaining();

	if (!memory)
		return;
	memory->said.server = index;
	memory->said.out = *server;
	memory->said.found |= FOUND_SERVER;
}

static __always_inline struct record *say_record(struct record *record)
{
	struct explaining *memory = explaining();

	if (!memory || !record)
		return NULL;
	memory->said.record = memory->record = *record;
	memory->said.found |= FOUND_RECORD;
	return &memory->record;
}

static __always_inline void say_learned(struct learned *learned)
{
	struct explaining *memory = explaining();

	if (!memory)
		return;
	memory->said.learned = *learned;
	memory->said.found |= FOUND_LEARNED;
}

#else

#define say_by(by, server) (server)
#define say_slot(slot, word)
#define say_tries(tries)
#define say_server(index, server)
#define say_record(record) (record)
#define say_learned(learned)

#endif

#endif
