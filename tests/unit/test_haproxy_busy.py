"""Weights from bytes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lbdr.haproxy.busy import Moved, weights

CONFIGURED = st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 65535), min_size=1)


def test_who_moved_more_gets_less() -> None:
    assert weights({"a": 1, "b": 1}, {}) == {"a": 256, "b": 256}
    assert weights({"a": 1, "b": 1}, {"a": 300, "b": 100}) == {"a": 171, "b": 256}
    assert weights({"a": 3, "b": 1}, {"a": 300, "b": 100}) == {"a": 256, "b": 85}
    assert weights({"a": 1, "b": 1, "c": 1}, {"a": 10**12}) == {"a": 85, "b": 256, "c": 256}
    assert weights(dict.fromkeys("abcdefgh", 1), {"a": 1})["a"] == 64
    assert weights({}, {"a": 1}) == {}


@given(CONFIGURED, st.dictionaries(st.sampled_from("abcdefg"), st.integers(0, 10**15)))
def test_nobody_is_left_out(configured: dict[str, int], moved: dict[str, int]) -> None:
    found = weights(configured, moved)
    assert set(found) == set(configured)
    assert all(1 <= weight <= 256 for weight in found.values())


@given(st.dictionaries(st.sampled_from("abcd"), st.integers(0, 10**9), min_size=2))
def test_more_bytes_never_mean_a_greater_weight(moved: dict[str, int]) -> None:
    found = weights(dict.fromkeys(moved, 1), moved)
    ordered = sorted(moved, key=lambda server: moved[server])
    assert [found[server] for server in ordered] == sorted(found.values(), reverse=True)


def test_moved() -> None:
    """Over a reload, where counters begin anew, and for no longer than the window."""
    moved = Moved(window=10)
    moved.add(0, {"a": 1000, "b": 50})
    assert moved.total() == {"a": 0, "b": 0}
    moved.add(5, {"a": 1500, "b": 50})
    assert moved.total() == {"a": 500, "b": 0}
    moved.add(8, {"a": 30, "b": 70})
    assert moved.total() == {"a": 530, "b": 20}
    moved.add(15, {"a": 30, "b": 70})
    assert moved.total() == {"a": 30, "b": 20}
    moved.add(30, {"b": 71})
    assert moved.total() == {"b": 1}
