"""Frames for the director's tests, built by scapy; what they become; and what is expected of them.

Nothing here comes from the programs: a forwarded frame is taken apart and put together anew, and
its checksum is computed over the whole header.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Raw
from scapy.utils import checksum

from lbdr.datapath.bpf_wire import Verdict
from lbdr.datapath.xdp_layout import Place, Reason, ServiceFlag
from lbdr.model import Protocol
from tests.fastpath import LO, OWN, Engine, World, slot

SENDER = "02:00:00:00:00:99"
SERVER_MAC = "02:00:00:00:01:05"
CLIENT, CLIENT6 = "198.51.100.7", "2001:db8:1::7"
VIP, VIP6 = ip_address("192.0.2.10"), ip_address("2001:db8::10")
PORT, CLIENT_PORT = 80, 40000
SERVICE, SERVER = 1, 5
SLOTS = 4093
ACTIVE, ALONE = ServiceFlag.ACTIVE, ServiceFlag.ACTIVE | ServiceFlag.ALONE


def ether(payload: Any, **fields: Any) -> bytes:
    """A frame from SENDER to this host, unless told otherwise."""
    return bytes(Ether(**{"src": SENDER, "dst": OWN, **fields}) / payload)


def ip4(payload: Any, mac: str = OWN, tags: Any = None, **fields: Any) -> bytes:
    """An IPv4 packet from the client to the VIP, perhaps with VLAN tags before it."""
    packet = IP(**{"src": CLIENT, "dst": str(VIP), **fields}) / payload
    return ether(packet if tags is None else tags / packet, dst=mac)


def ip6(payload: Any, mac: str = OWN, tags: Any = None, **fields: Any) -> bytes:
    """An IPv6 packet from the client to the VIP, perhaps with VLAN tags before it."""
    packet = IPv6(**{"src": CLIENT6, "dst": str(VIP6), **fields}) / payload
    return ether(packet if tags is None else tags / packet, dst=mac)


def segment(flags: str = "A", **fields: Any) -> Any:
    """A TCP segment with two bytes of data."""
    ports = {"sport": CLIENT_PORT, "dport": PORT}
    return TCP(**{**ports, "flags": flags, **fields}) / Raw(b"hi")


def datagram(**fields: Any) -> Any:
    """A UDP datagram with two bytes of data."""
    return UDP(**{"sport": CLIENT_PORT, "dport": PORT, **fields}) / Raw(b"hi")


def answer(size: int = 8, *, payload: Any = None, **fields: Any) -> bytes:
    """What an ICMP error quotes of a packet from the VIP to the client.

    Args:
        size: bytes of what follows the header; RFC 792 is sure of 8.
        payload: another one than a TCP segment's.
        fields: of the quoted IPv4 header.
    """
    inner = TCP(sport=PORT, dport=CLIENT_PORT, flags="A") if payload is None else payload
    header = IP(**{"src": str(VIP), "dst": CLIENT, **fields})
    whole = bytes(header / inner)
    return whole[: (whole[0] & 15) * 4 + size]


def answer6(size: int = 8, *, payload: Any = None, **fields: Any) -> bytes:
    """What an ICMPv6 error quotes of a packet from the VIP to the client."""
    inner = TCP(sport=PORT, dport=CLIENT_PORT, flags="A") if payload is None else payload
    return bytes(IPv6(**{"src": str(VIP6), "dst": CLIENT6, **fields}) / inner)[: 40 + size]


def icmp_error(quote: bytes, kind: int = 3, code: int = 4, **fields: Any) -> bytes:
    """An ICMP error from a router to the VIP."""
    error = ICMP(type=kind, code=code) / Raw(quote)
    return ip4(error, **{"src": "203.0.113.1", **fields})


def icmp6_error(quote: bytes, kind: int = 2, code: int = 0, **fields: Any) -> bytes:
    """An ICMPv6 error from a router to the VIP; packet too big, unless told otherwise."""
    header = bytes([kind, code, 0, 0]) + (1280).to_bytes(4, "big")
    return ip6(Raw(header + quote), **{"src": "2001:db8:9::1", "nh": 58, **fields})


def tag(vid: int, priority: int = 0, *, outer: bool = False, dei: int = 0) -> Any:
    """An 802.1Q tag, or an 802.1ad one that stands outside."""
    return (Dot1AD if outer else Dot1Q)(vlan=vid, prio=priority, dei=dei)


def forwarded(
    frame: bytes,
    mac: str = SERVER_MAC,
    source: str = OWN,
    tags: tuple[tuple[int, int], ...] | None = None,
) -> bytes:
    """What becomes of a frame that is forwarded.

    Args:
        frame: as it came in.
        mac: the server's.
        source: this host's on the device towards the server.
        tags: (TPID, TCI) of each tag then, the outermost first; None for the same ones.
    """
    place = 12
    while frame[place : place + 2] in {b"\x81\x00", b"\x88\xa8"}:
        place += 4
    there = frame[12:place]
    if tags is not None:
        there = b"".join(tpid.to_bytes(2, "big") + tci.to_bytes(2, "big") for tpid, tci in tags)
    packet = bytearray(frame[place + 2 :])
    if packet[0] >> 4 == 4:
        packet[8] -= 1
        size = (packet[0] & 15) * 4
        packet[10:12] = b"\0\0"
        packet[10:12] = checksum(bytes(packet[:size])).to_bytes(2, "big")
    else:
        packet[7] -= 1
    macs = bytes.fromhex((mac + source).replace(":", ""))
    return macs + there + frame[place : place + 2] + bytes(packet)


@dataclass(frozen=True, slots=True)
class Case:
    """A frame for the standard service, and what is to become of it.

    Args:
        name: of the test.
        frame: that comes in.
        reason: why it is not forwarded; None for no reason, counted nowhere.
        sent: it is forwarded to SERVER.
        dropped: it is dropped; it passes where it is neither sent nor dropped.
        service: FastService's fields.
        server: FastServer's fields.
        flags: the service's.
        out: the frame that leaves; None for as `forwarded` has it.
        mark: that tc ingress sets.
        counted: the service where the reason is counted.
        setup: what else is there.
        engines: who is asked.
    """

    name: str
    frame: bytes
    reason: Reason | None = None
    sent: bool = False
    dropped: bool = False
    service: Mapping[str, Any] = field(default_factory=dict)
    server: Mapping[str, Any] = field(default_factory=dict)
    flags: ServiceFlag = ACTIVE
    out: bytes | None = None
    mark: int = 0
    counted: int = SERVICE
    setup: Callable[[World], None] | None = None
    engines: tuple[Engine, ...] = tuple(Engine)


def standard(world: World, case: Case) -> None:
    """One service, TCP and UDP, IPv4 and IPv6, all of whose slots are SERVER's."""
    vip = case.service.get("vip", Place(LO, OWN))
    world.server(SERVER, vip=vip, **{"mac": SERVER_MAC, "out": vip, **case.server})
    world.table(0, [slot(SERVER)] * SLOTS)
    world.service(SERVICE, VIP, PORT, **{"flags": case.flags, **case.service})
    for address in (VIP, VIP6):
        for protocol in (Protocol.TCP, Protocol.UDP):
            world.key(SERVICE, address, PORT, protocol)
    if case.setup:
        case.setup(world)


def check(world: World, engine: Engine, case: Case) -> None:
    """Ask an engine, and compare verdict, bytes and counters."""
    standard(world, case)
    outcome = world.run(engine, case.frame)
    out = case.frame
    expected = Verdict.DROP if case.dropped else Verdict.PASS
    if case.sent:
        there = case.server.get("out", case.service.get("vip", Place(LO, OWN)))
        vip = case.service.get("vip", Place(LO, OWN))
        other = engine is Engine.TC or there.ifindex != vip.ifindex
        expected = Verdict.REDIRECT if other else Verdict.TX
        mac = case.server.get("mac", SERVER_MAC)
        out = case.out or forwarded(case.frame, mac, source=there.mac)
    assert outcome.verdict is expected
    assert outcome.data.hex() == out.hex()
    tc = engine is Engine.TC
    assert outcome.mark == (case.mark if tc else 0)
    assert world.reasons(case.counted, tc=tc) == ({case.reason: 1} if case.reason else {})
    assert world.reasons(case.counted, tc=not tc) == {}
    packets, octets = world.served(SERVER)
    assert packets == case.sent
    assert octets == (ip_length(case.frame) if case.sent else 0)


def ip_length(frame: bytes) -> int:
    """Bytes of the IP packet in a frame, as its header says."""
    place = 14
    while frame[place - 2 : place] in {b"\x81\x00", b"\x88\xa8"}:
        place += 4
    if frame[place] >> 4 == 4:
        return int.from_bytes(frame[place + 2 : place + 4], "big")
    return int.from_bytes(frame[place + 4 : place + 6], "big") + 40


def changed(frame: bytes, place: int, value: bytes) -> bytes:
    """A frame with other bytes at a place of its IP packet (untagged), checksums left alone."""
    at = 14 + place
    return frame[:at] + value + frame[at + len(value) :]
