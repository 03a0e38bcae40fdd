"""Which packet mark each virtual service gets, and that it keeps it."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbdr.datapath import xdp_layout
from lbdr.marks import assign, key_of, lingering, needing
from lbdr.model import (
    MAX_RANGES,
    Address,
    Configuration,
    DesiredState,
    Director,
    Key,
    MarkKey,
    MarkRange,
    ObservedRealServer,
    ObservedService,
    ObservedState,
    Persistence,
    PortRange,
    Ports,
    Protocol,
    RealServer,
    Service,
    ServiceKey,
    Traffic,
    VirtualService,
)
from lbdr.operations import DeleteService
from lbdr.plan import Ownership, make_plan

SEVERAL = Ports((PortRange(104, 104), PortRange(2104, 2104)))
VIP, VIP6 = ip_address("10.0.0.50"), ip_address("fd00::50")
ALLOWED = MarkRange(10, 13)


def configuration(names: Sequence[str], allowed: MarkRange = ALLOWED) -> Configuration:
    """Services with several ports, and one that needs no mark."""
    one = VirtualService("WEB", VIP, ports=Ports((PortRange(80, 80),)))
    several = (VirtualService(name, VIP, ports=SEVERAL) for name in names)
    return Configuration(Director(marks=allowed), (one, *several))


def test_who_needs_one() -> None:
    kept = Persistence(300, 32)
    services = (
        VirtualService("ONE", VIP, ports=Ports((PortRange(80, 80),))),
        VirtualService("SEVERAL", VIP, ports=SEVERAL, persistence=kept),
        VirtualService("RANGE", VIP, ports=Ports((PortRange(1, 2),)), scheduler="mh"),
        VirtualService("ANY", VIP, scheduler="mh"),
        VirtualService("ANY_KEPT", VIP, persistence=kept),  # IPVS's port 0
    )
    found = needing(Configuration(virtual_services=services))
    assert [virtual.name for virtual in found] == ["SEVERAL", "RANGE", "ANY"]


def test_the_first_marks_go_to_the_first_services() -> None:
    assert assign(configuration(["A", "B"]), {}) == {"A": 10, "B": 11}


def test_a_service_keeps_its_mark() -> None:
    before = assign(configuration(["A", "B"]), {})
    assert assign(configuration(["C", "B"]), before) == {"B": 11, "C": 12}
    assert assign(configuration(["B", "A"]), before) == before


def test_marks_of_services_that_are_gone_are_used_again_last() -> None:
    """IPVS may remember for a while where their clients went."""
    before = {"A": 10, "B": 11}
    assert assign(configuration(["B", "C", "D"]), before) == {"B": 11, "C": 12, "D": 13}
    assert assign(configuration(["B", "C", "D", "E"]), before) == {
        "B": 11,
        "C": 12,
        "D": 13,
        "E": 10,
    }


def test_a_service_that_is_renamed_keeps_its_mark() -> None:
    """By its packets: another mark is another service to IPVS."""
    former = Configuration(
        Director(marks=ALLOWED),
        tuple(VirtualService(name, vip, ports=SEVERAL) for name, vip in (("A", VIP), ("B", VIP6))),
    )
    services = tuple(
        VirtualService(name, vip, ports=SEVERAL) for name, vip in (("C", VIP6), ("D", VIP))
    )
    now = Configuration(Director(marks=ALLOWED), services)
    before = assign(former, {})
    assert before == {"A": 10, "B": 11}
    assert assign(now, before, former) == {"C": 11, "D": 10}
    assert assign(now, before) == {"C": 12, "D": 13}


def test_another_range_gives_other_marks() -> None:
    before = {"A": 10, "B": 11}
    assert assign(configuration(["A", "B"], MarkRange(11, 20)), before) == {"B": 11, "A": 12}


def test_the_largest_range_there_is() -> None:
    found = assign(configuration(["A"], MarkRange(1, (1 << 32) - 1)), {})
    assert found == {"A": 1}


@given(st.lists(st.sets(st.sampled_from("ABCDEF"), max_size=4).map(sorted), max_size=8))
def test_whatever_comes_and_goes(history: list[list[str]]) -> None:
    marks: dict[str, int] = {}
    for names in history:
        before, marks = marks, assign(configuration(names), marks)
        assert marks.keys() == set(names)
        assert len(set(marks.values())) == len(marks)
        assert all(mark in ALLOWED for mark in marks.values())
        assert all(marks[name] == before[name] for name in before.keys() & marks.keys())


def test_a_services_identity() -> None:
    one = VirtualService("ONE", VIP, ports=Ports((PortRange(80, 80),)))
    four, six = (VirtualService("SEVERAL", vip, ports=SEVERAL) for vip in (VIP, VIP6))
    assert key_of(one, {}) == one.key
    assert key_of(four, {}) is None
    assert key_of(four, {"SEVERAL": 7}) == MarkKey(7, 4)
    assert key_of(six, {"SEVERAL": 7}) == MarkKey(7, 6)


def test_the_programs_have_room_for_what_the_rules_allow() -> None:
    assert xdp_layout.RANGES == MAX_RANGES


ONE_PORT = ServiceKey(Protocol.TCP, VIP, 104)
RS1, RS2 = ip_address("10.0.0.31"), ip_address("10.0.0.32")


def in_ipvs(*servers: Address, active: int = 0, inactive: int = 0) -> ObservedService:
    service = Service(ONE_PORT, "wlc")
    entries = (ObservedRealServer(RealServer(rip, 104), active, inactive) for rip in servers)
    return ObservedService(service, tuple(entries))


def successor(traffic: Traffic, *servers: Address, version: int = 4) -> DesiredState:
    key = MarkKey(7, version)
    real_servers = tuple(RealServer(rip, 0) for rip in servers)
    return DesiredState({key: Service(key, "wlc", real_servers=real_servers, marked=traffic)})


@pytest.mark.parametrize(
    ("observed", "desired", "stays"),
    [
        (in_ipvs(RS1, active=1), successor(Traffic(Protocol.TCP, VIP, SEVERAL), RS1, RS2), True),
        (in_ipvs(RS1, inactive=1), successor(Traffic(Protocol.TCP, VIP, Ports()), RS1), True),
        (in_ipvs(RS1), successor(Traffic(Protocol.TCP, VIP, SEVERAL), RS1), False),
        # its real server is out: so are the connections
        (in_ipvs(RS1, active=1), successor(Traffic(Protocol.TCP, VIP, SEVERAL), RS2), False),
        (in_ipvs(RS1, active=1), successor(Traffic(Protocol.UDP, VIP, SEVERAL), RS1), False),
        (in_ipvs(RS1, active=1), successor(Traffic(Protocol.TCP, VIP6, SEVERAL), RS1), False),
        (
            in_ipvs(RS1, active=1),
            successor(Traffic(Protocol.TCP, VIP, Ports((PortRange(105, 200),))), RS1),
            False,
        ),
        (in_ipvs(RS1, active=1), DesiredState(), False),
    ],
)
def test_a_service_that_got_more_ports_lingers_while_it_is_used(
    observed: ObservedService, desired: DesiredState, stays: bool
) -> None:
    there: dict[Key, ObservedService] = {ONE_PORT: observed}
    assert lingering(desired, there, {ONE_PORT}) == ({ONE_PORT} if stays else set())
    assert not lingering(desired, there, set())  # of others
    assert not lingering(desired, {}, {ONE_PORT})
    plan = make_plan(
        desired,
        ObservedState(services=there),
        Ownership(frozenset({ONE_PORT})),
        kept=lingering(desired, there, {ONE_PORT}),
    )
    assert (DeleteService(ONE_PORT) not in plan.operations) == stays


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [
        (SEVERAL, SEVERAL, True),
        (SEVERAL, Ports(), True),
        (Ports(), Ports(), True),
        (SEVERAL, Ports((PortRange(105, 2103),)), False),
        (SEVERAL, Ports((PortRange(105, 2104),)), True),
    ],
)
def test_packets_that_two_services_have(one: Ports, other: Ports, overlap: bool) -> None:
    first, second = Traffic(Protocol.TCP, VIP, one), Traffic(Protocol.TCP, VIP, other)
    assert first.overlaps(second) == second.overlaps(first) == overlap
    assert not first.overlaps(Traffic(Protocol.UDP, VIP, other))
    assert not first.overlaps(Traffic(Protocol.TCP, VIP6, other))
