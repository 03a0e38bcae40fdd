"""From single results to a verdict: rise, fall, and when to look again; pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from lbdr.health.results import Failed, FailureKind, Passed, Result
from lbdr.health.spec import Initial, Timing


class Status(StrEnum):
    """What is known of a server."""

    UP = "up"
    DOWN = "down"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a server can serve.

    Args:
        status: up, down, or not known yet.
        since: when that began, on the caller's clock.
        why: the words of the check that decided.
        latency: seconds that the last answer took; None where there is none.
        initial: what an unknown one counts as.
    """

    status: Status = Status.UNKNOWN
    since: float = 0.0
    why: str = "not checked yet"
    latency: float | None = None
    initial: Initial = Initial.DOWN

    @property
    def up(self) -> bool:
        """Whether it counts as up."""
        if self.status is Status.UNKNOWN:
            return self.initial is Initial.UP
        return self.status is Status.UP


@dataclass(frozen=True, slots=True)
class Tally:
    """A check's verdict, and what its last results were.

    Args:
        verdict: what they amount to.
        against: results in a row that say the opposite of how the server counts.
        last: the last result; None before the first one.
    """

    verdict: Verdict
    against: int = 0
    last: Result | None = None

    @property
    def changing(self) -> bool:
        """Whether the next results may change the verdict: the faster interval is due."""
        return bool(self.against)


def begin(initial: Initial, now: float) -> Tally:
    """A check that has not run yet."""
    return Tally(Verdict(since=now, initial=initial))


def count(tally: Tally, result: Result, timing: Timing, now: float) -> Tally:
    """What a further result makes of a verdict.

    `rise` passes in a row bring a server up that is down, `fall` failures in a row take one down
    that is up. The first result decides on one of which nothing is known, whatever it counted as
    until then. What failed on this director is no verdict on a server: it changes nothing, and a
    row goes on after it.

    Args:
        tally: so far.
        result: the next one.
        timing: rise and fall.
        now: when it came.
    """
    verdict = tally.verdict
    if _local(result):
        return replace(tally, last=result)
    passed = isinstance(result, Passed)
    latency = result.latency
    if passed == verdict.up:
        status = Status.UP if passed else Status.DOWN
        since = verdict.since if verdict.status is status else now
        return Tally(Verdict(status, since, result.words, latency, verdict.initial), 0, result)
    against = tally.against + 1
    known = verdict.status is not Status.UNKNOWN
    if known and against < (timing.rise if passed else timing.fall):
        return Tally(replace(verdict, latency=latency), against, result)
    status = Status.UP if passed else Status.DOWN
    return Tally(Verdict(status, now, result.words, latency, verdict.initial), 0, result)


def pause(tally: Tally, timing: Timing, random: float) -> float:
    """Seconds from a check's start to its next one.

    Args:
        tally: after its result.
        timing: intervals and jitter.
        random: from 0 to 1; how much of the jitter to take.
    """
    interval = timing.interval
    if tally.changing and timing.fast_interval is not None:
        interval = min(interval, timing.fast_interval)
    return interval * (1 - timing.jitter * random)


def combine(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict on a server of all its checks: all must pass.

    What is down decides, the longest one first; then what is not known. With no checks at all a
    server is up.
    """
    found = list(verdicts)
    if not found:
        return Verdict(Status.UP, 0.0, "not checked", None, Initial.UP)
    down = [each for each in found if each.status is Status.DOWN]
    if down:
        return min(down, key=lambda each: each.since)
    unknown = [each for each in found if each.status is Status.UNKNOWN]
    if unknown:
        # one that counts as down outweighs those that count as up
        return min(unknown, key=lambda each: (each.up, each.since))
    latest = max(found, key=lambda each: each.since)
    return replace(latest, latency=max((each.latency or 0.0 for each in found), default=None))


def dependent(name: str, verdict: Verdict) -> Verdict:
    """A verdict on something that a server needs, as a part of the verdict on that server."""
    return replace(verdict, why=f"depends on {name}: {verdict.why}")


def longest_outage(timing: Timing) -> float:
    """Seconds in which a server whose checks all fail is out at the latest, jitter or not."""
    return timing.fall * max(timing.interval, timing.timeout) + timing.timeout


def _local(result: Result | None) -> bool:
    return isinstance(result, Failed) and result.kind is FailureKind.LOCAL
