"""What can go wrong, by who must act; every class has an exit code of its own."""

from __future__ import annotations

import errno as errno_names
import os
from dataclasses import dataclass

_TRANSIENT = frozenset(
    {
        errno_names.EAGAIN,
        errno_names.EBUSY,
        errno_names.EEXIST,  # someone else was faster: the next plan takes it into account
        errno_names.EINTR,
        errno_names.ENOBUFS,
        errno_names.ENOENT,
        errno_names.ENOMEM,
        errno_names.ESRCH,
    }
)

EXIT_OK = 0
EXIT_NO = 1  # the answer to a question is no: not solved, something to do
EXIT_USAGE = 2  # click's and argparse's own


class LbdrError(Exception):
    """An error with a message for a person and, where there is one, the remedy.

    Args:
        message: what is wrong, in the user's words.
        hint: what to do about it.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a configuration, and where it stands.

    Args:
        message: what was found and what is allowed.
        file: the file as the user named it.
        line: from 1; 0 where the problem has no place.
        column: from 1; 0 where the problem has no place.
        hint: the remedy, or the right word for a near miss.
    """

    message: str
    file: str = ""
    line: int = 0
    column: int = 0
    hint: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}: " if self.line else ""
        if not place and self.file:
            place = f"{self.file}: "
        return f"{place}{self.message}" + (f" ({self.hint})" if self.hint else "")


class ConfigError(LbdrError):
    """The configuration is wrong: the user acts. Carries all problems at once."""

    exit_code = 3

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        super().__init__("\n".join(str(problem) for problem in problems))


class PrivilegeError(LbdrError):
    """The caller lacks a right: root, or a capability."""

    exit_code = 4


class KernelError(LbdrError):
    """The kernel refused an operation, or lacks a feature.

    Args:
        message: what was asked of it, as the command an administrator would have typed.
        errno: the kernel's error number, 0 where there is none.
        hint: the remedy.
    """

    exit_code = 5

    def __init__(self, message: str, *, errno: int = 0, hint: str = "") -> None:
        self.errno = errno
        if errno:
            name = errno_names.errorcode.get(errno, str(errno))
            message = f"{message}: {os.strerror(errno)} ({name})"
        super().__init__(message, hint=hint)

    @property
    def transient(self) -> bool:
        """Whether the same request may well succeed a moment later."""
        return self.errno in _TRANSIENT


class NoIpvsError(KernelError):
    """This kernel has no IPVS, and no module of it."""


class AddressInUseError(LbdrError):
    """Another host answers for an address that is to be claimed."""

    exit_code = 6


class VerificationError(LbdrError):
    """The kernel's state is not what was asked for, after all retries."""

    exit_code = 7


class StateError(LbdrError):
    """The state directory cannot be read or written."""

    exit_code = 8


class ControlError(LbdrError):
    """The daemon cannot be reached, refuses, or is in the way."""

    exit_code = 9
