"""HAProxy's answers, read strictly; pure (management.txt 9.1 and 9.3)."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from lbdr.haproxy.errors import ProxyError

_ENTRY = re.compile(r"0x[0-9a-f]+: key=(.*) use=(\d+) exp=(\d+)(?: shard=\d+)?((?: \S+=\S*)*)\s*")
_PROCESS = re.compile(r"(\d+)\s+(master|worker)\s+(\d+)(?: \[failed: (\d+)\])?\s+(\S+)\s+\S+\s*")
_UPTIME = re.compile(r"(\d+)d(\d+)h(\d+)m(\d+)s")
_RESYNC_FINISHED = 3  # src/peers.c, PEERS_RESYNC_FINISHED
_STATE_VERSION = "1"
_STATE_FIELDS = 24


class Kind(StrEnum):
    """What a line of the statistics is of."""

    FRONTEND = "frontend"
    BACKEND = "backend"
    SERVER = "server"


@dataclass(frozen=True, slots=True)
class Statistics:
    """What HAProxy counted of a frontend, a pool or a real server.

    Args:
        proxy: the service's or backend's name.
        kind: what of it.
        server: the real server's name; empty for the others.
        status: HAProxy's word: OPEN, UP, DOWN, MAINT, DRAIN and the like.
        sessions: open now.
        sessions_max: open at once, since the worker began.
        sessions_total: since the worker began.
        rate: new ones in the last second.
        queue: waiting now.
        queue_max: waiting at once.
        bytes_in: from clients.
        bytes_out: to clients.
        errors_connect: a server could not be reached.
        errors_response: a server broke off.
        errors_request: a client's request was wrong.
        denied: refused by a rule.
        retries: connections tried again.
        redispatches: connections given to another server.
        responses: HTTP answers by their class, 1 to 5.
        weight: in use.
    """

    proxy: str
    kind: Kind
    server: str = ""
    status: str = ""
    sessions: int = 0
    sessions_max: int = 0
    sessions_total: int = 0
    rate: int = 0
    queue: int = 0
    queue_max: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    errors_connect: int = 0
    errors_response: int = 0
    errors_request: int = 0
    denied: int = 0
    retries: int = 0
    redispatches: int = 0
    responses: tuple[int, int, int, int, int] = (0, 0, 0, 0, 0)
    weight: int = 0


_NUMBERS: Mapping[str, str] = {
    "sessions": "scur",
    "sessions_max": "smax",
    "sessions_total": "stot",
    "rate": "rate",
    "queue": "qcur",
    "queue_max": "qmax",
    "bytes_in": "bin",
    "bytes_out": "bout",
    "errors_connect": "econ",
    "errors_response": "eresp",
    "errors_request": "ereq",
    "denied": "dreq",
    "retries": "wretr",
    "redispatches": "wredis",
    "weight": "weight",
}
_KINDS = {"0": Kind.FRONTEND, "1": Kind.BACKEND, "2": Kind.SERVER}


@dataclass(frozen=True, slots=True)
class ServerState:
    """A real server as a worker has it (`show servers state`).

    Args:
        proxy: the pool's name.
        server: its name.
        address: empty while a name is not resolved.
        port: 0 for the port that the client came to.
        running: whether it takes connections, but for maintenance and drain.
        maintenance: set over the runtime API.
        drain: likewise; HAProxy's own, which lbdr does not set.
        unresolved: its name has no address yet, so it takes no connections.
        weight: in use.
        name: the host name that it is resolved from; empty for an address.
    """

    proxy: str
    server: str
    address: str
    port: int
    running: bool
    maintenance: bool
    drain: bool
    weight: int
    name: str
    unresolved: bool = False


@dataclass(frozen=True, slots=True)
class TableEntry:
    """One entry of a stick table.

    Args:
        key: the client's address, cookie or session.
        expires: milliseconds from now; 0 for never.
        data: what is stored, by HAProxy's names (server_id, server_key, conn_cnt).
    """

    key: str
    expires: int
    data: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Worker:
    """A process of HAProxy's.

    Args:
        pid: its process id.
        uptime: seconds.
        reloads: how many there were since it began.
        connections: of clients, open now; None where it does not answer.
    """

    pid: int
    uptime: int
    reloads: int
    connections: int | None = None


@dataclass(frozen=True, slots=True)
class Processes:
    """What the master has under it.

    Args:
        master: its process id.
        reloads: so far.
        failed: reloads in a row that failed, after which the last good worker serves on.
        current: workers that take connections.
        old: workers that end with their last connections.
    """

    master: int
    reloads: int
    failed: int
    current: tuple[Worker, ...] = ()
    old: tuple[Worker, ...] = ()


def statistics(answer: str) -> list[Statistics]:
    """Of `show stat`."""
    lines = answer.strip().splitlines()
    if not lines or not lines[0].startswith("# pxname,svname,"):
        raise _strange("show stat", answer)
    names = lines[0].removeprefix("# ").split(",")
    found: list[Statistics] = []
    for row in csv.reader(lines[1:], strict=True):
        values = dict(zip(names, row, strict=False))
        kind = _KINDS.get(values.get("type", ""))
        if kind is None:
            continue  # a listener
        numbers = {ours: _number(values.get(theirs, "")) for ours, theirs in _NUMBERS.items()}
        found.append(
            Statistics(
                proxy=values["pxname"],
                kind=kind,
                server=values["svname"] if kind is Kind.SERVER else "",
                status=values.get("status", ""),
                responses=(
                    _number(values.get("hrsp_1xx", "")),
                    _number(values.get("hrsp_2xx", "")),
                    _number(values.get("hrsp_3xx", "")),
                    _number(values.get("hrsp_4xx", "")),
                    _number(values.get("hrsp_5xx", "")),
                ),
                **numbers,
            )
        )
    return found


def information(answer: str) -> dict[str, str]:
    """Of `show info`: values by HAProxy's names."""
    found = dict(line.split(": ", 1) for line in answer.splitlines() if ": " in line)
    if "Pid" not in found:
        raise _strange("show info", answer)
    return found


def server_states(answer: str) -> list[ServerState]:
    """Of `show servers state`."""
    lines = answer.strip().splitlines()
    if len(lines) < 2 or lines[0] != _STATE_VERSION or not lines[1].startswith("# be_id"):
        raise _strange("show servers state", answer)
    found: list[ServerState] = []
    for line in lines[2:]:
        if not line.strip():
            continue
        fields = line.split(" ")
        if len(fields) < _STATE_FIELDS:
            raise _strange("show servers state", line)
        admin = int(fields[6])
        found.append(
            ServerState(
                proxy=fields[1],
                server=fields[3],
                address="" if fields[4] == "-" else fields[4],
                port=int(fields[18]),
                running=fields[5] != "0",
                # include/haproxy/server-t.h: SRV_ADMF_*
                maintenance=bool(admin & 0x07),
                drain=bool(admin & 0x18),
                weight=int(fields[7]),
                name="" if fields[17] == "-" else fields[17],
                unresolved=bool(admin & 0x20),
            )
        )
    return found


def table(answer: str) -> list[TableEntry]:
    """Of `show table NAME`."""
    lines = answer.strip().splitlines()
    if not lines or not lines[0].startswith("# table: "):
        raise _strange("show table", answer)
    found: list[TableEntry] = []
    for line in lines[1:]:
        match = _ENTRY.fullmatch(line)
        if match is None:
            raise _strange("show table", line)
        data = dict(part.split("=", 1) for part in match[4].split())
        found.append(TableEntry(match[1], int(match[3]), data))
    return found


def tables(answer: str) -> list[tuple[str, str, int]]:
    """Of `show table`: name, type and number of entries of each."""
    found = re.findall(r"^# table: (\S+), type: (\w+),.* used:(\d+)", answer, re.MULTILINE)
    return [(name, kind, int(used)) for name, kind, used in found]


def peers_finished(answer: str) -> bool:
    """Of `show peers`: whether each group has what it asked others for."""
    flags = re.findall(r"^\S+: \[.*?\] id=\S+ .*?flags=(0x[0-9a-f]+) ", answer, re.MULTILINE)
    return all(int(flag, 16) & _RESYNC_FINISHED == _RESYNC_FINISHED for flag in flags)


def processes(answer: str) -> Processes:
    """Of the master's `show proc`."""
    master, current, old = None, list[Worker](), list[Worker]()
    for section, match in _process_lines(answer):
        worker = Worker(int(match[1]), _uptime(match[5]), int(match[3]))
        if match[2] == "master":
            master = Processes(worker.pid, worker.reloads, int(match[4] or 0))
        elif section == "old workers":
            old.append(worker)
        else:
            current.append(worker)
    if master is None:
        raise _strange("show proc", answer)
    return Processes(master.master, master.reloads, master.failed, tuple(current), tuple(old))


def _process_lines(answer: str) -> Iterator[tuple[str, re.Match[str]]]:
    section = ""
    for line in answer.splitlines():
        if line.startswith("# "):
            section = line.removeprefix("# ").strip()
        elif match := _PROCESS.fullmatch(line):
            yield section, match


def _uptime(text: str) -> int:
    match = _UPTIME.fullmatch(text)
    if match is None:
        return 0
    days, hours, minutes, seconds = (int(part) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0


def _strange(command: str, answer: str) -> ProxyError:
    shown = answer.strip().splitlines()[:1] or ["nothing"]
    return ProxyError(
        f"HAProxy's answer to `{command}` is not understood: {shown[0][:200]}",
        hint="lbdr is made for HAProxy 2.6 of Debian 12; report this with `haproxy -v`",
    )
