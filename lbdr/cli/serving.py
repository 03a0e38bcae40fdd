"""`lbdr drain`, `lbdr halt`, `lbdr online`: whether a real server serves, as the operator says."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import click
from rich.console import Console
from rich.live import Live
from rich.text import Text

from lbdr.cli.common import director_options, json_option, print_json, reports_errors
from lbdr.cli.durations import duration
from lbdr.control import client
from lbdr.control.protocol import Done, OperatorRequest, StatusRequest
from lbdr.draining import QUIET, Draining, Remaining
from lbdr.model import Standing
from lbdr.paths import Paths
from lbdr.status import Status

_LOOK_EVERY = 1.0  # seconds

_service = click.argument("service", required=False)
_server = click.argument("real_server")


@click.command()
@_server
@_service
@click.option("--wait", is_flag=True, help="Show what is still open, and end when it is empty.")
@click.option(
    "--deadline",
    metavar="DURATION",
    callback=duration,
    help="Halt it after this time: 90s, 10m, 12h.",
)
@director_options
@json_option
@reports_errors
def drain(
    *,
    real_server: str,
    service: str | None,
    wait: bool,
    deadline: float | None,
    paths: Paths,
    as_json: bool,
) -> None:
    """Give a real server no new connections; those that it has go on.

    In one virtual service, or everywhere. It stays so over reloads and restarts, until
    `lbdr online`. Interrupting --wait changes nothing: the server goes on draining.

    Clients that persistence binds to the server are moved with their next connection, or stay,
    as the configuration says (`director: drain_persistence`).

    \b
      lbdr drain pacs1
      lbdr drain pacs1 DICOM_STORE --wait
      lbdr drain pacs1 --deadline 12h --wait
    """
    result = _ask(paths, real_server, Standing.DRAIN, service, deadline)
    if not wait:
        tell(result, as_json=as_json)
        return
    began = time.monotonic()
    remaining = _wait(paths, Draining(real_server, service), quiet=as_json)
    if as_json:
        print_json(
            {
                **result.model_dump(mode="json"),
                "waited": round(time.monotonic() - began, 1),
                "halted": [each.virtual_service for each in remaining if each.state == "halt"],
            }
        )
        return
    for line in _ended(real_server, remaining):
        click.echo(line)


@click.command()
@_server
@_service
@director_options
@json_option
@reports_errors
def halt(*, real_server: str, service: str | None, paths: Paths, as_json: bool) -> None:
    """Take a real server out now: no new connections, and open ones are cut.

    In one virtual service, or everywhere. It stays out over reloads and restarts, until
    `lbdr online`.

    \b
      lbdr halt pacs1
      lbdr halt pacs1 DICOM_STORE
    """
    tell(_ask(paths, real_server, Standing.HALT, service), as_json=as_json)


@click.command()
@_server
@_service
@director_options
@json_option
@reports_errors
def online(*, real_server: str, service: str | None, paths: Paths, as_json: bool) -> None:
    """Let a real server serve again that was drained or halted.

    In one virtual service, or everywhere. Its weight is the configuration's, or the one that
    `lbdr weight` set.

    \b
      lbdr online pacs1
    """
    tell(_ask(paths, real_server, Standing.ONLINE, service), as_json=as_json)


def _ask(
    paths: Paths,
    real_server: str,
    state: Standing,
    service: str | None,
    deadline: float | None = None,
) -> Done:
    request = OperatorRequest(
        real_server=real_server, state=state, virtual_service=service, deadline=deadline
    )
    return Done.model_validate(client.ask(paths, request).result)


def tell(result: Done, *, as_json: bool) -> None:
    """Print what a request changed."""
    if as_json:
        print_json(result.model_dump(mode="json"))
        return
    for command in result.operations:
        click.echo(command)
    if not result.operations:
        click.echo("nothing to do", err=True)


def _wait(paths: Paths, draining: Draining, *, quiet: bool) -> Sequence[Remaining]:
    """Look until nothing is left; what was left then."""
    console = Console(stderr=True, highlight=False, markup=False, emoji=False, quiet=quiet)
    most: dict[str, int] = {}
    with Live(console=console, auto_refresh=False, transient=True) as live:

        def show(remaining: Sequence[Remaining]) -> None:
            lines = [_line(draining.real_server, each, most) for each in remaining]
            live.update(Text("\n").join(lines), refresh=True)

        return _poll(paths, draining, show)


def _poll(
    paths: Paths, draining: Draining, show: Callable[[Sequence[Remaining]], None]
) -> Sequence[Remaining]:
    while True:
        status = Status.model_validate(client.ask(paths, StatusRequest()).result)
        remaining = draining.look(status, time.monotonic())
        if all(each.empty for each in remaining):
            return remaining
        show(remaining)
        time.sleep(_LOOK_EVERY)


def _line(real_server: str, remaining: Remaining, most: dict[str, int]) -> Text:
    """A bar that fills while connections end."""
    if remaining.connections is None:
        quiet = min(remaining.quiet or 0.0, QUIET)
        share, words = quiet / QUIET, f"no packet for {quiet:.0f} of {QUIET:.0f} s"
    else:
        name, left = remaining.virtual_service, remaining.connections
        most[name] = max(most.get(name, 0), left)
        share = 1 - left / most[name] if most[name] else 1.0
        words = f"{left} of {most[name]} connections open"
    width = 30
    filled = round(share * width)
    bar = Text("━" * filled, style="green") + Text("━" * (width - filled), style="dim")
    head = f"{real_server} in {remaining.virtual_service}  "
    return Text(head) + bar + Text(f"  {words}")


def _ended(real_server: str, remaining: Sequence[Remaining]) -> list[str]:
    lines = []
    for each in remaining:
        if each.state == "halt":
            words = "is halted: the deadline came"
        elif each.connections is None:
            words = f"had no packet for {QUIET:.0f} s"
        else:
            words = "has no open connection left"
        lines.append(f"{real_server} {words} ({each.virtual_service})")
    return lines or [f"no virtual service has {real_server}"]
