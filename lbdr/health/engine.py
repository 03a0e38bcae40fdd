"""Runs checks, thousands of them, each by its own clock, and tells of every changed verdict."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from lbdr.datapath.vip_probe import VipProber
from lbdr.health.checks.attempt import Trace
from lbdr.health.checks.run import run
from lbdr.health.results import Result
from lbdr.health.spec import Check, External, Probe, Target
from lbdr.health.verdicts import Tally, Verdict, begin, count, pause

_log = logging.getLogger(__name__)

_STARTS = 500.0  # first checks a second: those of a large configuration spread out
_PROGRAMS = 16  # of the user's that run at the same time
_LATE = 1.0  # seconds; a check that begins later than this is told of
_QUIET = 60.0  # seconds before that is told again

Changed: TypeAlias = Callable[[Probe, Tally, Verdict], None]
"""Told of a probe, what is known now, and the verdict before; it must return at once."""

Runner: TypeAlias = Callable[[Probe], Awaitable[Result]]


@dataclass(slots=True)
class _Watched:
    """A probe under watch."""

    tally: Tally
    task: asyncio.Task[None] | None = field(default=None)


class Engine:
    """Checks a changing set of probes.

    For the network namespace of the calling thread; close it at the end. Times in verdicts are the
    event loop's: CLOCK_MONOTONIC, which another process of the same boot shares.

    Args:
        changed: told of every verdict that changed.
        runner: runs a probe; None for the real thing.
        programs: programs of the user's that may run at the same time.
    """

    def __init__(
        self, changed: Changed, *, runner: Runner | None = None, programs: int = _PROGRAMS
    ) -> None:
        self._changed = changed
        self._runner = runner or self._run
        self._programs = asyncio.Semaphore(programs)
        self._prober: VipProber | None = None
        self._watched: dict[Probe, _Watched] = {}
        self._latest = 0.0
        self._warned = float("-inf")
        self._ran = 0

    @property
    def probes(self) -> frozenset[Probe]:
        """The probes under watch."""
        return frozenset(self._watched)

    @property
    def ran(self) -> int:
        """Checks that ended so far."""
        return self._ran

    def tally(self, probe: Probe) -> Tally:
        """What is known of a probe under watch."""
        return self._watched[probe].tally

    def lateness(self) -> float:
        """Seconds by which the latest check began too late, since this was asked last."""
        latest, self._latest = self._latest, 0.0
        return latest

    def watch(self, probes: Iterable[Probe], known: Mapping[Probe, Verdict] | None = None) -> None:
        """Watch these probes from now on, and no others.

        What was known of a probe stays known, also where only its timing is another one.

        Args:
            probes: all of them.
            known: verdicts of an earlier process, for probes that are new to this one.
        """
        wanted = dict.fromkeys(probes)
        alike: dict[tuple[Target, Check], Tally] = {}
        for probe in list(self._watched):
            if probe not in wanted:
                watched = self._watched.pop(probe)
                alike[probe.target, probe.check] = watched.tally
                if watched.task is not None:
                    watched.task.cancel()
        new = [probe for probe in wanted if probe not in self._watched]
        now = asyncio.get_running_loop().time()
        spread = len(new) / _STARTS
        for probe in new:
            tally = alike.get((probe.target, probe.check))
            if tally is not None:
                tally = Tally(tally.verdict, 0, tally.last)
            elif known is not None and probe in known:
                tally = Tally(known[probe])
            else:
                tally = begin(probe.initial, now)
            watched = self._watched[probe] = _Watched(tally)
            delay = min(spread, probe.timing.interval) * random.random()  # noqa: S311
            watched.task = asyncio.create_task(self._keep(probe, watched, now + delay))

    async def check_now(self, probe: Probe, trace: Trace | None = None) -> Result:
        """Run a check once, beside its schedule; it changes no verdict.

        Args:
            probe: any probe.
            trace: told of what is sent and received.
        """
        return await run(probe, prober=self._vip_prober(), trace=trace)

    async def close(self) -> None:
        """Stop all checks, and close what they opened."""
        tasks = [watched.task for watched in self._watched.values() if watched.task is not None]
        self._watched.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._prober is not None:
            self._prober.close()
            self._prober = None

    async def _keep(self, probe: Probe, watched: _Watched, due: float) -> None:
        """Check a probe by its schedule, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(max(0.0, due - loop.time()))
            if isinstance(probe.check, External):
                async with self._programs:
                    start, result = await self._once(probe, due)
            else:
                start, result = await self._once(probe, due)
            before = watched.tally
            watched.tally = count(before, result, probe.timing, loop.time())
            verdict, was = watched.tally.verdict, before.verdict
            if (verdict.status, verdict.up) != (was.status, was.up):
                _log.info("%s is %s: %s", probe, verdict.status, verdict.why)
                self._tell(probe, watched.tally, was)
            share = random.random()  # noqa: S311  # nothing is secret in it
            due = max(start + pause(watched.tally, probe.timing, share), loop.time())

    async def _once(self, probe: Probe, due: float) -> tuple[float, Result]:
        """Run a check; when it began, and what it found."""
        start = asyncio.get_running_loop().time()
        late = start - due
        self._latest = max(self._latest, late)
        if late > _LATE and start > self._warned + _QUIET:
            self._warned = start
            _log.warning("%s began %.1f s late: there is too much to do here", probe, late)
        result = await self._runner(probe)
        self._ran += 1
        return start, result

    def _tell(self, probe: Probe, tally: Tally, was: Verdict) -> None:
        try:
            self._changed(probe, tally, was)
        except Exception:  # noqa: BLE001  # else this probe is checked no more, in silence
            _log.exception("a changed verdict on %s could not be handed on", probe)

    async def _run(self, probe: Probe) -> Result:
        return await run(probe, prober=self._vip_prober())

    def _vip_prober(self) -> VipProber:
        if self._prober is None:
            self._prober = VipProber()
        return self._prober
