"""Array maps: whole ranges of values at once."""

from __future__ import annotations

import errno
import mmap
import struct
from array import array
from typing import ClassVar

from lbdr.datapath import bpf_batch
from lbdr.datapath.bpf_batch import CHUNK, NO_BATCH
from lbdr.datapath.bpf_cpus import rounded
from lbdr.datapath.bpf_maps import Map
from lbdr.datapath.bpf_wire import MapKind
from lbdr.errors import KernelError


class Array(Map):
    """A map whose keys are the 32-bit indexes from 0, and whose entries always exist."""

    kinds: ClassVar[frozenset[int]] = frozenset({MapKind.ARRAY, MapKind.PERCPU_ARRAY})

    def read_range(self, first: int, count: int) -> bytes:
        """The values of a range, one after another.

        Raises:
            ValueError: the range does not lie in the array.
            PrivilegeError, KernelError: the kernel refuses.
        """
        self._require_range(first, count)
        values = bytearray()
        for start in range(first, first + count, CHUNK):
            number = min(CHUNK, first + count - start)
            cursor = _index(start - 1) if start else None  # the kernel goes on after it
            batch = bpf_batch.read(self.fd, cursor, number, 4, self.value_size)
            if batch.error in NO_BATCH:
                for place in range(number):
                    values += self.lookup(_index(start + place)) or b""
            elif batch.error or batch.count != number:
                raise self._refused("dump", batch.error)
            else:
                values += batch.values
        return bytes(values)

    def write_range(self, first: int, values: bytes) -> None:
        """Write a range in its order, thousands of values in one call.

        Args:
            first: index of the first one.
            values: one after another, as read_range returns them.

        Raises:
            ValueError: the range does not lie in the array.
            PrivilegeError, KernelError: the kernel refuses.
        """
        size = self.value_size
        count, rest = divmod(len(values), size)
        if rest:
            raise ValueError(f"{self!r}: {len(values)} bytes are no multiple of {size}")
        self._require_range(first, count)
        for start in range(0, count, CHUNK):
            number = min(CHUNK, count - start)
            keys = array("I", range(first + start, first + start + number)).tobytes()
            self._write(keys, values[start * size : (start + number) * size], number)

    def memory(self) -> mmap.mmap:
        """All values as memory that the programs share, of an array made with MMAPABLE.

        Each value starts at a multiple of its size rounded up to 8 bytes. Assigning one item of
        `memoryview(memory).cast("Q")` is one store. The caller closes it.

        Raises:
            KernelError: the map was not made so, or is per-CPU.
        """
        size = rounded(self.layout.value_size) * self.layout.max_entries
        try:
            return mmap.mmap(self.fd, size)
        except OSError as error:
            number = error.errno or errno.EINVAL
            hint = "only an array made with BPF_F_MMAPABLE can be mapped"
            raise KernelError(f"mmap of map {self.label}", errno=number, hint=hint) from error

    def _require_range(self, first: int, count: int) -> None:
        entries = self.layout.max_entries
        if first < 0 or count < 0 or first + count > entries:
            raise ValueError(f"{self!r}: {count} from {first} on are not within its {entries}")


def _index(number: int) -> bytes:
    return struct.pack("=I", number)
