"""`lbdr daemon`."""

from __future__ import annotations

import asyncio
import logging

import click

from lbdr.cli.common import director_options, file_argument, reports_errors
from lbdr.cli.logs import Format, set_up
from lbdr.daemon import run
from lbdr.paths import Paths


@click.command()
@file_argument
@director_options
@click.option(
    "--log-format",
    type=click.Choice([format_.value for format_ in Format]),
    help="json: one object a line. [default: journal under systemd, else text]",
)
@click.option("-v", "--verbose", is_flag=True, help="Log also what is of no interest.")
@reports_errors
def daemon(*, paths: Paths, log_format: str | None, verbose: bool) -> None:
    """Serve what the configuration says, notice drift and repair it.

    Runs in the foreground and logs a line for each operation. SIGHUP reloads; SIGTERM stops, and
    leaves the datapath working: `lbdr withdraw` takes it down.

    \b
      lbdr daemon lbdr.yaml
      lbdr daemon --run-dir /run/lbdr2 --state-dir /var/lib/lbdr2 second.yaml
    """
    set_up(Format(log_format) if log_format else None, logging.DEBUG if verbose else logging.INFO)
    asyncio.run(run(paths))
