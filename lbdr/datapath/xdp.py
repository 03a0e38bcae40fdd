"""The fast path of one director: which services and servers the programs have, and where.

What is in the pinned maps is the state: places of services, servers and tables are read back from
them, so that the next process goes on where this one ended.
"""

from __future__ import annotations

import logging
import operator
import time
from array import array
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from struct import Struct

from lbdr import tracking
from lbdr.datapath import xdp_layout as layout
from lbdr.datapath.bpf_maps import Map
from lbdr.datapath.xdp_layout import FastServer, FastService, Place, ServiceFlag
from lbdr.datapath.xdp_programs import DirectorPrograms
from lbdr.errors import KernelError
from lbdr.maglev import MaglevServer, MaglevTable, table_size
from lbdr.model import Address, Protocol, ServiceKey

log = logging.getLogger(__name__)

_UDP_TICKS = 280  # 300 s: how long a UDP flow without a record is taken for an old one
_COOLING = 2  # ticks for which a former table is not written to
_MORE = "what is above its capacity runs on IPVS"
_NO_PLACE = Place(0, "00:00:00:00:00:00")
_GONE = FastServer(_NO_PLACE, None, alive=False)


@dataclass(frozen=True, slots=True)
class Member:
    """A real server of a service of the fast path.

    Args:
        address: its RIP.
        weight: as IPVS has it now.
        reach: how frames get there.
    """

    address: Address
    weight: int
    reach: FastServer


@dataclass(frozen=True, slots=True)
class WantedService:
    """A service as the fast path is to have it.

    Args:
        vip: where its frames come in.
        flags: ServiceFlag; LEARNED for one that IPVS decides.
        members: in the order of IPVS's list.
        timeout: ticks after which IPVS forgets a flow that it does not see.
    """

    vip: Place
    flags: ServiceFlag
    members: tuple[Member, ...]
    timeout: int = 0


@dataclass(frozen=True, slots=True)
class KnownFlow:
    """A connection, and who has it.

    Args:
        client: its address.
        client_port: its port.
        port: of the service.
        server: the RIP.
        closing: it had a FIN or RST.
    """

    client: Address
    client_port: int
    port: int
    server: Address
    closing: bool = False


@dataclass(slots=True)
class _Placed:
    """A real server in the maps."""

    index: int
    last_weight: int


@dataclass(slots=True)
class _Service:
    """A service in the maps.

    Args:
        index: its place.
        members: its real servers.
        line: of its table; None for a learned one.
        made_of: what the table was made of.
        flipped: tick of its last change; None once no slot of it is tracked.
        due: when the table is to change, by the monotonic clock; None where it is as wanted.
        settling: whether the last part of its settle time has begun.
    """

    index: int
    members: dict[Address, _Placed] = field(default_factory=dict)
    line: int | None = None
    made_of: tuple[tuple[Address, int, bool], ...] = ()
    flipped: int | None = None
    due: float | None = None
    settling: bool = False


def tick() -> int:
    """The programs' clock: about a second each."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) >> layout.TICK_SHIFT & 0xFFFFFFFF


class FastPath:
    """The maps of the programs, kept as services are wanted.

    Args:
        programs: open; what is in their maps is read back.
    """

    def __init__(self, programs: DirectorPrograms) -> None:
        self.programs = programs
        self.maps = programs.maps
        self._services: dict[ServiceKey, _Service] = {}
        self._dying: set[int] = set()  # servers' places that records and flows may name
        self._retired: set[int] = set()  # services' places that they may name
        self._unused: list[int] = []  # servers' places that nothing names
        self._cooling: dict[int, int] = {}  # lines of former tables, and when they were left
        self._adopt()

    @property
    def keys(self) -> frozenset[ServiceKey]:
        """The services that the programs have."""
        return frozenset(self._services)

    def places(self, key: ServiceKey) -> dict[Address, int]:
        """The real servers of a service, and their places in `served`."""
        service = self._services.get(key)
        return {rip: placed.index for rip, placed in service.members.items()} if service else {}

    def index(self, key: ServiceKey) -> int | None:
        """The place of a service in `services` and `reasons`."""
        service = self._services.get(key)
        return service.index if service else None

    def served(self, key: ServiceKey) -> dict[Address, tuple[int, int]]:
        """Packets and bytes that each real server of a service got."""
        served = self.maps["served"]
        found: dict[Address, tuple[int, int]] = {}
        for address, index in self.places(key).items():
            packets, octets = served.totals(served.lookup(layout.U32.pack(index)) or b"")
            found[address] = packets, octets
        return found

    def reasons(self, key: ServiceKey | None, *, tc: bool) -> dict[layout.Reason, int]:
        """Packets of a service that were not forwarded; of none yet for None.

        Args:
            key: of the service.
            tc: counted at tc ingress, which sees what XDP passed up, instead of in XDP.
        """
        index = 0 if key is None else self._services[key].index
        first = index * layout.REASONS + tc * layout.REASONS_OF_TC
        counts = self.maps.array("reasons")
        size = counts.value_size
        values = counts.read_range(first, layout.REASONS_OF_TC)
        totals = {
            reason: counts.totals(values[reason * size : (reason + 1) * size])[0]
            for reason in layout.Reason
        }
        return {reason: count for reason, count in totals.items() if count}

    def flows(self, key: ServiceKey) -> list[KnownFlow]:
        """The connections of an mh service that are recorded, and who has each.

        Without IPVS's help nobody else knows them: they are not where the table says, or may not
        be after the next change.
        """
        service = self._services[key]
        servers = {placed.index: address for address, placed in service.members.items()}
        kind = IPv4Address if key.version == 4 else IPv6Address
        found = []
        for flow, value in self.maps["records"].items():
            client, client_port, port, index = layout.FLOW.unpack(flow)
            if index != service.index:
                continue
            record = tracking.Record.unpack(value)
            unconfirmed = record.state == layout.RecordState.UNCONFIRMED
            server = servers.get(record.previous if unconfirmed else record.server)
            if server is not None:
                packed = client[:4] if key.version == 4 else client
                found.append(
                    KnownFlow(
                        kind(packed),
                        int.from_bytes(client_port, "big"),
                        int.from_bytes(port, "big"),
                        server,
                        closing=record.state == layout.RecordState.CLOSING,
                    )
                )
        return found

    def unknown_slots(self, key: ServiceKey) -> int:
        """Slots of an mh service whose old connections go elsewhere than new ones, unrecorded."""
        service = self._services[key]
        if service.line is None:
            return 0
        return sum(
            word & tracking.CURRENT != word >> layout.OLD_SHIFT
            for word in self._slots(service.line)
        )

    def settle(self, key: ServiceKey) -> None:
        """Have what falls to old servers recorded from now on, until the service is put again."""
        decision = _word_of(self._services[key].index)
        self.maps.services[decision] |= ServiceFlag.SETTLING << 32

    # --- changing --------------------------------------------------------------------------------

    def put(self, key: ServiceKey, wanted: WantedService, held: Sequence[KnownFlow] = ()) -> None:
        """Have the programs treat a service as wanted; connections stay where they are.

        New servers come first, then the table that has them, and who is gone goes last: at every
        moment a packet finds a server that is there.

        Args:
            key: of the service.
            wanted: as it is to be.
            held: connections that IPVS has, where the service is new here: those that are not on
                their slot's server are recorded before the first packet comes.

        Raises:
            KernelError: the maps are full.
        """
        service = self._services.get(key) or _Service(self._free_service())
        for member in wanted.members:
            self._put_member(service, member, wanted.vip)
        before = service.line
        if ServiceFlag.LEARNED in wanted.flags:
            service.line, service.made_of = None, ()
        else:
            self._put_table(key, service, wanted.members)
            if key not in self._services:
                self._record(service, wanted, held)
        changed = before is not None and before != service.line
        value = FastService(
            wanted.vip,
            wanted.flags | (ServiceFlag.SETTLING if service.settling else ServiceFlag(0)),
            service.line or 0,
            self._udp_until(service) if not changed else tick() + _UDP_TICKS,
            timeout=wanted.timeout,
        )
        self.maps.write_service(service.index, value.pack())
        there = {member.address for member in wanted.members}
        for address in [address for address in service.members if address not in there]:
            self._bury(service, address)
        if key not in self._services:
            self._services[key] = service
            self._write_vips()
            self._keys(key).update(_service_key(key), layout.U32.pack(service.index))

    def drop(self, key: ServiceKey) -> None:
        """Take a service out: its packets are IPVS's from now on."""
        service = self._services.pop(key)
        if service.line is not None:
            self._cooling[service.line] = tick()
        self._keys(key).delete(_service_key(key))
        self.maps.write_service(service.index, FastService(_NO_PLACE, ServiceFlag(0)).pack())
        for address in list(service.members):
            self._bury(service, address)
        self._write_vips()
        self._retired.add(service.index)

    def _record(self, service: _Service, wanted: WantedService, held: Sequence[KnownFlow]) -> None:
        """Record the connections that are not where the table says, in a table nobody reads yet."""
        if service.line is None or not held:
            return
        first = service.line * layout.SLOTS_IN_LINE
        size = table_size(self.maps.capacity.index)
        mh_port, now = ServiceFlag.MH_PORT in wanted.flags, tick()
        records = {}
        for known in held:
            placed = service.members.get(known.server)
            if placed is None:
                continue
            flow = layout.flow_of(known.client, known.client_port, known.port, service.index)
            place = first + tracking.flow_slot(flow, size, mh_port=mh_port)
            if self.maps.slots[place] & tracking.CURRENT == placed.index:
                continue
            state = layout.RecordState.CLOSING if known.closing else layout.RecordState.CONFIRMED
            records[flow] = tracking.Record(placed.index, placed.index, 0, now, state).pack()
            self.maps.slots[place] |= layout.TRACKED
        self.maps["records"].update_many(records)
        if records:
            service.flipped = now
            log.info("fast path: recorded %d connections of IPVS", len(records))

    def _put_member(self, service: _Service, member: Member, vip: Place) -> None:
        placed = service.members.get(member.address)
        if placed is None:
            placed = service.members[member.address] = _Placed(self._free_server(), 0)
        placed.last_weight = member.weight or placed.last_weight
        key = _member_key(service.index, member.address)
        self.maps["members"].update(key, layout.MEMBER.pack(placed.index, placed.last_weight))
        self.maps.write_server(placed.index, member.reach.pack(vip))
        if member.reach.mac is not None:
            mac = layout.SERVER_KEY.pack(service.index, layout.mac_bytes(member.reach.mac))
            self.maps["macs"].update(mac, layout.U32.pack(placed.index))

    def _bury(self, service: _Service, address: Address) -> None:
        """A server is gone: no packet goes there; its place is free once nothing names it."""
        placed = service.members.pop(address)
        self.maps.write_server(placed.index, _GONE.pack(_NO_PLACE))
        self.maps["members"].delete(_member_key(service.index, address))
        macs, place = self.maps["macs"], layout.U32.pack(placed.index)
        for key in [key for key, value in macs.items() if value == place]:
            macs.delete(key)
        self._dying.add(placed.index)

    def _put_table(self, key: ServiceKey, service: _Service, members: Sequence[Member]) -> None:
        made_of = tuple(
            (member.address, service.members[member.address].last_weight, member.weight > 0)
            for member in members
        )
        if service.line is not None and made_of == service.made_of:
            return
        owners = self._owners(key, service, members)
        drained = {service.members[member.address].index for member in members if not member.weight}
        if service.line is None:
            size = table_size(self.maps.capacity.index)
            alive: Container[int] = ()
            before = tracking.no_slots(size)
        else:
            before = self._slots(service.line)
            current = (layout.FALLBACK if owner in drained else owner for owner in owners)
            if all(map(operator.eq, (word & tracking.CURRENT for word in before), current)):
                service.made_of, service.due = made_of, None
                return
            alive = {service.members[member.address].index for member in members}
            if key.protocol is Protocol.UDP and _since(service.flipped) >= tracking.UDP_IDLE:
                before = tracking.settle(before)  # flows since then are the current server's
            if not self._is_due(service, before, owners, alive, drained):
                return
            service.flipped = tick()
        words = tracking.flip(before, owners, alive, drained)
        line = self._free_line()
        self.maps.write_table(line, words)
        if service.line is not None:
            self._cooling[service.line] = tick()
            log.info("fast path: the table of %s changed", key)
        service.line, service.made_of = line, made_of

    def _is_due(
        self,
        service: _Service,
        before: Sequence[int],
        owners: Sequence[int],
        alive: Container[int],
        drained: Container[int],
    ) -> bool:
        """Whether a table may change now.

        At once where a server is gone. Else a SYN that is sent again after the change is to find
        its record: those of the last seconds before it are recorded.
        """
        now = time.monotonic()
        mine = {word & tracking.CURRENT for word in before}
        mine |= {word >> layout.OLD_SHIFT for word in before}
        mine -= {layout.FALLBACK, layout.EMPTY}
        if all(server in alive for server in mine):
            if service.due is None:
                service.due = now + tracking.ANTICIPATION
            if now < service.due:
                words = tracking.anticipate(before, owners, drained)
                self.maps.write_table(service.line or 0, words)
                return False
        service.due = None
        return True

    @property
    def due(self) -> float | None:
        """When the next table is to change, by the monotonic clock; None for none."""
        times = [service.due for service in self._services.values() if service.due is not None]
        return min(times, default=None)

    def _owners(self, key: ServiceKey, service: _Service, members: Sequence[Member]) -> list[int]:
        """The server of each slot in IPVS's table, by its place, drained ones too."""
        places = [service.members[member.address] for member in members]
        table = MaglevTable(
            [
                MaglevServer(member.address, key.port, placed.last_weight)
                for member, placed in zip(members, places, strict=True)
            ],
            self.maps.capacity.index,
        )
        owner = [placed.index for placed in places]
        owner.append(layout.EMPTY)  # of a slot's -1
        return [owner[place] for place in table.slots]

    # --- places ----------------------------------------------------------------------------------

    def _adopt(self) -> None:
        maps = self.maps
        for version, kind, key_layout in (
            (4, IPv4Address, layout.KEY4),
            (6, IPv6Address, layout.KEY6),
        ):
            for key, value in maps[f"services{version}"].items():
                address, port, protocol = key_layout.unpack(key)
                (index,) = layout.U32.unpack(value)
                identity = ServiceKey(
                    Protocol.from_number(protocol), kind(address), int.from_bytes(port, "big")
                )
                self._services[identity] = _Service(index)
        by_index = {service.index: service for service in self._services.values()}
        used = set()
        for key, value in maps["members"].items():
            index, version, packed = layout.MEMBER_KEY.unpack(key)
            address = IPv4Address(packed[:4]) if version == 4 else IPv6Address(packed)
            if index in by_index:
                by_index[index].members[address] = _Placed(*layout.MEMBER.unpack(value))
                used.add(layout.MEMBER.unpack(value)[0])
            else:
                maps["members"].delete(key)
        for service in by_index.values():
            decision = self.maps.services[_word_of(service.index)]
            if not decision >> 32 & ServiceFlag.LEARNED:
                service.line = (decision & 0xFFFFFFFF) // layout.SLOTS_IN_LINE
                if any(word & layout.TRACKED for word in self._slots(service.line)):
                    service.flipped = tick()  # how long ago is not known
        # what a process that was killed left half done is not known: nothing of it is used again
        # before records and flows were looked through
        self._retired = {
            index for index in range(1, maps.capacity.services) if index not in by_index
        }
        self._dying = set(range(self._most_servers)) - used
        self.sweep()

    @property
    def _most_servers(self) -> int:
        return min(self.maps.capacity.servers, layout.MOST_SERVERS)

    def _free_service(self) -> int:
        used = {service.index for service in self._services.values()} | self._retired
        for index in range(1, self.maps.capacity.services):
            if index not in used:
                return index
        raise KernelError("the fast path has no room for more services", hint=_MORE)

    def _free_server(self) -> int:
        if not self._unused:
            raise KernelError("the fast path has no room for more real servers", hint=_MORE)
        return self._unused.pop()

    def _free_line(self) -> int:
        used = {service.line for service in self._services.values()}
        used |= {line for line, since in self._cooling.items() if tick() - since < _COOLING}
        lines = self.maps.capacity.lines
        for table in range(self.maps.capacity.tables):
            if table * lines not in used:
                return table * lines
        raise KernelError("the fast path has no room for more tables", hint=_MORE)

    # --- records and flows -----------------------------------------------------------------------

    def sweep(self) -> None:
        """Delete what is over, and free the places that nothing names any more.

        Records of connections that ended, or whose server is gone; flows of services and servers
        that are gone. Slots are tracked no longer once every connection of theirs is where the
        table says, or after the settle time.
        """
        tracked = [service for service in self._services.values() if service.flipped is not None]
        if not tracked and not self._dying and not self._retired:
            return
        records: dict[int, list[tuple[bytes, bytes]]] = {}
        for flow, value in self.maps["records"].items():
            records.setdefault(tracking.service_of(flow), []).append((flow, value))
        named: set[int] = set()
        for key, service in self._services.items():
            found = records.pop(service.index, [])
            if service.line is not None and (found or service.flipped is not None):
                if service.due is None:  # else it would not anticipate any more
                    self._sweep_service(key, service, service.line, found)
                for word in self._slots(service.line):
                    named |= {word >> layout.OLD_SHIFT, word & tracking.CURRENT}
        for orphans in records.values():  # of services that are gone
            self.maps["records"].delete_many([flow for flow, _ in orphans])
        for entry in self.maps["records"].items():
            record = tracking.Record.unpack(entry[1])
            named |= {record.server, record.previous}
        self._sweep_flows("flows4", layout.FLOW4)
        self._sweep_flows("flows", layout.FLOW)
        free = self._dying - named
        self._dying -= free
        self._unused += sorted(free, reverse=True)
        self._retired.clear()

    def _sweep_service(
        self, key: ServiceKey, service: _Service, line: int, records: list[tuple[bytes, bytes]]
    ) -> None:
        now, slots = tick(), self._slots(line)
        udp = key.protocol is Protocol.UDP
        idle = tracking.UDP_IDLE if udp else tracking.SETTLE
        decision = self.maps.services[_word_of(service.index)] >> 32
        alive = {placed.index for placed in service.members.values()}
        size, mh_port = len(slots), bool(decision & ServiceFlag.MH_PORT)
        swept = tracking.sweep(
            records,
            slots,
            lambda flow: tracking.flow_slot(flow, size, mh_port=mh_port),
            alive,
            now,
            idle=idle,
        )
        self.maps["records"].delete_many(swept.delete)
        for flow, value in swept.change.items():
            self.maps["records"].update(flow, value)
        age = _since(service.flipped)
        if age >= idle:
            # released in a later pass: a record that came since they were read is not among these
            self.maps.write_table(line, tracking.settle(slots))
            service.flipped, service.settling = now, False
            return
        words = tracking.release(slots, swept.elsewhere)
        self.maps.write_table(line, words)
        service.settling = not udp and age >= tracking.SETTLE - tracking.SETTLING
        if not any(word & layout.TRACKED for word in words):
            service.flipped, service.settling = None, False

    def _sweep_flows(self, name: str, key_layout: Struct) -> None:
        """Forget the flows of services and servers that are gone."""
        flows = self.maps[name]
        gone = [
            key
            for key, value in flows.items()
            if key_layout.unpack(key)[-1] in self._retired
            or layout.LEARNED.unpack(value)[0] in self._dying
        ]
        flows.delete_many(gone)

    def _slots(self, line: int) -> array[int]:
        first = line * layout.SLOTS_IN_LINE
        return array("I", self.maps.slots[first : first + table_size(self.maps.capacity.index)])

    def _udp_until(self, service: _Service) -> int:
        words = self.maps.services[_word_of(service.index) + 1]
        return words >> 32

    def _write_vips(self) -> None:
        self.maps.write_vips({key.address for key in self._services})

    def _keys(self, key: ServiceKey) -> Map:
        return self.maps[f"services{key.version}"]


def _since(then: int | None) -> int:
    """Ticks since then; 0 for never."""
    return 0 if then is None else tick() - then & 0xFFFFFFFF


def _service_key(key: ServiceKey) -> bytes:
    return layout.key_of(key.address, key.port, key.protocol.number)


def _member_key(service: int, address: Address) -> bytes:
    return layout.MEMBER_KEY.pack(service, address.version, address.packed)


def _word_of(index: int) -> int:
    """The first word of a service in shared memory: its decision."""
    return index * (layout.SERVICE.size // 8)
