"""BPF objects on this machine's kernel: pins, layouts and rights."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lbdr.datapath import bpf
from lbdr.datapath.bpf_fs import ensure_bpffs, mount_bpffs, on_bpffs
from lbdr.datapath.bpf_links import Link
from lbdr.datapath.bpf_maps import Map
from lbdr.datapath.bpf_programs import Program
from lbdr.datapath.bpf_wire import (
    AttachPoint,
    MapKind,
    ProgramKind,
)
from lbdr.errors import KernelError, PrivilegeError
from tests.bpf_programs import (
    private_bpffs,
    returns,
)

PROJECT = Path(__file__).parents[2]
FRAME = bytes(12) + b"\x08\x00" + bytes(50)


@pytest.fixture(autouse=True)
def root() -> None:
    if os.geteuid() != 0:
        if os.environ.get("CI"):
            pytest.fail("BPF needs root")
        pytest.skip("BPF needs root")


@pytest.fixture
def pins(tmp_path: Path) -> Iterator[Path]:
    """A directory on bpffs."""
    with private_bpffs(tmp_path) as path:
        yield path


def number(value: int) -> bytes:
    return struct.pack("=I", value)


def xdp(instructions: bytes, name: str = "lbdr_test") -> Program:
    return Program.load(instructions, ProgramKind.XDP, name=name, attach=AttachPoint.XDP)


def child(code: str, *before: str, environment: dict[str, str] | None = None) -> list[str]:
    """Run Python in another process; what it printed."""
    done = subprocess.run(
        [*before, sys.executable, "-c", code],
        env={"PYTHONPATH": str(PROJECT), "PATH": os.environ["PATH"], **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert not done.stderr, done.stderr
    return done.stdout.splitlines()


# --- the file system of pins ---------------------------------------------------------------------


def test_bpffs_is_told_from_other_file_systems(pins: Path) -> None:
    assert on_bpffs(pins)
    assert on_bpffs(pins / "not" / "yet" / "made")
    ensure_bpffs(pins / "lbdr")
    with pytest.raises(KernelError, match=r"(?s)not on a BPF file system.*mount -t bpf"):
        ensure_bpffs(PROJECT / "lbdr")


def test_the_private_bpffs_leaves_nothing_behind(tmp_path: Path) -> None:
    with private_bpffs(tmp_path):
        assert on_bpffs(tmp_path)
    assert not on_bpffs(tmp_path)


def test_mounting_where_there_is_no_directory(pins: Path) -> None:
    with pytest.raises(KernelError, match=r"mount -t bpf .*/none: No such file") as caught:
        mount_bpffs(pins / "none")
    assert caught.value.errno == errno.ENOENT


# --- pins ----------------------------------------------------------------------------------------


def test_a_pin_outlives_its_process(pins: Path) -> None:
    code = f"""
from pathlib import Path
from lbdr.datapath.bpf_maps import Map
from lbdr.datapath.bpf_wire import MapKind
made = Map.create(MapKind.HASH, 4, 8, 16, name="records")
made.update(bytes(4), b"lives on")
made.pin(Path("{pins}/records"))
"""
    assert child(code) == []
    with Map.open(pins / "records", 4, 8, 16, MapKind.HASH) as records:
        assert records.lookup(bytes(4)) == b"lives on"
        assert records.info().name == "records"
        with Map.by_id(records.info().id) as same:
            assert same.info() == records.info()
    assert bpf.unpin(pins / "records")
    assert not bpf.unpin(pins / "records")


def test_a_pin_is_replaced_in_one_step_and_only_when_asked(pins: Path) -> None:
    path = pins / "verdict"
    with xdp(returns(1), "one") as one, xdp(returns(2), "two") as two:
        one.pin(path)
        with pytest.raises(KernelError, match=r"bpftool prog pin name two .*\(EEXIST\)"):
            two.pin(path)
        two.pin(path, replace=True)
        with Program.open(path, ProgramKind.XDP) as opened:
            assert opened.info().id == two.info().id
        assert "verdict~" not in [entry.name for entry in pins.iterdir()]


@pytest.mark.parametrize(
    ("place", "code", "hint"),
    [
        pytest.param("none", errno.ENOENT, "nothing is pinned", id="no pin"),
        pytest.param("no/such", errno.ENOENT, "no such directory", id="no directory"),
        pytest.param("", errno.EACCES, "is no pin", id="a directory"),
        pytest.param(__file__, 0, "not on a BPF file system", id="another file system"),
    ],
)
def test_what_is_no_pin_is_not_opened(pins: Path, place: str, code: int, hint: str) -> None:
    with pytest.raises(KernelError) as caught:
        bpf.open_pinned(pins / place)
    assert caught.value.errno == code, caught.value
    assert hint in str(caught.value)
    assert str(pins / place) in caught.value.message


def test_pins_need_bpffs(tmp_path: Path) -> None:
    with xdp(returns(2)) as program, pytest.raises(KernelError, match="mount -t bpf"):
        program.pin(tmp_path / "program")


def test_a_pin_of_another_kind_is_no_map_and_stays(pins: Path) -> None:
    with xdp(returns(2)) as program:
        program.pin(pins / "object")
    with pytest.raises(bpf.LayoutError, match="pinned to a bpf-prog, not to a bpf-map"):
        Map.open(pins / "object", 4, 4)
    with pytest.raises(bpf.LayoutError, match="pinned to a bpf-prog, not to a bpf-link"):
        Link.open(pins / "object")
    with pytest.raises(bpf.LayoutError, match="type xdp, not sched_cls"):
        Program.open(pins / "object", ProgramKind.SCHED_CLS)
    Program.open(pins / "object").close()


@pytest.mark.parametrize(
    ("layout", "difference"),
    [
        pytest.param((8, 16, 64, MapKind.HASH), "key_size 4, not 8", id="key"),
        pytest.param((4, 24, 64, MapKind.HASH), "value_size 16, not 24", id="value"),
        pytest.param((4, 16, 65, MapKind.HASH), "max_entries 64, not 65", id="entries"),
        pytest.param((4, 16, 64, MapKind.LRU_HASH), "type hash, not lru_hash", id="type"),
        pytest.param((4, 8, 1, None), "value_size 16, not 8; max_entries 64, not 1", id="two"),
    ],
)
def test_another_layout_is_noticed(
    pins: Path, layout: tuple[int, int, int, MapKind | None], difference: str
) -> None:
    with Map.create(MapKind.HASH, 4, 16, 64) as made:
        made.pin(pins / "map")
    Map.open(pins / "map", 4, 16, 64, MapKind.HASH).close()
    Map.open(pins / "map", 4, 16).close()
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(bpf.LayoutError) as caught:
        Map.open(pins / "map", *layout)
    assert f"has another layout: {difference}" in caught.value.message
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_an_object_is_closed_once_and_says_so() -> None:
    with Map.create(MapKind.ARRAY, 4, 4, 1) as made:
        fd = made.fileno()
    made.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    with pytest.raises(ValueError, match="name lbdr: closed"):
        made.lookup(number(0))


def test_a_forgotten_object_is_closed() -> None:
    fd = Map.create(MapKind.ARRAY, 4, 4, 1).fileno()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_no_such_id() -> None:
    with pytest.raises(KernelError, match=r"bpftool map show id 4294967295: .*\(ENOENT\)"):
        Map.by_id(0xFFFFFFFF)


def test_without_rights_every_refusal_says_which(pins: Path) -> None:
    """Of a process of root's without any capability."""
    with Map.create(MapKind.ARRAY, 4, 4, 1) as made:
        code = f"""
from pathlib import Path
from lbdr.datapath.bpf_fs import mount_bpffs
from lbdr.datapath.bpf_features import probe
from lbdr.datapath.bpf_maps import Map
from lbdr.datapath.bpf_programs import Counting, Program
from lbdr.datapath.bpf_wire import MapKind, ProgramKind
from lbdr.errors import PrivilegeError
pins = Path("{pins}")
for work in (
    lambda: Map.create(MapKind.LRU_HASH, 4, 4, 1),
    lambda: Map.by_id({made.info().id}),
    lambda: Program.load(bytes.fromhex("{returns(2).hex()}"), ProgramKind.XDP, name="x"),
    lambda: Counting.start(),
    lambda: mount_bpffs(pins),
    probe,
):
    try:
        print("permitted", work())
    except PrivilegeError as error:
        print(str(error).replace(chr(10), ""))
"""
        said = child(code, "setpriv", "--bounding-set", "-all")
    assert [line.split(": ")[0].split(" pinned")[0] for line in said] == [
        "bpftool map create type lru_hash key 4 value 4 entries 1 name lbdr",
        f"bpftool map show id {made_id(said)}",
        "bpftool prog load x type xdp",
        "sysctl -w kernel.bpf_stats_enabled=1",
        f"mount -t bpf -o mode=0700 bpf {pins}",
        "unshare --net",
    ]
    assert all("not permitted" in line and "hint: run as root (CAP_" in line for line in said)


def made_id(said: list[str]) -> str:
    return said[1].split()[4].rstrip(":")


def test_a_pin_of_root_s_is_closed_to_others() -> None:
    """Asked by another user, whom the directory lets pass."""
    place = Path("/tmp")  # noqa: S108  # every user passes it; what is mounted there is private
    with private_bpffs(place):
        place.chmod(0o755)
        with Map.create(MapKind.ARRAY, 4, 4, 1) as made:
            made.pin(place / "map")
        reader, writer = os.pipe()
        forked = os.fork()
        if not forked:
            try:
                os.setuid(65534)
                Map.open(place / "map", 4, 4)
            except PrivilegeError as error:
                os.write(writer, error.message.encode())
            finally:
                os._exit(0)  # whatever happens, no second pytest goes on
        os.close(writer)
        os.waitpid(forked, 0)
    with os.fdopen(reader) as told:
        assert told.read() == f"bpftool show pinned {place}/map: permission denied"
