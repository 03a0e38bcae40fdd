"""Marks: nothing that is marked is lost, and who waits is told once it was looked at."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address

import pytest

from lbdr.dirty import Dirty
from lbdr.errors import KernelError
from lbdr.model import MarkKey, Protocol, ServiceKey
from lbdr.report import EVERYTHING, Report, Scope
from tests.unit.simulated import run_in_loop

WEB = ServiceKey(Protocol.TCP, ip_address("10.0.0.50"), 80)
DNS = ServiceKey(Protocol.UDP, ip_address("10.0.0.50"), 53)
MARK = MarkKey(1, 4)


def scope(*services: ServiceKey | MarkKey, host: bool = False) -> Scope:
    return Scope(services=frozenset(services), host=host)


async def is_waiting(dirty: Dirty) -> bool:
    """Whether wait() would wait."""
    try:
        async with asyncio.timeout(0.01):
            await dirty.wait()
    except TimeoutError:
        return True
    return False


async def waiter(dirty: Dirty) -> asyncio.Task[Report]:
    """Somebody who waits, and has begun to."""
    task = asyncio.create_task(dirty.settled())
    await asyncio.sleep(0)
    return task


def test_marks_add_up_and_are_taken_once() -> None:
    async def scenario() -> None:
        dirty = Dirty()
        assert await is_waiting(dirty)
        dirty.mark([WEB])
        dirty.mark([DNS, WEB])
        dirty.mark([MARK])
        assert not await is_waiting(dirty)
        assert dirty.take() == (scope(WEB, DNS, MARK), [])
        assert await is_waiting(dirty)
        assert dirty.take() == (scope(), [])

    run_in_loop(scenario())


def test_the_host_and_everything() -> None:
    async def scenario() -> None:
        dirty = Dirty()
        dirty.mark(host=True)
        assert not await is_waiting(dirty)
        assert dirty.take() == (scope(host=True), [])
        dirty.mark([WEB], host=True)
        dirty.mark([DNS])  # takes nothing back
        assert dirty.take() == (scope(WEB, DNS, host=True), [])
        dirty.mark([WEB])
        dirty.mark_everything()
        assert not await is_waiting(dirty)
        assert dirty.take() == (EVERYTHING, [])
        assert await is_waiting(dirty)

    run_in_loop(scenario())


def test_no_mark_is_no_mark() -> None:
    async def scenario() -> None:
        dirty = Dirty()
        dirty.mark([])
        assert await is_waiting(dirty)

    run_in_loop(scenario())


def test_what_is_marked_during_a_pass_is_for_the_next_one() -> None:
    async def scenario() -> None:
        dirty = Dirty()
        dirty.mark([WEB])
        first, _ = dirty.take()
        dirty.mark([WEB, DNS])
        second, _ = dirty.take()
        assert (first, second) == (scope(WEB), scope(WEB, DNS))

    run_in_loop(scenario())


def test_who_waits_gets_the_report_of_the_pass_that_began_after() -> None:
    async def scenario() -> None:
        dirty = Dirty()
        dirty.mark([WEB])
        early = await waiter(dirty)
        _, first = dirty.take()
        dirty.mark([DNS])
        late = await waiter(dirty)
        _, second = dirty.take()
        assert (len(first), len(second)) == (1, 1)
        report = Report()
        first[0].set_result(report)
        assert await early is report
        assert not late.done()
        second[0].set_exception(KernelError("ipvsadm", errno=1))
        with pytest.raises(KernelError):
            await late

    run_in_loop(scenario())


def test_who_waits_for_nothing_is_answered_by_a_pass_over_nothing() -> None:
    async def scenario() -> None:
        dirty = Dirty()
        await waiter(dirty)
        assert not await is_waiting(dirty)
        taken, waiting = dirty.take()
        assert taken == scope()
        waiting[0].set_result(Report())

    run_in_loop(scenario())


def test_services_alone_are_taken_with_those_who_wait_for_them() -> None:
    async def scenario() -> None:
        dirty = Dirty()
        dirty.mark([WEB])
        task = await waiter(dirty)
        services, waiting = dirty.take_services()
        assert services == {WEB}
        waiting[0].set_result(Report())
        assert await task == Report()
        assert dirty.take() == (scope(), [])

    run_in_loop(scenario())


@pytest.mark.parametrize("everything", [True, False])
def test_with_more_than_services_marked_who_waits_goes_on_waiting(everything: bool) -> None:
    async def scenario() -> None:
        dirty = Dirty()
        dirty.mark([WEB], host=not everything)
        if everything:
            dirty.mark_everything()
        task = await waiter(dirty)
        assert dirty.take_services() == (frozenset({WEB}), [])
        assert not await is_waiting(dirty)
        taken, waiting = dirty.take()
        assert taken == (EVERYTHING if everything else scope(host=True))
        waiting[0].set_result(Report())
        await task

    run_in_loop(scenario())


def test_without_marked_services_there_is_nothing_to_take() -> None:
    async def scenario() -> None:
        dirty = Dirty()
        task = await waiter(dirty)
        assert dirty.take_services() == (frozenset(), [])
        _, waiting = dirty.take()  # not lost
        waiting[0].set_result(Report())
        await task

    run_in_loop(scenario())


def test_who_no_longer_waits_is_in_nobodys_way() -> None:
    async def scenario() -> None:
        dirty = Dirty()
        dirty.mark([WEB])
        task = await waiter(dirty)
        task.cancel()
        await asyncio.sleep(0)
        _, waiting = dirty.take()
        assert [future.done() for future in waiting] == [True]

    run_in_loop(scenario())
