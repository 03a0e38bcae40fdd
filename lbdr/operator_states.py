"""What the operator set for a real server: online, drain or halt, here or everywhere; pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from lbdr.desired import Weights
from lbdr.model import Standing, VirtualService

EVERYWHERE = ""
"""In place of a virtual service's name."""


_STRICTNESS = list(Standing)


@dataclass(frozen=True, slots=True)
class OperatorState:
    """What the operator set.

    Args:
        standing: DRAIN: no new connections; HALT: none at all.
        since: when it was set, seconds of Unix time.
        deadline: when a drain becomes a halt, seconds of Unix time; None for never.
    """

    standing: Standing
    since: float
    deadline: float | None = None

    def at(self, now: float) -> Standing:
        """What it is at a time: a drain is a halt once its deadline came.

        Args:
            now: seconds of Unix time.
        """
        if self.deadline is not None and now >= self.deadline:
            return Standing.HALT
        return self.standing


OperatorStates = Mapping[tuple[str, str], OperatorState]
"""By virtual service, or EVERYWHERE, and real server; online ones are left out."""


def in_force(
    states: OperatorStates, virtual_services: Iterable[VirtualService], now: float
) -> OperatorStates:
    """What each real server of each virtual service is: the stricter of there and everywhere.

    Args:
        states: that were set.
        virtual_services: as configured.
        now: seconds of Unix time.
    """
    found: dict[tuple[str, str], OperatorState] = {}
    if not states:
        return found
    for virtual in virtual_services:
        for server in virtual.real_servers:
            places = ((virtual.name, server.name), (EVERYWHERE, server.name))
            set_ = [states[place] for place in places if place in states]
            if set_:
                strictest = max(set_, key=lambda state: _STRICTNESS.index(state.at(now)))
                found[virtual.name, server.name] = replace(strictest, standing=strictest.at(now))
    return found


def overrides(states: OperatorStates, weights: Mapping[tuple[str, str], int]) -> Weights:
    """The weights that stand over the file's: None where a server is out.

    Args:
        states: in force.
        weights: that the operator set.
    """
    out = {
        key: 0 if state.standing is Standing.DRAIN else None
        for key, state in states.items()
        if state.standing is not Standing.ONLINE
    }
    return {**weights, **out}


def changed(
    states: OperatorStates,
    virtual_services: Iterable[VirtualService],
    real_server: str,
    virtual_service: str,
    state: OperatorState,
) -> OperatorStates:
    """The states once the operator set one.

    Setting it everywhere forgets what was set in single services. Setting one service apart from
    what is everywhere keeps that for each of the others.

    Args:
        states: before.
        virtual_services: as configured.
        real_server: its name.
        virtual_service: its name, or EVERYWHERE.
        state: the new one.
    """
    found = dict(states)
    if virtual_service == EVERYWHERE:
        found = {key: value for key, value in found.items() if key[1] != real_server}
    elif (before := found.pop((EVERYWHERE, real_server), None)) is not None:
        for virtual in virtual_services:
            if any(server.name == real_server for server in virtual.real_servers):
                found.setdefault((virtual.name, real_server), before)
    found.pop((virtual_service, real_server), None)
    if state.standing is not Standing.ONLINE:
        found[virtual_service, real_server] = state
    return found


def next_deadline(states: OperatorStates, now: float) -> float | None:
    """When the next drain becomes a halt, seconds of Unix time; None for none."""
    deadlines = (state.deadline for state in states.values() if state.deadline is not None)
    return min((deadline for deadline in deadlines if deadline > now), default=None)
