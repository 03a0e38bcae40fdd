"""What a configuration needs of a machine."""

from __future__ import annotations

from ipaddress import ip_interface

import pytest

from lbdr.config.host import host_problems
from lbdr.config.load import parse
from lbdr.errors import Problem
from lbdr.model import HostNetwork, Interface

TEXT = """\
real_servers:
  rs1: {address: 10.0.0.1}
  rs2: {address: 10.0.1.2}
  unused: {address: 203.0.113.1}
virtual_services:
  WEB: {address: 10.0.0.9, ports: [80], real_servers: [rs1, rs2]}
"""


def network(*, eth1_up: bool = True) -> HostNetwork:
    """A machine with an interface in each of the two subnets."""
    interfaces = (
        Interface("lo", 1, addresses=(ip_interface("127.0.0.1/8"), ip_interface("::1/128"))),
        Interface(
            "eth0",
            2,
            mac="02:00:00:00:00:02",
            addresses=(
                ip_interface("10.0.0.100/24"),
                ip_interface("10.0.0.9/32"),  # the VIP itself, claimed already
                ip_interface("fe80::1/64"),
            ),
        ),
        Interface("eth1", 3, up=eth1_up, addresses=(ip_interface("10.0.1.100/24"),)),
    )
    return HostNetwork({interface.name: interface for interface in interfaces})


def check(text: str, host: HostNetwork | None = None) -> list[Problem]:
    return host_problems(parse(text.encode(), "f"), host or network())


def test_a_machine_that_has_all_of_it() -> None:
    assert check(TEXT) == []


CASES = [
    (
        TEXT.replace("10.0.1.2", "10.0.2.2"),
        (3, 18),
        (
            "real server rs2 (10.0.2.2) is in no subnet of an interface of this machine (eth0 "
            "10.0.0.0/24, eth1 10.0.1.0/24): DR needs one hop on layer 2"
        ),
    ),
    (
        TEXT.replace("10.0.0.9", "10.0.3.9"),
        (6, 18),
        (
            "the VIP 10.0.3.9 is in no subnet of an interface of this machine (eth0 10.0.0.0/24, "
            "eth1 10.0.1.0/24)"
        ),
    ),
    (
        TEXT.replace("ports", "interface: eth7, ports"),
        (6, 39),
        "this machine has no interface eth7; it has: eth0, eth1, lo",
    ),
    (
        TEXT.replace("ports: [80]", "interface: lo, ports: [80, 81], persistence: 5m"),
        (6, 39),
        (
            "the VIP 10.0.0.9 of WEB goes to lo, where no frames come in: several ports as one "
            "decision need a packet mark, which lbdr sets on the VIP's interface"
        ),
    ),
    (
        TEXT.replace("10.0.0.9", "10.0.0.100"),
        (6, 18),
        (
            "the VIP 10.0.0.100 is this machine's own address on eth0: real servers hold the VIP "
            "too, and could not reach the director"
        ),
    ),
    (
        TEXT.replace("10.0.0.9", "10.0.0.255"),
        (6, 18),
        (
            "the VIP 10.0.0.255 is the first or last address of 10.0.0.0/24 on eth0, which stand "
            "for the subnet and for all of its hosts"
        ),
    ),
]


@pytest.mark.parametrize(("text", "place", "message"), CASES)
def test_what_the_machine_lacks(text: str, place: tuple[int, int], message: str) -> None:
    found = check(text)
    assert [p.message for p in found] == [message]
    assert (found[0].line, found[0].column) == place
    assert found[0].hint
    assert found[0].file == "f"


@pytest.mark.parametrize(
    "text",
    [
        TEXT.replace("10.0.0.9", "10.0.3.9").replace("ports", "interface: eth0, ports"),
        TEXT.replace("[80]", "any, persistence: 5m"),
        TEXT.replace("[80]", "[80, 443], persistence: 5m"),
        TEXT.replace("[80]", "any, scheduler: mh"),
    ],
)
def test_what_is_allowed(text: str) -> None:
    assert check(text) == []


def test_an_interface_that_is_down_is_named_for_server_and_vip() -> None:
    text = TEXT.replace("10.0.0.9", "10.0.1.9")
    assert [(p.line, p.message) for p in check(text, network(eth1_up=False))] == [
        (
            3,
            (
                "the interface eth1, by which real server rs2 (10.0.1.2) is reached, is down or "
                "has no carrier"
            ),
        ),
        (6, "the interface eth1, where the VIP 10.0.1.9 goes, is down or has no carrier"),
    ]


def test_a_vip_of_several_services_is_judged_once() -> None:
    text = TEXT.replace("10.0.0.9", "10.0.3.9")
    text += "  TLS: {address: 10.0.3.9, ports: [443], real_servers: [rs1]}\n"
    assert [p.line for p in check(text)] == [6]


def test_a_sorry_server_is_judged_like_the_others() -> None:
    text = TEXT.replace("ports", "sorry_server: unused, ports")
    assert [(p.line, p.column) for p in check(text)] == [(4, 21)]


def test_a_machine_without_a_subnet() -> None:
    assert "(none has an IPv4 subnet)" in check(TEXT, HostNetwork())[0].message


def test_both_ends_of_a_point_to_point_subnet_are_hosts() -> None:
    link = Interface("eth0", 2, addresses=(ip_interface("10.0.0.8/31"),))
    text = TEXT.replace("real_servers: [rs1, rs2]", "real_servers: [rs3]")
    text = text.replace("virtual", "  rs3: {address: 10.0.0.8}\nvirtual", 1)
    assert check(text, HostNetwork({"eth0": link})) == []
