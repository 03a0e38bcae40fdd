"""Who may serve: from verdicts, the operator's wishes and agents' words to weights; pure.

Time is an argument. What must be remembered from one decision to the next is in `Memory`.

Whatever the rules say: while a real server can serve, one does, or the sorry server in its stead
because the quorum is lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from lbdr.health import members
from lbdr.health.decision import Condition, Decision, MemberMemory, Memory, Presence, Share
from lbdr.health.policy import Failback, OnFailure, Policy
from lbdr.health.verdicts import Status
from lbdr.model import Standing


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
    known = {
        name: members.remember(
            memory.members.get(name, MemberMemory()), policy, conditions[name], now
        )
        for name in policy.members
    }
    usable, damped = _usable(policy, known, conditions, now)
    took_over = _standbys(policy, memory.took_over, usable)
    chosen = _chosen(policy, took_over, usable)
    weight = sum(policy.members[name].weight for name in chosen)
    quorum = _quorum(policy, memory.quorum, weight)
    sorry = policy.sorry and (not quorum or not chosen)
    again = list(damped.values())
    shares: dict[str, Share] = {}
    for name, condition in ((name, conditions[name]) for name in policy.members):
        if name in chosen and not sorry:
            known[name], due = members.serving(known[name], policy, now, begins=not first)
            again += due
            given = members.weight_of(policy, policy.members[name], known[name], now)
            shares[name] = Share(Presence.SERVE, given, _serving_words(condition, known[name]))
        else:
            known[name] = members.resting(known[name], policy, condition)
            shares[name] = _withheld(
                policy,
                name,
                condition,
                known[name],
                damped_until=damped.get(name),
                took_over=took_over,
                sorry=sorry,
                now=now,
            )
        again += members.agent_due(known[name], policy, condition)
    decision = Decision(shares, sorry, quorum, min(again, default=None))
    return Memory(known, quorum, took_over), decision


# --- the service --------------------------------------------------------------------------------


def _usable(
    policy: Policy,
    known: Mapping[str, MemberMemory],
    conditions: Mapping[str, Condition],
    now: float,
) -> tuple[set[str], dict[str, float]]:
    """Who may serve, and until when those are held back who could but flapped."""
    able = {
        name
        for name, member in policy.members.items()
        if members.able(member, conditions[name], known[name])
    }
    damped = {
        name: until
        for name in able
        if (until := members.damped_until(known[name], policy.damping, now)) is not None
    }
    if damped.keys() == able:
        return able, {}  # a flapping server is better than none
    return able - damped.keys(), damped


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
    known: MemberMemory,
    *,
    damped_until: float | None,
    took_over: frozenset[str],
    sorry: bool,
    now: float,
) -> Share:
    """Why a server does not serve, and whether it stays with weight 0."""
    member, verdict, agent = policy.members[name], condition.verdict, condition.agent
    failed = Presence.OUT if policy.on_failure is OnFailure.REMOVE else Presence.QUIESCE
    if condition.operator is Standing.HALT:
        return Share(Presence.OUT, 0, "halted by the operator")
    if not known.healthy:
        unknown = verdict.status is Status.UNKNOWN
        return Share(failed, 0, verdict.why if unknown else f"down: {verdict.why}")
    if agent is not None and agent.state == "down":
        return Share(failed, 0, f"its agent says down {agent.words}".rstrip())
    if condition.operator is Standing.DRAIN:
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
