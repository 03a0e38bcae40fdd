"""The linters, as tests: what they find is a failure with their own words."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]


def project_files() -> list[Path]:
    """List the project's own files: in git or new, but not ignored."""
    # The clone may belong to the user who called sudo, which git would refuse to root.
    git = ["git", "-c", "safe.directory=*", "ls-files", "-z"]
    names = subprocess.run(
        [*git, "--cached", "--others", "--exclude-standard"],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    paths = (PROJECT / name for name in names.split("\0") if name)
    return [path for path in paths if path.is_file()]


def files_of(interpreters: tuple[str, ...], suffix: str) -> list[str]:
    """List the files with a suffix, or with a first line that names one of the interpreters."""
    found = []
    for path in project_files():
        with path.open("rb") as file:
            first = file.readline(100).decode(errors="replace").split()
        by_name = bool(first) and first[0].startswith("#!") and first[-1].endswith(interpreters)
        if path.suffix == suffix or by_name:
            found.append(str(path.relative_to(PROJECT)))
    return found


def check(*command: str) -> None:
    """Run a linter of the project's files; what it says is the failure."""
    done = subprocess.run(
        command,
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.fail(done.stdout, pytrace=False)


def python_files() -> list[str]:
    return files_of(("python", "python3"), ".py")


def test_ruff_check() -> None:
    check(sys.executable, "-m", "ruff", "check", *python_files())


def test_ruff_format() -> None:
    check(sys.executable, "-m", "ruff", "format", "--check", *python_files())


def test_mypy() -> None:
    check(sys.executable, "-m", "mypy", "--strict", "--scripts-are-modules", *python_files())


def test_shellcheck() -> None:
    scripts = files_of(("sh", "bash", "dash"), ".sh")
    assert "scripts/install" in scripts
    check("shellcheck", *scripts)


def test_clang_format() -> None:
    sources = [str(path) for path in project_files() if path.suffix in {".c", ".h"}]
    assert sources
    check("clang-format", "--dry-run", "--Werror", *sources)
