"""oracle-tns: a connect packet to a listener (its layout: Wireshark's packet-tns.c)."""

from __future__ import annotations

import re
import struct

from lbdr.health.checks.attempt import Attempt, CheckError, quote
from lbdr.health.checks.stream import Stream, connected
from lbdr.health.results import FailureKind
from lbdr.health.spec import OracleTns

_CONNECT, _ACCEPT, _REFUSE, _REDIRECT, _RESEND = 1, 2, 4, 5, 11
_KNOWN = range(1, 16)
_HEADER = struct.Struct("!HHBBH")
_LIMIT = 65535
_RESENDS = 3

_ERRORS = {
    12505: "the listener does not know this SID",
    12514: "the listener does not know this service",
    12516: "no handler of this protocol",
    12518: "the listener could not hand the connection over",
    12519: "no handler is free: too many processes or sessions",
    12520: "no handler of this kind is free",
    12526: "the instances are in restricted mode",
    12527: "the instances are restricted or blocked",
    12528: "the instances block new connections",
}


async def oracle_tns(check: OracleTns, attempt: Attempt) -> str:
    """Whether a listener answers, and hands out connections to a service."""
    async with connected(attempt) as stream:
        attempt.missing = "accepted the connection, but did not answer as an Oracle listener"
        for _ in range(_RESENDS):
            await stream.send(connect_packet(check))
            kind, body = await _receive(stream)
            if kind != _RESEND:
                break
    if kind == _ACCEPT:
        return "the listener accepted a connection"
    if kind == _REDIRECT:
        return "the listener redirects connections"
    if kind != _REFUSE:
        words = f"answered as an Oracle listener would not: packet type {kind}"
        raise CheckError(words, FailureKind.PROTOCOL)
    found = re.search(rb"\(ERR(?:OR_STACK=\(ERROR=\(CODE)?=([0-9]{1,6})\)", body)
    code = int(found[1]) if found else None
    if code == 0 and not check.service_name:
        return "the listener answered a ping"
    if code is None:
        raise CheckError(f"refused the connection: {quote(body)}", FailureKind.REJECTED)
    meaning = _ERRORS.get(code, "the listener's error")
    about = f" (service {check.service_name})" if check.service_name else ""
    raise CheckError(f"refused by TNS-{code:05}: {meaning}{about}", FailureKind.REJECTED)


def connect_packet(check: OracleTns) -> bytes:
    """A connect packet that pings the listener, or asks for a service."""
    ask = "(COMMAND=ping)"
    if check.service_name:
        ask = f"(SERVICE_NAME={check.service_name})(CID=(PROGRAM=lbdr)(HOST=lbdr)(USER=lbdr))"
    data = f"(DESCRIPTION=(CONNECT_DATA={ask}))".encode()
    fixed = struct.pack(
        "!HHHHHHHHHHIBB24x",
        314,  # version
        300,  # the oldest that we take
        0,  # service options
        8192,  # session data unit
        32767,  # transport data unit
        0x7F08,  # protocol characteristics
        0,  # line turnaround
        1,  # the value 1 in our byte order
        len(data),
        _HEADER.size + 50,  # where the data begin
        0,  # most connect data that we take
        0x41,  # flags: no more services are wanted
        0x41,
    )
    body = fixed + data
    return _HEADER.pack(_HEADER.size + len(body), 0, _CONNECT, 0, 0) + body


async def _receive(stream: Stream) -> tuple[int, bytes]:
    header = await stream.exactly(_HEADER.size, "a listener's answer")
    length, _, kind, _, _ = _HEADER.unpack(header)
    if kind not in _KNOWN or not _HEADER.size <= length <= _LIMIT:
        words = f"does not speak Oracle's TNS: its answer begins with {quote(header)}"
        raise CheckError(words, FailureKind.PROTOCOL)
    return kind, await stream.exactly(length - _HEADER.size, "a listener's answer")
