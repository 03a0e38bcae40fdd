"""The director: UDP on tracked slots, and records that cannot be written."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address

import pytest

from lbdr.datapath import xdp_layout as layout
from lbdr.datapath.xdp_layout import Reason, ServiceFlag
from tests.director_frames import (
    ACTIVE,
    CLIENT_PORT,
    PORT,
    SERVICE,
    VIP,
    answer,
    datagram,
    icmp_error,
    ip4,
    segment,
)
from tests.director_records import (
    CONFIRMED,
    CURRENT,
    ISN,
    NEW,
    OLD,
    RECORDS_PER_TICK,
    THIRD,
    data,
    get,
    goes,
    kill,
    place,
    put,
    serve,
    syn,
)
from tests.fastpath import Engine, World, tick

ENGINES = pytest.mark.parametrize("engine", list(Engine))


# --- udp -----------------------------------------------------------------------------------------


@ENGINES
def test_udp_keeps_to_the_old_server_for_a_while(world: World, engine: Engine) -> None:
    serve(world, udp_until=tick() + 100)
    assert (
        goes(world, engine, icmp_error(answer(payload=datagram(sport=PORT, dport=CLIENT_PORT))))
        == OLD
    )
    assert get(world) is None
    assert goes(world, engine, ip4(datagram())) == OLD
    assert get(world) == (OLD, OLD, 0, CONFIRMED)
    world.service(SERVICE, VIP, PORT, udp_until=tick() - 1)
    assert goes(world, engine, ip4(datagram())) == OLD


@ENGINES
@pytest.mark.parametrize("past", [1, 100, 0])
def test_udp_is_the_current_servers_afterwards(world: World, engine: Engine, past: int) -> None:
    serve(world, udp_until=tick() - past)
    assert goes(world, engine, ip4(datagram())) == CURRENT
    assert get(world) is None


@ENGINES
def test_udp_of_a_dead_server(world: World, engine: Engine) -> None:
    serve(world, udp_until=tick() + 100)
    kill(world, OLD)
    assert goes(world, engine, ip4(datagram())) == CURRENT


# --- what cannot be recorded ---------------------------------------------------------------------


def fill(world: World) -> None:
    """No record more goes into the map."""
    for number in range(world.maps.capacity.records):
        key = layout.flow_of(ip_address("203.0.113.9"), number, PORT, SERVICE)
        world.maps["records"].update(key, bytes(layout.RECORD.size))


def exhaust(world: World) -> None:
    """All CPUs wrote as many records as they may, in this tick and the next one."""
    guard = world.maps["guard"]
    one = layout.GUARD.pack(tick(), RECORDS_PER_TICK)
    guard.update(layout.U32.pack(0), one * (guard.value_size // len(one)))


LIMITS = pytest.mark.parametrize("limit", [fill, exhaust], ids=["the map is full", "too many"])


def limited(
    world: World, engine: Engine, limit: Callable[[World], None], frame: bytes
) -> int | None:
    """Where a frame goes under a limit; asked again where the tick went by meanwhile."""
    while True:
        began = tick()
        limit(world)
        server = goes(world, engine, frame)
        if limit is fill or tick() == began:
            return server


@ENGINES
@LIMITS
def test_a_syn_goes_to_the_old_server_then(
    world: World, engine: Engine, limit: Callable[[World], None]
) -> None:
    serve(world)
    assert limited(world, engine, limit, syn()) == OLD
    assert get(world) is None
    assert world.reasons(SERVICE, tc=engine is Engine.TC) == {Reason.RECORD: 1}
    assert goes(world, engine, data()) == OLD


@ENGINES
@LIMITS
def test_a_syn_that_ipvs_was_to_have_goes_to_the_old_server_then(
    world: World, engine: Engine, limit: Callable[[World], None]
) -> None:
    serve(world, current=layout.FALLBACK, anticipate=True)
    assert limited(world, engine, limit, syn()) == OLD
    assert goes(world, engine, data()) == OLD


@ENGINES
@LIMITS
def test_a_syn_goes_to_the_current_server_where_the_old_one_is_dead(
    world: World, engine: Engine, limit: Callable[[World], None]
) -> None:
    serve(world)
    kill(world, OLD)
    assert limited(world, engine, limit, syn()) == CURRENT


@ENGINES
@LIMITS
def test_a_record_that_is_there_is_rewritten(
    world: World, engine: Engine, limit: Callable[[World], None]
) -> None:
    serve(world)
    put(world, THIRD, CONFIRMED)
    if limit is fill:
        world.maps["records"].delete(place(ip4))
        fill(world)
        world.maps["records"].delete(layout.flow_of(ip_address("203.0.113.9"), 0, PORT, SERVICE))
        put(world, THIRD, CONFIRMED)
        assert goes(world, engine, syn(sequence=5)) == CURRENT
    else:
        assert limited(world, engine, limit, syn(sequence=5)) == CURRENT
    assert (get(world) or ())[:1] == (CURRENT,)
    assert world.reasons(SERVICE, tc=engine is Engine.TC) == {}


@ENGINES
@LIMITS
def test_settling_and_udp_go_on(
    world: World, engine: Engine, limit: Callable[[World], None]
) -> None:
    serve(world, flags=ACTIVE | ServiceFlag.SETTLING, udp_until=tick() + 100)
    assert limited(world, engine, limit, data()) == OLD
    assert limited(world, engine, limit, ip4(datagram())) == OLD
    assert get(world) is None


@ENGINES
def test_a_new_tick_may_record_again(world: World, engine: Engine) -> None:
    serve(world)
    guard = world.maps["guard"]
    one = layout.GUARD.pack(tick() - 2, RECORDS_PER_TICK)
    guard.update(layout.U32.pack(0), one * (guard.value_size // len(one)))
    assert goes(world, engine, syn()) == CURRENT
    assert get(world) == (CURRENT, OLD, ISN, NEW)


@ENGINES
def test_a_flood_of_syns_ends_at_the_map(world: World, engine: Engine) -> None:
    """Every connection that was there stays at its server."""
    serve(world)
    room = world.maps.capacity.records
    for port in range(room + 20):
        assert goes(world, engine, ip4(segment("S", sport=1000 + port))) in {CURRENT, OLD}
    assert len(world.maps["records"].keys()) == room
    assert world.reasons(SERVICE, tc=engine is Engine.TC) == {Reason.RECORD: 20}
    assert goes(world, engine, data()) == OLD
