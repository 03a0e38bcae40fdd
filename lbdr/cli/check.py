"""`lbdr check` and `lbdr schema`: what is wrong with a configuration, and what can stand in one."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lbdr.cli.common import file_argument, json_option, reports_errors
from lbdr.config.document import json_schema, reference
from lbdr.config.host import host_problems
from lbdr.config.load import Loaded, load
from lbdr.doctor_facts import Ipvs
from lbdr.errors import ConfigError, Problem
from lbdr.paths import CONFIG

if TYPE_CHECKING:
    from lbdr.model import HostNetwork


def observe_network() -> HostNetwork:
    """This machine's interfaces; pyroute2 is imported only where they are asked for."""
    from lbdr.datapath.addresses import observe_network as observe  # noqa: PLC0415

    return observe()


def has_ipvs() -> bool:
    """Whether this machine's kernel has IPVS, or may have."""
    from lbdr.datapath.host_facts import ipvs_here  # noqa: PLC0415

    return ipvs_here() is not Ipvs.ABSENT


@click.command()
@file_argument
@click.option(
    "-c",
    "--config",
    envvar="LBDR_CONFIG",
    default=str(CONFIG),
    show_default=True,
    help="The configuration file, where no FILE is named.",
)
@click.option(
    "--host", is_flag=True, help="Check too what depends on this machine: interfaces, IPVS."
)
@json_option
@reports_errors
def check(file: Path | None, config: str, host: bool, as_json: bool) -> None:
    """Check the configuration FILE.

    Without --host the answer is the same on every machine. Neither needs root, and neither changes
    anything. All problems are shown at once, as FILE:LINE:COLUMN: MESSAGE (REMEDY). The exit code
    is 0 for a valid file and 3 for one that is wrong.

    \b
    Examples:
      lbdr check
      lbdr check --host examples/demo.yaml
      lbdr check --json lbdr.yaml | jq .problems
    """
    loaded: Loaded | None = None
    problems: list[Problem] = []
    try:
        loaded = load(file or config)
    except ConfigError as error:
        problems = error.problems
    if loaded is not None and host:
        problems = host_problems(loaded, observe_network(), ipvs=has_ipvs())
    services = len(loaded.configuration.virtual_services) if loaded is not None else 0
    servers = len(loaded.real_servers) if loaded is not None else 0
    if as_json:
        result = {
            "valid": not problems,
            "problems": [asdict(problem) for problem in problems],
            "virtual_services": services,
            "real_servers": servers,
        }
        click.echo(json.dumps(result))
    elif problems:
        for problem in problems:
            click.echo(str(problem), err=True)
    else:
        where = " on this machine" if host else ""
        found = f"{_count(services, 'virtual service')}, {_count(servers, 'real server')}"
        click.echo(f"{found}: valid{where}")
    if problems:
        raise SystemExit(ConfigError.exit_code)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


@click.command()
@click.option(
    "--format",
    "form",
    type=click.Choice(["json", "markdown"]),
    default="json",
    show_default=True,
    help="JSON Schema for editors and programs, or the reference for people.",
)
def schema(form: str) -> None:
    """Print what a configuration may hold.

    \b
    Examples:
      lbdr schema > lbdr.schema.json
      lbdr schema --format markdown > docs/configuration.md

    An editor with a YAML language server checks a file that begins with the line
    `# yaml-language-server: $schema=lbdr.schema.json`.
    """
    if form == "json":
        click.echo(json.dumps(json_schema(), indent=2))
    else:
        click.echo(reference(), nl=False)
