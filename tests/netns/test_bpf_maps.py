"""Maps of each kind on this machine's kernel, entry by entry and in batches."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable

import pytest

from lbdr.datapath import bpf
from lbdr.datapath.bpf_arrays import Array
from lbdr.datapath.bpf_cpus import possible_cpus
from lbdr.datapath.bpf_maps import Map
from lbdr.datapath.bpf_wire import Command, MapFlag, MapKind, Update
from lbdr.errors import KernelError, LbdrError

HASHES = [MapKind.HASH, MapKind.LRU_HASH, MapKind.PERCPU_HASH, MapKind.LRU_PERCPU_HASH]
ARRAYS = [MapKind.ARRAY, MapKind.PERCPU_ARRAY]
TABLE = 65_537  # entries of a Maglev table's size


@pytest.fixture(autouse=True)
def root() -> None:
    if os.geteuid() != 0:
        if os.environ.get("CI"):
            pytest.fail("BPF needs root")
        pytest.skip("BPF needs root")


@pytest.fixture(params=["batches", "one by one"])
def batches(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the kernel has batches: this one, and one that lacks them."""
    if request.param == "one by one":
        without_batches(monkeypatch, bpf.ENOTSUPP)
        return False
    return True


def without_batches(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    real: Callable[[int, bytearray], int] = bpf.call
    lacking = (Command.MAP_LOOKUP_BATCH, Command.MAP_UPDATE_BATCH, Command.MAP_DELETE_BATCH)

    def call(command: int, attributes: bytearray) -> int:
        return -code if command in lacking else real(command, attributes)

    monkeypatch.setattr(bpf, "call", call)


def number(value: int) -> bytes:
    return struct.pack("=I", value)


def counter(*values: int) -> bytes:
    return struct.pack(f"={len(values)}Q", *values)


def filled(made: Map, count: int) -> dict[bytes, bytes]:
    """Entries for a map of 64-bit values, different on each CPU."""
    each = possible_cpus() if made.per_cpu else 1
    return {number(key): counter(*(key * 10 + cpu for cpu in range(each))) for key in range(count)}


@pytest.mark.parametrize("kind", HASHES, ids=lambda kind: kind.name)
def test_an_entry_comes_changes_and_goes(kind: MapKind) -> None:
    with Map.create(kind, 4, 8, 64) as made:
        (key, value), (_, other) = list(filled(made, 2).items())
        assert made.lookup(key) is None
        made.update(key, value, Update.NOEXIST)
        assert made.lookup(key) == value
        with pytest.raises(KernelError) as caught:
            made.update(key, other, Update.NOEXIST)
        assert caught.value.errno == errno.EEXIST
        made.update(key, other, Update.EXIST)
        assert made.lookup(key) == other
        assert made.delete(key)
        assert not made.delete(key)
        with pytest.raises(KernelError) as caught:
            made.update(key, other, Update.EXIST)
        assert caught.value.errno == errno.ENOENT


@pytest.mark.parametrize("kind", HASHES, ids=lambda kind: kind.name)
@pytest.mark.usefixtures("batches")
def test_many_entries_at_once(kind: MapKind) -> None:
    with Map.create(kind, 4, 8, 40_000) as made:
        entries = filled(made, 9_000)
        made.update_many(entries)
        assert dict(made.items()) == entries
        assert len(made.keys()) == len(entries)
        gone = list(entries)[1_000:8_000]
        missing = [number(key) for key in (50_000, 50_001)]
        assert made.delete_many([missing[0], *gone, missing[1], *gone[:3]]) == 7_000
        assert set(made.keys()) == set(entries) - set(gone)
        assert made.delete_many([]) == 0


@pytest.mark.usefixtures("batches")
def test_entries_may_be_deleted_while_they_are_read() -> None:
    with Map.create(MapKind.HASH, 4, 8, 10_000) as made:
        entries = filled(made, 9_000)
        made.update_many(entries)
        seen = []
        for key, _ in made.items():  # noqa: PERF102  # no dict: keys() reads all of them first
            seen.append(key)
            made.delete(key)
        assert sorted(seen) == sorted(entries)
        assert list(made.items()) == []


def test_a_prefix_table_is_read_though_its_batches_are_disturbed() -> None:
    """Its cursor is a key, and deleting that starts the kernel from the beginning."""
    with Map.create(MapKind.LPM_TRIE, 8, 4, 600, flags=MapFlag.NO_PREALLOC) as made:
        keys = {struct.pack("=I4B", 32, 10, 0, last // 256, last % 256) for last in range(500)}
        made.update_many(dict.fromkeys(keys, number(1)))
        seen = []
        for key, _ in made.items():  # noqa: PERF102  # no dict: keys() reads all of them first
            seen.append(key)
            made.delete(key)
        assert len(seen) == len(keys)
        assert set(seen) == keys


def test_a_crowded_bucket_grows_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bucket with more entries than a chunk has room for is refused by ENOSPC."""
    monkeypatch.setattr("lbdr.datapath.bpf_maps.CHUNK", 1)
    with Map.create(MapKind.HASH, 4, 8, 3_000) as made:
        entries = filled(made, 2_000)
        made.update_many(entries)
        pairs = list(made.items())
    assert len(pairs) == len(entries)
    assert dict(pairs) == entries


@pytest.mark.parametrize("code", [bpf.ENOTSUPP, errno.EINVAL], ids=["kind", "kernel"])
def test_without_batches_an_array_is_the_same(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    without_batches(monkeypatch, code)
    check_ranges(MapKind.ARRAY)


@pytest.mark.parametrize("kind", ARRAYS, ids=lambda kind: kind.name)
def test_ranges_of_an_array(kind: MapKind) -> None:
    check_ranges(kind)


def check_ranges(kind: MapKind) -> None:
    with Array.create(kind, 4, 8, 10_000) as made:
        size = made.value_size
        entries = filled(made, 10_000)
        values = b"".join(entries.values())
        made.write_range(0, values)
        assert made.read_range(0, 10_000) == values
        assert made.read_range(4_095, 2) == values[4_095 * size : 4_097 * size]
        assert made.read_range(9_999, 1) == values[-size:]
        assert made.read_range(5, 0) == b""
        made.write_range(9_998, values[: 2 * size])
        assert made.read_range(9_997, 3) == values[9_997 * size : 9_998 * size] + values[: 2 * size]
        assert dict(made.items()) == entries | {
            number(9_998): entries[number(0)],
            number(9_999): entries[number(1)],
        }
        for first, count in ((9_999, 2), (-1, 1), (10_000, 1)):
            with pytest.raises(ValueError, match="not within its 10000"):
                made.read_range(first, count)
        with pytest.raises(ValueError, match="not within its 10000"):
            made.write_range(10_000, bytes(size))
        with pytest.raises(ValueError, match="no multiple of"):
            made.write_range(0, bytes(size + 1))


def test_a_whole_table_is_written_and_read() -> None:
    """All of it and nothing else; the times are tests/bench's."""
    with Array.create(MapKind.ARRAY, 4, 4, TABLE) as made:
        values = os.urandom(4 * TABLE)
        made.write_range(0, values)
        assert made.read_range(0, TABLE) == values
        assert made.lookup(number(TABLE - 1)) == values[-4:]


def test_an_array_as_memory() -> None:
    with (
        Array.create(MapKind.ARRAY, 4, 4, 1000, flags=MapFlag.MMAPABLE) as made,
        made.memory() as memory,
    ):
        made.update(number(999), number(7))
        assert memory[999 * 8 : 999 * 8 + 4] == number(7)
        memory[0:4] = number(9)
        assert made.lookup(number(0)) == number(9)
        with memoryview(memory) as view, view.cast("Q") as words:
            words[1] = 11
        assert made.lookup(number(1)) == number(11)


@pytest.mark.parametrize("kind", ARRAYS, ids=lambda kind: kind.name)
def test_another_array_is_no_memory(kind: MapKind) -> None:
    with Array.create(kind, 4, 4, 10) as made, pytest.raises(KernelError, match="MMAPABLE"):
        made.memory()


def test_counters_are_summed_over_the_cpus() -> None:
    with Array.create(MapKind.PERCPU_ARRAY, 4, 16, 3) as made:
        cpus = possible_cpus()
        value = b"".join(counter(cpu, 100 + cpu) for cpu in range(cpus))
        made.update(number(2), value)
        read = made.lookup(number(2))
        assert read == value
        assert made.cpu_values(read) == [counter(cpu, 100 + cpu) for cpu in range(cpus)]
        total = sum(range(cpus))
        assert made.totals(read) == (total, 100 * cpus + total)


def test_a_per_cpu_value_is_rounded_up() -> None:
    """12 bytes take 16 on each CPU; what the program sees are the first 12."""
    with Map.create(MapKind.PERCPU_HASH, 4, 12, 3) as made:
        assert made.value_size == 16 * possible_cpus()
        value = (b"twelve bytes" + bytes(4)) * possible_cpus()
        made.update(number(1), value)
        read = made.lookup(number(1))
        assert read is not None
        assert made.cpu_values(read) == [b"twelve bytes"] * possible_cpus()


def test_a_map_of_maps_gives_the_id_of_the_one_inside() -> None:
    with (
        Array.create(MapKind.ARRAY, 4, 4, 1, name="inner") as inner,
        Map.create(MapKind.ARRAY_OF_MAPS, 4, 4, 8, inner=inner) as outer,
    ):
        outer.update(number(3), number(inner.fd))
        assert dict(outer.items()) == {number(3): number(inner.info().id)}


def test_a_full_map_says_so() -> None:
    with Map.create(MapKind.HASH, 4, 8, 10) as made:
        with pytest.raises(KernelError, match="holds 10 entries and no more") as caught:
            made.update_many(filled(made, 11))
        assert caught.value.errno == errno.E2BIG
        assert "bpftool map update name lbdr key hex 0a 00 00 00" in caught.value.message
        assert len(made.keys()) == 10


def test_an_array_keeps_its_entries() -> None:
    with Array.create(MapKind.ARRAY, 4, 8, 10) as made:
        with pytest.raises(KernelError, match="bpftool map delete") as caught:
            made.delete(number(1))
        assert caught.value.errno == errno.EINVAL
        with pytest.raises(KernelError) as caught:
            made.delete_many([number(1)])
        assert caught.value.errno == errno.EINVAL
        with pytest.raises(KernelError, match="holds 10 entries") as caught:
            made.update(number(10), counter(1))
        assert caught.value.errno == errno.E2BIG
        assert made.lookup(number(10)) is None


def test_a_hash_is_no_array() -> None:
    with pytest.raises(bpf.LayoutError, match="is a hash, not an array"):
        Array.create(MapKind.HASH, 4, 4, 10)


@pytest.mark.parametrize(
    "work",
    [
        pytest.param(lambda made: made.lookup(bytes(3)), id="lookup"),
        pytest.param(lambda made: made.delete(bytes(5)), id="delete"),
        pytest.param(lambda made: made.update(bytes(4), bytes(7)), id="value"),
        pytest.param(lambda made: made.update_many({bytes(4): bytes(9)}), id="values"),
        pytest.param(lambda made: made.update_many({bytes(2): bytes(8)}), id="keys"),
        pytest.param(lambda made: made.delete_many([bytes(8)]), id="deleted keys"),
    ],
)
def test_sizes_are_checked_before_the_kernel_reads_beyond(work: Callable[[Map], object]) -> None:
    with Map.create(MapKind.HASH, 4, 8, 10) as made:
        with pytest.raises(ValueError, match=r"not (of )?[48]"):
            work(made)
        assert made.keys() == []


@pytest.mark.parametrize(
    ("layout", "code"),
    [
        pytest.param((MapKind.ARRAY, 8, 4, 1), errno.EINVAL, id="an array's key"),
        pytest.param((MapKind.HASH, 4, 4, 0), errno.EINVAL, id="no entries"),
        pytest.param((MapKind.ARRAY_OF_MAPS, 4, 4, 1), errno.EINVAL, id="no inner map"),
    ],
)
def test_a_map_that_cannot_be(layout: tuple[MapKind, int, int, int], code: int) -> None:
    with pytest.raises(LbdrError, match="bpftool map create type") as caught:
        Map.create(*layout)
    assert isinstance(caught.value, KernelError)
    assert caught.value.errno == code
