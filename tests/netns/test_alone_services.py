"""Without IPVS in the kernel: IPv6, the sorry server, a director that is a real server itself."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest
from netlab import Lab

from lbdr.control.protocol import ReloadRequest, WeightRequest
from tests.alone import HASHED, alone_lab, configure, service, serving
from tests.kernel.daemons import VIP, VIP6, Daemon, soon
from tests.kernel.open_connections import Connections, answering

SIX = {**HASHED, "address": VIP6, "real_servers": ["six1", "six2"]}
SORRY = {**HASHED, "ports": [8080], "sorry_server": "web3"}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with alone_lab() as built, answering(built, ["web1", "web2"], VIP6, ports=[8443]):
        yield built


@pytest.fixture(scope="module")
def daemon(lab: Lab) -> Iterator[Daemon]:
    with serving(lab, {"WEB": HASHED, "SIX": {**SIX, "ports": [8443]}, "SORRY": SORRY}) as started:
        yield started


def test_six(lab: Lab, daemon: Daemon) -> None:
    before = service(daemon, "SIX").fastpath.packets
    with Connections(lab, VIP6, 8443, 40) as open_:
        assert set(open_.by_server) == {"web1", "web2"}
        assert not open_.wrong()
    assert service(daemon, "SIX").fastpath.packets - before >= 40 * 4


def test_the_sorry_server_stands_in(lab: Lab, daemon: Daemon) -> None:
    for name in ("web1", "web2"):
        daemon.ask(WeightRequest(virtual_service="SORRY", real_server=name, weight=0))

    def served() -> set[str]:
        with Connections(lab, VIP, 8080, 10) as open_:
            return set(open_.owners)

    soon(lambda: served() == {"web3"}, "the sorry server serves")
    for name in ("web1", "web2"):
        daemon.ask(WeightRequest(virtual_service="SORRY", real_server=name))
    soon(lambda: served() == {"web1", "web2"}, "they serve again")


def test_a_director_that_is_a_real_server(lab: Lab, daemon: Daemon) -> None:
    """Its own connections reach the local stack, and only those."""
    text = daemon.paths.config.read_text()
    own = text.replace("10.77.0.22", "10.77.0.1")  # web2
    assert own != text
    with contextlib.ExitStack() as stack:
        with lab.entered("director"):
            here = stack.enter_context(socket.create_server(("", 80)))
        daemon.paths.config.write_text(own)
        daemon.ask(ReloadRequest())
        with lab.entered("client"):
            for _ in range(20):
                stack.enter_context(socket.create_connection((VIP, 80), timeout=5))
        here.setblocking(False)
        accepted = []
        with contextlib.suppress(BlockingIOError):
            while True:
                accepted.append(stack.enter_context(here.accept()[0]))
        assert 0 < len(accepted) < 20
        assert service(daemon).fastpath.not_forwarded["local"] > 0
    configure(daemon, {"WEB": HASHED, "SIX": {**SIX, "ports": [8443]}, "SORRY": SORRY})
    daemon.ask(ReloadRequest())
