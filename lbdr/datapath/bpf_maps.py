"""Maps: reading and writing what BPF programs read and write.

Keys and values are bytes, laid out as the program's C structs. A value of a per-CPU map is the
values of all possible CPUs one after another, each rounded up to 8 bytes (`Map.per_cpu`).
"""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Self

from lbdr.datapath import bpf, bpf_batch
from lbdr.datapath import bpf_wire as wire
from lbdr.datapath.bpf_batch import CHUNK, NO_BATCH
from lbdr.datapath.bpf_cpus import cpu_values, possible_cpus, rounded, totals
from lbdr.datapath.bpf_infos import MapInfo, parse_map
from lbdr.datapath.bpf_wire import Command, MapKind, Update, kind_name
from lbdr.errors import LbdrError

_PER_CPU = frozenset({MapKind.PERCPU_HASH, MapKind.PERCPU_ARRAY, MapKind.LRU_PERCPU_HASH})
# Kinds whose batches have a cursor that a deleted entry does not disturb. The others' cursor is a
# key (generic_map_lookup_batch), and its deletion starts them from the beginning.
_BATCHES = _PER_CPU | {MapKind.ARRAY, MapKind.HASH, MapKind.LRU_HASH}
_SHOWN = 16  # bytes of a key in an error


class Map(bpf.BpfObject):
    """A map; not for use by several threads at once.

    Args:
        fd: the map's; owned from now on.
        label: the words by which bpftool would name it.

    Raises:
        LayoutError: it is of a kind that the class cannot handle.
    """

    kind = "bpf-map"
    noun = "map"
    get_by_id = Command.MAP_GET_FD_BY_ID
    kinds: ClassVar[frozenset[int]] = frozenset()  # that the class can handle; empty for all

    def __init__(self, fd: int, label: str) -> None:
        super().__init__(fd, label)
        info = self.info()
        if self.kinds and info.kind not in self.kinds:
            self.close()
            raise bpf.LayoutError(
                f"map {label} is a {kind_name(info.kind)}, not an {type(self).__name__.lower()}"
            )
        self.layout = info
        self.per_cpu = info.kind in _PER_CPU
        self.value_size = info.value_size
        if self.per_cpu:
            self.value_size = rounded(info.value_size) * possible_cpus()
        # a call costs less than making its buffers: they are made once; values by who asks for one,
        # since some arrays are one value of megabytes that nobody copies
        self._key = ctypes.create_string_buffer(info.key_size)
        self._attributes = ctypes.create_string_buffer(wire.ELEMENT.size)
        self._key_address = ctypes.addressof(self._key)
        self._attributes_address = ctypes.addressof(self._attributes)

    @classmethod
    def open(
        cls,
        path: Path,
        key_size: int,
        value_size: int,
        max_entries: int | None = None,
        kind: MapKind | None = None,
    ) -> Self:
        """Open a pinned map whose layout is known.

        Args:
            path: of the pin.
            key_size: bytes.
            value_size: bytes, of one CPU's value.
            max_entries: None for any.
            kind: None for any.

        Raises:
            LayoutError: the path is pinned to something else; the message says in what it differs.
            PrivilegeError, KernelError: it cannot be opened.
        """
        opened = cls(bpf.open_kind(path, cls), f"pinned {path}")
        found = opened.layout
        wanted = {
            "type": (kind_name(found.kind), None if kind is None else kind_name(kind)),
            "key_size": (found.key_size, key_size),
            "value_size": (found.value_size, value_size),
            "max_entries": (found.max_entries, max_entries),
        }
        differences = [
            f"{name} {there}, not {want}"
            for name, (there, want) in wanted.items()
            if want is not None and there != want
        ]
        if differences:
            opened.close()
            raise bpf.LayoutError(
                f"the map pinned at {path} has another layout: {'; '.join(differences)}",
                hint="another version or another program made it; it is not used",
            )
        return opened

    @classmethod
    def create(
        cls,
        kind: MapKind,
        key_size: int,
        value_size: int,
        max_entries: int,
        *,
        name: str = "lbdr",
        flags: int = 0,
        inner: Map | None = None,
    ) -> Self:
        """Make a map; it lasts until its last fd, pin and program are gone.

        Args:
            kind: of the map.
            key_size: bytes.
            value_size: bytes.
            max_entries: at most so many.
            name: at most 15 letters, digits, `_` and `.`.
            flags: MapFlag.
            inner: of a map of maps: one with the layout of those inside.

        Raises:
            PrivilegeError, KernelError: the kernel refuses.
        """
        fd_inside = inner.fd if inner else 0
        attributes = wire.map_create(
            kind, key_size, value_size, max_entries, flags=flags, inner=fd_inside, name=name
        )
        fd = bpf.call(Command.MAP_CREATE, attributes)
        if fd < 0:
            layout = f"key {key_size} value {value_size} entries {max_entries} name {name}"
            raise bpf.refused(f"bpftool map create type {kind_name(kind)} {layout}", -fd)
        return cls(fd, f"name {name}")

    def info(self) -> MapInfo:
        """What the kernel says of it."""
        return parse_map(self._info())

    # --- one entry -------------------------------------------------------------------------------

    def lookup(self, key: bytes) -> bytes | None:
        """The value of a key; None where there is none."""
        self._set_key(key)
        result = self._element(Command.MAP_LOOKUP_ELEM, self._value_address)
        if result == -errno.ENOENT:
            return None
        if result < 0:
            raise self._refused("lookup", -result, key)
        return self._value.raw

    def update(self, key: bytes, value: bytes, how: Update = Update.ANY) -> None:
        """Write one entry.

        A hash's entry is exchanged as a whole. An array's value is copied into place, so that a
        program may see a mixture of old and new for a moment, if it is longer than one word.

        Args:
            key: of the map's key size.
            value: of the map's value size; for a per-CPU map all CPUs' values.
            how: what must be there.

        Raises:
            KernelError: EEXIST or ENOENT against `how`; E2BIG: the map is full, or the array has
                no such index.
            PrivilegeError: the caller may not.
        """
        self._set_key(key)
        if len(value) != self.value_size:
            raise ValueError(f"{self!r}: value of {len(value)} bytes, not {self.value_size}")
        self._value.raw = value
        result = self._element(Command.MAP_UPDATE_ELEM, self._value_address, how)
        if result < 0:
            raise self._refused("update", -result, key)

    def delete(self, key: bytes) -> bool:
        """Delete an entry; whether there was one.

        Raises:
            KernelError: EINVAL: an array's entries cannot be deleted.
        """
        self._set_key(key)
        result = self._element(Command.MAP_DELETE_ELEM, 0)
        if result == -errno.ENOENT:
            return False
        if result < 0:
            raise self._refused("delete", -result, key)
        return True

    def take(self, key: bytes) -> bytes | None:
        """Delete an entry; the value that it had last, None where there was none.

        Raises:
            KernelError: EINVAL: the kind, or a kernel before Linux 5.14, cannot.
        """
        self._set_key(key)
        result = self._element(Command.MAP_LOOKUP_AND_DELETE_ELEM, self._value_address)
        if result == -errno.ENOENT:
            return None
        if result < 0:
            raise self._refused("delete", -result, key)
        return self._value.raw

    # --- all entries -----------------------------------------------------------------------------

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """All entries, in no order, each once.

        Entries may be deleted meanwhile, by the caller too. One that is added meanwhile may be
        missed.
        """
        if self.layout.kind in _BATCHES:
            return self._batches()
        return self._walk()

    def keys(self) -> list[bytes]:
        """All keys, in no order."""
        return [key for key, _ in self.items()]

    def update_many(self, entries: Mapping[bytes, bytes]) -> None:
        """Write many entries in their order, thousands in one call where the kernel can.

        Raises:
            KernelError: the kernel refuses one; those before it are written.
        """
        pairs = list(entries.items())
        for start in range(0, len(pairs), CHUNK):
            chunk = pairs[start : start + CHUNK]
            keys = b"".join(key for key, _ in chunk)
            values = b"".join(value for _, value in chunk)
            self._write(keys, values, len(chunk))

    def delete_many(self, keys: Iterable[bytes]) -> int:
        """Delete many entries; how many there were.

        Raises:
            KernelError: the kernel refuses.
        """
        left = list(keys)
        deleted = 0
        while left:
            chunk, left = left[:CHUNK], left[CHUNK:]
            joined = b"".join(chunk)
            if len(joined) != len(chunk) * self.layout.key_size:
                raise ValueError(f"{self!r}: a key not of {self.layout.key_size} bytes")
            batch = bpf_batch.delete(self.fd, joined, len(chunk))
            deleted += batch.count
            if batch.error in NO_BATCH:
                deleted += sum(map(self.delete, chunk))
            elif batch.error == errno.ENOENT:
                left = chunk[batch.count + 1 :] + left  # the one that is missing ended it
            elif batch.error:
                raise self._refused("delete", batch.error, chunk[batch.count])
        return deleted

    # --- per-CPU values --------------------------------------------------------------------------

    def cpu_values(self, value: bytes) -> list[bytes]:
        """A per-CPU map's value, split into each possible CPU's."""
        return cpu_values(value, self.layout.value_size)

    def totals(self, value: bytes) -> tuple[int, ...]:
        """A per-CPU map's value, read as 64-bit counters, each summed over the CPUs."""
        return totals(value, self.layout.value_size)

    # --- inside ----------------------------------------------------------------------------------

    @cached_property
    def _value(self) -> ctypes.Array[ctypes.c_char]:
        return ctypes.create_string_buffer(self.value_size)

    @cached_property
    def _value_address(self) -> int:
        return ctypes.addressof(self._value)

    def _set_key(self, key: bytes) -> None:
        if len(key) != self.layout.key_size:
            raise ValueError(f"{self!r}: key of {len(key)} bytes, not {self.layout.key_size}")
        self._key.raw = key

    def _element(self, command: Command, value: int, flags: int = 0) -> int:
        wire.ELEMENT.pack_into(self._attributes, 0, self.fd, self._key_address, value, flags)
        return bpf.call_buffer(command, self._attributes_address, wire.ELEMENT.size)

    def _write(self, keys: bytes, values: bytes, count: int) -> None:
        """Write some entries by one call; where the kernel has no batch, one by one."""
        key_size, value_size = self.layout.key_size, self.value_size
        if (len(keys), len(values)) != (count * key_size, count * value_size):
            raise ValueError(f"{self!r}: a key not of {key_size} or a value not of {value_size}")
        batch = bpf_batch.update(self.fd, keys, values, count)
        if batch.error in NO_BATCH:
            for key, value in self._pairs(keys, values, count):
                self.update(key, value)
        elif batch.error:
            place = batch.count * key_size
            raise self._refused("update", batch.error, keys[place : place + key_size])

    def _batches(self) -> Iterator[tuple[bytes, bytes]]:
        count = min(CHUNK, self.layout.max_entries)
        cursor: bytes | None = None
        while True:
            batch = bpf_batch.read(self.fd, cursor, count, self.layout.key_size, self.value_size)
            if batch.error in NO_BATCH and cursor is None:
                yield from self._walk()
                return
            if batch.error == errno.ENOSPC:  # a bucket holds more than there is room for
                count *= 2
                if not batch.count:
                    continue
            elif batch.error not in (0, errno.ENOENT):
                raise self._refused("dump", batch.error)
            yield from self._pairs(batch.keys, batch.values, batch.count)
            if batch.error == errno.ENOENT:
                return
            cursor = batch.cursor

    def _pairs(self, keys: bytes, values: bytes, count: int) -> Iterator[tuple[bytes, bytes]]:
        key_size, value_size = self.layout.key_size, self.value_size
        for place in range(count):
            key = keys[place * key_size : (place + 1) * key_size]
            yield key, values[place * value_size : (place + 1) * value_size]

    def _walk(self) -> Iterator[tuple[bytes, bytes]]:
        """Entries one by one; where the key at hand is deleted, the kernel starts over."""
        seen: set[bytes] = set()
        steps = 4 * self.layout.max_entries + 16
        following = ctypes.create_string_buffer(self.layout.key_size)
        key = self._next(None, following)
        while key is not None and steps:
            steps -= 1
            if key not in seen:
                seen.add(key)
                value = self.lookup(key)
                if value is not None:
                    yield key, value
            key = self._next(key, following)
        if key is not None:
            raise self._refused("dump", errno.EINTR)

    def _next(self, key: bytes | None, room: ctypes.Array[ctypes.c_char]) -> bytes | None:
        address = 0
        if key is not None:
            self._key.raw = key
            address = self._key_address
        wire.ELEMENT.pack_into(self._attributes, 0, self.fd, address, ctypes.addressof(room), 0)
        result = bpf.call_buffer(
            Command.MAP_GET_NEXT_KEY, self._attributes_address, wire.ELEMENT.size
        )
        if result == -errno.ENOENT:
            return None
        if result < 0:
            raise self._refused("getnext", -result, key or b"")
        return room.raw

    def _refused(self, action: str, number: int, key: bytes = b"") -> LbdrError:
        words = f"bpftool map {action} {self.label}"
        if key:
            more = " ..." if len(key) > _SHOWN else ""
            words += f" key hex {key[:_SHOWN].hex(' ')}{more}"
        hint = ""
        if number == errno.E2BIG:
            hint = f"it holds {self.layout.max_entries} entries and no more"
        elif number == errno.EINTR:
            hint = "it changes without end; again"
        return bpf.refused(words, number, hint)
