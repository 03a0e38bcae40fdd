"""dns: a query, and its answer (RFC 1035, RFC 3596)."""

from __future__ import annotations

import asyncio
import secrets
import socket
import struct
from ipaddress import ip_address

from lbdr.health.checks.attempt import Attempt, CheckError
from lbdr.health.checks.stream import connected, open_socket
from lbdr.health.results import FailureKind
from lbdr.health.spec import Dns

_HEADER = struct.Struct("!6H")
_ANSWER, _RECURSE, _TRUNCATED = 0x8000, 0x0100, 0x0200
_INTERNET = 1
RECORDS = {"A": 1, "NS": 2, "SOA": 6, "PTR": 12, "MX": 15, "TXT": 16, "AAAA": 28, "SRV": 33}
_CODES = {
    1: "FORMERR",
    2: "SERVFAIL",
    3: "NXDOMAIN: there is no such name",
    4: "NOTIMP",
    5: "REFUSED: it does not answer us",
}


class NotOurs(Exception):  # noqa: N818  # not an error: another datagram is waited for
    """An answer to something else."""


async def dns(check: Dns, attempt: Attempt) -> str:
    """Whether a resolver answers a query."""
    number = secrets.randbelow(1 << 16)
    query = make_query(check, number)
    if check.tcp:
        async with connected(attempt) as stream:
            attempt.missing = "accepted the connection, but did not answer the query"
            await stream.send(struct.pack("!H", len(query)) + query)
            (length,) = struct.unpack("!H", await stream.exactly(2, "an answer"))
            try:
                return judge(check, query, await stream.exactly(length, "an answer"))
            except NotOurs:
                words = "answered another query than ours"
                raise CheckError(words, FailureKind.PROTOCOL) from None
    loop, target = asyncio.get_running_loop(), attempt.target
    attempt.missing = f"did not answer a query for {check.name}"
    with open_socket(target, socket.SOCK_DGRAM) as opened:
        opened.connect((str(target.address), target.port))
        attempt.sent(query)
        await loop.sock_sendall(opened, query)
        while True:
            answer = await loop.sock_recv(opened, 65535)
            attempt.received(answer)
            try:
                return judge(check, query, answer)
            except NotOurs:
                attempt.missing += " (it sent something that is no answer to it)"


def make_query(check: Dns, number: int) -> bytes:
    """A query for a name; its number tells the answer to it from others."""
    try:
        labels = [label.encode("idna") for label in check.name.strip(".").split(".") if label]
    except UnicodeError as error:
        raise CheckError(f"could not be asked: {error}", FailureKind.LOCAL) from error
    name = b"".join(bytes((len(label),)) + label for label in labels) + b"\0"
    question = struct.pack("!HH", RECORDS[check.record], _INTERNET)
    return _HEADER.pack(number, _RECURSE, 1, 0, 0, 0) + name + question


def judge(check: Dns, query: bytes, answer: bytes) -> str:
    """What an answer says; NotOurs where it is none to the query, CheckError where it says no."""
    if len(answer) < _HEADER.size or answer[:2] != query[:2]:
        raise NotOurs
    _, flags, questions, count, _, _ = _HEADER.unpack_from(answer)
    if not flags & _ANSWER:
        raise NotOurs
    if flags & 0xF:
        said = _CODES.get(flags & 0xF, f"code {flags & 0xF}")
        raise CheckError(f"answered {check.name} by {said}", FailureKind.REJECTED)
    end = len(query)
    if questions != 1 or answer[_HEADER.size : end].lower() != query[_HEADER.size :].lower():
        raise NotOurs
    try:
        found = _addresses(answer, end, count)
    except (IndexError, struct.error) as error:
        raise CheckError("sent an answer that is cut off", FailureKind.PROTOCOL) from error
    if check.expect is None:
        if not count:
            words = f"answered that {check.name} has no {check.record} record"
            raise CheckError(words, FailureKind.UNEXPECTED)
        return f"answered {check.name}" + (f": {', '.join(found)}" if found else "")
    if str(check.expect) not in found:
        if flags & _TRUNCATED:
            words = "sent a truncated answer; check it by TCP"
            raise CheckError(words, FailureKind.UNEXPECTED)
        listed = ", ".join(found) or "no address"
        words = f"answered {check.name} by {listed}; expected {check.expect}"
        raise CheckError(words, FailureKind.UNEXPECTED)
    return f"answered {check.name}: {check.expect}"


def _addresses(answer: bytes, position: int, count: int) -> list[str]:
    """The addresses among an answer's records."""
    found = []
    for _ in range(count):
        position = _after_name(answer, position)
        kind, _, _, length = struct.unpack_from("!HHIH", answer, position)
        position += 10
        data = answer[position : position + length]
        if (kind, length) in ((RECORDS["A"], 4), (RECORDS["AAAA"], 16)):
            found.append(str(ip_address(data)))
        position += length
        if position > len(answer):
            raise IndexError("a record is cut off")
    return found


def _after_name(answer: bytes, position: int) -> int:
    while answer[position]:
        if answer[position] & 0xC0 == 0xC0:  # the rest is elsewhere
            return position + 2
        position += 1 + answer[position]
    return position + 1
