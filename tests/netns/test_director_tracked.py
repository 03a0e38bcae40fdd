"""The director: tracked slots, whose old server keeps the connections that have no record."""

from __future__ import annotations

import pytest

from lbdr.datapath import xdp_layout as layout
from lbdr.datapath.xdp_layout import Reason, RecordState, ServiceFlag
from tests.director_frames import (
    ACTIVE,
    CLIENT_PORT,
    SERVICE,
    SLOTS,
    answer,
    icmp_error,
    ip4,
    ip6,
    segment,
)
from tests.director_records import (
    CLOSING,
    CONFIRMED,
    CURRENT,
    ISN,
    NEW,
    OLD,
    THIRD,
    Build,
    data,
    get,
    goes,
    kill,
    put,
    serve,
    syn,
)
from tests.fastpath import Engine, World, slot

ENGINES = pytest.mark.parametrize("engine", list(Engine))
VERSIONS = pytest.mark.parametrize("build", [ip4, ip6], ids=["IPv4", "IPv6"])


# --- without a record ----------------------------------------------------------------------------


@ENGINES
@VERSIONS
@pytest.mark.parametrize("flags", ["A", "PA", "SA", "FA", "R", ""])
def test_the_rest_is_the_old_servers(
    world: World, engine: Engine, build: Build, flags: str
) -> None:
    serve(world)
    assert goes(world, engine, data(build, flags)) == OLD
    assert get(world, build) is None


@ENGINES
@VERSIONS
def test_a_syn_is_recorded(world: World, engine: Engine, build: Build) -> None:
    serve(world)
    assert goes(world, engine, syn(build)) == CURRENT
    assert get(world, build) == (CURRENT, OLD, ISN, NEW)
    assert goes(world, engine, syn(build)) == CURRENT  # sent again
    assert goes(world, engine, data(build)) == CURRENT
    assert get(world, build) == (CURRENT, OLD, ISN, CONFIRMED)
    assert goes(world, engine, data(build, sequence=ISN + 10_000_000 & 0xFFFFFFFF)) == CURRENT
    assert goes(world, engine, build(segment(sport=CLIENT_PORT + 1))) == OLD
    assert world.reasons(SERVICE) == world.reasons(SERVICE, tc=True) == {}


@ENGINES
def test_the_old_server_died(world: World, engine: Engine) -> None:
    serve(world)
    kill(world, OLD)
    assert goes(world, engine, data()) == CURRENT


@ENGINES
def test_both_died(world: World, engine: Engine) -> None:
    serve(world)
    kill(world, OLD)
    kill(world, CURRENT)
    assert goes(world, engine, data()) is None
    assert world.reasons(SERVICE, tc=engine is Engine.TC) == {Reason.NO_SERVER: 1}


@ENGINES
def test_an_error_is_the_old_servers(world: World, engine: Engine) -> None:
    serve(world)
    assert goes(world, engine, icmp_error(answer())) == OLD
    assert get(world) is None


@ENGINES
def test_no_one_takes_new_ones(world: World, engine: Engine) -> None:
    serve(world, current=layout.EMPTY)
    assert goes(world, engine, syn()) is None
    assert goes(world, engine, data()) == OLD
    assert get(world) is None


@ENGINES
@pytest.mark.parametrize("old", [layout.FALLBACK, layout.EMPTY, 0xFFFF])
def test_no_old_server(world: World, engine: Engine, old: int) -> None:
    serve(world, old=old)
    assert goes(world, engine, data()) == CURRENT


@ENGINES
def test_nothing_changed_here(world: World, engine: Engine) -> None:
    """A slot that is tracked for the sake of its records alone: new ones need none."""
    serve(world, current=OLD)
    assert goes(world, engine, syn()) == OLD
    assert get(world) is None


@ENGINES
def test_a_change_to_come(world: World, engine: Engine) -> None:
    """Its SYNs are recorded, so that one sent again after the change has its server."""
    serve(world, current=OLD, anticipate=True)
    assert goes(world, engine, syn()) == OLD
    assert get(world) == (OLD, OLD, ISN, NEW)
    world.table(0, [slot(CURRENT, OLD, tracked=True)] * SLOTS)
    assert goes(world, engine, syn()) == OLD
    assert goes(world, engine, syn(sequence=7)) == CURRENT
    assert get(world) == (CURRENT, OLD, 7, NEW)


@ENGINES
def test_a_change_to_come_of_a_slot_that_is_not_tracked(world: World, engine: Engine) -> None:
    serve(world)
    world.table(0, [slot(OLD, anticipate=True)] * SLOTS)
    assert goes(world, engine, data()) == OLD
    assert goes(world, engine, syn()) == OLD
    assert get(world) == (OLD, OLD, ISN, NEW)


@ENGINES
def test_settling_records_what_is_left(world: World, engine: Engine) -> None:
    serve(world, flags=ACTIVE | ServiceFlag.SETTLING)
    assert goes(world, engine, data(flags="FA")) == OLD
    assert goes(world, engine, icmp_error(answer())) == OLD
    assert get(world) is None
    assert goes(world, engine, data(sequence=99)) == OLD
    assert get(world) == (OLD, OLD, 99, CONFIRMED)


# --- with a record -------------------------------------------------------------------------------


@ENGINES
@VERSIONS
@pytest.mark.parametrize("distance", [0, 1, 65535, 65536])
def test_data_confirms(world: World, engine: Engine, build: Build, distance: int) -> None:
    serve(world)
    put(world, build=build)
    assert goes(world, engine, data(build, sequence=ISN + distance & 0xFFFFFFFF)) == CURRENT
    assert get(world, build) == (CURRENT, OLD, ISN, CONFIRMED)


@ENGINES
@VERSIONS
@pytest.mark.parametrize("distance", [-1, 65537, 1 << 31])
@pytest.mark.parametrize("flags", ["A", "FA", "R"])
def test_other_data_is_the_previous_servers(
    world: World, engine: Engine, build: Build, distance: int, flags: str
) -> None:
    """A spoofed SYN takes no connection away."""
    serve(world)
    put(world, build=build)
    assert goes(world, engine, data(build, flags, ISN + distance & 0xFFFFFFFF)) == OLD
    assert get(world, build) == (CURRENT, OLD, ISN, NEW)


@ENGINES
def test_an_error_before_it_is_confirmed(world: World, engine: Engine) -> None:
    serve(world)
    put(world)
    assert goes(world, engine, icmp_error(answer())) == OLD
    assert get(world) == (CURRENT, OLD, ISN, NEW)


@ENGINES
@pytest.mark.parametrize("state", [CONFIRMED, CLOSING])
def test_an_error_afterwards(world: World, engine: Engine, state: RecordState) -> None:
    serve(world)
    put(world, THIRD, state)
    assert goes(world, engine, icmp_error(answer())) == THIRD
    assert get(world) == (THIRD, OLD, ISN, state)


@ENGINES
@pytest.mark.parametrize("flags", ["FA", "R", "RA"])
def test_an_end_closes(world: World, engine: Engine, flags: str) -> None:
    serve(world)
    put(world, THIRD, CONFIRMED)
    assert goes(world, engine, data(flags=flags)) == THIRD
    assert get(world) == (THIRD, OLD, ISN, CLOSING)
    assert goes(world, engine, data()) == THIRD
    assert get(world) == (THIRD, OLD, ISN, CLOSING)


@ENGINES
@pytest.mark.parametrize("flags", ["FA", "R", "RA"])
@pytest.mark.parametrize("distance", [9 << 16, 1 << 31, -9 << 16])
def test_who_does_not_see_a_connection_cannot_end_it(
    world: World, engine: Engine, flags: str, distance: int
) -> None:
    """A record that closes is gone after 2 minutes; a blind reset must not do that."""
    serve(world)
    put(world, THIRD, CONFIRMED)
    assert goes(world, engine, data(flags=flags, sequence=ISN + distance & 0xFFFFFFFF)) == THIRD
    assert get(world) == (THIRD, OLD, ISN, CONFIRMED)
    assert goes(world, engine, data(flags=flags)) == THIRD
    assert get(world) == (THIRD, OLD, ISN, CLOSING)


@ENGINES
def test_an_end_is_near_what_was_sent_last(world: World, engine: Engine) -> None:
    serve(world)
    assert goes(world, engine, syn()) == CURRENT
    assert goes(world, engine, data()) == CURRENT
    sequence = ISN
    for _ in range(40):
        sequence = sequence + (8 << 16) & 0xFFFFFFFF
        assert goes(world, engine, data(sequence=sequence)) == CURRENT
    assert goes(world, engine, data(flags="FA", sequence=ISN + 1 & 0xFFFFFFFF)) == CURRENT
    assert get(world) == (CURRENT, OLD, ISN, CONFIRMED)  # of long ago
    assert goes(world, engine, data(flags="FA", sequence=sequence)) == CURRENT
    assert get(world) == (CURRENT, OLD, ISN, CLOSING)


@ENGINES
def test_what_was_adopted_is_seen_once_before_it_ends(world: World, engine: Engine) -> None:
    """Of IPVS's connections it is not known what they sent."""
    serve(world)
    put(world, THIRD, RecordState.ADOPTED, sequence=0)
    assert goes(world, engine, data(flags="R", sequence=1 << 31)) == THIRD
    assert get(world) == (THIRD, OLD, 0, CONFIRMED)
    assert goes(world, engine, data(flags="R", sequence=(1 << 31) + 1)) == THIRD
    assert get(world) == (THIRD, OLD, 0, CLOSING)


@ENGINES
def test_a_loop_that_finds_no_server(world: World, engine: Engine) -> None:
    """IPVS goes on with it, and has all of that connection then, but none of the older ones."""
    serve(world, current=layout.FALLBACK, anticipate=True)
    assert goes(world, engine, data()) == OLD
    assert goes(world, engine, syn()) is None
    assert get(world) == (layout.FALLBACK, OLD, ISN, NEW)
    assert goes(world, engine, data(sequence=ISN + (1 << 20) & 0xFFFFFFFF)) == OLD
    assert goes(world, engine, data()) is None
    assert get(world) == (layout.FALLBACK, OLD, ISN, CONFIRMED)
    assert goes(world, engine, icmp_error(answer())) is None
    assert goes(world, engine, data(flags="FA")) is None
    assert world.reasons(SERVICE, tc=engine is Engine.TC) == {Reason.FALLBACK: 4}


@ENGINES
def test_a_fin_at_once_confirms_and_closes(world: World, engine: Engine) -> None:
    serve(world)
    put(world)
    assert goes(world, engine, data(flags="FA")) == CURRENT
    assert get(world) == (CURRENT, OLD, ISN, CLOSING)


@ENGINES
def test_being_seen_is_written_down(world: World, engine: Engine) -> None:
    serve(world)
    put(world, THIRD, CONFIRMED, age=100)
    assert goes(world, engine, data()) == THIRD
    assert get(world) == (THIRD, OLD, ISN, CONFIRMED)  # which looks at its tick


@ENGINES
@pytest.mark.parametrize(("state", "previous"), [(NEW, OLD), (CONFIRMED, THIRD), (CLOSING, THIRD)])
def test_a_tuple_is_used_again(
    world: World, engine: Engine, state: RecordState, previous: int
) -> None:
    """Its packets went to the record's server until now, unless nothing had confirmed it."""
    serve(world)
    put(world, THIRD, state)
    assert goes(world, engine, syn(sequence=5)) == CURRENT
    assert get(world) == (CURRENT, previous, 5, NEW)


@ENGINES
@pytest.mark.parametrize(
    ("state", "server"), [(NEW, THIRD), (CONFIRMED, THIRD), (CLOSING, CURRENT)]
)
def test_a_syn_sent_again(world: World, engine: Engine, state: RecordState, server: int) -> None:
    serve(world)
    put(world, THIRD, state)
    assert goes(world, engine, syn()) == server


@ENGINES
def test_a_records_server_died(world: World, engine: Engine) -> None:
    serve(world)
    kill(world, THIRD)
    put(world, THIRD, CONFIRMED)
    assert goes(world, engine, data()) == OLD
    put(world, THIRD, NEW, previous=CURRENT)
    assert goes(world, engine, data()) == CURRENT
    assert goes(world, engine, syn()) == CURRENT
    assert get(world) == (CURRENT, CURRENT, ISN, NEW)


@ENGINES
def test_its_previous_server_died_too(world: World, engine: Engine) -> None:
    serve(world)
    kill(world, THIRD)
    put(world, CURRENT, NEW, previous=THIRD)
    assert goes(world, engine, data(sequence=1 << 30)) == OLD
    kill(world, OLD)
    assert goes(world, engine, data(sequence=1 << 30)) == CURRENT
