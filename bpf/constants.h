/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the programs and lbdr/datapath/xdp_layout.py agree on by number.
 *
 * From the loader: SERVICES, SERVERS and SLOTS, how many there are places for; MH_TABLE_SIZE, the
 * slots of the running kernel's mh table; MH_DIVIDE_MULTIPLIER and MH_DIVIDE_SHIFT, by which 32
 * bits are divided by it (0: by division); RECORDS_PER_TICK, the records that one CPU may write in
 * a tick; PORT_BITS4 and PORT_BITS6, the bits of a line's number in ports4 and ports6; JIFFY_NS and
 * JIFFIES_ZERO, by which jiffies become ns, where they can; and MAP_name, the fd of each map.
 */
#ifndef LBDR_CONSTANTS_H
#define LBDR_CONSTANTS_H

/* A tick is 2^30 ns, about a second: what is left of the clock without a division. */
#define TICK_SHIFT 30

/*
 * A slot: bits 0-13 the current server, or FALLBACK; bit 14 ANTICIPATE; bit 15 TRACKED;
 * bits 16-31 the old server, who keeps the connections that have no record.
 */
#define SLOT_CURRENT 0x3fff
#define SLOT_FALLBACK 0x3fff   /* its server is drained: the kernel's loop finds another one */
#define SLOT_EMPTY 0x3ffe      /* no server has a weight */
#define SLOT_ANTICIPATE 0x4000 /* it is about to change: SYNs are recorded */
#define SLOT_TRACKED 0x8000
#define SLOT_OLD_SHIFT 16

#define NOBODY 0xffff /* no server */

#define FALLBACK_TRIES 32

/* The flags of a service, in the upper half of its decision. */
#define SERVICE_ACTIVE 0x0001ULL
#define SERVICE_MH_PORT 0x0002ULL
#define SERVICE_LEARNED 0x0004ULL  /* IPVS decides, the flow table remembers */
#define SERVICE_ALONE 0x0008ULL    /* no IPVS here: what cannot be forwarded is dropped */
#define SERVICE_SETTLING 0x0010ULL /* what still falls to an old server is recorded */
#define SERVICE_PORTS 0x0020ULL    /* it has several ports */
#define SERVICE_GUARDED 0x0040ULL  /* alone, and this host is none of its servers */

/* The flags of a server, beside its MAC. */
#define SERVER_ALIVE 0x0001
#define SERVER_RESOLVED 0x0002
#define SERVER_SAME_DEVICE 0x0004 /* it is reached by the device that has the VIP */
#define SERVER_SAME_TAGS 0x0008   /* and in the same VLAN */
#define SERVER_LOCAL 0x0010       /* it is this host */
#define SERVER_PLAIN (SERVER_ALIVE | SERVER_RESOLVED | SERVER_SAME_DEVICE | SERVER_SAME_TAGS)

/* Why a packet for a service was not forwarded. */
enum reason {
	REASON_INACTIVE = 1,
	REASON_OTHER_HOST,
	REASON_OTHER_VLAN,
	REASON_MARTIAN,
	REASON_LENGTH,
	REASON_TTL,
	REASON_MTU,
	REASON_NEIGHBOUR,
	REASON_LOCAL,
	REASON_OPTIONS,
	REASON_FRAGMENT,
	REASON_FALLBACK,
	REASON_NO_SERVER,
	REASON_NOT_LEARNED,
	REASON_REFRESH,
	REASON_CLOSING,
	REASON_FTP_DATA,
	REASON_PEER,
	REASON_TAGS,
	REASON_RECORD,      /* forwarded, but its record could not be written */
	REASONS_OF_TC = 32, /* from here on by tc ingress: XDP may have counted it too */
	REASONS = 64
};

/* The state of a record. */
#define RECORD_UNCONFIRMED 0
#define RECORD_CONFIRMED 1
#define RECORD_CLOSING 2
#define RECORD_ADOPTED 3 /* confirmed, but what it sent was never seen */

/* The state of a learned flow. */
#define LEARNED_OPEN 0
#define LEARNED_CLOSING 1 /* IPVS has it until the next SYN */

/* Ticks after which a packet of a learned flow goes up again: IPVS is to know that it lives. */
#define REFRESH_TICKS 8

/* A first data segment lies within so many bytes of the initial sequence number. */
#define CONFIRMING_WINDOW 65536

/* What a connection sends is at most so many times 64 Ki bytes from what it sent before. */
#define NEAR 8

#endif
