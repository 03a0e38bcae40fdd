"""`lbdr failback`."""

from __future__ import annotations

import click

from lbdr.cli.common import director_options, json_option, reports_errors
from lbdr.cli.serving import tell
from lbdr.control import client
from lbdr.control.protocol import Done, FailbackRequest
from lbdr.paths import Paths


@click.command()
@click.argument("service")
@click.argument("real_server", required=False)
@director_options
@json_option
@reports_errors
def failback(*, service: str, real_server: str | None, paths: Paths, as_json: bool) -> None:
    """Hand back to active real servers what standby servers took over.

    A standby server (`standby_for`) serves while none of those can for whom it stands in, and goes
    on when they can again, until this is said; with `health: {failback: auto}` it hands back by
    itself.

    \b
      lbdr failback PORTAL
    """
    request = FailbackRequest(virtual_service=service, real_server=real_server)
    tell(Done.model_validate(client.ask(paths, request).result), as_json=as_json)
