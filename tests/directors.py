"""A director under test: its files, lbdr in its network namespace, and what the kernel holds.

lbdr is called inside this process, since a guest takes seconds to start another Python; `command`
is for tests whose subject is a process (the daemon, a kill). The witnesses are ipvsadm, ip and the
files under /proc/sys, never lbdr's own reading.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import io
import json
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netlab import INTERFACE

from lbdr import oneshot
from lbdr.cli.main import lbdr
from lbdr.datapath import namespace
from lbdr.paths import Paths
from lbdr.plan import Plan
from lbdr.report import Report
from lbdr.status import Status

LBDR = Path(__file__).parents[1] / ".venv" / "bin" / "lbdr"
_CLONE_NEWNET = 0x40000000
_SYSCTLS = (
    "net/ipv4/vs",
    *(f"net/ipv{version}/conf/{name}" for version in (4, 6) for name in ("all", INTERFACE)),
)
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Result:
    """What a command of lbdr's gave."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """The object that --json prints as the last line."""
        return json.loads(self.stdout.splitlines()[-1])


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a network namespace holds of what lbdr changes, by other programs' words.

    IPVS's timeouts are left out: another process costs a tenth of a second.

    Args:
        rules: of `ipvsadm -Sn`, sorted.
        addresses: of `ip -o address`.
        sysctls: bytes by file below /proc/sys.
    """

    rules: list[str]
    addresses: list[str]
    sysctls: dict[str, bytes]


class Director:
    """A director with files of its own.

    Args:
        directory: for its configuration, run directory and state directory.
        inside: enters its network namespace; nothing where the caller is in it already.
    """

    def __init__(
        self, directory: Path, inside: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> None:
        self.paths = Paths(directory / "lbdr.yaml", directory / "run", directory / "state")
        self._inside = inside

    def configure(self, text: str) -> None:
        """Write its configuration file."""
        self.paths.config.parent.mkdir(parents=True, exist_ok=True)
        self.paths.config.write_text(text)

    # --- lbdr ------------------------------------------------------------------------------------

    def lbdr(self, *arguments: str) -> Result:
        """A command of lbdr's, as typed, in this process; the options for the files are added."""
        stdout, stderr = io.StringIO(), io.StringIO()
        code: object = 0
        with (
            self._inside(),
            contextlib.redirect_stdout(stdout),
            contextlib.redirect_stderr(stderr),
        ):
            try:
                lbdr(self._with_files(arguments), prog_name="lbdr")
            except SystemExit as end:
                code = end.code
        assert isinstance(code, int)
        return Result(code, stdout.getvalue(), stderr.getvalue())

    def command(self, *arguments: str) -> list[str]:
        """The same as an argv, for a process of its own (5 s to start, in the guest)."""
        return [str(LBDR), *self._with_files(arguments)]

    def plan(self, *, adopt: bool = False) -> Plan:
        """What `lbdr plan` shows."""
        with self._inside():
            return asyncio.run(oneshot.plan(self.paths, adopt=adopt))

    def commands(self) -> list[str]:
        """The plan's operations as text."""
        return [operation.command for operation in self.plan().operations]

    def apply(self, *, adopt: bool = False) -> Report:
        """What `lbdr apply` does."""
        with self._inside():
            return asyncio.run(oneshot.apply(self.paths, adopt=adopt))

    def withdraw(self) -> Report:
        """What `lbdr withdraw` does."""
        with self._inside():
            return asyncio.run(oneshot.withdraw(self.paths))

    def status(self) -> Status:
        """What `lbdr status` shows without a daemon."""
        with self._inside():
            return asyncio.run(oneshot.status(self.paths))

    def _with_files(self, arguments: tuple[str, ...]) -> list[str]:
        if arguments[0] in ("schema", "solve-arp"):
            return list(arguments)
        if arguments[0] == "check":
            return [*arguments, str(self.paths.config)]
        return [
            *arguments,
            f"--config={self.paths.config}",
            f"--run-dir={self.paths.run}",
            f"--state-dir={self.paths.state}",
        ]

    # --- witnesses -------------------------------------------------------------------------------

    def run(self, *argv: str) -> str:
        """Run another program in its namespace; what it said on stdout."""
        with self._inside():
            return run(*argv)

    def ipvsadm(self, *rules: str) -> None:
        """Do by ipvsadm what others do to IPVS; see the function."""
        with self._inside():
            ipvsadm(*rules)

    def rules(self) -> list[str]:
        """IPVS by ipvsadm's words; see the function."""
        with self._inside():
            return rules()

    def addresses(self, interface: str = INTERFACE) -> list[str]:
        """Addresses of an interface with their prefix lengths, link-local ones left out."""
        lines = self.run("ip", "-o", "address", "show", "dev", interface).splitlines()
        return sorted(line.split()[3] for line in lines if " fe80:" not in line)

    def sysctls(self, *folders: str) -> dict[str, bytes]:
        """Bytes by file, of those in some folders of /proc/sys."""
        with self._inside():
            return {
                str(path): path.read_bytes()
                for folder in folders or _SYSCTLS
                for path in sorted(Path("/proc/sys", folder).iterdir())
                if path.name != "stable_secret"  # an error until it is set
            }

    def snapshot(self) -> Snapshot:
        """All that lbdr could have changed; equal before and after means untouched."""
        return Snapshot(
            rules=self.rules(),
            addresses=self.run("ip", "-o", "address").splitlines(),
            sysctls=self.sysctls(),
        )


def run(*argv: str, text: str | None = None) -> str:
    """Run a program in this thread's namespace; what it said on stdout.

    Args:
        argv: the command.
        text: for its stdin.

    Raises:
        RuntimeError: it failed; its words are in the message.
    """
    done = subprocess.run(argv, check=False, input=text, capture_output=True, text=True, timeout=30)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: status {done.returncode}: {done.stderr}{text or ''}")
    return done.stdout


def ipvsadm(*rules: str) -> None:
    """Give ipvsadm rules, all to one process, such as `-A -t 10.77.0.9:80 -s rr`."""
    run("ipvsadm", "-R", text="\n".join(rules) + "\n")


def rules() -> list[str]:
    """The lines of `ipvsadm -Sn`, sorted: its own order is that of hashes and history."""
    return sorted(line.strip() for line in run("ipvsadm", "-Sn").splitlines())


@contextlib.contextmanager
def fresh_namespace() -> Iterator[None]:
    """This thread, and what it starts, is in a new network namespace meanwhile.

    Its loopback is up: before that the kernel takes no address for one of a real server. It has no
    name: it is gone when nothing is in it any more.
    """
    with Path("/proc/thread-self/ns/net").open() as before:
        namespace.enter_new()
        try:
            namespace.set_lo_up()
            yield
        finally:
            if _libc.setns(before.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")


def ip(*commands: str) -> None:
    """Give iproute2 commands in this thread's namespace, all to one process."""
    run("ip", "-batch", "-", text="\n".join(commands))


def add_ethernet() -> None:
    """Give this thread's namespace an Ethernet interface, INTERFACE, with carrier.

    Its addresses are 10.77.0.1/24 and fd77::1/64, as a lab's director has them. The other end of
    its cable is in the same namespace, so nobody else answers there.
    """
    socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()  # loads IPv6 where it is a module
    default = Path("/proc/sys/net/ipv6/conf/default/accept_dad")
    default.write_text("0")  # addresses are usable at once
    ip(
        f"link add {INTERFACE} address 02:77:00:00:00:01 type veth peer name cable",
        "link set cable up",
        f"link set {INTERFACE} up",
        f"address add 10.77.0.1/24 dev {INTERFACE}",
        f"address add fd77::1/64 dev {INTERFACE} nodad",
    )
