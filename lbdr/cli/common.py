"""What the commands share: options, errors, output."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import click
from click.core import ParameterSource

from lbdr import paths as places
from lbdr.errors import ConfigError, LbdrError
from lbdr.paths import Paths

P = ParamSpec("P")
T = TypeVar("T")

_DIRECTORY = click.Path(path_type=Path, file_okay=False, readable=False)
_FILE = click.Path(path_type=Path)

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def director_options(function: Callable[..., T]) -> Callable[..., T]:
    """The options that name a director's files; the command gets them as one `paths`."""

    @click.option(
        "-c",
        "--config",
        type=_FILE,
        envvar="LBDR_CONFIG",
        default=places.CONFIG,
        show_default=True,
        help="The configuration file.",
    )
    @click.option(
        "--run-dir",
        type=_DIRECTORY,
        envvar="LBDR_RUN_DIR",
        default=places.RUN,
        show_default=True,
        help="Where the control socket is.",
    )
    @click.option(
        "--state-dir",
        type=_DIRECTORY,
        envvar="LBDR_STATE_DIR",
        default=places.STATE,
        show_default=True,
        help="Where lbdr keeps what must outlive it.",
    )
    @click.option(
        "--bpf-dir",
        type=_DIRECTORY,
        envvar="LBDR_BPF_DIR",
        default=places.BPF,
        show_default=True,
        help="Where the fast path is pinned, on a BPF file system.",
    )
    @functools.wraps(function)
    def wrapper(
        *args: Any,
        config: Path,
        run_dir: Path,
        state_dir: Path,
        bpf_dir: Path,
        file: Path | None = None,
        **options: Any,
    ) -> T:
        return function(*args, paths=Paths(file or config, run_dir, state_dir, bpf_dir), **options)

    return wrapper


def file_argument(function: Callable[..., T]) -> Callable[..., T]:
    """FILE as a word of its own, for commands whose subject it is; it goes before --config."""
    return click.argument("file", type=_FILE, required=False)(function)


def names_file() -> bool:
    """Whether the user named a configuration, as FILE or by --config."""
    context = click.get_current_context()
    source = context.get_parameter_source("config")
    return bool(context.params.get("file")) or source is ParameterSource.COMMANDLINE


def reports_errors(function: Callable[P, T]) -> Callable[P, T]:
    """Turn an LbdrError into a message and its exit code; with --json into an object, too."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except LbdrError as error:
            if kwargs.get("as_json"):
                print_json({"error": _as_object(error)})
            print_error(error)
            raise click.exceptions.Exit(error.exit_code) from error

    return wrapper


def print_error(error: LbdrError) -> None:
    """An error for a person, on stderr; a configuration's problems a line each."""
    if isinstance(error, ConfigError):
        for problem in error.problems:
            click.echo(str(problem), err=True)
        return
    click.echo(f"error: {error}", err=True)


def print_json(value: dict[str, Any]) -> None:
    """One object on one line, so that a program can read the last line."""
    sys.stdout.write(json.dumps(value, default=str) + "\n")


def _as_object(error: LbdrError) -> dict[str, Any]:
    value: dict[str, Any] = {
        "message": error.message,
        "hint": error.hint,
        "exit_code": error.exit_code,
    }
    if isinstance(error, ConfigError):
        value["problems"] = [
            {
                "file": problem.file,
                "line": problem.line,
                "column": problem.column,
                "message": problem.message,
                "hint": problem.hint,
            }
            for problem in error.problems
        ]
    return value
