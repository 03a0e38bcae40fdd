"""The control plane of the tracking histories: one mh service, by lbdr/tracking.py."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import ip_address

from lbdr import tracking
from lbdr.datapath import xdp_layout as layout
from lbdr.datapath.xdp_layout import FastService, Reason, ServiceFlag
from lbdr.maglev import MaglevServer, MaglevTable, table_size
from lbdr.model import Protocol
from lbdr.tracking import Record
from tests.fastpath import VIP_PLACE, World, tick
from tests.tracking_frames import PORT, VIPS

INDEX = 8
SIZE = table_size(INDEX)
CAPACITY = layout.Capacity(index=INDEX, services=4, servers=64, tables=2, records=128, flows=64)
SERVICE = 1
SERVERS = 6
SERVER_MAC = bytes.fromhex("0200000002")
"""The first bytes of a server's; the last one is its place."""

_U32 = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Setting:
    """What a history is about.

    Args:
        version: of IP.
        protocol: of the service.
        mh_port: the client's port counts.
        maglev: tables are mh's own; else any other owner is as likely, and changes hit more slots.
        naive: no slot is tracked, which is what the model must notice.
    """

    version: int = 4
    protocol: Protocol = Protocol.TCP
    mh_port: bool = False
    maglev: bool = True
    naive: bool = False

    @property
    def is_tcp(self) -> bool:
        return self.protocol is Protocol.TCP


class ControlPlane:
    """The servers of a service, and what changes of them make of its table.

    Args:
        world: programs and maps.
        setting: of the history.
        chance: of tables that are not mh's own.
    """

    def __init__(self, world: World, setting: Setting, chance: random.Random) -> None:
        self.world = world
        self.setting = setting
        self.skipped = 0
        self.alive: set[int] = set()
        self.weights: dict[int, int] = {}
        self.drained: set[int] = set()
        self.slots = tracking.no_slots(SIZE)
        self.settling_since: int | None = None
        self.delivered = 0  # frames
        self.settling_from = 0  # what was delivered when that began
        self._chance = chance
        self._ranks = list(range(SERVERS))
        self._line = 0
        self._udp_until = tick()
        self._flipped = self.now
        self._refused = self.refusals()
        self._planned: Callable[[], None] | None = None
        self._coming: list[int] | None = None
        records = world.maps["records"]
        records.delete_many(records.keys())
        guard = world.maps["guard"]
        guard.update(layout.U32.pack(0), bytes(guard.value_size))
        world.service(SERVICE, VIPS[setting.version], PORT, setting.protocol)
        self._flags = ServiceFlag.ACTIVE
        if setting.mh_port:
            self._flags |= ServiceFlag.MH_PORT
        for server in range(SERVERS):
            self._write_server(server)
        for server in range(SERVERS - 2):
            self.weights[server] = 1
            self.alive.add(server)
            self._write_server(server)
        self._flip()

    @property
    def now(self) -> int:
        """Ticks, with those that were skipped."""
        return tick() + self.skipped

    @property
    def is_planned(self) -> bool:
        """A change is anticipated."""
        return self._planned is not None

    # --- changes ---------------------------------------------------------------------------------

    def plan(self, kind: str, which: int) -> None:
        """Anticipate a change of one of the servers: the SYNs before it are recorded."""
        self.carry_out()
        change, of = {
            "add": (self._add, set(range(SERVERS)) - self.weights.keys()),
            "drain": (self._drain, self.weights.keys() - self.drained),
            "restore": (self._restore, self.drained),
            "reweight": (self._reweight, self.weights.keys()),
            "remove": (self._remove, self.weights.keys()),
        }[kind]
        if not of:
            return
        server = sorted(of)[which % len(of)]
        before = self.weights.copy(), self.drained.copy(), self._ranks.copy()
        change(server)
        owners = self._owners()
        coming = self.weights, self.drained, self._ranks
        self.weights, self.drained, self._ranks = before
        if not self.setting.naive:
            self.slots = tracking.anticipate(self.slots, owners, coming[1])
            self._write()

        def carry_out() -> None:
            self.weights, self.drained, self._ranks = coming
            self._become_alive(set(self.weights))
            self._coming = owners

        self._planned = carry_out

    def carry_out(self) -> set[int]:
        """Do what is planned; the servers that are gone."""
        if self._planned is None:
            return set()
        self._planned()
        self._planned = None
        return self._flip()

    def fail(self, server: int, between: Callable[[], None]) -> set[int]:
        """A server dies; what was planned is no more. The servers that are gone."""
        self._planned = None
        if server not in self.weights or len(self.weights) == 1:
            return set()
        self._remove(server)
        return self._flip(between)

    def _add(self, server: int) -> None:
        self.weights[server] = 1

    def _drain(self, server: int) -> None:
        self.drained.add(server)

    def _restore(self, server: int) -> None:
        self.drained.discard(server)

    def _reweight(self, server: int) -> None:
        self.weights[server] = self.weights[server] % 3 + 1
        self._chance.shuffle(self._ranks)

    def _remove(self, server: int) -> None:
        if len(self.weights) > 1:
            del self.weights[server]
            self.drained.discard(server)

    # --- time ------------------------------------------------------------------------------------

    def skip(self, ticks: int) -> bool:
        """Let time pass; whether the old servers' connections without a record are given up."""
        self._look()
        self.skipped += ticks
        records = self.world.maps["records"]
        older = {}
        for flow, value in records.items():
            record = Record.unpack(value)
            older[flow] = record._replace(tick=record.tick - ticks & _U32).pack()
        records.update_many(older)
        self._udp_until -= ticks
        self._write()
        return self._look()

    def _look(self) -> bool:
        """See whether it is time to settle, or whether that has to wait for records."""
        refused, before = self.refusals(), self._refused
        self._refused = refused
        if not self.setting.is_tcp:
            if self._udp_until <= tick():  # new flows are the current server's already
                self._settled()
                return True
            if refused != before:
                self._udp_until = tick() + tracking.UDP_IDLE
                self._write()
        elif self.settling_since is None:
            if self.now - self._flipped >= tracking.SETTLE - tracking.SETTLING:
                self._begin_settling()
        elif refused != before:
            self._begin_settling()
        elif self.now - self.settling_since >= tracking.SETTLING:
            self._settled()
            return True
        return False

    def _begin_settling(self) -> None:
        self.settling_since = self.now
        self.settling_from = self.delivered
        self._write()

    def _settled(self) -> None:
        self.slots = tracking.settle(self.slots)
        self.settling_since = None
        self._flipped = self.now
        self._write()

    def refusals(self) -> int:
        """Records that could not be written until now."""
        counts = self.world.maps["reasons"]
        found = 0
        for first in (0, layout.REASONS_OF_TC):
            key = layout.U32.pack(SERVICE * layout.REASONS + first + Reason.RECORD)
            found += sum(counts.totals(counts.lookup(key) or b""))
        return found

    # --- tables and records ----------------------------------------------------------------------

    def sweep(self, *, release: bool = True) -> None:
        """Records that are over go, and slots without records are tracked no more."""
        records = self.world.maps["records"]
        swept = tracking.sweep(
            records.items(),
            self.slots,
            self.slot_of,
            self.alive,
            tick(),
            idle=tracking.SETTLE if self.setting.is_tcp else tracking.UDP_IDLE,
        )
        records.delete_many(swept.delete)
        records.update_many(swept.change)
        if release and self._planned is None:
            self.slots = tracking.release(self.slots, swept.elsewhere)
            self._write()

    def slot_of(self, flow: bytes) -> int:
        """The slot of a flow."""
        return tracking.flow_slot(flow, SIZE, mh_port=self.setting.mh_port)

    def _flip(self, between: Callable[[], None] = lambda: None) -> set[int]:
        """The new table, and what is owed to it; the servers that are gone."""
        if not self.setting.is_tcp:
            self._look()
        gone = self.alive - set(self.weights)
        self.alive -= gone
        owners, self._coming = self._coming or self._owners(), None
        if self.setting.naive:
            self.slots = array("I", [owner | owner << layout.OLD_SHIFT for owner in owners])
        else:
            self.slots = tracking.flip(self.slots, owners, self.alive, self.drained)
        self._udp_until = tick() + tracking.UDP_IDLE
        self._flipped = self.now
        self.settling_since = None
        self._write()
        between()
        for server in gone:
            self._write_server(server)
        self.sweep(release=False)
        return gone

    def _owners(self) -> list[int]:
        servers = [server for server in self._ranks if server in self.weights]
        if self.setting.maglev:
            table = MaglevTable(
                [
                    MaglevServer(ip_address(f"10.0.0.{server + 1}"), PORT, self.weights[server])
                    for server in servers
                ],
                INDEX,
            )
            return [servers[place] for place in table.slots]
        pool = [server for server in servers for _ in range(self.weights[server])]
        chance = random.Random(self._chance.getrandbits(32))  # noqa: S311  # tables
        return [chance.choice(pool) for _ in range(SIZE)]

    def _become_alive(self, servers: Iterable[int]) -> None:
        for server in set(servers) - self.alive:
            self.alive.add(server)
            self._write_server(server)

    def _write_server(self, server: int) -> None:
        mac = (SERVER_MAC + bytes([server])).hex(":")
        self.world.server(server, mac, alive=server in self.alive)

    def _write(self) -> None:
        """A table that no packet sees yet, and one store."""
        self._line = CAPACITY.lines - self._line
        self.world.table(self._line, self.slots)
        flags = self._flags
        if self.settling_since is not None:
            flags |= ServiceFlag.SETTLING
        service = FastService(VIP_PLACE, flags, table=self._line, udp_until=self._udp_until & _U32)
        self.world.maps.write_service(SERVICE, service.pack())
