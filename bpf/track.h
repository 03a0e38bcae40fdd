/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Who gets a packet of an mh service. In steady state the slot alone says it. After a change, the
 * slots whose owner changed are tracked: their old server keeps the connections without a record,
 * and those that began since have one.
 */
#ifndef LBDR_TRACK_H
#define LBDR_TRACK_H

#include "count.h"
#include "hash.h"

/* The tick of CLOCK_MONOTONIC, give or take a few ms (lbdr/datapath/bpf_clock.py). */
static __always_inline u32 now(void)
{
#ifdef JIFFY_NS
	return (jiffies64() * JIFFY_NS + JIFFIES_ZERO) >> TICK_SHIFT;
#else
	return coarse_clock() >> TICK_SHIFT;
#endif
}

static __always_inline int is_alive(u32 server)
{
	struct server *found = server_at(server);

	return found && found->flags & SERVER_ALIVE;
}

/* Whether what a record names is there to have packets. */
static __always_inline int is_there(u32 server)
{
	return server == SLOT_FALLBACK || is_alive(server);
}

/* A slot by its place among all tables; NULL for none. */
static __always_inline u32 *find_slot(u64 place)
{
	return AT(slots, u32, place, SLOTS);
}

/*
 * The kernel's loop for a slot whose server is drained (ip_vs_mh_get_fallback): the first slot of
 * others that is not. It depends on the client, not on the slot alone. FALLBACK where so many tries
 * do not find it: IPVS goes on.
 */
static __always_inline u32 fall_back(u32 table, u32 value, u32 slot)
{
	u32 i, current, *found;

	for (i = 0; i < FALLBACK_TRIES; i++) {
		u32 offset = slot + i;

		if (offset >= MH_TABLE_SIZE)
			offset -= MH_TABLE_SIZE;
		found = find_slot(table + mh_slot((u64)value + offset));
		if (!found)
			return NOBODY;
		current = *found & SLOT_CURRENT;
		say_tries(i + 1);
		if (current != SLOT_FALLBACK)
			return current == SLOT_EMPTY ? NOBODY : current;
	}
	return SLOT_FALLBACK;
}

static __always_inline struct flow flow_of(struct packet *p)
{
	struct flow flow = { { p->client[0], p->client[1], p->client[2], p->client[3] },
			     p->client_port,
			     p->port,
			     p->service };

	return flow;
}

static __always_inline struct record *find_record(struct packet *p)
{
	struct flow flow = flow_of(p);

	return say_record(map_lookup(MAP(records), &flow));
}

/* Whether one more record may be written on this CPU in this tick. */
static __always_inline int may_record(u32 tick)
{
	u32 zero = 0;
	struct guard *guard = map_lookup(MAP(guard), &zero);

	if (!guard)
		return 0;
#ifdef DIRECTOR_EXPLAIN
	return guard->tick != tick || guard->written < RECORDS_PER_TICK;
#endif
	if (guard->tick != tick) {
		guard->tick = tick;
		guard->written = 0;
	}
	return guard->written++ < RECORDS_PER_TICK;
}

/* Write a record that was not there; 0 where it cannot be. */
static __always_inline int write_record(struct packet *p, struct record *record)
{
	struct flow flow = flow_of(p);

	if (may_record(record->tick) && !map_update(MAP(records), &flow, record, BPF_ANY))
		return 1;
	count_reason(p->service, REASON_RECORD);
	return 0;
}

/*
 * Whether a segment is near what its connection sent before, and what is near becomes that: who
 * does not see a connection cannot end it.
 */
static __always_inline int is_near(struct record *record, u32 sequence)
{
	u16 sent = sequence >> 16;

	if ((u16)(sent - record->sent + NEAR) > 2 * NEAR)
		return 0;
	if (record->sent != sent)
		record->sent = sent;
	return 1;
}

/*
 * Who gets a packet of a service whose slot is tracked, FALLBACK for IPVS, or NOBODY.
 *
 * A SYN begins a connection: it is the current server's, and that is written down. Anything else
 * goes where the record says, or without one to the old server, who has all the others. UDP has no
 * beginning: for a while after a change, what has no record was there before it.
 */
static __always_inline u32 tracked(context *ctx, struct packet *p, struct service *service,
				   u64 decision, u32 current, u32 old, u32 anticipate)
{
	int is_tcp = p->protocol == IPPROTO_TCP, is_quoted = p->odd & ODD_QUOTED;
	struct record *found = find_record(p);
	struct record record = {};
	u32 tick = now(), sequence = 0, server;
	u8 flags = 0;

	record.tick = tick;
	if (is_tcp && !is_quoted) {
		struct tcp_start *tcp = l4_of(ctx, p);

		if ((void *)(tcp + 1) > end_of(ctx))
			return NOBODY;
		sequence = bpf_ntohl(tcp->sequence);
		flags = tcp->flags;
	}
	if ((flags & (TCP_SYN | TCP_ACK)) == TCP_SYN) {
		if (found && found->sequence == sequence && found->state != RECORD_CLOSING &&
		    is_there(found->server))
			return say_by(BY_RECORD, found->server); /* sent again */
		if (current == NOBODY) /* a new one is refused; open ones go on */
			return NOBODY;
		if (found) { /* there is room for it, and no rate to guard */
			if (found->state != RECORD_UNCONFIRMED)
				found->previous = found->server;
			found->sequence = sequence;
			found->tick = tick;
			found->server = current;
			found->state = RECORD_UNCONFIRMED;
			found->sent = sequence >> 16;
			return say_by(BY_CURRENT, current);
		}
		if (current == old && !anticipate)
			return say_by(BY_CURRENT, current); /* nothing changes for it */
		record.server = current;
		record.previous = old;
		record.sequence = sequence;
		record.state = RECORD_UNCONFIRMED;
		record.sent = sequence >> 16;
		if (write_record(p, &record) || !is_alive(old))
			return say_by(BY_CURRENT, current);
		return say_by(BY_OLD, old);
	}
	if (found) {
		server = found->server;
		if (found->state == RECORD_UNCONFIRMED) {
			if (!is_there(server) || !flags ||
			    sequence - found->sequence > CONFIRMING_WINDOW)
				server = found->previous;
			else
				found->state = RECORD_CONFIRMED;
		}
		if (is_there(server)) {
			say_by(BY_RECORD, server);
			if (is_quoted)
				return server;
			if (found->state == RECORD_UNCONFIRMED) /* the packet is not its own */
				return server;
			if (found->state == RECORD_ADOPTED) {
				found->sent = sequence >> 16;
				found->state = RECORD_CONFIRMED;
			} else if (is_near(found, sequence) && flags & (TCP_FIN | TCP_RST)) {
				found->state = RECORD_CLOSING;
			}
			if (found->tick != tick)
				found->tick = tick;
			return server;
		}
	}
	if (!is_alive(old))
		return say_by(BY_CURRENT, current);
	if (!is_tcp && (s32)(service->udp_until - tick) <= 0) {
		if (!anticipate || current == NOBODY)
			return say_by(BY_CURRENT, current);
		old = current; /* it will be another's, and then this one is to be known */
	}
	say_by(BY_OLD, old);
	if (is_quoted || found || flags & (TCP_FIN | TCP_RST))
		return old;
	if (!is_tcp || decision >> 32 & SERVICE_SETTLING) {
		record.server = record.previous = old;
		record.sequence = sequence;
		record.sent = sequence >> 16;
		record.state = RECORD_CONFIRMED;
		write_record(p, &record);
	}
	return old;
}

/* The server of a packet of an mh service; NOBODY, and why. */
static __always_inline u32 choose(context *ctx, struct packet *p, struct service *service,
				  u64 decision, u32 *reason)
{
	u32 value, table = (u32)decision, slot, word, current, old;
	u32 *found;

	*reason = REASON_NO_SERVER;
	value = bpf_ntohl(fold6(p->client));
	if (decision >> 32 & SERVICE_MH_PORT)
		value += bpf_ntohs(p->client_port);
	slot = mh_slot(value);
	found = find_slot(table + slot);
	if (!found)
		return NOBODY;
	word = *(volatile u32 *)found;
	say_slot(slot, word);
	current = word & SLOT_CURRENT;
	old = word >> SLOT_OLD_SHIFT;
	if (current == SLOT_EMPTY)
		current = NOBODY;
	if (current == SLOT_FALLBACK) {
		*reason = REASON_FALLBACK;
		current = fall_back(table, value, slot);
	}
	if (old >= SLOT_EMPTY)
		old = current;
	if (word & (SLOT_TRACKED | SLOT_ANTICIPATE))
		current = tracked(ctx, p, service, decision, current, old, word & SLOT_ANTICIPATE);
	else
		say_by(BY_CURRENT, current);
	if (current != SLOT_FALLBACK)
		return current;
	*reason = REASON_FALLBACK;
	return NOBODY;
}

#endif
