"""`lbdr status --flows`: the connections that the fast path remembers."""

from __future__ import annotations

from collections.abc import Iterator

import click
from rich.console import Console
from rich.table import Table

from lbdr.cli.common import print_json
from lbdr.control import client
from lbdr.control.protocol import FLOWS_LIMIT, FlowsRequest, FlowsResult
from lbdr.paths import Paths


def show(paths: Paths, name: str | None, limit: int, console: Console, *, as_json: bool) -> None:
    """Ask the daemon for connections, and print them.

    Args:
        paths: of the director.
        name: of a virtual service; None for all.
        limit: at most so many.
        console: for a person.
        as_json: for a program.
    """
    request = FlowsRequest(virtual_service=name, limit=limit)
    found = FlowsResult.model_validate(client.ask(paths, request).result)
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    if found.flows:
        console.print(table(found))
    for line in ending(found):
        click.echo(line)


def table(found: FlowsResult) -> Table:
    """Connections for a person, a line each."""
    shown = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for column in ("virtual service", "client"):
        shown.add_column(column, no_wrap=True)
    shown.add_column("port", justify="right", no_wrap=True)
    for column in ("server", "state"):
        shown.add_column(column, no_wrap=True)
    shown.add_column("age", justify="right", no_wrap=True)
    for flow in found.flows:
        state = f"{flow.kind}, {flow.state}"
        if flow.previous and flow.previous != flow.server:
            state += f", until then {flow.previous}"
        shown.add_row(
            flow.service,
            flow.client,
            str(flow.port),
            flow.server or "(gone)",
            state,
            f"{flow.age}s",
        )
    return shown


def ending(found: FlowsResult) -> Iterator[str]:
    """What the table does not say."""
    more = found.total - len(found.flows)
    if found.reason:
        yield f"no fast path, which remembers nothing then: {found.reason}"
    elif not found.total:
        yield "no connection is remembered: the tables alone say where each one goes"
    elif more > 0:
        all_of_them = found.total <= FLOWS_LIMIT
        yield f"and {more} more, older ones" + (
            f": --limit {found.total} shows them" if all_of_them else ""
        )
