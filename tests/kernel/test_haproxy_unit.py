"""The companion HAProxy's unit, under a real systemd: hardened, reloaded, started again."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from netlab import Lab

from lbdr.haproxy.files import Files
from lbdr.haproxy.launch import OwnProcess
from lbdr.haproxy.matching import Condition, Redirect, Rule
from lbdr.haproxy.model import (
    Pool,
    ProxyConfiguration,
    ProxyPersistence,
    ProxyProtocol,
    ProxyServer,
    ProxyService,
    ProxySettings,
)
from lbdr.haproxy.process import Companion
from lbdr.haproxy.render.whole import render
from lbdr.haproxy.socket_api import ask
from tests.haproxy_samples import need_haproxy, ports
from tests.kernel.daemons import soon
from tests.kernel.systemd import UNIT, Systemd

NAME = "lbdr-haproxy"
FILES = Files(Path("/run/lbdr/haproxy"))  # the unit's, of the guest


class WithProxy(Systemd):
    """A systemd that knows our unit, as it is installed."""

    def _command(self) -> list[str]:
        found = super()._command()
        shutil.copy(UNIT.with_name(f"{NAME}.service"), self.units)
        added = self.units / f"{NAME}.service.d"
        added.mkdir()
        log = f"[Service]\nStandardError=append:{self.units / 'log'}\n"
        (added / "test.conf").write_text(log + "ProtectHome=no\nPrivateTmp=no\n")  # the project
        return found

    def property(self, name: str) -> str:
        return self.ctl("show", NAME, f"--property={name}", "--value")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as built:
        yield built


@pytest.fixture(scope="module")
def systemd(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WithProxy]:
    need_haproxy()
    cgroups = Path("/sys/fs/cgroup")
    if not (cgroups / "cgroup.procs").exists():
        subprocess.run(["mount", "-t", "cgroup2", "none", cgroups], check=True)
    built = WithProxy(lab, tmp_path_factory.mktemp("units"))
    try:
        soon(built.runs, "systemd is up", timeout=40)
        yield built
    finally:
        built.close()
        shutil.rmtree(FILES.directory.parent, ignore_errors=True)


def configuration(lab: Lab, *also: int) -> ProxyConfiguration:
    """Low ports, a regular expression, DICOM and persistence: what the sandbox has to allow."""
    vip = (lab["director"].ipv4,)
    pool = Pool((ProxyServer("web1", lab["web1"].ipv4, 80),), persistence=ProxyPersistence())
    rule = Rule(Condition(path_regex=("^/a[0-9]+",)), Redirect("/b"))
    return ProxyConfiguration(
        ProxySettings(max_connections=1000),
        (
            ProxyService("DICOM", vip, ports(104), pool, ProxyProtocol.DICOM),
            ProxyService("WEB", vip, ports(80, *also), pool, ProxyProtocol.HTTP, rules=(rule,)),
        ),
    )


def redirected(lab: Lab, port: int = 80) -> bool:
    """Whether a client is sent elsewhere, by the rule of the configuration."""
    connection = http.client.HTTPConnection(str(lab["director"].ipv4), port, timeout=10)
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        with lab.entered("client"):
            connection.connect()
        connection.request("GET", "/a1")
        return connection.getresponse().status == 302
    return False


def test_the_unit_serves(systemd: WithProxy, lab: Lab) -> None:
    FILES.prepare()
    rendered = render(configuration(lab), FILES.surroundings)
    FILES.config.write_text(rendered.text)
    FILES.config.chmod(0o600)
    systemd.ctl("start", NAME)  # returns when it is ready
    status = systemd.ctl("status", NAME, check=False) + systemd.log()
    assert systemd.property("ActiveState") == "active", status
    assert redirected(lab), status
    companion = Companion(FILES, OwnProcess())
    assert asyncio.run(companion.runtime.fingerprint()) == rendered.fingerprint


def test_reloaded_by_the_master(systemd: WithProxy, lab: Lab) -> None:
    """As the daemon does it; systemd notices nothing but a new worker."""
    pid = systemd.property("MainPID")
    companion = Companion(FILES, OwnProcess())
    rendered = render(configuration(lab, 8080), FILES.surroundings)
    FILES.config.write_text(rendered.text)
    asyncio.run(ask(FILES.master, "reload"))
    soon(lambda: redirected(lab, 8080), "the new port", timeout=40)
    assert asyncio.run(companion.runtime.fingerprint()) == rendered.fingerprint
    assert (systemd.property("MainPID"), systemd.property("ActiveState")) == (pid, "active")


def test_the_unit_shuts_all_else_out(systemd: WithProxy) -> None:
    main = systemd.inside(f"/proc/{systemd.property('MainPID')}/status")
    assert "NoNewPrivs:\t1\n" in main
    assert "Seccomp:\t2\n" in main
    assert systemd.property("ProtectSystem") == "strict"


def test_killed_it_is_started_again(systemd: WithProxy, lab: Lab) -> None:
    systemd.ctl("kill", "--signal=SIGKILL", NAME)
    soon(lambda: systemd.property("NRestarts") == "1", "a restart", timeout=40)
    soon(lambda: redirected(lab, 8080), "service again", timeout=40)
    systemd.ctl("stop", NAME)
    assert not redirected(lab, 8080)
