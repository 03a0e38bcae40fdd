"""ARP and neighbour discovery frames: bytes to say and to understand, no I/O.

Sources: RFC 826 and RFC 5227 (ARP), RFC 4861 and RFC 4862 (neighbour discovery), RFC 2464 and
RFC 1112 section 6.4 (Ethernet multicast). Frames come and go without VLAN tags: a packet socket
gives them out of band. A frame that a standard tells to ignore is parsed to None, never an error.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address, IPv6Network

BROADCAST = "ff:ff:ff:ff:ff:ff"
NO_MAC = "00:00:00:00:00:00"
ETHERTYPE_ARP = 0x0806
ETHERTYPE_IPV6 = 0x86DD

_ETHERNET = struct.Struct("!6s6sH")
_ARP = struct.Struct("!HHBBH6s4s6s4s")
_IPV6 = struct.Struct("!IHBB16s16s")
_NEIGHBOUR = struct.Struct("!BBHI16s")  # type, code, checksum, flags, target
_ARP_FIXED = (1, 0x0800, 6, 4)  # Ethernet, IPv4, and the lengths of their addresses

_ICMPV6 = 58
_HOP_LIMIT = 255  # proves that no router passed it on (RFC 4861 section 3.1)
_UNSPECIFIED = IPv6Address("::")
_ALL_NODES = IPv6Address("ff02::1")
_SOLICITED_NODE = IPv6Network("ff02::1:ff00:0/104")
_SOURCE_LINK_LAYER, _TARGET_LINK_LAYER = 1, 2
_ROUTER, _SOLICITED, _OVERRIDE = 1 << 31, 1 << 30, 1 << 29


class ArpOperation(IntEnum):
    """What an ARP frame says."""

    REQUEST = 1
    REPLY = 2


class NeighbourMessage(IntEnum):
    """What a neighbour discovery frame says: its ICMPv6 type."""

    SOLICITATION = 135
    ADVERTISEMENT = 136


_OPTION = {
    NeighbourMessage.SOLICITATION: _SOURCE_LINK_LAYER,
    NeighbourMessage.ADVERTISEMENT: _TARGET_LINK_LAYER,
}


@dataclass(frozen=True, slots=True)
class ArpFrame:
    """An ARP frame for IPv4 over Ethernet.

    Args:
        source: MAC that the frame came from.
        destination: MAC that it went to.
        operation: request or reply.
        sender_mac: the mapping that it tells, with sender.
        sender: 0.0.0.0 in a probe.
        target_mac: means nothing in a request.
        target: the address in question.
    """

    source: str
    destination: str
    operation: ArpOperation
    sender_mac: str
    sender: IPv4Address
    target_mac: str
    target: IPv4Address

    def encode(self) -> bytes:
        """Its bytes, without padding."""
        sender = (_mac_bytes(self.sender_mac), self.sender.packed)
        target = (_mac_bytes(self.target_mac), self.target.packed)
        arp = _ARP.pack(*_ARP_FIXED, self.operation, *sender, *target)
        return _ethernet(self.destination, self.source, ETHERTYPE_ARP) + arp


@dataclass(frozen=True, slots=True)
class NeighbourFrame:
    """A neighbour solicitation or advertisement.

    Args:
        source: MAC that the frame came from.
        destination: MAC that it went to.
        message: solicitation or advertisement.
        sender: `::` where a host asks whether the target is taken (DAD).
        receiver: the address that it was sent to.
        target: the address in question.
        mac: that of the link-layer address option; empty without one.
        solicited: an advertisement answers a solicitation.
        override: an advertisement replaces what caches hold.
        router: an advertisement comes from a router.
    """

    source: str
    destination: str
    message: NeighbourMessage
    sender: IPv6Address
    receiver: IPv6Address
    target: IPv6Address
    mac: str = ""
    solicited: bool = False
    override: bool = False
    router: bool = False

    def encode(self) -> bytes:
        """Its bytes, with hop limit and checksum."""
        flags = self.router << 31 | self.solicited << 30 | self.override << 29
        option = _option(_OPTION[self.message], self.mac) if self.mac else b""

        def packet(checksum: int) -> bytes:
            fixed = _NEIGHBOUR.pack(self.message, 0, checksum, flags, self.target.packed)
            return fixed + option

        body = packet(_checksum(self.sender, self.receiver, packet(0)))
        ends = (self.sender.packed, self.receiver.packed)
        header = _IPV6.pack(6 << 28, len(body), _ICMPV6, _HOP_LIMIT, *ends)
        return _ethernet(self.destination, self.source, ETHERTYPE_IPV6) + header + body


# --- saying -------------------------------------------------------------------------------------


def arp_request(mac: str, sender: IPv4Address, target: IPv4Address) -> bytes:
    """Who has the target? Tells everybody the sender's own mapping too."""
    return ArpFrame(mac, BROADCAST, ArpOperation.REQUEST, mac, sender, NO_MAC, target).encode()


def arp_probe(mac: str, target: IPv4Address) -> bytes:
    """Is the target taken? Leaves every cache alone (RFC 5227 section 2.1.1)."""
    return arp_request(mac, IPv4Address(0), target)


def arp_reply(mac: str, sender: IPv4Address, target_mac: str, target: IPv4Address) -> bytes:
    """The sender's mapping, told to one host."""
    frame = ArpFrame(mac, target_mac, ArpOperation.REPLY, mac, sender, target_mac, target)
    return frame.encode()


def gratuitous_arp(mac: str, address: IPv4Address) -> bytes:
    """An announcement that an address is here now.

    A request that asks for the sender's own address (RFC 5227 section 3), as `arping -U` sends:
    caches that hold another mapping are updated, also where unsolicited replies are ignored.
    """
    return arp_request(mac, address, address)


def neighbour_solicitation(mac: str, sender: IPv6Address, target: IPv6Address) -> bytes:
    """Who has the target? Sent to all that might."""
    group = solicited_node(target)
    return NeighbourFrame(
        source=mac,
        destination=multicast_mac(group),
        message=NeighbourMessage.SOLICITATION,
        sender=sender,
        receiver=group,
        target=target,
        mac="" if sender == _UNSPECIFIED else mac,
    ).encode()


def dad_solicitation(mac: str, target: IPv6Address) -> bytes:
    """Is the target taken? Leaves every cache alone (RFC 4862 section 5.4.2)."""
    return neighbour_solicitation(mac, _UNSPECIFIED, target)


def unsolicited_advertisement(mac: str, address: IPv6Address) -> bytes:
    """An announcement that an address is here now, whatever caches hold (RFC 4861 section 7.2.6).

    The router flag stays clear. A host that held this address as its router's would drop that
    router; a VIP is nobody's router.
    """
    return NeighbourFrame(
        source=mac,
        destination=multicast_mac(_ALL_NODES),
        message=NeighbourMessage.ADVERTISEMENT,
        sender=address,
        receiver=_ALL_NODES,
        target=address,
        mac=mac,
        override=True,
    ).encode()


def solicited_node(address: IPv6Address) -> IPv6Address:
    """The multicast group of those that may have an address (RFC 4291 section 2.7.1)."""
    return IPv6Address(int(_SOLICITED_NODE.network_address) | int(address) & 0xFFFFFF)


def multicast_mac(group: IPv6Address) -> str:
    """The Ethernet address of an IPv6 multicast group (RFC 2464 section 7)."""
    return _mac_text(b"\x33\x33" + group.packed[12:])


# --- understanding ------------------------------------------------------------------------------


def parse_arp(frame: bytes) -> ArpFrame | None:
    """An ARP request or reply for IPv4 over Ethernet; None for anything else."""
    if len(frame) < _ETHERNET.size + _ARP.size:
        return None
    destination, source, ethertype = _ETHERNET.unpack_from(frame)
    *fixed, number, sender_mac, sender, target_mac, target = _ARP.unpack_from(frame, _ETHERNET.size)
    if ethertype != ETHERTYPE_ARP or tuple(fixed) != _ARP_FIXED:
        return None
    if number not in (ArpOperation.REQUEST, ArpOperation.REPLY):
        return None
    return ArpFrame(
        source=_mac_text(source),
        destination=_mac_text(destination),
        operation=ArpOperation(number),
        sender_mac=_mac_text(sender_mac),
        sender=IPv4Address(sender),
        target_mac=_mac_text(target_mac),
        target=IPv4Address(target),
    )


def parse_neighbour(frame: bytes) -> NeighbourFrame | None:
    """A valid solicitation or advertisement (RFC 4861 section 7.1); None for anything else."""
    start = _ETHERNET.size + _IPV6.size
    if len(frame) < start + _NEIGHBOUR.size:
        return None
    destination, source, ethertype = _ETHERNET.unpack_from(frame)
    first_word, length, header, hop_limit, *ends = _IPV6.unpack_from(frame, _ETHERNET.size)
    packet = frame[start : start + length]  # what follows pads the frame to Ethernet's minimum
    told = (ethertype, first_word >> 28, header, hop_limit, len(packet))
    if told != (ETHERTYPE_IPV6, 6, _ICMPV6, _HOP_LIMIT, length) or length < _NEIGHBOUR.size:
        return None
    kind, code, _, flags, target = _NEIGHBOUR.unpack_from(packet)
    options = _options(packet[_NEIGHBOUR.size :])
    if kind not in _OPTION or code or options is None:
        return None
    message = NeighbourMessage(kind)
    if message is NeighbourMessage.SOLICITATION:
        flags = 0  # reserved there
    parsed = NeighbourFrame(
        source=_mac_text(source),
        destination=_mac_text(destination),
        message=message,
        sender=IPv6Address(ends[0]),
        receiver=IPv6Address(ends[1]),
        target=IPv6Address(target),
        mac=options.get(_OPTION[message], ""),
        solicited=bool(flags & _SOLICITED),
        override=bool(flags & _OVERRIDE),
        router=bool(flags & _ROUTER),
    )
    wrong = _checksum(parsed.sender, parsed.receiver, packet)
    return None if wrong or not _consistent(parsed) else parsed


def _consistent(frame: NeighbourFrame) -> bool:
    """Whether the parts of a message may stand together (RFC 4861 sections 7.1.1 and 7.1.2)."""
    if frame.target.is_multicast:
        return False
    if frame.message is NeighbourMessage.ADVERTISEMENT:
        return not (frame.solicited and frame.receiver.is_multicast)
    return frame.sender != _UNSPECIFIED or (not frame.mac and frame.receiver in _SOLICITED_NODE)


# --- bytes --------------------------------------------------------------------------------------


def _ethernet(destination: str, source: str, ethertype: int) -> bytes:
    return _ETHERNET.pack(_mac_bytes(destination), _mac_bytes(source), ethertype)


def _option(kind: int, mac: str) -> bytes:
    return struct.pack("!BB6s", kind, 1, _mac_bytes(mac))


def _options(data: bytes) -> dict[int, str] | None:
    """The link-layer address options by kind; None where an option's length is wrong."""
    found: dict[int, str] = {}
    while data:
        if len(data) < 2 or not 0 < data[1] * 8 <= len(data):
            return None
        if data[0] in (_SOURCE_LINK_LAYER, _TARGET_LINK_LAYER) and data[1] == 1:
            found.setdefault(data[0], _mac_text(data[2:8]))
        data = data[data[1] * 8 :]
    return found


def _checksum(sender: IPv6Address, receiver: IPv6Address, packet: bytes) -> int:
    """ICMPv6's checksum (RFC 4443 section 2.3); 0 where packet holds a right one already."""
    pseudo = sender.packed + receiver.packed + struct.pack("!II", len(packet), _ICMPV6)
    data = pseudo + packet + bytes(len(packet) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _mac_bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def _mac_text(mac: bytes) -> str:
    return mac.hex(":")
