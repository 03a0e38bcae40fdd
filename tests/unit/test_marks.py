"""Which packet mark each virtual service gets, and that it keeps it."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from lbdr.datapath import xdp_layout
from lbdr.marks import assign, key_of, needing
from lbdr.model import (
    MAX_RANGES,
    Configuration,
    Director,
    MarkKey,
    MarkRange,
    Persistence,
    PortRange,
    Ports,
    VirtualService,
)

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
