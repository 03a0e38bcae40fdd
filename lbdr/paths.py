"""Where lbdr keeps its files; all can be moved, so that several directors share a machine."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lbdr.errors import ControlError, PrivilegeError, StateError

CONFIG = Path("/etc/lbdr/lbdr.yaml")
RUN = Path("/run/lbdr")
STATE = Path("/var/lib/lbdr")


@dataclass(frozen=True, slots=True)
class Paths:
    """The files of one director.

    Args:
        config: what the user wrote.
        run: gone after a reboot: socket and lock.
        state: kept over a reboot.
    """

    config: Path = CONFIG
    run: Path = RUN
    state: Path = STATE

    @property
    def socket(self) -> Path:
        """Where the daemon listens."""
        return self.run / "control.sock"

    @property
    def lock(self) -> Path:
        """Held by whoever changes this director's part of the kernel."""
        return self.run / "lbdr.lock"


@contextmanager
def exclusive(paths: Paths, *, who: str) -> Iterator[None]:
    """Be the only one who changes this director's part of the kernel.

    Args:
        paths: of the director.
        who: told to whoever comes second ("daemon", "apply").

    Raises:
        ControlError: someone else does.
        PrivilegeError, StateError: the lock cannot be made.
    """
    try:
        paths.run.mkdir(mode=0o750, parents=True, exist_ok=True)
        descriptor = os.open(paths.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except PermissionError as error:
        raise PrivilegeError(f"{paths.lock}: permission denied", hint="run as root") from error
    except OSError as error:
        raise StateError(
            f"{paths.lock}: {error.strerror}", hint="give another directory with --run-dir"
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 100, 0).decode(errors="replace").strip()
            raise ControlError(
                f"another lbdr works on this director: {holder or 'unknown'} ({paths.lock})",
                hint="with a daemon use `lbdr reload`, `lbdr role`, `lbdr withdraw`; "
                "a second director on this machine needs its own --run-dir and --state-dir",
            ) from None
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{who}, pid {os.getpid()}\n".encode(), 0)
        except OSError as error:
            raise StateError(
                f"{paths.lock}: {error.strerror}",
                hint="make room, or give another directory with --run-dir",
            ) from error
        yield
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)
