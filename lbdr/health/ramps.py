"""Weights that change over time: slow start, and a feedback agent's; pure, time is an argument."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lbdr.health.policy import Feedback

_STEPS = 10  # of a ramp: each one is a change of the table
_ROUNDING = 1e-6  # of a step: a time is reached that arithmetic puts just before it


def ramp(elapsed: float, duration: float) -> float:
    """The part of its weight that a server has after it came back.

    A tenth at once, and then in tenths, never further than a twentieth from a straight line
    otherwise.

    Args:
        elapsed: seconds since it came back.
        duration: seconds to the whole weight.
    """
    if elapsed >= duration:
        return 1.0
    return min(_STEPS, max(1, int(_STEPS * elapsed / duration + 0.5 + _ROUNDING))) / _STEPS


def next_step(elapsed: float, duration: float) -> float | None:
    """Seconds after a server came back at which its part changes next; None where it is whole."""
    part = round(ramp(elapsed, duration) * _STEPS)
    return None if part >= _STEPS else (part + 0.5) * duration / _STEPS


@dataclass(frozen=True, slots=True)
class AgentReport:
    """What a feedback agent said.

    Args:
        percent: of the configured weight; None where it did not say.
        state: "up", "drain" or "down"; None where it did not say.
        words: what it said beside that.
    """

    percent: int | None = None
    state: str | None = None
    words: str = ""


def parse_report(line: str) -> AgentReport | None:
    """Understand an agent's line; None where it makes no sense.

    Words of HAProxy's agent-check (configuration manual, "agent-check"): a percentage, up, ready,
    drain, maint, down, failed, stopped; what follows a `#` is a description. `maxconn:` is ignored.

    Args:
        line: without the line's end.
    """
    said, _, comment = line.partition("#")
    percent: int | None = None
    state: str | None = None
    description = comment.strip()
    words = [word for word in re.split(r"[\s,]+", said.strip()) if word]
    for position, word in enumerate(words):
        low = word.lower()
        if match := re.fullmatch(r"([0-9]{1,4})%", low):
            percent = min(100, int(match[1]))
        elif low in ("up", "ready"):
            state = state or "up"
        elif low in ("drain", "maint"):
            state = "drain"
        elif low in ("down", "failed", "fail", "stopped"):
            state = "down"
            description = description or " ".join(words[position + 1 :])
            break  # the rest is a description
        elif not low.startswith("maxconn:"):
            return None
    return AgentReport(percent, state, description) if words else None


def approach(current: int, wanted: int, feedback: Feedback) -> int:
    """The next percentage on the way to what an agent wants.

    Args:
        current: percentage in force.
        wanted: percentage that the agent said.
        feedback: step and deadband. The ends, 0 and 100, are always reached.
    """
    if abs(wanted - current) < feedback.deadband and wanted not in (0, 100):
        return current
    if wanted > current:
        return min(wanted, current + feedback.step)
    return max(wanted, current - feedback.step)
