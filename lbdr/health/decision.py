"""What is decided on a virtual service, from what, and what is remembered for the next time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from lbdr.health.ramps import AgentReport
from lbdr.health.verdicts import Verdict
from lbdr.model import Standing


class Presence(StrEnum):
    """How a real server is to be held by IPVS."""

    SERVE = "serve"  # with its weight
    QUIESCE = "quiesce"  # with weight 0: open connections go on
    OUT = "out"  # not at all


@dataclass(frozen=True, slots=True)
class Condition:
    """What is known of a real server of a virtual service.

    Args:
        verdict: of all its checks, dependencies included.
        operator: what the operator wants.
        agent: its feedback agent's last word; None where there is none, or it does not answer.
    """

    verdict: Verdict
    operator: Standing = Standing.ONLINE
    agent: AgentReport | None = None


@dataclass(frozen=True, slots=True)
class Share:
    """What a real server gets.

    Args:
        presence: whether it is there.
        weight: for IPVS, in units of the policy's scale; 0 unless it serves.
        reason: why, for a person.
    """

    presence: Presence
    weight: int
    reason: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What a virtual service is to be.

    Args:
        shares: by the real servers' names.
        sorry: whether the sorry server serves, instead of the real ones.
        quorum: whether the service is whole.
        again: when to decide again although nothing was heard; None for never.
    """

    shares: Mapping[str, Share]
    sorry: bool
    quorum: bool
    again: float | None = None


@dataclass(frozen=True, slots=True)
class MemberMemory:
    """What is remembered of a real server.

    Args:
        serving_since: None while it does not serve.
        ramp_from: when its weight began to grow; None where it has its whole weight.
        healthy: whether its checks passed at the last decision; None before the first one.
        healthy_since: when they began to pass.
        downs: when it went down, within the damping's window.
        percent: of its weight by its agent.
        percent_at: when that last changed.
    """

    serving_since: float | None = None
    ramp_from: float | None = None
    healthy: bool | None = None
    healthy_since: float = 0.0
    downs: tuple[float, ...] = ()
    percent: int = 100
    percent_at: float | None = None


@dataclass(frozen=True, slots=True)
class Memory:
    """What is remembered of a virtual service; None of it is lost by a reload.

    Args:
        members: by name.
        quorum: whether it was whole; None before the first decision.
        took_over: the standby servers that serve instead of those they stand in for.
    """

    members: Mapping[str, MemberMemory] = field(default_factory=dict)
    quorum: bool | None = None
    took_over: frozenset[str] = frozenset()
