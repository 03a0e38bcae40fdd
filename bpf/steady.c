// SPDX-License-Identifier: GPL-2.0
/*
 * The steady state, in front of the director: a whole packet of a service whose slot is not
 * tracked, to a server in the same VLAN. It decides nothing that the director would decide
 * otherwise: whatever is not as plain as that is the director's, who begins anew.
 */
#include <uapi/linux/bpf.h>

#include "decide.h"
#include "learned.h"
#include "rewrite.h"

#define PLAIN_LENGTH 28 /* IPv4 and ports: no less is looked at */

/* What a packet must be alike in to the service it is for, in one test. */
static __always_inline u64 is_other(context *ctx, void *start, struct service *service,
				    u64 decision, u64 tags, u32 tag)
{
	u64 differs;

	/* the tags lie behind the MAC, and the frame's own source behind its destination */
#ifdef STRICT_ALIGNMENT
	differs = !same_mac(start, service->mac);
	differs |= tags ^ service->tags;
#else
	u64 mac_and_tags = *(u64 *)service->mac;

	differs = (*(u64 *)start ^ mac_and_tags) << 16;
	differs |= mac_and_tags >> 48 ^ tags;
#endif
	differs |= ctx->ingress_ifindex ^ service->ifindex;
	differs |= tag ^ service->tag[0];
	differs |= service->has_peer;
	differs |= (decision >> 32 & SERVICE_ACTIVE) ^ SERVICE_ACTIVE;
	return differs;
}

/* A key of records and flows; nobody else's is put together. */
static __always_inline struct flow flow_from(const __be32 *client, struct ports *ports, u64 service,
					     u32 version)
{
	struct flow flow = { {}, ports->source, ports->destination, service };

	__builtin_memcpy(flow.client, client, version == 4 ? 4 : 16);
	return flow;
}

/* The server of a flow that IPVS need not see, or one that is none. */
static __always_inline u64 steady_flow(void *end, const __be32 *client, struct ports *ports,
				       u64 service, u64 decision, u32 is_tcp, u32 version)
{
	struct tcp_start *tcp = (void *)ports;
	struct learned *learned;
	struct flow flow;

	if (is_tcp && ((void *)(tcp + 1) > end || tcp->flags & (TCP_SYN | TCP_FIN | TCP_RST)))
		return NOBODY;
	if (is_small(decision, version)) {
		struct flow4 flow4 = { client[0], ports->source, service };

		return steady_flow4(&flow4, now());
	}
	flow = flow_from(client, ports, service, version);
	learned = map_lookup(MAP(flows), &flow);
	if (!learned || learned->state != LEARNED_OPEN ||
	    (s32)(now() - learned->refreshed) >= REFRESH_TICKS)
		return NOBODY;
	return learned->server;
}

/*
 * The server of a packet, or one that is none. A slot that is tracked: its old server has what is
 * not a SYN and has no record; the rest is the director's.
 */
static __always_inline u64 steady_server(void *end, const __be32 *client, struct ports *ports,
					 u64 service, u64 decision, u32 is_tcp, u32 version)
{
	struct tcp_start *tcp = (void *)ports;
	u32 value, word, *found;
	struct flow flow;

	if (decision >> 32 & SERVICE_LEARNED)
		return steady_flow(end, client, ports, service, decision, is_tcp, version);
	value = bpf_ntohl(version == 4 ? client[0] : fold6(client));
	if (decision >> 32 & SERVICE_MH_PORT)
		value += bpf_ntohs(ports->source);
	found = find_slot((decision & 0xffffffff) + mh_slot(value));
	if (!found)
		return NOBODY;
	word = *(volatile u32 *)found;
	if (!(word & (SLOT_TRACKED | SLOT_ANTICIPATE)))
		return word & SLOT_CURRENT; /* FALLBACK and EMPTY are no servers */
	if (!is_tcp || (void *)(tcp + 1) > end || tcp->flags & TCP_SYN ||
	    decision >> 32 & SERVICE_SETTLING)
		return NOBODY;
	flow = flow_from(client, ports, service, version);
	return map_lookup(MAP(records), &flow) ? NOBODY : word >> SLOT_OLD_SHIFT;
}

/* The MACs, the counters and the verdict; the caller took the hop off. */
static __always_inline int deliver(void *start, struct server *server, u64 destination, u32 index,
				   u32 length)
{
	write_macs(start, destination, server->source);
	count_served(index, length);
	return send(server, destination >> 48);
}

#define SERVER_STEADY (SERVER_ALIVE | SERVER_RESOLVED | SERVER_SAME_TAGS)

static __always_inline int is_steady(struct server *server, u64 destination)
{
	return (destination >> 48 & (SERVER_STEADY | SERVER_LOCAL)) == SERVER_STEADY &&
	       is_reachable(server, destination >> 48);
}

int lbdr_director(context *ctx)
{
	void *start = start_of(ctx), *end = end_of(ctx), *l3 = start + sizeof(struct ethernet);
	struct ethernet *ethernet = start;
	u32 tag = 0, length;
	u64 tags = 0, place, index;
	struct service *service;
	struct server *server;
	struct ports *ports;
	u64 decision, destination;
	__be16 protocol;

	if (l3 > end)
		return VERDICT_PASS;
	protocol = ethernet->protocol;
	if (is_vlan(protocol)) {
		struct vlan *vlan = l3;

		if ((void *)(vlan + 1) > end)
			return VERDICT_PASS;
		tag = vlan_tag(protocol, vlan->tci);
		tags = 1;
		protocol = vlan->protocol;
		l3 += sizeof(*vlan);
	}
	if (protocol == bpf_htons(ETH_P_IP)) {
		struct ipv4 *ip = l3;

		ports = (void *)(ip + 1);
		if ((void *)(ports + 1) > end)
			goto director;
		if (!may_be_vip(ip->destination))
			return VERDICT_PASS;
		length = bpf_ntohs(ip->total_length);
		if (ip->version_ihl != PLAIN_HEADER ||
		    ip->fragment & bpf_htons(MORE_FRAGMENTS | FRAGMENT_OFFSET) ||
		    !is_balanced(ip->protocol) || ip->ttl <= 1 ||
		    is_martian4(ip->source, ip->destination) ||
		    ports->source == bpf_htons(FTP_DATA_PORT) || length < PLAIN_LENGTH ||
		    length > end - l3)
			goto director;
		place = find_port4(ip->destination, PORT_WORD(ports->destination, ip->protocol));
		if (!place) {
			if (is_deep(ip->destination))
				goto director;
			return VERDICT_PASS;
		}
		service = service_at(place);
		if (!service)
			goto director;
		decision = *(volatile u64 *)&service->decision;
		if (is_other(ctx, start, service, decision, tags, tag))
			goto director;
		index = steady_server(end, &ip->source, ports, place, decision,
				      ip->protocol == IPPROTO_TCP, 4);
		server = server_at(index);
		if (!server)
			goto director;
		destination = *(volatile u64 *)server->mac;
		if (!is_steady(server, destination) || length > server->mtu)
			goto director;
		decrease_ttl(ip);
		return deliver(start, server, destination, index, length);
	}
	if (protocol == bpf_htons(ETH_P_IPV6)) {
		struct ipv6 *ip = l3;

		ports = (void *)(ip + 1);
		if ((void *)(ports + 1) > end)
			goto director;
		if (!may_be_vip(fold6(ip->destination)))
			return VERDICT_PASS;
		length = bpf_ntohs(ip->payload_length) + sizeof(*ip);
		if (ip->flow_version >> 4 != 6 || !is_balanced(ip->next_header) ||
		    ip->hop_limit <= 1 || is_martian6(ip->source, ip->destination) ||
		    ports->source == bpf_htons(FTP_DATA_PORT) || length < PLAIN_LENGTH + 20 ||
		    length > end - l3)
			goto director;
		place = find_port6(pair(ip->destination), pair(ip->destination + 2),
				   PORT_WORD(ports->destination, ip->next_header));
		if (!place) {
			if (is_deep(fold6(ip->destination)))
				goto director;
			return VERDICT_PASS;
		}
		service = service_at(place);
		if (!service)
			goto director;
		decision = *(volatile u64 *)&service->decision;
		if (is_other(ctx, start, service, decision, tags, tag))
			goto director;
		index = steady_server(end, ip->source, ports, place, decision,
				      ip->next_header == IPPROTO_TCP, 6);
		server = server_at(index);
		if (!server)
			goto director;
		destination = *(volatile u64 *)server->mac;
		if (!is_steady(server, destination) || length > server->mtu)
			goto director;
		ip->hop_limit--;
		return deliver(start, server, destination, index, length);
	}
	if (!is_vlan(protocol))
		return VERDICT_PASS;
director:
	tail_call(ctx, MAP(programs), 0);
	return VERDICT_PASS; /* no director there: IPVS has it */
}
