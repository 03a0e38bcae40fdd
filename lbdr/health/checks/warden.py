"""Runs one program with a time limit, as another user, and leaves nothing of it behind.

A process of its own, started as a script by `external` for each run: it imports next to nothing. It
is the subreaper of all that the program starts (prctl(2)), so whatever leaves its process group or
session still ends here.

    warden.py DEADLINE UID GID PROGRAM ARGUMENT...

DEADLINE is a time of CLOCK_MONOTONIC; UID and GID are -1 to stay who we are. It answers on standard
output: a line of a word and a number, and then the first bytes that the program wrote.
"""

from __future__ import annotations

import ctypes
import os
import resource
import select
import signal
import sys
import time

LIMIT = 4096  # bytes of output that are kept
_PDEATHSIG, _SUBREAPER, _NO_NEW_PRIVS = 1, 36, 38
_PROCESSES = 512  # of the user's: a program that forks without end does not take the machine along
_PATIENCE = 1.0  # seconds for killed processes to be gone
_EXIT, _SIGNAL, _TIMEOUT, _STOPPED, _ERROR = "exit", "signal", "timeout", "stopped", "error"


def main() -> None:
    """Run the program that the arguments name, and tell how it ended."""
    deadline, uid, gid = float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    _prctl(_SUBREAPER, 1)
    _prctl(_PDEATHSIG, signal.SIGTERM)
    woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    signal.signal(signal.SIGCHLD, lambda *_: None)
    output, written = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    failed, failure = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        _become(sys.argv[4:], uid, gid, written, failure)
    os.close(written)
    os.close(failure)
    word, number, kept = _watch(child, deadline, woken, output, stopped)
    _kill(-child)
    _bury(woken)
    kept += _drain(output)
    message = os.read(failed, LIMIT)
    if message:
        word, number, kept = _ERROR, 0, message
    os.write(1, f"{word} {number}\n".encode() + kept[:LIMIT])


def _become(command: list[str], uid: int, gid: int, written: int, failure: int) -> None:
    """Be the program; never returns."""
    try:
        os.setsid()
        os.chdir("/")
        os.umask(0o077)
        # the pipe blocks for the program as it would anywhere: O_NONBLOCK is for our end alone
        os.set_blocking(written, True)
        os.dup2(written, 1)
        os.dup2(written, 2)
        for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGPIPE, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if uid >= 0:
            resource.setrlimit(resource.RLIMIT_NPROC, (_PROCESSES, _PROCESSES))
            os.setgroups([])
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
        _prctl(_NO_NEW_PRIVS, 1)
        os.execve(command[0], command, dict(os.environ))  # noqa: S606  # that is what it is for
    except OSError as error:
        os.write(failure, (error.strerror or str(error)).encode())
    finally:
        os._exit(127)


def _watch(
    child: int, deadline: float, woken: int, output: int, stopped: list[int]
) -> tuple[str, int, bytes]:
    """Wait for the program's end, or the deadline, and keep the first bytes that it wrote."""
    kept, readers = b"", [woken, output]
    while True:
        left = deadline - time.monotonic()
        if stopped:
            return _STOPPED, 0, kept
        if left <= 0:
            return _TIMEOUT, 0, kept
        ready, _, _ = select.select(readers, [], [], left)
        if woken in ready:
            _drain(woken)
        if output in ready:
            try:
                data = os.read(output, 65536)
            except BlockingIOError:
                continue
            if not data:
                readers.remove(output)
            kept = (kept + data)[:LIMIT]
        pid, status = _wait(child)
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            return (_EXIT, code, kept) if code >= 0 else (_SIGNAL, -code, kept)


def _wait(child: int) -> tuple[int, int]:
    """Reap what has ended; the program's own status where it is among it."""
    found = (0, 0)
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        if pid == child:
            found = (pid, status)


def _bury(woken: int) -> None:
    """Kill and reap all that is left; what loses its parent becomes ours, and is killed in turn."""
    children = f"/proc/self/task/{os.getpid()}/children"
    until = time.monotonic() + _PATIENCE
    while time.monotonic() < until:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        with open(children) as listed:  # noqa: PTH123  # pathlib takes as long as all the rest
            pids = listed.read().split()
        for pid in pids:
            _kill(int(pid))
        select.select([woken], [], [], 0.01)
        _drain(woken)


def _drain(pipe: int) -> bytes:
    data = b""
    try:
        while len(data) < LIMIT and (more := os.read(pipe, 65536)):
            data += more
    except BlockingIOError:
        return data
    return data


def _kill(pid: int) -> None:
    """Kill a process, or a group where pid is negative, if it is still there and ours to kill."""
    try:
        os.kill(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


if __name__ == "__main__":
    main()
