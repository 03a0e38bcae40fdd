"""Asks feedback agents what share of its weight a real server can bear."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

from lbdr.health.checks.attempt import Attempt, CheckError, describe, quote
from lbdr.health.checks.stream import connected
from lbdr.health.ramps import AgentReport, parse_report
from lbdr.health.results import FailureKind
from lbdr.health.spec import Agent

_log = logging.getLogger(__name__)

_LINE = 1024  # bytes of an answer
_PATIENCE = 3  # questions without an answer, until its last word is forgotten

Heard: TypeAlias = Callable[[Agent, AgentReport | None], None]
"""Told of an agent's new word, or that it is silent; it must return at once."""


async def ask(agent: Agent) -> AgentReport:
    """Ask an agent once.

    Raises:
        CheckError: it does not answer in time, or makes no sense.
    """
    attempt = Attempt(agent.target, agent.timeout)
    try:
        async with asyncio.timeout(agent.timeout), connected(attempt) as stream:
            attempt.missing = "accepted the connection, but did not say a line"
            if agent.send:
                await stream.send(agent.send)
            said = b""
            while b"\n" not in said and len(said) < _LINE:
                more = await stream.some()
                said += more
                if not more:
                    break
    except TimeoutError as error:
        raise CheckError(attempt.missing, FailureKind.TIMEOUT) from error
    except OSError as error:
        raise describe(error) from error
    line = said.partition(b"\n")[0]
    report = parse_report(line.decode("utf-8", errors="replace").strip())
    if report is None:
        raise CheckError(f"is no feedback agent: it said {quote(line)}", FailureKind.PROTOCOL)
    return report


@dataclass(slots=True)
class _Watched:
    report: AgentReport | None = None
    silent: int = 0
    task: asyncio.Task[None] | None = None


class Agents:
    """Asks a changing set of agents; what one said last holds for some questions without answer.

    Args:
        heard: told of every change.
    """

    def __init__(self, heard: Heard) -> None:
        self._heard = heard
        self._watched: dict[Agent, _Watched] = {}

    def report(self, agent: Agent) -> AgentReport | None:
        """What an agent under watch said last; None where it is silent."""
        return self._watched[agent].report

    def watch(self, agents: Iterable[Agent]) -> None:
        """Ask these agents from now on, and no others; what is known of those that stay is kept."""
        wanted = dict.fromkeys(agents)
        for agent in list(self._watched):
            if agent not in wanted:
                task = self._watched.pop(agent).task
                if task is not None:
                    task.cancel()
        for agent in wanted:
            if agent not in self._watched:
                watched = self._watched[agent] = _Watched()
                watched.task = asyncio.create_task(self._keep(agent, watched))

    async def close(self) -> None:
        """Ask no more."""
        tasks = [watched.task for watched in self._watched.values() if watched.task is not None]
        self._watched.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep(self, agent: Agent, watched: _Watched) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + random.random() * min(1.0, agent.interval)  # noqa: S311
        while True:
            await asyncio.sleep(max(0.0, due - loop.time()))
            start, before = loop.time(), watched.report
            try:
                watched.report = await ask(agent)
                watched.silent = 0
            except CheckError as error:
                watched.silent += 1
                if watched.silent == _PATIENCE:
                    watched.report = None
                    _log.warning("the agent at %s %s", agent.target, error.words)
            if watched.report != before:
                self._tell(agent, watched.report)
            due = max(start + agent.interval, loop.time())

    def _tell(self, agent: Agent, report: AgentReport | None) -> None:
        try:
            self._heard(agent, report)
        except Exception:  # noqa: BLE001  # else this agent is asked no more, in silence
            _log.exception("what the agent at %s said could not be handed on", agent.target)
