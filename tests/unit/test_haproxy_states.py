"""Server states without a reload: what is to change, as commands of the runtime API."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from lbdr.haproxy.answers import ServerState
from lbdr.haproxy.model import Pool, ProxyConfiguration, ProxyServer, ProxyService
from lbdr.haproxy.states import (
    Cut,
    Place,
    RuntimeOperation,
    SetAddress,
    SetState,
    SetWeight,
    Standing,
    operations,
)
from tests import haproxy_samples as samples

POOL = Pool(
    (*samples.two(104), ProxyServer("named", "pacs3.example.org", 104)),
    sorry_server=ProxyServer("sorry", ip_address("192.0.2.39"), 104),
)
CONFIGURATION = ProxyConfiguration(
    services=(ProxyService("DB", (ip_address("203.0.113.1"),), samples.ports(104), POOL),)
)
FRESH = (
    ServerState("DB", "pacs1", "192.0.2.31", 104, True, False, False, 1, ""),
    ServerState("DB", "pacs2", "192.0.2.32", 104, True, False, False, 2, ""),
    ServerState("DB", "named", "", 104, False, False, False, 1, "pacs3.example.org", True),
    ServerState("DB", "sorry", "192.0.2.39", 104, True, False, False, 1, ""),
)
PLACES: list[Place] = [("DB", one.server) for one in FRESH]


def after(state: ServerState, operation: RuntimeOperation) -> ServerState:
    """What HAProxy makes of an operation."""
    if operation.server != state.server:
        return state
    match operation:
        case SetState(ready=ready):
            return replace(state, maintenance=not ready, drain=False)
        case SetWeight(weight=weight):
            return replace(state, weight=weight)
        case SetAddress(address=address):
            return replace(state, address=str(address))
        case Cut():
            return state


def test_nothing_to_do() -> None:
    assert operations(CONFIGURATION, FRESH, {}) == []


def test_commands() -> None:
    have = (replace(FRESH[0], address="192.0.2.99", maintenance=True), *FRESH[1:])
    standings = {("DB", "pacs2"): Standing.HALT, ("DB", "named"): Standing.DRAIN}
    found = operations(CONFIGURATION, have, standings, {("DB", "sorry"): 9}, PLACES)
    assert [str(one) for one in found] == [
        "set server DB/pacs1 addr 192.0.2.31 port 104",
        "set server DB/pacs1 state ready",
        "set server DB/sorry weight 9",
        "set server DB/pacs2 state maint",
        "shutdown sessions server DB/pacs2",
        "set server DB/named state maint",
    ]


def test_servers_of_another_configuration_are_left() -> None:
    """Those come and go with a reload."""
    other = ServerState("OLD", "x", "192.0.2.1", 1, True, False, False, 1, "")
    assert operations(CONFIGURATION, [other], {}) == []


@given(
    st.dictionaries(st.sampled_from(PLACES), st.sampled_from(Standing)),
    st.dictionaries(st.sampled_from(PLACES), st.integers(1, 256)),
    st.lists(st.builds(lambda one, maintenance, drain, weight: replace(
        one, maintenance=maintenance, drain=drain, weight=weight
    ), st.sampled_from(FRESH), st.booleans(), st.booleans(), st.integers(0, 256)),
    unique_by=lambda one: one.server),
)  # fmt: skip
def test_once_is_enough(
    standings: dict[Place, Standing], weights: dict[Place, int], have: list[ServerState]
) -> None:
    """Done, there is nothing more to do."""
    for operation in operations(CONFIGURATION, have, standings, weights):
        have = [after(one, operation) for one in have]
    assert operations(CONFIGURATION, have, standings, weights) == []
    for one in have:
        standing = standings.get((one.proxy, one.server), Standing.ONLINE)
        assert one.maintenance == (standing is not Standing.ONLINE)
