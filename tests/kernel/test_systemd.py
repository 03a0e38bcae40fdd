"""The unit of the package, under a real systemd: hardened, watched, and started again.

Here on a machine without BPF: IPVS forwards. The fast path of the unit is in test_systemd_fastpath.
"""

from __future__ import annotations

import grp
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from netlab import Lab

from lbdr.control import client
from lbdr.control.protocol import (
    Request,
    StatusRequest,
)
from lbdr.status import Status
from tests.kernel.daemon_traffic import Load, Wire, real_servers, request
from tests.kernel.daemons import LBDR, VIP, VIP6, WEB, configuration, soon
from tests.kernel.systemd import CONFIG, GROUP, PATHS, Systemd, running

SIX = {"address": VIP6, "ports": [80], "real_servers": ["six1", "six2"]}
SERVICES = {"WEB": WEB, "SIX": SIX}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as built, real_servers(built, VIP):
        yield built


@pytest.fixture(scope="module")
def gid() -> Iterator[int]:
    """The number of the group lbdr, which exists meanwhile."""
    assert os.environ.get("LBDR_GUEST") == "1", "groups are made in a guest only"
    subprocess.run(["groupadd", "--force", GROUP], check=True)
    yield grp.getgrnam(GROUP).gr_gid
    subprocess.run(["groupdel", GROUP], check=True)


@pytest.fixture(scope="module")
def systemd(lab: Lab, gid: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Systemd]:
    """With the service started; the tests go on from each other.

    Nothing of the fast path can be had: nobody loads it, and bpf(2) is forbidden.
    """
    assert gid
    CONFIG.write_text(configuration(SERVICES, drift_check="200ms", fastpath="auto"))
    built = Systemd(
        lab,
        tmp_path_factory.mktemp("units"),
        *("ExecStartPre=", "ExecReload=", f"ExecReload={LBDR} reload", "SystemCallFilter=~bpf"),
    )
    with running(built):
        yield built


def ask(request: Request) -> dict[str, object]:
    result = client.ask(PATHS, request, timeout=30).result
    assert result is not None
    return result


def table(lab: Lab) -> str:
    return lab.run("director", ["ipvsadm", "-Sn"]).stdout


def test_the_unit_starts_a_director_that_serves(systemd: Systemd, lab: Lab, gid: int) -> None:
    with Wire(lab) as wire:
        systemd.ctl("start", "lbdr")  # returns when it is ready
        wire.wait(5, VIP)
        wire.wait(5, VIP6)
    assert systemd.show("ActiveState") == "active"
    assert systemd.show("StatusText") == "active, 2 virtual services"
    assert table(lab).count("-a ") == 4
    assert {request(lab) for _ in range(10)} == {"web1", "web2"}
    status = Status.model_validate(ask(StatusRequest()))
    assert status.problems == []  # without a right to BPF IPVS forwards, and that is said
    assert status.fastpath.state == "off"
    assert status.fastpath.reason.startswith("the fast path is not loaded: ")
    assert "lbdr fastpath load" in status.fastpath.reason
    assert not PATHS.bpf.exists() or not [*PATHS.bpf.glob("*/*")]
    found = PATHS.socket.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (0, gid, 0o660)
    with lab.entered("director"):
        assert Path("/proc/sys/net/ipv4/vs/expire_nodest_conn").read_text() == "1\n"
    for word in ("ERROR", "WARNING", "<3>", "<4>"):
        assert word not in systemd.log()


def test_the_unit_shuts_all_else_out(systemd: Systemd) -> None:
    capabilities = "cap_kill cap_setgid cap_setuid cap_net_admin cap_net_raw"
    assert systemd.show("CapabilityBoundingSet") == capabilities
    assert systemd.show("NoNewPrivileges") == "yes"
    assert systemd.show("ProtectSystem") == "strict"
    inside = systemd.inside(f"/proc/{systemd.show('MainPID')}/status")
    assert "CapPrm:\t00000000000030e0\n" in inside
    assert "Seccomp:\t2\n" in inside


def test_checks_run_in_it(systemd: Systemd, lab: Lab) -> None:
    """By TCP of both IP versions, by ping, by the VIP, and by a program as another user."""
    program = Path("/run/lbdr-test-check")
    program.write_text('#!/bin/sh\n[ "$(id -u)" != 0 ] && [ "$3" = 10.77.0.21 ]\n')
    program.chmod(0o755)
    good = CONFIG.read_text()
    fast = {"interval": "200ms", "timeout": "5s"}
    external = {"type": "external", "command": str(program), **fast}
    web = {**WEB, "check": [{"type": kind, **fast} for kind in ("connect", "ping", "vip")]}
    web["check"] = [*web["check"], external]
    six = {**SIX, "check": [{"type": kind, **fast} for kind in ("connect", "ping")]}
    CONFIG.write_text(configuration({"WEB": web, "SIX": six}, drift_check="200ms", fastpath="auto"))
    try:
        systemd.ctl("reload", "lbdr")

        def verdicts() -> dict[str, str]:
            status = Status.model_validate(ask(StatusRequest()))
            return {
                server.name: server.health.verdict
                for service in status.virtual_services
                for server in service.real_servers
            }

        wanted = {"web1": "up", "web2": "down", "six1": "up", "six2": "up"}
        soon(lambda: verdicts() == wanted, "all is known", timeout=30)
        assert {request(lab) for _ in range(10)} == {"web1"}
        status = Status.model_validate(ask(StatusRequest()))
        (reason,) = (one.reason for one in status.virtual_services[0].real_servers if one.reason)
        assert str(program) in reason
    finally:
        CONFIG.write_text(good)
        systemd.ctl("reload", "lbdr")
        program.unlink()
    assert table(lab).count("-a ") == 4


def test_a_unit_reload_checks_the_file(systemd: Systemd, lab: Lab) -> None:
    good = CONFIG.read_text()
    before = table(lab)
    CONFIG.write_text(good.replace("ports:", "prots:"))
    try:
        assert systemd.ctl("reload", "lbdr", check=False) == ""
        assert systemd.show("ReloadResult") == "exit-code"
        assert systemd.show("ActiveState") == "active"
        assert f"{CONFIG}:" in systemd.log()
    finally:
        CONFIG.write_text(good)
    assert table(lab) == before
    systemd.ctl("reload", "lbdr")


def test_a_unit_that_is_killed_is_started_again(systemd: Systemd, lab: Lab) -> None:
    """And so is one whose event loop stands still: the watchdog kills it."""
    before = table(lab)
    mark = len(systemd.log())
    with Load(lab, pause=0.2) as load:
        systemd.ctl("kill", "--signal=SIGKILL", "--kill-whom=main", "lbdr")
        systemd.wait(NRestarts="1", ActiveState="active", SubState="running")
        systemd.ctl("kill", "--signal=SIGSTOP", "--kill-whom=main", "lbdr")
        systemd.wait(NRestarts="2", ActiveState="active", SubState="running")
        load.more(5)
    assert load.failures == []
    assert table(lab) == before
    assert "applied:" not in systemd.log()[mark:]


def test_a_unit_that_is_stopped_leaves_the_datapath(systemd: Systemd, lab: Lab) -> None:
    systemd.ctl("stop", "lbdr")
    assert systemd.show("Result") == "success"
    assert request(lab) in ("web1", "web2")
    assert PATHS.run.is_dir()  # for a second director, or a command, that is at work in it


def test_a_unit_with_a_bad_file_fails_once(systemd: Systemd) -> None:
    """Starting it again would not mend the file."""
    good = CONFIG.read_text()
    CONFIG.write_text(good.replace("ports:", "prots:"))
    try:
        systemd.ctl("start", "lbdr", check=False)
        systemd.wait(ActiveState="failed")
        assert systemd.show("ExecMainStatus") == "3"
    finally:
        CONFIG.write_text(good)
    assert systemd.show("NRestarts") == "0"
