"""What a configuration cannot have where the kernel has no IPVS."""

from __future__ import annotations

from ipaddress import ip_interface

import pytest

from lbdr.config.host import host_problems
from lbdr.config.load import parse
from lbdr.config.without_ipvs import needs_ipvs
from lbdr.model import HostNetwork, Interface

TEXT = """\
director: {name: lb1}
real_servers:
  rs1: {address: 10.0.0.1}
  rs2: {address: 10.0.0.2}
  rs3: {address: 10.0.0.3}
virtual_services:
  WEB:
    address: 10.0.0.9
    ports: [80]
    scheduler: mh
    sorry_server: rs3
    real_servers: [rs1, {server: rs2, weight: 0}]
"""
NETWORK = HostNetwork(
    {"eth0": Interface("eth0", 2, "02:00:00:00:00:02", addresses=(ip_interface("10.0.0.100/24"),))}
)
ALONE = "needs IPVS, which this kernel does not have: XDP alone forwards, and cannot do it"
NOTHING = "needs IPVS, which this kernel does not have: nothing else would forward"
KERNEL = "run a kernel with CONFIG_IP_VS"


def test_an_mh_service_needs_none() -> None:
    loaded = parse(TEXT.encode(), "f")
    assert needs_ipvs(loaded) == []
    assert host_problems(loaded, NETWORK, ipvs=False) == []


CASES = [
    (
        "scheduler: mh",
        "scheduler: wlc",
        (10, 16),
        f"scheduler wlc {ALONE}",
        "write `scheduler: mh`",
    ),
    ("    scheduler: mh\n", "", (7, 3), f"scheduler wlc {ALONE}", "write `scheduler: mh`"),
    (
        "scheduler: mh",
        "scheduler: mh\n    persistence: 5m",
        (11, 18),
        f"persistence {ALONE}",
        "leave it out: `scheduler: mh` without mh-port keeps a client on one server",
    ),
    ("ports: [80]", "ports: [80]\n    protocol: sctp", (10, 15), f"SCTP {ALONE}", ""),
    (
        "ports: [80]",
        "ports: [80]\n    protocol: udp\n    one_packet: true",
        (11, 17),
        f"`one_packet` {ALONE}",
        "leave it out",
    ),
    (
        "ports: [80]",
        "ports: [80]\n    fastpath: off",
        (10, 15),
        f"`fastpath: off` {NOTHING}",
        "leave it out",
    ),
    (
        "rs2, weight: 0",
        "rs2, upper_threshold: 9",
        (12, 56),
        f"a threshold of rs2 {ALONE}",
        "leave it out",
    ),
    (
        "{name: lb1}",
        "{name: lb1, fastpath: off}",
        (1, 33),
        f"`fastpath: off` {NOTHING}",
        "leave it out",
    ),
    (
        "{name: lb1}",
        "{name: lb1, timeouts: {tcp: 9m}}",
        (1, 33),
        f"`timeouts` {ALONE}",
        "leave it out",
    ),
]


@pytest.mark.parametrize(("what", "instead", "place", "message", "remedy"), CASES)
def test_what_needs_ipvs_is_refused_with_its_place(
    what: str, instead: str, place: tuple[int, int], message: str, remedy: str
) -> None:
    assert what in TEXT
    loaded = parse(TEXT.replace(what, instead).encode(), "f")
    (problem,) = host_problems(loaded, NETWORK, ipvs=False)
    assert (problem.line, problem.column) == place
    assert problem.message == message
    assert problem.hint == (f"{remedy}, or {KERNEL}" if remedy else KERNEL)
    assert host_problems(loaded, NETWORK) == []


def test_all_problems_are_told_at_once() -> None:
    text = TEXT.replace("scheduler: mh", "scheduler: wlc\n    persistence: 5m\n    fastpath: off")
    found = host_problems(parse(text.encode(), "f"), NETWORK, ipvs=False)
    assert [problem.line for problem in found] == [10, 11, 12]
