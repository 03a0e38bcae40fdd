"""A lab leaves nothing behind, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from netlab import Lab, wait_for

HOLD = """
import signal, subprocess, sys
from netlab import Lab
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
with Lab() as lab:
    child = lab.popen("web1", ["sh", "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE)
    print(lab.prefix, child.pid, child.stdout.readline().strip(), flush=True)
    END
"""


def left(prefix: str, processes: list[int]) -> list[str]:
    """What is still there of a lab."""
    names = [path.name for path in Path("/run/netns").glob(f"{prefix}-*")]
    return names + [str(number) for number in processes if alive(number)]


def alive(process: int) -> bool:
    """Whether a process runs; one that waits to be reaped does not."""
    try:
        return ") Z " not in Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize(
    ("end", "number"),
    [
        ("signal.pause()", signal.SIGTERM),
        ("signal.pause()", signal.SIGHUP),
        ("signal.pause()", signal.SIGINT),
        ("raise ValueError", None),
        ("sys.exit(3)", None),
    ],
)
@pytest.mark.usefixtures("lab")
def test_nothing_is_left(end: str, number: signal.Signals | None) -> None:
    """A process with a lab of its own ends in every way that lets it do something about it."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD.replace("END", end)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    with holder:
        try:
            assert holder.stdout is not None
            prefix, *numbers = holder.stdout.readline().split()
            processes = [int(word) for word in numbers]
            if number is not None:
                assert left(prefix, processes), "there was something to clean up"
                holder.send_signal(number)
            assert holder.wait(20) != 0
        finally:
            holder.kill()
    wait_for(lambda: not left(prefix, processes), "everything gone")


def test_two_labs_of_one_process_do_not_meet(lab: Lab) -> None:
    """Each has names of its own, and closing one leaves the other."""
    with Lab({"client": 7}) as other:
        assert other["client"].namespace != lab["client"].namespace
    wait_for(lambda: not left(other.prefix, []), "the other gone")
    assert len(left(lab.prefix, [])) == 5


def test_a_failing_command_says_what_it_said(lab: Lab) -> None:
    """Its status and its words are in the error."""
    with pytest.raises(RuntimeError, match=r"web1: sh -c .*: status 3: no such luck"):
        lab.run("web1", ["sh", "-c", "echo no such luck >&2; exit 3"])
    assert lab.run("web1", ["false"], check=False).returncode == 1
