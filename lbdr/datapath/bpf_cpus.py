"""Values of per-CPU maps: those of all possible CPUs one after another, each rounded up to 8 bytes.

Source: kernel/bpf/syscall.c (bpf_map_value_size), kernel/bpf/hashtab.c (bpf_percpu_hash_copy).
"""

from __future__ import annotations

import struct
from functools import cache
from pathlib import Path

from lbdr.errors import KernelError

_CPUS = Path("/sys/devices/system/cpu/possible")


def parse_cpus(text: str) -> int:
    """The number of CPUs in a list such as `0-3,8-11`."""
    ranges = (part.split("-") for part in text.strip().split(","))
    return sum(int(ends[-1]) - int(ends[0]) + 1 for ends in ranges)


@cache
def possible_cpus() -> int:
    """The number of CPUs that this kernel could have, which is how many values a per-CPU map has.

    Raises:
        KernelError: sysfs is not mounted.
    """
    try:
        return parse_cpus(_CPUS.read_text())
    except OSError as error:
        hint = "mount -t sysfs sysfs /sys"
        raise KernelError(f"cat {_CPUS}", errno=error.errno or 0, hint=hint) from error


def rounded(size: int) -> int:
    """A size in bytes, rounded up to 8."""
    return (size + 7) & ~7


def cpu_values(value: bytes, size: int) -> list[bytes]:
    """The value of each CPU, of `size` bytes."""
    return [value[start : start + size] for start in range(0, len(value), rounded(size))]


def totals(value: bytes, size: int) -> tuple[int, ...]:
    """The sums over all CPUs of 64-bit counters, of which each CPU has `size` bytes."""
    words = size // 8
    counters = struct.unpack(f"={len(value) // 8}Q", value)
    return tuple(sum(counters[word::words]) for word in range(words))
