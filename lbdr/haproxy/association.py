"""A DICOM association request (PS3.8 9.3.2), read as dicom.lua reads it; pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from lbdr.haproxy.render.dicom import MAX_REQUEST

APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
IMPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2"
_HEADER = 6
_FIXED = 68  # version, AE titles, reserved
_MAX_CONTEXTS = 128  # odd numbers of one byte
_TLS_HANDSHAKE = 0x16
_UID = re.compile(rb"([0-9.]{1,64})[ \0]*")

ANSWERS: Mapping[str, bytes] = MappingProxyType(
    {
        # A-ABORT by the provider: unrecognized, unexpected, invalid PDU
        "tls": bytes((7, 0, 0, 0, 0, 4, 0, 0, 2, 1)),
        "http": bytes((7, 0, 0, 0, 0, 4, 0, 0, 2, 1)),
        "unknown-pdu": bytes((7, 0, 0, 0, 0, 4, 0, 0, 2, 1)),
        "unexpected-pdu": bytes((7, 0, 0, 0, 0, 4, 0, 0, 2, 2)),
        "malformed": bytes((7, 0, 0, 0, 0, 4, 0, 0, 2, 6)),
        "trailing": bytes((7, 0, 0, 0, 0, 4, 0, 0, 2, 2)),
        "truncated": bytes((7, 0, 0, 0, 0, 4, 0, 0, 2, 0)),
        # A-ASSOCIATE-RJ: result (1 for good, 2 for now), source, reason
        "oversized": bytes((3, 0, 0, 0, 0, 4, 0, 1, 3, 2)),
        "version": bytes((3, 0, 0, 0, 0, 4, 0, 1, 2, 2)),
        "context": bytes((3, 0, 0, 0, 0, 4, 0, 1, 1, 2)),
        "called-ae": bytes((3, 0, 0, 0, 0, 4, 0, 1, 1, 7)),
        "calling-ae": bytes((3, 0, 0, 0, 0, 4, 0, 1, 1, 3)),
        "rule": bytes((3, 0, 0, 0, 0, 4, 0, 1, 1, 1)),
        "no-server": bytes((3, 0, 0, 0, 0, 4, 0, 2, 3, 1)),
    }
)
"""What the director answers, by the reason of a refusal (PS3.8 9.3.4, 9.3.8)."""


@dataclass(frozen=True, slots=True)
class Association:
    """What an association request says of itself.

    Args:
        called_ae: without the spaces around it.
        calling_ae: likewise.
        sop_classes: the abstract syntaxes that it proposes, in its order.
    """

    called_ae: str
    calling_ae: str
    sop_classes: tuple[str, ...]


class RefusedError(ValueError):
    """A request that the director refuses.

    Args:
        reason: a key of ANSWERS, or "empty".
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def parse(data: bytes) -> Association:
    """Read all that a client sent.

    Raises:
        RefusedError: it is no whole, valid association request and nothing more.
    """
    _check_header(data)
    called, calling = _ae_title(data[10:26]), _ae_title(data[26:42])
    application, classes = _items(data[74:])
    if application != APPLICATION_CONTEXT:
        raise RefusedError("context")
    if not called:
        raise RefusedError("called-ae")
    if not calling:
        raise RefusedError("calling-ae")
    return Association(called, calling, tuple(classes))


def build(association: Association, *, transfer_syntaxes: int = 1) -> bytes:
    """A request that says what an association says; for trying a director out.

    Args:
        association: what it says.
        transfer_syntaxes: how many are proposed with each SOP class.
    """
    contexts = b"".join(
        _item(
            0x20,
            bytes((2 * number + 1, 0, 0, 0))
            + _item(0x30, uid.encode())
            + _item(0x40, IMPLICIT_LITTLE_ENDIAN.encode()) * transfer_syntaxes,
        )
        for number, uid in enumerate(association.sop_classes)
    )
    user = _item(0x51, (16384).to_bytes(4)) + _item(0x52, b"1.2.826.0.1.3680043.8.498.1")
    body = (
        b"\0\1\0\0"
        + association.called_ae.encode().ljust(16)
        + association.calling_ae.encode().ljust(16)
        + bytes(32)
        + _item(0x10, APPLICATION_CONTEXT.encode())
        + contexts
        + _item(0x50, user)
    )
    return b"\1\0" + len(body).to_bytes(4) + body


def _check_header(data: bytes) -> None:
    if not data:
        raise RefusedError("empty")
    if data[0] != 1:
        raise RefusedError(_no_association(data[0]))
    if len(data) < _HEADER:
        raise RefusedError("truncated")
    length = int.from_bytes(data[2:6])
    if length > MAX_REQUEST:
        raise RefusedError("oversized")
    if length < _FIXED:
        raise RefusedError("malformed")
    if len(data) != _HEADER + length:
        raise RefusedError("truncated" if len(data) < _HEADER + length else "trailing")
    if data[7] % 2 == 0:
        raise RefusedError("version")


def _item(kind: int, value: bytes) -> bytes:
    return bytes((kind, 0)) + len(value).to_bytes(2) + value


def _no_association(first: int) -> str:
    if first == _TLS_HANDSHAKE:
        return "tls"
    if ord("A") <= first <= ord("Z"):
        return "http"
    return "unexpected-pdu" if 2 <= first <= 7 else "unknown-pdu"


def _ae_title(field: bytes) -> str:
    text = field.rstrip(b" \0").lstrip(b" ")
    if any(byte < 32 or byte > 126 or byte == ord("\\") for byte in text):
        raise RefusedError("malformed")
    return text.decode("ascii")


def _parts(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and value of the items that fill the data."""
    at = 0
    while at < len(data):
        end = at + 4 + int.from_bytes(data[at + 2 : at + 4])
        if len(data) - at < 4 or end > len(data):
            raise RefusedError("malformed")
        yield data[at], data[at + 4 : end]
        at = end


def _items(data: bytes) -> tuple[str, list[str]]:
    applications: list[str] = []
    classes: list[str] = []
    seen: set[int] = set()
    users = 0
    for kind, value in _parts(data):
        if kind == 0x10:
            applications.append(_uid(value))
        elif kind == 0x20:
            classes.append(_context(value, seen))
        elif kind == 0x50:
            users += 1
            if any(part == 0x51 and len(of) != 4 for part, of in _parts(value)):
                raise RefusedError("malformed")
    if len(applications) != 1 or users != 1 or not 1 <= len(classes) <= _MAX_CONTEXTS:
        raise RefusedError("malformed")
    return applications[0], classes


def _context(value: bytes, seen: set[int]) -> str:
    if len(value) < 4 or value[0] % 2 == 0 or value[0] in seen:
        raise RefusedError("malformed")
    seen.add(value[0])
    abstract: list[str] = []
    transfers = 0
    for kind, uid in _parts(value[4:]):
        if kind == 0x30:
            abstract.append(_uid(uid))
        elif kind == 0x40:
            _uid(uid)
            transfers += 1
    if len(abstract) != 1 or not transfers:
        raise RefusedError("malformed")
    return abstract[0]


def _uid(value: bytes) -> str:
    found = _UID.fullmatch(value)
    if found is None:
        raise RefusedError("malformed")
    return found[1].decode("ascii")
