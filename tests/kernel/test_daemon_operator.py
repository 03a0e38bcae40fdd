"""Real servers that the operator drains, halts and puts online, with IPVS and real clients."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest
from netlab import INTERFACE, Lab

from lbdr.control.protocol import EventsRequest, OperatorRequest, ReloadRequest
from lbdr.model import Standing
from lbdr.status import RealServerStatus
from tests.kernel.daemons import LBDR, VIP, WEB, Daemon, soon
from tests.kernel.open_connections import Connections, answering

OTHER = {"address": VIP, "ports": [81], "real_servers": ["web1", "web2"]}
BOUND = {**WEB, "ports": [82], "persistence": "5m"}
SERVICES: dict[str, Any] = {"WEB": WEB, "OTHER": OTHER, "BOUND": BOUND}
_WEB1 = "10.77.0.21"


@pytest.fixture(scope="module")
def running() -> Iterator[Daemon]:
    """With real servers behind it that answer on three ports."""
    with (
        Lab() as lab,
        answering(lab, ["web1", "web2"], VIP, ports=[80, 81, 82]),
        Daemon(lab) as built,
    ):
        built.configure(SERVICES, drift_check="200ms")
        built.start()
        yield built


@pytest.fixture
def daemon(running: Daemon) -> Iterator[Daemon]:
    """All real servers online, before and after."""
    yield running
    if running.process is None or running.process.poll() is not None:
        running.start()
    running.configure(SERVICES, drift_check="200ms")
    running.ask(ReloadRequest())
    for name in ("web1", "web2"):
        tell(running, name, "online")


def tell(
    daemon: Daemon,
    server: str,
    state: str,
    service: str | None = None,
    deadline: float | None = None,
) -> list[str]:
    wanted = OperatorRequest(
        real_server=server, state=Standing(state), virtual_service=service, deadline=deadline
    )
    operations = daemon.ask(wanted)["operations"]
    assert isinstance(operations, list)
    return operations


def ipvs(daemon: Daemon) -> dict[int, int]:
    """The weight of web1 by port of the service; it is left out where it is out."""
    words = [line.split() for line in daemon.ipvs() if f" -r {_WEB1}:" in line]
    return {int(each[2].rpartition(":")[2]): int(each[-1]) for each in words}


def shown(daemon: Daemon, service: str = "WEB", server: str = "web1") -> RealServerStatus:
    (found,) = (each for each in daemon.status().virtual_services if each.name == service)
    return next(each for each in found.real_servers if each.name == server)


def test_everywhere_and_in_one_service(daemon: Daemon) -> None:
    assert ipvs(daemon) == {80: 1, 81: 1, 82: 1}
    tell(daemon, "web1", "drain")
    assert ipvs(daemon) == {80: 0, 81: 0, 82: 0}
    tell(daemon, "web1", "halt", "WEB")
    assert ipvs(daemon) == {81: 0, 82: 0}
    tell(daemon, "web1", "online", "OTHER")
    assert ipvs(daemon) == {81: 1, 82: 0}
    assert [shown(daemon, name).state for name in SERVICES] == ["halt", "online", "drain"]
    assert shown(daemon).reason == "halted by the operator"
    assert len(tell(daemon, "web1", "online")) == 2
    assert ipvs(daemon) == {80: 1, 81: 1, 82: 1}


def test_it_outlives_the_daemon_and_every_reload(daemon: Daemon) -> None:
    """Also one that takes the server out of the file and brings it back."""
    tell(daemon, "web1", "halt")
    tell(daemon, "web2", "drain")
    since = shown(daemon).since
    daemon.kill()
    daemon.start()
    assert daemon.lines("applied:") == []
    assert ipvs(daemon) == {}
    for real_servers in (["web2"], ["web1", "web2"]):
        daemon.configure({"WEB": {**WEB, "real_servers": real_servers}}, drift_check="200ms")
        daemon.ask(ReloadRequest())
        assert ipvs(daemon) == {}
        assert f"-a -t {VIP}:80 -r 10.77.0.22:80 -g -w 0" in daemon.ipvs()
    assert (shown(daemon).state, shown(daemon).since) == ("halt", since)


def test_a_drain_becomes_a_halt_at_its_deadline(daemon: Daemon) -> None:
    """Though the daemon was away when it came."""
    tell(daemon, "web1", "drain", "WEB", deadline=2.0)
    assert ipvs(daemon) == {80: 0, 81: 1, 82: 1}
    soon(lambda: ipvs(daemon) == {81: 1, 82: 1}, "the halt")
    assert shown(daemon).reason == "drained by the operator, and the deadline came"
    assert daemon.lines("drift") == []
    tell(daemon, "web1", "drain", "OTHER", deadline=1.0)
    deadline = shown(daemon, "OTHER").deadline
    assert deadline is not None
    daemon.kill()
    soon(lambda: time.time() > deadline, "the deadline")
    daemon.start()
    assert ipvs(daemon) == {82: 1}


def drain_and_wait(daemon: Daemon, *words: str) -> subprocess.Popen[str]:
    command = [str(LBDR), "drain", "web1", "WEB", "--wait", *words, *daemon.places]
    return daemon.lab.popen(daemon.host, command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def test_open_connections_survive_a_drain_and_wait_ends_with_the_last(daemon: Daemon) -> None:
    lab = daemon.lab
    with Connections(lab, VIP, 80, 100) as open_:
        assert open_.by_server == {"web1": 50, "web2": 50}
        waiting = drain_and_wait(daemon, "--json")
        soon(lambda: ipvs(daemon)[80] == 0, "the drain", timeout=40)
        with Connections(lab, VIP, 80, 20) as new:
            assert new.by_server == {"web2": 20}
        assert open_.wrong() == []
        assert shown(daemon).active_connections == 50
        assert waiting.poll() is None
        open_.drop("web1")
        out, _ = waiting.communicate(timeout=60)
        assert waiting.returncode == 0
        assert json.loads(out.splitlines()[-1])["halted"] == []
        assert shown(daemon).active_connections == 0
        assert open_.wrong() == []


def test_an_interrupted_wait_leaves_the_drain(daemon: Daemon) -> None:
    with Connections(daemon.lab, VIP, 80, 4) as open_:
        waiting = drain_and_wait(daemon)
        soon(lambda: ipvs(daemon)[80] == 0, "the drain", timeout=40)
        waiting.send_signal(signal.SIGINT)
        waiting.communicate(timeout=40)
        assert waiting.returncode != 0
        assert ipvs(daemon)[80] == 0
        assert open_.wrong() == []


@pytest.mark.parametrize(("word", "moves"), [("move", True), ("stay", False)])
def test_clients_bound_by_persistence(daemon: Daemon, word: str, moves: bool) -> None:
    daemon.configure(SERVICES, drift_check="200ms", drain_persistence=word)
    daemon.ask(ReloadRequest())
    with Connections(daemon.lab, VIP, 82, 1) as open_:
        (bound,) = open_.owners
        tell(daemon, bound, "drain", "BOUND")
        with Connections(daemon.lab, VIP, 82, 5) as new:
            assert all((owner != bound) is moves for owner in new.owners)
        assert open_.wrong() == []


def test_a_halt_cuts_and_the_others_go_on(daemon: Daemon) -> None:
    with Connections(daemon.lab, VIP, 80, 10) as open_:
        tell(daemon, "web1", "halt", "WEB")
        wrong = [line for line in open_.wrong() if "web1, now" not in line]
        assert wrong == []
        assert len(open_.wrong()) == open_.by_server["web1"] == 5


def test_events_tell_what_was_done(daemon: Daemon) -> None:
    """Of the operator, of drift, of the daemon itself; from before its restart, too."""
    first = daemon.ask(EventsRequest(last=1))["events"][0]["number"]
    tell(daemon, "web1", "drain", "WEB")
    daemon.ipvsadm(f"-e -t {VIP}:80 -r {_WEB1}:80 -g -w 9")
    soon(lambda: ipvs(daemon)[80] == 0, "drift, put back")
    daemon.kill()
    daemon.start()

    def events() -> list[tuple[str, str, str]]:
        found = daemon.ask(EventsRequest(after=first))["events"]
        return [(each["kind"], each["virtual_service"], each["text"]) for each in found]

    drift = f"ipvsadm -e -t {VIP}:80 -r {_WEB1}:80 -g -w 0"
    assert events() == [
        ("operator", "WEB", "web1 in WEB: drain"),
        ("drift", "WEB", drift),
        ("vip", "", f"{VIP} is here, on {INTERFACE}"),
        ("daemon", "", "director lab ready: active, 3 virtual services"),
    ]
