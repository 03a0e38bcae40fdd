"""Asking the running kernel's mh scheduler: what it says, and that nothing is left of it."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from netlab import wait_for

from lbdr import maglev
from lbdr.datapath import mh_check, namespace
from lbdr.datapath.ipvs import Ipvs
from lbdr.datapath.mh_check import MhOutcome, probe
from lbdr.errors import KernelError
from lbdr.model import family
from tests.directors import ipvsadm, rules, run

_LIMIT = Path("/proc/sys/user/max_net_namespaces")


def namespaces() -> int:
    """How many there are: the smallest limit under which one more can be made."""
    before = _LIMIT.read_text()
    try:
        for limit in range(1, 1000):
            _LIMIT.write_text(str(limit))
            with ThreadPoolExecutor(1) as thread:
                if thread.submit(namespace.enter_new).exception() is None:
                    return limit - 1
    finally:
        _LIMIT.write_text(before)
    raise AssertionError("more namespaces than this can count")


@contextmanager
def nothing_left(times: int) -> Iterator[None]:
    """Nothing is there afterwards that was not before, of what was done so many times within."""
    before = _traces()
    count = namespaces()
    yield
    assert _traces() == before
    # the kernel takes namespaces down in its own time, and `count` may have had some that it was at
    assert times > 1
    wait_for(lambda: namespaces() <= count, f"{count} namespaces")


def _traces() -> list[object]:
    me = Path("/proc/self")
    return [
        rules(),
        run("ip", "-o", "link"),
        run("ip", "netns"),
        len(list((me / "fd").iterdir())),
        threading.active_count(),
        [(task / "children").read_text() for task in (me / "task").iterdir()],
        (me / "ns/net").readlink(),
        Path("/proc/thread-self/ns/net").readlink(),
    ]


@pytest.fixture(autouse=True)
def a_service_of_others(namespace: None) -> None:  # noqa: ARG001  # it is entered
    ipvsadm("-A -u 127.0.0.1:1 -s mh", "-a -u 127.0.0.1:1 -r 198.51.100.10:1 -g -w 7")


def test_it_agrees_and_nothing_is_left() -> None:
    probe()  # a first time may leave loaded modules
    with nothing_left(5):
        verdicts = [probe() for _ in range(5)]
    for verdict in verdicts:
        assert verdict.agrees
        assert (verdict.index, verdict.versions, verdict.reason) == (12, frozenset({4, 6}), "")


@pytest.mark.parametrize("index", [8, 9, 10, 11, 13, 14, 15, 16, 17])
def test_a_wrong_table_is_told(index: int) -> None:
    verdict = probe(index)
    assert verdict.outcome is MhOutcome.DIFFERS
    assert f"lbdr's table of {maglev.table_size(index)} slots chose" in verdict.reason


def test_a_configuration_of_another_kernel_is_seen_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mh_check, "table_index", lambda: 9)
    verdict = probe()
    assert verdict.agrees
    assert verdict.index == 12


@pytest.mark.parametrize("name", ["KEY1", "KEY2"])
def test_a_wrong_hash_is_told(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(maglev, name, 5)
    verdict = probe()
    assert (verdict.outcome, verdict.index) == (MhOutcome.DIFFERS, 12)
    assert verdict.reason.startswith("client ")


@pytest.mark.parametrize("where", ["_clients", "_send", "connections"])
def test_a_failure_leaves_nothing(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOBUFS, "full")

    probe()
    monkeypatch.setattr(mh_check, where, fail)
    with nothing_left(3):
        verdicts = [probe() for _ in range(3)]
    for verdict in verdicts:
        assert verdict.outcome is MhOutcome.UNTESTED
        assert verdict.reason.startswith("IPVS's mh could not be tried: ")
        assert "ENOBUFS" in verdict.reason


def test_no_namespace_to_be_had_is_told() -> None:
    before = _LIMIT.read_text()
    _LIMIT.write_text("0")
    try:
        verdict = probe()
    finally:
        _LIMIT.write_text(before)
    assert verdict.outcome is MhOutcome.UNTESTED
    assert "unshare --net" in verdict.reason


def test_a_kernel_without_ipvs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail() -> Ipvs:
        raise KernelError("this kernel has no IPVS")

    monkeypatch.setattr(Ipvs, "open", fail)
    verdict = probe()
    assert (verdict.outcome, verdict.reason) == (MhOutcome.NO_IPVS, "this kernel has no IPVS")


def test_a_kernel_without_the_scheduler_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's own refusal, of a scheduler that no kernel has."""
    monkeypatch.setattr(mh_check, "_SCHEDULER", "nosuch")
    verdict = probe()
    assert verdict.outcome is MhOutcome.NO_SCHEDULER
    assert "no scheduler nosuch" in verdict.reason


def test_a_kernel_without_ipv6_is_compared_for_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(version: int) -> int:
        if version == 6:
            raise OSError(errno.EAFNOSUPPORT, "no IPv6")
        return family(version)

    monkeypatch.setattr(mh_check, "family", fail)
    verdict = probe()
    assert verdict.agrees
    assert verdict.versions == {4}
