"""The engine's schedule, by checks that answer as told."""

from __future__ import annotations

import asyncio
import resource
import socket
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import replace
from ipaddress import ip_address
from itertools import pairwise
from typing import Any, TypeVar

import pytest

from lbdr.health.checks.run import run
from lbdr.health.engine import Engine
from lbdr.health.results import Failed, FailureKind, Passed, Result
from lbdr.health.spec import (
    Connect,
    External,
    Initial,
    Negotiate,
    Off,
    On,
    Probe,
    Target,
    Timing,
)
from lbdr.health.verdicts import Status, Tally, Verdict, longest_outage

T = TypeVar("T")

FAST = Timing(interval=0.1, timeout=0.1, rise=2, fall=3)


def probe_of(number: int, timing: Timing = FAST) -> Probe:
    return Probe(Target(ip_address("192.0.2.1"), number), Connect(), timing)


class Servers:
    """Checks that pass, but for those of servers that were named."""

    def __init__(self) -> None:
        self.dead: set[int] = set()
        self.frozen: set[int] = set()
        self.runs: Counter[int] = Counter()
        self.started: dict[int, list[float]] = {}

    async def run(self, probe: Probe) -> Result:
        port = probe.target.port
        self.runs[port] += 1
        self.started.setdefault(port, []).append(asyncio.get_running_loop().time())
        if port in self.frozen:
            await asyncio.sleep(probe.timing.timeout)
            return Failed(probe.timing.timeout, "frozen", FailureKind.TIMEOUT)
        if port in self.dead:
            return Failed(0.0, "dead", FailureKind.REFUSED)
        return Passed(0.0, "alive")


def running(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    return asyncio.run(asyncio.wait_for(work(), 20))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # the engine tells of verdicts alone
            await asyncio.sleep(0.005)


def test_verdicts_are_told_when_they_change() -> None:
    servers, told = Servers(), list[tuple[int, Status, str]]()

    def changed(probe: Probe, tally: Tally, was: Verdict) -> None:
        assert was.status is not tally.verdict.status
        told.append((probe.target.port, tally.verdict.status, tally.verdict.why))

    async def work() -> None:
        engine = Engine(changed, runner=servers.run)
        engine.watch([probe_of(1), probe_of(2)])
        await until(lambda: len(told) == 2)
        assert set(told) == {(1, Status.UP, "alive"), (2, Status.UP, "alive")}
        servers.dead.add(2)
        await until(lambda: len(told) == 3)
        assert told[2] == (2, Status.DOWN, "dead")
        assert engine.tally(probe_of(1)).verdict.status is Status.UP
        await engine.close()

    running(work)


def test_a_dead_server_is_out_in_time() -> None:
    """It is fall x max(interval, timeout) + timeout, however it fails."""
    timing = Timing(interval=0.2, timeout=0.3, fall=3, rise=1)
    servers, down = Servers(), list[float]()

    async def work() -> float:
        loop = asyncio.get_running_loop()

        def changed(_probe: Probe, tally: Tally, _was: Verdict) -> None:
            if tally.verdict.status is Status.DOWN:
                down.append(loop.time())

        engine = Engine(changed, runner=servers.run)
        engine.watch([probe_of(number, timing) for number in range(20)])
        await until(lambda: len(servers.runs) == 20)
        died = loop.time()
        servers.frozen.update(range(20))
        await until(lambda: len(down) == 20)
        await engine.close()
        return max(down) - died

    assert running(work) <= longest_outage(timing) + 0.5


def test_frozen_servers_delay_nobody() -> None:
    servers = Servers()
    servers.frozen.update(range(200))

    async def work() -> None:
        engine = Engine(lambda *_: None, runner=servers.run)
        slow = Timing(interval=0.5, timeout=3.0)
        engine.watch([probe_of(number, slow) for number in range(400)])
        await until(lambda: min(servers.runs[number] for number in range(200, 400)) >= 4)
        assert engine.lateness() < 1.0
        await engine.close()

    running(work)
    for number in range(200, 400):
        times = servers.started[number]
        gaps = [later - earlier for earlier, later in pairwise(times)]
        assert max(gaps) < 2.0


def test_jitter_spreads_checks() -> None:
    """It only takes away from an interval."""
    servers, timing = Servers(), Timing(interval=0.2, jitter=0.5)

    async def work() -> None:
        engine = Engine(lambda *_: None, runner=servers.run)
        engine.watch([probe_of(number, timing) for number in range(50)])
        await until(lambda: min(servers.runs[number] for number in range(50)) >= 5)
        await engine.close()

    running(work)
    gaps = [
        later - earlier for times in servers.started.values() for earlier, later in pairwise(times)
    ]
    assert min(gaps) >= 0.2 * 0.5 - 0.01
    assert min(gaps) < 0.15
    assert len({round(gap, 3) for gap in gaps}) > 20


def test_a_reload_keeps_the_verdicts_of_what_it_did_not_change() -> None:
    """Nor is anything checked sooner; another timing keeps the verdict, another target does not."""
    servers = Servers()
    slow = Timing(interval=30, rise=1)
    kept, retimed, gone = probe_of(1, slow), probe_of(2, slow), probe_of(3, slow)

    async def work() -> None:
        engine = Engine(lambda *_: None, runner=servers.run)
        engine.watch([kept, retimed, gone])
        await until(lambda: servers.runs.total() == 3)
        await asyncio.sleep(0)
        since = engine.tally(kept).verdict.since
        again = replace(retimed, timing=replace(slow, interval=20))
        engine.watch([kept, again, probe_of(4, slow)])
        assert engine.probes == {kept, again, probe_of(4, slow)}
        assert engine.tally(kept).verdict == Verdict(Status.UP, since, "alive", 0.0)
        assert engine.tally(again).verdict.status is Status.UP
        assert engine.tally(probe_of(4, slow)).verdict.status is Status.UNKNOWN
        await until(lambda: servers.runs[4] == 1)
        assert servers.runs[1] == 1
        assert servers.runs[3] == 1
        await engine.close()

    running(work)


def test_verdicts_of_an_earlier_process_are_taken_over() -> None:
    servers, told = Servers(), list[object]()
    known = Verdict(Status.UP, 12.0, "alive", 0.1)

    async def work() -> None:
        engine = Engine(lambda *arguments: told.append(arguments), runner=servers.run)
        engine.watch([probe_of(1)], {probe_of(1): known})
        assert engine.tally(probe_of(1)).verdict == known
        await until(lambda: servers.runs[1] >= 3)
        assert engine.tally(probe_of(1)).verdict.since == 12.0
        assert told == []
        await engine.close()

    running(work)


def test_a_removed_probe_is_not_told_of_any_more() -> None:
    """Its check was still running."""
    servers, told = Servers(), list[object]()
    servers.frozen.add(1)

    async def work() -> None:
        engine = Engine(lambda *arguments: told.append(arguments), runner=servers.run)
        before = asyncio.all_tasks()
        engine.watch([probe_of(1, Timing(interval=0.1, timeout=0.2, fall=1))])
        await until(lambda: servers.runs[1] == 1)
        engine.watch([])
        await until(lambda: asyncio.all_tasks() <= before)  # its check ended
        assert told == []
        assert servers.runs[1] == 1
        await engine.close()

    running(work)


def test_programs_run_a_few_at_a_time() -> None:
    now, most = 0, 0

    async def program(_probe: Probe) -> Result:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.02)
        now -= 1
        return Passed(0.02, "fine")

    async def work() -> None:
        engine = Engine(lambda *_: None, runner=program, programs=4)
        target = Target(ip_address("192.0.2.1"))
        engine.watch(Probe(target, External(f"/check{n}"), FAST) for n in range(40))
        await until(lambda: engine.ran >= 80)
        await engine.close()

    running(work)
    assert most == 4


def test_a_listener_that_fails_stops_no_check(caplog: pytest.LogCaptureFixture) -> None:
    servers = Servers()

    def changed(*_: object) -> None:
        raise RuntimeError("a fault of the listener")

    async def work() -> None:
        engine = Engine(changed, runner=servers.run)
        engine.watch([probe_of(1)])
        await until(lambda: servers.runs[1] >= 4)
        await engine.close()

    running(work)
    assert "could not be handed on" in caplog.text


def test_on_and_off() -> None:
    target = Target(ip_address("192.0.2.1"))

    async def work() -> tuple[Result, Result]:
        engine = Engine(lambda *_: None)
        on = await engine.check_now(Probe(target, On()))
        off = await engine.check_now(Probe(target, Off()))
        await engine.close()
        return on, off

    on, off = running(work)
    assert isinstance(on, Passed)
    assert isinstance(off, Failed)
    assert off.words == "192.0.2.1 is switched off by its check"


def test_a_trace_tells_what_was_said() -> None:
    said = list[tuple[str, bytes]]()

    async def work() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"+" + await reader.read(10))
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        target = Target(ip_address("127.0.0.1"), port)
        engine = Engine(lambda *_: None)
        probe = Probe(target, Negotiate(b"PING", b"+PING"))
        result = await engine.check_now(probe, lambda kind, data: said.append((kind, data)))
        assert isinstance(result, Passed), result
        await engine.close()
        server.close()

    running(work)
    assert ("sent", b"PING") in said
    assert ("received", b"+PING") in said
    assert any(kind == "note" and data.startswith(b"connected to") for kind, data in said)


def test_a_director_that_stood_still_blames_nobody() -> None:
    """An answer may have come meanwhile."""

    async def work() -> Result:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            target = Target(ip_address("127.0.0.1"), silent.getsockname()[1])
            asyncio.get_running_loop().call_later(0.1, time.sleep, 0.6)
            return await run(Probe(target, Negotiate(b"PING"), Timing(timeout=0.3)))

    result = running(work)
    assert isinstance(result, Failed)
    assert result.kind is FailureKind.LOCAL
    assert "this director was busy for 0." in result.words


def test_no_file_left_is_a_fault_of_the_director() -> None:
    """No socket can be opened: no server goes down for that."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def work() -> Result:
        target = Target(ip_address("127.0.0.1"), 9)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        try:
            return await run(Probe(target, Connect()))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    result = running(work)
    assert isinstance(result, Failed)
    assert result.kind is FailureKind.LOCAL
    assert result.words.endswith("Too many open files (too many files are open)")


def test_an_unknown_server_counts_as_its_probe_says() -> None:
    async def work() -> None:
        engine = Engine(lambda *_: None, runner=Servers().run)
        hopeful = replace(probe_of(1), initial=Initial.UP)
        engine.watch([probe_of(1), hopeful])
        assert not engine.tally(probe_of(1)).verdict.up
        assert engine.tally(hopeful).verdict.up
        await engine.close()

    running(work)
