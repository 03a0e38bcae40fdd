"""Frames of the tracking histories: TCP, UDP and ICMP errors of one service's clients.

Put together by hand, since a history takes thousands of them.
"""

from __future__ import annotations

import struct
from ipaddress import ip_address

from lbdr.datapath import xdp_layout as layout
from lbdr.model import Address
from tests.fastpath import OWN

PORT = 80
VIPS: dict[int, Address] = {4: ip_address("203.0.113.10"), 6: ip_address("2001:db8::10")}

FIN, SYN, RST, ACK = 1, 2, 4, 16
_SOURCE = "02:00:00:00:00:99"


def client_address(version: int, number: int) -> Address:
    """A client of a history."""
    return ip_address(f"198.51.100.{number + 1}" if version == 4 else f"2001:db8:1::{number + 1:x}")


def _frame(version: int, source: Address, destination: Address, protocol: int, l4: bytes) -> bytes:
    ethernet = layout.mac_bytes(OWN) + layout.mac_bytes(_SOURCE)
    ethernet += b"\x08\x00" if version == 4 else b"\x86\xdd"
    return ethernet + _packet(version, source, destination, protocol, l4)


def _packet(version: int, source: Address, destination: Address, protocol: int, l4: bytes) -> bytes:
    addresses = source.packed + destination.packed
    if version == 4:
        return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(l4), 1, 0, 64, protocol, 0) + (
            addresses + l4
        )
    return struct.pack("!IHBB", 6 << 28, len(l4), protocol, 64) + addresses + l4


def tcp(version: int, client: Address, port: int, sequence: int, flags: int) -> bytes:
    """A frame of a TCP connection to the service."""
    l4 = struct.pack("!HHIIBBHHH", port, PORT, sequence & 0xFFFFFFFF, 1, 0x50, flags, 8192, 0, 0)
    return _frame(version, client, VIPS[version], 6, l4)


def udp(version: int, client: Address, port: int) -> bytes:
    """A frame of a UDP flow to the service."""
    l4 = struct.pack("!HHHH", port, PORT, 16, 0) + bytes(8)
    return _frame(version, client, VIPS[version], 17, l4)


def icmp(version: int, client: Address, port: int, protocol: int) -> bytes:
    """A router's error about what a server sent to the client: its first 8 bytes are quoted."""
    quoted = _packet(
        version, VIPS[version], client, protocol, struct.pack("!HHI", PORT, port, 1000)
    )
    kind, number = (3, 1) if version == 4 else (2, 58)
    l4 = struct.pack("!BBHI", kind, 4 if version == 4 else 0, 0, 1400) + quoted
    return _frame(version, client_address(version, 200), VIPS[version], number, l4)
