"""Peers that send anything at all: a check fails in its own words, and never by itself."""

from __future__ import annotations

import asyncio
import struct
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbdr.health.checks import dicom, dns, ldap, oracle, stream
from lbdr.health.checks.attempt import Attempt, CheckError, plain, quote
from lbdr.health.checks.run import run
from lbdr.health.results import Failed, FailureKind, Passed, Result
from lbdr.health.spec import (
    Check,
    DicomEcho,
    Dns,
    Hl7Mllp,
    Http,
    Ldap,
    Negotiate,
    OracleTns,
    Probe,
    Smtp,
    Target,
    Timing,
)

MESSAGE = "MSH|^~\\&|A|B|C|D|20260101||ADT^A01|1|P|2.3"


def pdu(kind: int, body: bytes) -> bytes:
    return struct.pack("!BBI", kind, 0, len(body)) + body


def echo_answer(status: int) -> bytes:
    """A C-ECHO-RSP: command field and status (PS3.7 section 9.3.5.2)."""
    command = struct.pack("<HHIH", 0, 0x0100, 2, 0x8030) + struct.pack(
        "<HHIH", 0, 0x0900, 2, status
    )
    return pdu(4, struct.pack("!IBB", len(command) + 2, 1, 3) + command)


# what a peer may begin with, so that random bytes get further than the first one
CHECKS: dict[str, tuple[Check, list[bytes]]] = {
    "http": (Http(body="x"), [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\n\r\n"]),
    "dicom": (
        DicomEcho(),
        [
            b"",
            pdu(3, b"\0\1\1"),
            pdu(2, bytes(68)),
            pdu(2, bytes(68) + b"\x21\0\0\4\1\0\0\0"),
            pdu(2, bytes(68) + b"\x21\0\0\4\1\0\0\0") + b"\4\0\0\0\0\x14",
            pdu(2, bytes(68) + b"\x21\0\0\4\1\0\0\0") + pdu(4, b"\0\0\0\x0a\1\3\0\0\0\x09\2\0\0\0"),
        ],
    ),
    "hl7": (Hl7Mllp(MESSAGE), [b"", b"\x0bMSH|", b"\x0bMSH|^~\\&|\rMSA", b"\x0bMSH|\rMSA|"]),
    "oracle": (OracleTns("X"), [b"", b"\0\x20\0\0\4\0\0\0", b"\0\x08\0\0\x0b\0\0\0"]),
    "ldap": (Ldap(), [b"", b"\x30\x0c\2\1\2\x61", b"\x30\x84\0\0\0\x10", b"\x30\xff"]),
    "smtp": (Smtp(), [b"", b"220 x\r\n", b"220-x\r\n", b"220 x\r\n250 y\r\n"]),
    "dns": (Dns("pacs.test", tcp=True), [b"", b"\0\x30"]),
    "negotiate": (Negotiate(b"x", b"\xff\xfe"), [b""]),
}
ENDINGS = [b"", b"\r\n", b"\x1c\r", b"\r\n\r\n"]


async def answered(check: Check, answer: bytes) -> Result:
    """What a check finds where a peer sends bytes and hangs up."""

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)
        writer.write_eof()
        while await reader.read(65536):  # until the check hangs up: no RST overtakes the answer
            pass
        writer.close()

    async def greeting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        writer.write_eof()
        while await reader.read(65536):
            pass
        writer.close()

    server = await asyncio.start_server(
        greeting if isinstance(check, Smtp) else peer, "127.0.0.1", 0
    )
    target = Target(ip_address("127.0.0.1"), server.sockets[0].getsockname()[1])
    result = await run(Probe(target, check, Timing(timeout=5)))
    server.close()
    while others := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(others)
    return result


@pytest.mark.parametrize("name", CHECKS)
@settings(max_examples=60)
@given(st.data())
def test_random_answers_are_failures_in_words(name: str, data: st.DataObject) -> None:
    check, beginnings = CHECKS[name]
    answer = (
        data.draw(st.sampled_from(beginnings))
        + data.draw(st.binary(max_size=80))
        + data.draw(st.sampled_from(ENDINGS))
    )
    result = asyncio.run(answered(check, answer))
    if isinstance(result, Failed):
        assert result.kind is not FailureKind.LOCAL, result
        assert result.kind is not FailureKind.TIMEOUT, result
        assert result.words.isprintable()
        assert len(result.words) < 500


@given(st.binary(max_size=200))
def test_a_random_datagram_is_no_answer(answer: bytes) -> None:
    """Or it is one that says no; nothing else is raised."""
    check = Dns("pacs.test")
    query = dns.make_query(check, 7)
    for said in (
        answer,
        query[:2] + b"\x81\x80" + answer,
        query[:2] + b"\x81\x80" + query[4:] + answer,
    ):
        try:
            dns.judge(check, query, said)
        except (dns.NotOurs, CheckError):
            continue


def test_an_answer_may_come_in_any_pieces() -> None:
    """A whole DICOM dialogue, byte by byte."""
    accept = pdu(2, bytes(68) + b"\x21\0\0\4\1\0\0\0")
    whole = accept + echo_answer(0) + pdu(6, bytes(4))

    async def work() -> Result:
        async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1)
            for number in range(len(whole)):
                writer.write(whole[number : number + 1])
                await writer.drain()
            while await reader.read(4096):
                pass
            writer.close()

        server = await asyncio.start_server(drip, "127.0.0.1", 0)
        target = Target(ip_address("127.0.0.1"), server.sockets[0].getsockname()[1])
        result = await run(Probe(target, DicomEcho()))
        server.close()
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others)
        return result

    result = asyncio.run(work())
    assert isinstance(result, Passed), result
    assert result.words == "answered a C-ECHO as ANY-SCP"


def test_a_dicom_status_is_told() -> None:
    accept = pdu(2, bytes(68) + b"\x21\0\0\4\1\0\0\0")
    result = asyncio.run(answered(DicomEcho(), accept + echo_answer(0x0122)))
    assert isinstance(result, Failed)
    assert result.words.endswith("by status 0122H (SOP class not supported)")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (pdu(3, b"\0\1\1\3"), "permanently: calling AE title not recognized (we are LBDR)"),
        (pdu(3, b"\0\2\3\1"), "for now: temporary congestion"),
        (pdu(3, b"\0\2\3\2"), "for now: local limit exceeded"),
        (pdu(7, b"\0\0\2\1"), "aborted after the association request: unrecognized PDU"),
        (pdu(7, b"\0\0\0\0"), "aborted after the association request: by its application"),
        (pdu(2, bytes(68) + b"\x21\0\0\4\1\0\3\0"), "no C-ECHO: abstract syntax not supported"),
        (pdu(2, bytes(68)), "accepted the association without a presentation context"),
    ],
)
def test_a_dicom_server_says_why(answer: bytes, words: str) -> None:
    result = asyncio.run(answered(DicomEcho(), answer))
    assert isinstance(result, Failed)
    assert result.kind in (FailureKind.REJECTED, FailureKind.PROTOCOL)
    assert words in result.words


def test_the_association_request_has_its_titles_where_they_belong() -> None:
    """DICOM PS3.8 table 9-11: from 10 and from 26, padded by spaces."""
    request = dicom.associate_request(DicomEcho("PACS", "A" * 20))
    assert request[:2] == b"\1\0"
    assert int.from_bytes(request[2:6]) == len(request) - 6
    assert request[10:26] == b"PACS".ljust(16)
    assert request[26:42] == b"A" * 16
    assert request[74:78] == b"\x10\0\0\x15"


def test_a_long_value_is_encoded_in_the_long_form() -> None:
    value = b"x" * 300
    encoded = ldap.encode(4, value)
    assert encoded[:6] == b"\4\x84\0\0\1\x2c"
    assert ldap.decode(encoded + b"rest") == (4, value, b"rest")


def test_a_connect_packet_points_to_its_data() -> None:
    packet = oracle.connect_packet(OracleTns("PACS"))
    length, _, kind, _, _ = struct.unpack_from("!HHBBH", packet)
    size, offset = struct.unpack_from("!HH", packet, 24)
    assert (length, kind) == (len(packet), 1)
    assert packet[offset : offset + size].startswith(
        b"(DESCRIPTION=(CONNECT_DATA=(SERVICE_NAME=PACS)"
    )
    assert offset + size == length


@given(st.binary(max_size=300))
def test_words_of_a_peer_do_no_harm_on_a_terminal(data: bytes) -> None:
    assert quote(data).isprintable()
    assert len(quote(data)) < 260
    assert plain(data).isprintable()
    assert len(plain(data)) <= 203


def test_what_came_before_starttls_is_not_trusted() -> None:
    """CVE-2011-0411: it would count as said within TLS."""

    async def work() -> None:
        reader = asyncio.StreamReader()
        reader.feed_data(b"220 go ahead\r\n250 injected\r\n")
        attempt = Attempt(Target(ip_address("127.0.0.1"), 25), 1.0)
        made = stream.Stream(attempt, reader, None)  # type: ignore[arg-type]
        assert await made.until(b"\n", 100, "a reply") == b"220 go ahead\r"
        with pytest.raises(CheckError, match="more than its answer to STARTTLS"):
            await made.start_tls(Smtp().tls)

    asyncio.run(work())
