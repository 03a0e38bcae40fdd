"""How a virtual service treats its real servers' health: data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from lbdr.model import MAX_WEIGHT

_FINE = 100  # parts of a weight, where weights change in steps
FINE_UP_TO = MAX_WEIGHT // _FINE
"""The largest weight of which a hundredth can still be said."""


class OnFailure(StrEnum):
    """What becomes of a server that fails: its connections end, or may go on."""

    REMOVE = "remove"
    QUIESCE = "quiesce"


class Failback(StrEnum):
    """Who decides that a standby server hands back."""

    MANUAL = "manual"
    AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Member:
    """A real server of a virtual service.

    Args:
        weight: its share as configured; 0 takes no new connections.
        standby_for: the servers that it stands in for, while none of them can serve; empty for an
            active server. A standby's own name, and other standbys', mean nothing here.
    """

    weight: int = 1
    standby_for: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Quorum:
    """The weight that must be there for a service to be whole.

    Args:
        up: it is whole from this weight on.
        down: and until less than this weight is left; at most `up`.
    """

    up: int = 1
    down: int = 1


@dataclass(frozen=True, slots=True)
class Damping:
    """A server that goes up and down too often stays out until it is steady.

    Args:
        changes: that it may go down within the window; 0 for no damping.
        window: seconds.
        hold: seconds for which it must stay up before it may serve again.
    """

    changes: int = 0
    window: float = 600.0
    hold: float = 120.0


@dataclass(frozen=True, slots=True)
class Feedback:
    """How a feedback agent's weight is followed.

    Args:
        step: percentage points in one step.
        every: seconds between steps.
        deadband: differences in percentage points that are left alone.
    """

    step: int = 10
    every: float = 5.0
    deadband: int = 5


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules of one virtual service.

    Args:
        members: real servers by name.
        quorum: weight that makes the service whole; while it is not, the sorry server serves.
        sorry: whether there is a sorry server.
        on_failure: remove or quiesce.
        slow_start: seconds in which a server that came back gets its whole weight; 0 for at once.
        damping: of servers that flap.
        failback: whether a standby server hands back by itself.
        feedback: None without a feedback agent.
    """

    members: Mapping[str, Member] = field(default_factory=dict)
    quorum: Quorum = field(default_factory=Quorum)
    sorry: bool = False
    on_failure: OnFailure = OnFailure.REMOVE
    slow_start: float = 0.0
    damping: Damping = field(default_factory=Damping)
    failback: Failback = Failback.MANUAL
    feedback: Feedback | None = None

    @property
    def scale(self) -> int:
        """By how much weights are multiplied, so that a part of a weight of 1 can be said.

        It depends on the configuration alone: a change would move connections of mh.
        """
        if not self.slow_start and self.feedback is None:
            return 1
        largest = max((member.weight for member in self.members.values()), default=1)
        return max(1, min(_FINE, MAX_WEIGHT // max(1, largest)))
