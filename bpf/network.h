/* SPDX-License-Identifier: GPL-2.0 */
/* Headers on the wire (RFC 791, 792, 4443, 8200, IEEE 802.3), and helpers for their byte order. */
#ifndef LBDR_NETWORK_H
#define LBDR_NETWORK_H

#define ETH_P_IP 0x0800
#define ETH_P_8021Q 0x8100
#define ETH_P_IPV6 0x86dd
#define ETH_P_8021AD 0x88a8

#define IPPROTO_ICMP 1
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IPPROTO_ICMPV6 58

/* Extension headers (RFC 8200) */
#define IPPROTO_HOPOPTS 0
#define IPPROTO_ROUTING 43
#define IPPROTO_FRAGMENT 44
#define IPPROTO_DSTOPTS 60

#define ICMP_DEST_UNREACH 3
#define ICMP_SOURCE_QUENCH 4
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETERPROB 12
#define ICMPV6_DEST_UNREACH 1
#define ICMPV6_PARAMPROB 4

struct ethernet {
	u8 destination[6];
	u8 source[6];
	__be16 protocol;
} __attribute__((packed));

struct vlan {
	__be16 tci;
	__be16 protocol; /* of what follows */
};

struct ipv4 {
	u8 version_ihl;
	u8 tos;
	__be16 total_length;
	__be16 id;
	__be16 fragment;
	u8 ttl;
	u8 protocol;
	__be16 checksum;
	__be32 source;
	__be32 destination;
};

struct ipv6 {
	u8 flow_version;
	u8 flow[3];
	__be16 payload_length;
	u8 next_header;
	u8 hop_limit;
	__be32 source[4];
	__be32 destination[4];
};

struct extension {
	u8 next;
	u8 length; /* in units of 8 bytes, without the first one */
	__be16 fragment;
	__be32 rest;
};

struct icmp {
	u8 type;
	u8 code;
	__be16 checksum;
	__be32 rest;
};

struct ports {
	__be16 source;
	__be16 destination;
	__be32 rest; /* the 8 bytes that an ICMP error is sure to quote */
};

struct tcp_start {
	__be16 source;
	__be16 destination;
	__be32 sequence;
	__be32 acknowledged;
	u8 offset;
	u8 flags;
};

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

#endif
