"""What the operator set for real servers, and what becomes of it."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbdr.model import RealServer, Standing, VirtualService
from lbdr.operator_states import (
    EVERYWHERE,
    OperatorState,
    OperatorStates,
    changed,
    in_force,
    next_deadline,
    overrides,
)

RS1, RS2 = (RealServer(ip_address(f"10.0.0.3{n}"), 80, name=f"rs{n}") for n in (1, 2))
SERVICES = (
    VirtualService("WEB", ip_address("10.0.0.50"), real_servers=(RS1, RS2)),
    VirtualService("TLS", ip_address("10.0.0.51"), real_servers=(RS1,)),
)
NOW = 1000.0
ONLINE, DRAIN, HALT = (OperatorState(each, NOW) for each in Standing)


def standings(states: OperatorStates, now: float = NOW) -> dict[tuple[str, str], str]:
    return {key: str(state.standing) for key, state in in_force(states, SERVICES, now).items()}


def test_everywhere_is_every_service_that_has_the_server() -> None:
    states = changed({}, SERVICES, "rs1", EVERYWHERE, DRAIN)
    assert standings(states) == {("WEB", "rs1"): "drain", ("TLS", "rs1"): "drain"}
    assert overrides(in_force(states, SERVICES, NOW), {}) == {("WEB", "rs1"): 0, ("TLS", "rs1"): 0}


def test_a_service_that_comes_later_has_what_is_set_everywhere() -> None:
    states = changed({}, SERVICES[:1], "rs1", EVERYWHERE, HALT)
    assert standings(states)["TLS", "rs1"] == "halt"


def test_one_service_alone() -> None:
    states = changed({}, SERVICES, "rs1", "WEB", HALT)
    assert overrides(in_force(states, SERVICES, NOW), {("WEB", "rs1"): 7, ("TLS", "rs1"): 5}) == {
        ("WEB", "rs1"): None,
        ("TLS", "rs1"): 5,
    }


def test_everywhere_forgets_single_services() -> None:
    states = changed({}, SERVICES, "rs1", "WEB", HALT)
    assert standings(changed(states, SERVICES, "rs1", EVERYWHERE, DRAIN)) == {
        ("WEB", "rs1"): "drain",
        ("TLS", "rs1"): "drain",
    }
    assert changed(states, SERVICES, "rs1", EVERYWHERE, ONLINE) == {}


def test_one_service_is_put_apart_from_everywhere() -> None:
    states = changed({}, SERVICES, "rs1", EVERYWHERE, HALT)
    assert standings(changed(states, SERVICES, "rs1", "WEB", ONLINE)) == {("TLS", "rs1"): "halt"}
    assert standings(changed(states, SERVICES, "rs1", "WEB", DRAIN)) == {
        ("TLS", "rs1"): "halt",
        ("WEB", "rs1"): "drain",
    }


def test_a_drain_becomes_a_halt_at_its_deadline() -> None:
    states = {("WEB", "rs1"): OperatorState(Standing.DRAIN, NOW, NOW + 60)}
    assert standings(states, NOW + 59) == {("WEB", "rs1"): "drain"}
    assert standings(states, NOW + 60) == {("WEB", "rs1"): "halt"}
    assert next_deadline(states, NOW) == NOW + 60
    assert next_deadline(states, NOW + 60) is None


@pytest.mark.parametrize("other", [DRAIN, OperatorState(Standing.DRAIN, NOW, NOW - 1)])
def test_the_stricter_one_is_in_force(other: OperatorState) -> None:
    states = {(EVERYWHERE, "rs1"): HALT, ("WEB", "rs1"): other}
    assert standings(states)["WEB", "rs1"] == "halt"


names = st.sampled_from(["rs1", "rs2", "gone"])
places = st.sampled_from([EVERYWHERE, "WEB", "TLS"])
steps = st.lists(st.tuples(names, places, st.sampled_from([DRAIN, HALT, ONLINE])), max_size=12)


@given(steps, names, places, st.sampled_from([DRAIN, HALT, ONLINE]))
def test_the_last_word_holds_where_it_was_said_and_nowhere_else(
    steps: list[tuple[str, str, OperatorState]], server: str, place: str, state: OperatorState
) -> None:
    states: OperatorStates = {}
    for step in steps:
        states = changed(states, SERVICES, *step)
    before = standings(states)
    after = standings(changed(states, SERVICES, server, place, state))
    for virtual in SERVICES:
        for real in virtual.real_servers:
            key = (virtual.name, real.name)
            meant = real.name == server and place in (EVERYWHERE, virtual.name)
            expected = str(state.standing) if meant else before.get(key, "online")
            assert after.get(key, "online") == expected
