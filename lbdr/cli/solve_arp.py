"""`lbdr solve-arp` among the other commands; it works without them on a real server."""

from __future__ import annotations

import click

from lbdr.realserver import cli as real_server


@click.command(
    "solve-arp",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def solve_arp(arguments: tuple[str, ...]) -> None:
    """Solve the ARP problem on a real server, and prove it."""
    raise click.exceptions.Exit(real_server.main(list(arguments)))
