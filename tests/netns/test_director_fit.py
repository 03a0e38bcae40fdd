"""The director: what is for a service and cannot go the fast way; and what hops and sums become."""

from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.inet import UDP, IPOption_NOP, IPOption_RR
from scapy.layers.inet6 import (
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.packet import Raw
from scapy.utils import checksum

from lbdr.datapath.bpf_wire import Verdict
from lbdr.datapath.xdp_layout import Reason
from tests.director_frames import (
    ALONE,
    CLIENT_PORT,
    PORT,
    SERVER,
    SERVICE,
    Case,
    changed,
    check,
    datagram,
    forwarded,
    ip4,
    ip6,
    segment,
    standard,
)
from tests.fastpath import Engine, Outcome, World

MARK = {"mark": 0x4C42}
FTP_DATA = 20


def unfit(name: str, frame: bytes, reason: Reason, **fields: Any) -> list[Case]:
    """A frame that IPVS has, with its mark, and that is dropped where there is no IPVS."""
    return [
        Case(name, frame, reason, **fields),
        Case(f"{name}, marked", frame, reason, service=MARK, mark=MARK["mark"], **fields),
        Case(f"{name}, without IPVS", frame, reason, dropped=True, flags=ALONE, **fields),
    ]


def extended(*headers: Any, payload: Any = None) -> bytes:
    """An IPv6 packet with extension headers."""
    chain = headers[0]
    for header in headers[1:]:
        chain /= header
    return ip6(chain / (segment("S") if payload is None else payload))


def long_header(payload: Any, words: int = 15) -> bytes:
    """An IPv4 packet whose header has so many words."""
    return ip4(payload, options=[IPOption_NOP()] * (words * 4 - 20))


LENGTHS = [
    *unfit("total length 0", changed(ip4(segment()), 2, b"\0\0"), Reason.LENGTH),
    *unfit("total length 27", changed(ip4(segment()), 2, b"\0\x1b"), Reason.LENGTH),
    *unfit("one byte short", ip4(segment())[:-1], Reason.LENGTH),
    *unfit("total length 65535", changed(ip4(segment()), 2, b"\xff\xff"), Reason.LENGTH),
    *unfit("payload length 0", changed(ip6(segment()), 4, b"\0\0"), Reason.LENGTH),
    *unfit("payload length 7", changed(ip6(segment()), 4, b"\0\x07"), Reason.LENGTH),
    *unfit("payload length 65535", changed(ip6(segment()), 4, b"\xff\xff"), Reason.LENGTH),
    *unfit("one byte short, IPv6", ip6(datagram())[:-1], Reason.LENGTH),
    Case("total length 28", ip4(UDP(sport=CLIENT_PORT, dport=PORT)) + b"hi", sent=True),
    Case("payload length 8", changed(ip6(datagram()), 4, b"\0\x08"), sent=True),
]

TTLS = [
    *unfit("ttl 0", ip4(segment(), ttl=0), Reason.TTL),
    *unfit("ttl 1", ip4(segment(), ttl=1), Reason.TTL),
    *unfit("hop limit 0", ip6(segment(), hlim=0), Reason.TTL),
    *unfit("hop limit 1", ip6(segment(), hlim=1), Reason.TTL),
    Case("ttl 2", ip4(segment(), ttl=2), sent=True),
    Case("ttl 255", ip4(segment(), ttl=255), sent=True),
    Case("hop limit 2", ip6(segment(), hlim=2), sent=True),
    Case("hop limit 255", ip6(segment(), hlim=255), sent=True),
]

OPTIONS = [
    *unfit(
        "record route",
        ip4(segment(), options=[IPOption_RR(routers=["0.0.0.0"] * 3)]),
        Reason.OPTIONS,
    ),
    *unfit("one word of options", long_header(segment(), 6), Reason.OPTIONS),
    *unfit("ten words of options", long_header(datagram()), Reason.OPTIONS),
    *unfit("hop-by-hop options", extended(IPv6ExtHdrHopByHop()), Reason.OPTIONS),
    *unfit("destination options", extended(IPv6ExtHdrDestOpt()), Reason.OPTIONS),
    *unfit("a routing header", extended(IPv6ExtHdrRouting()), Reason.OPTIONS),
    *unfit(
        "two extension headers",
        extended(IPv6ExtHdrHopByHop(), IPv6ExtHdrDestOpt(), payload=datagram()),
        Reason.OPTIONS,
    ),
    *unfit("an atomic fragment", extended(IPv6ExtHdrFragment()), Reason.OPTIONS),
    *unfit("a first fragment of IPv6", extended(IPv6ExtHdrFragment(m=1)), Reason.OPTIONS),
    Case(
        "extension headers to another port",
        extended(IPv6ExtHdrHopByHop(), payload=segment(dport=81)),
    ),
    Case("a later fragment of IPv6", extended(IPv6ExtHdrFragment(offset=3))),
    Case("extension headers and no ports", ip6(IPv6ExtHdrHopByHop(nh=6))),
    Case("an extension header beyond the end", ip6(Raw(b"\x06\xff" + bytes(6)), nh=0)),
    Case("an extension header cut off", ip6(Raw(b"\x06"), nh=0)),
]

SERVERS = [
    *unfit("longer than the way's MTU", ip4(segment() / Raw(b"x" * 1459)), Reason.MTU),
    *unfit("longer than the way's MTU, IPv6", ip6(segment() / Raw(b"x" * 1439)), Reason.MTU),
    *unfit("a small MTU", ip4(segment()), Reason.MTU, server={"mtu": 41}),
    *unfit("an unknown MAC", ip4(segment()), Reason.NEIGHBOUR, server={"mac": None}),
    *unfit("an unknown MAC, IPv6", ip6(segment()), Reason.NEIGHBOUR, server={"mac": None}),
    *unfit("a dead server", ip4(segment()), Reason.NO_SERVER, server={"alive": False}),
    *unfit("a dead server, IPv6", ip6(segment()), Reason.NO_SERVER, server={"alive": False}),
    *unfit("source port 20", ip4(segment(sport=FTP_DATA)), Reason.FTP_DATA),
    *unfit("source port 20, IPv6 and UDP", ip6(datagram(sport=FTP_DATA)), Reason.FTP_DATA),
    Case("the MTU exactly", ip4(segment()), sent=True, server={"mtu": 42}),
    Case("the MTU exactly, IPv6", ip6(segment()), sent=True, server={"mtu": 62}),
    Case(
        "no longer than the MTU but for padding",
        ip4(segment()) + bytes(50),
        sent=True,
        server={"mtu": 42},
    ),
    Case("a local server", ip4(segment()), Reason.LOCAL, server={"local": True}),
    Case("a local server, IPv6", ip6(segment()), Reason.LOCAL, server={"local": True}),
    Case(
        "a local server without IPVS",
        ip4(segment()),
        Reason.LOCAL,
        server={"local": True},
        flags=ALONE,
    ),
    Case(
        "a local server without a MAC",
        ip4(segment()),
        Reason.LOCAL,
        server={"local": True, "mac": None},
    ),
]

FRAGMENTS = [
    *unfit("a first fragment", ip4(segment(), flags="MF"), Reason.FRAGMENT)[:2],
    *unfit(
        "a first fragment with options",
        ip4(segment(), flags="MF", options=[IPOption_NOP()]),
        Reason.OPTIONS,
    ),
    Case("a later fragment", ip4(Raw(b"x" * 40), proto=6, frag=5), Reason.FRAGMENT, counted=0),
    Case("the last fragment", ip4(Raw(b"x" * 40), proto=17, frag=8191), Reason.FRAGMENT, counted=0),
    Case(
        "a later fragment without IPVS",
        ip4(Raw(b"x" * 40), proto=6, frag=5),
        Reason.FRAGMENT,
        counted=0,
        flags=ALONE,
    ),
    Case("a first fragment to another port", ip4(segment(dport=81), flags="MF")),
    Case(
        "a later fragment to another address",
        ip4(Raw(b"x" * 40), proto=6, frag=5, dst="192.0.2.11"),
    ),
]

ALL = (*LENGTHS, *TTLS, *OPTIONS, *SERVERS, *FRAGMENTS)
CASES = [(case, engine) for case in ALL for engine in case.engines]


@pytest.mark.parametrize(("case", "engine"), CASES, ids=[f"{c.name}-{e}" for c, e in CASES])
def test_frame(world: World, case: Case, engine: Engine) -> None:
    check(world, engine, case)


def with_checksum(wanted: int) -> bytes:
    """A packet of an identification that makes its header's checksum this one."""
    frame = ip4(datagram(), id=0)
    identification = checksum(frame[14:34])  # with a checksum of its own: 0
    assert identification == 0
    there = int.from_bytes(frame[24:26], "big")
    # one's complement: what is taken off the sum is put into the identification
    number = (there - wanted) % 0xFFFF
    return ip4(datagram(), id=number)


@pytest.mark.parametrize("engine", list(Engine))
@pytest.mark.parametrize(
    "wanted",
    [0x0000, 0x0001, 0x00FF, 0x0100, 0xFE00, 0xFEFE, 0xFEFF, 0xFF00, 0xFFFD, 0xFFFE, 0x7FFF],
)
def test_checksums_carry(world: World, engine: Engine, wanted: int) -> None:
    frame = with_checksum(wanted)
    assert int.from_bytes(frame[24:26], "big") == wanted
    check(world, engine, Case("carried", frame, sent=True))


@pytest.mark.parametrize("engine", list(Engine))
def test_every_checksum_stays_right(world: World, engine: Engine) -> None:
    check(world, engine, Case("the first", ip4(datagram(), id=1), sent=True))
    for number in range(0, 65536, 61):
        frame = ip4(datagram(), id=number)
        assert world.run(engine, frame).data == forwarded(frame)


@pytest.mark.parametrize("engine", list(Engine))
def test_a_wrong_checksum_stays_wrong(world: World, engine: Engine) -> None:
    """Nobody may repair what was broken on the way."""
    frame = ip4(segment(), chksum=0x1234)
    check(world, engine, Case("the right one", ip4(segment()), sent=True))
    data = world.run(engine, frame).data
    assert data[24:26] == b"\x13\x34"
    assert checksum(data[14:34]) != 0


@pytest.mark.parametrize("engine", list(Engine))
def test_all_ones_is_a_checksum_of_zero(world: World, engine: Engine) -> None:
    """RFC 1624: the two zeros of one's complement."""
    frame = changed(with_checksum(0), 10, b"\xff\xff")
    assert checksum(frame[14:34]) == 0
    check(world, engine, Case("zero", frame, sent=True))


@pytest.mark.parametrize("engine", list(Engine))
def test_a_server_that_is_none(world: World, engine: Engine) -> None:
    check(world, engine, Case("there", ip4(segment()), sent=True))
    world.maps.write_server(SERVER, bytes(40))
    outcome = world.run(engine, ip4(segment()))
    assert outcome.data == ip4(segment())
    assert world.reasons(1, tc=engine is Engine.TC) == {Reason.NO_SERVER: 1}


# --- what tc gets in one piece, and is cut up when it leaves --------------------------------------

TIMESTAMPS = [("NOP", None), ("NOP", None), ("Timestamp", (1, 2))]  # 12 bytes


@pytest.mark.parametrize(
    ("frame", "piece"),
    [
        (ip4(segment() / Raw(b"x" * 2878)), 1440 + 20),
        (ip4(segment(options=TIMESTAMPS) / Raw(b"x" * 2878)), 1440 + 8),
        (ip6(segment() / Raw(b"x" * 2878)), 1440),
        (ip4(datagram() / Raw(b"x" * 2878)), 1440 + 32),
        (ip6(datagram() / Raw(b"x" * 2878)), 1440 + 12),
    ],
    ids=["tcp", "tcp with options", "tcp over IPv6", "udp", "udp over IPv6"],
)
def test_pieces_fit_the_way(world: World, frame: bytes, piece: int) -> None:
    """Each of them is a packet with headers of its own (skb_gso_validate_network_len)."""
    standard(world, Case("", frame))
    assert world.run(Engine.TC, frame, piece=piece).data == forwarded(frame)
    assert world.run(Engine.TC, frame, piece=piece + 1) == Outcome(Verdict.PASS, frame)
    assert world.reasons(SERVICE, tc=True) == {Reason.MTU: 1}
    assert world.served(SERVER)[0] == 1
