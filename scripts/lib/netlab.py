"""Labs of network namespaces: hosts on one bridge, for tests and the demo.

    with Lab() as lab:
        lab.run("client", ["ping", "-c1", str(lab["director"].ipv4)])

Each host is a network namespace with one interface, eth0; the bridge is in a namespace of its own,
so nothing of this machine's network is touched. Namespaces and processes are gone afterwards, also
after an error, SIGTERM or SIGHUP. Needs root and iproute2.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import fcntl
import itertools
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Self, TypeVar

T = TypeVar("T")

INTERFACE = "eth0"
HOSTS: Mapping[str, int] = {"client": 100, "director": 1, "web1": 21, "web2": 22}
"""Names, and the last number of their addresses: 10.77.0.N and fd77::N."""

_CLONE_NEWNET = 0x40000000
_SIOCGIFFLAGS = 0x8913
_IFF_RUNNING = 0x40
_IFA_F_TENTATIVE = 0x40
_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
_labs = itertools.count(1)
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Host:
    """A host of a lab; its interface is INTERFACE."""

    name: str
    namespace: str
    ipv4: IPv4Address
    ipv6: IPv6Address
    mac: str


def wait_for(condition: Callable[[], T], what: str, *, timeout: float = 5.0) -> T:
    """Poll until a condition holds, and return what it gave.

    Args:
        condition: true once it holds.
        what: named in the error.
        timeout: seconds.

    Raises:
        TimeoutError: it did not hold in time.
    """
    deadline = time.monotonic() + timeout
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout} s")
        time.sleep(0.01)


@contextlib.contextmanager
def entered(namespace: str) -> Iterator[None]:
    """This thread is in a network namespace meanwhile; sockets opened in it stay there."""
    with Path("/proc/thread-self/ns/net").open() as before:
        with Path("/run/netns", namespace).open() as inside:
            _setns(inside)
        try:
            yield
        finally:
            _setns(before)


def _setns(namespace: IO[str]) -> None:
    if _libc.setns(namespace.fileno(), _CLONE_NEWNET):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


class Lab:
    """Hosts on one bridge.

    Args:
        hosts: names, and the last number of their addresses.
    """

    def __init__(self, hosts: Mapping[str, int] = HOSTS) -> None:
        number = next(_labs)
        self.prefix = f"lbdr{os.getpid()}" + (f"x{number}" if number > 1 else "")
        self.hosts = {
            name: Host(
                name=name,
                namespace=f"{self.prefix}-{name}",
                ipv4=IPv4Address(f"10.77.0.{last}"),
                ipv6=IPv6Address(f"fd77::{last}"),
                mac=f"02:77:00:00:00:{last:02x}",
            )
            for name, last in hosts.items()
        }
        self._switch = f"{self.prefix}-switch"
        self._processes: list[subprocess.Popen[str]] = []
        self._handlers: dict[signal.Signals, signal._HANDLER] = {}

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def __enter__(self) -> Self:
        atexit.register(self.close)
        for number in _SIGNALS:
            self._handlers[number] = signal.signal(number, _exit)
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def run(
        self,
        host: str,
        argv: Sequence[str],
        *,
        check: bool = True,
        timeout: float = 60.0,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a host to its end; text of both streams is kept.

        Args:
            host: its name.
            argv: the command.
            check: a status other than 0 is an error.
            timeout: seconds.
            env: the environment; None for this process's.

        Raises:
            RuntimeError: the command failed; its words are in the message.
        """
        done = subprocess.run(
            self._inside(host, argv),
            check=False,
            capture_output=True,
            text=True,
            timeout=timeout,
            env=env,
        )
        if check and done.returncode:
            words = f"{done.stdout}{done.stderr}".strip()
            raise RuntimeError(f"{host}: {' '.join(argv)}: status {done.returncode}: {words}")
        return done

    def popen(
        self,
        host: str,
        argv: Sequence[str],
        *,
        stdout: IO[str] | int | None = None,
        stderr: IO[str] | int | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[str]:
        """Start a command on a host; it is ended with the lab at the latest."""
        process = subprocess.Popen(
            self._inside(host, argv),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            text=True,
            env=env,
            start_new_session=True,  # a group of its own, which stop ends as a whole
        )
        self._processes.append(process)
        return process

    def stop(self, process: subprocess.Popen[str], *, timeout: float = 5.0) -> int:
        """End a process that popen started, with its children; returns its status."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
        if process in self._processes:
            self._processes.remove(process)
        return process.wait(timeout)

    def ip(self, host: str, *commands: str) -> None:
        """Give iproute2 commands on a host, all to one process."""
        _ip(self.hosts[host].namespace, commands)

    def sysctl(self, host: str, name: str, value: str) -> None:
        """Set a sysctl of a host; dots separate its parts."""
        with entered(self.hosts[host].namespace):
            Path("/proc/sys", *name.split(".")).write_text(value)

    def entered(self, host: str) -> contextlib.AbstractContextManager[None]:
        """This thread is on a host meanwhile; sockets opened in it stay there."""
        return entered(self.hosts[host].namespace)

    def entered_switch(self) -> contextlib.AbstractContextManager[None]:
        """This thread is in the bridge's namespace meanwhile; a port is named like its host."""
        return entered(self._switch)

    def close(self) -> None:
        """End the lab's processes and delete its namespaces; once is enough."""
        for process in list(self._processes):
            self.stop(process)
        names = [host.namespace for host in self.hosts.values()] + [self._switch]
        left = [f"netns del {name}" for name in names if Path("/run/netns", name).exists()]
        if left:
            _ip(None, left)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()
        atexit.unregister(self.close)

    def _inside(self, host: str, argv: Sequence[str]) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{self.hosts[host].namespace}", "--", *argv]

    def _build(self) -> None:
        hosts = list(self.hosts.values())
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()  # loads IPv6 where it is a module
        _ip(None, [f"netns add {name}" for name in (self._switch, *(h.namespace for h in hosts))])
        for host in hosts:
            with entered(host.namespace):
                # addresses are usable at once: no two hosts of a lab have the same one
                Path("/proc/sys/net/ipv6/conf/default/accept_dad").write_text("0")
        with entered(self._switch):
            Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1")
        # without snooping, multicast reaches every port, with no querier to be waited for
        commands = ["link add br0 up type bridge mcast_snooping 0 forward_delay 0"]
        for host in hosts:
            peer = f"peer name {INTERFACE} address {host.mac} netns {host.namespace}"
            commands.append(f"link add {host.name} up master br0 type veth {peer}")
        _ip(self._switch, commands)
        for host in hosts:
            self.ip(
                host.name,
                "link set lo up",
                f"link set {INTERFACE} up",
                f"address add {host.ipv4}/24 dev {INTERFACE}",
                f"address add {host.ipv6}/64 dev {INTERFACE} nodad",
            )
        # the kernel may be busy with the end of many namespaces before
        wait_for(self._ready, "carrier on every link", timeout=60)

    def _ready(self) -> bool:
        """Whether frames pass: both ends of every link run, and no address waits for anything."""
        for host in self.hosts.values():
            with entered(host.namespace):
                lines = Path("/proc/thread-self/net/if_inet6").read_text().splitlines()
                flags = [int(line.split()[4], 16) for line in lines]
                if not _running(INTERFACE) or any(flag & _IFA_F_TENTATIVE for flag in flags):
                    return False
        with entered(self._switch):
            return all(_running(name) for name in self.hosts)


def _running(interface: str) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16s16x", interface.encode())
        answer = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, request)
    return bool(struct.unpack_from("H", answer, 16)[0] & _IFF_RUNNING)


def _ip(namespace: str | None, commands: Sequence[str]) -> str:
    inside = ["-n", namespace] if namespace else []
    done = subprocess.run(
        ["ip", *inside, "-batch", "-"],
        check=False,
        input="\n".join(commands),
        capture_output=True,
        text=True,
        timeout=60,
    )
    if done.returncode:
        raise RuntimeError(f"ip: {done.stderr.strip()}\n" + "\n".join(commands))
    return done.stdout


def _exit(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)
