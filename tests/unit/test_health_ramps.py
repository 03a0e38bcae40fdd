"""Weights that change over time, and what feedback agents say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbdr.health.policy import Feedback
from lbdr.health.ramps import AgentReport, approach, next_step, parse_report, ramp


@given(st.floats(1, 3600), st.lists(st.floats(0, 2), max_size=30))
def test_a_ramp_grows_and_stays_near_a_straight_line(duration: float, points: list[float]) -> None:
    parts = [ramp(part * duration, duration) for part in sorted(points)]
    assert parts == sorted(parts)
    for part, given_part in zip(sorted(points), parts, strict=True):
        assert abs(given_part - min(1, part)) <= 0.1 + 1e-9
        assert 0 < given_part <= 1


@given(st.floats(1, 3600))
def test_the_steps_of_a_ramp_are_where_it_says(duration: float) -> None:
    """Ten of them at most, each one higher, and the last one is the whole weight."""
    seen = [ramp(0, duration)]
    elapsed = next_step(0, duration)
    while elapsed is not None:
        seen.append(ramp(elapsed, duration))
        assert len(seen) <= 10
        elapsed = next_step(elapsed, duration)
    assert seen == sorted(set(seen))
    assert seen[-1] == 1


@pytest.mark.parametrize(
    ("line", "report"),
    [
        ("75%", AgentReport(75)),
        ("0%", AgentReport(0)),
        ("250%", AgentReport(100)),
        ("up", AgentReport(None, "up")),
        ("ready up 50%", AgentReport(50, "up")),
        ("drain", AgentReport(None, "drain")),
        ("MAINT", AgentReport(None, "drain")),
        ("down,50%", AgentReport(None, "down", "50%")),
        ("up 20% # disk nearly full", AgentReport(20, "up", "disk nearly full")),
        ("down the archive is read-only", AgentReport(None, "down", "the archive is read-only")),
        ("stopped # for backup", AgentReport(None, "down", "for backup")),
        ("maxconn:30 80%", AgentReport(80)),
        ("", None),
        ("   # nothing", None),
        ("<html>", None),
        ("-5%", None),
    ],
)
def test_reports_of_agents(line: str, report: AgentReport | None) -> None:
    assert parse_report(line) == report


@given(st.text(max_size=200))
def test_no_line_breaks_the_parser(line: str) -> None:
    report = parse_report(line)
    assert report is None or report.percent is None or 0 <= report.percent <= 100


@given(
    st.integers(0, 100),
    st.integers(0, 100),
    st.builds(Feedback, step=st.integers(1, 50), deadband=st.integers(0, 20)),
)
def test_an_agents_weight_is_approached_in_small_steps(
    current: int, wanted: int, feedback: Feedback
) -> None:
    """It ends, within the deadband, and never overshoots."""
    for _ in range(101):
        stepped = approach(current, wanted, feedback)
        assert abs(stepped - current) <= feedback.step
        assert min(current, wanted) <= stepped <= max(current, wanted)
        if stepped == current:
            break
        current = stepped
    assert abs(current - wanted) < max(1, feedback.deadband)
    if wanted in (0, 100):
        assert current == wanted
