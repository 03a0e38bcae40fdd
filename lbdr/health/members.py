"""One real server of a virtual service: whether it can serve, and with which weight; pure."""

from __future__ import annotations

from dataclasses import replace

from lbdr.health.decision import Condition, MemberMemory
from lbdr.health.policy import Damping, Member, Policy
from lbdr.health.ramps import approach, next_step, ramp
from lbdr.health.verdicts import Status
from lbdr.model import MAX_WEIGHT, Standing


def remember(known: MemberMemory, policy: Policy, condition: Condition, now: float) -> MemberMemory:
    """Note whether it is healthy, how often it went down, and follow its agent by one step.

    What is not known yet is no news: a server that serves goes on when a reload gives it a check.
    """
    verdict = condition.verdict
    healthy = verdict.up
    if verdict.status is Status.UNKNOWN and known.healthy is not None:
        healthy = known.healthy
    downs = tuple(when for when in known.downs if when > now - policy.damping.window)
    if known.healthy and not healthy:
        downs += (now,)
    since = known.healthy_since
    if healthy and not known.healthy:
        since = now
    percent, at = known.percent, known.percent_at
    wanted = _wanted(condition)
    if policy.feedback is None:
        percent, at = 100, None
    elif known.serving_since is None:
        percent, at = wanted, None
    elif at is None or now >= at + policy.feedback.every:
        stepped = approach(percent, wanted, policy.feedback)
        if stepped != percent:
            percent, at = stepped, now
    return replace(
        known, healthy=healthy, healthy_since=since, downs=downs, percent=percent, percent_at=at
    )


def _wanted(condition: Condition) -> int:
    if condition.agent is None or condition.agent.percent is None:
        return 100
    return condition.agent.percent


def able(member: Member, condition: Condition, known: MemberMemory) -> bool:
    """Whether it can serve, and everybody lets it."""
    agent = condition.agent
    return (
        bool(known.healthy)
        and member.weight > 0
        and condition.operator is Standing.ONLINE
        and (agent is None or (agent.state not in ("down", "drain") and agent.percent != 0))
    )


def damped_until(known: MemberMemory, damping: Damping, now: float) -> float | None:
    """When a server that flapped may serve again; None where it may now."""
    if not damping.changes or len(known.downs) < damping.changes:
        return None
    until = known.healthy_since + damping.hold
    return until if now < until else None


def serving(
    known: MemberMemory, policy: Policy, now: float, *, begins: bool
) -> tuple[MemberMemory, list[float]]:
    """A server that serves, and when its weight grows next.

    Args:
        known: of it.
        policy: its service's rules.
        now: the time.
        begins: whether one that did not serve before begins slowly: at a service's first decision,
            where all begin, it does not.
    """
    if known.serving_since is None:
        known = replace(known, serving_since=now, ramp_from=now if begins else None)
    if known.ramp_from is None or not policy.slow_start:
        return replace(known, ramp_from=None), []
    step = next_step(now - known.ramp_from, policy.slow_start)
    if step is None:
        return replace(known, ramp_from=None), []
    return known, [known.ramp_from + step]


def resting(known: MemberMemory, policy: Policy, condition: Condition) -> MemberMemory:
    """A server that does not serve: nobody is moved when its agent's weight is taken at once."""
    percent = 100 if policy.feedback is None else _wanted(condition)
    return replace(known, serving_since=None, ramp_from=None, percent=percent, percent_at=None)


def agent_due(known: MemberMemory, policy: Policy, condition: Condition) -> list[float]:
    """When the next step towards an agent's weight is due."""
    if policy.feedback is None or known.serving_since is None or known.percent_at is None:
        return []
    if approach(known.percent, _wanted(condition), policy.feedback) == known.percent:
        return []
    return [known.percent_at + policy.feedback.every]


def weight_of(policy: Policy, member: Member, known: MemberMemory, now: float) -> int:
    full = member.weight * policy.scale
    part = known.percent / 100
    if known.ramp_from is not None:
        part *= ramp(now - known.ramp_from, policy.slow_start)
    return max(1, min(MAX_WEIGHT, round(full * part)))
