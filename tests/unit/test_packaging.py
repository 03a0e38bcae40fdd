"""What pip installs beside the modules."""

from __future__ import annotations

import tomllib
from pathlib import Path, PurePath

PROJECT = Path(__file__).parents[2]


def test_every_source_of_the_fast_path_is_installed() -> None:
    """With its place below bpf/, or an include does not find it."""
    setuptools = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["setuptools"]
    installed = {
        PurePath(place, path.name).relative_to("share/lbdr")
        for place, globs in setuptools["data-files"].items()
        for glob in globs
        for path in PROJECT.glob(glob)
    }
    sources = {path.relative_to(PROJECT) for path in (PROJECT / "bpf").rglob("*.[ch]")}
    assert installed == sources


def test_every_program_of_haproxy_is_installed() -> None:
    """Beside the module that names it."""
    setuptools = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["setuptools"]
    installed = {
        path for glob in setuptools["package-data"]["lbdr"] for path in PROJECT.glob(f"lbdr/{glob}")
    }
    assert installed >= set((PROJECT / "lbdr").rglob("*.lua"))
