"""external: a program of the user's, by the contract of load-balancing appliances."""

from __future__ import annotations

import asyncio
import grp
import os
import pwd
import signal
import stat
import subprocess
import sys
from pathlib import Path

from lbdr.health.checks import warden
from lbdr.health.checks.attempt import Attempt, CheckError, plain
from lbdr.health.results import FailureKind
from lbdr.health.spec import External

GRACE = 2.0  # seconds beyond the timeout in which everything that was started is killed
_WRITABLE = stat.S_IWGRP | stat.S_IWOTH


async def external(check: External, attempt: Attempt) -> str:
    """Whether a program ends with status 0."""
    refuse(Path(check.command))
    uid, gid = _identity(check.user)
    target = attempt.target
    loop = asyncio.get_running_loop()
    values = {
        "VIP": str(target.vip or target.address),
        "VIP_PORT": str(target.vip_port),
        "RIP": str(target.address),
        "RIP_PORT": str(target.port),
    }
    command = [check.command, *values.values(), *check.arguments]
    limits = [
        str(loop.time() + attempt.timeout),
        str(uid),
        str(gid),
    ]  # asyncio's is CLOCK_MONOTONIC
    attempt.missing = f"{check.command} could not be killed"
    attempt.note("runs " + " ".join(command))
    child = subprocess.Popen(  # noqa: ASYNC220  # returns at once; its end is awaited below
        [sys.executable, "-I", "-S", warden.__file__, *limits, *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/", **values},
        start_new_session=True,
    )
    word, number, said = _report(await _ended(child))
    attempt.received(said.encode())
    told = f": {said}" if said else ""
    if word == "exit" and number == 0:
        return f"{check.command} says healthy{told}"
    if word == "exit":
        words = f"{check.command} ended with status {number}{told}"
        raise CheckError(words, FailureKind.REJECTED)
    if word == "signal":
        name = signal.Signals(number).name if number in set(signal.Signals) else str(number)
        words = f"{check.command} was ended by signal {name}{told}"
        raise CheckError(words, FailureKind.CLOSED)
    if word == "timeout":
        words = f"{check.command} did not end within {attempt.timeout:g} s, and was killed{told}"
        raise CheckError(words, FailureKind.TIMEOUT)
    words = f"could not be asked: {check.command} could not be run as {check.user}{told}"
    raise CheckError(words, FailureKind.LOCAL)


def refuse(command: Path) -> None:
    """Refuse a program that somebody else than root, or this process's user, can exchange.

    Raises:
        CheckError: it is missing or not executable, or it or a folder of its path can be written
            by others; the words name path and mode.
    """
    if not command.is_absolute():
        raise _refused(f"{command} is not an absolute path")
    try:
        resolved = command.resolve(strict=True)
    except OSError as error:
        raise _refused(f"{command}: {(error.strerror or str(error)).lower()}") from error
    folders = {*command.parents, *resolved.parents}
    for path in sorted({*folders, command, resolved}):
        found = path.lstat()
        if stat.S_ISLNK(found.st_mode):
            continue  # who may exchange it is told by its folder
        if found.st_uid not in (0, os.geteuid()):
            raise _refused(f"{path} belongs to {_user_name(found.st_uid)}: chown it to root")
        mode = found.st_mode & (_WRITABLE if found.st_gid else stat.S_IWOTH)
        # in a sticky folder nobody can exchange what is another's
        if mode and not (path in folders and found.st_mode & stat.S_ISVTX):
            shown = f"mode {stat.S_IMODE(found.st_mode):04o}"
            raise _refused(f"{path} can be written by others ({shown}): chmod go-w {path}")
    if not stat.S_ISREG(resolved.stat().st_mode) or not resolved.stat().st_mode & 0o111:
        raise _refused(f"{command} is not an executable file: chmod 0755 {command}")


def _refused(words: str) -> CheckError:
    return CheckError(f"could not be asked: {words}", FailureKind.LOCAL)


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _identity(user: str) -> tuple[int, int]:
    """The numbers of a user and its group; -1 where we are it already."""
    if not user:
        if os.geteuid() == 0:
            raise _refused("a check program is not run as root: name a user")
        return -1, -1
    try:
        known = pwd.getpwnam(user)
        grp.getgrgid(known.pw_gid)
    except KeyError as error:
        raise _refused(f"there is no user {user}") from error
    if known.pw_uid == 0:
        raise _refused("a check program is not run as root: name another user")
    return (-1, -1) if known.pw_uid == os.geteuid() else (known.pw_uid, known.pw_gid)


async def _ended(child: subprocess.Popen[bytes]) -> bytes:
    """Wait for the warden's end, and read what it says; a cancelled wait ends it."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    pidfd = os.pidfd_open(child.pid)

    def reap() -> None:
        loop.remove_reader(pidfd)
        os.close(pidfd)
        child.wait()  # it has ended
        if ended.done():
            _close(child)
        else:
            ended.set_result(None)

    loop.add_reader(pidfd, reap)
    try:
        await ended
    except asyncio.CancelledError:
        child.terminate()  # it kills what it started, and is reaped when it has
        raise
    stdout = child.stdout
    assert stdout is not None  # noqa: S101  # it is a pipe
    said = stdout.read()
    _close(child)
    return said


def _close(child: subprocess.Popen[bytes]) -> None:
    if child.stdout is not None:
        child.stdout.close()


def _report(said: bytes) -> tuple[str, int, str]:
    line, _, output = said.partition(b"\n")
    word, _, number = line.decode("ascii", errors="replace").partition(" ")
    if not number.isdigit():
        return "error", 0, "its warden failed"
    return word, int(number), plain(output)
