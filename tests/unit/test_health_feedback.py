"""Feedback agents: what they say, and what holds while they are silent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import Any

import pytest

from lbdr.health.checks.attempt import CheckError
from lbdr.health.feedback import Agents, ask
from lbdr.health.ramps import AgentReport
from lbdr.health.results import FailureKind
from lbdr.health.spec import Agent, Target


class Speaker:
    """An agent that says what it is told to say; None says nothing."""

    def __init__(self) -> None:
        self.line: bytes | None = b"75%\n"
        self.asked: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.line is None:
            await reader.read()
        else:
            if self.line.startswith(b"echo"):
                self.asked.append(await reader.readline())
            writer.write(self.line.removeprefix(b"echo"))
            await writer.drain()
        writer.close()


@asynccontextmanager
async def speaking(speaker: Speaker) -> AsyncIterator[Target]:
    server = await asyncio.start_server(speaker.serve, "127.0.0.1", 0)
    try:
        yield Target(ip_address("127.0.0.1"), server.sockets[0].getsockname()[1])
    finally:
        server.close()
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others)


def running(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(20):
            await work()

    asyncio.run(limited())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # only changes are told
            await asyncio.sleep(0.005)


@pytest.mark.parametrize(
    ("line", "report"),
    [
        (b"75%\n", AgentReport(75)),
        (b"up 50%\r\n", AgentReport(50, "up")),
        (b"drain", AgentReport(None, "drain")),
        (
            b"down # the archive is read-only\nmore\n",
            AgentReport(None, "down", "the archive is read-only"),
        ),
    ],
)
def test_a_line_is_understood(line: bytes, report: AgentReport) -> None:
    speaker = Speaker()
    speaker.line = line

    async def work() -> None:
        async with speaking(speaker) as target:
            assert await ask(Agent(target)) == report

    running(work)


def test_what_is_to_be_sent_is_sent() -> None:
    speaker = Speaker()
    speaker.line = b"echo60%\n"

    async def work() -> None:
        async with speaking(speaker) as target:
            assert await ask(Agent(target, send=b"pacs\n")) == AgentReport(60)
        assert speaker.asked == [b"pacs\n"]

    running(work)


@pytest.mark.parametrize(
    ("line", "kind", "words"),
    [
        (b"SSH-2.0-OpenSSH\r\n", FailureKind.PROTOCOL, 'is no feedback agent: it said "SSH-2.0'),
        (b"", FailureKind.PROTOCOL, "is no feedback agent"),
        (b"x" * 5000, FailureKind.PROTOCOL, "is no feedback agent"),
        (None, FailureKind.TIMEOUT, "accepted the connection, but did not say a line"),
    ],
)
def test_what_is_no_agent_is_told(line: bytes | None, kind: FailureKind, words: str) -> None:
    speaker = Speaker()
    speaker.line = line

    async def work() -> None:
        async with speaking(speaker) as target:
            with pytest.raises(CheckError) as caught:
                await ask(Agent(target, timeout=0.3))
        assert caught.value.kind is kind
        assert words in caught.value.words

    running(work)


def test_a_silent_agents_last_word_holds_for_a_while() -> None:
    """Then it is forgotten, and the server gets its whole weight again."""
    speaker = Speaker()
    heard: list[AgentReport | None] = []

    async def work() -> None:
        async with speaking(speaker) as target:
            agent = Agent(target, interval=0.05, timeout=0.05)
            agents = Agents(lambda _, report: heard.append(report))
            agents.watch([agent])
            await until(lambda: heard == [AgentReport(75)])
            speaker.line = b"drain\n"
            await until(lambda: len(heard) == 2)
            speaker.line = None
            assert agents.report(agent) == AgentReport(None, "drain")
            await until(lambda: len(heard) == 3)
            speaker.line = b"100%\n"
            await until(lambda: len(heard) == 4)
            agents.watch([agent])
            assert agents.report(agent) == AgentReport(100)
            agents.watch([])
            await agents.close()

    running(work)
    assert heard == [AgentReport(75), AgentReport(None, "drain"), None, AgentReport(100)]
