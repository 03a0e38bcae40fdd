"""Check programs of the user's, run as another user: their end, and that nothing of them stays."""

from __future__ import annotations

import asyncio
import os
import pwd
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest
from netlab import wait_for

from lbdr.health.checks.run import run
from lbdr.health.results import Failed, FailureKind, Passed, Result
from lbdr.health.spec import External, Probe, Target, Timing
from tests.guest import missing

TARGET = Target(ip_address("192.0.2.31"), 104, vip=ip_address("192.0.2.50"), vip_port=2104)


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that everybody can enter; the programs in it run as nobody, which needs root."""
    if os.geteuid() != 0:
        missing("running a program as another user needs root")
    made = tmp_path_factory.mktemp("checks")
    for path in (made, made.parent, made.parent.parent):
        if path.is_relative_to("/tmp") and path != Path("/tmp"):  # noqa: S108
            path.chmod(0o755)
    before = children()  # the guest's, for one
    yield made
    assert children() <= before, "a program outlived its check"


def children() -> set[int]:
    """This process's children."""
    text = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    return {int(pid) for pid in text.split()}


def script(folder: Path, text: str, mode: int = 0o755) -> Path:
    """A program for sh."""
    path = folder / "check"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(mode)
    return path


def probe(path: Path, timeout: float = 5.0, user: str = "nobody") -> Probe:
    return Probe(TARGET, External(str(path), user, ("extra",)), Timing(timeout=timeout))


def ran(path: Path, timeout: float = 5.0, user: str = "nobody") -> Result:
    return asyncio.run(run(probe(path, timeout, user)))


def failed(path: Path, timeout: float = 5.0, user: str = "nobody") -> Failed:
    result = ran(path, timeout, user)
    assert isinstance(result, Failed), result
    return result


def test_the_contract(folder: Path) -> None:
    """Arguments and environment, as documented."""
    path = script(folder, 'echo "$* $VIP $VIP_PORT $RIP $RIP_PORT"')
    result = ran(path)
    assert isinstance(result, Passed), result
    four = "192.0.2.50 2104 192.0.2.31 104"
    assert result.words == f"{path} says healthy: {four} extra {four}"


def test_it_runs_as_nobody_and_cannot_become_more(folder: Path) -> None:
    path = script(folder, "id -un; id -G; grep -E 'NoNewPrivs|CapEff' /proc/self/status; pwd")
    result = ran(path)
    assert isinstance(result, Passed), result
    group = pwd.getpwnam("nobody").pw_gid
    said = result.words.partition("healthy: ")[2]
    assert said == f"nobody {group} CapEff: 0000000000000000 NoNewPrivs: 1 /"


def test_it_leads_a_session_of_its_own_with_no_files_of_ours(folder: Path) -> None:
    path = script(folder, 'ls /proc/$$/fd; cut -d" " -f5,6 /proc/$$/stat; echo $$')
    with Path("/dev/null").open() as ours:
        os.set_inheritable(ours.fileno(), True)
        result = ran(path)
    assert isinstance(result, Passed), result
    *files, group, session, own = result.words.partition("healthy: ")[2].split()
    assert group == session == own
    # sh keeps its script open, as 10 or higher
    assert [number for number in files if int(number) < 10] == ["0", "1", "2"]


def test_a_status_is_told_with_its_words(folder: Path) -> None:
    path = script(folder, "echo the archive is read-only >&2; exit 3")
    found = failed(path)
    assert found.kind is FailureKind.REJECTED
    assert found.words == (f"192.0.2.31:104 {path} ended with status 3: the archive is read-only")


def test_a_signal_is_told(folder: Path) -> None:
    path = script(folder, "kill -SEGV $$")
    found = failed(path)
    assert found.kind is FailureKind.CLOSED
    assert found.words == f"192.0.2.31:104 {path} was ended by signal SIGSEGV"


def test_output_is_bounded(folder: Path) -> None:
    """A program that writes without end does no harm, and is not held up."""
    path = script(folder, "head -c 10000000 /dev/zero | tr '\\0' x; exit 1")
    found = failed(path)
    assert "status 1: xxx" in found.words
    assert len(found.words) < 400
    found = failed(script(folder, "exec yes"), timeout=0.5)
    assert found.kind is FailureKind.TIMEOUT


def processes_of(word: str) -> set[int]:
    """The processes that have a word among their arguments."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if word.encode() in arguments:
            found.add(int(path.parent.name))
    return found


@pytest.mark.parametrize(
    "text",
    [
        "exec sleep {word}",
        "trap '' TERM INT HUP; sleep {word}; sleep {word}",
        "sleep {word} & sleep {word} & wait",
        "setsid sleep {word} & setsid -f sh -c 'setsid -f sleep {word}; sleep {word}'; sleep 9",
        "kill -STOP $$",
    ],
    ids=["simple", "ignores signals", "forks", "leaves its session", "stopped"],
)
def test_a_program_that_does_not_end_is_killed_with_all_it_started(folder: Path, text: str) -> None:
    word = f"{1000 + os.getpid()}.25"
    path = script(folder, text.format(word=word))
    before = time.monotonic()
    found = failed(path, timeout=1.0)
    seconds = time.monotonic() - before
    assert found.kind is FailureKind.TIMEOUT
    assert found.words == f"192.0.2.31:104 {path} did not end within 1 s, and was killed"
    assert seconds < 2.0  # the interpreter of its warden has to end, too
    assert processes_of(word) == set()


def test_what_a_program_leaves_behind_ends_with_it(folder: Path) -> None:
    """It said that all is well, and a daemon of its own is gone all the same."""
    word = f"{2000 + os.getpid()}.25"
    path = script(folder, f"setsid -f sleep {word} </dev/null >/dev/null 2>&1; exit 0")
    assert isinstance(ran(path), Passed)
    assert processes_of(word) == set()


def test_a_cancelled_check_leaves_nothing(folder: Path) -> None:
    word = f"{3000 + os.getpid()}.25"
    path = script(folder, f"setsid sleep {word}")

    before = children()

    async def cancelled() -> None:
        task = asyncio.create_task(run(probe(path)))
        await asyncio.to_thread(wait_for, lambda: processes_of(word), "it runs")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(wait_for, lambda: not processes_of(word), "it is gone")
        await asyncio.to_thread(wait_for, lambda: children() <= before, "the loop reaps the warden")

    asyncio.run(asyncio.wait_for(cancelled(), 10))


@pytest.mark.parametrize("where", ["file", "folder"])
def test_what_others_can_write_is_refused(folder: Path, where: str) -> None:
    path = script(folder, "exit 0")
    changed = path if where == "file" else folder
    changed.chmod(0o777)
    found = failed(path)
    folder.chmod(0o755)
    assert found.kind is FailureKind.LOCAL
    assert found.words == (
        f"192.0.2.31:104 could not be asked: {changed} can be written by others (mode 0777): "
        f"chmod go-w {changed}"
    )


def test_what_belongs_to_others_is_refused(folder: Path) -> None:
    path = script(folder, "exit 0")
    os.chown(path, pwd.getpwnam("nobody").pw_uid, 0)
    assert failed(path).words.endswith(f"{path} belongs to nobody: chown it to root")


def test_a_link_to_what_others_can_write_is_refused(folder: Path) -> None:
    path = script(folder, "exit 0", 0o777)
    link = folder / "link"
    link.symlink_to(path)
    assert f"{path} can be written by others (mode 0777)" in failed(link).words


def test_a_program_that_cannot_run_is_no_verdict(folder: Path) -> None:
    found = failed(folder / "none")
    assert found.kind is FailureKind.LOCAL
    assert found.words.endswith("none: no such file or directory")
    found = failed(script(folder, "exit 0", 0o644))
    assert found.words.endswith(
        "check is not an executable file: chmod 0755 " + str(folder / "check")
    )
    found = failed(script(folder, "exit 0", 0o700))
    assert found.words.endswith("could not be run as nobody: Permission denied")
    found = failed(script(folder, "exit 0"), user="root")
    assert found.words.endswith("a check program is not run as root: name another user")
    found = failed(script(folder, "exit 0"), user="none-such")
    assert found.words.endswith("there is no user none-such")
    path = script(folder, "exit 0")
    path.write_text("#!/nonexistent/sh\n")
    found = failed(path)
    assert found.kind is FailureKind.LOCAL
    assert found.words.endswith("could not be run as nobody: No such file or directory")


def test_many_runs_of_a_program_that_forks_leak_nothing(folder: Path) -> None:
    """No zombie, no file, no memory."""
    word = f"{4000 + os.getpid()}.25"
    path = script(folder, f"setsid -f sleep {word}; exit 1")
    one = replace(probe(path), timing=Timing(timeout=10))

    async def batch(runs: int) -> None:
        for _ in range(runs // 4):
            await asyncio.gather(*(run(one) for _ in range(4)))

    asyncio.run(batch(40))
    files, memory = len(list(Path("/proc/self/fd").iterdir())), resident()
    asyncio.run(batch(80))
    assert len(list(Path("/proc/self/fd").iterdir())) == files
    assert resident() - memory < 1024
    assert processes_of(word) == set()


def resident() -> int:
    """KiB of memory of this process."""
    found = re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1])


def test_a_daemon_that_is_killed_leaves_no_program(folder: Path) -> None:
    """Not even by SIGKILL, which it cannot see coming."""
    word = f"{5000 + os.getpid()}.25"
    path = script(folder, f"setsid sleep {word} & sleep {word}")
    code = (
        "import asyncio, sys\n"
        "from ipaddress import ip_address\n"
        "from lbdr.health.checks.run import run\n"
        "from lbdr.health.spec import *\n"
        "target = Target(ip_address('192.0.2.31'))\n"
        "asyncio.run(run(Probe(target, External(sys.argv[1]), Timing(timeout=60))))\n"
    )
    daemon = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], cwd=Path(__file__).parents[2]
    )
    try:
        wait_for(lambda: len(processes_of(word)) == 2, "it runs")
    finally:
        daemon.kill()
        daemon.wait()
    wait_for(lambda: not processes_of(word), "it is gone")
