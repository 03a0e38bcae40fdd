"""The rules for health as users write them."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from lbdr.config.health_schema import Health, findings, policy_of
from lbdr.health import policy

WEIGHTS = {"a": 1, "b": 2}
MEMBERS = {name: policy.Member(weight) for name, weight in WEIGHTS.items()}


def read(**keys: Any) -> Health:
    return Health.model_validate(keys)


def made(**keys: Any) -> policy.Policy:
    health = read(**keys)
    assert list(findings(("health",), health, WEIGHTS)) == []
    return policy_of(health, MEMBERS, sorry=True)


def test_nothing_written_is_the_default() -> None:
    assert made() == policy.Policy(MEMBERS, sorry=True)


def test_everything_written_is_there() -> None:
    assert made(
        quorum={"up": 3, "down": 2},
        on_failure="quiesce",
        slow_start="30s",
        damping={"changes": 3, "window": "5m", "hold": "1m"},
        failback="auto",
        feedback={"step": 5, "every": "10s", "deadband": 2},
    ) == policy.Policy(
        MEMBERS,
        quorum=policy.Quorum(3, 2),
        sorry=True,
        on_failure=policy.OnFailure.QUIESCE,
        slow_start=30.0,
        damping=policy.Damping(3, 300.0, 60.0),
        failback=policy.Failback.AUTO,
        feedback=policy.Feedback(5, 10.0, 2),
    )


def test_a_quorum_may_be_a_number_alone() -> None:
    assert made(quorum=2).quorum == policy.Quorum(2, 2)
    assert made(quorum={"up": 2}).quorum == policy.Quorum(2, 2)


@pytest.mark.parametrize(
    ("keys", "message", "hint"),
    [
        ({"quorum": {"up": 1, "down": 2}}, "would be lost when", "write {up: 2, down: 1}"),
        ({"quorum": 4}, "can never be reached: all real servers", "write at most 3"),
    ],
)
def test_what_does_not_go_together(keys: dict[str, Any], message: str, hint: str) -> None:
    (found,) = findings(("health",), read(**keys), WEIGHTS)
    assert message in found.message
    assert found.hint == hint
    assert found.path == ("health", "quorum")


def test_weights_that_cannot_be_divided_are_told() -> None:
    weights = {"a": 655, "b": 656}
    assert not list(findings(("health",), read(), weights))
    (found,) = findings(("health",), read(slow_start="10s"), weights)
    assert found.message.startswith("b has the weight 656")
    assert found.hint == "write weights of at most 655"


@pytest.mark.parametrize(
    "keys",
    [
        {"quorum": True},
        {"quorum": 0},
        {"on_failure": "drop"},
        {"slow_start": "2h"},
        {"damping": {}},
        {"damping": 3},
        {"failback": "never"},
        {"feedback": {"step": 0}},
        {"unknown": 1},
    ],
)
def test_values_that_are_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        read(**keys)
