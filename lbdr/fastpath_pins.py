"""Where the fast path of a director is pinned: opened by whoever follows IPVS, or removed."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lbdr.datapath import namespace, xdp_attach
from lbdr.datapath import routes as rtnetlink
from lbdr.datapath.bpf_fs import mount_bpffs, on_bpffs
from lbdr.datapath.neighbours import Neighbours
from lbdr.datapath.xdp import FastPath
from lbdr.datapath.xdp_layout import SCHEMA, Capacity
from lbdr.datapath.xdp_programs import DirectorPrograms, prepare
from lbdr.errors import KernelError
from lbdr.paths import Paths


def is_there(paths: Paths) -> bool:
    """Whether something is pinned for this network namespace."""
    return _directory(paths).is_dir()


async def open_pinned(paths: Paths, capacity: Capacity) -> tuple[FastPath, bool, ExitStack]:
    """Adopt what is pinned, or load it.

    Args:
        paths: of the director.
        capacity: of maps that are made.

    Returns:
        The fast path, whether it was there, and what closes it: it goes on then.

    Raises:
        PrivilegeError, KernelError: it cannot be had, or another process has it.
    """
    if not on_bpffs(paths.bpf):
        if not paths.bpf.parent.is_dir():
            raise KernelError(
                f"{paths.bpf.parent} is not there", hint="mount -t bpf bpf /sys/fs/bpf"
            )
        mount_bpffs(paths.bpf.parent)
    with ExitStack() as stack:
        directory = prepare(_directory(paths).parent)
        stack.enter_context(_alone_in(directory))
        programs, adopted = await asyncio.to_thread(DirectorPrograms.open, directory, capacity)
        stack.enter_context(programs)
        fast = FastPath(programs)
        kept = stack.pop_all()
    return fast, adopted, kept


async def remove(paths: Paths) -> None:
    """Detach all programs of this network namespace and forget their maps; IPVS forwards.

    Args:
        paths: of the director.

    Raises:
        PrivilegeError, KernelError: something cannot be detached.
    """
    if is_there(paths):
        await xdp_attach.remove(_directory(paths), await rtnetlink.links())
    await Neighbours().forget()


def _directory(paths: Paths) -> Path:
    return paths.bpf / str(namespace.namespace_id()) / f"v{SCHEMA}"


@contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Lock the pins: two processes would write each other's maps."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise KernelError(f"another lbdr uses the fast path pinned in {directory}") from None
    finally:
        os.close(descriptor)
