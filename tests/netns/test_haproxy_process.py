"""The companion HAProxy as a process: reloads lose nothing, and it is found again."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from netlab import Lab, wait_for

from lbdr.errors import ConfigError
from lbdr.haproxy.errors import ProxyError
from lbdr.haproxy.launch import OwnProcess
from lbdr.haproxy.model import (
    Pool,
    ProxyConfiguration,
    ProxyPersistence,
    ProxyServer,
    ProxyService,
    ProxySettings,
)
from lbdr.haproxy.process import Companion
from lbdr.haproxy.render.whole import Rendered
from lbdr.haproxy.runtime import AdminState
from lbdr.haproxy.states import Standing, operations
from tests.haproxy_samples import need_haproxy, ports
from tests.proxies import Director, Peer, ask_name, connect, first_line, running, says_its_name

PORT = 1521


@pytest.fixture
def director(lab: Lab, tmp_path: Path) -> Iterator[Director]:
    need_haproxy()
    with Director(lab, tmp_path / "haproxy") as found:
        yield found


@pytest.fixture
def peers(lab: Lab) -> Iterator[dict[str, Peer]]:
    with contextlib.ExitStack() as stack:
        yield {
            host: stack.enter_context(Peer(lab, host, PORT, says_its_name))
            for host in ("web1", "web2")
        }


def database(lab: Lab, *also: int, persistence: bool = False) -> ProxyConfiguration:
    """A TCP service on 1521, and on more ports that lead to the same."""
    servers = tuple(ProxyServer(name, lab[name].ipv4, PORT) for name in ("web1", "web2"))
    pool = Pool(servers, persistence=ProxyPersistence(timeout=600) if persistence else None)
    service = ProxyService("DB", (lab["director"].ipv4,), ports(PORT, *also), pool)
    return ProxyConfiguration(ProxySettings(max_connections=2000, threads=2), (service,))


def vip(lab: Lab) -> str:
    return str(lab["director"].ipv4)


def test_started_found_again_and_left_alone(
    lab: Lab, director: Director, peers: dict[str, Peer]
) -> None:
    """The next daemon has nothing to do, and the file is root's alone."""
    assert director.apply(database(lab))
    assert ask_name(lab, vip(lab), PORT) in peers
    before = director.processes()
    assert not director.apply(database(lab))
    director.companion = Companion(director.files, OwnProcess())
    assert not director.apply(database(lab))
    assert director.processes().current[0].pid == before.current[0].pid
    assert director.files.config.stat().st_mode & 0o777 == 0o600
    assert director.files.directory.stat().st_mode & 0o777 == 0o700


def test_workers_have_no_rights(lab: Lab, director: Director) -> None:
    director.apply(database(lab))
    (worker,) = director.processes().current
    status = Path(f"/proc/{worker.pid}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert set(fields["Uid"].split()) != {"0"}
    assert int(fields["CapEff"], 16) == 0
    assert Path(f"/proc/{worker.pid}/root").readlink() == director.files.empty


def test_persistence_and_states_over_reloads(
    lab: Lab, director: Director, peers: dict[str, Peer]
) -> None:
    """The same server on every port, and a drained one stays drained."""
    director.apply(database(lab, 1522, 1523, persistence=True))
    lab.ip("client", *(f"address add 10.77.0.{n}/24 dev eth0" for n in range(150, 160)))
    sources = [f"10.77.0.{number}" for number in range(150, 160)]
    first = {source: ask_name(lab, vip(lab), PORT, source=source) for source in sources}
    assert set(first.values()) == set(peers)
    for port in (1522, 1523, PORT):
        director.reload()
        again = {source: ask_name(lab, vip(lab), port, source=source) for source in sources}
        assert again == first
    director.run(
        lambda companion: companion.runtime.set_state("DB", "web1", AdminState.MAINTENANCE)
    )
    for _ in range(2):
        moved = {ask_name(lab, vip(lab), PORT, source=source) for source in sources}
        assert moved == {"web2"}
        director.reload()


def test_a_refused_configuration_changes_nothing(
    lab: Lab, director: Director, peers: dict[str, Peer]
) -> None:
    director.apply(database(lab))
    before = director.processes()
    rendered = director.render(database(lab, 1522))
    broken = rendered.text.replace("balance leastconn", "balance leastcon")
    wrong = Rendered(broken, "0" * 16, rendered.owners)
    with pytest.raises(ConfigError, match=r"DB: HAProxy: .*leastcon") as caught:
        director.run(lambda companion: companion.apply(wrong))
    assert str(director.files.directory) not in str(caught.value)
    after = director.processes()
    assert (after.reloads, after.current[0].pid) == (before.reloads, before.current[0].pid)
    assert ask_name(lab, vip(lab), PORT) in peers


def test_a_port_that_another_holds(lab: Lab, director: Director, peers: dict[str, Peer]) -> None:
    """It is found before anything changes, at a start as at a reload."""
    with (
        Peer(lab, "director", PORT, says_its_name),
        pytest.raises(ProxyError, match=r"another program .* holds 10\.77\.0\.1:1521\n"),
    ):
        director.apply(database(lab))
    director.apply(database(lab))
    before = director.processes()
    with (
        Peer(lab, "director", 1522, says_its_name),
        pytest.raises(ProxyError, match=r"holds 10\.77\.0\.1:1522"),
    ):
        director.apply(database(lab, 1522))
    assert director.processes().reloads == before.reloads
    assert ask_name(lab, vip(lab), PORT) in peers


def test_a_reload_that_fails(
    lab: Lab, director: Director, peers: dict[str, Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What served before serves on, with its file, and the next change works."""
    monkeypatch.setattr("lbdr.haproxy.process.taken", lambda *_: [])
    with (
        Peer(lab, "director", PORT, says_its_name),
        pytest.raises(ProxyError, match=r"does not start: .*Address already in use"),
    ):
        director.apply(database(lab))
    director.apply(database(lab))
    file = director.files.config.read_text()
    with Peer(lab, "director", 1522, says_its_name):
        with pytest.raises(ProxyError, match="serves on with the one before"):
            director.apply(database(lab, 1522))
        assert ask_name(lab, vip(lab), PORT) in peers
    assert director.files.config.read_text() == file
    assert director.apply(database(lab, 1523))
    assert ask_name(lab, vip(lab), 1523) in peers


def test_old_workers_are_shown_with_their_connections(
    lab: Lab, director: Director, peers: dict[str, Peer]
) -> None:
    director.apply(database(lab))
    with connect(lab, "client", vip(lab), PORT) as connection:
        assert first_line(connection) in peers
        director.reload()
        (old,) = director.run(lambda companion: companion.old_workers())
        assert old.connections == 1
        connection.sendall(b"still here\n")
        assert first_line(connection) == "still here"
    wait_for(lambda: not director.processes().old, "the old worker's end")
    assert not running(old.pid)


@pytest.mark.usefixtures("peers")
def test_the_next_start_begins_with_the_saved_states(lab: Lab, director: Director) -> None:
    director.apply(database(lab))
    director.run(
        lambda companion: companion.runtime.set_state("DB", "web2", AdminState.MAINTENANCE)
    )
    director.run(lambda companion: companion.save_states())
    master = director.processes().master
    for pid in (master, *(worker.pid for worker in director.processes().current)):
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not running(master), "its death")
    assert director.apply(database(lab))
    assert {ask_name(lab, vip(lab), PORT) for _ in range(4)} == {"web1"}


def test_a_state_is_set_at_once(lab: Lab, director: Director, peers: dict[str, Peer]) -> None:
    """Within 100 ms; and weights, addresses, statistics, all by the runtime API."""
    director.apply(database(lab, persistence=True))

    async def work(companion: Companion) -> float:
        runtime = companion.runtime
        start = time.monotonic()
        await runtime.set_state("DB", "web1", AdminState.MAINTENANCE)
        took = time.monotonic() - start
        await runtime.set_weight("DB", "web2", 7)
        states = {state.server: state for state in await runtime.server_states()}
        assert states["web1"].maintenance
        assert not states["web2"].maintenance
        assert states["web2"].weight == 7
        await runtime.set_address("DB", "web1", lab["web2"].ipv4, PORT)
        await runtime.set_address("DB", "web1", lab["web2"].ipv4, PORT)
        await runtime.set_state("DB", "web1", AdminState.READY)
        states = {state.server: state for state in await runtime.server_states()}
        assert states["web1"].address == str(lab["web2"].ipv4)
        with pytest.raises(ProxyError, match="No such server"):
            await runtime.set_state("DB", "nobody", AdminState.READY)
        with pytest.raises(ValueError, match="no name"):
            await runtime.set_state("DB", "web1 state ready; show info", AdminState.READY)
        return took

    assert director.run(work) < 0.1
    assert {ask_name(lab, vip(lab), PORT) for _ in range(4)} == {"web2"}
    counted = director.run(lambda companion: companion.runtime.statistics())
    total = {(one.proxy, one.kind.value, one.server): one.sessions_total for one in counted}
    assert total["DB", "frontend", ""] == 4
    assert total["DB", "server", "web1"] + total["DB", "server", "web2"] == 4
    (entry,) = director.run(lambda companion: companion.runtime.table("DB"))
    assert entry.key == str(lab["client"].ipv4)
    assert entry.data["server_key"] in peers
    director.run(lambda companion: companion.runtime.forget("DB", entry.key))
    assert director.run(lambda companion: companion.runtime.table("DB")) == []


@pytest.mark.usefixtures("peers")
def test_standings_are_brought_about(lab: Lab, director: Director) -> None:
    """What health and operator want is observed, planned and applied, once."""
    configuration = database(lab)
    director.apply(configuration)

    async def work(companion: Companion) -> list[str]:
        done = []
        standings = {("DB", "web1"): Standing.HALT}
        for wanted in (standings, standings, {}):
            states = await companion.runtime.server_states()
            for operation in operations(configuration, states, wanted, {("DB", "web2"): 5}):
                await companion.runtime.apply(operation)
                done.append(str(operation))
        return done

    assert director.run(work) == [
        "set server DB/web2 weight 5",
        "set server DB/web1 state maint",
        "set server DB/web1 state ready",
    ]


@pytest.mark.usefixtures("peers")
def test_halt_cuts_connections(lab: Lab, director: Director) -> None:
    director.apply(database(lab))
    with connect(lab, "client", vip(lab), PORT) as connection:
        server = first_line(connection)
        runtime = director.companion.runtime
        director.run(lambda _: runtime.set_state("DB", server, AdminState.MAINTENANCE))
        connection.sendall(b"drained\n")
        assert first_line(connection) == "drained"
        director.run(lambda _: runtime.cut("DB", server))
        assert connection.recv(100) == b""


def test_nobody_answers(director: Director) -> None:
    assert director.run(lambda companion: companion.processes()) is None
    with pytest.raises(ProxyError, match="cannot be asked"):
        director.run(lambda companion: companion.runtime.statistics())


def test_one_that_is_stuck_is_told_in_time(lab: Lab, director: Director) -> None:
    director.apply(database(lab))
    (worker,) = director.processes().current
    director.companion.runtime._timeout = 0.3  # noqa: SLF001  # nobody else needs to set it
    os.kill(worker.pid, signal.SIGSTOP)
    try:
        with pytest.raises(ProxyError, match=r"within 0\.3 s"):
            director.run(lambda companion: companion.runtime.information())
    finally:
        os.kill(worker.pid, signal.SIGCONT)


def test_stopped(lab: Lab, director: Director, peers: dict[str, Peer]) -> None:
    """Open connections finish, or a deadline comes; stopping what does not run is nothing."""
    director.run(lambda companion: companion.stop(grace=0.1))
    director.apply(database(lab))
    with connect(lab, "client", vip(lab), PORT) as connection:
        assert first_line(connection) in peers
        director.run(lambda companion: companion.stop(grace=0.3))
        assert director.run(lambda companion: companion.processes()) is None
        assert connection.recv(10) == b""
    director.apply(database(lab))
    start = time.monotonic()
    director.run(lambda companion: companion.stop(grace=60))
    assert time.monotonic() - start < 30, "with no connection there is nothing to wait for"


def test_two_changes_at_once(lab: Lab, director: Director) -> None:
    """The last one is what serves."""
    director.apply(database(lab))
    one, two = director.render(database(lab, 1522)), director.render(database(lab, 1523))

    async def both(companion: Companion) -> None:
        await companion.apply(one)
        await companion.apply(two)
        assert await companion.runtime.fingerprint() == two.fingerprint

    director.run(both)
