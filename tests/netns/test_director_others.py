"""The director's programs: what is not for a service passes as it came, counted nowhere."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_RS,
    IPv6,
)
from scapy.layers.l2 import ARP, LLC, SNAP, STP, Dot3, Ether
from scapy.layers.sctp import SCTP
from scapy.packet import Raw

from lbdr.datapath.bpf_wire import Verdict
from tests.director_frames import (
    ALONE,
    CLIENT,
    CLIENT6,
    PORT,
    SENDER,
    VIP,
    VIP6,
    Case,
    changed,
    check,
    datagram,
    ether,
    ip4,
    ip6,
    segment,
    tag,
)
from tests.fastpath import OWN, Engine, Outcome, World

BROADCAST = "ff:ff:ff:ff:ff:ff"
VIP_S, VIP6_S = str(VIP), str(VIP6)

FRAMES = {
    "arp request for the VIP": ether(
        ARP(op=1, pdst=VIP_S, psrc=CLIENT, hwsrc=SENDER), dst=BROADCAST
    ),
    "arp reply to this host": ether(ARP(op=2, pdst=VIP_S, psrc=CLIENT, hwsrc=SENDER, hwdst=OWN)),
    "gratuitous arp of the VIP": ether(ARP(op=1, pdst=VIP_S, psrc=VIP_S), dst=BROADCAST),
    "arp in a vlan": ether(tag(7) / ARP(op=1, pdst=VIP_S, psrc=CLIENT), dst=BROADCAST),
    "neighbour solicitation for the VIP": ether(
        IPv6(src=CLIENT6, dst=VIP6_S, hlim=255) / ICMPv6ND_NS(tgt=VIP6_S)
    ),
    "neighbour advertisement of the VIP": ether(
        IPv6(src="fe80::1", dst="ff02::1", hlim=255) / ICMPv6ND_NA(tgt=VIP6_S)
    ),
    "router solicitation": ether(IPv6(src="fe80::1", dst="ff02::2", hlim=255) / ICMPv6ND_RS()),
    "router advertisement": ether(IPv6(src="fe80::1", dst="ff02::1", hlim=255) / ICMPv6ND_RA()),
    "echo request to the VIP": ip4(ICMP()),
    "echo reply to the VIP": ip4(ICMP(type=0)),
    "echo request to the IPv6 VIP": ip6(ICMPv6EchoRequest(data=b"x" * 60)),
    "timestamp request to the VIP": ip4(ICMP(type=13)),
    "another address": ip4(segment(), dst="192.0.2.11"),
    "another IPv6 address": ip6(segment(), dst="2001:db8::11"),
    "an IPv6 address that folds to the VIP's word": ip6(segment(), dst="::192.0.2.10"),
    "an IPv6 address whose words are exchanged": ip6(segment(), dst="0:10:2001:db8::"),
    "another port": ip4(segment(dport=PORT + 1)),
    "another IPv6 port": ip6(datagram(dport=PORT + 1)),
    "port 0": ip4(segment(dport=0)),
    "from the VIP": ip4(segment(sport=PORT), src=VIP_S, dst=CLIENT),
    "broadcast address": ip4(datagram(), mac=BROADCAST, dst="255.255.255.255"),
    "multicast address": ip4(datagram(), mac="01:00:5e:00:00:01", dst="224.0.0.1"),
    "sctp to the VIP": ip4(SCTP(sport=4000, dport=PORT)),
    "protocol 0 to the VIP": ip4(Raw(b"\0" * 20), proto=0),
    "esp to the VIP": ip4(Raw(b"\0" * 20), proto=50),
    "ipip to the VIP": ip4(IP(src=CLIENT, dst=VIP_S) / TCP(dport=PORT)),
    "vrrp to the VIP": ip4(Raw(b"\x21" + b"\0" * 19), proto=112),
    "esp to the IPv6 VIP": ip6(Raw(b"\0" * 20), nh=50),
    "no next header": ip6(Raw(b"\0" * 20), nh=59),
    "IPv4 in an IPv6 frame": ether(Raw(bytes(IP(src=CLIENT, dst=VIP_S) / segment())), type=0x86DD),
    "IPv6 in an IPv4 frame": ether(
        Raw(bytes(IPv6(src=CLIENT6, dst=VIP6_S) / segment())), type=0x800
    ),
    "IPv4 of version 5": changed(ip4(segment()), 0, b"\x55"),
    "IPv4 of version 0": changed(ip4(segment()), 0, b"\x05"),
    "IPv6 of version 7": changed(ip6(segment()), 0, b"\x70"),
    "header length 4": changed(ip4(segment()), 0, b"\x44"),
    "header length 0": changed(ip4(segment()), 0, b"\x40"),
    "header longer than the frame": changed(ip4(segment())[:42], 0, b"\x4f"),
    "IPv4 cut after 19 bytes": ip4(segment())[: 14 + 19],
    "IPv4 cut before its ports": ip4(segment())[: 14 + 20],
    "IPv4 cut among its ports": ip4(segment())[: 14 + 27],
    "IPv6 cut after 39 bytes": ip6(segment())[: 14 + 39],
    "IPv6 cut among its ports": ip6(segment())[: 14 + 47],
    "a tag, and nothing after it": ether(Raw(b"\0\x07\x08\0"), type=0x8100),
    "half a tag": ether(Raw(b"\0\x07"), type=0x8100),
    "two tags, and nothing after them": ether(Raw(b"\0\x07\x81\0\0\x08\x08\0"), type=0x88A8),
    "three tags": ip4(segment(), tags=tag(7, outer=True) / tag(8) / tag(9)),
    "a tag of another kind": ether(Raw(b"\0\x07\x08\0" + b"\0" * 40), type=0x9100),
    "802.3 with LLC": bytes(Dot3(src=SENDER, dst="01:80:c2:00:00:00") / LLC() / STP()),
    "802.3 with SNAP": bytes(
        Dot3(src=SENDER, dst=OWN) / LLC() / SNAP(code=0x800) / IP(dst=VIP_S) / segment()
    ),
    "lldp": bytes(Ether(src=SENDER, dst="01:80:c2:00:00:0e", type=0x88CC) / Raw(b"\0" * 46)),
    "pppoe": ether(Raw(b"\x11\0\0\x01\0\x16\0\x21" + b"\0" * 40), type=0x8864),
    "mpls": ether(Raw(b"\0\x01\x01\xff" + b"\x45" + b"\0" * 45), type=0x8847),
    "a type of all ones": ether(Raw(b"\0" * 46), type=0xFFFF),
}


# what is shorter than the header it announces, the kernel gives no tc program in a test
SHORT = {"IPv4 cut after 19 bytes", "IPv6 cut after 39 bytes"}
LONG = {name: frame for name, frame in FRAMES.items() if name not in SHORT}
NAMES = [
    (name, engine)
    for name in FRAMES
    for engine in Engine
    if engine != Engine.TC or name not in SHORT
]


@pytest.mark.parametrize(("name", "engine"), NAMES)
def test_it_passes(world: World, engine: Engine, name: str) -> None:
    check(world, engine, Case(name, FRAMES[name]))


@pytest.mark.parametrize(("name", "engine"), NAMES)
def test_it_passes_without_ipvs(world: World, engine: Engine, name: str) -> None:
    check(world, engine, Case(name, FRAMES[name], flags=ALONE))


@pytest.mark.parametrize("engine", [Engine.XDP, Engine.DIRECTOR])
def test_a_frame_of_nothing_but_macs_passes(world: World, engine: Engine) -> None:
    frame = ip4(segment())[:14]
    assert world.run(engine, frame) == Outcome(Verdict.PASS, frame)


@pytest.mark.parametrize("engine", list(Engine))
def test_without_any_service_all_passes(world: World, engine: Engine) -> None:
    for frame in (*LONG.values(), ip4(segment()), ip6(segment())):
        assert world.run(engine, frame) == Outcome(Verdict.PASS, frame)
    assert world.reasons(0) == {}


@pytest.mark.parametrize("engine", list(Engine))
def test_an_address_that_shares_the_vips_bit_passes(world: World, engine: Engine) -> None:
    """The filter before the tables errs on one side alone."""
    check(world, engine, Case("a frame for it", ip4(segment()), sent=True))
    world.maps["vips"].update(bytes(4), b"\xff" * world.maps["vips"].value_size)
    for frame in LONG.values():
        assert world.run(engine, frame) == Outcome(Verdict.PASS, frame)
