"""Real servers, clients, and what a host hears, in a lab whose director is a real daemon."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Self

from netlab import INTERFACE, Lab, wait_for

from tests.kernel.daemons import VIP

_SO_TIMESTAMPNS, _SO_RCVBUFFORCE = 35, 33
_ETH_P_ALL = 3


@contextlib.contextmanager
def real_servers(lab: Lab, *vips: str, port: int = 80) -> Iterator[None]:
    """web1 and web2 hold VIPs, answer no ARP for them, and say their names to every client."""
    threads = []
    with contextlib.ExitStack() as stack:
        for name in ("web1", "web2"):
            lab.sysctl(name, "net.ipv4.conf.all.arp_ignore", "1")
            lab.sysctl(name, "net.ipv4.conf.all.arp_announce", "2")
            lab.ip(name, *(f"address replace {vip} dev lo" for vip in vips))
            with lab.entered(name):
                server = socket.create_server(
                    ("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=100
                )
            stack.enter_context(server)
            stack.callback(server.shutdown, socket.SHUT_RDWR)  # wakes who waits for a client
            threads.append(threading.Thread(target=_serve, args=(server, name)))
            threads[-1].start()
        yield
    for thread in threads:
        thread.join(10)


def _serve(server: socket.socket, name: str) -> None:
    with contextlib.suppress(OSError):  # shut down
        while True:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                connection.settimeout(5)
                connection.recv(100)
                connection.sendall(name.encode())


def request(lab: Lab, vip: str = VIP, port: int = 80) -> str:
    """The name of the real server that answers a client's connection.

    Raises:
        OSError: none does.
    """
    family = socket.AF_INET6 if ":" in vip else socket.AF_INET
    with lab.entered("client"):
        connection = socket.socket(family, socket.SOCK_STREAM)
    with connection:
        connection.settimeout(5)
        connection.connect((vip, port))
        connection.sendall(b"who?")
        return connection.recv(100).decode()


class Load:
    """A client that sends one request after the other, meanwhile.

    Args:
        lab: whose client.
        pause: seconds between two requests, so that others have the CPU too.
    """

    def __init__(self, lab: Lab, pause: float = 0.01) -> None:
        self.answers: Counter[str] = Counter()
        self.failures: list[str] = []
        self.slowest = 0.0
        self._lab = lab
        self._pause = pause
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        wait_for(lambda: self.count, "the first request", timeout=10)
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(10)

    @property
    def count(self) -> int:
        """Requests so far."""
        return self.answers.total() + len(self.failures)

    def more(self, count: int) -> None:
        """Wait until so many further requests are through."""
        goal = self.count + count
        wait_for(lambda: self.count >= goal, f"{count} more requests", timeout=30)

    def _run(self) -> None:
        while not self._end.wait(self._pause):
            begin = time.monotonic()
            try:
                name = request(self._lab)
            except OSError as error:
                self.failures.append(str(error))
            else:
                self.answers[name] += 1
            self.slowest = max(self.slowest, time.monotonic() - begin)


class Wire:
    """What announces addresses to a host: gratuitous ARP and neighbour advertisements.

    Args:
        lab: built.
        host: that listens.
        sender: whose announcements are meant.
    """

    def __init__(self, lab: Lab, host: str = "client", sender: str = "director") -> None:
        self._mac = bytes.fromhex(lab[sender].mac.replace(":", ""))
        self._seen: list[tuple[float, str]] = []
        with lab.entered(host):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            self._socket.setblocking(False)
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 23)
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            self._socket.bind((INTERFACE, _ETH_P_ALL))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def announcements(self, *addresses: str) -> list[tuple[float, str]]:
        """Announcements until now: when the kernel got it (as time.time tells it), and of what.

        Args:
            addresses: of these alone, where given.
        """
        with contextlib.suppress(BlockingIOError):
            while True:
                frame, extra, _, _ = self._socket.recvmsg(2048, 64)
                address = self._announced(frame)
                if address:
                    seconds, nanoseconds = struct.unpack("=qq", extra[0][2])
                    self._seen.append((seconds + nanoseconds / 1e9, address))
        return [seen for seen in self._seen if not addresses or seen[1] in addresses]

    def wait(self, count: int, *addresses: str, timeout: float = 10.0) -> list[tuple[float, str]]:
        """Wait until so many announcements have come."""
        return wait_for(
            lambda: found if len(found := self.announcements(*addresses)) >= count else [],
            f"{count} announcements",
            timeout=timeout,
        )

    def _announced(self, frame: bytes) -> str:
        """The address that a frame announces (RFC 5227 section 3, RFC 4861 section 7.2.6)."""
        if frame[6:12] != self._mac:
            return ""
        if frame[12:14] == b"\x08\x06" and frame[28:32] == frame[38:42]:
            return socket.inet_ntop(socket.AF_INET, frame[28:32])
        neighbour_advertisement = frame[12:14] == b"\x86\xdd" and (frame[20], frame[54]) == (
            58,
            136,
        )
        if neighbour_advertisement and frame[:2] == b"\x33\x33":
            return socket.inet_ntop(socket.AF_INET6, frame[62:78])
        return ""
