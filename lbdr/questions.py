"""What a director answers about single connections: lbdr explain, lbdr status --flows.

Nothing is changed, but for a program that is compiled when it is first asked, and pinned.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from pathlib import Path

from lbdr import fastpath_pins
from lbdr.config.load import load
from lbdr.control.protocol import ExplainRequest, FlowsRequest, FlowsResult, RememberedFlow
from lbdr.datapath import ipvs_connections, ipvs_text, mh_check, namespace, xdp_remembered
from lbdr.datapath.ipvs_connections import Connection
from lbdr.datapath.ipvs_text import Scheduled
from lbdr.datapath.own_table import OwnTable
from lbdr.datapath.xdp_explain import Question, compile_explainer, open_explainer
from lbdr.datapath.xdp_maps import DirectorMaps
from lbdr.datapath.xdp_places import tick
from lbdr.datapath.xdp_remembered import FoundFlow
from lbdr.director import Director
from lbdr.errors import ControlError, KernelError, PrivilegeError
from lbdr.explain import Asked, Choice, Explanation, InTable, QuestionError, asked, by_table
from lbdr.explain_live import NO_IPVS, Heard, explain, seconds
from lbdr.fastpath_keeper import FastPathKeeper
from lbdr.maglev import DEFAULT_INDEX
from lbdr.marks import key_of
from lbdr.model import Address, Configuration, Key, Protocol, Service, ServiceKey, endpoint
from lbdr.paths import Paths
from lbdr.state import StateStore

Schedules = Mapping[Key, tuple[str, tuple[Scheduled, ...]]]
"""Of each service the scheduler, and the real servers in the order of the list."""


class Questions:
    """Answers, for a running daemon.

    Args:
        director: at run time.
        fastpath: of it.
    """

    def __init__(self, director: Director, fastpath: FastPathKeeper) -> None:
        self._director = director
        self._fastpath = fastpath
        self._compiling = asyncio.Lock()

    async def explain(self, request: ExplainRequest) -> Explanation:
        """Which real server a client gets, and why.

        Raises:
            LbdrError: there is no such service, or the kernel refuses.
        """
        question = _asked(self._director.loaded.configuration, request)
        name = question.virtual.name
        desired = self._director.desired().services
        keys = [key for key, service in desired.items() if service.name == name]
        fast, state = self._fastpath.fast, self._fastpath.state
        off = state.slow.get(name, state.reason)
        own = self._director.kernel.own_table
        table = None if own is None else own.schedules()
        if fast is None or off:
            said = Said(off=off or "there is none")
            return await _answer(question, keys, said, own=table)
        directory = fast.programs.directory
        try:
            async with self._compiling:
                await asyncio.to_thread(compile_explainer, directory, fast.maps)
        except PrivilegeError as error:
            raise PrivilegeError(
                "the daemon may not load the program that is asked",
                hint="root may, once: sudo lbdr explain",
            ) from error
        said = _ask(question, directory, fast.maps)
        return await _answer(question, keys, said, fast.maps.capacity.index, own=table)

    async def flows(self, request: FlowsRequest) -> FlowsResult:
        """The connections that the fast path remembers.

        Raises:
            LbdrError: there is no such service, or the kernel refuses.
        """
        configuration = self._director.loaded.configuration
        names = {virtual.name for virtual in configuration.virtual_services}
        if request.virtual_service not in {None, *names}:
            raise ControlError(
                f"there is no virtual service {request.virtual_service}",
                hint="`lbdr status` shows the names",
            )
        fast, state = self._fastpath.fast, self._fastpath.state
        if fast is None:
            return FlowsResult(reason=state.reason or "there is no fast path")
        desired = self._director.desired().services
        services = {
            fast.index_of(key): (key, service.name)
            for key, service in desired.items()
            if key in fast.forwarded and request.virtual_service in {None, service.name}
        }
        places = {
            index: (key.version, key.port if isinstance(key, ServiceKey) else 0)
            for index, (key, _) in services.items()
        }
        found, total = await asyncio.to_thread(
            xdp_remembered.flows, fast.maps, places, request.limit
        )
        told = {index: name for index, (_, name) in services.items()}
        return FlowsResult(flows=_remembered(found, told, configuration), total=total)


def prepare(paths: Paths) -> None:
    """Have the program that is asked pinned, for a daemon that may load none.

    Args:
        paths: of the director.

    Raises:
        LbdrError: it cannot be had.
    """
    directory = fastpath_pins.pins_of(paths)
    with DirectorMaps.open(directory) as maps:
        compile_explainer(directory, maps)


async def without_daemon(paths: Paths, request: ExplainRequest) -> Explanation:
    """The answer where no daemon runs: of the programs, if they are pinned, and of IPVS.

    Args:
        paths: of the director.
        request: what is asked.

    Raises:
        LbdrError: the configuration is wrong, there is no such service, or the kernel refuses.
    """
    question = _asked(load(paths.config).configuration, request)
    state = await asyncio.to_thread(StateStore(paths.state, namespace.identity()).load)
    key = key_of(question.virtual, state.marks)
    keys = [] if key is None else [key]
    own = _kept_table(state.table)
    directory = fastpath_pins.pins_of(paths)
    try:
        maps = DirectorMaps.open(directory)
    except KernelError as error:
        if error.errno in {errno.EACCES, errno.EPERM}:
            raise PrivilegeError(
                f"no daemon runs, and {directory} is root's",
                hint="run as root; `--offline` asks the file alone",
            ) from error
        if error.errno != errno.ENOENT:
            raise
        said = Said(off="no daemon, and nothing is pinned")
        return await _answer(question, keys, said, own=own)
    with maps:
        compile_explainer(directory, maps)
        said = _ask(question, directory, maps)
        return await _answer(question, keys, said, maps.capacity.index, own=own)


def _kept_table(services: tuple[Service, ...]) -> Schedules | None:
    """The table in IPVS's place that was kept; None where this kernel has IPVS."""
    if not services:
        return None
    table = OwnTable()
    table.load(services)
    return table.schedules()


@dataclass(frozen=True, slots=True)
class Said:
    """What the programs said; fields as of lbdr.explain_live.Heard, and last weights by RIP."""

    heard: Heard | None = None
    weights: Mapping[Address, int] | None = None
    off: str = ""


def _asked(configuration: Configuration, request: ExplainRequest) -> Asked:
    try:
        client = ip_address(request.client)
    except ValueError as error:
        raise QuestionError(f"{request.client} is no IP address") from error
    name, port = request.virtual_service, request.port
    return asked(configuration, name, client, request.client_port, port)


def _ask(question: Asked, directory: Path, maps: DirectorMaps) -> Said:
    """Ask the programs."""
    virtual = question.virtual
    if virtual.protocol is Protocol.SCTP:
        return Said(off="SCTP is IPVS's alone")
    with open_explainer(directory, maps) as explainer:
        new, established = (
            explainer.ask(
                Question(
                    virtual.protocol,
                    question.client,
                    question.client_port,
                    virtual.address,
                    question.port,
                    begins,
                )
            )
            for begins in (True, False)
        )
    if new is None or established is None:
        return Said(off="the fast path does not have the service")
    placed = xdp_remembered.servers(maps, [new.service])
    return Said(
        Heard(
            question,
            new=new,
            established=established,
            servers={index: rip for index, (rip, _) in placed.items()},
            now=tick(),
        ),
        dict(placed.values()),
    )


async def _answer(
    question: Asked,
    keys: Iterable[Key],
    said: Said,
    index: int | None = None,
    *,
    own: Schedules | None,
) -> Explanation:
    """What the programs said, with what IPVS, or the table in its place, has beside it."""
    if own is not None:
        return _beside_table(question, keys, said, index, own)
    return await asyncio.to_thread(_beside_ipvs, question, list(keys), said, index)


def _beside_table(
    question: Asked, keys: Iterable[Key], said: Said, index: int | None, own: Schedules
) -> Explanation:
    heard = replace(said.heard or Heard(question, off=said.off), absent=NO_IPVS)
    found = next((own[key] for key in keys if key in own), None)
    if found is None:
        return explain(heard)
    notes: list[str] = []
    table = _table(question, found, said, index or DEFAULT_INDEX, notes)
    return explain(replace(heard, table=table, notes=tuple(notes)))


def _beside_ipvs(question: Asked, keys: list[Key], said: Said, index: int | None) -> Explanation:
    heard = said.heard or Heard(question, off=said.off)
    try:
        schedules = ipvs_text.schedules(ipvs_text.read())
    except KernelError as error:
        return explain(replace(heard, absent=f"IPVS cannot be asked: {error.message}"))
    found = next((schedules[key] for key in keys if key in schedules), None)
    if found is None:
        return explain(replace(heard, absent="IPVS does not have the service"))
    notes: list[str] = []
    table = _table(question, found, said, index, notes)
    entry, template = _entries(question, keys)
    beside = replace(heard, table=table, entry=entry, template=template, notes=tuple(notes))
    return explain(beside)


def _table(
    question: Asked,
    found: tuple[str, tuple[Scheduled, ...]],
    said: Said,
    index: int | None,
    notes: list[str],
) -> Choice | None:
    """Whom a table of what IPVS has names; None where it goes by no table."""
    virtual = question.virtual
    scheduler, scheduled = found
    if scheduler != "mh" or virtual.persistence is not None:
        return None
    if index is None:
        index = mh_check.table_index()
    if index is None:
        index = DEFAULT_INDEX
        notes.append(f"the table's size is not known here, and taken for index {index}")
    weights = said.weights
    if weights is None:
        weights = {server.address: server.weight for server in virtual.real_servers}
        if not all(server.weight for server in scheduled):
            notes.append("who is drained is taken to have had the weight of the file before")
    servers = [
        InTable(
            server.address,
            server.port,
            server.weight,
            server.weight or weights.get(server.address, 0),
        )
        for server in scheduled
    ]
    return by_table(question, servers, index)


def _entries(question: Asked, keys: Iterable[Key]) -> tuple[Connection | None, Connection | None]:
    """IPVS's entry for the connection, and its persistence for the client."""
    virtual = question.virtual
    entry = template = None
    wanted = ipvs_connections.identity(
        virtual.protocol, question.client, question.client_port, virtual.address, question.port
    )
    bound = {ipvs_connections.persistence_of(key) for key in keys}
    network = None
    if virtual.persistence is not None:
        prefix = virtual.persistence.granularity
        network = ip_network((question.client, prefix), strict=False).network_address
    for page in ipvs_connections.pages():
        for line in page.splitlines():
            if b" ".join(line.split(None, 5)[:5]) == wanted:
                (entry,) = ipvs_connections.parse(line).connections
            elif network is not None:
                for one in ipvs_connections.parse(line).templates:
                    ours = (one.protocol, one.virtual, one.virtual_port) in bound
                    if ours and one.client == network:
                        template = one
    return entry, template


def _remembered(
    found: Iterable[FoundFlow], services: Mapping[int, str], configuration: Configuration
) -> list[RememberedFlow]:
    names = {
        (virtual.name, server.address): server.name
        for virtual in configuration.virtual_services
        for server in (
            *((virtual.sorry_server,) if virtual.sorry_server else ()),
            *virtual.real_servers,
        )
    }

    def name(service: str, address: object) -> str:
        return "" if address is None else names.get((service, address), "") or str(address)

    return [
        RememberedFlow(
            service=services[flow.service],
            client=endpoint(flow.client, flow.client_port),
            port=flow.port,
            kind="learned" if flow.learned else "record",
            state=flow.state,
            server=name(services[flow.service], flow.server),
            address=str(flow.server or ""),
            previous=name(services[flow.service], flow.previous),
            age=seconds(flow.age),
        )
        for flow in found
    ]
