"""One run of a check: what it waits for, what passes by, and the words for what goes wrong."""

from __future__ import annotations

import errno
import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass

from lbdr.health.results import FailureKind
from lbdr.health.spec import Target

Trace = Callable[[str, bytes], None]
"""Told what was "sent", "received" and done ("note"), for a person who writes a check."""

_QUOTED = 60

_KINDS = {
    errno.ECONNREFUSED: FailureKind.REFUSED,
    errno.ECONNRESET: FailureKind.RESET,
    errno.EPIPE: FailureKind.RESET,
    errno.ECONNABORTED: FailureKind.RESET,
    errno.ETIMEDOUT: FailureKind.TIMEOUT,
    errno.EHOSTUNREACH: FailureKind.UNREACHABLE,
    errno.ENETUNREACH: FailureKind.UNREACHABLE,
    errno.EHOSTDOWN: FailureKind.UNREACHABLE,
    errno.EPROTO: FailureKind.PROTOCOL,
}
_WORDS = {
    errno.ECONNREFUSED: "refused the connection: nothing listens there",
    errno.ECONNRESET: "reset the connection",
    errno.EPIPE: "reset the connection",
    errno.ECONNABORTED: "broke off the connection",
    errno.ETIMEDOUT: "did not answer the connection",
    errno.EHOSTUNREACH: "cannot be reached: it does not answer ARP or neighbour discovery, or a "
    "router says so",
    errno.ENETUNREACH: "cannot be reached: this director has no route to it",
    errno.EHOSTDOWN: "is down, the network says",
}
_HINTS = {
    errno.EMFILE: "too many files are open",
    errno.ENFILE: "too many files are open on this machine",
    errno.EADDRNOTAVAIL: "no local port is left, or the source address is not on this machine",
    errno.EPERM: "a firewall rule of this director forbids it",
    errno.EACCES: "not permitted; is there a rule or a route that forbids it?",
}


class CheckError(Exception):
    """A check failed.

    Args:
        words: what was wrong; the target's name goes before it.
        kind: the same for a program.
    """

    def __init__(self, words: str, kind: FailureKind) -> None:
        super().__init__(words)
        self.words = words
        self.kind = kind


@dataclass(slots=True)
class Attempt:
    """One run of a check.

    Args:
        target: what is checked.
        timeout: seconds that there are in all.
        trace: told of everything; None for nobody.
        missing: what did not happen, where time runs out now.
    """

    target: Target
    timeout: float
    trace: Trace | None = None
    missing: str = "did not answer"

    def sent(self, data: bytes) -> None:
        """Note what was sent."""
        if self.trace is not None:
            self.trace("sent", data)

    def received(self, data: bytes) -> None:
        """Note what was received."""
        if self.trace is not None:
            self.trace("received", data)

    def note(self, words: str) -> None:
        """Note what was done."""
        if self.trace is not None:
            self.trace("note", words.encode())


def describe(error: OSError) -> CheckError:
    """What an error of a socket or of TLS means."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return CheckError(
            f"has a certificate that is not valid: {error.verify_message}", FailureKind.CERTIFICATE
        )
    if isinstance(error, ssl.SSLError):
        return _tls(error)
    number = error.errno
    if number is None:
        number = errno.ECONNRESET if isinstance(error, ConnectionResetError) else 0
        number = errno.ECONNABORTED if isinstance(error, ConnectionAbortedError) else number
    kind = _KINDS.get(number)
    if kind is not None:
        return CheckError(_WORDS.get(number, os.strerror(number).lower()), kind)
    hint = _HINTS.get(number, "")
    words = f"could not be asked: {os.strerror(number) if number else error}"
    return CheckError(words + (f" ({hint})" if hint else ""), FailureKind.LOCAL)


def quote(data: bytes) -> str:
    """Bytes of a peer in an error: short, and harmless on a terminal."""
    text = data[:_QUOTED].decode("latin-1")
    shown = "".join(char if " " <= char <= "~" else f"\\x{ord(char):02x}" for char in text)
    return f'"{shown}"' + ("..." if len(data) > _QUOTED else "")


def plain(data: bytes, limit: int = 200) -> str:
    """A peer's own text on one line, harmless on a terminal."""
    text = data.decode("utf-8", errors="replace")
    words = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return words if len(words) <= limit else words[:limit] + "..."


def _tls(error: ssl.SSLError) -> CheckError:
    reason = (error.reason or str(error)).replace("_", " ").lower()
    if error.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL"):
        return CheckError("does not speak TLS there: its answer is something else", FailureKind.TLS)
    if "certificate required" in reason:
        return CheckError("wants a client certificate", FailureKind.TLS)
    if "alert" in reason:
        said = reason.partition("alert")[2].strip()
        return CheckError(f"refused our TLS: {said}", FailureKind.TLS)
    if "record layer failure" in reason or "unexpected message" in reason:
        return CheckError(f"does not speak TLS there: {reason}", FailureKind.TLS)
    return CheckError(f"failed the TLS handshake: {reason}", FailureKind.TLS)
