"""`lbdr fastpath`."""

from __future__ import annotations

import click

from lbdr.cli.common import director_options, json_option, print_json, reports_errors
from lbdr.control import client
from lbdr.control.protocol import FastPathRequest, FastPathResult
from lbdr.paths import Paths


@click.command()
@click.argument("switch", type=click.Choice(["on", "off"]))
@click.argument("service", required=False)
@director_options
@json_option
@reports_errors
def fastpath(*, switch: str, service: str | None, paths: Paths, as_json: bool) -> None:
    """Leave a virtual service, or all of them, to IPVS, or have XDP forward again.

    Open connections go on with the server they have: IPVS is given those that it would place
    elsewhere. The switch is kept when the daemon restarts.

    \b
      lbdr fastpath off WEB
      lbdr fastpath off
      lbdr fastpath on
    """
    request = FastPathRequest(on=switch == "on", virtual_service=service)
    result = FastPathResult.model_validate(client.ask(paths, request).result)
    if as_json:
        print_json(result.model_dump(mode="json"))
        return
    if result.handed_over:
        click.echo(f"{result.handed_over} connections were handed to IPVS")
    if result.forwards:
        click.echo(f"forwarded by XDP or tc: {', '.join(result.forwards)}")
    for name, reason in sorted(result.off.items()):
        click.echo(f"by IPVS alone: {name or 'everything'}: {reason}")
