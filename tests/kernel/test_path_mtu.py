"""Path MTU discovery through a daemon's director: the fast path beside IPVS, and IPVS alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from netlab import Lab

from lbdr.control.protocol import ReloadRequest
from tests import path_mtu
from tests.kernel.daemons import VIP, VIP6, WEB, Daemon, soon
from tests.kernel.test_fastpath import forwards, packets, passing
from tests.path_mtu import SIZE, SMALL

SERVERS = ("web1", "web2")
HASHED = {**WEB, "scheduler": "mh", "scheduler_flags": ["mh-port"]}
LEAST = {**WEB, "ports": [8080], "scheduler": "wlc"}
SIX = {"address": VIP6, "real_servers": ["six1", "six2"]}
SERVICES: dict[str, Any] = {
    "WEB": HASHED,
    "LEAST": LEAST,
    "WEB6": {**HASHED, **SIX},
    "LEAST6": {**LEAST, **SIX},
}


class Case(NamedTuple):
    """A virtual service of the configuration."""

    name: str
    vip: str
    port: int
    version: int


CASES = pytest.mark.parametrize(
    "case",
    [
        Case("WEB", VIP, 80, 4),
        Case("LEAST", VIP, 8080, 4),
        Case("WEB6", VIP6, 80, 6),
        Case("LEAST6", VIP6, 8080, 6),
    ],
    ids=["mh-IPv4", "wlc-IPv4", "mh-IPv6", "wlc-IPv6"],
)
_COMPILING = 60.0  # seconds in a guest


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(path_mtu.all_hosts()) as built, passing(built):
        path_mtu.build(built, [VIP, VIP6])
        with (
            path_mtu.serving(built, [VIP, VIP6], 80),
            path_mtu.serving(built, [VIP, VIP6], 8080),
        ):
            yield built


@pytest.fixture(scope="module")
def daemon(lab: Lab) -> Iterator[Daemon]:
    with Daemon(lab) as running:
        running.configure(SERVICES, fastpath="auto")
        running.start()
        soon(lambda: forwards(running), "it forwards", _COMPILING)
        yield running


@pytest.fixture(scope="module", params=["auto", "off"], ids=["fast path", "IPVS"])
def fastpath(request: pytest.FixtureRequest, daemon: Daemon) -> str:
    """Whether the fast path forwards beside IPVS."""
    wanted = str(request.param)
    if wanted == "off":
        daemon.configure(SERVICES, fastpath="off")
        daemon.ask(ReloadRequest())
    soon(lambda: forwards(daemon) == (wanted == "auto"), f"fastpath: {wanted}")
    return wanted


@CASES
def test_transfers_do_not_stall(lab: Lab, daemon: Daemon, fastpath: str, case: Case) -> None:
    """The router's error about a server's packet reaches that very server through the VIP."""
    path_mtu.forget(lab, case.version)
    seen: set[str] = set()
    while seen != set(SERVERS):
        moved = path_mtu.download(lab, case.vip, case.port)
        assert moved.octets == SIZE
        if moved.server in seen:
            continue
        seen.add(moved.server)
        assert path_mtu.known_mtu(lab, moved.server, case.version) == SMALL
        others = set(SERVERS) - seen
        assert not any(path_mtu.known_mtu(lab, other, case.version) for other in others)
    # last: a client that knows the path MTU has servers send small segments
    before = packets(daemon, case.name)
    assert path_mtu.upload(lab, case.vip, case.port).octets == SIZE
    assert (packets(daemon, case.name) - before > SIZE / 1500) == (fastpath == "auto")
