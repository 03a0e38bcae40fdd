"""Where lbdr keeps its files; all can be moved, so that several directors share a machine."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from lbdr.errors import ControlError, PrivilegeError, StateError

CONFIG = Path("/etc/lbdr/lbdr.yaml")
RUN = Path("/run/lbdr")
STATE = Path("/var/lib/lbdr")
BPF = Path("/sys/fs/bpf/lbdr")
_NAME = "\0lbdr-director"
_ONE_DIRECTOR = (
    "with a daemon use `lbdr reload`, `lbdr role`, `lbdr withdraw`, with its --run-dir; a second "
    "director needs its own network namespace, --run-dir and --state-dir"
)


@dataclass(frozen=True, slots=True)
class Paths:
    """The files of one director.

    Args:
        config: what the user wrote.
        run: gone after a reboot: socket and lock.
        state: kept over a reboot.
        bpf: pins of the fast path, on a BPF file system; each network namespace has its own below.
    """

    config: Path = CONFIG
    run: Path = RUN
    state: Path = STATE
    bpf: Path = BPF

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

    One director in a network namespace, whatever its directories: a second one would take the
    first one's services for its own. And both directories are its alone.

    Args:
        paths: of the director.
        who: told to whoever comes second ("daemon", "apply").

    Raises:
        ControlError: someone else does.
        PrivilegeError, StateError: a lock cannot be made.
    """
    with ExitStack() as stack:
        stack.enter_context(_locked(paths.lock, who))
        stack.enter_context(_alone_in(paths.state))
        stack.enter_context(_alone_in_namespace())
        yield


@contextmanager
def _alone_in_namespace() -> Iterator[None]:
    """Hold a name among the abstract unix sockets, which are each network namespace's own."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as name:
        try:
            name.bind(_NAME)
        except OSError as error:
            raise ControlError(
                "another lbdr works in this network namespace", hint=_ONE_DIRECTOR
            ) from error
        yield


@contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Lock a directory itself: another run directory may be used with the same state."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError as error:
        raise PrivilegeError(f"{directory}: permission denied", hint="run as root") from error
    except OSError as error:
        raise _unusable(directory, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise ControlError(
            f"another lbdr uses the state in {directory}", hint=_ONE_DIRECTOR
        ) from None
    finally:
        os.close(descriptor)


@contextmanager
def _locked(lock: Path, who: str) -> Iterator[None]:
    try:
        lock.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
    except PermissionError as error:
        raise PrivilegeError(f"{lock}: permission denied", hint="run as root") from error
    except OSError as error:
        raise _unusable(lock, error) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 100, 0).decode(errors="replace").strip()
            raise ControlError(
                f"another lbdr works on this director: {holder or 'unknown'} ({lock})",
                hint=_ONE_DIRECTOR,
            ) from None
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{who}, pid {os.getpid()}\n".encode(), 0)
        except OSError as error:
            raise _unusable(lock, error) from error
        yield
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _unusable(lock: Path, error: OSError) -> StateError:
    return StateError(
        f"{lock}: {error.strerror}",
        hint="make room, or name other directories with --run-dir and --state-dir",
    )
