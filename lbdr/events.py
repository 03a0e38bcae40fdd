"""What happened to a director, in a file that is bounded and outlives the daemon.

One JSON object a line, the newest last. When the file is full it becomes the one before it, and a
new one is begun, so that between half and all of its bytes are kept.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

_NAME = "events.jsonl"
_PREVIOUS = "events.previous.jsonl"
_MOST_WAITING = 10_000
MOST_BYTES = 4 << 20


class EventKind(StrEnum):
    """What an event is about."""

    DAEMON = "daemon"
    CONFIGURATION = "configuration"
    ROLE = "role"
    OPERATOR = "operator"
    HEALTH = "health"
    VIP = "vip"
    DRIFT = "drift"
    FASTPATH = "fastpath"
    PROBLEM = "problem"


class Event(BaseModel):
    """Something that happened.

    Args:
        number: one more than that of the event before.
        time: seconds of Unix time.
        kind: what it is about.
        text: what happened, for a person.
        virtual_service: whose; empty where it is none's.
        real_server: whose; empty where it is none's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    number: int
    time: float
    kind: EventKind
    text: str
    virtual_service: str = ""
    real_server: str = ""


class EventLog:
    """The events of a director. Writing waits for no disk: it is done by `run`.

    Args:
        directory: the state directory; it is there.
        trouble: told why events cannot be kept, and "" when they can again.
        most_bytes: of both files together, about.
    """

    def __init__(
        self, directory: Path, trouble: Callable[[str], None], most_bytes: int = MOST_BYTES
    ) -> None:
        self._path = directory / _NAME
        self._previous = directory / _PREVIOUS
        self._trouble = trouble
        self._limit = most_bytes // 2
        self._waiting: deque[Event] = deque(maxlen=_MOST_WAITING)
        self._any = asyncio.Event()
        last = deque(read(directory), maxlen=1)
        self._number = last[0].number if last else 0

    def add(
        self, kind: EventKind, text: str, *, virtual_service: str = "", real_server: str = ""
    ) -> Event:
        """Keep an event that happens now."""
        self._number += 1
        event = Event(
            number=self._number,
            time=time.time(),
            kind=kind,
            text=text,
            virtual_service=virtual_service,
            real_server=real_server,
        )
        self._waiting.append(event)
        self._any.set()
        return event

    async def run(self) -> None:
        """Write what is added, until cancelled; what waits then is written by `close`."""
        while True:
            await self._any.wait()
            self._any.clear()
            self._trouble(await asyncio.to_thread(self._write))

    def close(self) -> None:
        """Write what still waits."""
        self._trouble(self._write())

    def _write(self) -> str:
        """Write what waits; why it cannot be written, or nothing."""
        lines = []
        while self._waiting:
            lines.append(self._waiting.popleft().model_dump_json() + "\n")
        data = "".join(lines).encode()
        try:
            if data and _append(self._path, data) > self._limit:
                self._path.replace(self._previous)
        except OSError as error:
            return f"{self._path} cannot be written: {error.strerror}"
        return ""


def _append(path: Path, data: bytes) -> int:
    """Add bytes to a file; its size then."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    try:
        while data:
            data = data[os.write(descriptor, data) :]
        return os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)


def read(directory: Path) -> Iterator[Event]:
    """The events that are kept, the oldest first; a line that a crash cut short is left out.

    Args:
        directory: the state directory.

    Raises:
        PermissionError: it is root's.
    """
    for name in (_PREVIOUS, _NAME):
        try:
            file = (directory / name).open("rb")
        except FileNotFoundError:
            continue
        with file:
            for line in file:
                event = _parsed(line)
                if event is not None:
                    yield event


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which events are meant.

    Args:
        last: at most so many.
        after: those after the one of this number.
        since: those since then, seconds of Unix time.
        kind: of this kind alone.
        virtual_service: of this one alone.
        real_server: of this one alone.
    """

    last: int
    after: int = 0
    since: float = 0.0
    kind: EventKind | None = None
    virtual_service: str | None = None
    real_server: str | None = None

    def of(self, events: Iterable[Event]) -> list[Event]:
        """The last of the events that are meant."""
        meant = (
            event
            for event in events
            if event.number > self.after
            and event.time >= self.since
            and self.kind in (None, event.kind)
            and self.virtual_service in (None, event.virtual_service)
            and self.real_server in (None, event.real_server)
        )
        return list(deque(meant, maxlen=self.last))


def _parsed(line: bytes) -> Event | None:
    try:
        return Event.model_validate(json.loads(line))
    except (ValueError, ValidationError):
        return None
