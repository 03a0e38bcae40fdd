"""Where the fast path of a director is pinned: loaded, opened by whoever follows IPVS, removed.

What is pinned takes few rights to use: since Linux 5.19 files of root's and CAP_NET_ADMIN. Loading
takes many. So one with rights may load (`lbdr fastpath load`), and a daemon without adopts.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lbdr import mh_verdict
from lbdr.datapath import mh_check, namespace, xdp_attach
from lbdr.datapath import routes as rtnetlink
from lbdr.datapath.bpf import LayoutError
from lbdr.datapath.bpf_fs import mount_bpffs, on_bpffs
from lbdr.datapath.mh_check import MhVerdict
from lbdr.datapath.neighbours import Neighbours
from lbdr.datapath.xdp import FastPath
from lbdr.datapath.xdp_counts import Counted, read_pinned
from lbdr.datapath.xdp_layout import SCHEMA, Capacity
from lbdr.datapath.xdp_programs import DirectorPrograms, make_directory, prepare
from lbdr.errors import KernelError, LbdrError, PrivilegeError
from lbdr.model import Traffic
from lbdr.paths import Paths

log = logging.getLogger(__name__)

_LOAD = "root may load it: `lbdr fastpath load`, or `systemctl restart lbdr`, which does that first"


class InUseError(KernelError):
    """A process has the fast path open, and follows IPVS."""


def is_there(paths: Paths) -> bool:
    """Whether something is pinned for this network namespace, by whatever version."""
    return bool(_directories(paths))


def served_natively(paths: Paths) -> list[int]:
    """The devices, by index, to which XDP is attached by a pinned link."""
    return sorted(ifindex for ifindex, _ in xdp_attach.links(pins_of(paths)))


def counted(paths: Paths) -> dict[Traffic, Counted]:
    """What the programs counted; raises as xdp_counts.read_pinned does."""
    return read_pinned(pins_of(paths))


async def open_pinned(paths: Paths, capacity: Capacity) -> tuple[FastPath, bool, ExitStack]:
    """Adopt what is pinned, or load it. What can be neither is taken away: nobody would follow it.

    Args:
        paths: of the director.
        capacity: of maps that are made.

    Returns:
        The fast path, whether it was there, and what closes it: it goes on then.

    Raises:
        InUseError: another process has it.
        PrivilegeError, KernelError: it cannot be had.
    """
    with _explained(), ExitStack() as stack:
        _mount(paths)
        directory = prepare(_root(paths))
        await _forget_others(paths, directory)
        stack.enter_context(_alone_in(directory))
        there = _pins(directory)
        try:
            programs, adopted = await asyncio.to_thread(DirectorPrograms.open, directory, capacity)
        except LayoutError:
            raise  # not lbdr's
        except LbdrError:
            await _take_away(directory, told=there)
            raise
        stack.enter_context(programs)
        fast = FastPath(programs)
        kept = stack.pop_all()
    return fast, adopted, kept


def prepare_root(paths: Paths) -> None:
    """Mount bpffs where it is missing, and make the directory of all pins.

    A daemon that is confined to that directory finds it then.

    Args:
        paths: of the director.

    Raises:
        PrivilegeError, KernelError: it cannot be had.
    """
    _mount(paths)
    make_directory(paths.bpf)


async def load(paths: Paths) -> tuple[MhVerdict, bool]:
    """Do what takes rights, for a daemon that has few: compare mh, load and pin the programs.

    Args:
        paths: of the director.

    Returns:
        The verdict on the kernel's mh, and whether the programs were there.

    Raises:
        InUseError: a process has the fast path open, so that it is there.
        LbdrError: something cannot be had.
    """
    verdict = await asyncio.to_thread(mh_check.probe, mh_check.table_index())
    mh_verdict.keep(paths, verdict)
    _, adopted, opened = await open_pinned(paths, Capacity(index=verdict.index))
    opened.close()
    return verdict, adopted


async def remove(paths: Paths) -> None:
    """Detach all programs of this network namespace and forget their maps; IPVS forwards.

    Args:
        paths: of the director.

    Raises:
        PrivilegeError, KernelError: something cannot be detached.
    """
    for directory in _directories(paths):
        await xdp_attach.remove(directory, await rtnetlink.links())
    await Neighbours().forget()


@contextmanager
def _explained() -> Iterator[None]:
    """A right that is missing, with who has it."""
    try:
        yield
    except PrivilegeError as error:
        raise PrivilegeError(f"the fast path is not loaded: {error.message}", hint=_LOAD) from error


def _mount(paths: Paths) -> None:
    if on_bpffs(paths.bpf):
        return
    if not paths.bpf.parent.is_dir():
        raise KernelError(f"{paths.bpf.parent} is not there", hint="mount -t bpf bpf /sys/fs/bpf")
    mount_bpffs(paths.bpf.parent)


async def _take_away(directory: Path, *, told: bool) -> None:
    """Leave no program attached whose maps nobody writes; IPVS has the packets."""
    await xdp_attach.remove(directory, await rtnetlink.links() if _pins(directory) else ())
    if told:
        log.warning("what was pinned in %s is taken away: it cannot be used", directory)


async def _forget_others(paths: Paths, directory: Path) -> None:
    """Take away what a version with another layout of the maps left: it cannot be adopted."""
    for other in _directories(paths):
        if other != directory:
            with _alone_in(other):
                await _take_away(other, told=True)


def pins_of(paths: Paths) -> Path:
    """Where the fast path of this network namespace is pinned.

    Args:
        paths: of the director.
    """
    return _root(paths) / f"v{SCHEMA}"


def _pins(directory: Path) -> bool:
    return any(directory.iterdir())


def _root(paths: Paths) -> Path:
    return paths.bpf / str(namespace.namespace_id())


def _directories(paths: Paths) -> list[Path]:
    """Those that versions of lbdr have made; each layout has its own."""
    return sorted(_root(paths).glob("v*"))


@contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Lock the pins: two processes would write each other's maps."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise InUseError(f"another lbdr uses the fast path pinned in {directory}") from None
    finally:
        os.close(descriptor)
