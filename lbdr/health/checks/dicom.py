"""dicom-echo: an association, a C-ECHO and a release (DICOM PS3.8 9.3, PS3.7 9.3.5)."""

from __future__ import annotations

import struct

from lbdr.health.checks.attempt import Attempt, CheckError, quote
from lbdr.health.checks.stream import Stream, connected
from lbdr.health.results import FailureKind
from lbdr.health.spec import DicomEcho

_ASSOCIATE_RQ, _ASSOCIATE_AC, _ASSOCIATE_RJ, _DATA, _RELEASE_RQ, _RELEASE_RP, _ABORT = range(1, 8)
_LARGEST = 1 << 20  # bytes of a PDU that is taken

_CONTEXT = b"1.2.840.10008.3.1.1.1"
_VERIFICATION = b"1.2.840.10008.1.1"
_IMPLICIT_LITTLE_ENDIAN = b"1.2.840.10008.1.2"
_IMPLEMENTATION = b"2.25.300421856913379086149276054839527384915"
_ECHO_RQ, _ECHO_RSP, _NO_DATA_SET = 0x0030, 0x8030, 0x0101
_AFFECTED_SOP, _COMMAND, _MESSAGE, _DATA_SET, _STATUS = 0x0002, 0x0100, 0x0110, 0x0800, 0x0900

# PS3.8 table 9-21
_REJECTIONS = {
    (1, 1): "no reason given",
    (1, 2): "application context name not supported",
    (1, 3): "calling AE title not recognized",
    (1, 7): "called AE title not recognized",
    (2, 1): "no reason given",
    (2, 2): "protocol version not supported",
    (3, 1): "temporary congestion",
    (3, 2): "local limit exceeded",
}
_PERMANENCE = {1: "permanently", 2: "for now"}
# PS3.8 table 9-26
_ABORTS = {
    0: "reason not specified",
    1: "unrecognized PDU",
    2: "unexpected PDU",
    4: "unrecognized PDU parameter",
    5: "unexpected PDU parameter",
    6: "invalid PDU parameter value",
}
# PS3.8 table 9-18
_CONTEXT_RESULTS = {
    1: "user rejection",
    2: "no reason",
    3: "abstract syntax not supported",
    4: "transfer syntaxes not supported",
}
# PS3.7 section 9.1.5.1.4
_STATUSES = {0x0122: "SOP class not supported", 0x0210: "duplicate invocation"}
_STATUSES |= {0x0211: "unrecognized operation", 0x0212: "mistyped argument"}


async def dicom_echo(check: DicomEcho, attempt: Attempt) -> str:
    """Whether an application entity answers a C-ECHO."""
    async with connected(attempt, check.tls) as stream:
        attempt.missing = "accepted the connection, but did not answer the association request"
        await stream.send(associate_request(check))
        kind, body = await _receive(stream)
        if kind == _ASSOCIATE_RJ:
            raise _rejected(check, body)
        _require(kind, _ASSOCIATE_AC, body, "the association request")
        _require_context(body)
        attempt.missing = "accepted the association, but did not answer the C-ECHO"
        await stream.send(_pdu(_DATA, _fragment(_echo_request())))
        status = await _echo_status(stream)
        if status:
            meaning = _STATUSES.get(status, "a failure")
            words = f"answered the C-ECHO by status {status:04X}H ({meaning})"
            raise CheckError(words, FailureKind.REJECTED)
        attempt.missing = "answered the C-ECHO, but not the release of the association"
        await stream.send(_pdu(_RELEASE_RQ, bytes(4)))
        kind, body = await _receive(stream)
        _require(kind, _RELEASE_RP, body, "the release request")
    return f"answered a C-ECHO as {check.called_ae}"


# --- saying -------------------------------------------------------------------------------------


def associate_request(check: DicomEcho) -> bytes:
    """An A-ASSOCIATE-RQ that proposes Verification alone."""
    syntaxes = _item(0x30, _VERIFICATION) + _item(0x40, _IMPLICIT_LITTLE_ENDIAN)
    user = _item(0x51, struct.pack("!I", 16384)) + _item(0x52, _IMPLEMENTATION)
    titles = _title(check.called_ae) + _title(check.calling_ae)
    return _pdu(
        _ASSOCIATE_RQ,
        struct.pack("!HH", 1, 0)
        + titles
        + bytes(32)
        + _item(0x10, _CONTEXT)
        + _item(0x20, bytes((1, 0, 0, 0)) + syntaxes)
        + _item(0x50, user),
    )


def _title(title: str) -> bytes:
    return title.encode("ascii", errors="replace")[:16].ljust(16)


def _pdu(kind: int, body: bytes) -> bytes:
    return struct.pack("!BBI", kind, 0, len(body)) + body


def _item(kind: int, body: bytes) -> bytes:
    return struct.pack("!BBH", kind, 0, len(body)) + body


def _fragment(command: bytes) -> bytes:
    """A presentation data value: context 1, a command, the last of its fragments."""
    return struct.pack("!IBB", len(command) + 2, 1, 3) + command


def _element(number: int, value: bytes) -> bytes:
    return struct.pack("<HHI", 0, number, len(value)) + value


def _echo_request() -> bytes:
    elements = (
        _element(_AFFECTED_SOP, _VERIFICATION + b"\0")
        + _element(_COMMAND, struct.pack("<H", _ECHO_RQ))
        + _element(_MESSAGE, struct.pack("<H", 1))
        + _element(_DATA_SET, struct.pack("<H", _NO_DATA_SET))
    )
    return _element(0, struct.pack("<I", len(elements))) + elements


# --- understanding ------------------------------------------------------------------------------


async def _receive(stream: Stream) -> tuple[int, bytes]:
    """The next PDU: its type and what follows its header."""
    header = await stream.exactly(6, "a DICOM answer")
    kind, _, length = struct.unpack("!BBI", header)
    if not _ASSOCIATE_RQ <= kind <= _ABORT or length > _LARGEST:
        words = f"does not speak DICOM: its answer begins with {quote(header)}"
        raise CheckError(words, FailureKind.PROTOCOL)
    return kind, await stream.exactly(length, "a DICOM answer")


def _require(kind: int, wanted: int, body: bytes, what: str) -> None:
    if kind == wanted:
        return
    if kind == _ABORT:
        by_provider = len(body) >= 4 and body[2] == 2
        why = _ABORTS.get(body[3], "unknown reason") if by_provider else "by its application"
        raise CheckError(f"aborted after {what}: {why}", FailureKind.REJECTED)
    raise CheckError(f"answered {what} by a PDU of type {kind:02X}H", FailureKind.PROTOCOL)


def _rejected(check: DicomEcho, body: bytes) -> CheckError:
    if len(body) < 4:
        return CheckError("rejected the association, and did not say why", FailureKind.REJECTED)
    _, result, source, reason = body[:4]
    why = _REJECTIONS.get((source, reason), f"source {source}, reason {reason}")
    if (source, reason) == (1, 7):
        why += f" (we called {check.called_ae})"
    if (source, reason) == (1, 3):
        why += f" (we are {check.calling_ae})"
    lasting = _PERMANENCE.get(result, "")
    return CheckError(f"rejected the association {lasting}: {why}", FailureKind.REJECTED)


def _require_context(body: bytes) -> None:
    """Whether Verification was accepted."""
    items = body[68:]
    while len(items) >= 4:
        kind, _, length = struct.unpack_from("!BBH", items)
        if kind == 0x21 and length >= 4:
            result = items[6]
            if result == 0:
                return
            why = _CONTEXT_RESULTS.get(result, f"result {result}")
            raise CheckError(f"accepts associations, but no C-ECHO: {why}", FailureKind.REJECTED)
        items = items[4 + length :]
    words = "accepted the association without a presentation context"
    raise CheckError(words, FailureKind.PROTOCOL)


async def _echo_status(stream: Stream) -> int:
    """The status of the answer to the C-ECHO."""
    command, last = b"", False
    while not last:
        kind, body = await _receive(stream)
        _require(kind, _DATA, body, "the C-ECHO")
        while len(body) >= 6:
            length, _, control = struct.unpack_from("!IBB", body)
            command += body[6 : 4 + length]
            last = last or control & 3 == 3
            body = body[4 + max(2, length) :]
        if len(command) > _LARGEST:
            raise CheckError("answered the C-ECHO without an end", FailureKind.PROTOCOL)
    elements: dict[int, bytes] = {}
    while len(command) >= 8:
        group, number, length = struct.unpack_from("<HHI", command)
        if group == 0:
            elements[number] = command[8 : 8 + length]
        command = command[8 + length :]
    if (
        elements.get(_COMMAND) != struct.pack("<H", _ECHO_RSP)
        or len(elements.get(_STATUS, b"")) != 2
    ):
        raise CheckError("answered the C-ECHO by something else", FailureKind.PROTOCOL)
    (status,) = struct.unpack("<H", elements[_STATUS])
    return int(status)
