"""The rules for a virtual service's health as a user writes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import Field, model_validator

from lbdr import model
from lbdr.config.check_schema import Checks
from lbdr.config.durations import Duration
from lbdr.config.finding import Finding
from lbdr.config.network_values import IpAddress
from lbdr.config.section import Section
from lbdr.config.values import Choice, Name, Whole
from lbdr.config.yaml12 import Path
from lbdr.health import policy

_QUORUM = policy.Quorum()
_DAMPING = policy.Damping()
_FEEDBACK = policy.Feedback()
_MOST_WEIGHT = 1 << 24


class Quorum(Section):
    """The weight that must be there for a service to be whole: a number alone, or a mapping."""

    noun = "a weight, or {up: 3, down: 2}"
    where = "in `quorum` of a virtual service"

    up: Annotated[int, Whole(1, _MOST_WEIGHT)] = Field(
        default=_QUORUM.up, description="The service is whole from this weight on."
    )
    down: Annotated[int | None, Whole(1, _MOST_WEIGHT)] = Field(
        default=None, description="And until less than this is left; as `up` where left out."
    )

    @model_validator(mode="before")
    @classmethod
    def _number_alone(cls, value: Any) -> Any:
        return {"up": value} if isinstance(value, int) and not isinstance(value, bool) else value


class Damping(Section):
    """A server that goes up and down too often stays out until it is steady."""

    noun = "settings of damping, such as {changes: 3}"
    where = "in `damping` of a virtual service"

    changes: Annotated[int, Whole(1, 1000)] = Field(
        description="Times that it may go down within the window.", examples=["3"]
    )
    window: Annotated[float, Duration("1s", "1d")] = Field(
        default=_DAMPING.window, description="The time in which they are counted."
    )
    hold: Annotated[float, Duration("1s", "1d")] = Field(
        default=_DAMPING.hold,
        description="For which its checks must pass before it may serve again.",
    )


class Feedback(Section):
    """A feedback agent on each real server says what share of its weight it can bear."""

    noun = "settings of the feedback agent, such as {port: 3333}"
    where = "in `feedback` of a virtual service"

    port: Annotated[int, Whole(1, 65535)] = Field(
        default=3333, description="Where the agent listens on each real server."
    )
    interval: Annotated[float, Duration("500ms", "1h")] = Field(
        default=5.0, description="From one question to the next."
    )
    step: Annotated[int, Whole(1, 100)] = Field(
        default=_FEEDBACK.step, description="Percentage points that a weight changes at once."
    )
    every: Annotated[float, Duration("500ms", "1h")] = Field(
        default=_FEEDBACK.every, description="Time between such steps."
    )
    deadband: Annotated[int, Whole(0, 50)] = Field(
        default=_FEEDBACK.deadband,
        description="Differences in percentage points that are left alone.",
    )


class Dependency(Section):
    """Something that a real server cannot serve without, such as its database."""

    noun = "what it needs, such as {address: 10.0.0.9, check: {type: connect, ports: [1521]}}"
    where = "in `depends_on` of a real server"

    address: Annotated[model.Address, IpAddress()] = Field(
        description="Where it is.", examples=["192.168.10.40"]
    )
    check: Checks = Field(
        description="How it is known that it serves; `ports` has to say which.",
        examples=["{type: connect, ports: [1521]}"],
    )
    name: Annotated[str | None, Name()] = Field(
        default=None, description="Its name in messages; the address where left out."
    )


class Health(Section):
    """Who may serve, beyond what checks say."""

    noun = "settings of health"
    where = "in `health` of a virtual service"

    quorum: Quorum = Field(
        default_factory=Quorum,
        description="The weight for the service to be whole; while it is not, the sorry server "
        "serves.",
    )
    on_failure: Annotated[str, Choice(tuple(policy.OnFailure), "on_failure")] = Field(
        default=policy.OnFailure.REMOVE.value,
        description="remove: a failed server's connections end at once, so that clients can go "
        "elsewhere; quiesce: they may go on.",
    )
    slow_start: Annotated[float, Duration("1s", "1h", zero="for none")] = Field(
        default=0.0, description="In which a server that came back gets its whole weight."
    )
    damping: Damping | None = Field(
        default=None, description="Holds back servers that flap; none where left out."
    )
    failback: Annotated[str, Choice(tuple(policy.Failback), "failback")] = Field(
        default=policy.Failback.MANUAL.value,
        description="manual: a standby server that took over serves until `lbdr failback`; auto: "
        "until a server that it stands in for can serve.",
    )
    feedback: Feedback | None = Field(
        default=None, description="Weights by feedback agents; none where left out."
    )


def findings(base: Path, health: Health, weights: Mapping[str, int]) -> Iterator[Finding]:
    """What is wrong between the keys, and with the real servers' weights.

    Args:
        base: where the section stands.
        health: each of whose values is valid by itself.
        weights: of the real servers by name.
    """
    quorum, path = health.quorum, (*base, "quorum")
    if quorum.down is not None and quorum.down > quorum.up:
        yield Finding(
            path,
            f"the quorum is regained at {quorum.up} and lost below {quorum.down}: the service "
            "would be lost when it is regained",
            f"write {{up: {quorum.down}, down: {quorum.up}}}",
        )
    total = sum(weights.values())
    if quorum.up > total > 0:
        yield Finding(
            path,
            f"a quorum of {quorum.up} can never be reached: all real servers together have the "
            f"weight {total}",
            f"write at most {total}",
        )
    if health.slow_start or health.feedback is not None:
        for name, weight in weights.items():
            if weight > policy.FINE_UP_TO:
                yield Finding(
                    base,
                    f"{name} has the weight {weight}: slow start and feedback divide weights, "
                    "which leaves no room above",
                    f"write weights of at most {policy.FINE_UP_TO}",
                )


def policy_of(
    health: Health, members: Mapping[str, policy.Member], *, sorry: bool
) -> policy.Policy:
    """The rules of a virtual service.

    Args:
        health: one in which `findings` found nothing wrong.
        members: its real servers by name.
        sorry: whether it has a sorry server.
    """
    quorum, damping, feedback = health.quorum, health.damping, health.feedback
    return policy.Policy(
        members=members,
        quorum=policy.Quorum(quorum.up, quorum.up if quorum.down is None else quorum.down),
        sorry=sorry,
        on_failure=policy.OnFailure(health.on_failure),
        slow_start=health.slow_start,
        damping=policy.Damping()
        if damping is None
        else policy.Damping(damping.changes, damping.window, damping.hold),
        failback=policy.Failback(health.failback),
        feedback=None
        if feedback is None
        else policy.Feedback(feedback.step, feedback.every, feedback.deadband),
    )
