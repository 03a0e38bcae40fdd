"""The tracking rules in C, and the control plane beside them, through random histories."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lbdr.model import Protocol
from tests.fastpath import World, fast_path
from tests.tracking_control import CAPACITY, Setting
from tests.tracking_model import (
    CLIENTS,
    HOUR,
    PORTS,
    SKIPS,
    STEPS,
    History,
    Moved,
    naive,
    random_setting,
    random_steps,
)

SECONDS = 12
LENGTH = 120


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    if os.geteuid() != 0:
        if os.environ.get("CI"):
            pytest.fail("BPF needs root")
        pytest.skip("BPF needs root")
    with fast_path(tmp_path_factory.mktemp("bpffs"), CAPACITY) as made:
        yield made


def test_no_connection_moves_while_its_server_lives(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """As many histories as there is time for, always the same ones first."""
    counts: Counter[str] = Counter()
    end = time.monotonic() + SECONDS
    seed = 0
    while time.monotonic() < end:
        chance = random.Random(seed)  # noqa: S311  # histories
        history = History(world, random_setting(chance), seed, counts)
        history.play(random_steps(chance, LENGTH))
        seed += 1
    with capsys.disabled():
        told = ", ".join(f"{count:,} {what}" for what, count in sorted(counts.items()))
        print(f"\n{seed} histories of {LENGTH} steps: {told}; 0 moved")  # noqa: T201  # figures
    assert seed > 20
    assert min(counts[what] for what in ("connections", "lost with their server", "floods")) > 0


def _all(name: str) -> list[tuple[str, int, int]]:
    """One step of each of the clients' tuples."""
    return [(name, which, 1) for which in range(CLIENTS * PORTS)]


_OPEN = [*_all("open"), *_all("ack"), *_all("data")]
_ADD = [("plan", 0, 0), ("change", 0, 0)]
_DRAIN = [("plan", 1, 1), ("change", 0, 0)]
_RESTORE = [("plan", 0, 2), ("change", 0, 0)]
_SWEEP = [("sweep", 0, 0)]


def _skip(ticks: int) -> list[tuple[str, int, int]]:
    return [("skip", SKIPS.index(ticks), 0)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    ("protocol", "steps"),
    [
        pytest.param(protocol, steps, id=name)
        for name, protocol, steps in (
            ("older than a change", Protocol.TCP, [*_OPEN, *_ADD, *_all("data")]),
            (
                "drained and back",
                Protocol.TCP,
                [*_DRAIN, *_OPEN, *_RESTORE, *_SWEEP, *_all("data")],
            ),
            (
                "failed and back",
                Protocol.TCP,
                [*_OPEN, ("fail", 0, 0), *_ADD, *_SWEEP, *_all("data")],
            ),
            (
                "half closed for longer than 2 minutes",
                Protocol.TCP,
                [*_ADD, *_OPEN, *_all("end"), *2 * [*_skip(80), *_SWEEP, *_all("data")]],
            ),
            (
                "a spoofed SYN that expires",
                Protocol.TCP,
                [*_ADD, *_OPEN, *_all("spoof"), *_skip(80), *_SWEEP, *_all("data")],
            ),
            (
                "a blind reset of one that is idle",
                Protocol.TCP,
                [*_ADD, *_OPEN, *_all("blind"), *_skip(130), *_SWEEP, *_all("data")],
            ),
            (
                "a SYN sent again after a planned change",
                Protocol.TCP,
                [("plan", 0, 0), *_all("open"), ("change", 0, 0), *_all("again"), *_OPEN],
            ),
            (
                "no room for records",
                Protocol.TCP,
                [*_ADD, ("fill", 0, 1), *_OPEN, *_skip(80), *_SWEEP, *_all("data")],
            ),
            (
                "active while old connections are recorded",
                Protocol.TCP,
                [*_OPEN, *_ADD, *2 * [*_skip(6 * HOUR), *_all("data"), *_SWEEP], *_all("data")],
            ),
            (
                "UDP older than a change",
                Protocol.UDP,
                [*_OPEN, *_ADD, *2 * [*_skip(290), *_SWEEP, *_all("data")]],
            ),
            (
                "UDP begun between two changes",
                Protocol.UDP,
                [*_ADD, *_skip(310), *_OPEN, *_ADD, *_all("data")],
            ),
            (
                "UDP while a server is drained",
                Protocol.UDP,
                [*_DRAIN, *_skip(310), *_OPEN, *_RESTORE, *_all("data")],
            ),
        )
    ],
)
def test_a_connection_stays(
    world: World,
    protocol: Protocol,
    steps: list[tuple[str, int, int]],
    version: int,
    seed: int,
) -> None:
    """What random histories seldom come to."""
    history = History(world, Setting(version, protocol, maglev=False), seed)
    history.play(steps)
    assert history.counts["connections"] == CLIENTS * PORTS
    assert history.counts["packets"] >= CLIENTS * PORTS


_STEPS = st.lists(
    st.tuples(st.sampled_from(list(STEPS)), st.integers(0, 1023), st.integers(0, 1023)),
    min_size=10,
    max_size=80,
)


@settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(_STEPS, st.randoms(use_true_random=False), st.integers(0, 1 << 16))
def test_no_connection_moves_in_any_history(
    world: World, steps: list[tuple[str, int, int]], chance: random.Random, seed: int
) -> None:
    History(world, random_setting(chance), seed).play(steps)


def test_the_histories_move_connections_that_nothing_tracks(world: World) -> None:
    """They are no histories in which nothing could go wrong."""
    moved = 0
    for seed in range(20):
        chance = random.Random(seed)  # noqa: S311  # histories
        setting = random_setting(chance)
        try:
            History(world, naive(setting), seed).play(random_steps(chance, LENGTH))
        except Moved:
            moved += 1
    assert moved > 10
