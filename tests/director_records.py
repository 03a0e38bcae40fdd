"""A service whose slots changed, and the client's record."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

from lbdr.datapath import xdp_layout as layout
from lbdr.datapath.bpf_wire import Verdict
from lbdr.datapath.xdp_layout import RecordState, ServiceFlag
from lbdr.model import Protocol
from tests.director_frames import (
    ACTIVE,
    CLIENT,
    CLIENT6,
    CLIENT_PORT,
    PORT,
    SERVICE,
    SLOTS,
    VIP,
    VIP6,
    ip4,
    segment,
)
from tests.fastpath import Engine, World, slot, tick

Build = Callable[..., bytes]

CURRENT, OLD, THIRD = 3, 4, 5
ISN = 0xFFFFFFF0  # the numbers after it begin anew
NEW, CONFIRMED, CLOSING = RecordState.UNCONFIRMED, RecordState.CONFIRMED, RecordState.CLOSING
RECORDS_PER_TICK = 20_000


def serve(
    world: World,
    *,
    current: int = CURRENT,
    old: int = OLD,
    anticipate: bool = False,
    flags: ServiceFlag = ACTIVE,
    **fields: Any,
) -> None:
    """A service all of whose slots changed from OLD to CURRENT."""
    for server in (CURRENT, OLD, THIRD):
        revive(world, server)
    world.table(0, [slot(current, old, tracked=True, anticipate=anticipate)] * SLOTS)
    world.service(SERVICE, VIP, PORT, flags=flags, **fields)
    world.key(SERVICE, VIP, PORT, Protocol.UDP)
    world.key(SERVICE, VIP6, PORT)


def revive(world: World, server: int, *, alive: bool = True) -> None:
    world.server(server, f"02:00:00:00:01:{server:02x}", alive=alive)


def kill(world: World, server: int) -> None:
    revive(world, server, alive=False)


def place(build: Build) -> bytes:
    client = ip_address(CLIENT if build is ip4 else CLIENT6)
    return layout.flow_of(client, CLIENT_PORT, PORT, SERVICE)


def put(
    world: World,
    server: int = CURRENT,
    state: RecordState = NEW,
    previous: int = OLD,
    *,
    sequence: int = ISN,
    age: int = 0,
    build: Build = ip4,
) -> None:
    """A record of the client's."""
    value = layout.RECORD.pack(server, previous, sequence, tick() - age, state, sequence >> 16)
    world.maps["records"].update(place(build), value)


def get(world: World, build: Build = ip4) -> tuple[int, int, int, RecordState] | None:
    """The client's record: server, previous, sequence and state."""
    value = world.maps["records"].lookup(place(build))
    if value is None:
        return None
    server, previous, sequence, seen, state, _ = layout.RECORD.unpack(value)
    assert tick() - seen in {0, 1}
    return server, previous, sequence, RecordState(state)


def goes(world: World, engine: Engine, frame: bytes) -> int | None:
    """The server that gets a frame; None where it passes."""
    outcome = world.run(engine, frame)
    if outcome.verdict is Verdict.PASS:
        return None
    assert outcome.verdict in {Verdict.TX, Verdict.REDIRECT}
    return outcome.data[5]


def syn(build: Build = ip4, sequence: int = ISN) -> bytes:
    return build(segment("S", seq=sequence))


def data(build: Build = ip4, flags: str = "A", sequence: int = (ISN + 1) & 0xFFFFFFFF) -> bytes:
    return build(segment(flags, seq=sequence))
