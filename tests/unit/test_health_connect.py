"""Where a check's connection comes from and goes to, and what a failing one says."""

from __future__ import annotations

import asyncio
import errno
import ssl
from dataclasses import replace
from ipaddress import ip_address

import pytest

from lbdr.health.checks.attempt import describe
from lbdr.health.checks.run import run
from lbdr.health.results import Failed, FailureKind, Passed, Result
from lbdr.health.spec import Connect, Dns, Hl7Mllp, Negotiate, Probe, Target, Transport
from lbdr.model import Address


async def seen_from(target: Target, check: Connect | Negotiate | Hl7Mllp) -> tuple[Result, str]:
    """A check of a server that runs at the target's address, and the peer that the server saw."""
    seen = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not seen.done():
            seen.set_result(writer.get_extra_info("peername")[0])
        writer.write(b"hello")
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, str(target.address), 0)
    target = replace(target, port=server.sockets[0].getsockname()[1])
    result = await run(Probe(target, check))
    peer: str = await asyncio.wait_for(seen, 5)
    server.close()
    while others := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(others)
    return result, peer


@pytest.mark.parametrize("check", [Connect(), Negotiate(expect=b"hello")])
@pytest.mark.parametrize(
    ("address", "source", "peer"),
    [
        ("127.0.0.1", None, "127.0.0.1"),
        ("127.0.0.1", "127.0.0.77", "127.0.0.77"),
        ("::1", None, "::1"),
    ],
)
def test_a_check_comes_from_its_source(
    check: Connect | Negotiate, address: str, source: str | None, peer: str
) -> None:
    own: Address | None = ip_address(source) if source else None
    result, seen = asyncio.run(seen_from(Target(ip_address(address), 0, own), check))
    assert isinstance(result, Passed), result
    assert seen == peer


def test_a_source_that_is_not_here_is_a_fault_of_the_director() -> None:
    target = Target(ip_address("127.0.0.1"), 9, source=ip_address("192.0.2.1"))
    for check in (Connect(), Negotiate(b"x"), Negotiate(b"x", transport=Transport.UDP), Dns("x")):
        result = asyncio.run(run(Probe(target, check)))
        assert isinstance(result, Failed)
        assert result.kind is FailureKind.LOCAL
        assert "the source address is not on this machine" in result.words


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (errno.ECONNREFUSED, FailureKind.REFUSED, "refused the connection: nothing listens there"),
        (errno.ECONNRESET, FailureKind.RESET, "reset the connection"),
        (errno.EHOSTUNREACH, FailureKind.UNREACHABLE, "does not answer ARP"),
        (errno.ENETUNREACH, FailureKind.UNREACHABLE, "no route to it"),
        (errno.ETIMEDOUT, FailureKind.TIMEOUT, "did not answer the connection"),
        (errno.EMFILE, FailureKind.LOCAL, "too many files are open"),
        (errno.EPERM, FailureKind.LOCAL, "a firewall rule of this director forbids it"),
        (errno.ENOBUFS, FailureKind.LOCAL, "No buffer space available"),
    ],
)
def test_errors_are_told_in_words(number: int, kind: FailureKind, words: str) -> None:
    described = describe(OSError(number, "x"))
    assert described.kind is kind
    assert words in described.words


def test_errors_of_asyncio_have_no_number() -> None:
    assert describe(ConnectionResetError()).kind is FailureKind.RESET
    assert describe(ConnectionAbortedError("SSL")).kind is FailureKind.RESET
    assert describe(OSError("odd")).words == "could not be asked: odd"


def test_an_alert_is_told() -> None:
    error = ssl.SSLError(1, "[SSL: TLSV1_ALERT_PROTOCOL_VERSION] tlsv1 alert protocol version")
    error.reason = "TLSV1_ALERT_PROTOCOL_VERSION"
    assert describe(error).words == "refused our TLS: protocol version"
