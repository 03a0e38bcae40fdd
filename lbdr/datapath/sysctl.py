"""Sysctls, by their files under /proc/sys.

A name is written as sysctl(8) writes it: dots between the parts, and a slash for a dot that belongs
to an interface's name (`net.ipv4.conf.eth0/100.arp_ignore`).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lbdr.errors import KernelError, PrivilegeError
from lbdr.operations import SetSysctl

_ROOT = Path("/proc/sys")
_SWAP = str.maketrans("./", "/.")


def _path(name: str) -> Path:
    return _ROOT / name.translate(_SWAP)


def read(name: str) -> str | None:
    """The value of a sysctl; None where this kernel, or this namespace, does not have it.

    Raises:
        KernelError: it exists and cannot be read.
    """
    try:
        return _path(name).read_text().strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise KernelError(f"sysctl {name}", errno=error.errno or 0) from error


def observe(names: Iterable[str]) -> dict[str, str | None]:
    """The values of some sysctls; None for one that does not exist."""
    return {name: read(name) for name in names}


def apply(operation: SetSysctl) -> None:
    """Set a sysctl.

    Raises:
        PrivilegeError: the caller may not.
        KernelError: it does not exist, or the kernel refuses the value.
    """
    try:
        _path(operation.name).write_text(operation.value)
    except PermissionError as error:
        raise PrivilegeError(
            f"{operation.command}: permission denied", hint="run as root"
        ) from error
    except OSError as error:
        raise KernelError(operation.command, errno=error.errno or 0) from error
