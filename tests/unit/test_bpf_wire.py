"""Attributes and infos of bpf(2) against literal layouts, and what its refusals become."""

from __future__ import annotations

import errno
import platform
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbdr.datapath import bpf, bpf_links, bpf_netlink
from lbdr.datapath import bpf_wire as wire
from lbdr.datapath.bpf_cpus import cpu_values, parse_cpus, totals
from lbdr.datapath.bpf_infos import (
    INFO_SIZE,
    LinkInfo,
    MapInfo,
    ProgramInfo,
    ask_program_maps,
    parse_link,
    parse_map,
    parse_program,
    program_maps,
)
from lbdr.datapath.bpf_netlink import XdpAttachment, XdpMode
from lbdr.datapath.bpf_programs import VerifierError
from lbdr.datapath.bpf_wire import AttachPoint, MapKind, ProgramKind
from lbdr.errors import KernelError, PrivilegeError


def words(data: bytes | bytearray, offset: int, count: int = 1) -> tuple[int, ...]:
    return struct.unpack_from(f"={count}I", data, offset)


def address(data: bytes | bytearray, offset: int) -> int:
    (value,) = struct.unpack_from("=Q", data, offset)
    return int(value)


# --- attributes ----------------------------------------------------------------------------------


def test_map_create() -> None:
    data = wire.map_create(MapKind.HASH, 4, 8, 100, flags=1, inner=7, name="records")
    assert words(data, 0, 7) == (1, 4, 8, 100, 1, 7, 0)
    assert data[28:44] == b"records" + bytes(9)


def test_program_load() -> None:
    data = wire.program_load(
        ProgramKind.XDP, (2, 0x1111), 0x2222, (1, 64, 0x3333), flags=32, name="director", attach=37
    )
    assert words(data, 0, 2) == (6, 2)
    assert (address(data, 8), address(data, 16)) == (0x1111, 0x2222)
    assert words(data, 24, 2) == (1, 64)
    assert address(data, 32) == 0x3333
    assert words(data, 40, 2) == (0, 32)
    assert data[48:64] == b"director" + bytes(8)
    assert words(data, 64, 2) == (0, 37)


def test_elements_and_batches_have_aligned_addresses() -> None:
    element = wire.ELEMENT.pack(5, 0x10, 0x20, 2)
    assert words(element, 0) == (5,)
    assert [address(element, offset) for offset in (8, 16, 24)] == [0x10, 0x20, 2]
    batch = wire.BATCH.pack(1, 2, 3, 4, 50, 6, 7, 8)
    assert [address(batch, offset) for offset in (0, 8, 16, 24, 40, 48)] == [1, 2, 3, 4, 7, 8]
    assert words(batch, 32, 2) == (50, 6)
    assert wire.BATCH_COUNT.unpack_from(batch) == (50,)


def test_pins_infos_and_ids() -> None:
    assert (address(wire.pin(0x99, 5), 0), words(wire.pin(0x99, 5), 8, 2)) == (0x99, (5, 0))
    assert (words(wire.info(5, 256, 0x99), 0, 2), address(wire.info(5, 256, 0x99), 8)) == (
        (5, 256),
        0x99,
    )
    assert words(wire.by_id(12), 0, 3) == (12, 0, 0)


def test_links() -> None:
    created = wire.link_create(5, 2, AttachPoint.XDP, wire.XdpFlag.GENERIC)
    assert words(created, 0, 4) == (5, 2, 37, 2)
    assert not any(created[16:])
    assert words(wire.link_update(5, 6, None), 0, 4) == (5, 6, 0, 0)
    assert words(wire.link_update(5, 6, 7), 0, 4) == (5, 6, wire.F_REPLACE, 7)


def test_test_run_fields() -> None:
    data = wire.TEST.pack(*range(1, 16))
    assert words(data, 0, 4) == (1, 2, 3, 4)
    assert (address(data, 16), address(data, 24)) == (5, 6)
    assert words(data, 32, 4) == (7, 8, 9, 10)
    assert (address(data, 48), address(data, 56)) == (11, 12)
    assert words(data, 64, 3) == (13, 14, 15)
    assert len(data) % 8 == 0


def test_contexts() -> None:
    assert words(wire.xdp_context(60, ifindex=3, queue=1), 0, 6) == (0, 60, 0, 3, 1, 0)
    context = wire.skb_context(ifindex=3, ingress_ifindex=4, mark=5)
    assert len(context) == wire.SKB_CONTEXT_SIZE
    assert (words(context, 8), words(context, 36, 2)) == ((5,), (4, 3))
    assert sum(context) == 12
    assert wire.skb_mark(context) == 5


@pytest.mark.parametrize("name", ["", "a" * 16, "a-b", "a b", "\0", "..", "_", "a/b"])
def test_names_that_the_kernel_would_refuse(name: str) -> None:
    with pytest.raises(ValueError, match="no name for a BPF object"):
        wire.object_name(name)


@given(st.text("abcXYZ019", min_size=1, max_size=13))
def test_names(name: str) -> None:
    assert wire.object_name(f"_{name}.") == f"_{name}.".encode()


def test_kinds_are_named_as_bpftool_does() -> None:
    assert wire.kind_name(MapKind.LRU_PERCPU_HASH) == "lru_percpu_hash"
    assert wire.kind_name(3, ProgramKind) == "sched_cls"
    assert wire.kind_name(77) == "type 77"


# --- infos ---------------------------------------------------------------------------------------


def test_a_map_s_info() -> None:
    info = struct.pack("=6I16s", 1, 42, 4, 8, 100, 1, b"records") + bytes(40)
    assert parse_map(info) == MapInfo(42, 1, 4, 8, 100, 1, "records")


def test_a_program_s_info() -> None:
    info = bytearray(INFO_SIZE)
    struct.pack_into("=II8s", info, 0, 6, 77, bytes.fromhex("0123456789abcdef"))
    struct.pack_into("=QIIQ16s", info, 40, 1_000, 0, 3, 0x99, b"director")
    struct.pack_into("=QQQI", info, 192, 5_000, 9, 0, 120)
    assert parse_program(info) == ProgramInfo(
        77, 6, "0123456789abcdef", "director", 1_000, 9, 5_000, 120
    )
    assert program_maps(info) == 3


def test_asking_for_a_program_s_maps() -> None:
    info = ask_program_maps(3, 0x99)
    assert len(info) == INFO_SIZE
    assert (words(info, 52), address(info, 56)) == ((3,), 0x99)
    assert program_maps(info) == 3


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        pytest.param(6, (2, AttachPoint.XDP), id="xdp"),
        pytest.param(11, (2, AttachPoint.TCX_EGRESS), id="tcx"),
        pytest.param(5, (0, 0), id="another"),
    ],
)
def test_a_link_s_info(kind: int, expected: tuple[int, int]) -> None:
    info = struct.pack("=6I", kind, 42, 77, 0, 2, 47) + bytes(100)
    assert parse_link(info) == LinkInfo(42, kind, 77, *expected)


@pytest.mark.parametrize(
    ("text", "count"), [("0\n", 1), ("0-1\n", 2), ("0-3,8-11\n", 8), ("0,2,4-255", 254)]
)
def test_lists_of_cpus(text: str, count: int) -> None:
    assert parse_cpus(text) == count


def test_values_of_two_cpus() -> None:
    value = struct.pack("=4Q", 1, 2, 30, 40)
    assert cpu_values(value, 16) == [value[:16], value[16:]]
    assert totals(value, 16) == (31, 42)
    assert totals(value, 8) == (73,)
    assert cpu_values(value, 12) == [value[:12], value[16:28]]


# --- refusals ------------------------------------------------------------------------------------


def test_a_missing_right_is_told_as_such() -> None:
    error = bpf.refused("bpftool map show id 1", errno.EPERM)
    assert isinstance(error, PrivilegeError)
    assert "CAP_BPF" in error.hint


@pytest.mark.parametrize(
    ("number", "message"),
    [
        pytest.param(errno.ENOENT, "words: No such file or directory (ENOENT)", id="errno"),
        pytest.param(bpf.ENOTSUPP, "words: this kernel cannot do that (ENOTSUPP)", id="ENOTSUPP"),
        pytest.param(errno.ENOSYS, "words: Function not implemented (ENOSYS)", id="no bpf(2)"),
        pytest.param(errno.EMFILE, "words: Too many open files (EMFILE)", id="fds"),
    ],
)
def test_other_refusals(number: int, message: str) -> None:
    error = bpf.refused("words", number)
    assert isinstance(error, KernelError)
    assert error.message == message
    assert bool(error.hint) == (number in (errno.ENOSYS, errno.EMFILE))
    assert bpf.refused("words", number, "a hint").hint == "a hint"


def test_a_machine_whose_call_number_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    assert platform.machine() in ("x86_64", "aarch64")
    monkeypatch.setattr(bpf, "_number", -1)
    with pytest.raises(KernelError) as caught:
        bpf.open_pinned(Path("/sys/fs/bpf/lbdr"))
    assert caught.value.errno == errno.ENOSYS
    assert "x86_64 or aarch64" in caught.value.hint


def test_the_verifier_s_last_words() -> None:
    log = "".join(f"line {number}\n" for number in range(100))
    error = VerifierError("bpftool prog load x", errno=errno.EACCES, log=log)
    first, *rest = error.message.splitlines()
    assert first == "bpftool prog load x: Permission denied (EACCES); the verifier's last words:"
    assert rest == [f"  line {number}" for number in range(88, 100)]
    assert error.log == log


@pytest.mark.parametrize(
    ("number", "attach", "hint"),
    [
        pytest.param(errno.EBUSY, AttachPoint.XDP, "is left alone", id="taken"),
        pytest.param(errno.ERANGE, AttachPoint.XDP, "xdp.frags", id="mtu"),
        pytest.param(errno.EINVAL, AttachPoint.TCX_INGRESS, "use a clsact filter", id="no tcx"),
        pytest.param(errno.EINVAL, AttachPoint.XDP, "has no XDP links", id="no links"),
        pytest.param(errno.ENODEV, AttachPoint.TCX_EGRESS, "`ip link` lists them", id="device"),
    ],
)
def test_why_nothing_is_attached(number: int, attach: AttachPoint, hint: str) -> None:
    error = bpf_links.attach_refused("words", number, attach)
    assert hint in error.hint
    assert bpf_links.attach_refused("words", number, attach, "said").hint == "said"


# --- XDP by netlink ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        pytest.param({}, (), id="nothing said"),
        pytest.param({2: b"\0"}, (), id="none"),
        pytest.param(
            {2: b"\1", 4: b"\7\0\0\0", 5: b"\7\0\0\0"},
            (XdpAttachment(XdpMode.NATIVE, 7),),
            id="native",
        ),
        pytest.param(
            {2: b"\2", 4: b"\7\0\0\0", 6: b"\7\0\0\0"},
            (XdpAttachment(XdpMode.GENERIC, 7),),
            id="generic",
        ),
        pytest.param(
            {2: b"\4", 6: b"\7\0\0\0", 7: b"\x08\0\0\0"},
            (XdpAttachment(XdpMode.GENERIC, 7), XdpAttachment(XdpMode.OFFLOADED, 8)),
            id="several",
        ),
    ],
)
def test_attachments(attributes: dict[int, bytes], expected: tuple[XdpAttachment, ...]) -> None:
    assert bpf_netlink._attachments(attributes) == expected  # noqa: SLF001 (pure)


def test_a_broken_attribute_ends_the_reading() -> None:
    whole = struct.pack("=HHI", 8, 1 | 0x8000, 5)
    broken = struct.pack("=HH", 0, 2)
    assert list(bpf_netlink._attributes(whole + broken)) == [(1, b"\5\0\0\0")]  # noqa: SLF001 (pure)
