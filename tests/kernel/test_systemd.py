"""The unit of the package, under a real systemd: hardened, watched, and started again."""

from __future__ import annotations

import grp
import os
import shutil
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
from lbdr.paths import Paths
from lbdr.status import Status
from tests.kernel.daemon_traffic import Load, Wire, real_servers, request
from tests.kernel.daemons import LBDR, VIP, VIP6, WEB, configuration, soon

GROUP = "lbdr"
UNIT = Path(__file__).parents[2] / "scripts" / "lib" / "lbdr.service"
SYSTEMD = "/lib/systemd/systemd"
PATHS = Paths()  # the unit's directories are those of the system: of the guest's
CONFIG = Path("/run/lbdr-test.yaml")  # not in /tmp, of which the unit has its own
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


class Systemd:
    """A systemd on the director of a lab, with lbdr.service and what that needs, and no more.

    It is the first process of a namespace of its own; the unit's directories are the guest's.

    Args:
        lab: built.
        directory: for its units.
    """

    def __init__(self, lab: Lab, directory: Path) -> None:
        self._units = directory
        self._process = lab.popen("director", [*self._command()], stderr=subprocess.DEVNULL)

    def _command(self) -> list[str]:
        """A systemd that knows our units alone, so that nothing else of this machine starts."""
        bare = "[Unit]\nDefaultDependencies=no\n"
        for name in ("sysinit", "basic", "shutdown", "umount", "network-online", "multi-user"):
            (self._units / f"{name}.target").write_text(bare)
        shutil.copy(UNIT, self._units)
        added = self._units / "lbdr.service.d"
        added.mkdir()
        (added / "test.conf").write_text(
            "[Service]\n"
            f"ExecStart=\nExecStart={LBDR} daemon {CONFIG}\n"
            f"ExecReload=\nExecReload={LBDR} reload\n"
            "ProtectHome=no\nPrivateTmp=no\n"  # the project may be there
            f"WatchdogSec=2\nRestartSec=100ms\nStandardError=append:{self._units / 'log'}\n"
        )
        environment = [
            "env",
            *("-i", "container=lbdr", f"PATH={os.environ['PATH']}"),
            f"SYSTEMD_UNIT_PATH={self._units}",
        ]
        own = ["unshare", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc"]
        return [*own, *environment, SYSTEMD, "--unit=multi-user.target", "--show-status=no"]

    def ctl(self, *words: str, check: bool = True) -> str:
        """What systemctl says."""
        return self._run("systemctl", *words, check=check).strip()

    def inside(self, path: str) -> str:
        """A file as the namespace has it."""
        return self._run("cat", path)

    def _run(self, *command: str, check: bool = True) -> str:
        """Run a command beside systemd, in its namespace."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text()
        done = subprocess.run(
            ["nsenter", f"--target={children.strip()}", "--pid", "--mount", *command],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert not (check and done.returncode), f"{done.stdout}{done.stderr}{self.log()}"
        return done.stdout

    def show(self, name: str) -> str:
        """A property of the service."""
        return self.ctl("show", "lbdr", f"--property={name}", "--value")

    def runs(self) -> bool:
        """Whether it has come up."""
        return self.ctl("is-system-running", check=False) in ("running", "degraded")

    def log(self) -> str:
        """What the service logged."""
        path = self._units / "log"
        return path.read_text() if path.exists() else ""

    def wait(self, **properties: str) -> None:
        """Wait until properties of the service have values."""
        names = ",".join(properties)
        wanted = {f"{name}={value}" for name, value in properties.items()}
        soon(
            lambda: wanted == set(self.ctl("show", "lbdr", f"--property={names}").splitlines()),
            f"{properties} of {self.ctl('status', 'lbdr', check=False)}{self.log()}",
            timeout=40,
        )

    def close(self) -> None:
        """End it with everything in its namespace."""
        self._process.kill()
        self._process.wait(10)


@pytest.fixture(scope="module")
def systemd(lab: Lab, gid: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Systemd]:
    """With the service started; the tests go on from each other."""
    assert gid
    cgroups = Path("/sys/fs/cgroup")
    if not (cgroups / "cgroup.procs").exists():
        subprocess.run(["mount", "-t", "cgroup2", "none", cgroups], check=True)
    CONFIG.write_text(configuration(SERVICES, drift_check="200ms", fastpath="auto"))
    built = Systemd(lab, tmp_path_factory.mktemp("units"))
    try:
        soon(built.runs, "systemd is up", timeout=40)
        yield built
    finally:
        built.close()
        CONFIG.unlink()
        for directory in (PATHS.run, PATHS.state):
            shutil.rmtree(directory, ignore_errors=True)


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
    assert status.fastpath.reason.startswith("mkdir /sys/fs/bpf/lbdr/")
    found = PATHS.socket.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (0, gid, 0o660)
    with lab.entered("director"):
        assert Path("/proc/sys/net/ipv4/vs/expire_nodest_conn").read_text() == "1\n"
    for word in ("ERROR", "WARNING", "<3>", "<4>"):
        assert word not in systemd.log()


def test_the_unit_shuts_all_else_out(systemd: Systemd) -> None:
    assert systemd.show("CapabilityBoundingSet") == "cap_net_admin cap_net_raw"
    assert systemd.show("NoNewPrivileges") == "yes"
    assert systemd.show("ProtectSystem") == "strict"
    inside = systemd.inside(f"/proc/{systemd.show('MainPID')}/status")
    assert "CapPrm:\t0000000000003000\n" in inside
    assert "Seccomp:\t2\n" in inside


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
