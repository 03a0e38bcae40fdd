"""`lbdr explain`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import suppress

import click

from lbdr.cli.common import director_options, json_option, print_json, reports_errors
from lbdr.config.load import load
from lbdr.errors import EXIT_NO, LbdrError
from lbdr.explain import Choice, Explanation, asked, parse_endpoint
from lbdr.explain_offline import offline as by_file
from lbdr.maglev import DEFAULT_INDEX, TABLE_SIZES, table_size
from lbdr.model import Address
from lbdr.paths import Paths

_WIDTH = 18


def _endpoint(
    context: click.Context, parameter: click.Parameter, value: str
) -> tuple[Address, int]:
    """An option's address and port."""
    try:
        return parse_endpoint(value)
    except ValueError as error:
        raise click.BadParameter(str(error), context, parameter) from error


@click.command()
@click.argument("name")
@click.option(
    "--client",
    metavar="IP:PORT",
    callback=_endpoint,
    required=True,
    help="Its address and port: 10.1.2.3:40000, [2001:db8::1]:40000.",
)
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    help="The service's port, where it has any, or not the first one is meant.",
)
@click.option("--offline", is_flag=True, help="From the configuration alone; needs no root.")
@click.option("--order", metavar="NAME,...", help="Offline: the servers in the order of adding.")
@click.option(
    "--mh-table-index",
    type=click.IntRange(8, 7 + len(TABLE_SIZES)),
    help=f"Offline: CONFIG_IP_VS_MH_TAB_INDEX of the kernel; {DEFAULT_INDEX} is "
    f"{table_size()} slots.  [default: {DEFAULT_INDEX}]",
)
@director_options
@json_option
@reports_errors
def explain(
    *,
    name: str,
    client: tuple[Address, int],
    port: int | None,
    offline: bool,
    order: str | None,
    mh_table_index: int | None,
    paths: Paths,
    as_json: bool,
) -> None:
    """Say which real server of the virtual service NAME a client gets, and why.

    The programs that forward are asked, on what they hold, for a new connection and for one that
    is open; nothing is counted and nothing written. Beside it stand the table of what IPVS has
    now, and IPVS's entry for the client; where they differ, it is said why. Without a daemon, as
    root, what it left is asked.

    With --offline the file alone is asked, as if the director had just begun: for mh, whose table
    depends on nothing else. Exit code 1: nobody can say who gets it.

    \b
      lbdr explain --client 10.1.2.3:40000 WEB
      lbdr explain --client [2001:db8::7]:40000 --port 443 PORTAL
      lbdr explain --offline --config lbdr.yaml --client 10.1.2.3:40000 WEB
      lbdr explain --offline --order web2,web1 --json --client 10.1.2.3:40000 WEB | jq .server
    """
    if offline:
        configuration = load(paths.config).configuration
        question = asked(configuration, name, *client, port, any_port=True)
        names = None if order is None else [word.strip() for word in order.split(",")]
        found = by_file(question, names, mh_table_index or DEFAULT_INDEX)
    else:
        if order is not None or mh_table_index is not None:
            raise click.UsageError("--order and --mh-table-index go with --offline")
        found = _ask(name, client, port, paths)
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        for line in _lines(found):
            click.echo(line)
    if found.address is None:
        raise click.exceptions.Exit(EXIT_NO)


def _ask(name: str, client: tuple[Address, int], port: int | None, paths: Paths) -> Explanation:
    """Ask the daemon, or what it left; offline nothing of this is imported."""
    from lbdr.control import client as control  # noqa: PLC0415
    from lbdr.control.protocol import ExplainRequest  # noqa: PLC0415

    address, client_port = client
    request = ExplainRequest(
        virtual_service=name, client=str(address), client_port=client_port, port=port
    )
    if control.running(paths):
        if os.geteuid() == 0:
            from lbdr.questions import prepare  # noqa: PLC0415

            with suppress(LbdrError):  # the daemon may have no right to, and says what is wrong
                prepare(paths)
        return Explanation.model_validate(control.ask(paths, request).result)
    from lbdr.questions import without_daemon  # noqa: PLC0415

    return asyncio.run(without_daemon(paths, request))


def _lines(found: Explanation) -> Iterator[str]:
    yield (
        f"client {found.client} of {found.service} ({found.protocol} {found.virtual}, "
        f"{found.scheduler})"
    )
    yield _line("new connection", found.new)
    if found.established is not None:
        yield _line("open connection", found.established)
    if found.leaves is not None:
        tags = "".join(f", VLAN {vlan}" for vlan in found.leaves.vlans)
        yield f"{'leaves by':{_WIDTH}}{found.leaves.device}, to {found.leaves.mac}{tags}"
    if not found.offline:
        alone = found.engine == "alone"
        if found.table is not None:
            yield _line("table of lbdr" if alone else "table of IPVS", found.table)
        why = "this kernel has no IPVS" if alone else "none for this client"
        yield _line("entry of IPVS", found.ipvs or Choice(by="nobody", why=why))
    for difference in found.differences:
        yield f"differs: {difference}"
    for note in found.notes:
        yield f"note: {note}"


def _line(what: str, choice: Choice) -> str:
    if choice.address is None:
        return f"{what:{_WIDTH}}{choice.server or '-'}: {choice.why}"
    name = choice.server if choice.server == choice.address else f"{choice.server} {choice.address}"
    return f"{what:{_WIDTH}}{name}: {choice.why}"
