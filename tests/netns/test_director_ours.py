"""The director: only what IPVS, too, would have is forwarded; nothing else is touched."""

from __future__ import annotations

import pytest

from lbdr.datapath.xdp_layout import Place, Reason, ServiceFlag
from tests.director_frames import (
    ACTIVE,
    ALONE,
    SENDER,
    VIP,
    VIP6,
    Case,
    answer,
    check,
    datagram,
    icmp_error,
    ip4,
    ip6,
    segment,
    tag,
)
from tests.fastpath import LO, OWN, Engine, World

PEER = {"peer": SENDER}
OTHER_PEER = {"peer": "02:00:00:00:00:98"}
MARK = {"mark": 0x4C42}
XDP = (Engine.XDP, Engine.DIRECTOR)
VLAN_7 = {"vip": Place(LO, OWN, ((0x8100, 7),))}
ELSEWHERE = {"vip": Place(77, OWN)}

FORWARDED = [
    Case("tcp", ip4(segment()), sent=True),
    Case("udp", ip4(datagram()), sent=True),
    Case("tcp over IPv6", ip6(segment()), sent=True),
    Case("udp over IPv6", ip6(datagram()), sent=True),
    Case("a SYN", ip4(segment("S")), sent=True),
    Case("a SYN over IPv6", ip6(segment("S")), sent=True),
    Case("FIN", ip4(segment("FA")), sent=True),
    Case("RST", ip4(segment("R")), sent=True),
    Case("no flags", ip4(segment("")), sent=True),
    Case("all flags", ip4(segment("FSRPAUEC")), sent=True),
    Case(
        "SYN with options",
        ip4(segment("S", options=[("MSS", 1460), ("Timestamp", (1, 0))])),
        sent=True,
    ),
    Case("padded to 60", ip4(segment()).ljust(60, b"\0"), sent=True),
    Case("padded with what is not zero", ip4(segment()) + b"\xff" * 90, sent=True),
    Case("padded, IPv6", ip6(datagram()) + b"\xaa" * 30, sent=True),
    Case("don't fragment", ip4(segment(), flags="DF"), sent=True),
    Case("the evil bit", ip4(segment(), flags="evil"), sent=True),
    Case("dscp and ecn", ip4(segment(), tos=0xB9), sent=True),
    Case("traffic class and flow label", ip6(segment(), tc=0xB9, fl=0xABCDE), sent=True),
    Case("source port 0", ip4(segment(sport=0)), sent=True),
    Case("source port 65535", ip4(segment(sport=65535)), sent=True),
    Case("the longest packet", ip4(segment() / (b"x" * 1458)), sent=True),
    Case("from a peer that is not this one", ip4(segment()), sent=True, service=OTHER_PEER),
    Case("from a peer that is not this one, IPv6", ip6(segment()), sent=True, service=OTHER_PEER),
    Case("with a mark, which is for IPVS", ip4(segment()), sent=True, service=MARK),
    Case("without IPVS", ip4(segment()), sent=True, flags=ALONE),
    Case("without IPVS, IPv6", ip6(segment()), sent=True, flags=ALONE),
    Case("mh-port", ip4(segment()), sent=True, flags=ACTIVE | ServiceFlag.MH_PORT),
    Case("from a private address", ip4(segment(), src="10.0.0.1"), sent=True),
    Case("from 223.255.255.255", ip4(segment(), src="223.255.255.255"), sent=True),
    Case("from 128.0.0.1", ip4(segment(), src="128.0.0.1"), sent=True),
    Case("from 126.255.255.255", ip4(segment(), src="126.255.255.255"), sent=True),
    Case("from 1.0.0.0", ip4(segment(), src="1.0.0.0"), sent=True),
    Case("from a link-local address", ip6(segment(), src="fe80::1"), sent=True),
    Case("from a NAT64 address", ip6(segment(), src="64:ff9b::192.0.2.1"), sent=True),
]


def not_ours(name: str, frame: bytes, reason: Reason, **fields: object) -> list[Case]:
    """A frame that passes, with IPVS and without."""
    return [
        Case(name, frame, reason, **fields),  # type: ignore[arg-type]
        Case(f"{name}, without IPVS", frame, reason, flags=ALONE, **fields),  # type: ignore[arg-type]
    ]


PASSED = [
    *not_ours("another MAC", ip4(segment(), mac="02:00:00:00:00:02"), Reason.OTHER_HOST),
    *not_ours("another MAC, IPv6", ip6(segment(), mac="02:00:00:00:00:02"), Reason.OTHER_HOST),
    *not_ours(
        "a MAC that differs at first", ip4(segment(), mac="06:00:00:00:00:01"), Reason.OTHER_HOST
    ),
    *not_ours("broadcast MAC", ip4(datagram(), mac="ff:ff:ff:ff:ff:ff"), Reason.OTHER_HOST),
    *not_ours("multicast MAC", ip4(datagram(), mac="01:00:5e:00:02:0a"), Reason.OTHER_HOST),
    *not_ours("IPv6 multicast MAC", ip6(datagram(), mac="33:33:00:00:00:10"), Reason.OTHER_HOST),
    *not_ours(
        "an ICMP error to another MAC",
        icmp_error(answer(), mac="02:00:00:00:00:02"),
        Reason.OTHER_HOST,
    ),
    *not_ours(
        "a tag where there is none", ip4(segment(), tags=tag(7)), Reason.OTHER_VLAN, engines=XDP
    ),
    *not_ours("the priority tag", ip4(segment(), tags=tag(0, 5)), Reason.OTHER_VLAN, engines=XDP),
    *not_ours(
        "two tags where there is none",
        ip4(segment(), tags=tag(7, outer=True) / tag(8)),
        Reason.OTHER_VLAN,
        engines=XDP,
    ),
    *not_ours("no tag where there is one", ip4(segment()), Reason.OTHER_VLAN, service=VLAN_7),
    *not_ours(
        "another VLAN", ip4(segment(), tags=tag(8)), Reason.OTHER_VLAN, service=VLAN_7, engines=XDP
    ),
    *not_ours(
        "another VLAN, IPv6",
        ip6(segment(), tags=tag(8)),
        Reason.OTHER_VLAN,
        service=VLAN_7,
        engines=XDP,
    ),
    *not_ours(
        "another kind of tag",
        ip4(segment(), tags=tag(7, outer=True)),
        Reason.OTHER_VLAN,
        service=VLAN_7,
        engines=XDP,
    ),
    *not_ours(
        "two tags where there is one",
        ip4(segment(), tags=tag(7) / tag(8)),
        Reason.OTHER_VLAN,
        service=VLAN_7,
        engines=XDP,
    ),
    *not_ours("another device", ip4(segment()), Reason.OTHER_VLAN, service=ELSEWHERE),
    *not_ours("another device, IPv6", ip6(segment()), Reason.OTHER_VLAN, service=ELSEWHERE),
    *not_ours("the peer's", ip4(segment()), Reason.PEER, service=PEER),
    *not_ours("the peer's, IPv6", ip6(segment("S")), Reason.PEER, service=PEER),
    *not_ours("the peer's, with a mark", ip4(segment()), Reason.PEER, service={**PEER, **MARK}),
    *[
        case
        for source in (
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "127.255.255.255",
            "224.0.0.1",
            "239.1.1.1",
            "240.0.0.1",
            "255.255.255.255",
            str(VIP),
        )
        for case in not_ours(f"from {source}", ip4(segment("S"), src=source), Reason.MARTIAN)
    ],
    *[
        case
        for source in (
            "::",
            "::1",
            "::192.0.2.1",
            "::ffff:192.0.2.1",
            "ff02::1",
            "ff0e::1",
            str(VIP6),
        )
        for case in not_ours(f"from {source}", ip6(segment("S"), src=source), Reason.MARTIAN)
    ],
    *not_ours(
        "an ICMP error from a martian", icmp_error(answer(), src="127.0.0.1"), Reason.MARTIAN
    ),
]

INACTIVE = [
    Case("inactive", ip4(segment()), Reason.INACTIVE, flags=ServiceFlag(0)),
    Case("inactive, IPv6", ip6(segment()), Reason.INACTIVE, flags=ServiceFlag(0)),
    Case("inactive, udp", ip4(datagram()), Reason.INACTIVE, flags=ServiceFlag(0)),
    Case(
        "inactive, not ours either",
        ip4(segment(), mac="02:00:00:00:00:02"),
        Reason.OTHER_HOST,
        flags=ServiceFlag(0),
    ),
    Case("inactive, the peer's", ip4(segment()), Reason.PEER, flags=ServiceFlag(0), service=PEER),
    Case("inactive without IPVS", ip4(segment()), Reason.INACTIVE, flags=ServiceFlag.ALONE),
    Case(
        "inactive, with a mark",
        ip4(segment()),
        Reason.INACTIVE,
        flags=ServiceFlag(0),
        service=MARK,
        mark=MARK["mark"],
    ),
    Case("inactive, learned", ip4(segment()), Reason.INACTIVE, flags=ServiceFlag.LEARNED),
]

CASES = [(case, engine) for case in (*FORWARDED, *PASSED, *INACTIVE) for engine in case.engines]


@pytest.mark.parametrize(("case", "engine"), CASES, ids=[f"{c.name}-{e}" for c, e in CASES])
def test_frame(world: World, case: Case, engine: Engine) -> None:
    check(world, engine, case)
