"""The fast path of a real daemon beside IPVS: both choose alike, and it comes and goes."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path

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
from tests.kernel.daemons import LBDR, VIP, WEB, Daemon, soon
from tests.kernel.open_connections import Connections, answering, talking

SERVERS = ["web1", "web2", "web3"]
HASHED = {**WEB, "scheduler": "mh", "scheduler_flags": ["mh-port"]}
LEAST = {**WEB, "ports": [8080], "scheduler": "wlc"}
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
        answering(built, SERVERS, VIP, ports=[80, 8080]),
    ):
        # what XDP sends has no checksum that somebody else would still fill in
        built.run("client", ["ethtool", "-K", INTERFACE, "tx", "off"])
        yield built


@pytest.fixture(scope="module")
def daemon(lab: Lab) -> Iterator[Daemon]:
    with Daemon(lab) as running:
        running.configure({"WEB": HASHED, "LEAST": LEAST}, fastpath="auto")
        running.start()
        soon(lambda: forwards(running), "it forwards", _COMPILING)
        yield running


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


def test_connections_of_mh_go_without_ipvs(lab: Lab, daemon: Daemon) -> None:
    before = packets(daemon, "WEB")
    with Connections(lab, VIP, 80, 40) as open_:
        assert set(open_.by_server) == {"web1", "web2"}
        assert not open_.wrong()
    assert packets(daemon, "WEB") - before >= 40 * 6
    assert not remembered(lab, 80)


def test_flows_of_other_schedulers_are_learned(lab: Lab, daemon: Daemon) -> None:
    before = packets(daemon, "LEAST")
    with Connections(lab, VIP, 8080, 40) as open_:
        assert open_.by_server == {"web1": 20, "web2": 20}
        assert len(remembered(lab, 8080)) == 40
        for _ in range(3):
            assert not open_.wrong()
    assert packets(daemon, "LEAST") - before >= 40 * 4


@pytest.fixture
def open_connections(lab: Lab, daemon: Daemon) -> Iterator[list[Connections]]:
    """100 of each service; whatever a test does, none of them breaks or changes server."""
    assert forwards(daemon)
    with Connections(lab, VIP, 80, 100) as hashed, Connections(lab, VIP, 8080, 100) as least:
        yield [hashed, least]
        assert not hashed.wrong()
        assert not least.wrong()


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
    services = {"WEB": HASHED, "LEAST": LEAST}
    for servers in (["web1", "web2", "web3"], WEB["real_servers"]):
        daemon.configure(
            {name: {**one, "real_servers": servers} for name, one in services.items()},
            fastpath="auto",
        )
        lab.run("director", [str(LBDR), "apply", *daemon.places])
        with DirectorMaps.open(link_pin(lab, daemon).parent) as maps:
            assert len(list(maps["places"].items())) == 2 * len(servers)
        assert not wrong(open_connections)
    daemon.start()
    soon(lambda: forwards(daemon), "adopted", _FOLLOWED)


def test_a_person_sees_what_forwards(lab: Lab, daemon: Daemon) -> None:
    assert forwards(daemon)
    shown = lab.run("director", [str(LBDR), "status", *daemon.places]).stdout
    assert f"fast path: {INTERFACE} (native)" in shown.splitlines()
    off = lab.run("director", [str(LBDR), "fastpath", "off", "LEAST", *daemon.places]).stdout
    assert off.splitlines() == [
        "forwarded by XDP or tc: WEB",
        "by IPVS alone: LEAST: left to IPVS by `lbdr fastpath off`",
    ]
    shown = lab.run("director", [str(LBDR), "status", *daemon.places]).stdout
    assert "LEAST by IPVS alone: left to IPVS by `lbdr fastpath off`" in shown.splitlines()
    on = lab.run("director", [str(LBDR), "fastpath", "on", *daemon.places]).stdout
    assert on.splitlines() == ["forwarded by XDP or tc: LEAST, WEB"]


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
        services = {"WEB": HASHED, "LEAST": LEAST}
        daemon.configure(
            {name: {**one, "real_servers": servers} for name, one in services.items()},
            fastpath="auto",
        )
        mark = daemon.mark()
        daemon.ask(ReloadRequest())
        assert not wrong(open_connections)
        soon(partial(daemon.lines, "table of", ":80 ", since=mark), "the flip", _FOLLOWED)
        assert not wrong(open_connections)


def switch(daemon: Daemon, *, on: bool, service: str | None = None) -> FastPathResult:
    request = FastPathRequest(on=on, virtual_service=service)
    return FastPathResult.model_validate(daemon.ask(request))


@pytest.mark.parametrize("name", ["WEB", None], ids=["one service", "all"])
def test_the_fast_path_is_switched_off_and_on(
    lab: Lab, daemon: Daemon, open_connections: list[Connections], name: str | None
) -> None:
    """IPVS is given what it would place elsewhere, and gives it back."""
    more = {**HASHED, "real_servers": SERVERS}
    daemon.configure({"WEB": more, "LEAST": LEAST}, fastpath="auto")
    mark = daemon.mark()
    daemon.ask(ReloadRequest())
    soon(partial(daemon.lines, "table of", ":80 ", since=mark), "the flip", _FOLLOWED)
    with Connections(lab, VIP, 80, 60) as later:
        assert set(later.by_server) == set(SERVERS)
        with talking([*open_connections, later]):
            off = switch(daemon, on=False, service=name)
        assert off.handed_over > 0
        assert "WEB" not in off.forwards
        forwarded = packets(daemon, "WEB")
        assert not wrong([*open_connections, later])
        assert packets(daemon, "WEB") == forwarded
        assert len(remembered(lab, 80)) >= 60
        assert "WEB" in switch(daemon, on=True, service=name).forwards
        assert not wrong([*open_connections, later])
        assert packets(daemon, "WEB") > forwarded
    daemon.configure({"WEB": HASHED, "LEAST": LEAST}, fastpath="auto")
    daemon.ask(ReloadRequest())


def test_a_server_that_fails_takes_only_its_own(
    daemon: Daemon, open_connections: list[Connections]
) -> None:
    """Its connections end at once, and those of the others go on."""
    daemon.configure(
        {
            name: {**one, "real_servers": ["web2"]}
            for name, one in (("WEB", HASHED), ("LEAST", LEAST))
        },
        fastpath="auto",
    )
    mark = daemon.mark()
    daemon.ask(ReloadRequest())
    soon(partial(daemon.lines, "table of", ":80 ", since=mark), "the flip", 1.0)
    for each in open_connections:
        broken = each.wrong()
        assert len(broken) == each.by_server["web1"]
        assert all("web1" in line for line in broken)
        each.drop("web1")
    daemon.configure({"WEB": HASHED, "LEAST": LEAST}, fastpath="auto")
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
