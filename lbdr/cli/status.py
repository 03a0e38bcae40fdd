"""`lbdr status`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from datetime import datetime

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lbdr import oneshot
from lbdr.cli import flows as remembered
from lbdr.cli.common import director_options, json_option, print_json, reports_errors
from lbdr.control import client
from lbdr.control.protocol import FLOWS_LIMIT, StatusRequest
from lbdr.errors import EXIT_NO
from lbdr.paths import Paths
from lbdr.status import RealServerStatus, Status, VirtualServiceStatus

_COLOURS = {
    "online": "green",
    "active": "green",
    "drain": "yellow",
    "halt": "red",
    "down": "red",
    "degraded": "yellow",
    "sorry": "yellow",
    "standby": "cyan",
    "spare": "cyan",
    "foreign": "magenta",
    "missing": "red",
}
_ENDLESS = 10_000
_WIDE = 132  # columns that the whole table takes, with addresses of usual length
_UNITS = ("", "K", "M", "G", "T", "P")


@click.command()
@director_options
@click.option("--rate", is_flag=True, help="Rates per second instead of totals.")
@click.option("--exit-code", is_flag=True, help="Exit with 1 when something needs somebody.")
@click.option("--flows", is_flag=True, help="The connections that the fast path remembers.")
@click.option(
    "--limit",
    type=click.IntRange(0, FLOWS_LIMIT),
    default=100,
    show_default=True,
    help="With --flows: at most so many, the youngest.",
)
@click.argument("name", required=False)
@json_option
@reports_errors
def status(
    *,
    paths: Paths,
    rate: bool,
    exit_code: bool,
    flows: bool,
    limit: int,
    name: str | None,
    as_json: bool,
) -> None:
    """Show what is served, by whom, and how much.

    Without a daemon it is read from the configuration and the kernel, as root.

    With --flows, of all virtual services or of NAME: what the fast path remembers. A record is a
    connection of an mh service that began after a change, or is not where the table says; learned
    is what IPVS decided.

    \b
      lbdr status
      lbdr status --rate
      lbdr status --flows WEB
      lbdr status --json | jq '.virtual_services[] | {name, state}'
    """
    if flows:
        remembered.show(paths, name, limit, _console(), as_json=as_json)
        return
    if name is not None:
        raise click.UsageError("a NAME goes with --flows")
    if client.running(paths):
        found = Status.model_validate(client.ask(paths, StatusRequest()).result)
    else:
        found = asyncio.run(oneshot.status(paths))
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        _show(found, _console(), rate=rate)
    if exit_code and (
        found.problems or any(entry.state != "online" for entry in found.virtual_services)
    ):
        raise click.exceptions.Exit(EXIT_NO)


def _console() -> Console:
    """A terminal has its width, where long words are folded; a file or a pipe has none."""
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, emoji=False, width=_ENDLESS)
    return console


def _show(status: Status, console: Console, *, rate: bool) -> None:
    console.print(_headline(status))
    if status.virtual_services:
        wide = console.width >= _WIDE
        console.print(_table(status, rate=rate, wide=wide))
        if not wide:
            for words in dict.fromkeys(map(_vip_line, status.virtual_services)):
                console.print(words, soft_wrap=True)
    else:
        console.print("no virtual services are configured")
    if status.daemon or status.engine == "alone":
        for line in _fast_path(status):
            console.print(line, soft_wrap=True)
    if status.foreign_services:
        names = ", ".join(status.foreign_services)
        console.print(f"not lbdr's, left alone: {names}", soft_wrap=True)
    for line in _set_by_somebody(status):
        console.print(line, soft_wrap=True)
    for problem in status.problems:
        console.print(Text.assemble(("problem: ", "bold red"), problem), soft_wrap=True)


def _headline(status: Status) -> Text:
    role = Text(status.role.value, style=_COLOURS[status.role.value])
    if status.role is not status.configured_role:
        role.append(f" (set at run time; the configuration says {status.configured_role})")
    process = f"pid {status.daemon}" if status.daemon else "no daemon: nothing repairs or announces"
    return Text.assemble(
        ("director ", "bold"),
        status.director or "(no name)",
        ", ",
        role,
        f", {process}, lbdr {status.version}, kernel {status.kernel}, {status.config}",
    )


def _table(status: Status, *, rate: bool, wide: bool) -> Table:
    """All of it, or in a narrow terminal what matters most: names and addresses stay whole."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    unit = "/s" if rate else ""
    numbers = ["weight", "active", "inactive", f"conns{unit}"]
    if wide:
        numbers += [f"packets{unit}", f"bytes{unit}"]
    for name in ("virtual service", "state", "address", *(["scheduler"] if wide else [])):
        table.add_column(name, no_wrap=True)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    if wide:
        table.add_column("VIP owner", overflow="fold")
    for entry in status.virtual_services:
        for row in _rows(entry, rate=rate):
            table.add_row(*(row if wide else (*row[:3], *row[4:8])))
    return table


def _fast_path(status: Status) -> Iterator[str]:
    """What forwards, and which services it leaves to IPVS."""
    fast = status.fastpath
    if status.engine == "alone":
        yield from _alone(status)
        return
    if fast.state == "off":
        yield f"fast path off, IPVS forwards: {fast.reason}"
        return
    places = [
        f"{one.device} ({one.mode}{': ' if one.reason else ''}{one.reason})" for one in fast.devices
    ]
    yield f"fast path: {', '.join(places) or 'no VIP is here'}"
    for entry in status.virtual_services:
        if entry.fastpath.state == "off":
            yield f"{entry.name} by IPVS alone: {entry.fastpath.reason}"


def _set_by_somebody(status: Status) -> Iterator[str]:
    """Real servers that are not online because somebody decided so."""
    for entry in status.virtual_services:
        for server in entry.real_servers:
            if server.reason:
                when = f" since {_time(server.since)}" if server.since is not None else ""
                until = f", halt at {_time(server.deadline)}" if server.deadline else ""
                yield f"{server.name} in {entry.name}: {server.reason}{when}{until}"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().isoformat(" ", "seconds")


def _alone(status: Status) -> Iterator[str]:
    """What forwards where the kernel has no IPVS, and what was dropped."""
    fast = status.fastpath
    if fast.state == "off":
        yield f"no IPVS in this kernel, and nothing forwards: {fast.reason}"
        return
    places = [
        f"{'XDP' if one.mode == 'native' else 'tc'} alone on {one.device}"
        + (f" ({one.reason})" if one.reason else "")
        for one in fast.devices
    ]
    yield f"no IPVS in this kernel; forwards: {', '.join(places) or 'nobody, no VIP is here'}"
    for entry in status.virtual_services:
        dropped = entry.fastpath.not_forwarded
        if dropped:
            words = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()))
            yield f"{entry.name}: not forwarded: {words}"


def _vip_line(entry: VirtualServiceStatus) -> str:
    return f"VIP {entry.vip.address}: {_owner(entry)}"


def _rows(entry: VirtualServiceStatus, *, rate: bool) -> Iterator[tuple[str | Text, ...]]:
    numbers = entry.rates if rate else entry.totals
    yield (
        Text(entry.name, style="bold"),
        _state(entry.state),
        f"{entry.protocol} {_endpoint(entry.vip.address, entry.ports)}",
        _scheduler(entry),
        "",
        _short(_sum(server.active_connections for server in entry.real_servers)),
        _short(_sum(server.inactive_connections for server in entry.real_servers)),
        _short(numbers.connections),
        _short(numbers.packets_in),
        _short(numbers.bytes_in),
        _owner(entry),
    )
    for server in entry.real_servers:
        yield _real_server(server, rate=rate)


def _real_server(server: RealServerStatus, *, rate: bool) -> tuple[str | Text, ...]:
    numbers = server.rates if rate else server.totals
    weight = "-" if server.weight is None else str(server.weight)
    if server.weight is not None and server.weight != server.configured_weight:
        weight += f" ({server.configured_weight})"
    return (
        f"  {server.name or '(not ours)'}",
        _state(server.state),
        _endpoint(server.address, str(server.port or "any")),
        server.method,
        weight,
        _short(server.active_connections),
        _short(server.inactive_connections),
        _short(numbers.connections),
        _short(numbers.packets_in),
        _short(numbers.bytes_in),
        "",
    )


def _scheduler(entry: VirtualServiceStatus) -> str:
    words = [entry.scheduler, *entry.scheduler_flags]
    if entry.persistence is not None:
        words.append(f"persistent {entry.persistence}s/{entry.granularity}")
    if entry.one_packet:
        words.append("one-packet")
    return " ".join(words)


def _owner(entry: VirtualServiceStatus) -> str:
    where = f" ({entry.vip.interface})" if entry.vip.interface else ""
    return (entry.vip.owner or "nobody") + where


def _state(state: str) -> Text:
    return Text(state, style=_COLOURS.get(state, ""))


def _endpoint(address: str, port: str) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _sum(numbers: Iterable[int | None]) -> int | None:
    """Their sum; None where one is not known."""
    total = 0
    for number in numbers:
        if number is None:
            return None
        total += number
    return total


def _short(number: int | None) -> str:
    """A number in at most five characters, as ipvsadm shortens them; a dash for an unknown one."""
    if number is None:
        return "-"
    value = float(number)
    for unit in _UNITS[:-1]:
        if value < 10_000:
            return f"{value:.0f}{unit}"
        value /= 1000
    return f"{value:.0f}{_UNITS[-1]}"
