"""The kernel's BPF objects: bpf(2) itself, what its refusals mean, and pins.

Without libbpf and LLVM, so that a daemon can hold maps, programs and links for months in little
memory. Maps are in bpf_maps and bpf_arrays, programs in bpf_programs, links in bpf_links and
bpf_netlink, the file system of pins in bpf_fs. Paths and devices are those of the calling thread's
namespaces.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import weakref
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from lbdr.datapath import bpf_wire as wire
from lbdr.datapath.bpf_fs import ensure_bpffs
from lbdr.datapath.bpf_infos import INFO_SIZE
from lbdr.datapath.bpf_wire import Command
from lbdr.errors import KernelError, LbdrError, PrivilegeError

ENOTSUPP = 524
"""The kernel's own number for "this kind of object cannot do that" (include/linux/errno.h)."""

_NUMBERS = {"x86_64": 321, "aarch64": 280}
_RIGHTS = "run as root (CAP_BPF and CAP_NET_ADMIN, before Linux 5.8 CAP_SYS_ADMIN)"
_LINK_PREFIX = "anon_inode:"

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_uint)
_number = _NUMBERS.get(platform.machine(), -1)  # -1 is answered with ENOSYS


class LayoutError(KernelError):
    """A pinned object is another one than it has to be; never used, never silently replaced."""


def call(command: int, attributes: bytearray) -> int:
    """Ask bpf(2) once.

    Args:
        command: what for.
        attributes: `union bpf_attr`; the kernel may write into it.

    Returns:
        What the call returns (an fd, or 0), or the negative error number.
    """
    buffer = (ctypes.c_char * len(attributes)).from_buffer(attributes)
    return call_buffer(command, ctypes.addressof(buffer), len(attributes))


def call_buffer(command: int, address: int, size: int) -> int:
    """Ask bpf(2) once, with attributes that lie at an address; returns as `call` does."""
    result: int = _syscall(_number, command, address, size)
    return result if result >= 0 else -ctypes.get_errno()


def refused(words: str, number: int, hint: str = "") -> LbdrError:
    """What a refusal of bpf(2) means.

    Args:
        words: what was asked, as an administrator would have typed it.
        number: the error number, positive.
        hint: the remedy; where empty, the number's own.
    """
    if number == errno.EPERM:
        return PrivilegeError(f"{words}: not permitted", hint=hint or _RIGHTS)
    if number == ENOTSUPP:
        return KernelError(f"{words}: this kernel cannot do that (ENOTSUPP)", hint=hint)
    if number == errno.ENOSYS:
        hint = hint or f"no bpf(2) here: CONFIG_BPF_SYSCALL, on {' or '.join(_NUMBERS)}"
    elif number in (errno.EMFILE, errno.ENFILE):
        hint = hint or "raise the limit of open files (LimitNOFILE=)"
    return KernelError(words, errno=number, hint=hint)


class BpfObject:
    """An fd of a map, program or link; a context manager, and closed when it is forgotten.

    Args:
        fd: the object's; owned from now on.
        label: the words by which bpftool would name it, `pinned PATH` or `name NAME`.
    """

    kind: ClassVar[str] = "object"  # as the kernel names it in /proc/self/fd
    noun: ClassVar[str] = "object"  # bpftool's word
    get_by_id: ClassVar[Command]

    def __init__(self, fd: int, label: str) -> None:
        self._fd = fd
        self.label = label
        self._finalizer = weakref.finalize(self, os.close, fd)
        self._finalizer.atexit = False  # the end of the process closes it anyway

    @classmethod
    def by_id(cls, number: int) -> Self:
        """Open an object by its id; needs CAP_SYS_ADMIN.

        Raises:
            PrivilegeError, KernelError: the kernel refuses; ENOENT where there is none.
        """
        label = f"id {number}"
        fd = call(cls.get_by_id, wire.by_id(number))
        if fd < 0:
            hint = "run as root (CAP_SYS_ADMIN)" if fd == -errno.EPERM else ""
            raise refused(f"bpftool {cls.noun} show {label}", -fd, hint)
        return cls(fd, label)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.label}>"

    @property
    def fd(self) -> int:
        """The open fd.

        Raises:
            ValueError: it is closed.
        """
        if not self._finalizer.alive:
            raise ValueError(f"bpftool {self.noun} {self.label}: closed")
        return self._fd

    def fileno(self) -> int:
        """The open fd, as select and others ask for it."""
        return self.fd

    def close(self) -> None:
        """Close it; more than once does no harm. Pins and attachments hold the object itself."""
        self._finalizer()

    def pin(self, path: Path, *, replace: bool = False) -> None:
        """Give it a path on bpffs, which holds it after this process.

        Args:
            path: on bpffs, in a directory that exists.
            replace: take the place of what is pinned there, in one step. The object that was there
                loses that pin: a link without another one detaches.

        Raises:
            KernelError: not bpffs; ENOENT: no such directory; EEXIST: something is pinned there.
            PrivilegeError: the caller may not.
        """
        target = path.with_name(f"{path.name}~") if replace else path
        if replace:
            unpin(target)
        words = f"bpftool {self.noun} pin {self.label} {path}"
        result = _path_call(Command.OBJ_PIN, target, self.fd)
        if result < 0:
            raise _pin_refused(words, -result, path)
        if replace:
            try:
                target.replace(path)
            except OSError as error:
                unpin(target)
                raise _pin_refused(words, error.errno or 0, path) from error

    def _info(self) -> bytearray:
        info = bytearray(INFO_SIZE)
        self._fill(info)
        return info

    def _fill(self, info: bytearray) -> None:
        """Have the kernel fill in an info, whose input fields are set already."""
        buffer = (ctypes.c_char * len(info)).from_buffer(info)
        attributes = wire.info(self.fd, len(info), ctypes.addressof(buffer))
        result = call(Command.OBJ_GET_INFO_BY_FD, attributes)
        if result < 0:
            raise refused(f"bpftool {self.noun} show {self.label}", -result)


# --- pins ----------------------------------------------------------------------------------------


def open_pinned(path: Path) -> int:
    """Open whatever is pinned at a path, and return its fd, which the caller closes.

    Raises:
        KernelError: nothing is pinned there (ENOENT), or it is no pin.
        PrivilegeError: the caller may not.
    """
    fd = _path_call(Command.OBJ_GET, path, 0)
    if fd < 0:
        raise _pin_refused(f"bpftool show pinned {path}", -fd, path)
    return fd


def open_kind(path: Path, expected: type[BpfObject]) -> int:
    """Open what is pinned at a path, which must be of one kind.

    Raises:
        LayoutError: it is of another kind.
        PrivilegeError, KernelError: as open_pinned.
    """
    fd = open_pinned(path)
    found = kind_of(fd)
    if found != expected.kind:
        os.close(fd)
        raise LayoutError(
            f"{path} is pinned to a {found}, not to a {expected.kind}",
            hint=f"something else uses this path; `rm {path}` if nothing needs it",
        )
    return fd


def kind_of(fd: int) -> str:
    """What an fd of bpf(2) is: bpf-map, bpf-prog or bpf-link."""
    name = Path(f"/proc/self/fd/{fd}").readlink().name.removeprefix(_LINK_PREFIX)
    return name.replace("_", "-")  # the kernel writes bpf_link in one place and bpf-link in another


def unpin(path: Path) -> bool:
    """Take a pin away; whether there was one. A link without another pin or fd detaches.

    Raises:
        PrivilegeError, KernelError: it cannot be removed.
    """
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _pin_refused(f"rm {path}", error.errno or 0, path) from error
    return True


def _path_call(command: Command, path: Path, fd: int) -> int:
    name = ctypes.create_string_buffer(os.fsencode(path))
    return call(command, wire.pin(ctypes.addressof(name), fd))


def _pin_refused(words: str, number: int, path: Path) -> LbdrError:
    """What it means that a path cannot be pinned, opened or removed.

    The kernel's number tells little: EACCES is what it says of a file that is no pin, and of one
    whose mode forbids it; EPERM of a file system that is not bpffs.
    """
    hint = ""
    if number == errno.ENOENT:
        hint = f"nothing is pinned at {path}" if path.parent.is_dir() else "no such directory"
    elif number == errno.EEXIST:
        hint = f"{path} is taken; `rm {path}` if nothing needs it"
    elif number in (errno.EACCES, errno.EPERM, errno.EINVAL):
        ensure_bpffs(path)
        if number == errno.EACCES:
            if path.is_dir() or os.access(path, os.R_OK | os.W_OK, effective_ids=True):
                return KernelError(f"{words}: {path} is no pin", errno=number)
            return PrivilegeError(f"{words}: permission denied", hint=f"ls -l {path.parent}")
    return refused(words, number, hint)
