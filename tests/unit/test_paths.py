"""Where files are, and the lock that makes one program at a time change the kernel."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from lbdr.errors import ControlError, PrivilegeError, StateError
from lbdr.paths import Paths, exclusive


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(run=tmp_path / "run", state=tmp_path / "state")


def test_places() -> None:
    paths = Paths()
    assert str(paths.config) == "/etc/lbdr/lbdr.yaml"
    assert str(paths.socket) == "/run/lbdr/control.sock"
    assert str(paths.lock) == "/run/lbdr/lbdr.lock"
    assert str(paths.state) == "/var/lib/lbdr"


def test_the_second_one_is_told_who_the_first_is(paths: Paths) -> None:
    with exclusive(paths, who="daemon"):
        with pytest.raises(ControlError) as caught, exclusive(paths, who="apply"):
            pass
        assert f"daemon, pid {os.getpid()}" in caught.value.message
        assert str(paths.lock) in caught.value.message
        assert "lbdr reload" in caught.value.hint
    with exclusive(paths, who="apply"):
        pass


def test_the_lock_is_free_after_an_error(paths: Paths) -> None:
    with pytest.raises(ValueError, match="in the middle"), exclusive(paths, who="apply"):
        raise ValueError("in the middle")
    with exclusive(paths, who="apply"):
        pass


@pytest.mark.parametrize(
    ("run", "state"), [("run", "state2"), ("run2", "state"), ("run2", "state2")]
)
def test_other_directories_make_no_second_director(
    paths: Paths, tmp_path: Path, run: str, state: str
) -> None:
    """In one network namespace it would take the first one's services for its own."""
    other = Paths(run=tmp_path / run, state=tmp_path / state)
    with (
        exclusive(paths, who="daemon"),
        pytest.raises(ControlError, match="another lbdr"),
        exclusive(other, who="apply"),
    ):
        pass
    with exclusive(other, who="apply"):
        pass


HOLD = """\
import sys, pathlib
from lbdr.paths import Paths, exclusive
with exclusive(Paths(run=pathlib.Path(sys.argv[1]), state=pathlib.Path(sys.argv[2])), who="daemon"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_process_that_was_killed_holds_nothing(paths: Paths) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(paths.run), str(paths.state)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ControlError, match=f"daemon, pid {holder.pid}"):
            exclusive(paths, who="apply").__enter__()
        holder.kill()
    with exclusive(paths, who="apply"):
        assert paths.lock.read_text() == f"apply, pid {os.getpid()}\n"


def test_the_lock_is_not_for_everybody_to_take(paths: Paths) -> None:
    before = os.umask(0)
    try:
        with exclusive(paths, who="apply"):
            assert stat.S_IMODE(paths.lock.stat().st_mode) == 0o640
            assert stat.S_IMODE(paths.run.stat().st_mode) == 0o750
    finally:
        os.umask(before)


def test_a_file_where_the_directory_should_be(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(StateError) as caught:
        exclusive(Paths(run=tmp_path / "run", state=tmp_path / "state"), who="apply").__enter__()
    assert "--run-dir" in caught.value.hint


def test_no_right_to_make_the_lock(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)  # root is refused nothing
    with pytest.raises(PrivilegeError) as caught:
        exclusive(paths, who="apply").__enter__()
    assert caught.value.message == f"{paths.lock}: permission denied"
    assert caught.value.hint == "run as root"
