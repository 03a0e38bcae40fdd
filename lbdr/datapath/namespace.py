"""Which kernel state is meant: that of one network namespace, since one boot; and a new one."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import socket
import struct
from pathlib import Path

from lbdr.datapath import sysctl
from lbdr.errors import KernelError, PrivilegeError

_NAMESPACE = Path("/proc/thread-self/ns/net")
_CLONE_NEWNET = 0x40000000
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 0x1

_libc = ctypes.CDLL(None, use_errno=True)


def boot_id() -> str:
    """A name of this boot (random(4)); empty where the kernel has none."""
    return sysctl.read("kernel.random.boot_id") or ""


def namespace_id() -> int:
    """The number of the calling thread's network namespace (namespaces(7)).

    Raises:
        KernelError: /proc is not there.
    """
    try:
        return _NAMESPACE.stat().st_ino
    except OSError as error:
        raise KernelError(f"stat {_NAMESPACE}", errno=error.errno or 0) from error


def identity() -> str:
    """A name of this namespace in this boot: what was made in another one is gone.

    Raises:
        KernelError: /proc is not there.
    """
    return f"{boot_id()} {namespace_id()}"


def enter_new() -> None:
    """Move the calling thread into a new network namespace, with nothing but lo, which is down.

    It ends with the last thread, process and socket in it: a thread of its own for the purpose
    leaves nothing (unshare(2), CLONE_NEWNET).

    Raises:
        PrivilegeError: the caller lacks CAP_SYS_ADMIN.
        KernelError: the kernel has no namespaces, or makes no more of them.
    """
    if _libc.unshare(_CLONE_NEWNET):
        number = ctypes.get_errno()
        if number == errno.EPERM:
            raise PrivilegeError("unshare --net: not permitted", hint="run as root (CAP_SYS_ADMIN)")
        raise KernelError("unshare --net", errno=number)


def set_lo_up() -> None:
    """Set lo of the calling thread's namespace up, and so give it 127.0.0.1 and ::1 (netdevice(7)).

    Raises:
        KernelError: the kernel refuses.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", _IFF_UP))
    except OSError as error:
        raise KernelError("ip link set lo up", errno=error.errno or 0) from error
