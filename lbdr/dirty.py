"""What has to be looked at again; marking is cheap, and nothing is lost while a pass runs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field

from lbdr.model import Key
from lbdr.report import Report, Scope


@dataclass(slots=True)
class _Marks:
    everything: bool = False
    host: bool = False
    services: set[Key] = field(default_factory=set)
    waiting: list[asyncio.Future[Report]] = field(default_factory=list)


class Dirty:
    """Marks by service, and those who wait until theirs were looked at."""

    def __init__(self) -> None:
        self._marks = _Marks()
        self._event = asyncio.Event()

    def mark(self, services: Iterable[Key] = (), *, host: bool = False) -> None:
        """Mark some services; or VIPs, sysctls and timeouts."""
        self._marks.services.update(services)
        self._marks.host |= host
        if self._marks.services or self._marks.host:
            self._event.set()

    def mark_everything(self) -> None:
        """Mark all there is."""
        self._marks.everything = True
        self._event.set()

    async def settled(self) -> Report:
        """Wait until all that is marked now was looked at; what the pass did.

        Raises:
            LbdrError: the pass ended with it.
        """
        future: asyncio.Future[Report] = asyncio.get_running_loop().create_future()
        self._marks.waiting.append(future)
        self._event.set()
        return await future

    async def wait(self) -> None:
        """Wait until something is marked."""
        await self._event.wait()

    def take(self) -> tuple[Scope, list[asyncio.Future[Report]]]:
        """Take all marks, and the waiters to wake when they were looked at."""
        marks, self._marks = self._marks, _Marks()
        self._event.clear()
        if marks.everything:
            return Scope(), marks.waiting
        return Scope(services=frozenset(marks.services), host=marks.host), marks.waiting

    def take_services(self) -> tuple[frozenset[Key], list[asyncio.Future[Report]]]:
        """Take the marked services alone, with the waiters where nothing else is marked."""
        services = frozenset(self._marks.services)
        self._marks.services.clear()
        if not services or self._marks.everything or self._marks.host:
            return services, []
        waiting, self._marks.waiting = self._marks.waiting, []
        return services, waiting
