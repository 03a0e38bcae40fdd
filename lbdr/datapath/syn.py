"""A SYN and its answer, as whole Ethernet frames: bytes to say and to understand, no I/O.

Sources: RFC 9293 (TCP), RFC 791, RFC 8200. TTL and hop limit are 1: a host that does not have the
address itself must not pass the frame on, to this director's own VIP at worst.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import ip_address

from lbdr.datapath.frames import ETHERTYPE_IPV6
from lbdr.model import Address

ETHERTYPE_IPV4 = 0x0800

FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10
_TCP = 6
_ETHERNET = struct.Struct("!6s6sH")
_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_IPV6 = struct.Struct("!IHBB16s16s")
_SEGMENT = struct.Struct("!HHIIBBHHH")
_DONT_FRAGMENT = 0x4000
_LARGEST_SEGMENT = struct.pack("!BBH", 2, 4, 1220)


@dataclass(frozen=True, slots=True)
class Segment:
    """A TCP segment without data.

    Args:
        sender: IP address that it came from.
        sender_port: and port.
        receiver: IP address that it went to.
        receiver_port: and port.
        flags: of FIN, SYN, RST, ACK.
        sequence: its sequence number.
        acknowledges: the number that it acknowledges; 0 without ACK.
    """

    sender: Address
    sender_port: int
    receiver: Address
    receiver_port: int
    flags: int
    sequence: int
    acknowledges: int = 0


def encode(segment: Segment, source_mac: str, destination_mac: str) -> bytes:
    """A segment's frame, without padding."""
    sender, receiver = segment.sender.packed, segment.receiver.packed
    options = _LARGEST_SEGMENT if segment.flags & SYN else b""

    def tcp(checksum: int) -> bytes:
        return (
            _SEGMENT.pack(
                segment.sender_port,
                segment.receiver_port,
                segment.sequence,
                segment.acknowledges,
                (_SEGMENT.size + len(options)) // 4 << 4,
                segment.flags,
                1024,  # window
                checksum,
                0,
            )
            + options
        )

    length = len(tcp(0))
    body = tcp(_checksum(sender + receiver + struct.pack("!II", length, _TCP) + tcp(0)))
    if segment.sender.version == 6:
        kind = ETHERTYPE_IPV6
        header = _IPV6.pack(6 << 28, length, _TCP, 1, sender, receiver)
    else:
        kind = ETHERTYPE_IPV4
        fields = (0x45, 0, _IPV4.size + length, 0, _DONT_FRAGMENT, 1, _TCP)
        blank = _IPV4.pack(*fields, 0, sender, receiver)
        header = _IPV4.pack(*fields, _checksum(blank), sender, receiver)
    return _ETHERNET.pack(_mac(destination_mac), _mac(source_mac), kind) + header + body


def parse(frame: bytes) -> tuple[Segment, str] | None:
    """The segment of a frame, and the MAC that it came from; None for anything else."""
    if len(frame) < _ETHERNET.size + _IPV4.size + _SEGMENT.size:
        return None
    _, source, kind = _ETHERNET.unpack_from(frame)
    start = _ETHERNET.size
    if kind == ETHERTYPE_IPV4:
        first, _, _, _, fragment, _, protocol, _, sender, receiver = _IPV4.unpack_from(frame, start)
        if first >> 4 != 4 or fragment & 0x1FFF:
            return None
        start += (first & 0xF) * 4
    elif kind == ETHERTYPE_IPV6:
        _, _, protocol, _, sender, receiver = _IPV6.unpack_from(frame, start)
        start += _IPV6.size
    else:
        return None
    if protocol != _TCP or len(frame) < start + _SEGMENT.size:
        return None
    sender_port, receiver_port, sequence, acknowledges, _, flags, *_ = _SEGMENT.unpack_from(
        frame, start
    )
    segment = Segment(
        sender=ip_address(sender),
        sender_port=sender_port,
        receiver=ip_address(receiver),
        receiver_port=receiver_port,
        flags=flags & (FIN | SYN | RST | ACK),
        sequence=sequence,
        acknowledges=acknowledges,
    )
    return segment, source.hex(":")


def answer_filter(version: int, first_port: int, last_port: int) -> bytes:
    """Classic BPF that takes TCP segments to a range of ports (filter.rst).

    Args:
        version: of IP.
        first_port: of the range.
        last_port: of the range, itself included.
    """
    load_half, load_byte, load_half_after = 0x28, 0x30, 0x48
    header_length, equal, greater, give = 0xB1, 0x15, 0x25, 0x06
    drop_below = [(0x35, 1, 0, first_port), (give, 0, 0, 0)]
    drop_above = [(greater, 0, 1, last_port), (give, 0, 0, 0), (give, 0, 0, 0xFFFFFFFF)]
    if version == 4:
        program = [
            (load_byte, 0, 0, 23),
            (equal, 1, 0, _TCP),
            (give, 0, 0, 0),
            (header_length, 0, 0, 14),
            (load_half_after, 0, 0, 16),
        ]
    else:
        program = [
            (load_byte, 0, 0, 20),
            (equal, 1, 0, _TCP),
            (give, 0, 0, 0),
            (load_half, 0, 0, 56),
        ]
    return b"".join(
        struct.pack("=HBBI", code, true, false, operand)
        for code, true, false, operand in program + drop_below + drop_above
    )


def _checksum(data: bytes) -> int:
    padded = data + bytes(len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _mac(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))
