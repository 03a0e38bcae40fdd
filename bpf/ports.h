/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Exact ports by the line (lbdr/datapath/xdp_ports.py): one access to a cache line says whose port
 * it is. What found no room in its line is in services4 and services6 alone.
 */
#ifndef LBDR_PORTS_H
#define LBDR_PORTS_H

#include "maps.h"
#include "network.h"

/* Port and protocol, TCP or UDP, as an entry has them; the service comes into the lower bits. */
#define PORT_WORD(port, protocol) ((u64)(port) << 16 | (u64)((protocol)&1) << 15)
#define PORT_MOST_SERVICES 0x8000

/* The service of an exact port; 0 where its line has none. */
static __always_inline u64 find_port4(__be32 address, u64 port)
{
	u64 wanted = (u64)address << 32 | port, service;
	struct port_line4 *line =
		VALUE(ports4) + (wanted * MIX >> (64 - PORT_BITS4)) * sizeof(*line);
	int i;

#pragma unroll
	for (i = 0; i < PORTS4_IN_LINE; i++) {
		service = *(volatile u64 *)&line->entry[i] ^ wanted;
		if (service < PORT_MOST_SERVICES)
			return service;
	}
	return 0;
}

/* The same; upper and lower are the halves of the address, as it lies in memory. */
static __always_inline u64 find_port6(u64 upper, u64 lower, u64 port)
{
	u64 mixed = upper ^ lower * MIX, service, rest;
	u64 place = ((mixed ^ mixed >> 32) + port) * MIX >> (64 - PORT_BITS6);
	struct port_line6 *line = VALUE(ports6) + place * sizeof(*line);
	int i;

#pragma unroll
	for (i = 0; i < PORTS6_IN_LINE; i++) {
		struct port6 *entry = &line->entry[i];

		rest = *(volatile u64 *)&entry->rest;
		service = rest ^ port;
		if (service >= PORT_MOST_SERVICES || *(volatile u64 *)&entry->upper != upper ||
		    *(volatile u64 *)&entry->lower != lower)
			continue;
		/* an entry that becomes another one's has no rest meanwhile */
		return *(volatile u64 *)&entry->rest == rest ? service : 0;
	}
	return 0;
}

#endif
