"""BPF programs on this machine's kernel: loaded, refused, run on packets."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lbdr.datapath.bpf_arrays import Array
from lbdr.datapath.bpf_programs import Counting, Program, VerifierError
from lbdr.datapath.bpf_wire import (
    AttachPoint,
    MapKind,
    ProgramKind,
    Verdict,
    skb_context,
    skb_mark,
    xdp_context,
)
from lbdr.errors import KernelError
from tests.bpf_programs import (
    instruction,
    lengthens,
    marks,
    private_bpffs,
    returns,
    returns_entry,
    returns_field,
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


def test_who_may_open_a_program_may_run_it_and_write_its_maps(pins: Path) -> None:
    """Without any capability: the pins' owner and mode are what counts."""
    with Array.create(MapKind.ARRAY, 4, 4, 1) as array, xdp(returns_entry(array.fd)) as program:
        array.pin(pins / "map")
        program.pin(pins / "program")
        code = f"""
from pathlib import Path
from lbdr.datapath.bpf_arrays import Array
from lbdr.datapath.bpf_programs import Program
pins = Path("{pins}")
Array.open(pins / "map", 4, 4).update(bytes(4), bytes([3, 0, 0, 0]))
print(Program.open(pins / "program").test_run(bytes(64)).returned)
"""
        assert child(code, "setpriv", "--bounding-set", "-all") == ["3"]


def test_a_program_tells_of_itself() -> None:
    with Array.create(MapKind.ARRAY, 4, 4, 1) as array, xdp(returns_entry(array.fd)) as program:
        info = program.info()
        assert (info.kind, info.name, info.run_count) == (ProgramKind.XDP, "lbdr_test", 0)
        assert len(bytes.fromhex(info.tag)) == 8
        assert program.map_ids() == (array.info().id,)
        with Counting.start():
            program.test_run(FRAME, repeat=7)
        program.test_run(FRAME, repeat=5)
        assert program.info().run_count == 7
        with Program.by_id(info.id) as same:
            assert same.info().tag == info.tag


def test_a_run_shares_the_live_maps() -> None:
    with Array.create(MapKind.ARRAY, 4, 4, 1) as array, xdp(returns_entry(array.fd)) as program:
        for verdict in (Verdict.DROP, Verdict.TX):
            array.update(number(0), number(verdict))
            assert program.test_run(FRAME).returned == verdict
        run = program.test_run(FRAME, repeat=1000)
    assert run.data == FRAME
    assert 0 < run.duration < 100_000
    assert not run.context


def test_a_run_returns_the_frame_as_the_program_left_it() -> None:
    with xdp(lengthens(4)) as program:
        run = program.test_run(FRAME)
        assert (run.returned, len(run.data), run.data[4:]) == (Verdict.TX, len(FRAME) + 4, FRAME)
        jumbo = FRAME + bytes(3000)
        assert program.test_run(jumbo).data[4:] == jumbo


def test_a_run_takes_the_device_from_its_context() -> None:
    with xdp(returns_field(12)) as program:
        assert program.test_run(FRAME, xdp_context(len(FRAME), ifindex=1)).returned == 1
        with pytest.raises(KernelError) as caught:
            program.test_run(FRAME, xdp_context(len(FRAME), ifindex=0x7FFFFFFF))
        assert caught.value.errno == errno.ENODEV
        with pytest.raises(KernelError) as caught:
            program.test_run(FRAME, xdp_context(len(FRAME), ifindex=1, queue=1000))
        assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize("frame", [b"", bytes(13)])
def test_a_frame_without_a_header_is_refused(frame: bytes) -> None:
    with xdp(returns(2)) as program:
        with pytest.raises(KernelError, match="bpftool prog run name lbdr_test") as caught:
            program.test_run(frame)
        assert caught.value.errno == errno.EINVAL


def test_a_tc_program_takes_and_leaves_marks() -> None:
    with Program.load(marks(0x77), ProgramKind.SCHED_CLS, name="marks") as program:
        run = program.test_run(FRAME, skb_context(ifindex=1, ingress_ifindex=1, mark=5))
        assert run.returned == 0xFFFFFFFF  # TC_ACT_UNSPEC
        assert skb_mark(run.context) == 0x77
    with Program.load(returns_field(8), ProgramKind.SCHED_CLS, name="returns") as program:
        assert program.test_run(FRAME, skb_context(mark=5)).returned == 5
    with Program.load(returns_field(36), ProgramKind.SCHED_CLS, name="returns") as program:
        assert program.test_run(FRAME, skb_context(ingress_ifindex=1)).returned == 1
    with Program.load(returns_field(40), ProgramKind.SCHED_CLS, name="returns") as program:
        assert program.test_run(FRAME, skb_context(ifindex=1)).returned == 1


def test_the_verifier_s_refusal_is_readable() -> None:
    with pytest.raises(VerifierError) as caught:
        xdp(returns_field(400))
    message = caught.value.message
    assert message.startswith("bpftool prog load lbdr_test type xdp: Permission denied (EACCES)")
    assert "invalid bpf_context access off=400" in message
    assert caught.value.errno == errno.EACCES


def test_a_long_log_is_whole_in_the_error_and_short_in_the_message() -> None:
    """6,000 instructions before the bad one: more than the first buffer holds."""
    filler = instruction(0xB7, 0, value=1) * 6000
    with pytest.raises(VerifierError) as caught:
        xdp(filler + returns_field(400))
    assert len(caught.value.log) > 1 << 16
    assert caught.value.log.count("\n") > 6000
    assert caught.value.message.count("\n") <= 13
    assert "invalid bpf_context access off=400" in caught.value.message


def test_flags_that_the_kernel_does_not_know() -> None:
    with pytest.raises(KernelError, match="does not know the program's type") as caught:
        Program.load(returns(2), ProgramKind.XDP, name="x", flags=1 << 30)
    assert caught.value.errno == errno.EINVAL
    assert not isinstance(caught.value, VerifierError)


@pytest.mark.parametrize("instructions", [b"", bytes(7)])
def test_what_is_no_instruction(instructions: bytes) -> None:
    with pytest.raises(ValueError, match="no instructions"):
        xdp(instructions)
