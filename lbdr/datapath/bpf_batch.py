"""Batches: thousands of entries of a map in one call.

Sources: kernel/bpf/syscall.c (generic_map_*_batch), kernel/bpf/hashtab.c
(__htab_map_lookup_and_delete_batch). Elements are done in the order given; the first that fails
ends the batch.
"""

from __future__ import annotations

import ctypes
import errno
from dataclasses import dataclass

from lbdr.datapath import bpf
from lbdr.datapath import bpf_wire as wire
from lbdr.datapath.bpf_wire import Command

NO_BATCH = (bpf.ENOTSUPP, errno.EINVAL)
"""This kind of map has none; this kernel has none (before Linux 5.6)."""

CHUNK = 4096
"""Entries in one call."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What a batch did.

    Args:
        error: 0, or the error number that ended it; ENOENT at the end of a map.
        count: entries done.
        cursor: where to go on reading.
        keys: that were read, one after another.
        values: that were read, one after another.
    """

    error: int
    count: int
    cursor: bytes = b""
    keys: bytes = b""
    values: bytes = b""


def read(fd: int, cursor: bytes | None, count: int, key_size: int, value_size: int) -> Batch:
    """Read entries after a cursor; None is the beginning.

    A hash's cursor is a bucket's number, an array's is the last index.
    """
    following = ctypes.create_string_buffer(max(key_size, 4))
    before = None if cursor is None else ctypes.create_string_buffer(cursor, len(following))
    keys = ctypes.create_string_buffer(count * key_size)
    values = ctypes.create_string_buffer(count * value_size)
    error, done = _call(Command.MAP_LOOKUP_BATCH, fd, count, before, following, keys, values)
    if error in NO_BATCH:
        return Batch(error, 0)
    return Batch(
        error, done, following.raw, keys.raw[: done * key_size], values.raw[: done * value_size]
    )


def update(fd: int, keys: bytes, values: bytes, count: int) -> Batch:
    """Write entries, whatever was there."""
    key_room = ctypes.create_string_buffer(keys, len(keys))
    value_room = ctypes.create_string_buffer(values, len(values))
    return Batch(*_call(Command.MAP_UPDATE_BATCH, fd, count, None, None, key_room, value_room))


def delete(fd: int, keys: bytes, count: int) -> Batch:
    """Delete entries; one that is not there ends it with ENOENT."""
    key_room = ctypes.create_string_buffer(keys, len(keys))
    return Batch(*_call(Command.MAP_DELETE_BATCH, fd, count, None, None, key_room, None))


def _call(
    command: Command, fd: int, count: int, *rooms: ctypes.Array[ctypes.c_char] | None
) -> tuple[int, int]:
    """Error number and entries done; rooms for cursor in, cursor out, keys, values."""
    addresses = [0 if room is None else ctypes.addressof(room) for room in rooms]
    attributes = bytearray(wire.BATCH.pack(*addresses, count, fd, 0, 0))
    result = bpf.call(command, attributes)
    # the kernel writes no count where it refuses the call as a whole
    done = wire.BATCH_COUNT.unpack_from(attributes)[0] if -result not in NO_BATCH else 0
    return -result if result < 0 else 0, done
