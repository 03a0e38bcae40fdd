"""`lbdr plan`, `lbdr apply`, `lbdr withdraw`."""

from __future__ import annotations

import asyncio
import logging

import click

from lbdr import oneshot
from lbdr.cli.common import (
    director_options,
    file_argument,
    json_option,
    names_file,
    print_json,
    reports_errors,
)
from lbdr.control import client
from lbdr.control.protocol import Done, PlanRequest, PlanResult, WithdrawRequest
from lbdr.errors import EXIT_NO
from lbdr.paths import Paths
from lbdr.report import Report

_ADOPT = click.option(
    "--adopt",
    is_flag=True,
    help="Take over virtual services that others made and that differ from the file.",
)


@click.command()
@file_argument
@director_options
@_ADOPT
@click.option("--exit-code", is_flag=True, help="Exit with 1 when there is something to do.")
@json_option
@reports_errors
def plan(*, paths: Paths, adopt: bool, exit_code: bool, as_json: bool) -> None:
    """Show what would be done, as the commands an administrator would type.

    Without FILE, and with a daemon, it is the daemon's own plan: what it has yet to do. With FILE
    it is what that file would change here. Nothing is changed.

    \b
      lbdr plan
      lbdr plan new.yaml --exit-code && echo nothing to do
    """
    where = ""
    if not adopt and not names_file() and client.running(paths):
        where = " by the file as the daemon read it; `lbdr plan FILE` plans what it says now"
        result = PlanResult.model_validate(client.ask(paths, PlanRequest()).result)
    else:
        found = asyncio.run(oneshot.plan(paths, adopt=adopt))
        result = PlanResult(
            operations=found.commands,
            conflicts=[str(conflict) for conflict in found.conflicts],
        )
    if as_json:
        print_json(result.model_dump())
    else:
        for command in result.operations:
            click.echo(command)
        for conflict in result.conflicts:
            click.echo(f"conflict: {conflict}", err=True)
        if not result.operations and not result.conflicts:
            click.echo(f"nothing to do{where}", err=True)
    if exit_code and (result.operations or result.conflicts):
        raise click.exceptions.Exit(EXIT_NO)


@click.command()
@file_argument
@director_options
@_ADOPT
@json_option
@reports_errors
def apply(*, paths: Paths, adopt: bool, as_json: bool) -> None:
    """Bring the kernel to what the file wants, once, without a daemon.

    What is applied stays when the command has ended. VIPs are announced now and not again: for
    that, for drift and for roles run the daemon.

    \b
      lbdr apply
      lbdr apply lbdr.yaml --json
    """
    _finish(asyncio.run(oneshot.apply(paths, adopt=adopt)), as_json=as_json)


@click.command()
@director_options
@json_option
@reports_errors
def withdraw(*, paths: Paths, as_json: bool) -> None:
    """Take everything of lbdr's out of the kernel: VIPs, services, sysctls.

    What others made stays. A daemon that runs does it and then stops.

    \b
      lbdr withdraw
    """
    if client.running(paths):
        result = Done.model_validate(client.ask(paths, WithdrawRequest()).result)
        _print_operations(result.operations, as_json=as_json)
        return
    _finish(asyncio.run(oneshot.withdraw(paths)), as_json=as_json)


def _finish(report: Report, *, as_json: bool) -> None:
    error = report.error()
    if error is not None:
        for command in report.commands:
            click.echo(command, err=True)
        raise error
    _print_operations(report.commands, as_json=as_json)


def _print_operations(operations: list[str], *, as_json: bool) -> None:
    if as_json:
        print_json({"operations": operations})
        return
    for command in operations:
        click.echo(command)
    if not operations:
        click.echo("nothing to do", err=True)


logging.getLogger("lbdr").addHandler(logging.NullHandler())  # the commands print by themselves
