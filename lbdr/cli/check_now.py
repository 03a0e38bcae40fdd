"""`lbdr check-now`."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import click

from lbdr.cli.common import director_options, json_option, print_json, reports_errors
from lbdr.config.load import Loaded, load
from lbdr.datapath.vip_probe import VipProber
from lbdr.errors import EXIT_NO, ControlError
from lbdr.health.checks.run import run
from lbdr.health.results import Passed, Result
from lbdr.health.spec import Ldap, Probe
from lbdr.paths import Paths

_SHOWN = 200  # bytes of what is sent or received at once


@dataclass(frozen=True, slots=True)
class _Done:
    """A check that was run."""

    service: str
    probe: Probe
    result: Result
    trace: list[str]


@click.command("check-now")
@click.argument("real_server")
@click.argument("service", required=False)
@click.option("--quiet", "-q", is_flag=True, help="No trace of what is sent and received.")
@director_options
@json_option
@reports_errors
def check_now(
    *, real_server: str, service: str | None, quiet: bool, paths: Paths, as_json: bool
) -> None:
    """Run the checks of a real server once, by the file, and show what is said.

    In one virtual service, or in all that have it. It changes no verdict, and needs no daemon:
    what it depends on is checked, too. Checks of type vip, ping and external need root. Exit code
    1: one of them fails.

    \b
      lbdr check-now pacs1
      lbdr check-now pacs1 DICOM_STORE -c new.yaml
    """
    loaded = load(paths.config)
    probes = _probes(loaded, real_server, service)
    done = asyncio.run(_run(probes, show=not (quiet or as_json)))
    if as_json:
        print_json({"checks": [_as_object(one) for one in done]})
    if not all(isinstance(one.result, Passed) for one in done):
        raise click.exceptions.Exit(EXIT_NO)


def _probes(loaded: Loaded, real_server: str, service: str | None) -> list[tuple[str, Probe]]:
    named = [
        (name, health)
        for name, health in loaded.health.items()
        if service in (None, name) and real_server in health.policy.members
    ]
    if not named:
        where = f"virtual service {service}" if service else "any virtual service"
        raise ControlError(
            f"there is no real server {real_server} in {where}", hint=f"see {loaded.file}"
        )
    return [(name, probe) for name, health in named for probe in health.probes_of(real_server)]


async def _run(probes: list[tuple[str, Probe]], *, show: bool) -> list[_Done]:
    done = []
    prober = VipProber()
    try:
        for service, probe in probes:
            trace: list[str] = []

            def said(
                what: str, data: bytes, trace: list[str] = trace, probe: Probe = probe
            ) -> None:
                trace.append(_said(what, data, probe))
                if show:
                    click.echo(f"  {trace[-1]}")

            if show:
                click.echo(click.style(f"{service}: {probe}", bold=True))
            result = await run(probe, prober=prober, trace=said)
            done.append(_Done(service, probe, result, trace))
            click.echo(_line(done[-1]), err=not show)
    finally:
        prober.close()
    if not probes:
        click.echo("nothing checks it: `check: on`, or none for this protocol", err=True)
    return done


def _said(what: str, data: bytes, probe: Probe) -> str:
    """What went over the wire, but for passwords."""
    if isinstance(probe.check, Ldap) and probe.check.password:
        data = data.replace(probe.check.password.encode(), b"*****")
    if what == "note":
        return data.decode(errors="replace")
    more = f" and {len(data) - _SHOWN} more bytes" if len(data) > _SHOWN else ""
    return f"{what} {repr(data[:_SHOWN])[1:]}{more}"


def _line(done: _Done) -> str:
    passed, result = isinstance(done.result, Passed), done.result
    word = click.style("passed", fg="green") if passed else click.style("failed", fg="red")
    return f"{done.service}: {done.probe} {word} in {result.latency:.3f} s: {result.words}"


def _as_object(done: _Done) -> dict[str, object]:
    return {
        "virtual_service": done.service,
        "check": str(done.probe),
        "passed": isinstance(done.result, Passed),
        "words": done.result.words,
        "latency": done.result.latency,
        "trace": done.trace,
    }
