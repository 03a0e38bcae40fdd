"""The verdict on the kernel's mh, for a daemon that may not try it: left by one who may.

Trying takes a network namespace, which takes CAP_SYS_ADMIN. `lbdr fastpath load` has it and writes
what it found to a file that root alone may read or write. It holds for this boot of this kernel.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lbdr.datapath import mh_check, namespace
from lbdr.datapath.mh_check import MhOutcome, MhVerdict
from lbdr.errors import PrivilegeError, StateError
from lbdr.maglev import TABLE_SIZES
from lbdr.paths import Paths

_MOST = 4096  # bytes of the file


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    kernel: str
    outcome: MhOutcome
    index: Annotated[int, Field(ge=8, lt=8 + len(TABLE_SIZES))]
    versions: frozenset[Literal[4, 6]]
    reason: str


def find(paths: Paths) -> MhVerdict:
    """Try the kernel's mh; where that is forbidden, what was left by one who could. Blocks.

    Args:
        paths: of the director.
    """
    tried = mh_check.probe(mh_check.table_index())
    if tried.outcome is not MhOutcome.FORBIDDEN:
        return tried
    return _kept(_file(paths)) or tried


def keep(paths: Paths, verdict: MhVerdict) -> None:
    """Leave a verdict to daemons that may not try.

    Args:
        paths: of the director.
        verdict: of this kernel.

    Raises:
        PrivilegeError, StateError: the file cannot be written.
    """
    file = _file(paths)
    content = _File(
        kernel=_kernel(),
        outcome=verdict.outcome,
        index=verdict.index,
        versions=frozenset(version for version in (4, 6) if version in verdict.versions),
        reason=verdict.reason,
    )
    new = file.with_name(f".{file.name}.new")
    with _writing(file):
        file.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            new.unlink()  # of one that was killed
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(new, flags, 0o600), "wb") as opened:  # noqa: PTH123  # a descriptor
            opened.write(content.model_dump_json().encode())
        new.replace(file)


def _file(paths: Paths) -> Path:
    return paths.run / "mh.json"


def _kernel() -> str:
    return f"{os.uname().release} {namespace.boot_id()}"


def _kept(file: Path) -> MhVerdict | None:
    """What is in the file, if this user alone could write it, and it is of this boot."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(descriptor, "rb") as opened:  # noqa: PTH123  # a descriptor, not a path
            status = os.fstat(descriptor)
            if status.st_uid != os.geteuid() or status.st_mode & 0o022:
                return None
            content = _File.model_validate_json(opened.read(_MOST))
    except (OSError, ValidationError):
        return None  # nobody left one: then it is told that it could not be tried
    if content.kernel != _kernel():
        return None
    return MhVerdict(content.outcome, content.index, content.versions, content.reason)


@contextmanager
def _writing(file: Path) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise PrivilegeError(f"{file}: permission denied", hint="run as root") from error
    except OSError as error:
        raise StateError(f"{file} cannot be written: {error.strerror}") from error
