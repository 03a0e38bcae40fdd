"""Without IPVS in the kernel: what the operator tells and asks, and services with several ports."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from netlab import INTERFACE, Lab

from lbdr.control.protocol import EventsRequest, OperatorRequest, ReloadRequest
from lbdr.explain import Explanation
from lbdr.model import Standing
from lbdr.status import RealServerStatus, Status
from tests.alone import FOLLOWED, HASHED, Knocking, alone_lab, configure, service, serving
from tests.kernel.daemons import LBDR, VIP, Daemon, soon
from tests.kernel.open_connections import Connections

NO_IPVS = "this kernel has no IPVS"
CLIENTS = [f"10.77.0.{last}" for last in range(130, 146)]
BY_ADDRESS = {**HASHED, "scheduler_flags": []}
BOTH = {**BY_ADDRESS, "ports": [80, 8080]}
ANY = {**BY_ADDRESS, "ports": "any"}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with alone_lab() as built:
        built.ip("client", *(f"address add {one}/24 dev {INTERFACE}" for one in CLIENTS))
        yield built


@pytest.fixture(scope="module")
def running(lab: Lab) -> Iterator[Daemon]:
    with serving(lab, {"WEB": HASHED}) as started:
        yield started


@pytest.fixture
def daemon(running: Daemon) -> Daemon:
    """With WEB as at first, and both servers online."""
    configure(running, {"WEB": HASHED})
    if running.process is None or running.process.poll() is not None:
        running.start()
    running.ask(ReloadRequest())
    tell(running, "online")
    soon(lambda: took(running.lab) == {"web1", "web2"}, "both serve", FOLLOWED)
    return running


def tell(daemon: Daemon, state: str) -> None:
    daemon.ask(OperatorRequest(real_server="web1", state=Standing(state)))


def took(lab: Lab) -> set[str]:
    """Who has new connections."""
    with Connections(lab, VIP, 80, 20) as open_:
        return set(open_.owners)


def shown(daemon: Daemon) -> RealServerStatus:
    return next(one for one in service(daemon).real_servers if one.name == "web1")


def run(daemon: Daemon, *words: str) -> str:
    return daemon.lab.run("director", [str(LBDR), *words, *daemon.places], check=False).stdout


def explained(daemon: Daemon, client: tuple[str, int], port: int = 80) -> Explanation:
    """What `lbdr explain` says of a client."""
    words = ["--client", f"{client[0]}:{client[1]}", "--port", str(port), "--json", "WEB"]
    return Explanation.model_validate_json(run(daemon, "explain", *words))


def test_a_server_that_drains(lab: Lab, daemon: Daemon) -> None:
    with Connections(lab, VIP, 80, 60) as open_:
        assert set(open_.by_server) == {"web1", "web2"}
        tell(daemon, "drain")
        soon(lambda: took(lab) == {"web2"}, "new connections go elsewhere", FOLLOWED)
        assert not open_.wrong()
        assert (shown(daemon).state, shown(daemon).weight) == ("drain", 0)
        tell(daemon, "online")
        soon(lambda: took(lab) == {"web1", "web2"}, "it has new ones again", FOLLOWED)
        assert not open_.wrong()


def test_a_server_that_is_halted(lab: Lab, daemon: Daemon) -> None:
    """At once, and also for a daemon that starts later."""
    tell(daemon, "halt")
    with Knocking(lab) as knocking:
        soon(lambda: took(lab) == {"web2"}, "the other one has all")
        daemon.kill()
        daemon.start()
        assert took(lab) == {"web2"}
        assert (shown(daemon).state, shown(daemon).weight) == ("halt", None)
    assert not knocking.met["ECONNREFUSED"]


def test_waiting_for_a_drain(lab: Lab, daemon: Daemon) -> None:
    """Nobody counts connections: it waits for a minute without a packet, or a halt."""
    words = ["drain", "web1", "--wait", "--json", *daemon.places]
    waiting = lab.popen(daemon.host, [str(LBDR), *words], stdout=subprocess.PIPE)
    soon(lambda: shown(daemon).state == "drain", "the drain")
    soon(lambda: took(lab) == {"web2"}, "new connections go elsewhere", FOLLOWED)
    assert waiting.poll() is None
    tell(daemon, "halt")
    told, _ = waiting.communicate(timeout=20)
    assert json.loads(told)["halted"] == ["WEB"]


def test_events(daemon: Daemon) -> None:
    tell(daemon, "drain")
    events = daemon.ask(EventsRequest())["events"]
    assert [one["text"] for one in events if one["kind"] == "operator"][-1] == "web1 in all: drain"
    assert "web1 in all: drain" in run(daemon, "events")


@pytest.mark.parametrize("served", [True, False])
def test_explain(lab: Lab, daemon: Daemon, served: bool) -> None:
    with Connections(lab, VIP, 80, 20) as open_:
        if not served:
            daemon.kill()
        for client, owner in zip(open_.clients, open_.owners, strict=True):
            found = explained(daemon, client)
            assert (found.server, found.engine) == (owner, "alone")
            assert found.established is not None
            assert found.established.server == owner
            assert found.table is not None
            assert found.table.server == owner
            assert not found.differences
        client = open_.clients[0]
    text = run(daemon, "explain", "--client", f"{client[0]}:{client[1]}", "WEB").splitlines()
    assert f"{'entry of IPVS':18}-: {NO_IPVS}" in text
    assert [line for line in text if line.startswith("table of lbdr")]


def test_explain_where_nothing_forwards(daemon: Daemon) -> None:
    daemon.stop()
    run(daemon, "withdraw")
    found = explained(daemon, (CLIENTS[0], 40000))
    assert found.server is None
    assert NO_IPVS in found.why or "nothing is pinned" in found.why


def test_what_is_remembered(daemon: Daemon) -> None:
    assert json.loads(run(daemon, "status", "--flows", "WEB", "--json"))["reason"] == ""


def test_several_ports_are_one_decision(lab: Lab, daemon: Daemon) -> None:
    configure(daemon, {"WEB": BOTH})
    daemon.ask(ReloadRequest())
    with ExitStack() as stack:
        first, second = (
            stack.enter_context(Connections(lab, VIP, port, len(CLIENTS), CLIENTS))
            for port in (80, 8080)
        )
        assert first.owners == second.owners
        assert set(first.by_server) == {"web1", "web2"}
        for port, one in ((80, first), (8080, second)):
            established = explained(daemon, one.clients[3], port).established
            assert established is not None
            assert established.server == one.owners[3]
        assert not daemon.status().problems
        before = service(daemon).fastpath.packets
        assert before >= 2 * 4 * len(CLIENTS)
        daemon.kill()
        (kept,) = Status.model_validate_json(run(daemon, "status", "--json")).virtual_services
        assert kept.fastpath.packets >= before
        daemon.start()
        assert daemon.lines("applied:") == []
        assert not [*first.wrong(), *second.wrong()]


def test_a_service_that_gets_more_ports_and_loses_them(lab: Lab, daemon: Daemon) -> None:
    """Another identity, and the same connections; what is for other ports is the host's own."""
    configure(daemon, {"WEB": BY_ADDRESS})
    daemon.ask(ReloadRequest())
    soon(lambda: service(daemon).fastpath.state == "forwards", "forwards")
    with (
        Connections(lab, VIP, 80, len(CLIENTS), CLIENTS) as open_,
        Knocking(lab) as knocking,
    ):
        for wanted in (BOTH, ANY, BOTH, BY_ADDRESS):
            configure(daemon, {"WEB": wanted})
            daemon.ask(ReloadRequest())
            assert not open_.wrong()
            assert f"{VIP}/32" in daemon.addresses()
        assert not daemon.status().problems
    assert not knocking.met["ECONNREFUSED"]


def test_all_of_several_ports_without_a_daemon(lab: Lab, daemon: Daemon) -> None:
    daemon.stop()
    run(daemon, "withdraw")
    assert f"{VIP}/32" not in daemon.addresses()
    configure(daemon, {"WEB": BOTH})
    assert f"{VIP}/32" in run(daemon, "apply")
    with Connections(lab, VIP, 8080, len(CLIENTS), CLIENTS) as open_:
        assert set(open_.by_server) == {"web1", "web2"}
    run(daemon, "withdraw")
    assert not list(daemon.paths.bpf.glob("*/v*"))
