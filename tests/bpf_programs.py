"""What the BPF tests share: programs of a few instructions, and a bpffs of their own."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from netlab import wait_for

from lbdr.datapath.bpf_fs import mount_bpffs

_CLONE_NEWNS = 0x20000
_MS_REC_PRIVATE = 0x4000 | 0x40000
_libc = ctypes.CDLL(None, use_errno=True)


def instruction(
    code: int, destination: int = 0, source: int = 0, offset: int = 0, value: int = 0
) -> bytes:
    """One `struct bpf_insn` (Documentation/bpf/standardization/instruction-set.rst)."""
    return struct.pack("=BBhi", code, source << 4 | destination, offset, value)


EXIT = instruction(0x95)


def returns(value: int) -> bytes:
    """A program that returns a number."""
    return instruction(0xB7, 0, value=value) + EXIT


def returns_field(offset: int) -> bytes:
    """A program that returns a 32-bit field of its context."""
    return instruction(0x61, 0, 1, offset) + EXIT


def marks(mark: int) -> bytes:
    """A tc program that sets the packet's mark."""
    return instruction(0xB7, 2, value=mark) + instruction(0x63, 1, 2, 8) + returns(-1)


def lengthens(size: int) -> bytes:
    """An XDP program that puts bytes before the frame and sends it back."""
    adjust_head = 44
    return instruction(0xB7, 2, value=-size) + instruction(0x85, value=adjust_head) + returns(3)


def returns_entry(map_fd: int) -> bytes:
    """A program that returns the first entry of an array of 32-bit numbers."""
    lookup = 1
    return (
        instruction(0x62, 10, 0, -4, 0)  # the index, on the stack
        + instruction(0x18, 1, 1, 0, map_fd)  # the map, 64 bits wide
        + instruction(0)
        + instruction(0xBF, 2, 10)
        + instruction(0x07, 2, value=-4)
        + instruction(0x85, value=lookup)
        + instruction(0x15, 0, 0, 1, 0)  # none: return 0
        + instruction(0x61, 0, 0)
        + EXIT
    )


@contextlib.contextmanager
def private_bpffs(path: Path) -> Iterator[Path]:
    """This thread and its children have a bpffs at a path meanwhile, and nobody else sees it.

    It is in a mount namespace of this thread, which ends with it, however it ends.
    """
    here = Path.cwd()
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    with Path("/proc/thread-self/ns/mnt").open() as before:
        _check(_libc.unshare(_CLONE_NEWNS))
        try:
            _check(_libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC_PRIVATE), None))
            mount_bpffs(path)
            yield path
        finally:
            # refused while a thread that has ended for Python has not yet ended for the kernel
            wait_for(lambda: _libc.setns(before.fileno(), _CLONE_NEWNS) == 0, "back in /")
            # the root is the namespace's now, which is another one for who was in a chroot
            os.fchdir(root)
            os.chroot(".")
            os.close(root)
            os.chdir(here)


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
