"""Who may serve: each rule by example."""

from __future__ import annotations

from collections.abc import Mapping

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
from lbdr.model import Standing

UP = Verdict(Status.UP, 0.0, "answered", 0.01)
DOWN = Verdict(Status.DOWN, 0.0, "10.0.0.31:104 refused the connection", 0.01)
UNKNOWN = Verdict()


class Service:
    """A service that is decided on again and again."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.memory = Memory()

    def at(
        self,
        now: float,
        *,
        operator: Mapping[str, Standing] | None = None,
        agent: Mapping[str, AgentReport] | None = None,
        **verdicts: Verdict,
    ) -> Decision:
        """Decide at a time; servers that are not named are up."""
        conditions = {
            name: Condition(
                verdicts.get(name, UP),
                (operator or {}).get(name, Standing.ONLINE),
                (agent or {}).get(name),
            )
            for name in self.policy.members
        }
        self.memory, decision = decide(self.policy, self.memory, conditions, now)
        return decision


def two(**settings: object) -> Service:
    return Service(Policy(members={"a": Member(), "b": Member(2)}, **settings))  # type: ignore[arg-type]


def weights(decision: Decision) -> dict[str, int]:
    return {name: share.weight for name, share in decision.shares.items()}


def serving(decision: Decision) -> set[str]:
    return {name for name, share in decision.shares.items() if share.presence is Presence.SERVE}


def test_healthy_servers_serve_with_their_weights() -> None:
    decision = two().at(0)
    assert weights(decision) == {"a": 1, "b": 2}
    assert decision.quorum
    assert not decision.sorry
    assert decision.again is None
    assert decision.shares["a"].reason == "answered"


def test_a_failed_server_is_removed_or_quiesced() -> None:
    share = two().at(0, a=DOWN).shares["a"]
    assert share.presence is Presence.OUT
    assert share.reason == "down: 10.0.0.31:104 refused the connection"
    share = two(on_failure=OnFailure.QUIESCE).at(0, a=DOWN).shares["a"]
    assert (share.presence, share.weight) == (Presence.QUIESCE, 0)


def test_an_unknown_server_counts_as_initial_says() -> None:
    assert serving(two().at(0, a=UNKNOWN)) == {"b"}
    assert two().at(0, a=UNKNOWN).shares["a"].reason == "not checked yet"
    assert serving(two().at(0, a=Verdict(initial=Initial.UP))) == {"a", "b"}


def test_what_is_not_known_yet_is_no_news() -> None:
    """A server that serves goes on when a reload gives it another check."""
    service = two()
    assert serving(service.at(0, a=DOWN)) == {"b"}
    decision = service.at(1, a=UNKNOWN, b=UNKNOWN)
    assert serving(decision) == {"b"}
    assert decision.shares["a"].reason == "not checked yet"
    assert serving(service.at(2, a=UNKNOWN, b=DOWN)) == set()


def test_the_sorry_server_serves_when_none_is_left() -> None:
    service = two(sorry=True)
    assert not service.at(0, a=DOWN).sorry
    decision = service.at(1, a=DOWN, b=DOWN)
    assert decision.sorry
    assert not decision.quorum
    assert not service.at(2, b=DOWN).sorry


def test_the_quorum_has_two_thresholds() -> None:
    policy = Policy(
        members={name: Member() for name in "abcd"}, quorum=Quorum(up=3, down=2), sorry=True
    )
    service = Service(policy)
    assert service.at(0).quorum
    assert service.at(1, a=DOWN, b=DOWN).quorum  # 2 are left: not less than 2
    decision = service.at(2, a=DOWN, b=DOWN, c=DOWN)
    assert not decision.quorum
    assert decision.sorry
    assert decision.shares["d"].reason == "the quorum is lost: the sorry server serves"
    assert not service.at(3, a=DOWN, b=DOWN).quorum
    decision = service.at(4, a=DOWN)
    assert decision.quorum
    assert serving(decision) == {"b", "c", "d"}


def test_without_a_sorry_server_a_lost_quorum_changes_nothing() -> None:
    service = two(quorum=Quorum(3, 3))
    decision = service.at(0, a=DOWN)
    assert not decision.quorum
    assert serving(decision) == {"b"}


def test_the_operator_drains_and_halts() -> None:
    service = two(sorry=True)
    decision = service.at(0, operator={"a": Standing.DRAIN})
    assert decision.shares["a"].presence is Presence.QUIESCE
    assert decision.shares["a"].reason == "drained by the operator"
    decision = service.at(1, operator={"a": Standing.DRAIN, "b": Standing.HALT})
    assert decision.shares["b"].presence is Presence.OUT
    assert decision.sorry
    # a server that fails while it drains ends its connections as a failed one does
    decision = service.at(2, operator={"a": Standing.DRAIN}, a=DOWN)
    assert decision.shares["a"].presence is Presence.OUT


def test_weight_0_in_the_file_drains() -> None:
    service = Service(Policy(members={"a": Member(0), "b": Member()}))
    share = service.at(0).shares["a"]
    assert (share.presence, share.weight) == (Presence.QUIESCE, 0)


def test_a_server_that_comes_back_starts_slowly() -> None:
    service = two(slow_start=100.0)
    assert service.policy.scale == 100
    assert weights(service.at(0)) == {"a": 100, "b": 200}  # not when the daemon starts
    service.at(10, a=DOWN)
    decision = service.at(20)
    assert weights(decision) == {"a": 10, "b": 200}
    assert "slow start" in decision.shares["a"].reason
    assert decision.again == 20 + 15
    assert weights(service.at(70)) == {"a": 50, "b": 200}
    decision = service.at(120)
    assert weights(decision) == {"a": 100, "b": 200}
    assert decision.again is None
    service.at(130, a=DOWN)
    assert weights(service.at(140))["a"] == 10  # from the beginning again


def test_a_server_that_flaps_is_held_back() -> None:
    service = two(damping=Damping(changes=2, window=100, hold=30))
    service.at(0)
    service.at(10, a=DOWN)
    assert serving(service.at(20)) == {"a", "b"}
    service.at(30, a=DOWN)
    decision = service.at(40)
    assert serving(decision) == {"b"}
    words = "went down 2 times or more in 100 s: held back for 30 s more"
    assert decision.shares["a"].reason == words
    assert decision.again == 70
    assert serving(service.at(50, b=DOWN)) == {"a"}  # better than none
    assert serving(service.at(60)) == {"b"}
    assert serving(service.at(70)) == {"a", "b"}


def standby(failback: Failback = Failback.MANUAL) -> Service:
    members = {"a": Member(), "b": Member(), "s": Member(standby_for=frozenset({"a", "b"}))}
    return Service(Policy(members=members, failback=failback))


def test_a_standby_takes_over_and_keeps_until_it_is_told() -> None:
    service = standby()
    decision = service.at(0)
    assert serving(decision) == {"a", "b"}
    assert decision.shares["s"].reason == "standby for a, b"
    assert serving(service.at(1, a=DOWN)) == {"b"}
    assert serving(service.at(2, a=DOWN, b=DOWN)) == {"s"}
    decision = service.at(3)
    assert serving(decision) == {"s"}
    assert decision.shares["a"].presence is Presence.QUIESCE
    assert decision.shares["a"].reason == "s took over; waiting for failback"
    service.memory = fail_back(service.memory)
    assert serving(service.at(4)) == {"a", "b"}


def test_a_standby_that_fails_hands_back() -> None:
    service = standby()
    service.at(0, a=DOWN, b=DOWN)
    assert serving(service.at(1, s=DOWN)) == {"a", "b"}
    assert serving(service.at(2)) == {"a", "b"}


def test_failback_may_be_automatic() -> None:
    service = standby(Failback.AUTO)
    assert serving(service.at(0, a=DOWN, b=DOWN)) == {"s"}
    assert serving(service.at(1, a=DOWN)) == {"b"}


def test_pairs_stand_in_for_their_own_server_only() -> None:
    members = {
        "a1": Member(),
        "a2": Member(standby_for=frozenset({"a1"})),
        "b1": Member(),
        "b2": Member(standby_for=frozenset({"b1"})),
    }
    service = Service(Policy(members=members))
    assert serving(service.at(0)) == {"a1", "b1"}
    assert serving(service.at(1, a1=DOWN)) == {"a2", "b1"}
    assert serving(service.at(2, b1=DOWN)) == {"a2", "b2"}
    service.memory = fail_back(service.memory, ["a2"])
    assert serving(service.at(3)) == {"a1", "b2"}


def test_an_agents_weight_is_followed_in_steps() -> None:
    service = two(feedback=Feedback(step=10, every=5, deadband=5))
    assert weights(service.at(0)) == {"a": 100, "b": 200}
    half = {"a": AgentReport(50)}
    decision = service.at(1, agent=half)
    assert weights(decision) == {"a": 90, "b": 200}
    assert decision.again == 6
    assert weights(service.at(2, agent=half)) == {"a": 90, "b": 200}
    for now, weight in ((6, 80), (11, 70), (16, 60), (21, 50)):
        decision = service.at(now, agent=half)
        assert weights(decision)["a"] == weight
    assert decision.again is None
    assert weights(service.at(30, agent={"a": AgentReport(52)}))["a"] == 50  # not worth a change


def test_an_agent_may_drain_and_take_down() -> None:
    service = two(feedback=Feedback(), sorry=True)
    decision = service.at(0, agent={"a": AgentReport(None, "drain", "backup")})
    assert decision.shares["a"].presence is Presence.QUIESCE
    assert decision.shares["a"].reason == "its agent says drain backup"
    decision = service.at(1, agent={"a": AgentReport(None, "down"), "b": AgentReport(0)})
    assert decision.shares["a"].presence is Presence.OUT
    assert decision.shares["b"].presence is Presence.QUIESCE
    assert decision.sorry


def test_the_scale_leaves_room_for_large_weights() -> None:
    assert Policy(members={"a": Member(60000)}, slow_start=10).scale == 1
    assert Policy(members={"a": Member(1000)}, slow_start=10).scale == 65
    assert Policy(members={"a": Member(60000)}).scale == 1
