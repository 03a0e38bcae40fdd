"""The director: ICMP errors go to the server of what they quote, so that path MTUs are found."""

from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.inet import ICMP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrHopByHop
from scapy.packet import Raw

from lbdr.datapath.xdp_layout import Reason, ServiceFlag
from tests.director_frames import (
    ACTIVE,
    ALONE,
    CLIENT,
    CLIENT_PORT,
    PORT,
    VIP,
    VIP6,
    Case,
    answer,
    answer6,
    changed,
    check,
    icmp6_error,
    icmp_error,
    ip6,
)
from tests.fastpath import Engine, World

FROM_VIP = {"sport": PORT, "dport": CLIENT_PORT}
QUOTED_UDP = UDP(**FROM_VIP) / Raw(b"hello")


def unfit(name: str, frame: bytes, reason: Reason, **fields: Any) -> list[Case]:
    return [
        Case(name, frame, reason, **fields),
        Case(f"{name}, without IPVS", frame, reason, dropped=True, flags=ALONE, **fields),
    ]


SENT = [
    Case("fragmentation needed, 8 bytes", icmp_error(answer()), sent=True),
    Case("fragmentation needed, all of it", icmp_error(answer(20)), sent=True),
    Case("about udp", icmp_error(answer(payload=QUOTED_UDP)), sent=True),
    Case("source quench", icmp_error(answer(), 4, 0), sent=True),
    Case("time exceeded", icmp_error(answer(), 11, 0), sent=True),
    Case("parameter problem", icmp_error(answer(), 12, 0), sent=True),
    Case("host unreachable", icmp_error(answer(), 3, 1), sent=True),
    Case(
        "port unreachable from the client itself", icmp_error(answer(), 3, 3, src=CLIENT), sent=True
    ),
    Case("a quote with options", icmp_error(answer(options=[IPOption_NOP()] * 4)), sent=True),
    Case("a quote with all options", icmp_error(answer(options=[IPOption_NOP()] * 40)), sent=True),
    Case("a quoted first fragment", icmp_error(answer(flags="MF")), sent=True),
    Case("a quote with a wrong checksum", icmp_error(answer(chksum=1)), sent=True),
    Case("padded", icmp_error(answer()) + b"\xff" * 20, sent=True),
    Case("without IPVS", icmp_error(answer()), sent=True, flags=ALONE),
    Case(
        "of an mh-port service", icmp_error(answer()), sent=True, flags=ACTIVE | ServiceFlag.MH_PORT
    ),
    Case("packet too big, 8 bytes", icmp6_error(answer6()), sent=True),
    Case("packet too big, all of it", icmp6_error(answer6(20)), sent=True),
    Case("packet too big about udp", icmp6_error(answer6(payload=QUOTED_UDP)), sent=True),
    Case("unreachable", icmp6_error(answer6(), 1, 4), sent=True),
    Case("time exceeded, IPv6", icmp6_error(answer6(), 3, 0), sent=True),
    Case("parameter problem, IPv6", icmp6_error(answer6(), 4, 1), sent=True),
]

UNTOUCHED = [
    Case("an echo reply with a quote", icmp_error(answer(), 0, 0)),
    Case("an echo request with a quote", icmp_error(answer(), 8, 0)),
    Case("a redirect", icmp_error(answer(), 5, 1)),
    Case("7 quoted bytes", icmp_error(answer(7))),
    Case("no quoted ports", icmp_error(answer(0))),
    Case("half a quoted header", icmp_error(answer()[:12])),
    Case("no quote", icmp_error(b"")),
    Case("a quote of the client's packet", icmp_error(answer(src=CLIENT, dst=str(VIP)))),
    Case("a quote of another's packet", icmp_error(answer(src="192.0.2.11"))),
    Case("a quoted later fragment", icmp_error(answer(frag=3))),
    Case("a quote of icmp", icmp_error(answer(payload=ICMP() / Raw(b"x" * 8)))),
    Case("a quote of another protocol", icmp_error(answer(proto=47))),
    Case("a quote from another port", icmp_error(answer(payload=TCP(sport=81, dport=CLIENT_PORT)))),
    Case("a quote of version 6", icmp_error(b"\x65" + answer()[1:])),
    Case("a quote of header length 4", icmp_error(b"\x44" + answer()[1:])),
    Case(
        "a quote with options, without ports", icmp_error(answer(7, options=[IPOption_NOP()] * 4))
    ),
    Case("a quote with options that are not there", icmp_error(b"\x4f" + answer()[1:])),
    Case("a quote in the padding", changed(icmp_error(answer()), 2, b"\0\x1c")),
    Case("a quote whose ports are in the padding", changed(icmp_error(answer()), 2, b"\0\x37")),
    Case("a fragment of an error", icmp_error(answer(), flags="MF")),
    Case("7 quoted bytes, IPv6", icmp6_error(answer6(7))),
    Case("half a quoted header, IPv6", icmp6_error(answer6()[:30])),
    Case("a quote in the padding, IPv6", changed(icmp6_error(answer6()), 4, b"\0\x08")),
    Case(
        "a quote whose ports are in the padding, IPv6",
        changed(icmp6_error(answer6()), 4, b"\0\x37"),
    ),
    Case("an echo request with a quote, IPv6", icmp6_error(answer6(), 128)),
    Case("type 0, IPv6", icmp6_error(answer6(), 0)),
    Case("type 5, IPv6", icmp6_error(answer6(), 5)),
    Case("a quote of another's packet, IPv6", icmp6_error(answer6(src="2001:db8::11"))),
    Case("a quote of another protocol, IPv6", icmp6_error(answer6(nh=47))),
    Case(
        "a quote with extension headers",
        icmp6_error(bytes(IPv6(src=str(VIP6)) / IPv6ExtHdrHopByHop() / TCP(**FROM_VIP))),
    ),
    Case(
        "an error behind extension headers",
        ip6(IPv6ExtHdrHopByHop(nh=58) / Raw(b"\x02\0\0\0\0\0\5\0" + answer6())),
    ),
]

UNFIT = [
    *unfit("ttl 1", icmp_error(answer(), ttl=1), Reason.TTL),
    *unfit("hop limit 1", icmp6_error(answer6(), hlim=1), Reason.TTL),
    *unfit("options of its own", icmp_error(answer(), options=[IPOption_NOP()]), Reason.OPTIONS),
    *unfit("longer than the frame", changed(icmp_error(answer()), 2, b"\0\xff"), Reason.LENGTH),
    *unfit("about port 20", icmp_error(answer(payload=TCP(sport=PORT, dport=20))), Reason.FTP_DATA),
    *unfit("longer than the MTU", icmp_error(answer()), Reason.MTU, server={"mtu": 55}),
    *unfit("a dead server", icmp_error(answer()), Reason.NO_SERVER, server={"alive": False}),
]

ALL = (*SENT, *UNTOUCHED, *UNFIT)
CASES = [(case, engine) for case in ALL for engine in case.engines]


@pytest.mark.parametrize(("case", "engine"), CASES, ids=[f"{c.name}-{e}" for c, e in CASES])
def test_frame(world: World, case: Case, engine: Engine) -> None:
    check(world, engine, case)
