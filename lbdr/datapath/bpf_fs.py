"""bpffs, the file system in which maps, programs and links outlive the process that made them.

Sources: statfs(2), mount(2), kernel/bpf/inode.c. A mount belongs to a mount namespace: `ip netns
exec` makes a new one in which bpffs is hidden, `nsenter --net=` does not.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from pathlib import Path

from lbdr.errors import KernelError, PrivilegeError

_BPF_FS_MAGIC = 0xCAFE4A11
_STATFS_SIZE = 256  # the kernel's struct has 120 bytes
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8

_libc = ctypes.CDLL(None, use_errno=True)


def on_bpffs(path: Path) -> bool:
    """Whether a path lies, or would lie once it is made, on bpffs.

    Raises:
        KernelError: a directory on the way cannot be looked at.
    """
    place = path.absolute()
    while True:
        room = ctypes.create_string_buffer(_STATFS_SIZE)
        if _libc.statfs(os.fsencode(place), room) == 0:
            (magic,) = struct.unpack_from("l", room)
            return bool(magic == _BPF_FS_MAGIC)
        number = ctypes.get_errno()
        if number != errno.ENOENT or place == place.parent:
            raise KernelError(f"stat -f {place}", errno=number)
        place = place.parent


def ensure_bpffs(path: Path) -> None:
    """Require that a path lies on bpffs.

    Raises:
        KernelError: it does not; the remedy is in the message.
    """
    if not on_bpffs(path):
        raise KernelError(
            f"{path} is not on a BPF file system",
            hint="mount -t bpf bpf /sys/fs/bpf, or give a path below one "
            "(`findmnt -t bpf` lists them; `ip netns exec` hides them, `nsenter --net=` does not)",
        )


def mount_bpffs(path: Path) -> None:
    """Mount bpffs on a directory that exists, for root alone; a second one would hide the first.

    Raises:
        PrivilegeError: the caller lacks CAP_SYS_ADMIN.
        KernelError: no such directory, or a kernel without bpffs.
    """
    words = f"mount -t bpf -o mode=0700 bpf {path}"
    flags = ctypes.c_ulong(_MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    if _libc.mount(b"bpf", os.fsencode(path), b"bpf", flags, b"mode=0700") == 0:
        return
    number = ctypes.get_errno()
    if number == errno.EPERM:
        raise PrivilegeError(f"{words}: not permitted", hint="run as root (CAP_SYS_ADMIN)")
    hint = "a kernel with CONFIG_BPF_SYSCALL has it" if number == errno.ENODEV else ""
    raise KernelError(words, errno=number, hint=hint)
