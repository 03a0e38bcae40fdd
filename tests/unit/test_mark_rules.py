"""What virtual services that a packet mark tells must be, and what they need of the machine."""

from __future__ import annotations

import pytest

from lbdr.config.load import Loaded, parse
from lbdr.config.mark_host import collisions, unmarkable
from lbdr.errors import ConfigError, Problem
from lbdr.model import MarkKey

HEAD = """\
real_servers: {rs1: {address: 10.0.0.1}}
"""


def read(*services: str, marks: str = "") -> Loaded:
    director = f"director: {{marks: {marks}}}\n" if marks else "\n"
    lines = [f"  S{place}: {{real_servers: [rs1], {one}}}" for place, one in enumerate(services)]
    return parse((director + HEAD + "virtual_services:\n" + "\n".join(lines) + "\n").encode(), "f")


def problems(*services: str, marks: str = "") -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        read(*services, marks=marks)
    return caught.value.problems


def several(last: int, ports: str = "[104, 2104]") -> str:
    return f"address: 10.0.1.{last}, ports: {ports}, scheduler: mh"


def test_more_services_than_marks() -> None:
    (problem,) = problems(several(1), several(2), several(3), marks="5-6")
    assert problem.message == (
        "3 virtual services need a packet mark each, since they have several ports or any, and "
        "there are 2 marks: 5-6"
    )
    assert problem.hint == "write a range of at least 3, such as `marks: 5-7`"
    assert (problem.line, problem.column) == (1, 19)
    assert read(several(1), several(2), several(3), marks="5-7")


def test_services_without_several_ports_need_no_mark() -> None:
    one = "address: 10.0.1.9, ports: [80], scheduler: mh"
    kept = "address: 10.0.1.8, ports: any, persistence: 5m"
    assert read(several(1), one, kept, marks="5-5")


def test_several_ports_of_sctp() -> None:
    (problem,) = problems("address: 10.0.1.1, ports: [1, 2], scheduler: mh, protocol: sctp")
    assert "several ports of sctp cannot be one decision" in problem.message
    assert problem.line == 4
    assert read("address: 10.0.1.1, ports: any, persistence: 5m, protocol: sctp")


def ranges(first: int, count: int) -> str:
    parts = (f"{start}-{start + 1}" for start in range(first, first + 3 * count, 3))
    return f"[{', '.join(parts)}, {first + 3 * count}]"


def test_more_ranges_than_the_programs_look_through() -> None:
    """Of a VIP and protocol, whatever service they belong to; single ports do not count."""
    ok = [several(1, ranges(1000, 10)), several(1, ranges(2000, 6)), several(2, ranges(1000, 16))]
    assert read(*ok)
    (problem,) = problems(*ok, several(1, ranges(3000, 1)))
    assert problem.message == "tcp 10.0.1.1 has more than 16 ranges of ports"
    assert problem.line == 7
    assert problem.hint.startswith("join ranges")
    (problem,) = problems(*ok, "address: 10.0.1.1, ports: any, persistence: 5m")
    assert problem.message == "tcp 10.0.1.1 has more than 16 ranges of ports"
    assert read(*ok, "address: 10.0.1.1, ports: any, persistence: 5m, protocol: udp")


@pytest.mark.parametrize(
    ("written", "range_"), [("5-6", "5-6"), ("0x3000-0x30fF", "12288-12543"), ("7-7", "7-7")]
)
def test_a_range_of_marks(written: str, range_: str) -> None:
    assert str(read(several(1), marks=written).configuration.director.marks) == range_


@pytest.mark.parametrize(
    ("written", "hint"),
    [
        ("0-5", "a mark is 1 to 4294967295"),
        ("6-5", "write 5-6"),
        ("5", "write 5-5"),
        ("5-4294967296", "a mark is 1 to 4294967295"),
        ("[5, 6]", "a mark is 1 to 4294967295"),
        ("0x30", "write 48-48"),
        ("0x-5", "a mark is 1 to 4294967295"),
    ],
)
def test_no_range_of_marks(written: str, hint: str) -> None:
    (problem,) = problems(several(1), marks=written)
    assert problem.hint == hint
    assert (problem.line, problem.column) == (1, 19)


def test_marks_that_cannot_be_set() -> None:
    loaded = read(several(1), "address: 10.0.1.9, ports: [80]", several(2, "any"))
    first, second = unmarkable(loaded, "bcc is not installed (apt install python3-bpfcc)")
    assert first.message == (
        "several ports as one decision (104,2104) need a packet mark, and it cannot be set here: "
        "bcc is not installed (apt install python3-bpfcc)"
    )
    assert first.hint == "mend that, or make a virtual service for each port"
    assert second.message.startswith("any port as one decision (any)")
    assert [problem.line for problem in (first, second)] == [4, 6]


def test_marks_that_others_use() -> None:
    loaded = read(several(1), marks="10-20")
    assert collisions(loaded, [MarkKey(9, 4), MarkKey(21, 4)]) == []
    others = [MarkKey(20, 6), MarkKey(20, 4), MarkKey(12, 4), MarkKey(30, 4)]
    (problem,) = collisions(loaded, others)
    assert problem.message == (
        "the packet marks 10-20 are lbdr's to give, and IPVS has virtual services of others there: "
        "12, 20"
    )
    assert problem.hint == (
        "write a range that nobody else uses, such as `director: {marks: 31-41}`"
    )
    assert problem.line == 1


def test_nobody_minds_marks_where_no_service_needs_one() -> None:
    loaded = read("address: 10.0.1.9, ports: [80]", marks="10-20")
    assert collisions(loaded, [MarkKey(12, 4)]) == []
    assert unmarkable(loaded, "whatever") == []
