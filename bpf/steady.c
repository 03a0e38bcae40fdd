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
static __always_inline u32 is_other(context *ctx, struct service *service, u64 decision, u32 tags,
				    u32 tag)
{
	struct ethernet *ethernet = start_of(ctx);
	u32 differs = 0;

	if ((void *)(ethernet + 1) > end_of(ctx))
		return 1;
#ifdef STRICT_ALIGNMENT
	differs |= !same_mac(ethernet->destination, service->mac);
#else
	differs |= *(u32 *)ethernet->destination ^ *(u32 *)service->mac;
	differs |= *(u16 *)(ethernet->destination + 4) ^ *(u16 *)(service->mac + 4);
#endif
	differs |= ctx->ingress_ifindex ^ service->ifindex;
	differs |= tags ^ service->tags;
	differs |= tag ^ service->tag[0];
	differs |= service->has_peer;
	differs |= (decision >> 32 & SERVICE_ACTIVE) ^ SERVICE_ACTIVE;
	return differs;
}

/* The server of a flow that IPVS need not see, or one that is none. */
static __always_inline u32 steady_flow(context *ctx, struct flow *flow, u64 decision,
				       struct ports *ports, u32 is_tcp, u32 version)
{
	struct learned *learned = find_learned(flow, decision, version);
	struct tcp_start *tcp = (void *)ports;

	if (!learned || learned->state != LEARNED_OPEN ||
	    (s32)(now() - learned->refreshed) >= REFRESH_TICKS)
		return NOBODY;
	if (is_tcp &&
	    ((void *)(tcp + 1) > end_of(ctx) || tcp->flags & (TCP_SYN | TCP_FIN | TCP_RST)))
		return NOBODY;
	return learned->server;
}

/*
 * The server of a packet, or one that is none. A slot that is tracked: its old server has what is
 * not a SYN and has no record; the rest is the director's.
 */
static __always_inline u32 steady_server(context *ctx, struct flow *flow, u64 decision,
					 struct ports *ports, u32 is_tcp, u32 version)
{
	u32 value = bpf_ntohl(fold6(flow->client)), word, *found;
	struct tcp_start *tcp = (void *)ports;

	if (decision >> 32 & SERVICE_LEARNED)
		return steady_flow(ctx, flow, decision, ports, is_tcp, version);
	if (decision >> 32 & SERVICE_MH_PORT)
		value += bpf_ntohs(flow->client_port);
	found = find_slot((u32)decision + mh_slot(value));
	if (!found)
		return NOBODY;
	word = *(volatile u32 *)found;
	if (!(word & (SLOT_TRACKED | SLOT_ANTICIPATE)))
		return word & SLOT_CURRENT; /* FALLBACK and EMPTY are no servers */
	if (!is_tcp || (void *)(tcp + 1) > end_of(ctx) || tcp->flags & TCP_SYN ||
	    decision >> 32 & SERVICE_SETTLING || map_lookup(MAP(records), flow))
		return NOBODY;
	return word >> SLOT_OLD_SHIFT;
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
	u32 tags = 0, tag = 0, index, length, *found;
	struct flow flow = {};
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
		struct service_key4 key = {};

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
		key.address = ip->destination;
		key.port = ports->destination;
		key.protocol = ip->protocol;
		found = map_lookup(MAP(services4), &key);
		service = found ? map_lookup(MAP(services), found) : NULL;
		if (!service)
			goto director;
		decision = *(volatile u64 *)&service->decision;
		if (is_other(ctx, service, decision, tags, tag))
			goto director;
		flow.client[0] = ip->source;
		flow.client_port = ports->source;
		flow.port = ports->destination;
		flow.service = *found;
		index = steady_server(ctx, &flow, decision, ports, ip->protocol == IPPROTO_TCP, 4);
		server = map_lookup(MAP(servers), &index);
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
		struct service_key6 key = {};

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
		__builtin_memcpy(key.address, ip->destination, sizeof(key.address));
		key.port = ports->destination;
		key.protocol = ip->next_header;
		found = map_lookup(MAP(services6), &key);
		service = found ? map_lookup(MAP(services), found) : NULL;
		if (!service)
			goto director;
		decision = *(volatile u64 *)&service->decision;
		if (is_other(ctx, service, decision, tags, tag))
			goto director;
		__builtin_memcpy(flow.client, ip->source, sizeof(flow.client));
		flow.client_port = ports->source;
		flow.port = ports->destination;
		flow.service = *found;
		index = steady_server(ctx, &flow, decision, ports, ip->next_header == IPPROTO_TCP,
				      6);
		server = map_lookup(MAP(servers), &index);
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
