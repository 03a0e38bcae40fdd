/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the maps hold. lbdr makes them and gives their fds to the compiler, so their sizes and
 * flags are its own; that these structs are as it writes them is asserted here.
 */
#ifndef LBDR_MAPS_H
#define LBDR_MAPS_H

#include "constants.h"
#include "helpers.h"

/* What lines are found by: keys that differ little are to lie apart (MurmurHash3's finalizer). */
#define MIX 0xc4ceb9fe1a85ec53ULL

/*
 * vips: a bit for each address that has services; a bit that is not set is the end of the matter.
 * And one for each that has ports of which no line of ports4 or ports6 tells.
 */
struct vips {
	u64 any;
	u64 deep;
};
#define VIP_WORD(hash) ((u32)(hash) >> 23)
#define VIP_BIT(hash) (((u32)(hash) >> 17) & 63)
#define VIP_HASH(folded) ((u32)(folded)*0x9e3779b1U)

/* ports4, ports6: exact ports by the line; 0 is no service */
#define PORTS4_IN_LINE 8
struct port_line4 {
	u64 entry[PORTS4_IN_LINE]; /* address << 32 | port << 16 | is UDP << 15 | service */
};
_Static_assert(sizeof(struct port_line4) == 64, "xdp_layout.PORT_LINE");

struct port6 {
	u64 upper; /* of the address */
	u64 lower;
	u64 rest; /* port << 16 | is UDP << 15 | service */
};

#define PORTS6_IN_LINE 2
struct port_line6 {
	struct port6 entry[PORTS6_IN_LINE];
	u64 unused[2];
};
_Static_assert(sizeof(struct port_line6) == 64, "xdp_layout.PORT_LINE");

/* services4, services6: every exact port; value u32, an index of services */
struct service_key4 {
	__be32 address;
	__be16 port;
	u8 protocol;
	u8 zero;
};

struct service_key6 {
	__be32 address[4];
	__be16 port;
	u8 protocol;
	u8 zero;
};

/* ranges4, ranges6: with port 0 in the key; ends with the first range of service 0 */
#define RANGES 16
struct port_range {
	u16 first; /* host order, included */
	u16 last;  /* included */
	u32 service;
};

struct port_ranges {
	struct port_range range[RANGES];
};

/* services */
struct service {
	u64 decision;  /* flags << 32 | first slot: a new table is one store */
	u32 ifindex;   /* of the device that has the VIP */
	u32 udp_until; /* tick until which a UDP flow without a record goes to the old server */
	u8 mac[6];     /* of that device: frames for it are for us */
	u16 tags;      /* VLAN tags of a frame for the VIP */
	__be32 tag[2]; /* TPID and VID, the outermost first; the priority bits are 0 */
	u8 peer[6];    /* another director's MAC: what it forwards to us is for this host itself */
	u16 has_peer;
	u32 mark;    /* of its packets, where IPVS tells it by a mark; 0 for none */
	u32 timeout; /* ticks after which IPVS has forgotten a flow that is not refreshed */
	u64 unused[2];
};
_Static_assert(sizeof(struct service) == 64, "xdp_layout.SERVICE");

/* slots: the tables of all services, each a u32 */

/* servers: one for each real server of each service */
struct server {
	u8 mac[6];
	u16 flags; /* one store with the MAC */
	u8 source[6];
	u16 mtu;
	u32 ifindex;
	u32 device; /* its place in devices */
	u16 tags;
	u16 zero;
	__be32 tag[2];
	u32 unused;
} __attribute__((aligned(8))); /* or that would be two loads */
_Static_assert(sizeof(struct server) == 40, "xdp_layout.SERVER");

/* served: by server, per CPU */
struct served {
	u64 packets;
	u64 bytes;
};

/* records: flows whose server is not the one of their slot */
struct flow {
	__be32 client[4]; /* IPv4: the first word alone */
	__be16 client_port;
	__be16 port;
	u32 service;
};

struct record {
	u16 server;   /* or FALLBACK: IPVS has it */
	u16 previous; /* where this tuple's packets went before */
	u32 sequence; /* initial, host order */
	u32 tick;     /* when it was last seen, about */
	u16 state;
	u16 sent; /* the upper half of the sequence number of what was last seen */
};
_Static_assert(sizeof(struct record) == 16, "xdp_layout.RECORD");

/* A flow of IPv4 to a service of one port. */
struct flow4 {
	__be32 client;
	__be16 client_port;
	u16 service;
};

/* flows4: such flows by the line, see flows4.h */
#define FLOWS_IN_LINE 5
struct flow_line {
	u64 word[FLOWS_IN_LINE];
	u32 refreshed[FLOWS_IN_LINE];
	u32 unused;
};
_Static_assert(sizeof(struct flow_line) == 64, "xdp_layout.FLOW_LINE");

/* flows: what IPVS decided, learned at egress; the least recently used ones make room */
struct learned {
	u16 server;
	u16 state;
	u32 refreshed; /* tick of the last packet that went up */
};
_Static_assert(sizeof(struct learned) == 8, "xdp_layout.LEARNED");

/* macs: value u32, the server of a service that has a MAC */
struct server_key {
	u32 service;
	u8 mac[6];
	u16 zero;
};

/* guard: per CPU, what was written in a tick */
struct guard {
	u32 tick;
	u32 written;
};

/*
 * What is at a place, or NULL. The verifier follows the register that was compared, so clang is
 * kept from narrowing it before, and from computing the address meanwhile.
 */
#define AT(name, type, place, places)                                                              \
	({                                                                                         \
		u64 at = (place);                                                                  \
		type *found = NULL;                                                                \
                                                                                                   \
		asm volatile("" : "+r"(at));                                                       \
		if (at < (places)) {                                                               \
			asm volatile("" : "+r"(at));                                               \
			found = VALUE(name) + at * sizeof(type);                                   \
		}                                                                                  \
		found;                                                                             \
	})

static __always_inline struct service *service_at(u64 place)
{
	return AT(services, struct service, place, SERVICES);
}

static __always_inline struct server *server_at(u64 place)
{
	return AT(servers, struct server, place, SERVERS);
}

#endif
