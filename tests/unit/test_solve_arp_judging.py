"""What solve-arp finds, and that its solution solves; no kernel."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbdr.model import HostNetwork, Interface, VirtualAddress
from lbdr.operations import AddAddress, SetSysctl
from lbdr.realserver.arp_problem import judge, solution
from lbdr.realserver.findings import ServerState, Severity, conf, solved, wanted_sysctls

V4 = VirtualAddress(ipaddress.ip_address("192.168.10.50"), "lo")
V6 = VirtualAddress(ipaddress.ip_address("2001:db8::50"), "lo")


def interface(name: str, *addresses: str) -> Interface:
    return Interface(name, 1, addresses=tuple(ipaddress.ip_interface(a) for a in addresses))


def server(*more: Interface, lo: tuple[str, ...] = (), **settings: Any) -> ServerState:
    """A real server with eth0 and what else is given; settings as eth0_arp_ignore=1."""
    interfaces = {
        i.name: i
        for i in (
            interface("lo", "127.0.0.1/8", *lo),
            interface("eth0", "192.168.10.31/24", "2001:db8::31/64"),
            *more,
        )
    }
    nics = tuple(name for name in interfaces if name.startswith("eth"))
    sysctls: dict[str, str | None] = dict.fromkeys(wanted_sysctls(nics, "lo"), "0")
    for name, value in settings.items():
        where, _, setting = name.partition("_")
        sysctls[conf(where.replace("DOT", "."), setting)] = str(value)
    return ServerState(
        HostNetwork(interfaces),
        nics=nics,
        quiet=frozenset(interfaces.keys() - set(nics)),
        sysctls=sysctls,
    )


def after(state: ServerState, operations: list[SetSysctl | AddAddress]) -> ServerState:
    sysctls, interfaces = dict(state.sysctls), dict(state.network.interfaces)
    for operation in operations:
        if isinstance(operation, SetSysctl):
            assert int(operation.value) > int(sysctls[operation.name] or 0)  # never lowers
            sysctls[operation.name] = operation.value
        else:
            vip = operation.vip
            old = interfaces[vip.interface]
            new = ipaddress.ip_interface(f"{vip.address}/{vip.prefix_length}")
            interfaces[vip.interface] = replace(old, addresses=(*old.addresses, new))
    return replace(state, network=HostNetwork(interfaces), sysctls=sysctls)


def codes(state: ServerState, *vips: VirtualAddress) -> list[str]:
    return [f.code for f in judge(state, vips) if f.severity is Severity.ERROR]


def test_sysctls_come_before_addresses() -> None:
    commands = [operation.command for operation in solution(server(), [V4, V6])]
    assert commands == [
        "sysctl -w net.ipv4.conf.all.arp_ignore=1",
        "sysctl -w net.ipv4.conf.all.arp_announce=2",
        "ip address add 192.168.10.50/32 dev lo",
        "ip address add 2001:db8::50/128 dev lo nodad preferred_lft 0",
    ]


def test_ipv6_needs_no_sysctl() -> None:
    assert codes(server(lo=("2001:db8::50/128",)), V6) == []


@given(
    values=st.lists(st.integers(0, 2), min_size=9, max_size=9),
    held=st.sets(st.sampled_from(["192.168.10.50/32", "2001:db8::50/128"])),
    homes=st.integers(1, 3),
)
def test_its_solution_solves_and_is_none_the_second_time(
    values: list[int], held: set[str], homes: int
) -> None:
    names = [
        f"{where}_{setting}"
        for where in ("all", "lo", "eth0")
        for setting in ("arp_ignore", "arp_announce", "rp_filter")
    ]
    more = [interface(f"eth{n}", f"10.{n}.0.1/24") for n in range(1, homes)]
    state = server(*more, lo=tuple(held), **dict(zip(names, values, strict=True)))
    operations = solution(state, [V4, V6])
    assert solved(judge(state, [V4, V6])) is (not operations)
    state = after(state, operations)
    assert codes(state, V4, V6) == []
    assert solution(state, [V4, V6]) == []


@pytest.mark.parametrize("value", [3, 4, 7, 9])
def test_a_value_that_is_too_high_is_not_lowered(value: int) -> None:
    state = server(lo=("192.168.10.50/32",), eth0_arp_ignore=value, all_arp_announce=2)
    (finding,) = [f for f in judge(state, [V4]) if f.severity is Severity.ERROR]
    assert (finding.code, finding.fixable) == ("arp-ignore", False)
    assert "sysctl -w net.ipv4.conf.eth0.arp_ignore=1" in finding.remedy
    assert solution(state, [V4]) == []


def test_settings_that_only_look_right_are_named() -> None:
    state = server(
        lo=("192.168.10.50/32",), lo_arp_ignore=1, lo_arp_announce=2, default_arp_ignore=1
    )
    notes = [f.message for f in judge(state, [V4]) if f.code == "looks-right"]
    assert [message.split(" ")[0] for message in notes] == [
        "net.ipv4.conf.lo.arp_ignore=1",
        "net.ipv4.conf.lo.arp_announce=2",
        "net.ipv4.conf.default.arp_ignore=1",
    ]


def test_settings_of_each_nic_are_enough_with_a_word_on_later_ones() -> None:
    state = server(lo=("192.168.10.50/32",), eth0_arp_ignore=1, eth0_arp_announce=2)
    assert [(f.code, f.severity.value) for f in judge(state, [V4])] == [
        ("later-interfaces", "note"),
        ("later-interfaces", "note"),
    ]


def test_with_no_nic_yet_sysctls_are_set_for_the_one_to_come() -> None:
    state = replace(server(), nics=())
    assert [operation.command for operation in solution(state, [V4])][:2] == [
        "sysctl -w net.ipv4.conf.all.arp_ignore=1",
        "sysctl -w net.ipv4.conf.all.arp_announce=2",
    ]


def test_the_silent_nic_is_not_blamed_for_the_other_one() -> None:
    state = server(interface("eth1", "10.1.0.1/24"), eth1_arp_ignore=1)
    (finding,) = [f for f in judge(state, [V4]) if f.code == "arp-ignore"]
    assert finding.interfaces == ("eth0",)


def test_a_vip_on_a_nic_stays_wrong_when_it_is_on_lo_too() -> None:
    state = server(interface("eth1", "192.168.10.50/32"), lo=("192.168.10.50/32",))
    (finding,) = [f for f in judge(state, [V4]) if f.code == "vip-on-nic"]
    assert "ip address del 192.168.10.50/32 dev eth1" in finding.remedy
    assert "lo has it too" in finding.message


@pytest.mark.parametrize(
    ("state", "vip", "code", "remedy"),
    [
        (server(lo=("192.168.10.50/24",)), V4, "vip-prefix", "a VIP is 192.168.10.50/32"),
        (server(lo=("2001:db8::50/64",)), V6, "vip-prefix", "a VIP is 2001:db8::50/128"),
        (replace(server(), down=frozenset({"lo"})), V4, "interface-down", "ip link set lo up"),
        (server(), replace(V4, interface="lo:0"), "no-interface", "--interface lo"),
        (server(), replace(V4, interface="dummy9"), "no-interface", "make it first"),
        (server(), replace(V4, interface="eth0"), "interface-answers", "--interface lo"),
        (
            replace(server(), sysctls={conf("lo", "disable_ipv6", version=6): "1"}),
            V6,
            "ipv6-disabled",
            "sysctl -w net.ipv6.conf.lo.disable_ipv6=0",
        ),
        (replace(server(), sysctls={}), V6, "ipv6-disabled", "ipv6.disable=1"),
    ],
)
def test_what_only_a_person_can_put_right(
    state: ServerState, vip: VirtualAddress, code: str, remedy: str
) -> None:
    (finding,) = [f for f in judge(state, [vip]) if f.code == code]
    assert not finding.fixable
    assert remedy in finding.remedy
    assert AddAddress(vip) not in solution(state, [vip])


def test_a_vip_on_another_quiet_interface_is_in_its_place() -> None:
    state = server(interface("dummy0", "192.168.10.50/32"), all_arp_ignore=1, all_arp_announce=2)
    assert codes(state, V4) == []


@pytest.mark.parametrize(
    ("homes", "rp_filter", "found"), [(1, 1, False), (2, 0, False), (2, 2, False), (2, 1, True)]
)
def test_strict_rp_filter_matters_with_two_homes(
    homes: int, rp_filter: int, *, found: bool
) -> None:
    more = [interface(f"eth{n}", f"10.{n}.0.1/24") for n in range(1, homes)]
    assert ("rp-filter" in codes(server(*more, eth0_rp_filter=rp_filter), V4)) is found


def test_an_interface_with_a_dot_has_a_slash_in_its_sysctls() -> None:
    more = interface("eth0.100", "10.1.0.1/24")
    state = server(more, eth0DOT100_rp_filter=1)
    (finding,) = [f for f in judge(state, [V4]) if f.code == "rp-filter"]
    assert finding.remedy == "sysctl -w net.ipv4.conf.eth0/100.rp_filter=2"
