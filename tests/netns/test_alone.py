"""Without IPVS in the kernel: XDP forwards alone, and connections outlive whatever happens."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from netlab import INTERFACE, Lab

from lbdr import tracking
from lbdr.control.protocol import FastPathRequest, ReloadRequest, WeightRequest
from lbdr.datapath import bpf_netlink, tc
from lbdr.datapath import xdp_layout as layout
from lbdr.datapath.bpf_links import Link
from lbdr.datapath.xdp_maps import DirectorMaps
from lbdr.datapath.xdp_places import read_slots
from lbdr.maglev import MaglevServer, MaglevTable
from lbdr.model import Protocol
from lbdr.status import Status
from tests.alone import (
    FOLLOWED,
    HASHED,
    Knocking,
    alone_lab,
    configure,
    measuring,
    refused,
    service,
    serving,
)
from tests.kernel.daemons import LBDR, VIP, Daemon, soon
from tests.kernel.open_connections import Connections, talking

ADDRESS = {"web1": "10.77.0.21", "web2": "10.77.0.22", "web3": "10.77.0.23"}
DATAGRAMS = {**HASHED, "protocol": "udp", "ports": [53]}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with alone_lab() as built:
        yield built


@pytest.fixture(scope="module")
def running(lab: Lab) -> Iterator[Daemon]:
    with serving(lab, {"WEB": HASHED}) as started:
        yield started


@pytest.fixture
def daemon(running: Daemon) -> Iterator[Daemon]:
    """With WEB as at first."""
    yield running
    configure(running, {"WEB": HASHED})
    if running.process is None or running.process.poll() is not None:
        running.start()
    running.ask(WeightRequest(real_server="web1"))
    running.ask(ReloadRequest())
    settled(running)


def settled(daemon: Daemon) -> None:
    """Wait until the table of WEB is as wanted."""
    daemon.ask(FastPathRequest(on=True))  # it has looked then

    def waits() -> bool:
        with DirectorMaps.open(pins(daemon)) as maps:
            return any(word & layout.ANTICIPATE for word in slots(maps))

    soon(lambda: not waits(), "the table changed", FOLLOWED)


def pins(daemon: Daemon) -> Path:
    (directory,) = daemon.paths.bpf.glob("*/v*")
    return directory


def slots(maps: DirectorMaps) -> list[int]:
    """The words of WEB's table."""
    key = layout.key_of(ipaddress.IPv4Address(VIP), 80, Protocol.TCP.number)
    (index,) = layout.U32.unpack(maps["services4"].lookup(key) or b"")
    decision = maps.services[index * (layout.SERVICE.size // 8)]
    return list(read_slots(maps, (decision & 0xFFFFFFFF) // layout.SLOTS_IN_LINE))


def xdp(lab: Lab) -> set[int]:
    """The XDP programs of the director's interface."""
    with lab.entered("director"):
        index = socket.if_nametoindex(INTERFACE)
        return {each.program_id for each in bpf_netlink.attached(index)}


def link_pin(lab: Lab, daemon: Daemon) -> Path:
    with lab.entered("director"):
        return pins(daemon) / f"xdp-{socket.if_nametoindex(INTERFACE)}"


def test_each_client_goes_where_the_table_says(lab: Lab, daemon: Daemon) -> None:
    """The one that IPVS would have: the server that was added last is the first of its list."""
    table = MaglevTable(
        [MaglevServer(ipaddress.ip_address(ADDRESS[name]), 80, 1) for name in ("web2", "web1")]
    )
    before = service(daemon).fastpath.packets
    with Connections(lab, VIP, 80, 150) as open_:
        for (address, port), owner in zip(open_.clients, open_.owners, strict=True):
            place = table.choose(ipaddress.ip_address(address), port)
            assert place is not None
            assert str(table.servers[place].address) == ADDRESS[owner]
        assert set(open_.by_server) == {"web1", "web2"}
    assert service(daemon).fastpath.packets - before >= 150 * 4


def test_what_ipvs_would_know_is_unknown(lab: Lab, daemon: Daemon) -> None:
    with Connections(lab, VIP, 80, 20) as open_:
        assert not open_.wrong()
    status = daemon.status()
    assert (status.engine, status.fastpath.state) == ("alone", "forwards")
    assert [(one.device, one.mode) for one in status.fastpath.devices] == [(INTERFACE, "native")]
    assert not status.problems
    web = service(daemon)
    assert web.totals.connections is None
    assert web.totals.packets_in > 0
    assert {one.active_connections for one in web.real_servers} == {None}
    shown = lab.run("director", [str(LBDR), "status", *daemon.places]).stdout
    assert f"no IPVS in this kernel; forwards: XDP alone on {INTERFACE}" in shown.splitlines()


def test_a_daemon_that_is_killed(lab: Lab, daemon: Daemon) -> None:
    with Connections(lab, VIP, 80, 100) as open_, Knocking(lab) as knocking:
        programs = xdp(lab)
        daemon.kill()
        assert not open_.wrong()
        daemon.start()
        assert not open_.wrong()
    assert xdp(lab) == programs
    assert knocking.met.keys() == {"open"}
    assert daemon.lines("fast path: adopted")
    assert not daemon.lines("applied:")
    assert not daemon.lines("drift")


def test_the_order_of_the_servers_outlives_the_daemon(lab: Lab, daemon: Daemon) -> None:
    """Removed and added again, a server is the first of the list, and the table another one."""

    def servers() -> list[int]:
        with DirectorMaps.open(pins(daemon)) as maps:
            return [word & tracking.CURRENT for word in slots(maps)]

    first = servers()
    for names in (["web2"], ["web1", "web2"]):
        configure(daemon, {"WEB": {**HASHED, "real_servers": names}})
        daemon.ask(ReloadRequest())
        settled(daemon)
    state = json.loads((daemon.paths.state / "state.json").read_text())
    order = [server["address"] for server in state["table"][0]["real_servers"]]
    assert order == [ADDRESS["web1"], ADDRESS["web2"]]
    before = servers()
    assert len(before) == len(first)
    daemon.kill()
    daemon.start()
    with Connections(lab, VIP, 80, 1):
        pass
    assert servers() == before
    assert not daemon.lines("applied:")


def test_servers_that_come_and_go(lab: Lab, daemon: Daemon) -> None:
    """Open connections stay where they are, but for those of a server that is gone."""
    with Connections(lab, VIP, 80, 200) as open_, talking([open_]):
        configure(daemon, {"WEB": {**HASHED, "real_servers": ["web1", "web2", "web3"]}})
        daemon.ask(ReloadRequest())
        soon(lambda: took(daemon, lab, "web3"), "web3 has new connections", FOLLOWED)
        daemon.ask(WeightRequest(real_server="web1", weight=0))
        soon(lambda: not took(daemon, lab, "web1"), "web1 has no new ones", FOLLOWED)
        assert open_.by_server["web1"]
    with Connections(lab, VIP, 80, 60) as open_:
        open_.drop("web3")
        configure(daemon, {"WEB": HASHED})
        daemon.ask(ReloadRequest())
        soon(lambda: not took(daemon, lab, "web3"), "web3 is gone", FOLLOWED)
        assert not open_.wrong()


def took(daemon: Daemon, lab: Lab, server: str) -> bool:
    """Whether some of a few new connections go to a server."""
    assert not daemon.problems()
    with Connections(lab, VIP, 80, 30) as open_:
        return bool(open_.by_server[server])


def test_xdp_that_is_detached_by_hand(lab: Lab, daemon: Daemon) -> None:
    """At tc it goes on at once, and XDP is back within two seconds."""
    with Connections(lab, VIP, 80, 100) as open_, Knocking(lab) as knocking:
        with Link.open(link_pin(lab, daemon)) as link:
            link.detach()
        assert not open_.wrong()
        soon(lambda: xdp(lab), "XDP is back", 2.0)
        assert not open_.wrong()
    assert knocking.met.keys() == {"open"}


def test_both_programs_that_are_detached_by_hand(lab: Lab, daemon: Daemon) -> None:
    """Both are back within two seconds, and then nobody is refused any more."""
    with lab.entered("director"):
        index = socket.if_nametoindex(INTERFACE)
    with Link.open(link_pin(lab, daemon)) as link:
        link.detach()
        lab.run("director", ["tc", "qdisc", "del", "dev", INTERFACE, "clsact"])

    def back() -> bool:
        with lab.entered("director"):
            tc_ = asyncio.run(tc.attached(index, tc.Direction.INGRESS))
        return bool(xdp(lab)) and tc_ is not None

    soon(back, "both are back", 2.0)
    with Connections(lab, VIP, 80, 60) as open_, Knocking(lab) as knocking:
        assert not open_.wrong()
    assert knocking.met.keys() <= {"open"}


def test_an_apply_without_a_daemon(lab: Lab, daemon: Daemon) -> None:
    """A table that changes waits for its time, and `apply` with it."""
    daemon.stop()
    names = ["web1", "web2", "web3"]
    with Connections(lab, VIP, 80, 100) as open_, Knocking(lab) as knocking:
        configure(daemon, {"WEB": {**HASHED, "real_servers": names}})
        lab.run("director", [str(LBDR), "apply", *daemon.places])
        assert not open_.wrong()
        with Connections(lab, VIP, 80, 60) as new:
            assert set(new.by_server) == set(names)
    assert knocking.met.keys() == {"open"}
    shown = lab.run("director", [str(LBDR), "status", *daemon.places]).stdout
    assert f"no IPVS in this kernel; forwards: XDP alone on {INTERFACE}" in shown.splitlines()
    told = lab.run("director", [str(LBDR), "status", "--json", *daemon.places]).stdout
    (web,) = Status.model_validate_json(told).virtual_services
    assert web.fastpath.state == "forwards"
    assert web.fastpath.packets == sum(one.totals.packets_in for one in web.real_servers) > 100


def test_all_of_it_comes_and_goes_without_a_daemon(lab: Lab, daemon: Daemon) -> None:
    """Nobody is ever refused: before the VIP comes there is who forwards, and after it went."""
    daemon.stop()
    with Knocking(lab) as knocking:
        lab.run("director", [str(LBDR), "withdraw", *daemon.places])
        assert f"{VIP}/32" not in daemon.addresses()
        assert not xdp(lab)
        assert not list(daemon.paths.bpf.glob("*/v*"))
        lab.run("director", [str(LBDR), "apply", *daemon.places])
        with Connections(lab, VIP, 80, 10) as open_:
            assert not open_.wrong()
    assert knocking.met["open"]
    assert not knocking.met["ECONNREFUSED"]


def test_datagrams_in_fragments(lab: Lab, daemon: Daemon) -> None:
    """Nobody puts them together on the way: all of them go where the first one went."""
    configure(daemon, {"WEB": HASHED, "DNS": DATAGRAMS})
    daemon.ask(ReloadRequest())
    with measuring(lab, ["web1", "web2"], VIP, 53), lab.entered("client"):
        answers = set()
        for port in range(20_000, 20_040):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
                asking.settimeout(5)
                asking.bind(("", port))
                asking.sendto(bytes(6000), (VIP, 53))
                answers.add(asking.recv(100))
    assert answers == {b"web1 6000", b"web2 6000"}


def test_what_is_for_no_service_is_the_hosts_own(lab: Lab, daemon: Daemon) -> None:
    assert refused(lab, (VIP, 81))
    with lab.entered("director"):
        own = socket.create_server(("", 2222))
    with own, lab.entered("client"):
        for address in (VIP, "10.77.0.1"):
            socket.create_connection((address, 2222), timeout=2).close()
    assert not daemon.problems()
