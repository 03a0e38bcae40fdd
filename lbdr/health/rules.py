"""Who may serve: from verdicts, the operator's wishes and agents' words to weights; pure.

Time is an argument. What must be remembered from one decision to the next is in `Memory`.

Whatever the rules say: while a real server can serve, one does, or the sorry server in its stead
because the quorum is lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from lbdr.health.policy import Damping, Failback, Member, OnFailure, Operator, Policy
from lbdr.health.ramps import AgentReport, approach, next_step, ramp
from lbdr.health.verdicts import Status, Verdict
from lbdr.model import MAX_WEIGHT


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
    operator: Operator = Operator.ONLINE
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


def fail_back(memory: Memory, standbys: Iterable[str] | None = None) -> Memory:
    """The operator hands back what standby servers took over.

    Args:
        memory: so far.
        standbys: which of them; None for all.
    """
    given = memory.took_over if standbys is None else memory.took_over & frozenset(standbys)
    return replace(memory, took_over=memory.took_over - given)


def decide(
    policy: Policy, memory: Memory, conditions: Mapping[str, Condition], now: float
) -> tuple[Memory, Decision]:
    """Decide who serves.

    Args:
        policy: the service's rules.
        memory: of the decision before.
        conditions: of every member.
        now: on the verdicts' clock.
    """
    first = memory.quorum is None
    members = {
        name: _remember(memory.members.get(name, MemberMemory()), policy, conditions[name], now)
        for name in policy.members
    }
    able = {name: _able(policy.members[name], conditions[name], members[name]) for name in members}
    damped = {
        name: until
        for name in members
        if able[name] and (until := _damped_until(members[name], policy.damping, now)) is not None
    }
    # a flapping server is better than none
    if any(ok and name not in damped for name, ok in able.items()):
        usable = {name for name, ok in able.items() if ok and name not in damped}
    else:
        usable = {name for name, ok in able.items() if ok}
        damped = {}
    took_over = _standbys(policy, memory.took_over, usable)
    chosen = _chosen(policy, took_over, usable)
    weight = sum(policy.members[name].weight for name in chosen)
    quorum = _quorum(policy, memory.quorum, weight)
    sorry = policy.sorry and (not quorum or not chosen)
    again = list(damped.values())
    shares: dict[str, Share] = {}
    for name, member in list(members.items()):
        serves = name in chosen and not sorry
        if serves:
            known, due = _serving(member, policy, now, begins=not first)
        else:
            known, due = _resting(member, policy, conditions[name]), None
        members[name] = known
        again += [] if due is None else [due]
        again += _agent_due(known, policy, conditions[name])
        if serves:
            given = _weight(policy, policy.members[name], known, now)
            shares[name] = Share(Presence.SERVE, given, _serving_words(conditions[name], known))
        else:
            shares[name] = _withheld(
                policy, name, conditions[name], damped.get(name), took_over, sorry=sorry, now=now
            )
    return (
        Memory(members, quorum, took_over),
        Decision(shares, sorry, quorum, min(again, default=None)),
    )


# --- one server ---------------------------------------------------------------------------------


def _remember(
    known: MemberMemory, policy: Policy, condition: Condition, now: float
) -> MemberMemory:
    """Note whether it is healthy, how often it went down, and follow its agent by one step."""
    healthy = condition.verdict.up
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


def _able(member: Member, condition: Condition, known: MemberMemory) -> bool:
    """Whether it can serve, and everybody lets it."""
    agent = condition.agent
    return (
        bool(known.healthy)
        and member.weight > 0
        and condition.operator is Operator.ONLINE
        and (agent is None or (agent.state not in ("down", "drain") and agent.percent != 0))
    )


def _damped_until(known: MemberMemory, damping: Damping, now: float) -> float | None:
    """When a server that flapped may serve again; None where it may now."""
    if not damping.changes or len(known.downs) < damping.changes:
        return None
    until = known.healthy_since + damping.hold
    return until if now < until else None


def _serving(
    known: MemberMemory, policy: Policy, now: float, *, begins: bool
) -> tuple[MemberMemory, float | None]:
    """A server that serves, and when its weight grows next.

    One that did not serve before begins slowly, except at the first decision, where all begin.
    """
    if known.serving_since is None:
        known = replace(known, serving_since=now, ramp_from=now if begins else None)
    if known.ramp_from is None or not policy.slow_start:
        return replace(known, ramp_from=None), None
    step = next_step(now - known.ramp_from, policy.slow_start)
    if step is None:
        return replace(known, ramp_from=None), None
    return known, known.ramp_from + step


def _resting(known: MemberMemory, policy: Policy, condition: Condition) -> MemberMemory:
    """A server that does not serve: nobody is moved when its agent's weight is taken at once."""
    percent = 100 if policy.feedback is None else _wanted(condition)
    return replace(known, serving_since=None, ramp_from=None, percent=percent, percent_at=None)


def _agent_due(known: MemberMemory, policy: Policy, condition: Condition) -> list[float]:
    """When the next step towards an agent's weight is due."""
    if policy.feedback is None or known.serving_since is None or known.percent_at is None:
        return []
    if approach(known.percent, _wanted(condition), policy.feedback) == known.percent:
        return []
    return [known.percent_at + policy.feedback.every]


def _weight(policy: Policy, member: Member, known: MemberMemory, now: float) -> int:
    full = member.weight * policy.scale
    part = known.percent / 100
    if known.ramp_from is not None:
        part *= ramp(now - known.ramp_from, policy.slow_start)
    return max(1, min(MAX_WEIGHT, round(full * part)))


# --- the service --------------------------------------------------------------------------------


def _standbys(policy: Policy, before: frozenset[str], usable: set[str]) -> frozenset[str]:
    """The standby servers that serve: those whose servers all fail, and those that stay on."""
    took_over = set()
    for name, member in policy.members.items():
        if not member.standby_for or name not in usable:
            continue
        stays = name in before and policy.failback is Failback.MANUAL
        if stays or not member.standby_for & usable - {name}:
            took_over.add(name)
    return frozenset(took_over)


def _chosen(policy: Policy, took_over: frozenset[str], usable: set[str]) -> set[str]:
    """Those who serve: active servers for whom nobody stands in, and the standbys that do."""
    relieved = {name for standby in took_over for name in policy.members[standby].standby_for}
    return {
        name
        for name in usable
        if (name in took_over if policy.members[name].standby_for else name not in relieved)
    }


def _quorum(policy: Policy, before: bool | None, weight: int) -> bool:
    """Whether the service is whole, by the threshold for the way that it would go."""
    return weight >= (policy.quorum.down if before else policy.quorum.up)


# --- words --------------------------------------------------------------------------------------


def _serving_words(condition: Condition, known: MemberMemory) -> str:
    words = condition.verdict.why
    if known.ramp_from is not None:
        words += "; its weight is growing (slow start)"
    if known.percent != 100:
        words += f"; its agent says {known.percent}%"
    return words


def _withheld(  # noqa: PLR0911  # one reason each, the first that holds
    policy: Policy,
    name: str,
    condition: Condition,
    damped_until: float | None,
    took_over: frozenset[str],
    *,
    sorry: bool,
    now: float,
) -> Share:
    """Why a server does not serve, and whether it stays with weight 0."""
    member, verdict, agent = policy.members[name], condition.verdict, condition.agent
    failed = Presence.OUT if policy.on_failure is OnFailure.REMOVE else Presence.QUIESCE
    if condition.operator is Operator.HALT:
        return Share(Presence.OUT, 0, "halted by the operator")
    if not verdict.up:
        unknown = verdict.status is Status.UNKNOWN
        return Share(failed, 0, verdict.why if unknown else f"down: {verdict.why}")
    if agent is not None and agent.state == "down":
        return Share(failed, 0, f"its agent says down {agent.words}".rstrip())
    if condition.operator is Operator.DRAIN:
        return Share(Presence.QUIESCE, 0, "drained by the operator")
    if member.weight == 0:
        return Share(Presence.QUIESCE, 0, "weight 0 in the configuration")
    if agent is not None and (agent.state == "drain" or agent.percent == 0):
        return Share(Presence.QUIESCE, 0, f"its agent says drain {agent.words}".rstrip())
    if damped_until is not None:
        return Share(
            failed,
            0,
            f"went down {policy.damping.changes} times or more in {policy.damping.window:g} s: "
            f"held back for {damped_until - now:.0f} s more",
        )
    if sorry:
        return Share(Presence.QUIESCE, 0, "the quorum is lost: the sorry server serves")
    if member.standby_for:
        return Share(Presence.QUIESCE, 0, f"standby for {', '.join(sorted(member.standby_for))}")
    by = sorted(each for each in took_over if name in policy.members[each].standby_for)
    return Share(Presence.QUIESCE, 0, f"{', '.join(by)} took over; waiting for failback")
