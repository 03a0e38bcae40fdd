"""VIPs that somebody else has, or that have nothing behind them: clients are not called here."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from netlab import INTERFACE, Lab

from lbdr.control.client import RemoteError
from lbdr.control.protocol import PlanRequest, ReloadRequest, RoleRequest
from lbdr.model import Role
from tests.kernel.daemon_traffic import Wire
from tests.kernel.daemons import VIP, WEB, Daemon, soon

OTHER = "10.77.0.51"
UNRELATED = "10.77.0.97/32"
CLOCK = {"WEB": WEB}
"""Its VIP stays with the director: each of its announcements is a refresh that went by."""
BOTH = {**CLOCK, "OTHER": {**WEB, "address": OTHER}}
HOSTS = {"client": 100, "director": 1, "peer": 2, "web1": 21}
SCHEDULE = {"repeat": 1, "delay": 0, "refresh": "1s", "refresh_repeat": 1}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(HOSTS) as built:
        yield built


@pytest.fixture(scope="module")
def place(lab: Lab) -> Iterator[Daemon]:
    """One daemon for all tests of this module."""
    with Daemon(lab) as built:
        built.configure(BOTH, gratuitous_arp=SCHEDULE)
        built.start()
        yield built


@pytest.fixture
def daemon(place: Daemon) -> Daemon:
    """Running, with both VIPs, and with nothing to complain of."""
    place.configure(BOTH, gratuitous_arp=SCHEDULE)
    place.ask(ReloadRequest())
    assert held(place) == {VIP, OTHER}
    assert place.problems() == ""
    return place


def held(daemon: Daemon) -> set[str]:
    """Those of the VIPs that the director's interface has."""
    return {address.partition("/")[0] for address in daemon.addresses()} & {VIP, OTHER}


def quiet(wire: Wire, refreshes: int = 2) -> None:
    """While the other VIP is refreshed so many times, nothing more is said of OTHER."""
    said = wire.announcements(OTHER)
    wire.wait(len(wire.announcements(VIP)) + refreshes, VIP)
    assert wire.announcements(OTHER) == said


def test_a_vip_that_moved_to_another_host_is_not_reclaimed(daemon: Daemon) -> None:
    lab = daemon.lab
    with Wire(lab) as wire:
        wire.wait(1, OTHER)  # until now it was refreshed
        lab.ip("peer", f"address add {OTHER}/32 dev {INTERFACE}")
        try:
            lab.ip("director", f"address del {OTHER}/32 dev {INTERFACE}")
            in_use = f"{OTHER} is in use on {INTERFACE}: the host with MAC {lab['peer'].mac}"
            soon(lambda: in_use in daemon.problems(), "the problem is told")
            quiet(wire)
            assert held(daemon) == {VIP}
            assert in_use in daemon.problems()
        finally:
            lab.ip("peer", f"address del {OTHER}/32 dev {INTERFACE}")


def test_a_vip_whose_service_was_refused_is_never_claimed(daemon: Daemon) -> None:
    """Also not by passes that are about addresses alone, and know nothing of the refusal."""
    lab = daemon.lab
    daemon.configure(CLOCK, gratuitous_arp=SCHEDULE)
    daemon.ask(ReloadRequest())
    refused_service = {**WEB, "address": OTHER, "scheduler": "twos"}
    with Wire(lab) as wire:
        daemon.configure({**CLOCK, "OTHER": refused_service}, gratuitous_arp=SCHEDULE)
        with pytest.raises(RemoteError, match="no scheduler twos"):
            daemon.ask(ReloadRequest())
        assert held(daemon) == {VIP}
        for _ in range(2):
            change = f"{UNRELATED} dev {INTERFACE}"
            lab.ip("director", f"address add {change}", f"address del {change}")
            # put back by a pass that sees all of these changes
            lab.ip("director", f"address del {VIP}/32 dev {INTERFACE}")
            soon(lambda: held(daemon), "the other VIP is back")
        quiet(wire, 1)
        assert wire.announcements(OTHER) == []
        assert held(daemon) == {VIP}
    assert "no scheduler twos" in daemon.problems()
    assert f"-A -t {OTHER}:80" not in " ".join(daemon.ipvs())


def test_vips_stay_while_the_hosts_own_address_is_gone(daemon: Daemon) -> None:
    lab = daemon.lab
    own = f"{lab['director'].ipv4}/24 dev {INTERFACE}"
    mark = daemon.mark()
    changes = daemon.directory / "changes"
    with changes.open("w") as file, Wire(lab) as wire:
        monitor = lab.popen("director", ["ip", "-o", "monitor", "address"], stdout=file)

        def begun() -> bool:  # nobody says when it listens
            lab.ip("director", f"address replace {UNRELATED} dev {INTERFACE}")
            return UNRELATED in changes.read_text()

        soon(begun, "the monitor listens")
        lab.ip("director", f"address del {own}")
        try:
            soon(daemon.problems, "the daemon sees that its VIPs have no subnet")
            seen = len(wire.announcements(VIP))
            wire.wait(seen + 2, VIP)  # it goes on announcing
        finally:
            lab.ip("director", f"address add {own}", f"address del {UNRELATED} dev {INTERFACE}")
        soon(lambda: daemon.problems() == "", "no problem is left")
        soon(
            lambda: any(
                line.startswith("Deleted") and UNRELATED in line
                for line in changes.read_text().splitlines()
            ),
            "the monitor told of the last change",
        )
        lab.stop(monitor)
    assert held(daemon) == {VIP, OTHER}
    assert not [vip for vip in (VIP, OTHER) if vip in changes.read_text()]
    assert daemon.lines("address del", since=mark) == []


def test_a_host_that_answers_for_a_held_vip_is_told_of(daemon: Daemon) -> None:
    lab = daemon.lab
    mac = lab["web1"].mac
    lab.ip("web1", f"address add {OTHER}/32 dev {INTERFACE}")
    try:
        soon(lambda: mac in daemon.problems(), "the problem is told", timeout=3)
    finally:
        lab.ip("web1", f"address del {OTHER}/32 dev {INTERFACE}")
    (problem,) = daemon.lines(mac)
    assert f"VIP {OTHER} on {INTERFACE}: the host with MAC {mac} answers for it" in problem
    soon(lambda: daemon.problems() == "", "the problem went", timeout=3)
    assert held(daemon) == {VIP, OTHER}


def test_a_vip_taken_over_while_the_link_was_down_is_not_called_back(daemon: Daemon) -> None:
    """It is told of; who of two active directors is to give way, an election has to say."""
    lab = daemon.lab
    daemon.configure(BOTH, gratuitous_arp={**SCHEDULE, "refresh": 0})
    daemon.ask(ReloadRequest())
    lab.ip("director", f"link set {INTERFACE} down")
    lab.ip("peer", f"address add {OTHER}/32 dev {INTERFACE}")
    try:
        with Wire(lab) as wire:
            link_up(lab)
            wire.wait(1, VIP)  # this one is called back
            soon(lambda: lab["peer"].mac in daemon.problems(), "the problem is told")
            assert wire.announcements(OTHER) == []
    finally:
        lab.ip("director", f"link set {INTERFACE} down")
        lab.ip("peer", f"address del {OTHER}/32 dev {INTERFACE}")
        with Wire(lab) as wire:
            link_up(lab)
            wire.wait(1, OTHER)  # nobody else has it any more
    soon(lambda: daemon.problems() == "", "no problem is left")


def link_up(lab: Lab) -> None:
    """What a network manager does: the kernel took the IPv6 address away with the link."""
    own = f"address replace {lab['director'].ipv6}/64 dev {INTERFACE} nodad"
    lab.ip("director", f"link set {INTERFACE} up", own)


def test_the_status_of_a_standby_keeps_nobody_from_claiming(daemon: Daemon) -> None:
    lab = daemon.lab
    # long enough for the other's questions to fall into it
    probe = {"count": 3, "interval": "150ms"}
    daemon.configure(BOTH, gratuitous_arp=SCHEDULE, address_probe=probe)
    daemon.ask(ReloadRequest())
    with Daemon(lab, "peer") as peer, ThreadPoolExecutor(1) as pool:
        peer.configure(BOTH, role="standby", gratuitous_arp=SCHEDULE)
        peer.start()
        end = threading.Event()

        def ask() -> int:
            count = 0
            while not end.is_set():
                peer.status()
                count += 1
            return count

        daemon.ask(RoleRequest(role=Role.STANDBY))
        assert held(daemon) == set()
        asking = pool.submit(ask)
        try:
            for _ in range(2):
                daemon.ask(RoleRequest(role=Role.STANDBY))
                assert daemon.ask(RoleRequest(role=Role.ACTIVE))["role"] == "active"
                assert held(daemon) == {VIP, OTHER}
        finally:
            end.set()
        assert asking.result() >= 2
        owners = {virtual.vip.owner for virtual in peer.status().virtual_services}
        assert owners == {lab["director"].mac}
    daemon.ask(RoleRequest(reset=True))


def test_the_state_of_another_boot_claims_nothing(daemon: Daemon) -> None:
    """Last in this module. What somebody made since is not lbdr's, whatever its key."""
    daemon.kill()
    for vip in (VIP, OTHER):
        daemon.ipvsadm(f"-D -t {vip}:80")
        daemon.lab.ip("director", f"address del {vip}/32 dev {INTERFACE}")
    path = daemon.paths.state / "state.json"
    state = json.loads(path.read_text())
    assert {entry["address"] for entry in state["services"]} == {VIP, OTHER}
    path.write_text(json.dumps({**state, "kernel": "another boot"}))
    daemon.ipvsadm(f"-A -t {OTHER}:80 -s rr")
    daemon.ipvsadm(f"-a -t {OTHER}:80 -r 10.77.0.96:80 -g -w 3")
    with Wire(daemon.lab) as wire:
        daemon.start()
        wire.wait(1, VIP)
        assert wire.announcements(OTHER) == []
    made = [line for line in daemon.ipvs() if f" {OTHER}:80 " in line]
    assert made == [f"-A -t {OTHER}:80 -s rr", f"-a -t {OTHER}:80 -r 10.77.0.96:80 -g -w 3"]
    assert held(daemon) == {VIP}
    (conflict,) = daemon.ask(PlanRequest())["conflicts"]
    assert f"OTHER (tcp {OTHER}:80) exists in IPVS" in conflict
    assert conflict in daemon.problems()
