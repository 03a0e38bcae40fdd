"""`lbdr explain` agrees with where real connections go, through all that changes them."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import pytest
from netlab import HOSTS, INTERFACE, Lab

from lbdr.config.load import load
from lbdr.control import client
from lbdr.control.protocol import (
    ExplainRequest,
    FastPathRequest,
    FlowsRequest,
    FlowsResult,
    ReloadRequest,
)
from lbdr.explain import Explanation, asked, parse_endpoint
from lbdr.explain_offline import offline
from tests.kernel.daemons import LBDR, VIP, WEB, Daemon, soon
from tests.kernel.open_connections import Connections, answering
from tests.kernel.test_fastpath import forwards, passing, service

SERVERS = ["web1", "web2", "web3"]
PAIR: list[Any] = ["web1", "web2"]
PORTS = {"WEB": 80, "PLAIN": 8081, "LEAST": 8080, "STICKY": 8082}
_COMPILING = 120.0  # seconds in a guest
_FOLLOWED = 10.0
AGES: Any = {"established": {"why"}, "differences": ...}
"""What of an answer tells how long ago something was."""
SOURCES = [f"10.77.0.{last}" for last in range(150, 190)]


def services(servers: list[Any]) -> Mapping[str, Any]:
    """By client and port, by client alone, and by what IPVS decides."""
    common = {**WEB, "real_servers": servers}
    return {
        "WEB": {**common, "scheduler": "mh", "scheduler_flags": ["mh-port"]},
        "PLAIN": {**common, "ports": [8081], "scheduler": "mh"},
        "LEAST": {**common, "ports": [8080], "scheduler": "wlc"},
        "STICKY": {**common, "ports": [8082], "scheduler": "wlc", "persistence": "5m"},
    }


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with (
        Lab({**HOSTS, "web3": 23}) as built,
        passing(built),
        answering(built, SERVERS, VIP, ports=list(PORTS.values())),
    ):
        built.run("client", ["ethtool", "-K", INTERFACE, "tx", "off"])
        built.ip("client", *(f"address add {one}/24 dev {INTERFACE}" for one in SOURCES))
        yield built


@pytest.fixture(scope="module")
def daemon(lab: Lab) -> Iterator[Daemon]:
    with Daemon(lab) as running:
        running.configure(services(PAIR), fastpath="auto")
        running.start()
        soon(lambda: forwards(running), "it forwards", _COMPILING)
        yield running


@contextlib.contextmanager
def opened(lab: Lab, name: str, count: int) -> Iterator[Connections]:
    sources = SOURCES if name == "PLAIN" else ()
    with Connections(lab, VIP, PORTS[name], count, sources) as open_:
        assert not open_.wrong()
        yield open_


def ask(daemon: Daemon, name: str, address: str, port: int) -> Explanation:
    request = ExplainRequest(virtual_service=name, client=address, client_port=port)
    return Explanation.model_validate(client.ask(daemon.paths, request, timeout=150).result)


def explained(daemon: Daemon, name: str, open_: Connections) -> list[Explanation]:
    """What is said of each connection: of an open one, it is where it is, each time."""
    found = [ask(daemon, name, *which) for which in open_.clients]
    said = [one.established.server for one in found if one.established is not None]
    assert said == open_.owners
    return found


def change(daemon: Daemon, servers: list[Any]) -> None:
    """Other real servers, and wait until the tables of both mh services are those."""
    daemon.configure(services(servers), fastpath="auto")
    mark = daemon.mark()
    daemon.ask(ReloadRequest())
    for name in ("WEB", "PLAIN"):
        words = partial(daemon.lines, "table of", f":{PORTS[name]} ", since=mark)
        soon(words, f"the flip of {name}", _FOLLOWED)


def test_a_fresh_service(lab: Lab, daemon: Daemon) -> None:
    """Live, offline and where 300 connections really go: no difference, and nothing counted."""
    configuration = load(daemon.paths.config).configuration
    for name, count in (("WEB", 300), ("PLAIN", len(SOURCES))):
        with opened(lab, name, count) as open_:
            before = service(daemon, name).fastpath
            found = explained(daemon, name, open_)
            after = service(daemon, name).fastpath
            assert after.not_forwarded == before.not_forwarded
            # each was asked about twice or more; what it still had to acknowledge is one packet
            assert after.packets - before.packets <= count
            assert set(open_.owners) == {"web1", "web2"}
            for one, owner in zip(found, open_.owners, strict=True):
                assert one.established is not None
                assert (one.server, one.new.by, one.established.by) == (owner, "slot", "slot")
                assert one.table is not None
                assert (one.table.server, one.table.slot) == (owner, one.slot)
                assert (one.differences, one.ipvs) == ([], None)
                alone = offline(asked(configuration, name, *parse_endpoint(one.client), None))
                assert (alone.server, alone.slot) == (owner, one.slot)
                assert one.leaves is not None
                assert (one.leaves.device, one.leaves.mac) == (INTERFACE, lab[owner].mac)


def test_a_learned_flow(lab: Lab, daemon: Daemon) -> None:
    with opened(lab, "LEAST", 40) as open_:
        assert not open_.wrong()
        found = explained(daemon, "LEAST", open_)
        ways = Counter(one.established.by for one in found if one.established is not None)
        assert ways["learned"] >= 30  # of others a packet is due to go up
        for one, owner in zip(found, open_.owners, strict=True):
            assert one.ipvs is not None
            assert one.ipvs.server == owner
            assert (one.server, one.new.by) == (None, "ipvs")
    nobody = ask(daemon, "LEAST", "10.77.0.99", 1)
    assert nobody.established is not None
    assert (nobody.established.by, nobody.new.by) == ("nobody", "ipvs")


def test_persistence(lab: Lab, daemon: Daemon) -> None:
    """A client's next connection goes where its template says, and that is told."""
    with opened(lab, "STICKY", 3) as open_:
        assert len(set(open_.owners)) == 1
        ((address, _), *_) = open_.clients
        found = ask(daemon, "STICKY", address, 999)
        assert (found.server, found.new.by) == (open_.owners[0], "ipvs")
        assert "persistence" in found.why
        for one in explained(daemon, "STICKY", open_):
            assert one.ipvs is not None
            assert one.ipvs.server == open_.owners[0]


def test_what_ipvs_forwards_alone(lab: Lab, daemon: Daemon) -> None:
    """It goes by the same table, and its entries say so."""
    daemon.ask(FastPathRequest(on=False, virtual_service="WEB"))
    with opened(lab, "WEB", 20) as open_:
        for one, owner in zip(explained(daemon, "WEB", open_), open_.owners, strict=True):
            assert one.established is not None
            assert one.ipvs is not None
            assert (one.server, one.ipvs.server, one.established.by) == (owner, owner, "ipvs")
            assert "left to IPVS by `lbdr fastpath off`" in one.why
            assert one.differences == []
        daemon.ask(FastPathRequest(on=True, virtual_service="WEB"))
        explained(daemon, "WEB", open_)


def test_slots_that_changed_hands(lab: Lab, daemon: Daemon) -> None:
    """Old connections, and those that begin after a server came, drained, and went."""
    with (
        opened(lab, "WEB", 100) as first,
        opened(lab, "PLAIN", len(SOURCES)) as plain,
    ):
        change(daemon, SERVERS)
        with opened(lab, "WEB", 100) as second:
            assert set(second.owners) == set(SERVERS)
            ways: Counter[str] = Counter()
            for name, open_ in (("WEB", first), ("PLAIN", plain), ("WEB", second)):
                for one in explained(daemon, name, open_):
                    assert one.established is not None
                    ways[one.established.by] += 1
                    moved = one.established.server != one.server
                    assert bool(one.differences) == moved
            assert {"slot", "old", "record"} <= ways.keys()
            listed = FlowsResult.model_validate(daemon.ask(FlowsRequest(virtual_service="WEB")))
            assert listed.total == len(listed.flows) > 0
            for address, port in second.clients:
                said = ask(daemon, "WEB", address, port).established
                remembered = [one for one in listed.flows if one.client == f"{address}:{port}"]
                assert said is not None
                assert [one.server for one in remembered] == [said.server] * (said.by == "record")

            change(daemon, [{"server": "web1", "weight": 0}, "web2", "web3"])
            with opened(lab, "WEB", 100) as third:
                assert set(third.owners) == {"web2", "web3"}
                for open_ in (first, second, third):
                    found = explained(daemon, "WEB", open_)
                    assert not {one.server for one in found} & {"web1", None}
                found = [ask(daemon, "WEB", "10.77.0.99", port) for port in range(1024, 1124)]
                assert {one.new.by for one in found} == {"slot", "fallback"}
            for open_ in (first, second, plain):
                assert not open_.wrong()


def test_what_a_person_reads(lab: Lab, daemon: Daemon) -> None:
    with opened(lab, "WEB", 1) as open_:
        ((address, port),) = open_.clients
        command = ["explain", *daemon.places, "--client", f"{address}:{port}", "WEB"]
        lines = lab.run("director", [str(LBDR), *command]).stdout.splitlines()
        assert lines[0] == f"client {address}:{port} of WEB (tcp {VIP}:80, mh mh-port)"
        assert lines[2].split()[:3] == ["open", "connection", open_.owners[0]]
        flows = ["status", *daemon.places, "--flows", "--limit", "2"]
        shown = lab.run("director", [str(LBDR), *flows]).stdout
        assert shown.startswith("virtual service")
        assert "more, older ones" in shown
        told = json.loads(lab.run("director", [str(LBDR), *flows, "--json"]).stdout)
        assert len(told["flows"]) == 2
        assert told["total"] > 2


def test_where_no_daemon_runs(lab: Lab, daemon: Daemon) -> None:
    """Root asks what it left; the answer is the same."""
    with opened(lab, "WEB", 3) as open_:
        before = explained(daemon, "WEB", open_)
        daemon.kill()
        try:
            for one, (address, port) in zip(before, open_.clients, strict=True):
                where = ["--client", f"{address}:{port}", "WEB", "--json"]
                done = lab.run("director", [str(LBDR), "explain", *daemon.places, *where])
                found = Explanation.model_validate_json(done.stdout)
                assert found.model_dump(exclude=AGES) == one.model_dump(exclude=AGES)
        finally:
            daemon.start()
        soon(lambda: forwards(daemon), "adopted", _FOLLOWED)


def test_who_begins_with_weight_0(lab: Lab, daemon: Daemon) -> None:
    """The kernel gives it no slot, and neither does the file alone."""
    daemon.configure({"LEAST": services(PAIR)["LEAST"]}, fastpath="auto")
    daemon.ask(ReloadRequest())
    daemon.configure(services(["web1", {"server": "web2", "weight": 0}, "web3"]), fastpath="auto")
    daemon.ask(ReloadRequest())
    soon(lambda: service(daemon, "WEB").fastpath.state == "forwards", "it is served", _FOLLOWED)
    configuration = load(daemon.paths.config).configuration
    with opened(lab, "WEB", 60) as open_:
        for one, owner in zip(explained(daemon, "WEB", open_), open_.owners, strict=True):
            alone = offline(asked(configuration, "WEB", *parse_endpoint(one.client), None))
            assert (alone.server, one.server) == (owner, owner)
            assert (alone.new.by, one.new.by) == ("slot", "slot")
