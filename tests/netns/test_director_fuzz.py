"""The director and a million random and mutated frames, against its model."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable

import pytest

from lbdr.datapath.bpf_wire import Verdict
from tests.director_fuzz import (
    GONE,
    SERVERS,
    TRACKED,
    TRACKED_SERVERS,
    Runner,
    begin_again,
    build,
    frames,
)
from tests.director_model import Expected, Model
from tests.fastpath import Engine, World

FRAMES = int(os.environ.get("LBDR_FRAMES", "1000000"))  # 25 s
SEED = int(os.environ.get("LBDR_SEED", "0"))
PERIOD = 2000  # frames after which flows and fragments are as they were at first
TAGS = (b"\x81\x00", b"\x88\xa8")

Ask = Callable[[bytes], tuple[int, bytes]]
Seen = Callable[[bytes, Expected], Expected | None]


def compare(
    world: World,
    model: Model,
    ask: Ask,
    *,
    count: int,
    seed: int,
    seen_by: Seen | None = None,
) -> Counter[int]:
    """Ask about frames; how often there was which verdict."""
    verdicts: Counter[int] = Counter()
    source = frames(seed)
    for number in range(count):
        if not number % PERIOD:
            begin_again(world, model)
        frame = next(source)
        expected: Expected | None = model.expect(frame)
        if seen_by and expected:
            expected = seen_by(frame, expected)
        if expected is None:
            continue
        verdict, data = ask(frame)
        verdicts[verdict] += 1
        if verdict != expected.verdict or data not in expected.frames:
            wanted = " or ".join(one.hex() for one in expected.frames)
            became = f"{Verdict(verdict).name} {data.hex()}"
            pytest.fail(f"{frame.hex()}\nbecame {became}\nnot {expected.verdict.name} {wanted}")
    return verdicts


def check_counters(world: World, model: Model) -> None:
    """Every reason and every forwarded frame was counted."""
    for service in (0, *model.services):
        wanted = {why: count for (one, why), count in model.reasons.items() if one == service}
        if service != TRACKED:  # records that could not be written are counted there, too
            assert world.reasons(service) == wanted, service
    for server in SERVERS.keys() - TRACKED_SERVERS:
        assert world.served(server)[0] == model.served[server], server


def test_a_million_frames(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """No XDP_ABORTED; what is for no service passes unmodified; the rest is as the model says."""
    model = build(world)
    verdicts = compare(world, model, Runner(world.programs.steady), count=FRAMES, seed=SEED)
    assert verdicts[Verdict.ABORTED] == 0
    assert min(verdicts[one] for one in Verdict if one) > FRAMES // 1000
    check_counters(world, model)
    with capsys.disabled():
        told = ", ".join(f"{count:,} {Verdict(one).name}" for one, count in verdicts.most_common())
        print(f"\n{FRAMES:,} frames: {told}; no difference")  # noqa: T201  # figures


def test_the_director_alone_answers_the_same(world: World) -> None:
    model = build(world)
    ask = Runner(world.programs.director)
    verdicts = compare(world, model, ask, count=FRAMES // 10, seed=SEED + 1)
    assert verdicts[Verdict.ABORTED] == 0
    check_counters(world, model)


def as_tc_sees_it(frame: bytes, expected: Expected) -> Expected | None:
    """What tc makes of a frame; None for one that the kernel gives no tc program in a test.

    It has the outer tag beside the data: a tag in the data is nothing it knows, and one that it
    pushes is not in the data afterwards.
    """
    least = {b"\x08\x00": 34, b"\x86\xdd": 54}.get(frame[12:14], 15)
    if len(frame) < least:
        return None
    if frame[12:14] in TAGS:
        return Expected(Verdict.PASS, (frame,))
    if expected.verdict not in {Verdict.TX, Verdict.REDIRECT}:
        return expected
    shown = (one[:12] + one[16:] if one[12:14] in TAGS else one for one in expected.frames)
    return Expected(Verdict.REDIRECT, tuple(shown))


def test_tc_answers_the_same(world: World) -> None:
    model = build(world)
    model.devices.add(GONE)  # tc cannot ask whether a device is there

    def ask(frame: bytes) -> tuple[int, bytes]:
        outcome = world.run(Engine.TC, frame)
        return outcome.verdict, outcome.data

    verdicts = compare(world, model, ask, count=FRAMES // 20, seed=SEED + 2, seen_by=as_tc_sees_it)
    assert min(verdicts[one] for one in (Verdict.PASS, Verdict.DROP, Verdict.REDIRECT)) > 0


def test_the_model_finds_a_wrong_choice(world: World) -> None:
    """The comparison can fail: a server's MAC is another one than the model thinks."""
    model = build(world)
    world.server(1, "02:00:00:00:01:77")
    with pytest.raises(pytest.fail.Exception, match="0200000001"):
        compare(world, model, Runner(world.programs.steady), count=10_000, seed=SEED)
