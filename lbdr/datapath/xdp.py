"""The fast path of one director: its programs' maps, kept as services are wanted."""

from __future__ import annotations

import logging
import operator
import time
from array import array
from collections.abc import Container, Sequence

from lbdr import tracking
from lbdr.datapath import xdp_counts
from lbdr.datapath import xdp_layout as layout
from lbdr.datapath.xdp_keys import Owned, delete_keys, write_keys
from lbdr.datapath.xdp_layout import FastServer, FastService, Place, ServiceFlag
from lbdr.datapath.xdp_places import PlacedService, Places, tick
from lbdr.datapath.xdp_programs import DirectorPrograms
from lbdr.datapath.xdp_records import known_flows, learned_flows, record, sweep
from lbdr.datapath.xdp_wanted import KnownFlow, WantedServer, WantedService
from lbdr.errors import LbdrError
from lbdr.maglev import MaglevServer, MaglevTable
from lbdr.model import Address, Key, MarkKey, Protocol, Traffic

log = logging.getLogger(__name__)

_NO_PLACE = Place(0, "00:00:00:00:00:00")
_DECIDES = ServiceFlag.LEARNED | ServiceFlag.MH_PORT  # how a server is found
_GONE = FastServer(_NO_PLACE, None, alive=False)


class FastPath:
    """The maps of the programs, kept as services are wanted.

    Args:
        programs: open; what is in their maps is read back.
    """

    def __init__(self, programs: DirectorPrograms) -> None:
        self.programs = programs
        self.maps = programs.maps
        self._places = Places(self.maps)
        self._services = self._places.services
        self.sweep()

    @property
    def keys(self) -> frozenset[Key]:
        """The services that the programs have, those that are only marked among them."""
        return frozenset(self._services)

    def index_of(self, key: Key) -> int:
        """The place of a service that the programs have."""
        return self._services[key].index

    @property
    def forwarded(self) -> frozenset[Key]:
        """The services that the programs forward."""
        return frozenset(key for key, one in self._services.items() if not one.marked_only)

    def traffic(self, key: Key) -> Traffic:
        """The packets of a service."""
        return self._services[key].traffic

    @property
    def due(self) -> float | None:
        """When the next table is to change, by the monotonic clock; None for none."""
        times = [service.due for service in self._services.values() if service.due is not None]
        return min(times, default=None)

    def served(self, key: Key) -> dict[Address, tuple[int, int]]:
        """Packets and bytes that each real server of a service got."""
        placed = self._services[key].servers
        return {address: xdp_counts.served(self.maps, one.index) for address, one in placed.items()}

    def reasons(self, key: Key | None, *, tc: bool) -> dict[layout.Reason, int]:
        """Packets of a service that were not forwarded; of none yet for None.

        Args:
            key: of the service.
            tc: counted at tc ingress, which sees what XDP passed up, instead of in XDP.
        """
        index = 0 if key is None else self._services[key].index
        return xdp_counts.reasons(self.maps, index, tc=tc)

    def has_table(self, key: Key) -> bool:
        """Whether a table decides for a service, and not IPVS."""
        return self._services[key].line is not None

    def known_flows(self, key: Key) -> list[KnownFlow]:
        """The connections of a service that are recorded, and who has each."""
        return known_flows(self._places, key)

    def unknown_slots(self, key: Key) -> int:
        """Slots of an mh service whose old connections go elsewhere than new ones, unrecorded."""
        line = self._services[key].line
        if line is None:
            return 0
        return sum(
            word & tracking.CURRENT != word >> layout.OLD_SHIFT for word in self._places.slots(line)
        )

    def is_other(self, key: Key, wanted: WantedService) -> bool:
        """Whether a service is to be decided otherwise than until now, and can be.

        It is to be put anew then. One that has a table has it until its connections are known: IPVS
        has new ones meanwhile.

        Args:
            key: of the service.
            wanted: as it is to be.
        """
        service = self._services[key]
        if service.line is None:
            return ServiceFlag.LEARNED not in wanted.flags
        return service.leaving and service.left

    def learned(self, key: Key) -> list[KnownFlow]:
        """The open connections of a service that were learned from IPVS."""
        return learned_flows(self._places, key)

    def settle(self, key: Key) -> None:
        """Have what falls to old servers recorded from now on, until the service is put again."""
        self.maps.services[self._services[key].word] |= ServiceFlag.SETTLING << 32

    def sweep(self) -> None:
        """Delete records and flows that are over; takes long where there are many of them."""
        sweep(self._places)

    # --- changing --------------------------------------------------------------------------------

    def put(
        self,
        key: Key,
        wanted: WantedService,
        held: Sequence[KnownFlow] = (),
        *,
        anew: bool = False,
    ) -> None:
        """Have the programs treat a service as wanted; connections stay where they are.

        New servers come first, then the table that has them, and who is gone goes last: at every
        moment a packet finds a server that is there.

        Args:
            key: of the service.
            wanted: as it is to be.
            held: connections that IPVS has, where the service is new here: those that are not on
                their slot's server are recorded before the first packet comes.
            anew: it is decided otherwise than until now.

        Raises:
            KernelError: the maps are full; a service that is new here is not there then.
        """
        there = self._services.get(key)
        if there is not None and not anew and there.marked_only == wanted.marked_only:
            self._write(key, there, wanted)
            self._lead(there, wanted.traffic)
            return
        # at another place, to which the keys are led one by one: no packet finds none
        service = self._places.new_service(wanted.traffic)
        service.marked_only = wanted.marked_only
        try:
            self._write(key, service, wanted, held)
            self._services[key] = service
            self._write_vips()
            write_keys(
                self.maps,
                service.index,
                wanted.traffic,
                there.traffic if there is not None else None,
                self._owned(),
            )
        except LbdrError:
            self._services.pop(key, None)
            delete_keys(self.maps, service.index, wanted.traffic, self._owned())
            self._forget(service)
            if there is not None:
                self._services[key] = there
                write_keys(self.maps, there.index, there.traffic, None, self._owned())
            raise
        if there is not None:
            self._forget(there)

    def rename(self, key: Key, other: Key) -> None:
        """Have a service with a table go on as another one, which is put next.

        Its connections stay: to them it is a change of the table like others.
        """
        service = self._services.pop(key)
        service.made_of = ()
        self._services[other] = service

    def drop(self, key: Key) -> None:
        """Take a service out: its packets are IPVS's from now on."""
        service = self._services.pop(key)
        delete_keys(self.maps, service.index, service.traffic, self._owned())
        self._forget(service)
        self._write_vips()

    def _lead(self, service: PlacedService, traffic: Traffic) -> None:
        """Have other packets lead to a service."""
        if service.traffic == traffic:
            return
        before, service.traffic = service.traffic, traffic
        self._write_vips()
        write_keys(self.maps, service.index, traffic, before, self._owned())

    def _owned(self) -> list[Owned]:
        return [(service.traffic, service.index) for service in self._services.values()]

    def _forget(self, service: PlacedService) -> None:
        """Nothing names a service any more but records and flows: its places wait for a sweep."""
        nothing = FastService(_NO_PLACE, ServiceFlag(0))
        self.maps.write_service(service.index, nothing.pack())
        self._places.leave(service.line)
        self._places.retired.add(service.index)
        for address in list(service.servers):
            self._bury(service, address)

    def _write(
        self,
        key: Key,
        service: PlacedService,
        wanted: WantedService,
        held: Sequence[KnownFlow] = (),
    ) -> None:
        for server in wanted.real_servers:
            self._put_server(service, server, wanted.vip)
        before, flags = service.line, wanted.flags
        there = ServiceFlag(self.maps.services[service.word] >> 32)
        service.leaving = before is not None and bool((there ^ flags) & _DECIDES)
        if ServiceFlag.ALONE in flags:  # nobody would have what the table left
            service.leaving = False
        service.left = service.left and service.leaving
        if service.leaving:
            flags = flags & ~_DECIDES | there & _DECIDES
            self._leave_table(key, service, wanted.real_servers)
        elif ServiceFlag.LEARNED not in flags:
            self._put_table(key, service, wanted.real_servers)
        if held:
            record(self._places, service, held, mh_port=ServiceFlag.MH_PORT in flags)
        udp_until = self._places.udp_until(service)
        if before is not None and before != service.line:
            udp_until = tick() + tracking.UDP_IDLE
        value = FastService(
            wanted.vip,
            flags | (ServiceFlag.SETTLING if service.settling else ServiceFlag(0)),
            service.line or 0,
            udp_until & 0xFFFFFFFF,
            mark=wanted.mark,
            timeout=wanted.timeout,
        )
        self.maps.write_service(service.index, value.pack())
        for address in service.servers.keys() - {server.address for server in wanted.real_servers}:
            self._bury(service, address)

    def _put_server(self, service: PlacedService, server: WantedServer, vip: Place) -> None:
        placed = service.servers.get(server.address)
        if placed is None:
            placed = service.servers[server.address] = self._places.new_server()
        placed.last_weight = server.weight or placed.last_weight
        key = layout.placed_key(service.index, server.address)
        self.maps["places"].update(key, layout.PLACED.pack(placed.index, placed.last_weight))
        self.maps.write_server(placed.index, server.reach.pack(vip))
        if server.reach.mac is not None:
            mac = layout.SERVER_KEY.pack(service.index, layout.mac_bytes(server.reach.mac))
            self.maps["macs"].update(mac, layout.U32.pack(placed.index))

    def _bury(self, service: PlacedService, address: Address) -> None:
        """A server is gone: no packet goes there; its place is free once nothing names it."""
        placed = service.servers.pop(address)
        self.maps.write_server(placed.index, _GONE.pack(_NO_PLACE))
        self.maps["places"].delete(layout.placed_key(service.index, address))
        macs, place = self.maps["macs"], layout.U32.pack(placed.index)
        for key in [key for key, value in macs.items() if value == place]:
            macs.delete(key)
        self._places.dying.add(placed.index)

    # --- tables ----------------------------------------------------------------------------------

    def _put_table(self, key: Key, service: PlacedService, servers: Sequence[WantedServer]) -> None:
        made_of = tuple(
            (server.address, service.servers[server.address].last_weight, server.weight > 0)
            for server in servers
        )
        if service.line is not None and made_of == service.made_of:
            return
        owners = self._owners(key, service, servers)
        drained = {service.servers[server.address].index for server in servers if not server.weight}
        if len(drained) == len(servers):  # nobody is to be looked for in their stead
            owners, drained = [layout.EMPTY] * len(owners), set()
        if service.line is None:
            first = tracking.flip(tracking.no_slots(len(owners)), owners, (), drained)
            self._use(service, first, made_of)
            return
        before = self._places.slots(service.line)
        current = (layout.FALLBACK if owner in drained else owner for owner in owners)
        if all(map(operator.eq, (word & tracking.CURRENT for word in before), current)):
            service.made_of, service.due = made_of, None
            return
        alive = {service.servers[server.address].index for server in servers}
        if service.traffic.protocol is Protocol.UDP and self._places.is_udp_over(service):
            before = tracking.settle(before)  # flows since then are the current server's
        if not self._is_due(service, before, alive):
            self.maps.write_table(service.line, tracking.anticipate(before, owners, drained))
            return
        self._use(service, tracking.flip(before, owners, alive, drained), made_of)
        service.flipped, service.due = tick(), None
        log.info("fast path: the table of %s changed", key)

    def _leave_table(
        self, key: Key, service: PlacedService, servers: Sequence[WantedServer]
    ) -> None:
        """IPVS decides otherwise than the table by now: new connections are all its own."""
        if service.line is None:
            return
        before = self._places.slots(service.line)
        alive = {service.servers[server.address].index for server in servers}
        words = tracking.leave(before, alive)
        if words == before:
            service.due = None
            return
        begins = any(word & tracking.CURRENT != layout.FALLBACK for word in before)
        if begins and not self._is_due(service, before, alive):
            nobody = [layout.EMPTY] * len(before)
            self.maps.write_table(service.line, tracking.anticipate(before, nobody))
            return
        self._use(service, words, ())
        service.due = None
        if begins:
            service.flipped, service.settling = tick(), False
            log.info("fast path: new connections of %s are IPVS's until those are known", key)

    def _use(
        self,
        service: PlacedService,
        words: array[int],
        made_of: tuple[tuple[Address, int, bool], ...],
    ) -> None:
        """Write a table; the service's decision, which is written later, names it."""
        line = self._places.new_line()
        self.maps.write_table(line, words)
        self._places.leave(service.line)
        service.line, service.made_of = line, made_of

    @staticmethod
    def _is_due(service: PlacedService, before: Sequence[int], alive: Container[int]) -> bool:
        """Whether a table may change now.

        At once where a server is gone. Else a SYN that is sent again after the change is to find
        its record: those of the last seconds before it are recorded.
        """
        named = {word & tracking.CURRENT for word in before}
        named |= {word >> layout.OLD_SHIFT for word in before}
        if any(server not in alive for server in named - {layout.FALLBACK, layout.EMPTY}):
            return True
        now = time.monotonic()
        if service.due is None:
            service.due = now + tracking.ANTICIPATION
        return now >= service.due

    def _owners(
        self, key: Key, service: PlacedService, servers: Sequence[WantedServer]
    ) -> list[int]:
        """The server of each slot in IPVS's table, by its place, drained ones too."""
        placed = [service.servers[server.address] for server in servers]
        port = 0 if isinstance(key, MarkKey) else key.port
        table = MaglevTable(
            [
                MaglevServer(server.address, port, one.last_weight)
                for server, one in zip(servers, placed, strict=True)
            ],
            self.maps.capacity.index,
        )
        owner = [*(one.index for one in placed), layout.EMPTY]  # the last one of a slot's -1
        return [owner[place] for place in table.slots]

    def _write_vips(self) -> None:
        self.maps.write_vips({one.traffic.address for one in self._services.values()})
