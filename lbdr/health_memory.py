"""What is known of real servers, for the next daemon of this boot: verdicts, and the rules' memory.

A file in the run directory, replaced whole. Times in it are CLOCK_MONOTONIC's, which mean nothing
after a reboot: a file of another boot counts as none.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from lbdr.datapath import namespace
from lbdr.health.decision import MemberMemory, Memory
from lbdr.health.spec import Initial, Probe
from lbdr.health.verdicts import Status, Verdict

log = logging.getLogger(__name__)

_NAME = "health.json"


@dataclass(frozen=True, slots=True)
class Known:
    """What is known.

    Args:
        verdicts: by `name_of` the probe.
        memories: what the rules remember, by virtual service.
    """

    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    memories: Mapping[str, Memory] = field(default_factory=dict)


def name_of(probe: Probe) -> str:
    """A probe's name: the same in every process, whatever its timing."""
    return hashlib.blake2b(f"{probe.target!r} {probe.check!r}".encode(), digest_size=16).hexdigest()


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Verdict(_Strict):
    status: Status
    since: float
    why: str
    latency: float | None
    initial: Initial


class _Member(_Strict):
    serving_since: float | None
    ramp_from: float | None
    healthy: bool | None
    healthy_since: float
    downs: tuple[float, ...]
    percent: int
    percent_at: float | None


class _Service(_Strict):
    members: dict[str, _Member]
    quorum: bool | None
    took_over: frozenset[str]


class _File(_Strict):
    boot: str
    verdicts: dict[str, _Verdict]
    services: dict[str, _Service]


class HealthMemory:
    """The file.

    Args:
        directory: the run directory; it is there when something is saved.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / _NAME

    def load(self) -> Known:
        """What an earlier daemon of this boot knew; nothing where it cannot be read."""
        try:
            content = _File.model_validate_json(self._path.read_bytes())
        except FileNotFoundError:
            return Known()
        except (OSError, ValidationError) as error:
            log.warning("%s cannot be read, and every check begins anew: %s", self._path, error)
            return Known()
        if content.boot != namespace.boot_id():
            return Known()
        return Known(
            {
                name: Verdict(one.status, one.since, one.why, one.latency, one.initial)
                for name, one in content.verdicts.items()
            },
            {
                name: Memory(
                    {
                        server: MemberMemory(**member.model_dump())
                        for server, member in service.members.items()
                    },
                    service.quorum,
                    service.took_over,
                )
                for name, service in content.services.items()
            },
        )

    def save(self, known: Known) -> str:
        """Replace the file; why that cannot be done, or nothing."""
        content = _File(
            boot=namespace.boot_id(),
            verdicts={
                name: _Verdict(
                    status=one.status,
                    since=one.since,
                    why=one.why,
                    latency=one.latency,
                    initial=one.initial,
                )
                for name, one in known.verdicts.items()
            },
            services={
                name: _Service(
                    members={
                        server: _Member(
                            **{key: getattr(member, key) for key in _Member.model_fields}
                        )
                        for server, member in memory.members.items()
                    },
                    quorum=memory.quorum,
                    took_over=memory.took_over,
                )
                for name, memory in known.memories.items()
            },
        )
        new = self._path.with_name(f".{_NAME}.new")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            with suppress(FileNotFoundError):
                new.unlink()  # of one that was killed
            with open(os.open(new, flags, 0o600), "wb") as file:  # noqa: PTH123  # a descriptor
                file.write(content.model_dump_json().encode())
            new.replace(self._path)
        except OSError as error:
            return f"{self._path} cannot be written: {error.strerror}"
        return ""
