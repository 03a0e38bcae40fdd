"""Who may serve: what must hold whatever happens, by random histories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from lbdr.health.decision import Condition, Decision, Memory, Presence
from lbdr.health.policy import (
    Damping,
    Failback,
    Feedback,
    Member,
    OnFailure,
    Policy,
    Quorum,
)
from lbdr.health.ramps import AgentReport
from lbdr.health.rules import decide, fail_back
from lbdr.health.spec import Initial
from lbdr.health.verdicts import Status, Verdict
from lbdr.model import MAX_WEIGHT, Standing

NAMES = ("a", "b", "s", "t")


@dataclass(frozen=True, slots=True)
class Event:
    """What is the case for some seconds."""

    seconds: float
    conditions: Mapping[str, Condition]
    failback: bool


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    """Rules for two active servers and two that may be standbys."""
    coverage = st.sampled_from([frozenset[str](), frozenset("a"), frozenset("ab")])
    weight = st.sampled_from([0, 1, 1, 2, 50, 65535])
    members = {
        name: Member(draw(weight), draw(coverage) if name in "st" else frozenset())
        for name in NAMES
    }
    down = draw(st.integers(1, 4))
    return Policy(
        members=members,
        quorum=Quorum(down + draw(st.integers(0, 2)), down),
        sorry=draw(st.booleans()),
        on_failure=draw(st.sampled_from(OnFailure)),
        slow_start=draw(st.sampled_from([0.0, 10.0, 60.0])),
        damping=Damping(draw(st.integers(0, 3)), 60.0, 20.0),
        failback=draw(st.sampled_from(Failback)),
        feedback=draw(st.sampled_from([None, Feedback()])),
    )


verdicts = st.builds(
    Verdict,
    status=st.sampled_from([Status.UP, Status.UP, Status.DOWN, Status.UNKNOWN]),
    initial=st.sampled_from(Initial),
)
agents = st.sampled_from(
    [
        *[None] * 3,
        AgentReport(30),
        AgentReport(0),
        AgentReport(80, "up"),
        AgentReport(None, "drain"),
        AgentReport(None, "down"),
    ]
)
operators = st.sampled_from([Standing.ONLINE] * 4 + [Standing.DRAIN, Standing.HALT])
events = st.builds(
    Event,
    seconds=st.floats(0, 30),
    conditions=st.fixed_dictionaries(
        {name: st.builds(Condition, verdicts, operators, agents) for name in NAMES}
    ),
    failback=st.booleans(),
)
histories = st.lists(events, min_size=1, max_size=12)


@dataclass(frozen=True, slots=True)
class Step:
    """A decision, and what was the case.

    Args:
        healthy: what is known of each server: an unknown verdict is no news.
    """

    now: float
    conditions: Mapping[str, Condition]
    healthy: Mapping[str, bool]
    decision: Decision


def play(policy: Policy, history: Sequence[Event]) -> list[Step]:
    """Decide at each event, and whenever a decision asked to be made again."""
    now, memory, made = 0.0, Memory(), []
    healthy: dict[str, bool] = {}
    for event in history:
        for name, condition in event.conditions.items():
            if condition.verdict.status is not Status.UNKNOWN or name not in healthy:
                healthy[name] = condition.verdict.up
        if event.failback:
            memory = fail_back(memory)
        until = now + event.seconds
        for _ in range(200):
            memory, decision = decide(policy, memory, event.conditions, now)
            made.append(Step(now, event.conditions, dict(healthy), decision))
            assert decision.again is None or decision.again > now
            if decision.again is None or decision.again > until:
                break
            now = decision.again
        else:
            raise AssertionError("it asks to decide again and again")
        now = until
    return made


def able(policy: Policy, name: str, step: Step) -> bool:
    condition = step.conditions[name]
    agent = condition.agent
    return (
        step.healthy[name]
        and policy.members[name].weight > 0
        and condition.operator is Standing.ONLINE
        and (agent is None or (agent.state in (None, "up") and agent.percent != 0))
    )


@given(policies(), histories)
def test_somebody_serves_while_somebody_can(policy: Policy, history: list[Event]) -> None:
    """And only those who can; never a real server beside the sorry server."""
    for step in play(policy, history):
        decision = step.decision
        can = {name for name in NAMES if able(policy, name, step)}
        serve = {
            name for name, share in decision.shares.items() if share.presence is Presence.SERVE
        }
        assert serve <= can
        assert bool(serve or decision.sorry) >= bool(can)
        assert not (serve and decision.sorry)
        if not policy.sorry:
            assert bool(serve) == bool(can)
        if decision.sorry:
            assert not decision.quorum or not can


@given(policies(), histories)
def test_weights_are_such_as_ipvs_takes(policy: Policy, history: list[Event]) -> None:
    for step in play(policy, history):
        decision = step.decision
        for name, share in decision.shares.items():
            full = policy.members[name].weight * policy.scale
            assert share.reason
            if share.presence is Presence.SERVE:
                assert 1 <= share.weight <= min(full, MAX_WEIGHT)
            else:
                assert share.weight == 0


@given(policies(), histories)
def test_the_quorum_turns_at_its_thresholds_only(policy: Policy, history: list[Event]) -> None:
    before: bool | None = None
    for step in play(policy, history):
        decision = step.decision
        # nobody more than those who can may count
        most = sum(policy.members[name].weight for name in NAMES if able(policy, name, step))
        if before and not decision.quorum and not policy.damping.changes:
            standby = any(member.standby_for for member in policy.members.values())
            assert standby or most < policy.quorum.down
        if before is False and decision.quorum:
            assert most >= policy.quorum.up
        before = decision.quorum


@given(policies(), st.lists(st.integers(0, 4), min_size=2, max_size=30))
def test_a_quorum_does_not_flap_within_its_hysteresis(policy: Policy, counts: list[int]) -> None:
    """Between the thresholds it stays what it was."""
    members = {name: Member() for name in NAMES}
    policy = Policy(members=members, quorum=Quorum(up=3, down=2), sorry=policy.sorry)
    memory, before = Memory(), None
    for second, count in enumerate(counts):
        conditions = {
            name: Condition(Verdict(Status.UP if place < count else Status.DOWN))
            for place, name in enumerate(NAMES)
        }
        memory, decision = decide(policy, memory, conditions, float(second))
        if count == 2 and before is not None:
            assert decision.quorum is before
        before = decision.quorum


@given(policies(), histories)
def test_a_server_that_serves_ramps_up_and_never_back(policy: Policy, history: list[Event]) -> None:
    """Near a straight line from when it began to serve, as far as whole weights allow."""
    began: dict[str, float] = {}
    last: dict[str, int] = {}
    for step in play(policy, history):
        now, decision = step.now, step.decision
        for name, share in decision.shares.items():
            if share.presence is not Presence.SERVE or policy.feedback is not None:
                began.pop(name, None)
                last.pop(name, None)
                continue
            started = began.setdefault(name, now)
            assert share.weight >= last.get(name, 0)
            last[name] = share.weight
            full = policy.members[name].weight * policy.scale
            assert step.healthy[name]
            if policy.slow_start:
                line = min(1.0, (now - started) / policy.slow_start)
                assert share.weight >= round(full * line * 0.8) - full * 0.05
            else:
                assert share.weight == full


@given(policies(), histories)
def test_nothing_changes_when_nothing_happens(policy: Policy, history: list[Event]) -> None:
    """To decide twice at one time is to decide once."""
    memory, now = Memory(), 0.0
    for event in history:
        memory, decision = decide(policy, memory, event.conditions, now)
        again, same = decide(policy, memory, event.conditions, now)
        assert (again, same) == (memory, decision)
        now += event.seconds


@given(policies(), histories)
def test_a_failing_server_never_waits(policy: Policy, history: list[Event]) -> None:
    """Damping, ramps and quorum hold back, and never keep in."""
    for step in play(policy, history):
        decision = step.decision
        for name, share in decision.shares.items():
            if not step.healthy[name]:
                wanted = (
                    Presence.OUT
                    if policy.on_failure is OnFailure.REMOVE
                    or step.conditions[name].operator is Standing.HALT
                    else Presence.QUIESCE
                )
                assert share.presence is wanted
