"""What the wire says about settings and VIPs of a real server, and that solve-arp says the same."""

from __future__ import annotations

import itertools
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from arp_wire import (
    ETH_IPV6,
    VIP,
    VIP6,
    advertises,
    announces_vip,
    answers_arp,
    arrives,
    check_says_solved,
    frames,
    ip,
    listening,
    result,
    run,
    set_conf,
    unknown,
)
from netlab import Lab

from lbdr.datapath.addresses import Addresses


@pytest.mark.parametrize(
    ("settings", "answers", "announces"),
    [
        ({}, True, True),
        ({"lo_arp_ignore": 1, "lo_arp_announce": 2}, True, True),
        ({"default_arp_ignore": 1, "default_arp_announce": 2}, True, True),
        ({"all_arp_ignore": 1}, False, True),
        ({"eth0_arp_ignore": 1}, False, True),
        ({"all_arp_ignore": 1, "all_arp_announce": 2}, False, False),
        ({"eth0_arp_ignore": 1, "eth0_arp_announce": 2}, False, False),
        ({"all_arp_ignore": 1, "all_arp_announce": 1}, False, True),
        ({"all_arp_ignore": 2, "all_arp_announce": 2}, False, False),
        ({"all_arp_ignore": 3, "all_arp_announce": 2}, True, False),  # scope host only
        ({"all_arp_ignore": 1, "eth0_arp_ignore": 4, "all_arp_announce": 2}, True, False),
        ({"all_arp_ignore": 1, "all_arp_announce": 2, "eth0_arp_announce": 3}, False, True),
    ],
)
def test_each_setting_does_what_check_says(
    lab: Lab, settings: dict[str, int], *, answers: bool, announces: bool
) -> None:
    set_conf(lab, **settings)
    lab.ip("web1", f"address add {VIP}/32 dev lo")
    assert answers_arp(lab) is answers
    assert announces_vip(lab) is announces
    assert check_says_solved(lab) is not (answers or announces)


def test_check_agrees_with_the_wire_over_all_combinations(lab: Lab) -> None:
    places = [("lo",), ("eth0",), ("lo", "eth0")]
    ignores = list(itertools.product((0, 1, 2, 3), (0, 1), (0, 1, 2, 3)))
    announces = itertools.cycle(itertools.product((0, 2, 1, 3), (0, 2), (0, 2, 1)))
    rows = [(place, ignore, next(announces)) for place in places for ignore in ignores]
    rows += [(("lo",), (1, 0, 0), next(announces)) for _ in range(24)]
    verdicts = set()
    held: tuple[str, ...] = ()
    for place, ignore, announce in rows:
        if place != held:
            lab.ip("web1", *(f"address del {VIP}/32 dev {name}" for name in held))
            lab.ip("web1", *(f"address add {VIP}/32 dev {name}" for name in place))
            held = place
        for where, one, other in zip(("all", "lo", "eth0"), ignore, announce, strict=True):
            set_conf(lab, **{f"{where}_arp_ignore": one, f"{where}_arp_announce": other})
        silent = not answers_arp(lab) and not announces_vip(lab)
        assert check_says_solved(lab) is silent, (place, ignore, announce)
        verdicts.add((place, silent))
    assert verdicts >= {(("lo",), True), (("lo",), False), (("eth0",), False)}


def test_never_answers_while_it_solves(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answered: list[bool] = []
    real = Addresses.apply

    async def asked_before_and_after(self: Addresses, operation: Any) -> None:
        answered.append(answers_arp(lab))
        await real(self, operation)
        answered.append(answers_arp(lab))

    monkeypatch.setattr(Addresses, "apply", asked_before_and_after)
    assert run(lab, tmp_path, "--vip", VIP) == 0
    assert run(lab, tmp_path, "--undo") == 0
    assert answered == [False] * 4


def test_a_subnet_on_lo_takes_the_neighbours_addresses(lab: Lab) -> None:
    """Why vip-prefix is an error: what its message says is what happens."""
    lab.ip("web1", f"address add {VIP}/24 dev lo")
    assert "local" in lab.run("web1", ["ip", "route", "get", "10.77.0.99"]).stdout
    lab.ip("web1", f"address del {VIP}/24 dev lo", f"address add {VIP}/32 dev lo")
    assert "dev eth0" in lab.run("web1", ["ip", "route", "get", "10.77.0.99"]).stdout


@pytest.mark.parametrize("forwarding", ["0", "1"])
def test_ipv6_on_lo_is_silent_and_on_the_nic_is_not(
    lab: Lab, tmp_path: Path, forwarding: str
) -> None:
    lab.sysctl("web1", "net.ipv6.conf.all.forwarding", forwarding)
    assert run(lab, tmp_path, "--vip", VIP6) == 0
    assert not advertises(lab)
    assert check_says_solved(lab, VIP6)
    lab.ip("web1", f"address add {VIP6}/128 dev eth0 nodad")
    assert advertises(lab)
    assert not check_says_solved(lab, VIP6)


def test_ipv6_solicitations_do_not_name_the_vip(lab: Lab, tmp_path: Path) -> None:
    assert run(lab, tmp_path, "--vip", VIP6) == 0
    target = f"fd77::{unknown()}"
    with listening(lab, ETH_IPV6) as listener:
        with lab.entered("web1"), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as server:
            server.bind((VIP6, 0))
            server.sendto(b"answer", (target, 9))
        for frame in frames(listener, time.monotonic() + 5):
            if frame[20] == 58 and frame[54] == 135 and frame[62:78] == ip(target).packed:
                assert frame[22:38] != ip(VIP6).packed
                return
    raise TimeoutError("the server asked for nobody")


def test_multi_homed_rp_filter(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.ip(
        "web1",
        "link add eth1 up type veth peer name eth1p",
        "link set eth1p up",
        "address add 10.88.0.21/24 dev eth1",
        "route add default via 10.88.0.1",
    )
    set_conf(lab, eth0_rp_filter=1)
    lab.ip("web1", f"address add {VIP}/32 dev lo")
    assert not arrives(lab, "203.0.113.9")
    done = result(lab, tmp_path, capsys, "--vip", VIP)
    assert "sysctl -w net.ipv4.conf.eth0.rp_filter=2" in [
        operation["command"] for operation in done["operations"]
    ]
    assert arrives(lab, "203.0.113.9")
    assert run(lab, tmp_path, "--undo") == 0
    with lab.entered("web1"):
        assert Path("/proc/sys/net/ipv4/conf/eth0/rp_filter").read_text() == "1\n"


def test_single_homed_rp_filter_is_left_alone(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    set_conf(lab, eth0_rp_filter=1)
    done = result(lab, tmp_path, capsys, "--vip", VIP)
    assert not any("rp_filter" in operation["command"] for operation in done["operations"])
