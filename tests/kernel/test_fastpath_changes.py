"""1,000 open connections while servers and schedulers change: only a failed server's are lost."""

from __future__ import annotations

import contextlib
import itertools
import socket
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import pytest
from netlab import HOSTS, INTERFACE, Lab, wait_for

from lbdr.control.protocol import ReloadRequest
from lbdr.datapath import ipvs_connections
from tests.kernel.daemons import VIP, WEB, Daemon, soon
from tests.kernel.open_connections import Connections, answering
from tests.kernel.test_fastpath import forwards, passing

HASHED = {**WEB, "scheduler": "mh", "scheduler_flags": ["mh-port"]}
LEAST = {**WEB, "ports": [8080], "scheduler": "wlc"}
STICKY = {**LEAST, "ports": [8081], "persistence": "10s"}
SOURCE = {**HASHED, "ports": [8082]}
PORTS = [80, 8080, 8081, 8082]
CLIENTS = [f"10.77.0.{last}" for last in range(101, 111)]
UNHEARD = "10.77.0.120"
FORGETS = 15  # seconds after which IPVS forgets a connection
_COMPILING = 60.0  # seconds in a guest
_FOLLOWED = 15.0
_SENT_AGAIN = 20


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with (
        Lab({**HOSTS, "web3": 23}) as built,
        passing(built),
        answering(built, ["web1", "web2", "web3"], VIP, ports=PORTS),
    ):
        # what XDP sends has no checksum that somebody else would still fill in
        built.run("client", ["ethtool", "-K", INTERFACE, "tx", "off"])
        commands = [f"address add {one}/24 dev {INTERFACE}" for one in (*CLIENTS, UNHEARD)]
        built.ip("client", *commands)
        yield built


@pytest.fixture(scope="module")
def daemon(lab: Lab) -> Iterator[Daemon]:
    with Daemon(lab) as running:
        configure(running, ["web1", "web2"])
        running.start()
        soon(lambda: forwards(running), "it forwards", _COMPILING)
        yield running


def configure(daemon: Daemon, servers: Sequence[Any], **others: Any) -> None:
    """Write a file in which all services have these servers."""
    services = {"WEB": HASHED, "LEAST": LEAST, "STICKY": STICKY, "SOURCE": SOURCE, **others}
    daemon.configure(
        {name: {**one, "real_servers": list(servers)} for name, one in services.items()},
        fastpath="auto",
        timeouts={"tcp": f"{FORGETS}s"},
    )


class Unheard:
    """Clients to whom no answer comes, so that their SYNs are sent again and again.

    Args:
        lab: of the client.
        count: for each port.
    """

    def __init__(self, lab: Lab, count: int) -> None:
        self._lab = lab
        self._servers("add")
        self._open: list[socket.socket] = []
        with lab.entered("client"):
            for port, _ in itertools.product(PORTS, range(count)):
                connection = socket.socket()
                connection.bind((UNHEARD, 0))
                connection.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    connection.connect((VIP, port))
                self._open.append(connection)

    def _servers(self, action: str) -> None:
        for server in ("web1", "web2", "web3"):
            self._lab.ip(server, f"route {action} blackhole {UNHEARD}/32")

    def wrong(self) -> list[str]:
        """Let them be heard; what their connections say that should not be, once they are open."""
        self._servers("del")
        found = []
        for connection in self._open:
            with connection:
                connection.setblocking(True)
                connection.settimeout(_SENT_AGAIN)
                try:
                    wait_for(partial(_is_open, connection), "a SYN sent again", timeout=_SENT_AGAIN)
                    connection.sendall(b"who are?")
                    if not connection.recv(8, socket.MSG_WAITALL).startswith(b"web"):
                        found.append("ended")
                except OSError as error:
                    found.append(repr(error))
        return found


def _is_open(connection: socket.socket) -> bool:
    error = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if error:
        raise OSError(error, "it did not open")
    try:
        connection.getpeername()
    except OSError:
        return False
    return True


def change(lab: Lab, daemon: Daemon, open_: Sequence[Connections], servers: Sequence[Any]) -> None:
    """Have other servers, while SYNs are sent again and ports are used again."""
    unheard = Unheard(lab, 5)
    configure(daemon, servers)
    mark = daemon.mark()
    daemon.ask(ReloadRequest())
    for each in open_:
        each.use_again(10)
    soon(partial(daemon.lines, "table of", ":80 ", since=mark), "the flip", _FOLLOWED)
    for each in open_:
        assert not each.wrong()
    assert not unheard.wrong()
    for each in open_:
        each.use_again(20)
        assert not each.wrong()


def forgotten(lab: Lab, open_: Sequence[Connections]) -> bool:
    """Whether IPVS knows none of some connections."""
    with lab.entered("director"):
        table = ipvs_connections.parse(ipvs_connections.read())
    known = {(str(one.client), one.client_port, one.virtual_port) for one in table.connections}
    return not any(each.names & known for each in open_)


def test_only_a_failed_servers_connections_are_lost(lab: Lab, daemon: Daemon) -> None:
    counts = {80: 600, 8080: 200, 8081: 200}
    with contextlib.ExitStack() as stack:
        busy, idle = (
            [
                stack.enter_context(Connections(lab, VIP, port, count * part // 10, CLIENTS))
                for port, count in counts.items()
            ]
            for part in (6, 4)
        )
        assert sum(len(each.owners) for each in (*busy, *idle)) == 1000
        assert all(set(each.by_server) == {"web1", "web2"} for each in (*busy, *idle))
        change(lab, daemon, busy, ["web1", "web2", "web3"])
        drained = [{"server": "web1", "weight": 0}, "web2", "web3"]
        change(lab, daemon, busy, drained)
        change(lab, daemon, busy, ["web1", {"server": "web2", "weight": 3}, "web3"])
        assert all("web3" in each.by_server for each in busy)
        soon(lambda: forgotten(lab, idle), "IPVS has forgotten the idle ones", 4 * FORGETS)
        for each in idle:
            assert not each.wrong()
        # web2 fails
        configure(daemon, ["web1", "web3"])
        mark = daemon.mark()
        daemon.ask(ReloadRequest())
        soon(partial(daemon.lines, "table of", ":80 ", since=mark), "the flip", _FOLLOWED)
        for each in (*busy, *idle):
            lost = each.wrong()
            assert len(lost) == each.by_server["web2"] > 0
            assert all("web2" in line for line in lost)
            each.drop("web2")
        change(lab, daemon, busy, ["web1", "web2", "web3"])
        for each in (*busy, *idle):
            assert not each.wrong()


@pytest.mark.parametrize(
    "becomes",
    [
        {"scheduler": "wlc", "scheduler_flags": []},
        {"scheduler": "mh", "scheduler_flags": []},
        {"scheduler": "wlc", "scheduler_flags": [], "persistence": "10s"},
    ],
    ids=["wlc", "mh without ports", "persistence"],
)
def test_another_scheduler_moves_nothing(lab: Lab, daemon: Daemon, becomes: Any) -> None:
    """There and back: what is open stays, and what is new is placed as the new one has it."""
    servers = ["web1", "web2", "web3"]
    other = {**SOURCE, **becomes}
    with contextlib.ExitStack() as stack:
        open_ = [stack.enter_context(Connections(lab, VIP, 8082, 60, CLIENTS))]
        for service, said in ((other, "are IPVS's until"), (SOURCE, "table of")):
            configure(daemon, servers, SOURCE=service)
            mark = daemon.mark()
            daemon.ask(ReloadRequest())
            soon(partial(daemon.lines, said, ":8082", since=mark), said, _FOLLOWED)
            assert not any(each.wrong() for each in open_)
            open_.append(stack.enter_context(Connections(lab, VIP, 8082, 60, CLIENTS)))
            assert len(open_[-1].by_server) > 1
            assert not any(each.wrong() for each in open_)


def test_from_another_scheduler_to_mh(lab: Lab, daemon: Daemon) -> None:
    """IPVS's connections are recorded before the table has them, also those that it forgot."""
    hashed = {**HASHED, "ports": [8080]}
    servers = ["web1", "web2", "web3"]
    with (
        Connections(lab, VIP, 8080, 60, CLIENTS) as idle,
        Connections(lab, VIP, 8080, 60, CLIENTS) as busy,
    ):
        soon(lambda: forgotten(lab, [idle]), "IPVS has forgotten the idle ones", 4 * FORGETS)
        assert not idle.wrong()
        assert not busy.wrong()
        configure(daemon, servers, LEAST=hashed)
        mark = daemon.mark()
        daemon.ask(ReloadRequest())
        soon(partial(daemon.lines, "recorded", "connections", since=mark), "mh", _FOLLOWED)
        with Connections(lab, VIP, 8080, 30, CLIENTS) as new:
            for each in (idle, busy, new):
                assert not each.wrong()
