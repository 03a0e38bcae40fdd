"""What the kernel says of its BPF objects; pure.

Source: include/uapi/linux/bpf.h (`struct bpf_map_info`, `bpf_prog_info`, `bpf_link_info`).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from lbdr.datapath.bpf_wire import AttachPoint

INFO_SIZE = 256
"""Room for any info; the kernel fills in what it knows and leaves the rest 0."""

_PROGRAM_MAPS = struct.Struct("=52xIQ")  # nr_map_ids, map_ids
_LINK_XDP, _LINK_TCX = 6, 11  # enum bpf_link_type


@dataclass(frozen=True, slots=True)
class MapInfo:
    """What the kernel says of a map; sizes in bytes."""

    id: int
    kind: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    name: str


@dataclass(frozen=True, slots=True)
class ProgramInfo:
    """What the kernel says of a program.

    Args:
        id: its number, unique until the next boot.
        kind: its type.
        tag: hash of its instructions, as bpftool writes it.
        name: as loaded, at most 15 characters.
        loaded: ns since boot.
        run_count: how often it ran while the kernel counted (bpf_programs.counting).
        run_time: ns in those runs.
        verified: instructions that the verifier walked; 0 before Linux 5.16.
    """

    id: int
    kind: int
    tag: str
    name: str
    loaded: int
    run_count: int
    run_time: int
    verified: int


@dataclass(frozen=True, slots=True)
class LinkInfo:
    """What the kernel says of a link.

    Args:
        id: its number.
        kind: its type (`enum bpf_link_type`).
        program_id: of the program that it attaches.
        ifindex: of its device; 0 once the device is gone, and for other kinds than XDP and tcx.
        attach: where, AttachPoint; 0 for other kinds.
    """

    id: int
    kind: int
    program_id: int
    ifindex: int
    attach: int


def _text(name: bytes) -> str:
    return name.split(b"\0", 1)[0].decode("ascii", "replace")


def parse_map(info: bytes | bytearray) -> MapInfo:
    """Read `struct bpf_map_info`."""
    kind, number, key_size, value_size, entries, flags, name = struct.unpack_from("=6I16s", info)
    return MapInfo(number, kind, key_size, value_size, entries, flags, _text(name))


def ask_program_maps(count: int, address: int) -> bytearray:
    """A `struct bpf_prog_info` that asks for the ids of a program's maps."""
    room = bytearray(INFO_SIZE)
    _PROGRAM_MAPS.pack_into(room, 0, count, address)
    return room


def program_maps(info: bytes | bytearray) -> int:
    """The number of a program's maps."""
    count: int = _PROGRAM_MAPS.unpack_from(info)[0]
    return count


def parse_program(info: bytes | bytearray) -> ProgramInfo:
    """Read `struct bpf_prog_info`."""
    kind, number, tag = struct.unpack_from("=II8s", info)
    (loaded,) = struct.unpack_from("=Q", info, 40)
    (name,) = struct.unpack_from("=16s", info, 64)
    run_time, run_count, _, verified = struct.unpack_from("=QQQI", info, 192)
    return ProgramInfo(number, kind, tag.hex(), _text(name), loaded, run_count, run_time, verified)


def parse_link(info: bytes | bytearray) -> LinkInfo:
    """Read `struct bpf_link_info`."""
    kind, number, program, _, ifindex, attach = struct.unpack_from("=6I", info)
    if kind == _LINK_XDP:
        attach = int(AttachPoint.XDP)
    elif kind != _LINK_TCX:
        ifindex = attach = 0
    return LinkInfo(number, kind, program, ifindex, attach)
