"""ldap: a bind, by StartTLS or LDAPS where wanted (RFC 4511, RFC 4513)."""

from __future__ import annotations

from lbdr.health.checks.attempt import Attempt, CheckError, plain, quote
from lbdr.health.checks.stream import Stream, connected
from lbdr.health.results import FailureKind
from lbdr.health.spec import Ldap, LdapSecurity

_INTEGER, _OCTETS, _ENUMERATED, _SEQUENCE = 0x02, 0x04, 0x0A, 0x30
_BIND, _BOUND, _UNBIND, _EXTENDED, _EXTENDED_ANSWER = 0x60, 0x61, b"\x42\x00", 0x77, 0x78
_SIMPLE, _REQUEST_NAME = 0x80, 0x80
_STARTTLS = b"1.3.6.1.4.1.1466.20037"
_LIMIT = 65536

# RFC 4511 section 4.1.9
_RESULTS = {
    1: "operations error",
    2: "protocol error",
    8: "stronger authentication required",
    13: "confidentiality required",
    34: "invalid DN",
    48: "inappropriate authentication",
    49: "invalid credentials",
    51: "busy",
    52: "unavailable",
    53: "unwilling to perform",
    80: "other error",
}


async def ldap(check: Ldap, attempt: Attempt) -> str:
    """Whether a directory accepts a bind."""
    direct = check.tls if check.security is LdapSecurity.LDAPS else None
    async with connected(attempt, direct) as stream:
        if check.security is LdapSecurity.STARTTLS:
            attempt.missing = "accepted the connection, but did not answer StartTLS"
            await stream.send(_message(1, encode(_EXTENDED, encode(_REQUEST_NAME, _STARTTLS))))
            await _result(stream, _EXTENDED_ANSWER, "StartTLS")
            attempt.missing = "agreed to StartTLS, but did not complete the TLS handshake"
            await stream.start_tls(check.tls)
        attempt.missing = "accepted the connection, but did not answer the bind"
        password = encode(_SIMPLE, check.password.encode())
        version = encode(_INTEGER, b"\x03")
        request = version + encode(_OCTETS, check.bind_dn.encode()) + password
        await stream.send(_message(2, encode(_BIND, request)))
        await _result(stream, _BOUND, "the bind")
        await stream.send(_message(3, _UNBIND))
    return "accepted a bind" if check.bind_dn else "accepted an anonymous bind"


async def _result(stream: Stream, wanted: int, what: str) -> None:
    """Read an answer; CheckError unless it says success."""
    head = await stream.exactly(2, f"an answer to {what}")
    if head[0] != _SEQUENCE:
        words = f"does not speak LDAP: its answer begins with {quote(head)}"
        raise CheckError(words, FailureKind.PROTOCOL)
    length = head[1]
    if length & 0x80:
        size = await stream.exactly(length & 0x7F, f"an answer to {what}")
        length = int.from_bytes(size)
    if length > _LIMIT:
        raise CheckError(f"answered {what} by {length} bytes", FailureKind.PROTOCOL)
    body = await stream.exactly(length, f"an answer to {what}")
    try:
        _, _, rest = decode(body)  # the message's number
        tag, operation, _ = decode(rest)
        kind, code, rest = decode(operation)
        _, _, rest = decode(rest)  # matched DN
        _, said, _ = decode(rest)
    except ValueError as error:
        raise CheckError(f"answered {what} by {quote(body)}", FailureKind.PROTOCOL) from error
    number = int.from_bytes(code)
    if tag != wanted or kind != _ENUMERATED:
        if tag == _EXTENDED_ANSWER and number:
            # a notice of disconnection (RFC 4511 section 4.4.1)
            words = f"ends the session: {_RESULTS.get(number, number)} {plain(said)}"
            raise CheckError(words.rstrip(), FailureKind.REJECTED)
        raise CheckError(f"answered {what} by something else", FailureKind.PROTOCOL)
    if number:
        meaning = _RESULTS.get(number, "an error")
        words = f"refused {what}: result {number} ({meaning}) {plain(said)}".rstrip()
        raise CheckError(words, FailureKind.REJECTED)


# --- BER (X.690, definite lengths) ----------------------------------------------------------------


def _message(number: int, operation: bytes) -> bytes:
    return encode(_SEQUENCE, encode(_INTEGER, bytes((number,))) + operation)


def encode(tag: int, value: bytes) -> bytes:
    """An element."""
    if len(value) < 0x80:
        return bytes((tag, len(value))) + value
    size = len(value).to_bytes(4)
    return bytes((tag, 0x84)) + size + value


def decode(data: bytes) -> tuple[int, bytes, bytes]:
    """Tag and value of the first element, and what follows it; ValueError where it is cut off."""
    if len(data) < 2:
        raise ValueError("an element is missing")
    tag, length, start = data[0], data[1], 2
    if length & 0x80:
        start += length & 0x7F
        length = int.from_bytes(data[2:start])
    if len(data) < start + length:
        raise ValueError("an element is cut off")
    return tag, data[start : start + length], data[start + length :]
