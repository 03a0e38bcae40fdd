"""http: a request by HTTP/1.1, over TCP or TLS; the protocol is h11's."""

from __future__ import annotations

import re
from typing import TypeAlias

import h11

from lbdr.health.checks.attempt import Attempt, CheckError, plain
from lbdr.health.checks.stream import Stream, connected
from lbdr.health.results import FailureKind
from lbdr.health.spec import Http, Tls

_Event: TypeAlias = h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]


async def http(check: Http, attempt: Attempt) -> str:
    """Whether a request is answered by an expected code, and body."""
    name = check.host or _literal(attempt)
    tls = check.tls
    if tls is not None and not tls.server_name and check.host:
        sni = check.host.rpartition(":")[0] if re.search(r":[0-9]+$", check.host) else check.host
        tls = Tls(sni, tls.verify, tls.ca_file, tls.certificate, tls.key)
    async with connected(attempt, tls) as stream:
        attempt.missing = f"accepted the connection, but did not answer {check.method}"
        try:
            return await _exchange(check, attempt, stream, name)
        except h11.RemoteProtocolError as error:
            raise CheckError(f"does not speak HTTP: {plain(str(error).encode())}", _P) from error
        except h11.LocalProtocolError as error:
            words = f"could not be asked: method, path or host are not HTTP's ({error})"
            raise CheckError(words, FailureKind.LOCAL) from error


_P = FailureKind.PROTOCOL


async def _exchange(check: Http, attempt: Attempt, stream: Stream, name: str) -> str:
    connection = h11.Connection(h11.CLIENT)
    headers = [("Host", name), ("User-Agent", "lbdr"), ("Accept", "*/*"), ("Connection", "close")]
    request = h11.Request(method=check.method, target=check.path, headers=headers)
    data = connection.send(request) or b""
    await stream.send(data + (connection.send(h11.EndOfMessage()) or b""))
    await stream.begins(b"HTTP/", "HTTP")
    event: _Event = await _next(connection, stream)
    while isinstance(event, h11.InformationalResponse):
        event = await _next(connection, stream)
    if not isinstance(event, h11.Response):
        raise CheckError("closed the connection before its answer", FailureKind.CLOSED)
    answer = f"{event.status_code} {plain(event.reason)}".strip()
    if not any(first <= event.status_code <= last for first, last in check.expect):
        wanted = ", ".join(f"{a}-{b}" if a != b else str(a) for a, b in check.expect)
        location = [plain(value) for key, value in event.headers if key == b"location"]
        to = f" (to {location[0]})" if location else ""
        words = f"answered {check.method} {check.path} by {answer}{to}; expected {wanted}"
        raise CheckError(words, FailureKind.UNEXPECTED)
    if check.body:
        await _body(check, attempt, connection, stream, answer)
    return f"answered {answer}"


async def _body(
    check: Http, attempt: Attempt, connection: h11.Connection, stream: Stream, answer: str
) -> None:
    """Look for the expression in the body's first bytes."""
    attempt.missing = f"answered {answer}, but did not send its body"
    pattern = re.compile(check.body.encode())
    body = b""
    while len(body) < check.body_limit:
        event = await _next(connection, stream)
        if not isinstance(event, h11.Data):
            break
        body += event.data
    if not pattern.search(body[: check.body_limit]):
        words = f"answered {answer}, but /{check.body}/ is not in the body ({len(body)} bytes)"
        raise CheckError(words, FailureKind.UNEXPECTED)


async def _next(connection: h11.Connection, stream: Stream) -> _Event:
    while True:
        event = connection.next_event()
        if event is not h11.NEED_DATA:
            return event
        data = await stream.some()
        connection.receive_data(data)
        if not data:
            try:
                return connection.next_event()
            except h11.RemoteProtocolError as error:
                words = "closed the connection before its answer was complete"
                raise CheckError(words, FailureKind.CLOSED) from error


def _literal(attempt: Attempt) -> str:
    """The Host header for an address: in brackets if IPv6 (RFC 3986); the port where unusual."""
    target = attempt.target
    return f"{target}" if target.port not in (80, 443) else str(target).rpartition(":")[0]
