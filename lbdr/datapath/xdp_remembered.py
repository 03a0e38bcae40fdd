"""The connections that the programs remember, for a person: records and learned flows."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from lbdr.datapath import xdp_layout as layout
from lbdr.datapath.xdp_layout import LearnedState, RecordState
from lbdr.datapath.xdp_maps import DirectorMaps
from lbdr.datapath.xdp_places import tick
from lbdr.model import Address
from lbdr.tracking import Record


@dataclass(frozen=True, slots=True)
class FoundFlow:
    """A connection that is remembered.

    Args:
        service: the index of its service.
        client: its address.
        client_port: its port.
        port: of the service.
        learned: from IPVS, and no record.
        state: open, closing, confirmed, or unconfirmed.
        server: the RIP of who has it; None for one that is gone.
        previous: where its packets go until data confirms an unconfirmed record.
        age: ticks since it was last seen; for a learned one, since IPVS saw it.
    """

    service: int
    client: Address
    client_port: int
    port: int
    learned: bool
    state: str
    server: Address | None
    previous: Address | None
    age: int


def flows(
    maps: DirectorMaps, services: Mapping[int, tuple[int, int]], limit: int
) -> tuple[list[FoundFlow], int]:
    """The youngest connections that are remembered, and how many there are.

    Args:
        maps: open.
        services: IP version and first port of services by their indexes; others are left out.
        limit: at most so many.
    """
    rips = {index: rip for index, (rip, _) in servers(maps, services.keys()).items()}
    count, now = 0, tick()

    def entries() -> Iterator[tuple[int, str, bytes, bytes]]:
        nonlocal count
        for name, key_layout in _PLACES:
            for key, value in maps[name].items():
                if key_layout.unpack(key)[-1] in services:
                    count += 1
                    then = _TICK.unpack_from(value, _TICK_AT[name])[0]
                    age = (now - then) & 0xFFFFFFFF
                    # another CPU's clock may be a little ahead
                    yield age if age < 1 << 31 else 0, name, key, value

    youngest = heapq.nsmallest(max(limit, 1), entries())  # of 0 it would not count
    return [_flow(entry, services, rips) for entry in youngest[:limit]], count


_PLACES = (("records", layout.FLOW), ("flows4", layout.FLOW4), ("flows", layout.FLOW))
_TICK = layout.U32
_TICK_AT = {"records": 8, "flows4": 4, "flows": 4}  # bytes into RECORD and LEARNED


def _flow(
    entry: tuple[int, str, bytes, bytes],
    services: Mapping[int, tuple[int, int]],
    rips: Mapping[int, Address],
) -> FoundFlow:
    age, name, key, value = entry
    if name == "flows4":
        client, client_port, service = layout.FLOW4.unpack(key)
        port = services[service][1]
    else:
        client, client_port, ports, service = layout.FLOW.unpack(key)
        port = int.from_bytes(ports, "big")
    previous = None
    if name == "records":
        record = Record.unpack(value)
        server, state = record.server, RecordState(record.state).name.lower()
        if record.state == RecordState.UNCONFIRMED:
            previous = rips.get(record.previous)
    else:
        server, number, _ = layout.LEARNED.unpack(value)
        state = LearnedState(number).name.lower()
    return FoundFlow(
        service=service,
        client=layout.unpack_address(client, services[service][0]),
        client_port=int.from_bytes(client_port, "big"),
        port=port,
        learned=name != "records",
        state=state,
        server=rips.get(server),
        previous=previous,
        age=age,
    )


def servers(maps: DirectorMaps, services: Collection[int]) -> dict[int, tuple[Address, int]]:
    """The real servers of services by their indexes: RIP, and last weight that was not 0.

    Args:
        maps: open.
        services: their indexes.
    """
    found: dict[int, tuple[Address, int]] = {}
    for key, value in maps["places"].items():
        owner, rip = layout.placed_of(key)
        if owner in services:
            index, weight = layout.PLACED.unpack(value)
            found[index] = rip, weight
    return found
