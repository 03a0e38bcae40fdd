"""Random histories of one mh service, and what each of its connections is owed.

The programs run on frames by BPF_PROG_TEST_RUN, lbdr/tracking.py is the control plane, and time is
what the maps say: to skip it, the ticks in them are set back. The model of a connection is the
plainest there is: once it is established, its server never changes while that one lives.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address

from lbdr import tracking
from lbdr.datapath import xdp_layout as layout
from lbdr.datapath.xdp_layout import FALLBACK
from lbdr.model import Protocol
from lbdr.tracking import Record
from tests.fastpath import World, tick
from tests.tracking_control import CAPACITY, SERVERS, SERVICE, ControlPlane, Setting
from tests.tracking_engines import Engines, EnginesDifferError
from tests.tracking_frames import ACK, FIN, PORT, RST, SYN, client_address, icmp, tcp, udp

CLIENTS, PORTS = 5, 3
HOUR = tracking.ticks(3600)
SKIPS = (1, 5, 30, 80, 115, 130, 290, 310, HOUR, 3 * HOUR, 6 * HOUR)


@dataclass(slots=True)
class Connection:
    """A connection, and what it is owed.

    Args:
        isn: its initial sequence number.
        sequence: of what it sends next.
        server: whom its packets must go to; None where its SYN was refused.
        active: tick of its last packet.
        recordable: which frame was its last one that could have been recorded while settling.
        planned: its SYN was sent after a change was anticipated, so that the change is no excuse.
    """

    isn: int
    sequence: int
    server: int | None
    active: int
    recordable: int = 0
    established: bool = False
    closing: bool = False
    planned: bool = False
    spoofed: bool = False
    shadow: int = 0  # until then a spoofed SYN's record stands before it


@dataclass(slots=True)
class Moved(Exception):  # noqa: N818  # what happened to a connection
    """A connection changed its server, although that one lives."""

    words: str

    def __str__(self) -> str:
        return self.words


@dataclass
class History:
    """One history.

    Args:
        world: programs and maps.
        setting: what it is about.
        seed: of all that the steps do not say.
    """

    world: World
    setting: Setting
    seed: int = 0
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)  # noqa: S311  # histories
        self.control = ControlPlane(self.world, self.setting, self._chance)
        self.connections: dict[tuple[int, int], Connection] = {}
        self._gone: dict[tuple[int, int], int] = {}  # sequence numbers of connections before
        self._engines = Engines(self.world)
        self._isn = self._chance.getrandbits(32)
        self._log: list[str] = []

    def play(self, steps: Sequence[tuple[str, int, int]]) -> None:
        """Take steps; Moved tells all of them up to the wrong one."""
        for name, which, how in steps:
            self._log.append(f"{name} {which} {how}")
            getattr(self, f"_{name}")(which, how)

    # --- the clients' steps ----------------------------------------------------------------------

    def _open(self, which: int, how: int) -> None:
        """A new connection, by a tuple that may have been another one's."""
        tuple_ = which % CLIENTS, which // CLIENTS % PORTS
        found = self.connections.get(tuple_)
        if not self.setting.is_tcp:
            self._send_udp(tuple_, how)
        elif found is None or found.closing:
            if found is not None:
                self._forget(tuple_)
            self._isn = self._isn + 0x100000 + self._chance.getrandbits(20) & 0xFFFFFFFF
            now = self.control.now
            connection = Connection(self._isn, self._isn + 1, None, now)
            self.connections[tuple_] = connection
            refused = self.control.refusals()
            self._syn(tuple_, connection, how)
            connection.planned = self.control.is_planned and refused == self.control.refusals()
            if how % 3 == 0:
                self._ack(which, how // 3)
        elif not found.established:
            self._ack(which, how)
        else:
            self._data(which, how)

    def _again(self, which: int, how: int) -> None:
        """The SYN once more."""
        found = self._find(which)
        if found and not found[1].established:
            before = found[1].server
            self._syn(*found, how)
            if found[1].planned and not found[1].spoofed and before in self.control.alive:
                self._require(found[0], before, found[1].server, "SYN sent again")

    def _ack(self, which: int, how: int) -> None:
        found = self._find(which)
        if not found or found[1].established:
            return
        tuple_, connection = found
        went = self._deliver(self._tcp(tuple_, connection.sequence, ACK), how)
        if connection.server is None or (connection.spoofed and went != connection.server):
            self.counts["handshakes spoilt"] += 1
            self._forget(tuple_)
            return
        self._owed(tuple_, went, "ACK")
        connection.established = True
        self.counts["connections"] += 1

    def _data(self, which: int, how: int) -> None:
        found = self._find(which)
        if not found:
            return
        tuple_, connection = found
        if not self.setting.is_tcp:
            self._send_udp(tuple_, how)
        elif connection.established:
            for _ in range(1 + how % 3):
                self._owed(tuple_, self._segment(tuple_, connection, ACK, how), "data")
                connection.sequence += 1400 if how % 5 else 60_000

    def _end(self, which: int, how: int) -> None:
        found = self._find(which)
        if found and found[1].established and self.setting.is_tcp:
            tuple_, connection = found
            flags = ACK | (RST if how % 4 == 0 else FIN)
            self._owed(tuple_, self._segment(tuple_, connection, flags, how), "FIN")
            connection.sequence += 1
            connection.closing = True

    def _error(self, which: int, how: int) -> None:
        """A router's error about what the server sent."""
        found = self._find(which)
        if found and found[1].established:
            tuple_ = found[0]
            client, port = tuple_
            version = self.setting.version
            frame = icmp(
                version,
                client_address(version, client),
                1024 + port,
                self.setting.protocol.number,
            )
            self._owed(tuple_, self._deliver(frame, how), "ICMP error", quiet=True)

    def _late(self, which: int, how: int) -> None:
        """A packet of the connection before, on the same tuple."""
        tuple_ = which % CLIENTS, which // CLIENTS % PORTS
        if tuple_ in self._gone and self.setting.is_tcp:
            self._deliver(self._tcp(tuple_, self._gone[tuple_], ACK), how)

    def _spoof(self, which: int, how: int) -> None:
        """A SYN with somebody else's sender."""
        tuple_ = which % CLIENTS, which // CLIENTS % PORTS
        found = self.connections.get(tuple_)
        if not self.setting.is_tcp:
            return
        if found:
            sequence = found.sequence + 0x10000000 + self._chance.getrandbits(30)
            found.spoofed = found.spoofed or not found.established
            found.shadow = self.control.now + tracking.UNCONFIRMED_IDLE
        else:
            sequence = self._chance.getrandbits(32)
        self._deliver(self._tcp(tuple_, sequence, SYN), how)

    def _blind(self, which: int, how: int) -> None:
        """A reset by somebody who does not see the connection."""
        found = self._find(which)
        if found and found[1].established and self.setting.is_tcp:
            sequence = found[1].sequence + 0x10000000 + self._chance.getrandbits(30)
            self._deliver(self._tcp(found[0], sequence, RST), how)

    def _send_udp(self, tuple_: tuple[int, int], how: int) -> None:
        found = self._find_tuple(tuple_)
        client, port = tuple_
        version = self.setting.version
        frame = udp(version, client_address(version, client), 1024 + port)
        refused = self.control.refusals()
        went = self._deliver(frame, how)
        if self.control.refusals() != refused and self._slot(tuple_) & FALLBACK == FALLBACK:
            # who else would know it, once the drained server is back?
            self.counts["UDP flows without a record"] += 1
            self.connections.pop(tuple_, None)
        elif found is not None:
            self._owed(tuple_, went, "datagram")
        elif went in self.control.alive:
            now = self.control.now
            self.connections[tuple_] = Connection(0, 0, went, now, established=True)
            self.counts["connections"] += 1

    # --- the steps of others ---------------------------------------------------------------------

    def _plan(self, which: int, how: int) -> None:
        kinds = ("add", "drain", "restore", "reweight", "remove")
        self._lose(self.control.carry_out())
        self._excuse()
        self.control.plan(kinds[how % len(kinds)], which)

    def _change(self, _which: int, _how: int) -> None:
        self._lose(self.control.carry_out())

    def _fail(self, which: int, how: int) -> None:
        server = which % SERVERS

        def between() -> None:
            """Packets meet the new table before they meet the dead server's flag."""
            self._lose({server} - self.control.alive)
            if how % 3 == 1:
                self._data(how // 2, how)
            elif how % 3 == 2:
                self._open(how // 2, how)

        self._excuse()
        self._lose(self.control.fail(server, between))

    def _sweep(self, _which: int, how: int) -> None:
        self.control.sweep(release=how % 2 == 0)

    def _skip(self, which: int, how: int) -> None:
        ticks = SKIPS[which % len(SKIPS)]
        settled = self.control.skip(ticks)
        now = self.control.now
        for tuple_, connection in list(self.connections.items()):
            idle = now - connection.active
            if (
                idle >= tracking.SETTLE
                or (not connection.established and idle >= tracking.UNCONFIRMED_IDLE)
                or (connection.closing and idle >= tracking.CLOSING_IDLE)
                or (not self.setting.is_tcp and idle >= tracking.UDP_IDLE)
                or (
                    settled
                    and self.setting.is_tcp
                    and connection.recordable <= self.control.settling_from
                )
            ):
                self.counts["forgotten"] += 1
                self._forget(tuple_)
        if how % 2:
            self._sweep(which, how // 2)

    def _fill(self, _which: int, how: int) -> None:
        """Records of a flood take all the room, or a part of it."""
        records = self.world.maps["records"]
        room = CAPACITY.records - len(records.keys())
        count = room if how % 2 else room // 2
        flood = Record(0, 0, 0, tick(), layout.RecordState.UNCONFIRMED)
        entries = {}
        for _ in range(count):
            client = ip_address(f"192.0.2.{self._chance.randint(1, 250)}")
            flow = layout.flow_of(client, self._chance.getrandbits(16), PORT, SERVICE)
            server = self._chance.choice(sorted(self.control.alive))
            entries[flow] = flood._replace(server=server, previous=server).pack()
        records.update_many(entries)
        self.counts["floods"] += 1

    def _guard(self, _which: int, how: int) -> None:
        """As many records as one CPU may write in a tick are written; or not."""
        self._engines.guarded = how % 2 == 0

    # --- inside ----------------------------------------------------------------------------------

    def _find(self, which: int) -> tuple[tuple[int, int], Connection] | None:
        """One of those that there are."""
        if not self.connections:
            return None
        tuple_ = list(self.connections)[which % len(self.connections)]
        return tuple_, self.connections[tuple_]

    def _find_tuple(self, tuple_: tuple[int, int]) -> Connection | None:
        return self.connections.get(tuple_)

    def _forget(self, tuple_: tuple[int, int]) -> None:
        self._gone[tuple_] = self.connections.pop(tuple_).sequence

    def _excuse(self) -> None:
        """What comes now was not anticipated when the SYNs until now were sent."""
        for connection in self.connections.values():
            connection.planned = False

    def _lose(self, servers: set[int]) -> None:
        for tuple_, connection in list(self.connections.items()):
            if connection.server in servers:
                self.counts["lost with their server"] += connection.established
                self._forget(tuple_)

    def _tcp(self, tuple_: tuple[int, int], sequence: int, flags: int) -> bytes:
        version = self.setting.version
        client = client_address(version, tuple_[0])
        return tcp(version, client, 1024 + tuple_[1], sequence, flags)

    def _syn(self, tuple_: tuple[int, int], connection: Connection, how: int) -> None:
        connection.server = self._deliver(self._tcp(tuple_, connection.isn, SYN), how)
        connection.active = self.control.now

    def _segment(
        self, tuple_: tuple[int, int], connection: Connection, flags: int, how: int
    ) -> int | None:
        return self._deliver(self._tcp(tuple_, connection.sequence, flags), how)

    def _owed(
        self, tuple_: tuple[int, int], went: int | None, what: str, *, quiet: bool = False
    ) -> None:
        connection = self.connections[tuple_]
        self._require(tuple_, connection.server, went, what)
        if not quiet:
            connection.active = self.control.now
            if connection.active >= connection.shadow:
                connection.recordable = self.control.delivered

    def _require(
        self, tuple_: tuple[int, int], owed: int | None, went: int | None, what: str
    ) -> None:
        self.counts["packets"] += 1
        if owed == went:
            return
        value = self.world.maps["records"].lookup(self._flow(tuple_))
        steps = "; ".join(self._log)
        raise Moved(
            f"{what} of {tuple_} went to {went}, not {owed}; slot is {self._slot(tuple_):#010x},"
            f" record {value and Record.unpack(value)}; {self.setting}, seed {self.seed}: {steps}"
        )

    def _flow(self, tuple_: tuple[int, int]) -> bytes:
        client = client_address(self.setting.version, tuple_[0])
        return layout.flow_of(client, 1024 + tuple_[1], PORT, SERVICE)

    def _slot(self, tuple_: tuple[int, int]) -> int:
        """The word of a flow's slot."""
        return self.control.slots[self.control.slot_of(self._flow(tuple_))]

    def _deliver(self, frame: bytes, how: int) -> int | None:
        """The server that a frame goes to; in some steps all engines are asked."""
        self.control.delivered += 1
        if how % 4:
            return self._engines.one(frame)
        self.counts["packets by all engines"] += 1
        try:
            return self._engines.all(frame)
        except EnginesDifferError as error:
            steps = "; ".join(self._log)
            raise Moved(f"{error}; {self.setting}, seed {self.seed}: {steps}") from error


def random_setting(chance: random.Random) -> Setting:
    """What a history may be about."""
    return Setting(
        version=chance.choice((4, 4, 6)),
        protocol=chance.choice((Protocol.TCP, Protocol.TCP, Protocol.UDP)),
        mh_port=chance.random() < 0.3,
        maglev=chance.random() < 0.5,
    )


STEPS = {
    "open": 16,
    "again": 4,
    "ack": 6,
    "data": 24,
    "end": 3,
    "error": 3,
    "late": 2,
    "spoof": 3,
    "blind": 3,
    "plan": 4,
    "change": 4,
    "fail": 3,
    "sweep": 4,
    "skip": 5,
    "fill": 1,
    "guard": 1,
}
"""How often each step is taken."""


def random_steps(chance: random.Random, count: int) -> list[tuple[str, int, int]]:
    """Steps of a history; each has kinds of steps that it takes often, seldom, and never."""
    weights = [weight * chance.choice((0, 1, 1, 4)) for weight in STEPS.values()]
    names = chance.choices(["open", "data", *STEPS], [8, 8, *weights], k=count)
    return [(name, chance.getrandbits(10), chance.getrandbits(10)) for name in names]


def naive(setting: Setting) -> Setting:
    """The same, with slots that only say who owns them now."""
    return replace(setting, naive=True)
