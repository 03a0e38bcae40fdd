"""Which places of the maps services, real servers and tables have, and which are free.

The maps themselves are the memory: a process that starts reads back what the one before it left.
A place is free again only when nothing names it any more, no record and no flow.
"""

from __future__ import annotations

import time
from array import array
from dataclasses import dataclass, field

from lbdr.datapath import xdp_layout as layout
from lbdr.datapath.xdp_keys import read_keys
from lbdr.datapath.xdp_layout import Reason, ServiceFlag
from lbdr.datapath.xdp_maps import DirectorMaps
from lbdr.errors import KernelError
from lbdr.maglev import table_size
from lbdr.model import (
    Address,
    Key,
    MarkKey,
    ServiceKey,
    Traffic,
)

_COOLING = 2  # ticks for which a former table is not written to: a packet may still be reading it
_MORE = "what is above its capacity runs on IPVS"


@dataclass(slots=True)
class PlacedServer:
    """A real server in the maps.

    Args:
        index: its place.
        last_weight: the last one that was not 0; mh goes by it.
    """

    index: int
    last_weight: int = 0


@dataclass(slots=True)
class PlacedService:
    """A service in the maps.

    Args:
        index: its place.
        traffic: the packets that lead to it.
        servers: its real servers, by RIP.
        marked_only: its packets get their mark, and are IPVS's.
        line: of its table; None for a learned one.
        made_of: what the table was made of.
        flipped: tick of its last change; None once no slot of it is tracked.
        due: when the table is to change, by the monotonic clock; None where it is as wanted.
        settling: whether the last part of its settle time has begun.
        refused: records of it that could not be written, when that was last looked at.
        leaving: its table is of another scheduler than IPVS has by now, and has open connections.
        left: it has them no more, or knows all of them.
    """

    index: int
    traffic: Traffic
    servers: dict[Address, PlacedServer] = field(default_factory=dict)
    marked_only: bool = False
    line: int | None = None
    made_of: tuple[tuple[Address, int, bool], ...] = ()
    flipped: int | None = None
    due: float | None = None
    settling: bool = False
    refused: int = 0
    leaving: bool = False
    left: bool = False

    @property
    def alive(self) -> set[int]:
        """The places of its real servers."""
        return {placed.index for placed in self.servers.values()}

    @property
    def word(self) -> int:
        """Its first word in `services`, the decision."""
        return self.index * (layout.SERVICE.size // 8)


class Places:
    """The places of one director's maps.

    Args:
        maps: open; they are read.
    """

    def __init__(self, maps: DirectorMaps) -> None:
        self.maps = maps
        self.services = _read(maps)
        used = {placed for service in self.services.values() for placed in service.alive}
        # What a process that was killed left half done is not known: nothing is used again before
        # records and flows were looked through.
        self.dying = set(range(min(maps.capacity.servers, layout.MOST_SERVERS))) - used
        taken = {service.index for service in self.services.values()}
        self.retired = set(range(1, maps.capacity.services)) - taken
        self._unused: list[int] = []
        self._cooling: dict[int, int] = {}  # lines of former tables, and when they were left

    def new_service(self, traffic: Traffic) -> PlacedService:
        """A service at a place that nothing names.

        Args:
            traffic: the packets that are to lead to it.

        Raises:
            KernelError: there is none.
        """
        taken = {service.index for service in self.services.values()} | self.retired
        for index in range(1, self.maps.capacity.services):
            if index not in taken:
                return PlacedService(index, traffic)
        raise KernelError("the fast path has no room for more services", hint=_MORE)

    def new_server(self) -> PlacedServer:
        """A real server at a place that nothing names.

        Raises:
            KernelError: there is none.
        """
        if not self._unused:
            raise KernelError("the fast path has no room for more real servers", hint=_MORE)
        return PlacedServer(self._unused.pop())

    def new_line(self) -> int:
        """The first line of a table that nobody reads.

        Raises:
            KernelError: there is none.
        """
        used = {service.line for service in self.services.values()}
        used |= {line for line, left in self._cooling.items() if since(left) < _COOLING}
        lines = self.maps.capacity.lines
        for table in range(self.maps.capacity.tables):
            if table * lines not in used:
                return table * lines
        raise KernelError("the fast path has no room for more tables", hint=_MORE)

    def leave(self, line: int | None) -> None:
        """A table is a service's no longer; packets that are under way may still read it."""
        if line is not None:
            self._cooling[line] = tick()

    def free(self, named: set[int]) -> None:
        """After a sweep: nothing names the services that retired, nor these real servers.

        Args:
            named: places of real servers that something names yet.
        """
        unused = self.dying - named
        self.dying -= unused
        self._unused = sorted({*self._unused, *unused}, reverse=True)
        self.retired.clear()

    def slots(self, line: int) -> array[int]:
        """The words of a table."""
        return read_slots(self.maps, line)

    def udp_until(self, service: PlacedService) -> int:
        """The tick until which a UDP flow without a record goes to the old server."""
        return self.maps.services[service.word + 1] >> 32

    def is_udp_over(self, service: PlacedService) -> bool:
        """Whether UDP flows without a record are the current server's."""
        return bool(self.udp_until(service) - tick() - 1 & 0x80000000)

    def prolong_udp(self, service: PlacedService, ticks: int) -> None:
        """Leave UDP flows without a record to the old server for so long."""
        word = service.word + 1
        device = self.maps.services[word] & 0xFFFFFFFF
        self.maps.services[word] = device | (tick() + ticks & 0xFFFFFFFF) << 32

    def count_refused(self, service: PlacedService) -> int:
        """How many more records of a service could not be written than at the last call."""
        counts, before = self.maps["reasons"], service.refused
        first = service.index * layout.REASONS + Reason.RECORD
        service.refused = sum(
            counts.totals(counts.lookup(layout.U32.pack(index)) or b"")[0]
            for index in (first, first + layout.REASONS_OF_TC)
        )
        return service.refused - before


def tick() -> int:
    """The programs' clock: about a second each."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) >> layout.TICK_SHIFT & 0xFFFFFFFF


def since(then: int | None) -> int:
    """Ticks since then; 0 for never."""
    return 0 if then is None else tick() - then & 0xFFFFFFFF


def read_slots(maps: DirectorMaps, line: int) -> array[int]:
    """The words of a table, by its first line."""
    first = line * layout.SLOTS_IN_LINE
    return array("I", maps.slots[first : first + table_size(maps.capacity.index)])


def _read(maps: DirectorMaps) -> dict[Key, PlacedService]:
    by_index = {index: PlacedService(index, traffic) for index, traffic in read_keys(maps).items()}
    for key, value in maps["places"].items():
        index, address = layout.placed_of(key)
        if index in by_index:
            by_index[index].servers[address] = PlacedServer(*layout.PLACED.unpack(value))
        else:  # its service was left half made, or half gone
            maps["places"].delete(key)
    services: dict[Key, PlacedService] = {}
    for service in by_index.values():
        decision, mark = maps.services[service.word], maps.mark_of(service.index)
        flags = ServiceFlag(decision >> 32)
        vip, ports = service.traffic.address, service.traffic.ports
        services[
            MarkKey(mark, vip.version)
            if mark
            else ServiceKey(service.traffic.protocol, vip, ports.single or 0)
        ] = service
        service.marked_only = bool(mark) and not service.servers and ServiceFlag.ACTIVE not in flags
        if ServiceFlag.LEARNED not in flags:
            service.line = (decision & 0xFFFFFFFF) // layout.SLOTS_IN_LINE
            if any(word & layout.TRACKED for word in read_slots(maps, service.line)):
                service.flipped = tick()  # how long ago is not known
    return services
