"""Floods: packets of senders that do not exist, in the steady state and during a change.

LBDR_FLOOD says how many packets each of them has: `LBDR_FLOOD=5000000` takes some minutes.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

import pytest

from lbdr.datapath import xdp_layout as layout
from lbdr.datapath import xdp_loader
from lbdr.datapath.bpf_cpus import possible_cpus
from lbdr.datapath.bpf_programs import Program
from lbdr.datapath.bpf_wire import AttachPoint, MapKind, ProgramKind, skb_context, xdp_context
from lbdr.datapath.xdp_layout import Reason, RecordState, ServiceFlag
from lbdr.datapath.xdp_loader import Wanted
from lbdr.model import Protocol
from tests.director_records import CURRENT, OLD, RECORDS_PER_TICK, THIRD
from tests.fastpath import LO, World, fast_path, slot, tick
from tests.guest import missing
from tests.tracking_frames import ACK, PORT, RST, SYN, VIPS, client_address, tcp, udp

PACKETS = int(os.environ.get("LBDR_FLOOD", "200000"))
SERVICE, SLOTS = 1, 4093
SOURCE = str(Path(__file__).parents[1] / "flood.c")
ROOM = 2000  # records, where there is room for few
ESTABLISHED = 1000
_ACTIVE = ServiceFlag.ACTIVE
_MANY_TICKS = 100_000


@dataclass(frozen=True, slots=True)
class Flood:
    """A kind of flood.

    Args:
        version: of IP.
        frame: its first packet; all others are like it.
        is_recorded: during a change each packet may take a record.
    """

    version: int
    frame: bytes
    is_recorded: bool = True


def _flood(version: int, flags: int | None) -> Flood:
    client = client_address(version, 200)
    if flags is None:
        return Flood(version, udp(version, client, 40000))
    return Flood(version, tcp(version, client, 40000, 1, flags), is_recorded=flags != RST)


FLOODS = {
    "SYN": _flood(4, SYN),
    "SYN of IPv6": _flood(6, SYN),
    "ACK": _flood(4, ACK),
    "RST": _flood(4, RST),
    "UDP": _flood(4, None),
    "UDP of IPv6": _flood(6, None),
}
EVERY_FLOOD = pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
ENGINES = pytest.mark.parametrize("at_tc", [False, True], ids=["xdp", "tc"])


class Flooded:
    """A world, and programs that flood it.

    Args:
        world: whose programs are flooded.
        stack: closes what is opened.
    """

    def __init__(self, world: World, stack: ExitStack) -> None:
        self.world = world
        directory = world.programs.directory
        xdp, tc = directory / "flood", directory / "flood tc"
        wanted = [
            Wanted("flood", SOURCE, ProgramKind.XDP, AttachPoint.XDP, {"XDP_FRAGS": 1}, str(xdp)),
            Wanted("flood", SOURCE, ProgramKind.SCHED_CLS, 0, {"DIRECTOR_TC": 1}, str(tc)),
        ]
        maps = {name: str(directory / name) for name in world.maps}
        macros = layout.macros(world.maps.capacity, records_per_tick=RECORDS_PER_TICK)
        xdp_loader.load(xdp_loader.Job(maps, macros, wanted))
        self._xdp = stack.enter_context(Program.open(xdp))
        self._tc = stack.enter_context(Program.open(tc))

    def serve(self, words: list[int], flags: ServiceFlag = _ACTIVE) -> None:
        """One service, of all protocols."""
        world = self.world
        world.clear()
        for server in (CURRENT, OLD, THIRD):
            world.server(server, f"02:00:00:00:01:{server:02x}")
        world.table(0, words)
        until = tick() + _MANY_TICKS
        world.service(SERVICE, VIPS[4], PORT, flags=flags, udp_until=until, timeout=800)
        world.key(SERVICE, VIPS[4], PORT, Protocol.UDP)
        world.key(SERVICE, VIPS[6], PORT)
        world.key(SERVICE, VIPS[6], PORT, Protocol.UDP)

    def send(self, flood: Flood, count: int, *, at_tc: bool) -> int:
        """Send packets of a flood; the kernel's verdict on the last one."""
        program, length = self._tc if at_tc else self._xdp, len(flood.frame)
        context = skb_context(LO, LO) if at_tc else xdp_context(length, LO)
        return program.test_run(flood.frame, context, repeat=count).returned

    def entries(self) -> dict[str, int]:
        """How many entries each map has that could grow."""
        maps = self.world.maps
        return {
            name: len(maps[name].keys())
            for name in maps
            if maps[name].layout.kind in {MapKind.HASH, MapKind.LRU_HASH}
        }

    def memory(self) -> dict[str, str]:
        """What the kernel says each map takes."""
        found = {}
        for name in self.world.maps:
            lines = Path(f"/proc/self/fdinfo/{self.world.maps[name].fd}").read_text().splitlines()
            found[name] = next(line for line in lines if line.startswith("memlock"))
        return found

    @property
    def served(self) -> int:
        return sum(self.world.served(server)[0] for server in (CURRENT, OLD, THIRD))

    def goes(self, frame: bytes, *, at_tc: bool) -> int:
        """The server that gets a frame."""
        result = self.world.run_tc(frame) if at_tc else self.world.run_xdp(frame)
        return result.data[5]


@pytest.fixture(scope="module")
def flooded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flooded]:
    """With the maps that a director has."""
    if os.geteuid() != 0:
        missing("BPF needs root")
    with ExitStack() as stack:
        world = stack.enter_context(fast_path(tmp_path_factory.mktemp("bpffs")))
        yield Flooded(world, stack)


# --- the steady state ----------------------------------------------------------------------------


@EVERY_FLOOD
@ENGINES
def test_a_flood_stores_nothing_in_the_steady_state(
    flooded: Flooded, flood: Flood, at_tc: bool
) -> None:
    flooded.serve([slot(CURRENT + n % 3) for n in range(SLOTS)])
    before, memory = flooded.entries(), flooded.memory()
    flooded.send(flood, PACKETS, at_tc=at_tc)
    assert flooded.served == PACKETS
    assert all(flooded.world.served(server)[0] * 4 > PACKETS for server in (CURRENT, OLD, THIRD))
    assert flooded.entries() == before
    assert flooded.memory() == memory
    assert flooded.world.reasons(SERVICE, tc=at_tc) == {}


@EVERY_FLOOD
@ENGINES
def test_a_flood_of_what_ipvs_decides_is_ipvss(flooded: Flooded, flood: Flood, at_tc: bool) -> None:
    """Nothing is learned from what came in, and the flows that are known stay."""
    flooded.serve([], _ACTIVE | ServiceFlag.LEARNED)
    flows = flooded.world.maps["flows4"]
    known = {
        layout.FLOW4.pack(
            client_address(4, client).packed, port.to_bytes(2, "big"), SERVICE
        ): layout.LEARNED.pack(THIRD, 0, tick())
        for client in range(10)
        for port in range(1000, 1000 + ESTABLISHED // 10)
    }
    flows.update_many(known)
    before, memory = flooded.entries(), flooded.memory()
    flooded.send(flood, PACKETS, at_tc=at_tc)
    assert flooded.served == 0
    assert flooded.entries() == before
    assert flooded.memory() == memory
    assert set(flows.keys()) == set(known)
    assert flooded.world.reasons(SERVICE, tc=at_tc) == {Reason.NOT_LEARNED: PACKETS}


# --- during a change -----------------------------------------------------------------------------


@dataclass(slots=True)
class Established:
    """Open connections: every other one has a record, which names another server than its slot."""

    flooded: Flooded
    version: int
    at_tc: bool
    _frames: dict[bytes, int] = field(init=False)

    def __post_init__(self) -> None:
        version = self.version
        tuples = [(client, 1000 + n) for client in range(10) for n in range(ESTABLISHED // 10)]
        self._frames = {
            tcp(version, client_address(version, client), port, 5000, ACK): (THIRD, OLD)[port % 2]
            for client, port in tuples
        }
        record = layout.RECORD.pack(THIRD, OLD, 4999, tick(), RecordState.CONFIRMED, 0)
        self.flooded.world.maps["records"].update_many(
            {
                layout.flow_of(client_address(version, client), port, PORT, SERVICE): record
                for client, port in tuples
                if port % 2 == 0
            }
        )

    def moved(self, count: int = ESTABLISHED) -> int:
        """How many of some of them are elsewhere."""
        frames = random.sample(sorted(self._frames), count)
        return sum(
            self.flooded.goes(frame, at_tc=self.at_tc) != self._frames[frame] for frame in frames
        )


def _leave_room(flooded: Flooded, room: int) -> None:
    """Let records of others take what is not to be left of the map."""
    records = flooded.world.maps["records"]
    count = flooded.world.maps.capacity.records - len(records.keys()) - room
    record = layout.RECORD.pack(THIRD, THIRD, 0, tick(), RecordState.CONFIRMED, 0)
    other = ip_address("192.0.2.1")
    records.update_many(
        {
            layout.flow_of(other + (n >> 15), n & 0x7FFF, PORT, SERVICE): record
            for n in range(max(count, 0))
        }
    )


def _begin(flooded: Flooded, version: int, number: int, *, at_tc: bool) -> bool:
    """Whether a connection that begins now is where its SYN went."""
    client = client_address(version, 100)
    first = flooded.goes(tcp(version, client, 1000 + number, 77, SYN), at_tc=at_tc)
    second = flooded.goes(tcp(version, client, 1000 + number, 78, ACK), at_tc=at_tc)
    return first == second and first in {CURRENT, OLD}


def _withstands(flooded: Flooded, flood: Flood, room: int, *, at_tc: bool) -> None:
    """Flood a service all of whose slots have changed, and look at its connections meanwhile."""
    changed = [slot(CURRENT, OLD, tracked=True)] * SLOTS
    flooded.serve(changed, _ACTIVE | ServiceFlag.SETTLING)
    established = Established(flooded, flood.version, at_tc)
    _leave_room(flooded, room)
    others = flooded.entries()
    records, memory = others.pop("records"), flooded.memory()
    began, parts, asked = tick(), 10, 50
    assert not established.moved(), "before"
    for part in range(parts):
        flooded.send(flood, PACKETS // parts, at_tc=at_tc)
        assert not established.moved(asked)
        assert _begin(flooded, flood.version, part, at_tc=at_tc)
    assert not established.moved()
    after = flooded.entries()
    more = after.pop("records") - records
    ticks = tick() - began + 1
    assert after == others
    assert parts * flood.is_recorded < more <= min(room, ticks * RECORDS_PER_TICK * possible_cpus())
    assert flooded.memory() == memory
    refused = flooded.world.reasons(SERVICE, tc=at_tc).get(Reason.RECORD, 0)
    if flood.is_recorded:
        assert more + refused >= PACKETS - 2 * parts  # what came twice


@EVERY_FLOOD
@ENGINES
def test_a_flood_during_a_change_moves_no_connection(
    flooded: Flooded, flood: Flood, at_tc: bool
) -> None:
    """What one CPU may record in a second bounds it."""
    _withstands(flooded, flood, flooded.world.maps.capacity.records - ESTABLISHED, at_tc=at_tc)


@EVERY_FLOOD
def test_a_flood_that_fills_the_records_moves_no_connection(flooded: Flooded, flood: Flood) -> None:
    _withstands(flooded, flood, ROOM, at_tc=False)
    if flood.is_recorded:
        records = flooded.world.maps["records"]
        assert len(records.keys()) == flooded.world.maps.capacity.records
