"""A real daemon on a host of a lab, and what tests ask of it, of its kernel and of the wire."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml
from netlab import INTERFACE, Lab, wait_for

from lbdr.control import client
from lbdr.control.protocol import Request, StatusRequest
from lbdr.paths import Paths
from lbdr.status import Status

T = TypeVar("T")

LBDR = Path(sys.executable).with_name("lbdr")
VIP, VIP6 = "10.77.0.50", "fd77::50"
BPFFS = Path("/sys/fs/bpf")
NO_GROUP = "there is no group lbdr"
_START_SECONDS = 40  # a guest on a busy machine
WEB = {"address": VIP, "ports": [80], "real_servers": ["web1", "web2"]}
"""The usual virtual service."""


def configuration(services: Mapping[str, Any], **director: Any) -> str:
    """A configuration file with the lab's real servers.

    Args:
        services: virtual services by name.
        director: settings of the director; where nothing is said, VIPs are probed for only 20 ms,
            and there is no fast path, which takes a guest long to compile.
    """
    probe = {"count": 1, "interval": "20ms"}
    settings = {"name": "lab", "address_probe": probe, "fastpath": "off", "check": "on", **director}
    document = {
        "director": settings,
        "real_servers": {
            "web1": {"address": "10.77.0.21"},
            "web2": {"address": "10.77.0.22"},
            "web3": {"address": "10.77.0.23"},
            "six1": {"address": "fd77::21"},
            "six2": {"address": "fd77::22"},
            "six3": {"address": "fd77::23"},
        },
        "virtual_services": dict(services),
    }
    return yaml.safe_dump(document, sort_keys=False)


class Daemon:
    """`lbdr daemon` on a host of a lab, with files of its own; the lab ends it at the latest.

    Args:
        lab: built.
        host: where it runs.
    """

    def __init__(self, lab: Lab, host: str = "director") -> None:
        self.lab = lab
        self.host = host
        self.directory = Path(tempfile.mkdtemp(prefix="lbdr-"))
        self.directory.chmod(0o755)  # who may use the socket is for its own directory to say
        base = self.directory
        self.paths = Paths(base / "lbdr.yaml", base / "run", base / "state", BPFFS / base.name)
        self.process: subprocess.Popen[str] | None = None
        self._starts = 0
        self._notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._notices.bind(str(base / "notify"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.stop()
        self._notices.close()
        shutil.rmtree(self.directory)
        shutil.rmtree(self.paths.bpf, ignore_errors=True)  # there is none without a fast path

    # --- the process -----------------------------------------------------------------------------

    def configure(self, services: Mapping[str, Any], **director: Any) -> None:
        """Write the configuration file (see configuration)."""
        self.paths.config.write_text(configuration(services, **director))

    @property
    def places(self) -> list[str]:
        """The options that name its files."""
        paths = self.paths
        return [
            *(f"--config={paths.config}", f"--run-dir={paths.run}", f"--state-dir={paths.state}"),
            f"--bpf-dir={paths.bpf}",
        ]

    def launch(self, *before: str, env: Mapping[str, str] | None = None) -> None:
        """Start it, with a log of its own, and do not wait.

        Args:
            before: words before the command, such as those of setpriv.
            env: added to the environment.
        """
        self._starts += 1
        self.notices()  # of the one before
        environment = {**os.environ, "NOTIFY_SOCKET": str(self.directory / "notify"), **(env or {})}
        with self._log.open("w") as log:
            self.process = self.lab.popen(
                self.host,
                [*before, str(LBDR), "daemon", *self.places],
                stderr=log,
                env=environment,
            )

    def start(
        self,
        *before: str,
        env: Mapping[str, str] | None = None,
        seconds: float = _START_SECONDS,
    ) -> None:
        """Start it and wait until it says that it is ready (see launch)."""
        self.launch(*before, env=env)
        self.wait_ready(seconds)

    def wait_ready(self, seconds: float = _START_SECONDS) -> None:
        """Wait for READY=1 on the socket that NOTIFY_SOCKET names, at most so long."""

        def ready() -> bool:
            if self.running.poll() is not None:
                raise RuntimeError(f"the daemon ended:\n{self.log()}")
            return any("READY=1" in notice for notice in self.notices())

        try:
            wait_for(ready, "the daemon is ready", timeout=seconds)
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{self.log()}") from error

    @property
    def running(self) -> subprocess.Popen[str]:
        """Its process."""
        assert self.process is not None, "not started"
        return self.process

    def notices(self) -> list[str]:
        """What it told the service manager since the last call."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                found.append(self._notices.recv(4096).decode())
        return found

    def kill(self) -> None:
        """End it by SIGKILL."""
        self.running.kill()
        self.running.wait(10)
        self.lab.stop(self.running)

    def wait(self, timeout: float = 20.0) -> int:
        """Wait until it ends by itself; its exit status."""
        return self.running.wait(timeout)

    def stop(self) -> int:
        """End it by SIGTERM; its exit status."""
        self.running.send_signal(signal.SIGTERM)
        status = self.wait()
        self.lab.stop(self.running)
        return status

    # --- what it says ----------------------------------------------------------------------------

    @property
    def _log(self) -> Path:
        return self.directory / f"log{self._starts}"

    def log(self) -> str:
        """What it logged since it was started."""
        return self._log.read_text()

    def lines(self, *words: str, since: int = 0) -> list[str]:
        """The lines of its log that have all of some words.

        Args:
            words: to be in the line.
            since: lines before this one do not count; see `mark`.
        """
        return [
            line for line in self.log().splitlines()[since:] if all(word in line for word in words)
        ]

    def mark(self) -> int:
        """How many lines its log has."""
        return len(self.log().splitlines())

    def ask(self, request: Request) -> dict[str, Any]:
        """Ask it on the control socket, from this process."""
        result = client.ask(self.paths, request, timeout=30).result
        assert result is not None
        return result

    def status(self) -> Status:
        """Its status, checked against the model."""
        return Status.model_validate(self.ask(StatusRequest()))

    def problems(self) -> str:
        """The problems of its status."""
        return "\n".join(self.status().problems)

    # --- what its kernel says --------------------------------------------------------------------

    def ipvs(self, *options: str) -> list[str]:
        """The lines of `ipvsadm -Sn`, or of a listing with other options."""
        command = ["ipvsadm", *(options or ("-Sn",))]
        return self.lab.run(self.host, command).stdout.splitlines()

    def ipvsadm(self, command: str) -> None:
        """Change IPVS by hand."""
        self.lab.run(self.host, ["ipvsadm", *command.split()])

    def ipvs_text(self) -> str:
        """IPVS's own table, without a process: it lacks thresholds and flags."""
        with self.lab.entered(self.host):
            return Path("/proc/thread-self/net/ip_vs").read_text()

    def real_servers(self) -> int:
        """How many real servers IPVS has, in all virtual services."""
        return self.ipvs_text().count("\n  -> ") - 1  # one is a heading

    def addresses(self, host: str = "") -> set[str]:
        """The addresses of its host's interface."""
        command = ["ip", "-o", "address", "show", "dev", INTERFACE]
        out = self.lab.run(host or self.host, command).stdout
        return {line.split()[3] for line in out.splitlines()}

    def sysctl(self, name: str) -> str:
        """A sysctl of its host."""
        with self.lab.entered(self.host):
            return Path("/proc/sys", *name.split(".")).read_text().strip()


def soon(condition: Callable[[], T], what: str, timeout: float = 10.0) -> T:
    """Poll a condition that costs a process, until it holds; the daemon needs the CPU, too.

    Raises:
        TimeoutError: it did not hold in so many seconds.
    """
    deadline = time.monotonic() + timeout
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout} s")
        time.sleep(0.05)
    return result


@contextlib.contextmanager
def as_user(uid: int, gid: int, groups: Sequence[int] = ()) -> Iterator[None]:
    """This process has another user's rights meanwhile, in all of its threads."""
    before = os.getgroups()
    os.setgroups(list(groups))
    os.setegid(gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(before)
