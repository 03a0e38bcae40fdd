"""What a check found, once."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias


class FailureKind(StrEnum):
    """What was wrong."""

    REFUSED = "refused"  # nothing listens there
    TIMEOUT = "timeout"
    RESET = "reset"
    CLOSED = "closed"  # before the answer was complete
    UNREACHABLE = "unreachable"
    TLS = "tls"
    CERTIFICATE = "certificate"
    PROTOCOL = "protocol"  # the answer makes no sense
    REJECTED = "rejected"  # understood, and the answer is no
    UNEXPECTED = "unexpected"  # a valid answer that is not the one wanted
    LOCAL = "local"  # this director could not ask: no verdict on the server


@dataclass(frozen=True, slots=True)
class Passed:
    """The check passed.

    Args:
        latency: seconds that it took.
        words: what was seen.
    """

    latency: float
    words: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The check failed, or could not be made.

    Args:
        latency: seconds that it took.
        words: what was wrong, for the server's administrator.
        kind: the same for a program.
    """

    latency: float
    words: str
    kind: FailureKind


Result: TypeAlias = Passed | Failed
