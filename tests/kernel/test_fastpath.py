"""The fast path of a real daemon beside IPVS: both choose alike, and it comes and goes."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest
from netlab import INTERFACE, Lab

from lbdr.datapath import ipvs_connections
from lbdr.datapath.bpf_links import Link
from lbdr.datapath.bpf_programs import Program
from lbdr.datapath.bpf_wire import AttachPoint, ProgramKind, Verdict, XdpFlag
from lbdr.datapath.ipvs_connections import Connection
from lbdr.status import VirtualServiceStatus
from tests.bpf_programs import returns
from tests.kernel.daemon_traffic import real_servers, request
from tests.kernel.daemons import VIP, WEB, Daemon, soon

HASHED = {**WEB, "scheduler": "mh", "scheduler_flags": ["mh-port"]}
LEAST = {**WEB, "ports": [8080], "scheduler": "wlc"}
_COMPILING = 60.0  # seconds in a guest


@contextlib.contextmanager
def passing(lab: Lab) -> Iterator[None]:
    """The director's port takes frames that XDP sends: a veth wants a program there for that."""
    code = returns(Verdict.PASS)
    with (
        Program.load(code, ProgramKind.XDP, name="passes", attach=AttachPoint.XDP) as program,
        lab.entered_switch(),
        Link.create(program, socket.if_nametoindex("director"), flags=XdpFlag.NATIVE),
    ):
        yield


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with (
        Lab() as built,
        passing(built),
        real_servers(built, VIP),
        real_servers(built, VIP, port=8080),
    ):
        # what XDP sends has no checksum that somebody else would still fill in
        built.run("client", ["ethtool", "-K", INTERFACE, "tx", "off"])
        yield built


@pytest.fixture(scope="module")
def daemon(lab: Lab) -> Iterator[Daemon]:
    with Daemon(lab) as running:
        running.configure({"WEB": HASHED, "LEAST": LEAST}, fastpath="auto")
        running.start()
        soon(lambda: running.status().fastpath.state == "forwards", "it forwards", _COMPILING)
        yield running


def service(daemon: Daemon, name: str) -> VirtualServiceStatus:
    return next(one for one in daemon.status().virtual_services if one.name == name)


def connections(lab: Lab) -> list[Connection]:
    """What IPVS remembers."""
    with lab.entered("director"):
        return list(ipvs_connections.parse(ipvs_connections.read()).connections)


def test_connections_of_mh_go_without_ipvs(lab: Lab, daemon: Daemon) -> None:
    before = service(daemon, "WEB").fastpath.packets
    answers = [request(lab) for _ in range(40)]
    assert set(answers) == {"web1", "web2"}
    found = service(daemon, "WEB")
    assert found.fastpath.state == "forwards"
    assert found.fastpath.packets - before >= 40 * 4
    assert not connections(lab)
