"""Who may serve, by a real daemon: servers that die under load, come back, lose their VIP."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from netlab import INTERFACE, Lab

from lbdr.control.protocol import (
    EventsRequest,
    OperatorRequest,
    ReloadRequest,
    WeightRequest,
    WithdrawRequest,
)
from lbdr.events import EventKind
from lbdr.model import Standing
from lbdr.status import RealServerStatus, VirtualServiceStatus
from tests.kernel.daemon_traffic import Load
from tests.kernel.daemons import LBDR, VIP, Daemon, soon

_INTERVAL, _TIMEOUT, _FALL, _RISE = 0.5, 0.5, 3, 2
_TIMING = {
    "interval": f"{_INTERVAL}s", "timeout": f"{_TIMEOUT}s", "fall": _FALL, "rise": _RISE,
}  # fmt: skip
_OUTAGE = _FALL * max(_INTERVAL, _TIMEOUT) + _TIMEOUT
CONNECT = {"type": "connect", **_TIMING}
WEB: dict[str, Any] = {
    "address": VIP,
    "ports": [80],
    "check": CONNECT,
    "real_servers": ["web1", "web2"],
}
_SERVER = """
import socket, sys
with socket.create_server(("", int(sys.argv[2])), backlog=256) as server:
    while True:
        client, _ = server.accept()
        with client:
            client.settimeout(5)
            try:
                if client.recv(100):
                    client.sendall(sys.argv[1].encode())
            except OSError:
                pass
"""


class Web:
    """A real server's process, which a test may freeze, kill and start again."""

    def __init__(self, lab: Lab, name: str, port: int = 80) -> None:
        self._lab, self._name, self._port = lab, name, port
        self.process: subprocess.Popen[str] | None = None
        self.start()

    def start(self) -> None:
        if self.process is None:
            words = [sys.executable, "-c", _SERVER, self._name, str(self._port)]
            self.process = self._lab.popen(self._name, words)

    def kill(self) -> None:
        if self.process is not None:
            self._lab.stop(self.process)
            self.process = None


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as built:
        for name in ("web1", "web2"):
            built.sysctl(name, "net.ipv4.conf.all.arp_ignore", "1")
            built.sysctl(name, "net.ipv4.conf.all.arp_announce", "2")
            built.ip(name, f"address add {VIP}/32 dev lo")
        yield built


@pytest.fixture
def webs(lab: Lab) -> Iterator[dict[str, Web]]:
    found = {name: Web(lab, name) for name in ("web1", "web2")}
    yield found
    for web in found.values():
        web.kill()


@pytest.fixture
def daemon(lab: Lab, webs: dict[str, Web]) -> Iterator[Daemon]:
    assert webs
    with Daemon(lab) as built:
        built.configure({"WEB": WEB}, drift_check="200ms")
        built.start()
        soon(lambda: serving(built) == {"web1": 1, "web2": 1}, "both serve", timeout=20)
        yield built
        if built.running.poll() is None:
            built.ask(WithdrawRequest())  # the next daemon has another state
            built.wait()


def serving(daemon: Daemon) -> dict[str, int]:
    """The weights of WEB's real servers in IPVS; those that are out are left out."""
    names = {"10.77.0.21:80": "web1", "10.77.0.22:80": "web2"}
    words = [line.split() for line in daemon.ipvs() if line.startswith(f"-a -t {VIP}:80")]
    return {names[each[4]]: int(each[-1]) for each in words}


def service(daemon: Daemon) -> VirtualServiceStatus:
    return daemon.status().virtual_services[0]


def server(daemon: Daemon, name: str) -> RealServerStatus:
    return next(one for one in service(daemon).real_servers if one.name == name)


def reload(daemon: Daemon, **changes: Any) -> None:
    daemon.configure({"WEB": {**WEB, **changes}}, drift_check="200ms")
    daemon.ask(ReloadRequest())


def test_a_server_that_dies_under_load_is_out_in_time_and_comes_back(
    daemon: Daemon, webs: dict[str, Web]
) -> None:
    with Load(daemon.lab) as load:
        load.more(20)
        webs["web1"].kill()
        begin = time.monotonic()
        soon(lambda: serving(daemon) == {"web2": 1}, "web1 is out")
        assert time.monotonic() - begin < _OUTAGE + 1  # the guest's own slowness
        failed = len(load.failures)
        load.more(20)
        assert len(load.failures) == failed  # nobody is sent there any more
        found = server(daemon, "web1")
        assert (found.state, found.weight, found.health.verdict) == ("down", None, "down")
        assert found.reason.startswith("down: ")
        assert "refused" in found.reason
        assert service(daemon).state == "degraded"
        webs["web1"].start()
        soon(lambda: serving(daemon) == {"web1": 1, "web2": 1}, "web1 is back")
        before = load.answers["web1"]
        load.more(20)
        assert load.answers["web1"] > before
        assert len(load.failures) == failed
    assert server(daemon, "web1").state == service(daemon).state == "online"
    texts = [event["text"] for event in daemon.ask(EventsRequest(kind=EventKind.HEALTH))["events"]]
    assert [text.partition(":")[0] for text in texts] == [
        "web1 in WEB is out",
        "web1 in WEB serves",
    ]


def test_one_that_lost_its_vip_is_caught_though_its_rip_answers(daemon: Daemon) -> None:
    reload(daemon, check=[CONNECT, {"type": "vip", **_TIMING}])
    soon(lambda: server(daemon, "web1").health.verdict == "up", "both checks pass")
    daemon.lab.ip("web2", f"address del {VIP}/32 dev lo")
    try:
        soon(lambda: serving(daemon) == {"web1": 1}, "web2 is out")
        assert f"did not answer for the VIP {VIP}" in server(daemon, "web2").reason
    finally:
        daemon.lab.ip("web2", f"address add {VIP}/32 dev lo")
    soon(lambda: serving(daemon) == {"web1": 1, "web2": 1}, "web2 is back")


def test_verdicts_outlive_the_daemon_and_a_restart_plans_nothing(
    daemon: Daemon, webs: dict[str, Web]
) -> None:
    webs["web1"].kill()
    soon(lambda: serving(daemon) == {"web2": 1}, "web1 is out")
    since = server(daemon, "web1").health.since
    soon(lambda: '"down"' in (daemon.paths.run / "health.json").read_text(), "it is kept")
    daemon.kill()
    assert serving(daemon) == {"web2": 1}  # the verdict freezes
    daemon.start()
    assert daemon.lines("applied:") == []
    assert serving(daemon) == {"web2": 1}
    found = server(daemon, "web1").health
    assert found.verdict == "down"
    assert found.since == pytest.approx(since, abs=1)
    webs["web1"].start()
    soon(lambda: serving(daemon) == {"web1": 1, "web2": 1}, "web1 is back")


def test_a_dead_server_is_out_at_once_at_the_start(daemon: Daemon, webs: dict[str, Web]) -> None:
    """The first check decides where nothing is known: not after three of them."""
    daemon.stop()
    (daemon.paths.run / "health.json").unlink()
    webs["web2"].kill()
    reload_file = {**WEB, "check": {**CONNECT, "interval": "30s"}}
    daemon.configure({"WEB": reload_file}, drift_check="200ms")
    daemon.start()
    soon(lambda: serving(daemon) == {"web1": 1}, "web2 is out")


def test_on_failure_quiesce_and_the_sorry_server(daemon: Daemon, webs: dict[str, Web]) -> None:
    changed = {
        "real_servers": ["web1"],
        "sorry_server": "web2",
        "health": {"on_failure": "quiesce"},
    }
    reload(daemon, **changed)
    assert serving(daemon) == {"web1": 1}
    webs["web1"].kill()
    soon(lambda: serving(daemon) == {"web1": 0, "web2": 1}, "the sorry server stands in")
    assert [one.state for one in service(daemon).real_servers] == ["down", "sorry"]
    webs["web1"].start()
    soon(lambda: serving(daemon) == {"web1": 1}, "web1 serves again")


def test_operators_words_and_weights_beside_verdicts(daemon: Daemon, webs: dict[str, Web]) -> None:
    daemon.ask(WeightRequest(real_server="web1", weight=7))
    daemon.ask(OperatorRequest(real_server="web2", state=Standing.DRAIN))
    assert serving(daemon) == {"web1": 7, "web2": 0}
    webs["web2"].kill()
    soon(lambda: serving(daemon) == {"web1": 7}, "a drained one that dies is out")
    webs["web2"].start()
    soon(lambda: serving(daemon) == {"web1": 7, "web2": 0}, "it is back, and drains")
    daemon.ask(OperatorRequest(real_server="web2", state=Standing.ONLINE))
    daemon.ask(WeightRequest(real_server="web1"))
    assert serving(daemon) == {"web1": 1, "web2": 1}


def test_a_link_of_the_directors_own_is_no_servers_fault(daemon: Daemon) -> None:
    lab = daemon.lab
    lab.ip("director", f"link set {INTERFACE} down")
    try:
        end = time.monotonic() + 2 * _OUTAGE
        soon(lambda: time.monotonic() > end, "longer than an outage takes", timeout=20)
        assert serving(daemon) == {"web1": 1, "web2": 1}
    finally:
        lab.ip("director", f"link set {INTERFACE} up")


def test_check_now_shows_what_is_said(daemon: Daemon, webs: dict[str, Web]) -> None:
    webs["web2"].kill()
    command = ["check-now", "web2", f"--config={daemon.paths.config}", "--json"]
    done = daemon.lab.run("director", [str(LBDR), *command], check=False)
    assert done.returncode == 1
    (check,) = json.loads(done.stdout.splitlines()[-1])["checks"]
    assert (check["passed"], check["check"]) == (False, "connect 10.77.0.22:80")
    assert "refused" in check["words"]
