"""Rise, fall, intervals: by example and by random histories."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbdr.health.results import Failed, FailureKind, Passed, Result
from lbdr.health.spec import Initial, Timing
from lbdr.health.verdicts import (
    Status,
    Tally,
    Verdict,
    begin,
    combine,
    count,
    dependent,
    longest_outage,
    pause,
)

PASS: Result = Passed(0.01, "fine")
FAIL: Result = Failed(0.02, "broken", FailureKind.REFUSED)
LOCAL: Result = Failed(0.0, "no socket left", FailureKind.LOCAL)


def after(results: list[Result], timing: Timing, initial: Initial = Initial.DOWN) -> Tally:
    """What results at seconds 1, 2, ... make of a new check."""
    tally = begin(initial, 0.0)
    for second, result in enumerate(results, start=1):
        tally = count(tally, result, timing, float(second))
    return tally


def test_a_server_comes_up_after_rise_and_goes_down_after_fall() -> None:
    timing = Timing(rise=2, fall=3)
    assert not after([FAIL, PASS], timing).verdict.up
    tally = after([FAIL, PASS, PASS], timing)
    assert tally.verdict == Verdict(Status.UP, 3.0, "fine", 0.01, Initial.DOWN)
    assert after([PASS, FAIL, FAIL], timing).verdict.up
    tally = after([PASS, FAIL, FAIL, FAIL], timing)
    assert tally.verdict == Verdict(Status.DOWN, 4.0, "broken", 0.02, Initial.DOWN)


@pytest.mark.parametrize("initial", Initial)
def test_the_first_result_decides_on_what_nothing_is_known_of(initial: Initial) -> None:
    """Whatever it counted as: a dead server is not to have clients for three intervals at boot."""
    timing = Timing(rise=3, fall=3)
    assert begin(initial, 0.0).verdict.up is (initial is Initial.UP)
    assert after([LOCAL], timing, initial).verdict.status is Status.UNKNOWN
    assert after([PASS], timing, initial).verdict.status is Status.UP
    assert after([FAIL], timing, initial).verdict.status is Status.DOWN


def test_a_fault_of_the_director_is_no_verdict() -> None:
    """It has no file descriptors left: the servers stay as they were, and its words are kept."""
    timing = Timing(rise=1, fall=2)
    tally = after([PASS, LOCAL, LOCAL, LOCAL], timing)
    assert tally.verdict.up
    assert tally.last == LOCAL
    assert after([PASS, FAIL, LOCAL, FAIL], timing).verdict.status is Status.DOWN


def test_the_fast_interval_is_for_servers_that_change() -> None:
    timing = Timing(interval=6, fast_interval=1, rise=2, fall=3, jitter=0.5)
    assert pause(after([FAIL, PASS], timing), timing, 0) == 1
    assert pause(after([FAIL, PASS, PASS], timing), timing, 0) == 6
    assert pause(after([PASS], timing), timing, 0) == 6
    assert pause(after([PASS, PASS], timing), timing, 1) == 3
    assert pause(after([PASS, PASS, FAIL], timing), timing, 0) == 1
    assert pause(after([PASS, PASS, FAIL], replace(timing, fast_interval=None)), timing, 0) == 1
    slow = replace(timing, fast_interval=None)
    assert pause(after([PASS, PASS, FAIL], slow), slow, 0) == 6


def test_all_checks_of_a_server_must_pass() -> None:
    up = Verdict(Status.UP, 1.0, "fine", 0.01)
    slow = Verdict(Status.UP, 2.0, "fine too", 0.5)
    down = Verdict(Status.DOWN, 5.0, "refused", 0.02)
    unknown = Verdict(Status.UNKNOWN, 0.0)
    assert combine([]).up
    assert combine([up, slow]) == replace(slow, latency=0.5)
    assert combine([up, down, unknown]) == down
    assert combine([up, unknown]) == unknown
    assert not combine([up, unknown]).up
    hopeful = replace(unknown, initial=Initial.UP)
    assert combine([up, hopeful]).up
    assert combine([hopeful, unknown]) == unknown
    database = dependent("db1", down)
    assert combine([up, database]).why == "depends on db1: refused"


results = st.lists(st.sampled_from([PASS, FAIL, LOCAL]), max_size=40)
timings = st.builds(
    Timing,
    interval=st.floats(0.1, 60),
    timeout=st.floats(0.1, 60),
    rise=st.integers(1, 5),
    fall=st.integers(1, 5),
    fast_interval=st.none() | st.floats(0.1, 60),
    jitter=st.floats(0, 0.5),
)


@given(results, timings, st.sampled_from(Initial))
def test_rise_and_fall_are_exact(history: list[Result], timing: Timing, initial: Initial) -> None:
    """A verdict turns exactly when the last rise or fall conclusive results agree against it."""
    tally = begin(initial, 0.0)
    conclusive: list[bool] = []
    expected = initial is Initial.UP
    for second, result in enumerate(history, start=1):
        tally = count(tally, result, timing, float(second))
        if result is not LOCAL:
            conclusive.append(result is PASS)
        needed = timing.fall if expected else timing.rise
        if len(conclusive) == 1:  # nothing was known
            needed = 1
        row = conclusive[-needed:]
        if len(row) == needed and all(each is not expected for each in row):
            expected = not expected
        assert tally.verdict.up is expected
        assert tally.verdict.since <= second
        if conclusive and conclusive[-1] is expected:
            assert tally.verdict.status is (Status.UP if expected else Status.DOWN)


@given(results, timings, st.data())
def test_a_dead_server_is_out_in_time(
    history: list[Result], timing: Timing, data: st.DataObject
) -> None:
    """Right after a check passed it dies, and each failure takes the whole timeout."""
    tally = after([*history, *[PASS] * timing.rise], timing)
    assert tally.verdict.up
    started, ended, failures = 0.0, 0.0, 0
    while tally.verdict.up:
        started = max(ended, started + pause(tally, timing, data.draw(st.floats(0, 1))))
        ended = started + timing.timeout
        tally = count(tally, FAIL, timing, ended)
        failures += 1
    assert failures == timing.fall
    assert ended <= longest_outage(timing) + 1e-6


@given(results, timings)
def test_a_verdict_changes_only_with_its_since(history: list[Result], timing: Timing) -> None:
    """And since never runs backwards."""
    tally = begin(Initial.DOWN, 0.0)
    for second, result in enumerate(history, start=1):
        before = tally.verdict
        tally = count(tally, result, timing, float(second))
        changed = tally.verdict.status is not before.status
        assert tally.verdict.since == (float(second) if changed else before.since)
