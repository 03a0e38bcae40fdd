"""The fast path of a real daemon beside IPVS: both choose alike, and it comes and goes."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Sequence
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from netlab import HOSTS, INTERFACE, Lab

from lbdr.control.protocol import FastPathRequest, FastPathResult, ReloadRequest, WithdrawRequest
from lbdr.datapath import bpf_netlink, ipvs_connections
from lbdr.datapath.bpf_links import Link
from lbdr.datapath.bpf_programs import Program
from lbdr.datapath.bpf_wire import AttachPoint, ProgramKind, Verdict, XdpFlag
from lbdr.datapath.ipvs_connections import Connection
from lbdr.datapath.xdp_maps import DirectorMaps
from lbdr.status import VirtualServiceStatus
from tests.bpf_programs import returns
from tests.kernel.daemons import LBDR, VIP, VIP6, WEB, Daemon, soon
from tests.kernel.open_connections import Connections, answering, talking

SERVERS = ["web1", "web2", "web3"]
HASHED = {**WEB, "scheduler": "mh", "scheduler_flags": ["mh-port"]}
LEAST = {**WEB, "ports": [8080], "scheduler": "wlc"}
STICKY = {**LEAST, "ports": [8081], "persistence": "1m"}
PORTS = [80, 8080, 8081]
CLIENTS = ["10.77.0.101", "10.77.0.102", "10.77.0.103", "10.77.0.104"]
CLIENTS6 = ["fd77::101", "fd77::102", "fd77::103", "fd77::104"]
_COMPILING = 60.0  # seconds in a guest
_FOLLOWED = 10.0


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
        Lab({**HOSTS, "web3": 23}) as built,
        passing(built),
        answering(built, SERVERS, VIP, VIP6, ports=PORTS),
    ):
        built.ip(
            "client",
            *(f"address add {one}/24 dev {INTERFACE}" for one in CLIENTS),
            *(f"address add {one}/64 dev {INTERFACE} nodad" for one in CLIENTS6),
        )
        # what XDP sends has no checksum that somebody else would still fill in
        built.run("client", ["ethtool", "-K", INTERFACE, "tx", "off"])
        yield built


@pytest.fixture(scope="module")
def daemon(lab: Lab) -> Iterator[Daemon]:
    with Daemon(lab) as running:
        configure(running)
        running.start()
        soon(lambda: forwards(running), "it forwards", _COMPILING)
        yield running


def services(real_servers: Sequence[Any]) -> dict[str, Any]:
    """One of each kind and IP version, with these real servers."""
    found = {}
    for name, one in (("WEB", HASHED), ("LEAST", LEAST), ("STICKY", STICKY)):
        found[name] = {**one, "real_servers": real_servers}
        six = [_of_version_6(server) for server in real_servers]
        found[f"{name}6"] = {**one, "address": VIP6, "real_servers": six}
    return found


def _of_version_6(server: Any) -> Any:
    if isinstance(server, str):
        return server.replace("web", "six")
    return {**server, "server": _of_version_6(server["server"])}


def configure(daemon: Daemon, real_servers: Sequence[Any] = ("web1", "web2")) -> None:
    """Write a file in which all services have these real servers."""
    daemon.configure(services(list(real_servers)), fastpath="auto")


def forwards(daemon: Daemon) -> bool:
    return daemon.status().fastpath.state == "forwards"


def service(daemon: Daemon, name: str) -> VirtualServiceStatus:
    return next(one for one in daemon.status().virtual_services if one.name == name)


def packets(daemon: Daemon, name: str) -> int:
    """Packets that the fast path forwarded."""
    return service(daemon, name).fastpath.packets


def remembered(lab: Lab, port: int) -> list[Connection]:
    """What IPVS remembers of a service."""
    with lab.entered("director"):
        table = ipvs_connections.parse(ipvs_connections.read())
    return [one for one in table.connections if one.virtual_port == port]


def xdp(lab: Lab) -> set[int]:
    """The XDP programs of the director's interface."""
    with lab.entered("director"):
        index = socket.if_nametoindex(INTERFACE)
        return {each.program_id for each in bpf_netlink.attached(index)}


def link_pin(lab: Lab, daemon: Daemon) -> Path:
    with lab.entered("director"):
        index = socket.if_nametoindex(INTERFACE)
    (pin,) = daemon.paths.bpf.glob(f"*/v*/xdp-{index}")
    return pin


VERSIONS = pytest.mark.parametrize(("vip", "suffix"), [(VIP, ""), (VIP6, "6")], ids=["v4", "v6"])


@VERSIONS
def test_connections_of_mh_go_without_ipvs(lab: Lab, daemon: Daemon, vip: str, suffix: str) -> None:
    before = packets(daemon, f"WEB{suffix}")
    with Connections(lab, vip, 80, 40) as open_:
        assert set(open_.by_server) == {"web1", "web2"}
        assert not open_.wrong()
    assert packets(daemon, f"WEB{suffix}") - before >= 40 * 6
    assert not remembered(lab, 80)


@VERSIONS
def test_flows_of_other_schedulers_are_learned(
    lab: Lab, daemon: Daemon, vip: str, suffix: str
) -> None:
    before = packets(daemon, f"LEAST{suffix}")
    with Connections(lab, vip, 8080, 40) as open_:
        assert open_.by_server == {"web1": 20, "web2": 20}
        virtual = ip_address(vip)
        assert sum(one.virtual == virtual for one in remembered(lab, 8080)) == 40
        for _ in range(3):
            assert not open_.wrong()
    assert packets(daemon, f"LEAST{suffix}") - before >= 40 * 4


@VERSIONS
def test_a_clients_flows_are_learned_from_its_first_ones_server(
    lab: Lab, daemon: Daemon, vip: str, suffix: str
) -> None:
    before = packets(daemon, f"STICKY{suffix}")
    clients = CLIENTS6 if suffix else CLIENTS
    with Connections(lab, vip, 8081, 40, clients) as open_:
        assert set(open_.by_server) == {"web1", "web2"}
        for place in range(len(clients)):
            assert len(set(open_.owners[place :: len(clients)])) == 1
        for _ in range(3):
            assert not open_.wrong()
    assert packets(daemon, f"STICKY{suffix}") - before >= 40 * 4


@pytest.fixture
def open_connections(lab: Lab, daemon: Daemon) -> Iterator[list[Connections]]:
    """200 of each IP version; whatever a test does, none of them breaks or changes server."""
    assert forwards(daemon)
    with contextlib.ExitStack() as stack:
        opened = [
            stack.enter_context(Connections(lab, vip, port, count, clients))
            for vip, clients in ((VIP, CLIENTS), (VIP6, CLIENTS6))
            for port, count in ((80, 80), (8080, 80), (8081, 40))
        ]
        yield opened
        assert not wrong(opened)


def wrong(open_: list[Connections]) -> list[str]:
    return [line for each in open_ for line in each.wrong()]


def test_xdp_that_is_detached_by_hand(
    lab: Lab, daemon: Daemon, open_connections: list[Connections]
) -> None:
    """The same program at tc goes on at once, and XDP is attached again."""
    before = packets(daemon, "WEB")
    with Link.open(link_pin(lab, daemon)) as link:
        link.detach()
    assert not xdp(lab)
    assert not wrong(open_connections)
    assert packets(daemon, "WEB") - before >= 100
    assert not remembered(lab, 80)
    soon(lambda: xdp(lab), "XDP is back", _FOLLOWED)


def test_a_daemon_that_is_killed(
    lab: Lab, daemon: Daemon, open_connections: list[Connections]
) -> None:
    """The datapath goes on, and the next daemon finds it and changes nothing."""
    programs = xdp(lab)
    daemon.kill()
    assert xdp(lab) == programs
    assert not wrong(open_connections)
    daemon.start()
    soon(lambda: forwards(daemon), "adopted", _FOLLOWED)
    assert daemon.lines("fast path: adopted")
    assert xdp(lab) == programs


def test_apply_is_followed_where_no_daemon_runs(
    lab: Lab, daemon: Daemon, open_connections: list[Connections]
) -> None:
    """What a daemon left attached would else go on by an IPVS that is no more."""
    daemon.kill()
    for servers in (["web1", "web2", "web3"], WEB["real_servers"]):
        configure(daemon, servers)
        lab.run("director", [str(LBDR), "apply", *daemon.places])
        with DirectorMaps.open(link_pin(lab, daemon).parent) as maps:
            assert len(list(maps["places"].items())) == len(services(servers)) * len(servers)
        assert not wrong(open_connections)
    daemon.start()
    soon(lambda: forwards(daemon), "adopted", _FOLLOWED)


def test_a_person_sees_what_forwards(lab: Lab, daemon: Daemon) -> None:
    assert forwards(daemon)
    shown = lab.run("director", [str(LBDR), "status", *daemon.places]).stdout
    assert f"fast path: {INTERFACE} (native)" in shown.splitlines()
    off = lab.run("director", [str(LBDR), "fastpath", "off", "LEAST", *daemon.places]).stdout
    assert off.splitlines() == [
        "forwarded by XDP or tc: LEAST6, STICKY, STICKY6, WEB, WEB6",
        "by IPVS alone: LEAST: left to IPVS by `lbdr fastpath off`",
    ]
    shown = lab.run("director", [str(LBDR), "status", *daemon.places]).stdout
    assert "LEAST by IPVS alone: left to IPVS by `lbdr fastpath off`" in shown.splitlines()
    on = lab.run("director", [str(LBDR), "fastpath", "on", *daemon.places]).stdout
    assert on.splitlines() == ["forwarded by XDP or tc: LEAST, LEAST6, STICKY, STICKY6, WEB, WEB6"]


def test_programs_of_another_version_are_exchanged_in_place(
    lab: Lab, daemon: Daemon, open_connections: list[Connections]
) -> None:
    """The records and flows stay, and no packet goes without a program."""
    programs = xdp(lab)
    daemon.kill()
    with DirectorMaps.open(link_pin(lab, daemon).parent) as maps:
        maps.set_version(1)
    daemon.start()
    soon(lambda: forwards(daemon), "loaded", _COMPILING)
    assert daemon.lines("replaced the XDP program")
    assert xdp(lab) != programs
    assert not wrong(open_connections)


def test_servers_that_come_drain_and_go(
    daemon: Daemon, open_connections: list[Connections]
) -> None:
    """None of the open connections is touched, also those of a server that drains."""
    trio = [*WEB["real_servers"], "web3"]
    drained = [{"server": "web1", "weight": 0}, "web2", "web3"]
    for servers in (trio, drained, trio, [*WEB["real_servers"]]):
        configure(daemon, servers)
        mark = daemon.mark()
        daemon.ask(ReloadRequest())
        assert not wrong(open_connections)
        soon(partial(flipped, daemon, mark), "the flip", _FOLLOWED)
        assert not wrong(open_connections)


def flipped(daemon: Daemon, mark: int) -> bool:
    """Whether the tables of both IP versions changed."""
    return len(daemon.lines("table of", ":80 ", since=mark)) == 2


def switch(daemon: Daemon, *, on: bool, service: str | None = None) -> FastPathResult:
    request = FastPathRequest(on=on, virtual_service=service)
    return FastPathResult.model_validate(daemon.ask(request))


@pytest.mark.parametrize("name", ["WEB", None], ids=["one service", "all"])
def test_the_fast_path_is_switched_off_and_on(
    lab: Lab, daemon: Daemon, open_connections: list[Connections], name: str | None
) -> None:
    """IPVS is given what it would place elsewhere, and gives it back."""
    configure(daemon, SERVERS)
    mark = daemon.mark()
    daemon.ask(ReloadRequest())
    soon(partial(flipped, daemon, mark), "the flip", _FOLLOWED)
    with Connections(lab, VIP, 80, 60) as later, Connections(lab, VIP6, 80, 60) as later6:
        assert set(later.by_server) == set(later6.by_server) == set(SERVERS)
        open_ = [*open_connections, later, later6]
        with talking(open_):
            off = switch(daemon, on=False, service=name)
        assert off.handed_over > 0
        assert "WEB" not in off.forwards
        forwarded = packets(daemon, "WEB")
        assert not wrong(open_)
        assert packets(daemon, "WEB") == forwarded
        assert len(remembered(lab, 80)) >= 60
        assert "WEB" in switch(daemon, on=True, service=name).forwards
        assert not wrong(open_)
        assert packets(daemon, "WEB") > forwarded
    configure(daemon)
    daemon.ask(ReloadRequest())


def test_a_server_that_fails_takes_only_its_own(
    daemon: Daemon, open_connections: list[Connections]
) -> None:
    """Its connections end at once, and those of the others go on."""
    configure(daemon, ["web2"])
    mark = daemon.mark()
    daemon.ask(ReloadRequest())
    soon(partial(flipped, daemon, mark), "the flip", 1.0)
    for each in open_connections:
        broken = each.wrong()
        assert len(broken) == each.by_server["web1"]
        assert all("web1" in line for line in broken)
        each.drop("web1")
    configure(daemon)
    daemon.ask(ReloadRequest())


def test_a_withdrawal_leaves_nothing_attached(lab: Lab, daemon: Daemon) -> None:
    """The last one: the daemon ends with it."""
    directory = link_pin(lab, daemon).parent
    daemon.ask(WithdrawRequest())
    daemon.wait()
    assert not xdp(lab)
    for direction in ("ingress", "egress"):
        command = ["tc", "filter", "show", "dev", INTERFACE, direction]
        assert not lab.run("director", command).stdout
    assert not directory.exists()
