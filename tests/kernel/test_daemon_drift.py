"""What others change by hand is put back within two seconds; what they made is left alone."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from netlab import INTERFACE, Lab

from lbdr.control.protocol import PlanRequest, ReloadRequest
from tests.kernel.daemon_traffic import Wire
from tests.kernel.daemons import VIP, VIP6, WEB, Daemon, soon

SECONDS = 2.0  # from the edit to the kernel as it was
OTHERS = "-A -t 10.77.0.99:99 -s rr"
OTHERS_ON_OUR_VIP = f"-A -t {VIP}:99 -s rr"
OTHERS_ADDRESS = "10.77.0.98/32"
SERVICES = {
    "WEB": {
        **WEB,
        "real_servers": [
            "web1",
            {"server": "web2", "weight": 2, "upper_threshold": 100, "lower_threshold": 50},
        ],
    },
    "HASH": {**WEB, "ports": [81], "scheduler": "mh", "scheduler_flags": ["mh-port"]},
    "STAY": {
        **WEB,
        "ports": [443],
        "scheduler": "rr",
        "persistence": {"timeout": "5m", "granularity": "/24"},
    },
    "SYSLOG": {**WEB, "protocol": "udp", "ports": [514], "scheduler": "wrr", "one_packet": True},
    # named: an address in its subnet may go with a link
    "SIX": {
        "address": VIP6,
        "ports": [80],
        "interface": INTERFACE,
        "real_servers": ["six1", "six2"],
    },
}


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """Running, beside a service and an address that others made."""
    with Lab() as lab, Daemon(lab) as built:
        built.ipvsadm(OTHERS)
        lab.ip("director", f"address add {OTHERS_ADDRESS} dev {INTERFACE}")
        # the refresh is far away: what is announced is announced for a reason
        configure(built, drift_check="200ms")
        built.start()
        built.ipvsadm(OTHERS_ON_OUR_VIP)
        yield built


def configure(daemon: Daemon, **director: str) -> None:
    """Announcements are not refreshed: what is announced is announced for a reason."""
    quiet = {"delay": 0, "refresh": 0}
    daemon.configure(SERVICES, timeouts={"tcp": "2h"}, gratuitous_arp=quiet, **director)


def table(daemon: Daemon) -> list[str]:
    """All that IPVS holds, in an order of its own; -S leaves thresholds out."""
    return sorted([*daemon.ipvs(), *daemon.ipvs("-Ln", "--thresholds")])


def blocks(daemon: Daemon) -> list[str]:
    """What can be had of it without a process, to save the CPU while the daemon needs it."""
    return sorted(daemon.ipvs_text().splitlines())


def put_back(daemon: Daemon, edit: Callable[[], object], seen: Callable[[], object]) -> list[str]:
    """Edit, and see that it does not last; the log lines since.

    Args:
        daemon: running.
        edit: by hand.
        seen: what the edit changes, and what is to come back.
    """
    cheap, before = blocks(daemon), seen()
    mark = daemon.mark()
    edit()
    begin = time.monotonic()
    soon(
        lambda: blocks(daemon) == cheap and seen() == before,
        "as it was before the edit",
        timeout=20,
    )
    took = time.monotonic() - begin
    lines = daemon.lines(": ", since=mark)
    assert took < SECONDS, lines
    assert any("drift" in line for line in lines), lines
    return lines


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param(f"-e -t {VIP}:80 -r 10.77.0.21 -g -w 7", id="weight"),
        pytest.param(f"-e -t {VIP}:80 -r 10.77.0.21 -g -w 0", id="drained"),
        pytest.param(f"-e -t {VIP}:80 -r 10.77.0.22 -g -w 2 -x 9 -y 5", id="thresholds"),
        pytest.param(f"-e -t {VIP}:80 -r 10.77.0.22 -g -w 2", id="thresholds gone"),
        pytest.param(f"-e -t {VIP}:80 -r 10.77.0.21 -m -w 1", id="forwarding method"),
        pytest.param(f"-d -t {VIP}:80 -r 10.77.0.21", id="real server deleted"),
        pytest.param(f"-a -t {VIP}:80 -r 10.77.0.97 -g", id="real server added"),
        pytest.param(f"-D -t {VIP}:80", id="service deleted"),
        pytest.param(f"-D -t [{VIP6}]:80", id="IPv6 service deleted"),
        pytest.param(f"-E -t {VIP}:80 -s rr", id="scheduler"),
        pytest.param(f"-E -t {VIP}:80 -s wlc -p 60", id="persistence added"),
        pytest.param(f"-E -t {VIP}:443 -s rr", id="persistence gone"),
        pytest.param(f"-E -t {VIP}:443 -s rr -p 300", id="granularity"),
        pytest.param(f"-E -t {VIP}:81 -s mh", id="scheduler flags"),
        pytest.param(f"-E -u {VIP}:514 -s wrr", id="one-packet scheduling"),
    ],
)
def test_an_edit_of_ipvs_is_put_back(daemon: Daemon, edit: str) -> None:
    put_back(daemon, lambda: daemon.ipvsadm(edit), lambda: table(daemon))


def test_a_flushed_table_is_put_back(daemon: Daemon) -> None:
    """With it goes what others made, which is not lbdr's to put back."""
    daemon.ipvsadm(f"-D{OTHERS_ON_OUR_VIP[2:].removesuffix(' -s rr')}")
    daemon.ipvsadm(f"-D{OTHERS[2:].removesuffix(' -s rr')}")
    try:
        put_back(daemon, lambda: daemon.ipvsadm("-C"), lambda: table(daemon))
    finally:
        daemon.ipvsadm(OTHERS)
        daemon.ipvsadm(OTHERS_ON_OUR_VIP)


def test_ipvs_timeouts_are_put_back(daemon: Daemon) -> None:
    put_back(
        daemon,
        lambda: daemon.ipvsadm("--set 900 0 0"),
        lambda: daemon.ipvs("-L", "--timeout"),
    )


@pytest.mark.parametrize("name", ["expire_nodest_conn", "sloppy_tcp"])
def test_a_sysctl_is_put_back(daemon: Daemon, name: str) -> None:
    full = f"net.ipv4.vs.{name}"
    put_back(
        daemon,
        lambda: daemon.lab.sysctl("director", full, "0"),
        lambda: daemon.sysctl(full),
    )


@pytest.mark.parametrize("vip", [f"{VIP}/32", f"{VIP6}/128"])
def test_a_vip_is_put_back_and_announced_again(daemon: Daemon, vip: str) -> None:
    address = vip.partition("/")[0]
    with Wire(daemon.lab) as wire:
        put_back(
            daemon,
            lambda: daemon.lab.ip("director", f"address del {vip} dev {INTERFACE}"),
            daemon.addresses,
        )
        wire.wait(5, address)


def test_vips_come_back_with_a_link(daemon: Daemon) -> None:
    """The kernel takes IPv6 addresses away with the link, and a switch forgets where VIPs are."""
    lab = daemon.lab
    own = f"{lab['director'].ipv6}/64"
    with Wire(lab) as wire:

        def down_and_up() -> None:
            lab.ip("director", f"link set {INTERFACE} down")
            soon(lambda: f"{VIP6}/128" not in daemon.addresses(), "the IPv6 VIP went")
            # what a network manager does
            add = f"address add {own} dev {INTERFACE} nodad"
            lab.ip("director", f"link set {INTERFACE} up", add)

        def held() -> set[str]:
            return daemon.addresses() & {f"{VIP}/32", f"{VIP6}/128", own}

        put_back(daemon, down_and_up, held)
        wire.wait(5, VIP)
        wire.wait(5, VIP6)
    soon(lambda: daemon.problems() == "", "no problem is left")


def test_an_edit_that_others_undo_is_no_drift(daemon: Daemon) -> None:
    """The state counts, not the change: nothing is done to a service that is as wanted."""
    before = daemon.ipvs("-Ln", "--stats", "--exact")
    mark = daemon.mark()
    daemon.running.send_signal(signal.SIGSTOP)  # it cannot look between the two
    try:
        for weight in (7, 1):
            daemon.ipvsadm(f"-e -t {VIP}:80 -r 10.77.0.21 -g -w {weight}")
    finally:
        daemon.running.send_signal(signal.SIGCONT)
    sentinel = daemon.sysctl("net.ipv4.vs.conntrack")
    daemon.lab.sysctl("director", "net.ipv4.vs.conntrack", "1")  # by when it is back, it has looked
    soon(lambda: daemon.sysctl("net.ipv4.vs.conntrack") == sentinel, "the sysctl is back")
    assert daemon.lines("ipvsadm", since=mark) == []
    assert daemon.ipvs("-Ln", "--stats", "--exact") == before


def test_two_seconds_hold_where_the_file_says_nothing(daemon: Daemon) -> None:
    """Until here it looked more often, since these tests are many."""
    configure(daemon)
    daemon.ask(ReloadRequest())
    for _ in range(2):  # at different times of its turn
        put_back(
            daemon,
            lambda: daemon.ipvsadm(f"-d -t {VIP}:80 -r 10.77.0.21"),
            lambda: table(daemon),
        )


def test_what_others_made_was_left_alone(daemon: Daemon) -> None:
    """Last in this module: through all of this."""
    others = OTHERS.removeprefix("-A ")
    daemon.ipvsadm(f"-a {others.removesuffix(' -s rr')} -r 10.77.0.97 -g -w 3")
    daemon.ipvsadm(f"-E {others.removesuffix('rr')}wrr")
    plan = daemon.ask(PlanRequest())
    assert plan == {"operations": [], "conflicts": []}
    put_back(  # the daemon has looked, and put back its own
        daemon,
        lambda: daemon.ipvsadm(f"-e -t {VIP}:80 -r 10.77.0.21 -g -w 7"),
        lambda: table(daemon),
    )
    assert "-A -t 10.77.0.99:99 -s wrr" in daemon.ipvs()
    assert "-a -t 10.77.0.99:99 -r 10.77.0.97:99 -g -w 3" in daemon.ipvs()
    assert OTHERS_ON_OUR_VIP in daemon.ipvs()
    assert OTHERS_ADDRESS in daemon.addresses()
    assert daemon.status().foreign_services == ["tcp 10.77.0.50:99", "tcp 10.77.0.99:99"]
    assert daemon.lines("10.77.0.99:99") == []
    assert daemon.lines("10.77.0.98") == []


def test_the_file_system_agrees_with_the_daemon(daemon: Daemon) -> None:
    """What it remembers as its own has nothing of others in it."""
    remembered = Path(daemon.paths.state / "state.json").read_text()
    assert VIP in remembered
    assert "10.77.0.9" not in remembered
