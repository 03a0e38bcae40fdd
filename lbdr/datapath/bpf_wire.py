"""The numbers and attributes of bpf(2), as bytes; pure.

Sources: include/uapi/linux/bpf.h (`union bpf_attr`, `struct xdp_md`, `struct __sk_buff`),
kernel/bpf/syscall.c, net/bpf/test_run.c. Addresses are those of buffers of this process, which the
caller keeps alive over the call.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag


class Command(IntEnum):
    """`enum bpf_cmd`: what bpf(2) is asked for."""

    MAP_CREATE = 0
    MAP_LOOKUP_ELEM = 1
    MAP_UPDATE_ELEM = 2
    MAP_DELETE_ELEM = 3
    MAP_GET_NEXT_KEY = 4
    PROG_LOAD = 5
    OBJ_PIN = 6
    OBJ_GET = 7
    PROG_TEST_RUN = 10
    PROG_GET_FD_BY_ID = 13
    MAP_GET_FD_BY_ID = 14
    OBJ_GET_INFO_BY_FD = 15
    MAP_LOOKUP_AND_DELETE_ELEM = 21
    MAP_LOOKUP_BATCH = 24
    MAP_UPDATE_BATCH = 26
    MAP_DELETE_BATCH = 27
    LINK_CREATE = 28
    LINK_UPDATE = 29
    LINK_GET_FD_BY_ID = 30
    ENABLE_STATS = 32
    LINK_DETACH = 34


class MapKind(IntEnum):
    """`enum bpf_map_type`, as far as lbdr has to do with them."""

    HASH = 1
    ARRAY = 2
    PROG_ARRAY = 3
    PERCPU_HASH = 5
    PERCPU_ARRAY = 6
    LRU_HASH = 9
    LRU_PERCPU_HASH = 10
    LPM_TRIE = 11
    ARRAY_OF_MAPS = 12
    HASH_OF_MAPS = 13
    DEVMAP = 14
    DEVMAP_HASH = 25
    RINGBUF = 27


class ProgramKind(IntEnum):
    """`enum bpf_prog_type`, as far as lbdr has to do with them."""

    SCHED_CLS = 3
    XDP = 6


class AttachPoint(IntEnum):
    """`enum bpf_attach_type`: where a link attaches a program."""

    XDP = 37
    TCX_INGRESS = 46
    TCX_EGRESS = 47


class MapFlag(IntFlag):
    """Flags of a map that is created."""

    NO_PREALLOC = 1
    MMAPABLE = 1 << 10


class Update(IntEnum):
    """What an update demands of the entry that is there."""

    ANY = 0
    NOEXIST = 1
    EXIST = 2


class XdpFlag(IntFlag):
    """`XDP_FLAGS_*` of include/uapi/linux/if_link.h; for links only the two modes."""

    NONE = 0
    UPDATE_IF_NOEXIST = 1
    GENERIC = 2
    NATIVE = 4
    REPLACE = 16


class Verdict(IntEnum):
    """`enum xdp_action`: what an XDP program returns."""

    ABORTED = 0
    DROP = 1
    PASS = 2
    TX = 3
    REDIRECT = 4


F_REPLACE = 4
"""Of LINK_UPDATE: the program given as the old one must be the link's."""
F_XDP_HAS_FRAGS = 1 << 5
"""Of PROG_LOAD: the program copes with frames in several buffers (MTU above one page)."""

XDP_CONTEXT_SIZE = 24  # sizeof(struct xdp_md)
SKB_CONTEXT_SIZE = 192  # sizeof(struct __sk_buff) since Linux 5.16 (hwtstamp)
_SKB_MARK, _SKB_INGRESS, _SKB_IFINDEX = 8, 36, 40

_NAME_SIZE = 15


def kind_name(kind: int, kinds: type[IntEnum] = MapKind) -> str:
    """A kind of map or program as bpftool writes it; its number where lbdr does not know it."""
    return kinds(kind).name.lower() if kind in set(kinds) else f"type {kind}"


def object_name(name: str) -> bytes:
    """A name as the kernel takes it.

    Raises:
        ValueError: longer than 15 characters, or others than letters, digits, `_` and `.`.
    """
    if len(name) > _NAME_SIZE or not name.replace("_", "").replace(".", "").isalnum():
        raise ValueError(f"{name!r} is no name for a BPF object: 1 to 15 letters, digits, _ and .")
    return name.encode("ascii")


# --- attributes ----------------------------------------------------------------------------------


def map_create(
    kind: int,
    key_size: int,
    value_size: int,
    max_entries: int,
    *,
    flags: int,
    inner: int,
    name: str,
) -> bytearray:
    """Attributes of MAP_CREATE; `inner` is the fd of a map whose layout inner maps have, or 0."""
    numbers = (kind, key_size, value_size, max_entries, flags, inner, 0)
    return bytearray(struct.pack("=7I16sI", *numbers, object_name(name), 0))


ELEMENT = struct.Struct("=I4xQQQ")
"""Of MAP_*_ELEM and MAP_GET_NEXT_KEY: map fd, address of key, of value or next key, flags."""

BATCH = struct.Struct("=QQQQIIQQ")
"""Of MAP_*_BATCH: addresses of in and out cursor, keys, values; count, map fd, two flags."""

BATCH_COUNT = struct.Struct("=32xI")
"""Where the kernel writes how many entries a batch did."""


def program_load(
    kind: int,
    instructions: tuple[int, int],
    license_address: int,
    log: tuple[int, int, int],
    *,
    flags: int,
    name: str,
    attach: int,
) -> bytearray:
    """Attributes of PROG_LOAD.

    Args:
        kind: of the program.
        instructions: their number and address.
        license_address: of a string that ends with a zero byte.
        log: level, size in bytes, and address of the verifier's log.
        flags: BPF_F_* of programs.
        name: of the program.
        attach: the expected attach type.
    """
    packed = struct.pack(
        "=IIQQIIQII16sII",
        kind,
        *instructions,
        license_address,
        *log,
        0,
        flags,
        object_name(name),
        0,
        attach,
    )
    return bytearray(packed)


TEST = struct.Struct("=IIIIQQIIIIQQIII4x")
"""Of PROG_TEST_RUN: program fd, returned, sizes in and out, addresses in and out, repeat, ns, sizes
and addresses of the context in and out, flags, CPU, batch size."""


def pin(path_address: int, fd: int) -> bytearray:
    """Attributes of OBJ_PIN, and, with fd 0, of OBJ_GET."""
    return bytearray(struct.pack("=QII", path_address, fd, 0))


def info(fd: int, size: int, address: int) -> bytearray:
    """Attributes of OBJ_GET_INFO_BY_FD: the object, and the size and address of the room for it."""
    return bytearray(struct.pack("=IIQ", fd, size, address))


def by_id(number: int) -> bytearray:
    """Attributes of *_GET_FD_BY_ID."""
    return bytearray(struct.pack("=III", number, 0, 0))


def link_create(program: int, ifindex: int, attach: int, flags: int) -> bytearray:
    """Attributes of LINK_CREATE: program fd, device, where, and for XDP the mode."""
    return bytearray(struct.pack("=IIII16x", program, ifindex, attach, flags))


def link_update(link: int, program: int, expected: int | None) -> bytearray:
    """Attributes of LINK_UPDATE: fds of the link, the new program, and the one it must have."""
    flags = 0 if expected is None else F_REPLACE
    return bytearray(struct.pack("=IIII", link, program, flags, expected or 0))


# --- contexts of PROG_TEST_RUN -------------------------------------------------------------------


def xdp_context(length: int, ifindex: int = 0, queue: int = 0) -> bytes:
    """A context for an XDP program: frame length in bytes, device and receive queue.

    Args:
        length: of the frame.
        ifindex: of a device in this thread's namespace; 0 for none.
        queue: one that the device has.
    """
    return struct.pack("=IIIIII", 0, length, 0, ifindex, queue, 0)


def skb_context(ifindex: int = 0, ingress_ifindex: int = 0, mark: int = 0) -> bytes:
    """A context for a tc program: its device, the device that received the packet, and its mark."""
    context = bytearray(SKB_CONTEXT_SIZE)
    struct.pack_into("=I", context, _SKB_MARK, mark)
    struct.pack_into("=II", context, _SKB_INGRESS, ingress_ifindex, ifindex)
    return bytes(context)


def skb_mark(context: bytes) -> int:
    """The mark in a context that a tc program left behind."""
    mark: int = struct.unpack_from("=I", context, _SKB_MARK)[0]
    return mark
