"""Connections that stay open: who has each, and whether it is still who had it."""

from __future__ import annotations

import contextlib
import itertools
import resource
import selectors
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Self

from netlab import Lab

_FILES = 16384
_WORD = 8  # bytes of a question and of an answer


@contextlib.contextmanager
def answering(lab: Lab, hosts: Sequence[str], *vips: str, ports: Sequence[int]) -> Iterator[None]:
    """Hosts hold VIPs, answer no ARP for them, and answer each word of a client by their name."""
    ended = threading.Event()
    threads = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (_FILES, _FILES))  # both ends are this process's
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
        sources: the client's addresses, which take turns; its own one where there are none.
    """

    def __init__(
        self, lab: Lab, vip: str, port: int, count: int, sources: Sequence[str] = ()
    ) -> None:
        self._lab = lab
        self._to = (vip, port)
        self._open: list[socket.socket] = []
        self.owners: list[str] = []
        froms = itertools.cycle(sources or [""])
        with lab.entered("client"):
            self._open += [self._socket((next(froms), 0)) for _ in range(count)]
        for connection in self._open:
            connection.connect(self._to)
        self.owners = self._ask(self._open)

    def _socket(self, source: tuple[str, int]) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._to[0] else socket.AF_INET
        made = socket.socket(family, socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.settimeout(10)
        if any(source):
            made.bind(source)
        return made

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self._open:
            connection.close()

    @property
    def clients(self) -> list[tuple[str, int]]:
        """The address and port that each has here."""
        return [connection.getsockname()[:2] for connection in self._open]

    @property
    def by_server(self) -> Counter[str]:
        """How many each server has."""
        return Counter(self.owners)

    @property
    def names(self) -> set[tuple[str, int, int]]:
        """The client's address and port of each, and the virtual service's port."""
        return {(*connection.getsockname()[:2], self._to[1]) for connection in self._open}

    def wrong(self) -> list[str]:
        """What became of connections that broke or changed server, a line each."""
        answers = self._ask(self._open)
        return [
            f"{place}: {owner}, now {answer}"
            for place, (owner, answer) in enumerate(zip(self.owners, answers, strict=True))
            if answer != owner
        ]

    def use_again(self, count: int) -> None:
        """End the first ones by a reset, and open others from the same addresses and ports."""
        reset = struct.pack("ii", 1, 0)
        with self._lab.entered("client"):
            for place, connection in enumerate(self._open[:count]):
                source = connection.getsockname()[:2]
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
                connection.close()
                self._open[place] = self._socket(source)
                self._open[place].connect(self._to)
        self.owners[:count] = self._ask(self._open[:count])

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
    def _ask(connections: Sequence[socket.socket]) -> list[str]:
        """What each answers; all are asked before the first answer is waited for."""
        answers = []
        for connection in connections:
            with contextlib.suppress(OSError):  # said again where the answer is read
                connection.sendall(b"who are?")
        for connection in connections:
            try:
                word = connection.recv(_WORD, socket.MSG_WAITALL)
                answers.append(word.decode().strip() or "ended")
            except OSError as error:
                answers.append(type(error).__name__)
        return answers


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
