"""Jiffies as CLOCK_MONOTONIC, on this machine's kernel."""

from __future__ import annotations

import os
import time

import pytest

from lbdr.datapath import bpf_clock
from lbdr.datapath.bpf_programs import Program
from lbdr.datapath.bpf_wire import ProgramKind
from tests.fastpath import CLOCK_MONOTONIC_COARSE

FOLLOWED = 300_000_000  # ns


@pytest.fixture(autouse=True)
def root() -> None:
    if os.geteuid() != 0:
        if os.environ.get("CI"):
            pytest.fail("BPF needs root")
        pytest.skip("BPF needs root")


def test_jiffies_follow_the_monotonic_clock() -> None:
    macros = bpf_clock.macros()
    jiffy, zero = macros["JIFFY_NS"], macros["JIFFIES_ZERO"]
    assert 500_000 <= jiffy <= 50_000_000  # ns; HZ is 20 to 2,000
    begin = time.monotonic_ns()
    moments = set()
    with Program.load(bpf_clock.CODE, ProgramKind.XDP, name="lbdr_test") as program:
        while time.monotonic_ns() < begin + FOLLOWED:
            before = time.clock_gettime_ns(CLOCK_MONOTONIC_COARSE)
            found = bpf_clock.read(program) * jiffy + zero
            after = time.clock_gettime_ns(CLOCK_MONOTONIC_COARSE)
            assert before - 2 * jiffy <= found <= after + 2 * jiffy
            moments.add(found)
    assert len(moments) >= FOLLOWED // jiffy // 10  # the machine may be busy


def test_where_ticks_may_be_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "clock_getres", lambda _clock: 0.004)
    assert bpf_clock.macros() == {}


def test_where_the_helper_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    number = (118).to_bytes(4, "little")
    assert bpf_clock.CODE.count(number) == 1
    code = bpf_clock.CODE.replace(number, (9999).to_bytes(4, "little"))
    monkeypatch.setattr(bpf_clock, "CODE", code)
    assert bpf_clock.macros() == {}
