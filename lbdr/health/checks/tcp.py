"""connect and negotiate."""

from __future__ import annotations

import asyncio
import socket

from lbdr.health.checks.attempt import Attempt, CheckError, quote
from lbdr.health.checks.stream import connected, open_socket
from lbdr.health.results import FailureKind
from lbdr.health.spec import Connect, Negotiate, Transport


async def connect(_check: Connect, attempt: Attempt) -> str:
    """Whether the port accepts a connection."""
    target = attempt.target
    attempt.missing = "did not accept a connection: it is off, or something drops our packets"
    with open_socket(target, socket.SOCK_STREAM) as opened:
        where = (str(target.address), target.port)
        await asyncio.get_running_loop().sock_connect(opened, where)
    attempt.note(f"connected to {target}")
    return "accepts connections"


async def negotiate(check: Negotiate, attempt: Attempt) -> str:
    """Whether what is sent gets the answer that is expected."""
    if check.transport is Transport.UDP:
        return await _by_udp(check, attempt)
    tls = check.tls if check.transport is Transport.TLS else None
    async with connected(attempt, tls) as stream:
        if check.send:
            await stream.send(check.send)
        got = b""
        wanted = _wanted(check)
        while True:
            attempt.missing = f"accepted the connection, but sent no {wanted} (it sent {_got(got)})"
            more = await stream.some()
            got += more
            if got and check.expect in got:
                return f"answered {quote(got)}"
            if not more:
                words = f"closed the connection before {wanted} came (it sent {_got(got)})"
                raise CheckError(words, FailureKind.UNEXPECTED if got else FailureKind.CLOSED)
            if len(got) >= check.limit:
                words = f"answered {quote(got)}, and no {wanted} in {check.limit} bytes"
                raise CheckError(words, FailureKind.UNEXPECTED)


async def _by_udp(check: Negotiate, attempt: Attempt) -> str:
    answer = await datagram(attempt, check.send)
    if check.expect not in answer:
        words = f"answered {_got(answer)}, and no {_wanted(check)}"
        raise CheckError(words, FailureKind.UNEXPECTED)
    return f"answered {quote(answer)}"


async def datagram(attempt: Attempt, data: bytes) -> bytes:
    """Send a datagram to a target, and take the first one that comes back."""
    target, loop = attempt.target, asyncio.get_running_loop()
    attempt.missing = "did not answer"
    with open_socket(target, socket.SOCK_DGRAM) as opened:
        opened.connect((str(target.address), target.port))
        attempt.sent(data)
        await loop.sock_sendall(opened, data)
        answer = await loop.sock_recv(opened, 65535)
    attempt.received(answer)
    return answer


def _wanted(check: Negotiate) -> str:
    return quote(check.expect) if check.expect else "answer"


def _got(data: bytes) -> str:
    return quote(data) if data else "nothing"
