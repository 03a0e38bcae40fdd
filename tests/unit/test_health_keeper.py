"""The keeper of health: from results and the operator's word to weights, marks and events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import cast

import pytest

from lbdr import health_keeper
from lbdr.config.load import Loaded, parse
from lbdr.datapath.kernel import Kernel
from lbdr.director import Director
from lbdr.events import EventKind, EventLog
from lbdr.health import engine, feedback
from lbdr.health.checks.attempt import CheckError
from lbdr.health.decision import Presence
from lbdr.health.ramps import AgentReport
from lbdr.health.results import Failed, FailureKind, Passed, Result
from lbdr.health.spec import Agent, Probe
from lbdr.health_keeper import HealthKeeper
from lbdr.model import HostNetwork, Interface, Key, Protocol, ServiceKey, Standing
from lbdr.operator_states import OperatorState
from lbdr.paths import Paths
from lbdr.reconcile import Reconciler
from lbdr.state import State

WEB: Key = ServiceKey(Protocol.TCP, ip_address("10.0.0.50"), 80)
TLS: Key = ServiceKey(Protocol.TCP, ip_address("10.0.0.50"), 443)
FILE = """\
director:
  check: {{type: connect, interval: 100ms, timeout: 50ms, rise: 1, fall: 1}}
real_servers:
  rs1: {{address: 10.0.0.31}}
  rs2: {{address: 10.0.0.32}}
  spare: {{address: 10.0.0.99}}
virtual_services:
  WEB:
    address: 10.0.0.50
    ports: [80]
    {web}
    real_servers: [rs1, {{server: rs2{rs2}}}]
  TLS:
    address: 10.0.0.50
    ports: [443]
    real_servers: [rs1]
"""


@dataclass
class Changing:
    """Stands in for a reconciler: a state that the test replaces."""

    state: State


class Kept:
    """Stands in for the event log."""

    def __init__(self) -> None:
        self.events: list[tuple[EventKind, str, str]] = []

    def add(
        self, kind: EventKind, text: str, *, virtual_service: str = "", real_server: str = ""
    ) -> None:
        self.events.append((kind, f"{virtual_service} {real_server}".strip(), text))


class Prober:
    """Stands in for a VIP prober, which opens a socket."""

    def close(self) -> None:
        """Nothing is open."""


def loaded(web: str = "", rs2: str = "") -> Loaded:
    return parse(FILE.format(web=web, rs2=rs2).encode(), "f")


class Lab:
    """A director without a kernel, and real servers without a network."""

    def __init__(self, directory: Path, web: str = "", rs2: str = "") -> None:
        self.dead: dict[str, FailureKind] = {}
        self.silent = False  # no check ends any more
        self.agent: AgentReport | None = None
        self.results = 0
        self.kept = Kept()
        self.changing = Changing(State())
        self.director = Director(
            Paths(run=directory, state=directory),
            cast("Kernel", None),
            cast("Reconciler", self.changing),
            loaded(web, rs2),
            events=cast("EventLog", self.kept),
        )

    async def check(self, probe: Probe, *, prober: object, trace: object) -> Result:
        """Stands in for lbdr.health.checks.run.run."""
        assert isinstance(prober, Prober)
        assert trace is None
        if self.silent:
            await asyncio.Event().wait()
        self.results += 1
        kind = self.dead.get(str(probe.target))
        return Passed(0.0, "accepts") if kind is None else Failed(0.0, "refused", kind)

    async def ask(self, agent: Agent) -> AgentReport:
        """Stands in for lbdr.health.feedback.ask."""
        if self.agent is None or str(agent.target.address) != "10.0.0.31":
            raise CheckError("says nothing", FailureKind.TIMEOUT)
        return self.agent

    def operator(
        self, standing: Standing, server: str = "rs1", seconds: float | None = None
    ) -> None:
        """Keep the operator's word, as lbdr.requests does before it tells the keeper."""
        now = time.time()
        state = OperatorState(standing, now, None if seconds is None else now + seconds)
        states = {} if standing is Standing.ONLINE else {("WEB", server): state}
        self.changing.state = replace(self.changing.state, operator=states)

    def presence(self, server: str = "rs1", service: str = "WEB") -> Presence:
        return self.director.decisions[service].shares[server].presence

    def marked(self) -> set[Key]:
        """The services that were marked since this was asked last."""
        return set(self.director.dirty.take()[0].services or ())


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Lab]:
    monkeypatch.setattr(engine, "VipProber", Prober)

    def make(**more: str) -> Lab:
        made = Lab(tmp_path, **more)
        monkeypatch.setattr(engine, "run", made.check)
        monkeypatch.setattr(feedback, "ask", made.ask)
        return made

    return make


def kept_by(lab: Lab, work: Callable[[HealthKeeper], Awaitable[None]]) -> None:
    """Do something while a keeper runs, which is then stopped as the daemon stops it."""

    async def main() -> None:
        keeper = HealthKeeper(lab.director)
        keeper.configure()
        task = asyncio.create_task(keeper.run())
        async with asyncio.timeout(20):
            await work(keeper)
        assert not task.done()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    asyncio.run(main())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # nothing tells of a decision
            await asyncio.sleep(0.005)


def test_a_failed_server_loses_its_weight_and_its_service_alone_is_marked(
    lab: Callable[..., Lab],
) -> None:
    one = lab()

    async def work(keeper: HealthKeeper) -> None:
        assert one.marked() == {WEB, TLS}
        assert one.director.weights()["WEB", "rs1"] == 1
        await until(lambda: all(health.verdict == "up" for health in keeper.status().values()))
        one.marked()
        one.dead["10.0.0.31:80"] = FailureKind.REFUSED
        await until(lambda: one.presence() is Presence.OUT)
        assert one.marked() == {WEB}
        assert one.director.weights() == {
            ("WEB", "rs1"): None,
            ("WEB", "rs2"): 1,
            ("TLS", "rs1"): 1,
        }
        status = keeper.status()["WEB", "rs1"]
        assert (status.verdict, status.serves, status.reason) == ("down", False, "down: refused")
        assert status.since is not None
        assert 0 <= time.time() - status.since < 10
        del one.dead["10.0.0.31:80"]
        await until(lambda: one.presence() is Presence.SERVE)
        assert one.marked() == {WEB}

    kept_by(one, work)
    assert one.kept.events == [
        (EventKind.HEALTH, "WEB rs1", "rs1 in WEB is out: down: refused"),
        (EventKind.HEALTH, "WEB rs1", "rs1 in WEB serves: accepts"),
    ]


@pytest.mark.parametrize(("up", "presence"), [(False, Presence.SERVE), (True, Presence.OUT)])
def test_while_the_own_link_is_down_no_server_is(
    lab: Callable[..., Lab], *, up: bool, presence: Presence
) -> None:
    one = lab()
    link = Interface("lan0", 2, "02:00:00:00:00:01", up, (ip_interface("10.0.0.2/24"),))
    one.director.network = HostNetwork({"lan0": link})
    one.dead["10.0.0.31:80"] = FailureKind.UNREACHABLE

    async def work(_: HealthKeeper) -> None:
        await until(lambda: one.results >= 9)  # each was asked more than once

    kept_by(one, work)
    assert one.presence() is presence


def test_the_operators_word_makes_no_event_of_health(lab: Callable[..., Lab]) -> None:
    one = lab()

    async def work(keeper: HealthKeeper) -> None:
        await until(lambda: one.results >= 3)
        for standing, presence in (
            (Standing.DRAIN, Presence.QUIESCE),
            (Standing.HALT, Presence.OUT),
            (Standing.ONLINE, Presence.SERVE),
        ):
            one.marked()
            one.operator(standing)
            keeper.configure(["WEB"])
            assert one.presence() is presence
            assert one.marked() == {WEB}

    kept_by(one, work)
    assert one.kept.events == []


def test_a_deadline_comes_while_the_keeper_waits_before_its_next_write(
    lab: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health_keeper, "_SAVE_EVERY", 0.3)
    one = lab()
    one.silent = True  # nothing else may make it decide again

    async def work(keeper: HealthKeeper) -> None:
        one.operator(Standing.DRAIN, seconds=0.1)
        keeper.configure(["WEB"])
        assert one.presence() is Presence.QUIESCE
        one.marked()
        await until(lambda: one.presence() is Presence.OUT)
        assert one.marked() == {WEB}

    kept_by(one, work)
    assert one.kept.events == []


def test_a_deadline_comes_while_the_keeper_waits_for_news(
    lab: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health_keeper, "_SAVE_EVERY", 0.0)
    one = lab()
    one.silent = True

    async def work(keeper: HealthKeeper) -> None:
        one.operator(Standing.DRAIN, seconds=0.2)
        keeper.configure(["WEB"])
        began = time.monotonic()
        await until(lambda: one.presence() is Presence.OUT)
        assert 0.19 < time.monotonic() - began < 5

    kept_by(one, work)


def test_the_next_keeper_begins_with_what_this_one_knew(lab: Callable[..., Lab]) -> None:
    former = lab()
    former.dead["10.0.0.31:80"] = FailureKind.REFUSED

    async def fail(_: HealthKeeper) -> None:
        await until(lambda: former.presence() is Presence.OUT)

    kept_by(former, fail)
    one = lab()
    one.silent = True

    async def work(keeper: HealthKeeper) -> None:
        assert one.presence() is Presence.OUT
        assert keeper.status()["WEB", "rs1"].why == "refused"
        keeper.configure()  # a reload forgets nothing of it
        assert one.presence() is Presence.OUT
        checked, one.director.loaded = one.director.loaded, loaded(web="check: on")
        keeper.configure()
        one.director.loaded = checked
        keeper.configure()  # what left the file and came back is known no more
        assert keeper.status()["WEB", "rs1"].verdict == "unknown"

    kept_by(one, work)


def test_a_changed_weight_is_decided_at_once(lab: Callable[..., Lab]) -> None:
    one = lab()
    one.silent = True

    async def work(keeper: HealthKeeper) -> None:
        one.marked()
        one.changing.state = replace(one.changing.state, weights={("WEB", "rs1"): 7})
        keeper.configure(["WEB"])
        assert one.director.weights()["WEB", "rs1"] == 7
        assert one.director.weights()["TLS", "rs1"] == 1
        assert one.marked() == {WEB}
        one.changing.state = replace(one.changing.state, weights={})
        keeper.configure(["WEB"])
        assert one.director.weights()["WEB", "rs1"] == 1

    kept_by(one, work)


def test_a_standby_serves_on_until_the_failback_and_over_a_restart(lab: Callable[..., Lab]) -> None:
    one = lab(rs2=", standby_for: [rs1]")
    one.dead["10.0.0.31:80"] = FailureKind.REFUSED

    async def fail(keeper: HealthKeeper) -> None:
        await until(lambda: one.presence() is Presence.OUT)
        assert one.presence("rs2") is Presence.SERVE
        del one.dead["10.0.0.31:80"]
        await until(lambda: keeper.status()["WEB", "rs1"].verdict == "up")
        assert one.presence("rs1") is Presence.QUIESCE

    kept_by(one, fail)
    next_one = lab(rs2=", standby_for: [rs1]")

    async def back(keeper: HealthKeeper) -> None:
        assert next_one.presence("rs2") is Presence.SERVE
        next_one.marked()
        keeper.fail_back("WEB", "rs1")  # which is no standby
        assert next_one.presence("rs2") is Presence.SERVE
        keeper.fail_back("WEB", "rs2")
        assert next_one.presence("rs1") is Presence.SERVE
        assert next_one.presence("rs2") is Presence.QUIESCE
        assert next_one.marked() == {WEB}

    kept_by(next_one, back)


def test_an_agents_word_is_decided_by(lab: Callable[..., Lab]) -> None:
    one = lab(web="health: {feedback: {interval: 500ms}}")
    one.agent = AgentReport(state="drain", words="nightly backup")

    async def work(_: HealthKeeper) -> None:
        await until(lambda: one.presence() is Presence.QUIESCE)
        assert one.presence("rs2") is Presence.SERVE

    kept_by(one, work)
    words = "rs1 in WEB takes no new connections: its agent says drain nightly backup"
    assert one.kept.events == [(EventKind.HEALTH, "WEB rs1", words)]


def test_the_sorry_server_is_told_of(lab: Callable[..., Lab]) -> None:
    one = lab(web="sorry_server: spare")
    sorry = "WEB: the sorry server serves"

    async def work(_: HealthKeeper) -> None:
        await until(lambda: one.results >= 3)
        one.dead = dict.fromkeys(("10.0.0.31:80", "10.0.0.32:80"), FailureKind.REFUSED)
        await until(lambda: (EventKind.HEALTH, "WEB", sorry) in one.kept.events)
        one.dead = {}
        await until(
            lambda: (
                one.kept.events[-1][1:] == ("WEB", "WEB: real servers serve again")
                or one.presence() is one.presence("rs2") is Presence.SERVE
            )
        )

    kept_by(one, work)
    assert (EventKind.HEALTH, "WEB", "WEB: real servers serve again") in one.kept.events


def test_what_cannot_be_saved_is_told(lab: Callable[..., Lab], tmp_path: Path) -> None:
    one = lab()
    one.director.paths = replace(one.director.paths, run=tmp_path / "none")
    subject = "keeping what is known of real servers"

    async def work(_: HealthKeeper) -> None:
        await until(lambda: subject in one.director.trouble)

    kept_by(one, work)
    assert "health.json cannot be written" in one.director.trouble[subject]
