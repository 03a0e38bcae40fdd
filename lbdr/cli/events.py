"""`lbdr events`."""

from __future__ import annotations

import json
import sys
import time
from datetime import datetime

import click

from lbdr.cli.common import director_options, reports_errors
from lbdr.cli.durations import duration
from lbdr.control import client
from lbdr.control.protocol import MOST_EVENTS, EventsRequest, EventsResult
from lbdr.errors import PrivilegeError
from lbdr.events import Event, EventKind, Wanted, read
from lbdr.paths import Paths

_FOLLOW_EVERY = 1.0  # seconds


@click.command()
@click.option(
    "-n",
    "--last",
    type=click.IntRange(1, MOST_EVENTS),
    default=50,
    show_default=True,
    help="At most so many.",
)
@click.option(
    "--since", metavar="DURATION", callback=duration, help="Not older than this: 90s, 10m, 12h, 7d."
)
@click.option(
    "--kind", type=click.Choice([kind.value for kind in EventKind]), help="Of this kind alone."
)
@click.option("--service", help="Of this virtual service alone.")
@click.option("--server", help="Of this real server alone.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what happens, until interrupted.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a line.")
@director_options
@reports_errors
def events(
    *,
    last: int,
    since: float | None,
    kind: str | None,
    service: str | None,
    server: str | None,
    follow: bool,
    as_json: bool,
    paths: Paths,
) -> None:
    """Show what happened: states of servers, roles, VIPs, drift, problems.

    The history outlives the daemon; some megabytes of it are kept.

    \b
      lbdr events
      lbdr events --since 12h --server pacs1
      lbdr events --kind drift --json
      lbdr events --follow
    """
    request = EventsRequest(
        last=last,
        since=time.time() - since if since else 0.0,
        kind=EventKind(kind) if kind else None,
        virtual_service=service,
        real_server=server,
    )
    while True:
        found = _ask(paths, request)
        if not (found or follow or as_json):
            click.echo("no such event is kept", err=True)
        for event in found:
            request = request.model_copy(update={"after": event.number, "last": MOST_EVENTS})
            _print(event, as_json=as_json)
        if not follow:
            return
        sys.stdout.flush()
        time.sleep(_FOLLOW_EVERY)


def _ask(paths: Paths, request: EventsRequest) -> list[Event]:
    if client.running(paths):
        return EventsResult.model_validate(client.ask(paths, request).result).events
    try:
        return Wanted(**request.model_dump(exclude={"command"})).of(read(paths.state))
    except PermissionError as error:
        raise PrivilegeError(
            f"{paths.state}: permission denied",
            hint="no daemon runs, and what it left is root's: sudo lbdr events",
        ) from error


def _print(event: Event, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(event.model_dump(mode="json")))
        return
    when = datetime.fromtimestamp(event.time).astimezone().isoformat(" ", "seconds")
    subject = " ".join(filter(None, (event.virtual_service, event.real_server)))
    words = f"{subject}: {event.text}" if subject and subject not in event.text else event.text
    click.echo(f"{when}  {event.kind:<13}  {words}")
