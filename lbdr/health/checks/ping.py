"""ping: an echo request (RFC 792, RFC 4443)."""

from __future__ import annotations

import asyncio
import secrets
import socket
import struct

from lbdr.health.checks.attempt import Attempt, CheckError
from lbdr.health.results import FailureKind
from lbdr.health.spec import Ping
from lbdr.model import family

_ICMPV6 = 58
_REQUEST = {4: 8, 6: 128}
_REPLY = {4: 0, 6: 129}
_ICMP_FILTER = 1  # of SOL_RAW and of SOL_ICMPV6 alike (linux/icmp.h, linux/icmpv6.h)
_SOL_RAW = 255


async def ping(check: Ping, attempt: Attempt) -> str:
    """Whether an echo request is answered."""
    target, loop = attempt.target, asyncio.get_running_loop()
    version = target.address.version
    attempt.missing = "did not answer a ping"
    token = secrets.token_bytes(8)
    data = (token + bytes(max(0, check.size - len(token))))[: max(len(token), check.size)]
    with _open(version) as opened:
        if target.source is not None:
            opened.bind((str(target.source), 0))
        opened.connect((str(target.address), 0))  # from now on the kernel drops others' answers
        number = secrets.randbelow(1 << 16)
        request = struct.pack("!BBHHH", _REQUEST[version], 0, 0, number, 1) + data
        if version == 4:
            request = request[:2] + struct.pack("!H", _checksum(request)) + request[4:]
        attempt.sent(request)
        await loop.sock_sendall(opened, request)
        while True:
            packet = await loop.sock_recv(opened, 65535)
            if version == 4 and opened.type == socket.SOCK_RAW:
                packet = packet[(packet[0] & 0xF) * 4 :]
            attempt.received(packet)
            # eight random bytes tell our answer from those of other pings to the same server
            if packet[:1] == bytes((_REPLY[version],)) and packet[8:16] == token:
                return "answered a ping"


def _open(version: int) -> socket.socket:
    """A raw socket; where that is not permitted, the kernel's own for pings."""
    protocol = _ICMPV6 if version == 6 else socket.IPPROTO_ICMP
    try:
        opened = socket.socket(family(version), socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)
    except PermissionError:
        try:
            return socket.socket(
                family(version), socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, protocol
            )
        except PermissionError as error:
            words = "could not be asked: pings need CAP_NET_RAW"
            raise CheckError(words, FailureKind.LOCAL) from error
    level = _ICMPV6 if version == 6 else _SOL_RAW
    opened.setsockopt(level, _ICMP_FILTER, _only(_REPLY[version], version))
    return opened


def _only(kind: int, version: int) -> bytes:
    """A filter that passes one type: bits of those that are dropped."""
    bits = (1 << (32 if version == 4 else 256)) - 1 & ~(1 << kind)
    return b"".join(
        struct.pack("=I", bits >> shift & 0xFFFFFFFF)
        for shift in range(0, 32 if version == 4 else 256, 32)
    )


def _checksum(packet: bytes) -> int:
    padded = packet + bytes(len(packet) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
