"""SYN frames, compared with scapy's."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from lbdr.datapath.syn import ACK, RST, SYN, Segment, encode, parse

OURS, THEIRS = "02:77:00:00:00:01", "02:77:00:00:00:15"
PAIRS = {4: ("10.77.0.1", "10.77.0.50"), 6: ("fd77::1", "fd77::50")}


def segment(version: int, flags: int, sequence: int = 7) -> Segment:
    sender, receiver = map(ip_address, PAIRS[version])
    return Segment(sender, 61000, receiver, 104, flags, sequence)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("flags", [SYN, RST])
@given(sequence=st.integers(0, 2**32 - 1))
def test_frames_are_those_of_scapy(version: int, flags: int, sequence: int) -> None:
    """Checksums included; a TTL of 1 keeps them on the link."""
    sender, receiver = PAIRS[version]
    network = (
        IP(src=sender, dst=receiver, id=0, flags="DF", ttl=1)
        if version == 4
        else IPv6(src=sender, dst=receiver, hlim=1)
    )
    transport = TCP(
        sport=61000,
        dport=104,
        seq=sequence,
        flags=flags,
        window=1024,
        options=[("MSS", 1220)] if flags & SYN else [],
    )
    wanted = bytes(Ether(src=OURS, dst=THEIRS) / network / transport)
    assert encode(segment(version, flags, sequence), OURS, THEIRS) == wanted


@pytest.mark.parametrize("version", [4, 6])
def test_what_is_said_is_understood(version: int) -> None:
    said = segment(version, SYN | ACK)
    assert parse(encode(said, OURS, THEIRS)) == (said, OURS)


@given(st.binary(max_size=120))
def test_any_frame_is_parsed_or_left(frame: bytes) -> None:
    for kind in (b"", bytes(12) + b"\x08\0\x45", bytes(12) + b"\x86\xdd\x60"):
        parse(kind + frame)


def test_a_later_fragment_has_no_header() -> None:
    frame = bytearray(encode(segment(4, SYN), OURS, THEIRS))
    frame[21] = 1
    assert parse(bytes(frame)) is None
