"""A companion HAProxy on the director of a lab, real servers behind it, and their clients."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

from netlab import Lab, wait_for

from lbdr.haproxy.answers import Processes
from lbdr.haproxy.files import Files
from lbdr.haproxy.launch import OwnProcess
from lbdr.haproxy.model import ProxyConfiguration
from lbdr.haproxy.process import Companion
from lbdr.haproxy.render.whole import Rendered, render

T = TypeVar("T")


class Director:
    """The director of a lab with a companion HAProxy; gone with the context.

    Args:
        lab: its hosts.
        directory: of HAProxy's files.
    """

    host = "director"

    def __init__(self, lab: Lab, directory: Path) -> None:
        self.lab = lab
        self.files = Files(directory)
        self.companion = Companion(self.files, OwnProcess())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def run(self, work: Callable[[Companion], Coroutine[Any, Any, T]]) -> T:
        """Do something with the companion, on the director."""
        with self.lab.entered(self.host):
            return asyncio.run(work(self.companion))

    def apply(self, configuration: ProxyConfiguration) -> bool:
        """Serve a configuration."""
        rendered = self.render(configuration)
        return self.run(lambda companion: companion.apply(rendered))

    def render(self, configuration: ProxyConfiguration) -> Rendered:
        """Render for this director."""
        return render(configuration, self.files.surroundings)

    def processes(self) -> Processes:
        """The master and its workers."""
        found = self.run(lambda companion: companion.processes())
        assert found is not None
        return found

    def reload(self) -> None:
        """Reload as it is, and wait for the new worker."""
        before = {worker.pid for worker in self.processes().current}
        self.run(lambda companion: companion.reload_ready())
        self.run(lambda companion: companion.save_states())
        os.kill(self.processes().master, signal.SIGUSR2)
        wait_for(lambda: self._other_than(before), "a new worker", timeout=30)

    def _other_than(self, before: set[int]) -> bool:
        found = self.run(lambda companion: companion.processes())
        if found is None or not found.current:
            return False
        with contextlib.suppress(Exception):
            pid = int(self.run(lambda companion: companion.runtime.information())["Pid"])
            return pid not in before and pid in {worker.pid for worker in found.current}
        return False

    def stop(self) -> None:
        """End it with all its workers, whatever connections they have."""
        found = self.run(lambda companion: companion.processes())
        if found is None:
            return
        workers = [worker.pid for worker in (*found.current, *found.old)]
        for pid in (found.master, *workers):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        wait_for(lambda: not any(map(running, (found.master, *workers))), "its end", timeout=10)


def running(pid: int) -> bool:
    """Whether a process runs; one that waits to be reaped does not."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@dataclass
class Peer:
    """A TCP server on a host of a lab, in threads of this process.

    Args:
        lab: where.
        host: its name.
        port: where it listens.
        answer: serves one connection; it is closed afterwards.
        any_address: of its IP version.
    """

    lab: Lab
    host: str
    port: int
    answer: Callable[[socket.socket, str], None]
    seen: list[bytes] = field(default_factory=list)
    clients: list[str] = field(default_factory=list)
    any_address: str = "0.0.0.0"

    def __enter__(self) -> Self:
        with self.lab.entered(self.host):
            family = socket.AF_INET6 if ":" in self.any_address else socket.AF_INET
            self._listener = socket.create_server(
                (self.any_address, self.port), family=family, backlog=512
            )
        self._open: set[socket.socket] = set()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Refuse connections from now on, and cut those that are open."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                connection, (client, *_) = self._listener.accept()
            except OSError:
                return
            self.clients.append(client)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        self._open.add(connection)
        with connection, contextlib.suppress(OSError):
            self.answer(connection, self.host)
        self._open.discard(connection)


def says_its_name(connection: socket.socket, host: str) -> None:
    """A server that says who it is, and then echoes."""
    connection.sendall(f"{host}\n".encode())
    while data := connection.recv(65536):
        connection.sendall(data)


def connect(lab: Lab, host: str, address: str, port: int, *, source: str = "") -> socket.socket:
    """A client's connection."""
    with lab.entered(host):
        return socket.create_connection(
            (address, port), timeout=20, source_address=(source, 0) if source else None
        )


def first_line(connection: socket.socket) -> str:
    """What a server says first."""
    with connection.makefile("rb") as stream:
        return stream.readline().decode().strip()


def ask_name(lab: Lab, address: str, port: int, *, source: str = "") -> str:
    """Which server answers a new connection."""
    with connect(lab, "client", address, port, source=source) as connection:
        return first_line(connection)


@contextlib.contextmanager
def program(lab: Lab, host: str, *argv: str) -> Iterator[subprocess.Popen[str]]:
    """A program on a host, ended with the context."""
    process = lab.popen(host, argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        lab.stop(process)


PYTHON = sys.executable
