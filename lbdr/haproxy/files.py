"""The files of one companion HAProxy, below lbdr's run directory."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lbdr.errors import PrivilegeError, StateError
from lbdr.haproxy.render.process_wide import Surroundings

NO_STATES = "1\n"
"""A file of server states that says nothing: its version."""
LUA = Path(__file__).parent
"""Where the programs are that HAProxy runs."""


@dataclass(frozen=True, slots=True)
class Files:
    """Where one HAProxy has its files.

    Args:
        directory: its own, only root's.
        user: whom workers run as.
    """

    directory: Path
    user: str = "haproxy"

    @property
    def config(self) -> Path:
        """What it serves, or will after the next start."""
        return self.directory / "haproxy.cfg"

    @property
    def candidate(self) -> Path:
        """What is to be checked."""
        return self.directory / "haproxy.cfg.new"

    @property
    def admin(self) -> Path:
        """The worker's socket."""
        return self.directory / "admin.sock"

    @property
    def master(self) -> Path:
        """The master's socket."""
        return self.directory / "master.sock"

    @property
    def states(self) -> Path:
        """The server states that a start begins with."""
        return self.directory / "servers"

    @property
    def log(self) -> Path:
        """What it says, where there is no journal."""
        return self.directory / "log"

    @property
    def empty(self) -> Path:
        """What workers see of the file system."""
        return self.directory / "empty"

    @property
    def surroundings(self) -> Surroundings:
        """What rendering needs to know of them."""
        return Surroundings(
            admin=str(self.admin),
            state=str(self.states),
            chroot=str(self.empty),
            lua=str(LUA),
            user=self.user,
            group=self.user,
        )

    def prepare(self) -> None:
        """Make the directories, and a file of server states where there is none."""
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.empty.mkdir(mode=0o755, exist_ok=True)
        except OSError as error:
            raise _unwritable(self.directory, error) from error
        if not self.states.exists():
            replace(self.states, NO_STATES)


def replace(path: Path, text: str) -> None:
    """Write a file whole or not at all, readable by its owner alone.

    Raises:
        PrivilegeError, StateError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.writing")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with suppress(FileNotFoundError):
            temporary.unlink()
        descriptor = os.open(temporary, flags, 0o600)
        try:
            with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123  # a descriptor
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            with suppress(FileNotFoundError):
                temporary.unlink()
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> PrivilegeError | StateError:
    if isinstance(error, PermissionError):
        return PrivilegeError(f"{path}: permission denied", hint="run as root")
    return StateError(
        f"{path} cannot be written: {error.strerror}",
        hint="make room, or name another directory with --run-dir",
    )
