"""`lbdr fastpath`."""

from __future__ import annotations

import asyncio
import logging

import click

from lbdr import fastpath_pins
from lbdr.cli.common import director_options, json_option, print_json, reports_errors
from lbdr.cli.logs import set_up
from lbdr.config.load import load as load_file
from lbdr.control import client
from lbdr.control.protocol import FastPathRequest, FastPathResult
from lbdr.marks import needing
from lbdr.model import FastPathUse
from lbdr.paths import Paths

_SERVICE = click.argument("service", required=False)


@click.group()
def fastpath() -> None:
    """Leave virtual services to IPVS, have XDP forward again, or load its programs.

    Open connections go on with the server they have: IPVS is given those that it would place
    elsewhere. The switch is kept when the daemon restarts. Where the kernel has no IPVS, `off` is
    refused: nothing else would forward.

    \b
      lbdr fastpath off WEB
      lbdr fastpath off
      lbdr fastpath on
    """


@fastpath.command()
@_SERVICE
@director_options
@json_option
@reports_errors
def off(*, service: str | None, paths: Paths, as_json: bool) -> None:
    """Leave a virtual service, or all of them, to IPVS."""
    _switch(paths, service, on=False, as_json=as_json)


@fastpath.command()
@_SERVICE
@director_options
@json_option
@reports_errors
def on(*, service: str | None, paths: Paths, as_json: bool) -> None:
    """Have XDP and tc forward a virtual service, or all of them, again."""
    _switch(paths, service, on=True, as_json=as_json)


@fastpath.command()
@director_options
@json_option
@reports_errors
def load(*, paths: Paths, as_json: bool) -> None:
    """Load the programs, for a daemon that may not.

    They are pinned, and the daemon adopts them. The systemd unit has root run it before the daemon,
    and at each reload. It compares the kernel's mh with lbdr's table, too, and leaves the verdict.
    It attaches nothing; what is loaded already stays.
    """
    set_up(None, logging.WARNING)
    fastpath_pins.prepare_root(paths)
    said = {"mh": "", "programs": ""}
    configuration = load_file(paths.config).configuration
    if configuration.director.fastpath is FastPathUse.OFF and not needing(configuration):
        said["programs"] = "not loaded: `fastpath: off` in the file"
    else:
        try:
            verdict, there = asyncio.run(fastpath_pins.load(paths))
        except fastpath_pins.InUseError:
            said["programs"] = "a daemon uses them"
        else:
            said["mh"] = verdict.outcome.value
            said["programs"] = "there already" if there else "loaded"
            if verdict.reason and not as_json:
                click.echo(verdict.reason, err=True)
    if as_json:
        print_json(said)
        return
    click.echo(f"programs of the fast path: {said['programs']}")


def _switch(paths: Paths, service: str | None, *, on: bool, as_json: bool) -> None:
    request = FastPathRequest(on=on, virtual_service=service)
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
