"""The director's programs and their maps, pinned together: loaded, adopted, exchanged.

All is pinned in one directory of bpffs, whose name carries the schema. It outlives the process:
whoever comes next finds the maps with all that is in them, and programs that went on meanwhile.
"""

from __future__ import annotations

import errno
import logging
import os
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from lbdr.datapath import bpf, bpf_features, xdp_layout, xdp_loader
from lbdr.datapath.bpf_fs import ensure_bpffs
from lbdr.datapath.bpf_programs import Program
from lbdr.datapath.bpf_wire import ProgramKind
from lbdr.datapath.xdp_layout import Capacity
from lbdr.datapath.xdp_maps import DirectorMaps
from lbdr.errors import KernelError, PrivilegeError

log = logging.getLogger(__name__)

_KINDS = {
    "steady": ProgramKind.XDP,
    "director": ProgramKind.XDP,
    "tc": ProgramKind.SCHED_CLS,
    "learn": ProgramKind.SCHED_CLS,
}
RECORDS_PER_TICK = 20_000
EXPLAIN_PIN = "explain"
_FORBIDDEN = (errno.EPERM, errno.EACCES, errno.EROFS)  # a service without rights sees the last


class DirectorPrograms:
    """The programs of one director, open, with their maps.

    Args:
        directory: where they are pinned.
        maps: those they use.
        programs: steady (attached as XDP), director (behind it), tc (ingress), learn (egress).
    """

    def __init__(self, directory: Path, maps: DirectorMaps, programs: dict[str, Program]) -> None:
        self.directory = directory
        self.maps = maps
        self.steady = programs["steady"]
        self.director = programs["director"]
        self.tc = programs["tc"]
        self.learn = programs["learn"]
        self._programs = programs

    @classmethod
    def open(cls, directory: Path, capacity: Capacity, *, frags: bool = True) -> tuple[Self, bool]:
        """Adopt what is pinned, or load it; whether it was there, with programs of this version.

        Maps that are there are kept, with all that is in them, also where the programs are
        exchanged for those of this version.

        Args:
            directory: of `prepare`.
            capacity: of maps that are made.
            frags: have the kernel take frames longer than a page, where it can.

        Raises:
            LayoutError: what is pinned there is not lbdr's.
            PrivilegeError, KernelError: the kernel, the compiler or the verifier refuses.
        """
        with ExitStack() as undo:
            try:
                maps = DirectorMaps.open(directory)
            except KernelError as error:
                if error.errno != errno.ENOENT:
                    raise
                maps = DirectorMaps.create(capacity)
                undo.callback(maps.close)
                maps.pin(directory)
            else:
                undo.callback(maps.close)
            macros = xdp_layout.macros(maps.capacity, records_per_tick=RECORDS_PER_TICK)
            version = xdp_loader.version(macros)
            there = maps.version == version and all((directory / name).exists() for name in _KINDS)
            if not there:
                _load(directory, maps, macros, frags=frags)
                maps.set_version(version)
            programs = {
                name: undo.enter_context(Program.open(directory / name, kind))
                for name, kind in _KINDS.items()
            }
            zero, director = xdp_layout.U32.pack(0), programs["director"].fd
            maps["programs"].update(zero, xdp_layout.U32.pack(director))
            opened = cls(directory, maps, programs)
            undo.pop_all()
        return opened, there

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close them; what is pinned and attached goes on."""
        for program in self._programs.values():
            program.close()
        self.maps.close()


def prepare(root: Path) -> Path:
    """Make the directory of the pins, and return it: who opens a pin may write the map.

    Args:
        root: on bpffs.

    Raises:
        KernelError: not bpffs, or others may enter it.
        PrivilegeError: the caller may not.
    """
    directory = root / f"v{xdp_layout.SCHEMA}"
    make_directory(directory)
    owner = directory.stat()
    if owner.st_uid != os.geteuid() or owner.st_mode & 0o077:
        raise KernelError(
            f"{directory} can be entered by others than this user",
            hint=f"chmod 700 {directory}; chown root {directory}",
        )
    return directory


def make_directory(directory: Path) -> None:
    """Make a directory on bpffs, where there is none.

    Raises:
        KernelError: not bpffs.
        PrivilegeError: the caller may not.
    """
    ensure_bpffs(directory)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in _FORBIDDEN:
            raise PrivilegeError(
                f"mkdir {directory}: {error.strerror}",
                hint=f"run as root, who may write {directory.parent}",
            ) from error
        raise bpf.refused(f"mkdir {directory}", error.errno or 0) from error


def _load(directory: Path, maps: DirectorMaps, macros: dict[str, int], *, frags: bool) -> None:
    # compiling takes seconds, and without the right to load it is in vain
    bpf_features.require_loading()
    # it was compiled for the programs that go
    if (directory / EXPLAIN_PIN).exists():
        bpf.unpin(directory / EXPLAIN_PIN)

    def job(*, frags: bool) -> xdp_loader.Job:
        return xdp_loader.Job(
            maps={name: str(directory / name) for name in maps},
            macros=macros,
            programs=[
                xdp_loader.xdp_program(directory / "director", frags=frags),
                xdp_loader.steady_program(directory / "steady", frags=frags),
                xdp_loader.tc_program(directory / "tc"),
                xdp_loader.learn_program(directory / "learn"),
            ],
        )

    if frags:
        try:
            xdp_loader.load(job(frags=True))
        except KernelError as error:  # before Linux 5.18; what else is wrong, the next one says
            log.debug("without frames longer than a page: %s", error)
        else:
            return
    xdp_loader.load(job(frags=False))
