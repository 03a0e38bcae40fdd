"""`lbdr role`, `lbdr weight`, `lbdr reload`: asking the daemon for a change."""

from __future__ import annotations

import click

from lbdr.cli.common import director_options, json_option, print_json, reports_errors
from lbdr.control import client
from lbdr.control.protocol import Done, ReloadRequest, RoleRequest, RoleResult, WeightRequest
from lbdr.model import MAX_WEIGHT, Role
from lbdr.paths import Paths


@click.command()
@click.argument("role", type=click.Choice([role.value for role in Role]), required=False)
@click.option("--reset", is_flag=True, help="Return to the role of the configuration.")
@director_options
@json_option
@reports_errors
def role(*, role: str | None, reset: bool, paths: Paths, as_json: bool) -> None:
    """Show the director's role, or become active or standby.

    An active director owns the VIPs; a standby holds everything else ready. The role is kept when
    the daemon restarts.

    \b
      lbdr role
      lbdr role standby
      lbdr role --reset
    """
    if role and reset:
        raise click.UsageError("give a role or --reset, not both")
    request = RoleRequest(role=Role(role) if role else None, reset=reset)
    result = RoleResult.model_validate(client.ask(paths, request).result)
    if as_json:
        print_json(result.model_dump(mode="json"))
        return
    for command in result.operations:
        click.echo(command)
    note = (
        "" if result.role is result.configured else f" (the configuration says {result.configured})"
    )
    click.echo(f"{result.role}{note}")


@click.command()
@click.argument("real_server")
@click.argument("weight", type=click.IntRange(0, MAX_WEIGHT), required=False)
@click.option("--service", help="Only in this virtual service; else in all that have the server.")
@click.option("--reset", is_flag=True, help="Return to the weight of the configuration.")
@director_options
@json_option
@reports_errors
def weight(
    *,
    real_server: str,
    weight: int | None,
    service: str | None,
    reset: bool,
    paths: Paths,
    as_json: bool,
) -> None:
    """Set a real server's weight, over that of the configuration.

    0 gives it no new connections; those that it has go on. The weight is kept over a reload and
    a restart, until --reset.

    \b
      lbdr weight pacs1 0
      lbdr weight pacs1 50 --service DICOM_STORE
      lbdr weight pacs1 --reset
    """
    if (weight is None) is not reset:
        raise click.UsageError("give a weight, or --reset")
    request = WeightRequest(real_server=real_server, virtual_service=service, weight=weight)
    result = Done.model_validate(client.ask(paths, request).result)
    _print_done(result, as_json=as_json)


@click.command()
@director_options
@json_option
@reports_errors
def reload(*, paths: Paths, as_json: bool) -> None:
    """Make the daemon read its configuration again, and wait until it is in force.

    A file that is wrong changes nothing.

    \b
      lbdr check && lbdr reload
    """
    result = Done.model_validate(client.ask(paths, ReloadRequest()).result)
    _print_done(result, as_json=as_json)


def _print_done(result: Done, *, as_json: bool) -> None:
    if as_json:
        print_json(result.model_dump(mode="json"))
        return
    for command in result.operations:
        click.echo(command)
    if not result.operations:
        click.echo("nothing to do", err=True)
