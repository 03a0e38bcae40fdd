"""`lbdr doctor`: what of this machine decides about the fast path, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

import click

from lbdr.cli.common import file_argument, json_option, print_json, reports_errors
from lbdr.config.host import host_problems
from lbdr.config.load import load
from lbdr.desired import expand
from lbdr.doctor import counts, examine, uses
from lbdr.doctor_facts import Finding, HostFacts, Ipvs, Level
from lbdr.errors import EXIT_NO
from lbdr.model import Role
from lbdr.paths import CONFIG

if TYPE_CHECKING:
    from lbdr.config.load import Loaded

_COLOURS = {
    Level.OK: "green",
    Level.NOTE: "cyan",
    Level.WARNING: "yellow",
    Level.FAULT: "red",
}
_WIDTH = 100
_INDENT = " " * 9


@click.command()
@file_argument
@click.option(
    "-c",
    "--config",
    type=click.Path(path_type=Path),
    envvar="LBDR_CONFIG",
    default=CONFIG,
    show_default=True,
    help="The configuration file, where no FILE is named.",
)
@json_option
@reports_errors
def doctor(*, file: Path | None, config: Path, as_json: bool) -> None:
    """Say what of this machine decides about the fast path and DR, and what to do about it.

    Looks at every interface that carries a VIP of the configuration or leads to a real server, and
    at the kernel. It changes nothing and needs no daemon; without root it says what it could not
    see. The exit code is 1 where there is a fault.

    \b
    Examples:
      lbdr doctor
      lbdr doctor -c lbdr.yaml
      lbdr doctor --json | jq -r '.findings[] | select(.level == "fault") | .remedy'
    """
    findings, facts = _examine(load(file or config))
    numbers = counts(findings)
    if as_json:
        print_json(
            {
                "findings": [asdict(finding) for finding in findings],
                "counts": {level.value: number for level, number in numbers.items()},
                "devices": [asdict(device) for device in facts.devices],
                "kernel": facts.kernel,
            }
        )
    else:
        for finding in findings:
            _show(finding)
        total = ", ".join(map(_count, reversed(numbers.items())))
        click.echo(f"\n{total}; Linux {facts.kernel}, {facts.cpus} CPUs")
    if numbers[Level.FAULT]:
        raise click.exceptions.Exit(EXIT_NO)


def _examine(loaded: Loaded) -> tuple[Sequence[Finding], HostFacts]:
    from lbdr.datapath.addresses import observe_network  # noqa: PLC0415  # pyroute2: not for --help
    from lbdr.datapath.host_facts import gather  # noqa: PLC0415

    network = observe_network()
    configuration = loaded.configuration
    wanted = expand(configuration, network, role=Role.STANDBY).sysctls
    facts = gather(uses(configuration, loaded.real_servers, network), wanted)
    problems = host_problems(loaded, network, ipvs=facts.ipvs is not Ipvs.ABSENT)
    return examine(facts, configuration, problems), facts


def _count(entry: tuple[Level, int]) -> str:
    level, number = entry
    return f"{number} {level}" + "s" * (number != 1 and level is not Level.OK)


def _show(finding: Finding) -> None:
    click.secho(f"{finding.level:<9}", fg=_COLOURS[finding.level], bold=True, nl=False)
    click.echo(f"{finding.subject}: {finding.what}")
    for word, text in (("why: ", finding.why), ("do:  ", finding.remedy)):
        if text:
            click.echo(
                fill(
                    text,
                    _WIDTH,
                    initial_indent=_INDENT + word,
                    subsequent_indent=_INDENT + " " * len(word),
                    break_long_words=False,
                    break_on_hyphens=False,
                )
            )
