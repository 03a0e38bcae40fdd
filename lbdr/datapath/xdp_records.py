"""Records and flows of the fast path: read, written for what IPVS holds, and swept."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from struct import Struct

from lbdr import tracking
from lbdr.datapath import xdp_layout as layout
from lbdr.datapath.bpf_maps import Map
from lbdr.datapath.bpf_wire import Update
from lbdr.datapath.xdp_layout import RecordState, ServiceFlag
from lbdr.datapath.xdp_places import PlacedService, Places, since, tick
from lbdr.datapath.xdp_wanted import KnownFlow
from lbdr.errors import KernelError
from lbdr.maglev import table_size
from lbdr.model import Key, Protocol

log = logging.getLogger(__name__)


def known_flows(places: Places, key: Key) -> list[KnownFlow]:
    """The connections of a service that nobody else knows, and who has each.

    Those that are recorded: they are not where the table says, or may not be after a change. Those
    that were learned, and that IPVS has forgotten since.
    """
    service = places.services[key]
    if service.line is None:
        return learned_flows(places, key, least=places.maps.timeout_of(service.index))
    servers = {placed.index: address for address, placed in service.servers.items()}
    found = []
    for flow, value in places.maps["records"].items():
        client, client_port, port, index = layout.FLOW.unpack(flow)
        record = tracking.Record.unpack(value)
        unconfirmed = record.state == RecordState.UNCONFIRMED
        server = servers.get(record.previous if unconfirmed else record.server)
        if index != service.index or server is None or record.server == layout.FALLBACK:
            continue  # FALLBACK: IPVS has it since its SYN
        found.append(
            KnownFlow(
                layout.unpack_address(client, key.version),
                int.from_bytes(client_port, "big"),
                int.from_bytes(port, "big"),
                server,
                closing=record.state == RecordState.CLOSING,
            )
        )
    return found


def learned_flows(places: Places, key: Key, *, least: int = 0) -> list[KnownFlow]:
    """The open connections of a service that were learned, and who has each.

    Args:
        places: of the maps.
        key: of the service.
        least: ticks since IPVS last saw one.
    """
    service, now = places.services[key], tick()
    servers = {placed.index: address for address, placed in service.servers.items()}
    found = []
    for name in ("flows4", "flows"):
        for flow, value in places.maps[name].items():
            server, state, seen = layout.LEARNED.unpack(value)
            if name == "flows4":
                client, client_port, index = layout.FLOW4.unpack(flow)
                port = service.traffic.ports.single or 0
            else:
                client, client_port, packed, index = layout.FLOW.unpack(flow)
                port = int.from_bytes(packed, "big")
            age = now - seen & 0xFFFFFFFF
            if index != service.index or server not in servers or age < least or age >> 31:
                continue
            if state != layout.LearnedState.OPEN:
                continue
            address = layout.unpack_address(client, key.version)
            client_port = int.from_bytes(client_port, "big")
            found.append(KnownFlow(address, client_port, port, servers[server]))
    return found


def record(
    places: Places, service: PlacedService, flows: Sequence[KnownFlow], *, mh_port: bool
) -> None:
    """Record the connections that are not where a table says which nobody reads yet.

    Args:
        places: of the maps.
        service: with its table and real servers.
        flows: as IPVS has them.
        mh_port: the client's port counts.

    Raises:
        KernelError: there is no room for them.
    """
    if service.line is None:
        return
    maps, now = places.maps, tick()
    first, size = service.line * layout.SLOTS_IN_LINE, table_size(maps.capacity.index)
    records = {}
    for known in flows:
        placed = service.servers.get(known.server)
        if placed is None:
            continue
        flow = layout.flow_of(known.client, known.client_port, known.port, service.index)
        place = first + tracking.flow_slot(flow, size, mh_port=mh_port)
        if maps.slots[place] & tracking.CURRENT == placed.index:
            continue
        state = RecordState.CLOSING if known.closing else RecordState.ADOPTED
        records[flow] = tracking.Record(placed.index, placed.index, 0, now, state).pack()
        maps.slots[place] |= layout.TRACKED
    if records:
        maps["records"].update_many(records)
        service.flipped = now
        log.info("fast path: recorded %d connections of IPVS", len(records))


def sweep(places: Places) -> None:
    """Delete what is over, and free the places that nothing names any more.

    Records of connections that ended, or whose server is gone; flows of services and servers that
    are gone. Slots are tracked no longer once every connection of theirs is where the table says,
    or after the settle time.
    """
    tracked = any(service.flipped is not None for service in places.services.values())
    if not tracked and not places.dying and not places.retired:
        return
    table = places.maps["records"]
    records: dict[int, list[tuple[bytes, bytes]]] = {}
    for flow, value in table.items():
        records.setdefault(tracking.service_of(flow), []).append((flow, value))
    named: set[int] = set()
    for service in places.services.values():
        found = records.pop(service.index, [])
        if service.line is not None and (found or service.flipped is not None):
            if service.due is None:  # else it would not anticipate any more
                _sweep_service(places, service, service.line, found)
            for word in places.slots(service.line):
                named |= {word >> layout.OLD_SHIFT, word & tracking.CURRENT}
    for orphans in records.values():  # of services that are gone
        table.delete_many([flow for flow, _ in orphans])
    for entry in table.items():
        left = tracking.Record.unpack(entry[1])
        named |= {left.server, left.previous}
    _sweep_flows(places, "flows4", layout.FLOW4)
    _sweep_flows(places, "flows", layout.FLOW)
    places.free(named)


def _sweep_service(
    places: Places,
    service: PlacedService,
    line: int,
    records: list[tuple[bytes, bytes]],
) -> None:
    maps, now, slots = places.maps, tick(), places.slots(line)
    udp = service.traffic.protocol is Protocol.UDP
    idle = tracking.UDP_IDLE if udp else tracking.SETTLE
    mh_port = bool(maps.services[service.word] >> 32 & ServiceFlag.MH_PORT)
    swept = tracking.sweep(
        records,
        slots,
        lambda flow: tracking.flow_slot(flow, len(slots), mh_port=mh_port),
        service.alive,
        now,
        idle=idle,
    )
    _carry_out(maps["records"], swept, dict(records))
    _prolong(places, service, udp=udp)
    age = since(service.flipped)
    is_over = places.is_udp_over(service) if udp else age >= idle
    if service.leaving:
        service.left = service.left or is_over
    elif is_over:
        settled = tracking.settle(slots)
        if not udp:
            service.flipped, service.settling = now, False
        if settled != slots or not udp:
            # released in a later pass: a record that came since they were read is not among these
            maps.write_table(line, settled)
            return
    words = tracking.release(slots, swept.elsewhere)
    maps.write_table(line, words)
    service.settling = not udp and age >= tracking.SETTLE - tracking.SETTLING
    if not any(word & layout.TRACKED for word in words):
        service.flipped, service.settling = None, False


def _prolong(places: Places, service: PlacedService, *, udp: bool) -> None:
    """A flow whose record could not be written is its old server's yet, and is seen again."""
    if not places.count_refused(service):
        return
    if udp:
        if not places.is_udp_over(service):
            places.prolong_udp(service, tracking.UDP_IDLE)
    elif service.settling:
        service.flipped = tick() - (tracking.SETTLE - tracking.SETTLING) & 0xFFFFFFFF


def _carry_out(table: Map, swept: tracking.Swept, was: Mapping[bytes, bytes]) -> None:
    """Delete and change records, but for those that a packet changed since they were read.

    Args:
        table: of the records.
        swept: what is to be done.
        was: the records, as they were read.
    """
    for flow in swept.delete:
        if table.lookup(flow) != was[flow]:
            continue
        taken = table.take(flow)
        if taken is not None and taken != was[flow]:
            _put_back(table, flow, taken)
    for flow, value in swept.change.items():
        if table.lookup(flow) == was[flow]:
            table.update(flow, value, Update.EXIST)


def _put_back(table: Map, flow: bytes, value: bytes) -> None:
    try:
        table.update(flow, value, Update.NOEXIST)
    except KernelError as error:  # a newer one is there, or others took its room
        log.debug("fast path: %s", error)


def _sweep_flows(places: Places, name: str, key_layout: Struct) -> None:
    """Forget the flows of services and servers that are gone."""
    flows = places.maps[name]
    gone = [
        key
        for key, value in flows.items()
        if key_layout.unpack(key)[-1] in places.retired
        or layout.LEARNED.unpack(value)[0] in places.dying
    ]
    flows.delete_many(gone)
