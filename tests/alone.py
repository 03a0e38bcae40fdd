"""A director whose kernel has no IPVS, in a lab: clients that never stop, and what they met."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from netlab import HOSTS, Lab
from veth import fit_for_xdp

from lbdr.status import VirtualServiceStatus
from tests.guest import missing
from tests.kernel.daemons import VIP, WEB, Daemon
from tests.kernel.open_connections import answering

SERVERS = ["web1", "web2", "web3"]
HASHED = {**WEB, "scheduler": "mh", "scheduler_flags": ["mh-port"]}
FOLLOWED = 10.0
_PATIENCE = 0.5  # seconds after which a client gives up


@contextlib.contextmanager
def alone_lab() -> Iterator[Lab]:
    """Hosts client, director and SERVERS, on a kernel without IPVS."""
    if os.geteuid() != 0:
        missing("network namespaces need root")
    if Path("/proc/net/ip_vs").exists():
        missing("this kernel has IPVS")
    with (
        Lab({**HOSTS, "web3": 23}) as built,
        fit_for_xdp(built, ["director"], ["client"]),
        answering(built, SERVERS, VIP, ports=[80, 8080]),
    ):
        yield built


@contextlib.contextmanager
def measuring(lab: Lab, hosts: Sequence[str], vip: str, port: int) -> Iterator[None]:
    """Hosts answer each datagram to a VIP with their name and its length."""
    ended = threading.Event()
    threads = []
    with contextlib.ExitStack() as stack:
        for host in hosts:
            with lab.entered(host):
                server = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                server.bind((vip, port))
            server.settimeout(0.1)
            threads.append(threading.Thread(target=_measure, args=(server, host, ended)))
            threads[-1].start()
        try:
            yield
        finally:
            ended.set()
            for thread in threads:
                thread.join(10)


def _measure(server: socket.socket, name: str, ended: threading.Event) -> None:
    while not ended.is_set():
        with contextlib.suppress(TimeoutError):
            data, client = server.recvfrom(1 << 16)
            server.sendto(f"{name} {len(data)}".encode(), client)


def configure(daemon: Daemon, services: Mapping[str, Any]) -> None:
    """Write its configuration file."""
    daemon.configure(services, fastpath="auto")


@contextlib.contextmanager
def serving(lab: Lab, services: Mapping[str, Any]) -> Iterator[Daemon]:
    """A daemon that serves them, started."""
    with Daemon(lab) as started:
        configure(started, services)
        started.start()
        yield started


def service(daemon: Daemon, name: str = "WEB") -> VirtualServiceStatus:
    """The status of a service."""
    return next(one for one in daemon.status().virtual_services if one.name == name)


class Knocking:
    """A client that opens a connection every few milliseconds, and what became of each.

    Args:
        lab: whose client.
        vip: where to.
        port: where to.
    """

    def __init__(self, lab: Lab, vip: str = VIP, port: int = 80) -> None:
        self._lab = lab
        self._to = (vip, port)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._knock)
        self.met: Counter[str] = Counter()
        """By the error's name; `open` for one that was opened, `silence` for none."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(10)

    def _knock(self) -> None:
        waiting: dict[int, tuple[socket.socket, float]] = {}
        with self._lab.entered("client"):
            while not self._ended.is_set():
                one = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
                number = one.connect_ex(self._to)
                if number == errno.EINPROGRESS:
                    waiting[one.fileno()] = one, time.monotonic()
                else:
                    self._note(one, errno.errorcode[number] if number else "open")
                self._listen(waiting)
        for one, _ in waiting.values():
            one.close()

    def _listen(self, waiting: dict[int, tuple[socket.socket, float]]) -> None:
        poll = select.poll()
        for number in waiting:
            poll.register(number, select.POLLOUT)
        answered = {number for number, _ in poll.poll(5)}
        for number, (one, since) in list(waiting.items()):
            if number in answered:
                error = one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                self._note(one, errno.errorcode[error] if error else "open")
            elif time.monotonic() - since > _PATIENCE:
                self._note(one, "silence")
            else:
                continue
            del waiting[number]

    def _note(self, one: socket.socket, what: str) -> None:
        self.met[what] += 1
        one.close()


def refused(lab: Lab, to: tuple[str, int], timeout: float = 1.0) -> bool:
    """Whether a connection of the client's is refused at once; False for silence.

    Raises:
        AssertionError: it was opened.
    """
    with (
        lab.entered("client"),
        socket.socket(socket.AF_INET, socket.SOCK_STREAM) as one,
    ):
        one.settimeout(timeout)
        try:
            one.connect(to)
        except ConnectionRefusedError:
            return True
        except TimeoutError:
            return False
    raise AssertionError(f"{to} was opened")
