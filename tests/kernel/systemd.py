"""A real systemd in a guest, with the unit of the package."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from netlab import Lab

from lbdr.paths import Paths
from tests.kernel.daemons import LBDR, soon

GROUP = "lbdr"
UNIT = Path(__file__).parents[2] / "scripts" / "lib" / "lbdr.service"
SYSTEMD = "/lib/systemd/systemd"
PATHS = Paths()  # the unit's directories are those of the system: of the guest's
CONFIG = Path("/run/lbdr-test.yaml")  # not in /tmp, of which the unit has its own
_INSTALLED = "/opt/lbdr/bin/lbdr"


class Systemd:
    """A systemd on the director of a lab, with lbdr.service and what that needs, and no more.

    It is the first process of a namespace of its own; the unit's directories are the guest's.

    Args:
        lab: built.
        directory: for its units.
        settings: lines for the unit's section Service, besides those of tests.
    """

    def __init__(self, lab: Lab, directory: Path, *settings: str) -> None:
        self.units = directory
        self._settings = settings
        self._process = lab.popen("director", [*self._command()], stderr=subprocess.DEVNULL)

    def _command(self) -> list[str]:
        """A systemd that knows our units alone, so that nothing else of this machine starts."""
        bare = "[Unit]\nDefaultDependencies=no\n"
        for name in ("sysinit", "basic", "shutdown", "umount", "network-online", "multi-user"):
            (self.units / f"{name}.target").write_text(bare)
        text = UNIT.read_text()
        assert _INSTALLED in text
        (self.units / UNIT.name).write_text(text.replace(_INSTALLED, str(LBDR)))
        added = self.units / f"{UNIT.name}.d"
        added.mkdir()
        settings = [
            "[Service]",
            f"Environment=LBDR_CONFIG={CONFIG}",
            *("ProtectHome=no", "PrivateTmp=no"),  # the project may be there
            *("WatchdogSec=2", "RestartSec=100ms", f"StandardError=append:{self.units / 'log'}"),
            *self._settings,
        ]
        (added / "test.conf").write_text("\n".join(settings))
        environment = [
            "env",
            *("-i", "container=lbdr", f"PATH={os.environ['PATH']}"),
            f"SYSTEMD_UNIT_PATH={self.units}",
        ]
        own = ["unshare", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc"]
        return [*own, *environment, SYSTEMD, "--unit=multi-user.target", "--show-status=no"]

    def ctl(self, *words: str, check: bool = True) -> str:
        """What systemctl says."""
        return self.run("systemctl", *words, check=check).strip()

    def inside(self, path: str) -> str:
        """A file as the namespace has it."""
        return self.run("cat", path)

    def run(self, *command: str, check: bool = True) -> str:
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
        path = self.units / "log"
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


@contextlib.contextmanager
def running(built: Systemd) -> Iterator[Systemd]:
    """A systemd that is up, until the end; the unit's directories are gone then."""
    cgroups = Path("/sys/fs/cgroup")
    if not (cgroups / "cgroup.procs").exists():
        subprocess.run(["mount", "-t", "cgroup2", "none", cgroups], check=True)
    try:
        soon(built.runs, "systemd is up", timeout=40)
        yield built
    finally:
        built.close()
        CONFIG.unlink(missing_ok=True)
        for directory in (PATHS.run, PATHS.state, PATHS.bpf):
            shutil.rmtree(directory, ignore_errors=True)
