"""Connections that stay open: who has each, and whether it is still who had it."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Self

from netlab import Lab

_WORD = 8  # bytes of a question and of an answer


@contextlib.contextmanager
def answering(lab: Lab, hosts: Sequence[str], *vips: str, ports: Sequence[int]) -> Iterator[None]:
    """Hosts hold VIPs, answer no ARP for them, and answer each word of a client by their name."""
    ended = threading.Event()
    threads = []
    with contextlib.ExitStack() as stack:
        for host in hosts:
            lab.sysctl(host, "net.ipv4.conf.all.arp_ignore", "1")
            lab.sysctl(host, "net.ipv4.conf.all.arp_announce", "2")
            lab.ip(host, *(f"address replace {vip} dev lo" for vip in vips))
            with lab.entered(host):
                listeners = [
                    stack.enter_context(
                        socket.create_server(
                            ("::", port),
                            family=socket.AF_INET6,
                            dualstack_ipv6=True,
                            backlog=1024,
                        )
                    )
                    for port in ports
                ]
            threads.append(threading.Thread(target=_answer, args=(listeners, host, ended)))
            threads[-1].start()
        try:
            yield
        finally:
            ended.set()
            for thread in threads:
                thread.join(10)


def _answer(listeners: Sequence[socket.socket], name: str, ended: threading.Event) -> None:
    answer = name.encode().ljust(_WORD)
    with selectors.DefaultSelector() as ready:
        for listener in listeners:
            ready.register(listener, selectors.EVENT_READ, data=True)
        while not ended.is_set():
            for key, _ in ready.select(0.1):
                which = key.fileobj
                assert isinstance(which, socket.socket)
                if key.data:
                    connection, _ = which.accept()
                    ready.register(connection, selectors.EVENT_READ, data=False)
                    continue
                try:
                    word = which.recv(_WORD)
                    if word:
                        which.sendall(answer)
                        continue
                except OSError:
                    word = b""
                ready.unregister(which)
                which.close()
        for key in list(ready.get_map().values()):
            if not key.data:
                assert isinstance(key.fileobj, socket.socket)
                key.fileobj.close()


class Connections:
    """Open connections of a client.

    Args:
        lab: whose client.
        vip: where to.
        port: where to.
        count: how many.
        sources: the client's addresses, in turns; none lets the kernel choose.
    """

    def __init__(
        self, lab: Lab, vip: str, port: int, count: int, sources: Sequence[str] = ()
    ) -> None:
        self._open: list[socket.socket] = []
        self.owners: list[str] = []
        family = socket.AF_INET6 if ":" in vip else socket.AF_INET
        with lab.entered("client"):
            for number in range(count):
                connection = socket.socket(family, socket.SOCK_STREAM)
                connection.settimeout(10)
                if sources:
                    connection.bind((sources[number % len(sources)], 0))
                self._open.append(connection)
        for connection in self._open:
            connection.connect((vip, port))
        self.owners = [self._ask(connection) for connection in self._open]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self._open:
            connection.close()

    @property
    def clients(self) -> list[tuple[str, int]]:
        """The client's address and port of each."""
        return [connection.getsockname()[:2] for connection in self._open]

    @property
    def by_server(self) -> Counter[str]:
        """How many each server has."""
        return Counter(self.owners)

    def wrong(self) -> list[str]:
        """What became of connections that broke or changed server, a line each."""
        answers = [self._ask(connection) for connection in self._open]
        return [
            f"{place}: {owner}, now {answer}"
            for place, (owner, answer) in enumerate(zip(self.owners, answers, strict=True))
            if answer != owner
        ]

    def drop(self, server: str) -> None:
        """Close and forget the connections of a server."""
        kept = []
        for connection, owner in zip(self._open, self.owners, strict=True):
            if owner == server:
                connection.close()
            else:
                kept.append(connection)
        self._open = kept
        self.owners = [owner for owner in self.owners if owner != server]

    @staticmethod
    def _ask(connection: socket.socket) -> str:
        try:
            connection.sendall(b"who are?")
            return connection.recv(_WORD, socket.MSG_WAITALL).decode().strip() or "ended"
        except OSError as error:
            return type(error).__name__


@contextlib.contextmanager
def talking(open_: Sequence[Connections]) -> Iterator[None]:
    """Connections exchange data meanwhile, each about once a second, and none goes wrong."""
    ended = threading.Event()
    found: list[str] = []

    def talk() -> None:
        while not ended.is_set():
            for each in open_:
                found.extend(each.wrong())
            ended.wait(0.5)

    thread = threading.Thread(target=talk)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(60)
    assert not found
