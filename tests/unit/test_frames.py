"""Frames, against scapy's bytes, and what a parser must survive."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet6 import (
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)
from scapy.layers.l2 import ARP, Ether

from lbdr.datapath import frames
from lbdr.datapath.frames import (
    ArpFrame,
    ArpOperation,
    NeighbourFrame,
    NeighbourMessage,
    parse_arp,
    parse_neighbour,
)

MAC = "02:00:00:00:00:01"
OTHER = "02:00:00:00:00:02"
ROUTER_IP = "10.77.0.1"
VIP = "10.77.0.50"
VIP6 = "fd77::1234:5678"
OWN6 = "fe80::1"
GROUP = "ff02::1:ff34:5678"
GROUP_MAC = "33:33:ff:34:56:78"


def _arp(**fields: object) -> bytes:
    return bytes(Ether(src=MAC, dst=fields.pop("to", frames.BROADCAST)) / ARP(hwsrc=MAC, **fields))


def test_arp_frames_equal_scapys() -> None:
    """Every form that ARP is said in."""
    sender, target = IPv4Address(ROUTER_IP), IPv4Address(VIP)
    request = {"op": 1, "hwdst": frames.NO_MAC}
    assert frames.arp_request(MAC, sender, target) == _arp(psrc=ROUTER_IP, pdst=VIP, **request)
    assert frames.arp_probe(MAC, target) == _arp(psrc="0.0.0.0", pdst=VIP, **request)
    assert frames.gratuitous_arp(MAC, target) == _arp(psrc=VIP, pdst=VIP, **request)
    assert frames.arp_reply(MAC, target, OTHER, sender) == _arp(
        op=2, psrc=VIP, pdst=ROUTER_IP, hwdst=OTHER, to=OTHER
    )


def test_neighbour_frames_equal_scapys() -> None:
    """Every form that neighbour discovery is said in, checksum and multicast addresses included."""
    target = IPv6Address(VIP6)
    to_group = Ether(src=MAC, dst=GROUP_MAC)
    assert frames.dad_solicitation(MAC, target) == bytes(
        to_group / IPv6(src="::", dst=GROUP, hlim=255) / ICMPv6ND_NS(tgt=VIP6)
    )
    assert frames.neighbour_solicitation(MAC, IPv6Address(OWN6), target) == bytes(
        to_group
        / IPv6(src=OWN6, dst=GROUP, hlim=255)
        / ICMPv6ND_NS(tgt=VIP6)
        / ICMPv6NDOptSrcLLAddr(lladdr=MAC)
    )
    assert frames.unsolicited_advertisement(MAC, target) == bytes(
        Ether(src=MAC, dst="33:33:00:00:00:01")
        / IPv6(src=VIP6, dst="ff02::1", hlim=255)
        / ICMPv6ND_NA(tgt=VIP6, R=0, S=0, O=1)
        / ICMPv6NDOptDstLLAddr(lladdr=MAC)
    )


def test_the_padding_of_a_short_frame_is_no_part_of_it() -> None:
    """Ethernet's minimum is 60 bytes, and a NIC delivers what it received."""
    arp = frames.gratuitous_arp(MAC, IPv4Address(VIP))
    solicitation = frames.dad_solicitation(MAC, IPv6Address(VIP6))
    assert parse_arp(arp + bytes(18)) == parse_arp(arp) is not None
    assert parse_neighbour(solicitation + b"padding") == parse_neighbour(solicitation) is not None


_macs = st.binary(min_size=6, max_size=6).map(lambda mac: mac.hex(":"))
_targets = st.ip_addresses(v=6).filter(lambda address: not address.is_multicast)


@given(
    st.builds(
        ArpFrame,
        source=_macs,
        destination=_macs,
        operation=st.sampled_from(ArpOperation),
        sender_mac=_macs,
        sender=st.ip_addresses(v=4),
        target_mac=_macs,
        target=st.ip_addresses(v=4),
    )
)
def test_an_arp_frame_reads_back_as_itself(frame: ArpFrame) -> None:
    """Building and parsing are each other's inverse."""
    assert parse_arp(frame.encode()) == frame


@given(
    st.builds(
        NeighbourFrame,
        source=_macs,
        destination=_macs,
        message=st.just(NeighbourMessage.ADVERTISEMENT),
        sender=st.ip_addresses(v=6),
        receiver=_targets,
        target=_targets,
        mac=st.just("") | _macs,
        solicited=st.booleans(),
        override=st.booleans(),
        router=st.booleans(),
    )
)
def test_an_advertisement_reads_back_as_itself(frame: NeighbourFrame) -> None:
    """Building and parsing are each other's inverse."""
    assert parse_neighbour(frame.encode()) == frame


_real = st.sampled_from(
    [
        frames.gratuitous_arp(MAC, IPv4Address(VIP)),
        frames.dad_solicitation(MAC, IPv6Address(VIP6)),
        frames.unsolicited_advertisement(MAC, IPv6Address(VIP6)),
    ]
)


@given(st.binary(max_size=200) | st.tuples(_real, st.integers(0, 90)).map(lambda x: x[0][: x[1]]))
def test_garbage_is_nothing(data: bytes) -> None:
    """Random bytes and frames cut off anywhere."""
    if len(data) < 42:
        assert parse_arp(data) is None
    if len(data) < 78:
        assert parse_neighbour(data) is None
    parse_arp(data)
    parse_neighbour(data)


@given(_real, st.integers(0, 85), st.integers(1, 255))
def test_a_changed_byte_never_raises_and_the_checksum_notices_it(
    real: bytes, place: int, change: int
) -> None:
    """One byte of a real frame is changed."""
    place %= len(real)
    data = real[:place] + bytes([real[place] ^ change]) + real[place + 1 :]
    parse_arp(data)
    if place >= 14 + 8:  # past Ethernet's header and what the checksum does not cover
        assert parse_neighbour(data) is None


@pytest.mark.parametrize(
    "layers",
    [
        pytest.param(
            IPv6(src=OWN6, dst=GROUP, hlim=254) / ICMPv6ND_NS(tgt=VIP6), id="came by a router"
        ),
        pytest.param(
            IPv6(src=OWN6, dst=GROUP, hlim=255) / ICMPv6ND_NS(tgt=VIP6, code=1), id="code"
        ),
        pytest.param(
            IPv6(src=OWN6, dst=GROUP, hlim=255) / ICMPv6ND_NS(tgt="ff02::1"), id="multicast target"
        ),
        pytest.param(
            IPv6(src="::", dst="ff02::1", hlim=255) / ICMPv6ND_NS(tgt=VIP6),
            id="DAD to another group",
        ),
        pytest.param(
            IPv6(src="::", dst=GROUP, hlim=255)
            / ICMPv6ND_NS(tgt=VIP6)
            / ICMPv6NDOptSrcLLAddr(lladdr=MAC),
            id="DAD with a link-layer address",
        ),
        pytest.param(
            IPv6(src=OWN6, dst="ff02::1", hlim=255) / ICMPv6ND_NA(tgt=VIP6, S=1),
            id="solicited, to a group",
        ),
        pytest.param(
            IPv6(src=OWN6, dst=GROUP, hlim=255)
            / ICMPv6ND_NS(tgt=VIP6)
            / ICMPv6NDOptSrcLLAddr(lladdr=MAC, len=0),
            id="option of length 0",
        ),
        pytest.param(
            IPv6(src=OWN6, dst=GROUP, hlim=255)
            / ICMPv6ND_NS(tgt=VIP6)
            / ICMPv6NDOptSrcLLAddr(lladdr=MAC, len=2),
            id="option longer than the packet",
        ),
    ],
)
def test_what_rfc_4861_tells_to_ignore_is_ignored(layers: IPv6) -> None:
    """Section 7.1; each differs in one thing from a message that is taken."""
    assert parse_neighbour(bytes(Ether(src=OTHER, dst=GROUP_MAC) / layers)) is None


def test_a_reply_of_scapys_is_understood() -> None:
    """What another host's answers look like."""
    reply = Ether(src=OTHER, dst=MAC) / ARP(op=2, hwsrc=OTHER, psrc=VIP, hwdst=MAC, pdst="0.0.0.0")
    parsed = parse_arp(bytes(reply))
    assert parsed is not None
    assert (parsed.operation, parsed.sender_mac, str(parsed.sender)) == (
        ArpOperation.REPLY,
        OTHER,
        VIP,
    )
    answer = (
        Ether(src=OTHER, dst="33:33:00:00:00:01")
        / IPv6(src=VIP6, dst="ff02::1", hlim=255)
        / ICMPv6ND_NA(tgt=VIP6, R=1, S=0, O=1)
        / ICMPv6NDOptDstLLAddr(lladdr=OTHER)
    )
    neighbour = parse_neighbour(bytes(answer))
    assert neighbour is not None
    assert (neighbour.mac, str(neighbour.target), neighbour.router) == (OTHER, VIP6, True)
