"""Links, routes and neighbours as rtnetlink writes them, and requests to it; pure.

Sources: rtnetlink(7), include/uapi/linux/rtnetlink.h, neighbour.h and if_link.h,
net/core/neighbour.c (neigh_add, neigh_delete). Requests are packed here, many to a message;
pyroute2 reads the answers.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from pyroute2.netlink import NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST
from pyroute2.netlink.rtnl import (
    RTM_DELNEIGH,
    RTM_GETLINK,
    RTM_GETNEIGH,
    RTM_GETROUTE,
    RTM_NEWNEIGH,
)
from pyroute2.netlink.rtnl.ndmsg import (
    NTF_EXT_LEARNED,
    NTF_USE,
    NUD_DELAY,
    NUD_NOARP,
    NUD_PERMANENT,
    NUD_PROBE,
    NUD_REACHABLE,
    NUD_STALE,
)

from lbdr.datapath.notices import is_up
from lbdr.model import Address, family

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

NeighbourKey: TypeAlias = tuple[int, Address]
"""What no two neighbour entries share: the device's index, and the address."""

OWNER = 111
"""The protocol that marks lbdr's neighbour entries (NDA_PROTOCOL; rtnetlink.h names none so)."""

NTF_EXT_MANAGED = 0x1  # Linux 5.16; pyroute2 0.9.7 has no name for it
NUD_VALID = NUD_PERMANENT | NUD_NOARP | NUD_REACHABLE | NUD_PROBE | NUD_STALE | NUD_DELAY
_FIXED = NUD_PERMANENT | NUD_NOARP

_ARPHRD_ETHER = 1
_IFF_NOARP = 0x80
_IFF_LOOPBACK = 0x8
_SHARING = frozenset({"macvlan", "macvtap", "ipvlan", "ipvtap"})
_RTN_UNICAST, _RTN_LOCAL = 1, 2

_HEADER = struct.Struct("=IHHII")
_LINK_DUMP = struct.pack("=BxHiIIHHI", 0, 0, 0, 0, 0, 8, 29, 8)  # IFLA_EXT_MASK: no statistics
_NEIGHBOUR = struct.Struct("=B3xiHBB")
_NEIGHBOUR_DUMP = _NEIGHBOUR.pack(0, 0, 0, 0, 0)
_NDA_DST, _NDA_PROTOCOL, _NDA_FLAGS_EXT, _RTA_DST = 1, 12, 15, 1


@dataclass(frozen=True, slots=True)
class Link:
    """A network device.

    Args:
        index: in this namespace.
        name: as `ip link` shows it.
        mac: empty where the device is not Ethernet.
        mtu: bytes of an IP packet.
        up: up, with carrier.
        resolves: Ethernet, and with ARP and neighbour discovery.
        lower: index of the device below a VLAN device; None for any other device, and where it is
            in another namespace.
        tag: TPID and VLAN ID of a VLAN device.
        loopback: it is lo.
        port: of a bridge, bond or another device that takes its frames.
        shared: index of the device whose frames a macvlan or ipvlan takes; None for any other.
    """

    index: int
    name: str
    mac: str = ""
    mtu: int = 1500
    up: bool = True
    resolves: bool = True
    lower: int | None = None
    tag: tuple[int, int] | None = None
    loopback: bool = False
    port: bool = False
    shared: int | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """Where the kernel sends packets to an address.

    Args:
        ifindex: of the egress device; loopback's where the address is local.
        next_hop: who is on the link: the gateway, which IPv6 may name for IPv4 (RFC 5549), or the
            address itself.
        local: the address is this host's own.
        mtu: the route's own, or what path MTU discovery learned (RTAX_MTU); 0 for none.
        plain: packets leave as they are; a route may also encapsulate them (RTA_ENCAP).
    """

    ifindex: int
    next_hop: Address
    local: bool = False
    mtu: int = 0
    plain: bool = True


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An entry of the neighbour table.

    Args:
        ifindex: of its device.
        address: of IP.
        mac: None while the kernel does not know it.
        managed: the kernel keeps it resolved (NTF_EXT_MANAGED).
        fixed: permanent, needing no resolution, or learned by another daemon (NTF_EXT_LEARNED).
        protocol: who made it (NDA_PROTOCOL); 0 for nobody in particular.
    """

    ifindex: int
    address: Address
    mac: str | None = None
    managed: bool = False
    fixed: bool = False
    protocol: int = 0

    @property
    def key(self) -> NeighbourKey:
        """Its device and address."""
        return self.ifindex, self.address

    @property
    def ours(self) -> bool:
        """Whether lbdr added it."""
        return self.managed and self.protocol == OWNER


@dataclass(frozen=True, slots=True)
class Request:
    """A request to rtnetlink.

    Args:
        command: what an administrator would have typed.
        kind: RTM_*.
        flags: NLM_F_*, beyond NLM_F_REQUEST.
        body: what follows the netlink header.
    """

    command: str
    kind: int
    flags: int
    body: bytes = field(repr=False)


LIST_LINKS = Request("ip link show", RTM_GETLINK, NLM_F_DUMP, _LINK_DUMP)
LIST_NEIGHBOURS = Request("ip neigh show nud all", RTM_GETNEIGH, NLM_F_DUMP, _NEIGHBOUR_DUMP)


def link_of(message: Any) -> Link:
    """The device that a link message tells of."""
    ethernet = message["ifi_type"] == _ARPHRD_ETHER
    lower = tag = None
    kind = message.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND")
    here = message.get_attr("IFLA_LINK_NETNSID") is None
    if kind == "vlan":
        data = message.get_nested("IFLA_LINKINFO", "IFLA_INFO_DATA")
        tag = (data.get_attr("IFLA_VLAN_PROTOCOL"), data.get_attr("IFLA_VLAN_ID"))
        if here:
            lower = message.get_attr("IFLA_LINK")
    return Link(
        index=message["index"],
        name=message.get_attr("IFLA_IFNAME"),
        mac=message.get_attr("IFLA_ADDRESS") or "" if ethernet else "",
        mtu=message.get_attr("IFLA_MTU"),
        up=is_up(message),
        resolves=ethernet and not message["flags"] & _IFF_NOARP,
        lower=lower,
        tag=tag,
        loopback=bool(message["flags"] & _IFF_LOOPBACK),
        port=bool(message.get_attr("IFLA_MASTER")),
        shared=message.get_attr("IFLA_LINK") if here and kind in _SHARING else None,
    )


def neighbour_of(message: Any) -> Neighbour | None:
    """The entry that a neighbour message tells of; None for a bridge's, which names no address."""
    if message["family"] not in (socket.AF_INET, socket.AF_INET6):
        return None
    return Neighbour(
        ifindex=message["ifindex"],
        address=ipaddress.ip_address(message.get_attr("NDA_DST")),
        mac=message.get_attr("NDA_LLADDR") if message["state"] & NUD_VALID else None,
        managed=bool((message.get_attr("NDA_FLAGS_EXT") or 0) & NTF_EXT_MANAGED),
        fixed=bool(message["state"] & _FIXED or message["flags"] & NTF_EXT_LEARNED),
        protocol=message.get_attr("NDA_PROTOCOL") or 0,
    )


def route_of(address: Address, message: Any) -> Route | None:
    """The route that the kernel chose for an address; None where it leads to no one host."""
    if message["type"] not in (_RTN_UNICAST, _RTN_LOCAL):
        return None
    via = message.get_attr("RTA_VIA")
    gateway = message.get_attr("RTA_GATEWAY") or (via and via["addr"])
    metrics = message.get_attr("RTA_METRICS")
    return Route(
        ifindex=message.get_attr("RTA_OIF"),
        next_hop=ipaddress.ip_address(gateway) if gateway else address,
        local=message["type"] == _RTN_LOCAL,
        mtu=(metrics and metrics.get_attr("RTAX_MTU")) or 0,
        plain=message.get_attr("RTA_ENCAP_TYPE") is None,
    )


def destination(message: Any) -> Network:
    """The network that a route message is about."""
    anywhere = "::" if message["family"] == socket.AF_INET6 else "0.0.0.0"  # noqa: S104
    address = message.get_attr("RTA_DST") or anywhere
    return ipaddress.ip_network(f"{address}/{message['dst_len']}", strict=False)


def manage(key: NeighbourKey, name: str, *, there: bool) -> Request:
    """Have the kernel keep a neighbour resolved, as lbdr's own entry.

    A kernel before 5.16 makes an entry that it does not resolve, and says nothing. Of a permanent
    entry the kernel would forget that it is permanent: not to be asked for one.

    Args:
        key: device and address.
        name: the device's.
        there: the kernel has an entry already; else one that appears meanwhile is EEXIST.
    """
    owned = struct.pack("=HHB3xHHI", 5, _NDA_PROTOCOL, OWNER, 8, _NDA_FLAGS_EXT, NTF_EXT_MANAGED)
    command = f"ip neigh {'replace' if there else 'add'} {key[1]} dev {name}"
    flags = NLM_F_ACK | NLM_F_CREATE | (0 if there else NLM_F_EXCL)
    return Request(
        f"{command} managed protocol {OWNER}", RTM_NEWNEIGH, flags, _entry(key, 0) + owned
    )


def use(key: NeighbourKey, name: str) -> Request:
    """Have the kernel resolve or confirm a neighbour now, as for a packet of its own (NTF_USE)."""
    command = f"ip neigh replace {key[1]} dev {name} use"
    return Request(command, RTM_NEWNEIGH, NLM_F_ACK | NLM_F_CREATE, _entry(key, NTF_USE))


def delete(key: NeighbourKey, name: str) -> Request:
    """Delete a neighbour entry."""
    return Request(f"ip neigh del {key[1]} dev {name}", RTM_DELNEIGH, NLM_F_ACK, _entry(key, 0))


def get_neighbour(key: NeighbourKey, name: str) -> Request:
    """Ask for one neighbour; ENOENT where there is none (Linux 5.0, commit 82cbb5c631a0)."""
    return Request(f"ip neigh get {key[1]} dev {name}", RTM_GETNEIGH, 0, _entry(key, 0))


def get_route(address: Address) -> Request:
    """Ask where packets to an address go."""
    fixed = struct.pack("=BB10x", family(address.version), address.max_prefixlen)
    attribute = struct.pack("=HH", 4 + len(address.packed), _RTA_DST) + address.packed
    return Request(f"ip route get {address}", RTM_GETROUTE, 0, fixed + attribute)


def pack(request: Request, number: int) -> bytes:
    """A request as a message, whose answers bear its number."""
    length = _HEADER.size + len(request.body)
    flags = NLM_F_REQUEST | request.flags
    return _HEADER.pack(length, request.kind, flags, number, 0) + request.body


def _entry(key: NeighbourKey, flags: int) -> bytes:
    ifindex, address = key
    fixed = _NEIGHBOUR.pack(family(address.version), ifindex, 0, flags, 0)
    return fixed + struct.pack("=HH", 4 + len(address.packed), _NDA_DST) + address.packed
