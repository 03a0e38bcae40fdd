"""Which kernel state is meant: that of one network namespace, since one boot."""

from __future__ import annotations

from pathlib import Path

from lbdr.datapath import sysctl
from lbdr.errors import KernelError

_NAMESPACE = Path("/proc/thread-self/ns/net")


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
