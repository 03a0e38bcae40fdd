"""The director: flows whose server IPVS chose are repeated."""

from __future__ import annotations

from typing import Any

import pytest
from scapy.packet import Raw

from lbdr.datapath.bpf_wire import Verdict
from lbdr.datapath.xdp_layout import LearnedState, Reason
from tests.director_flows import (
    KINDS,
    MACS,
    ONE,
    REFRESH,
    TIMEOUT,
    flags_of,
    frame_of,
    get,
    passes,
    put,
    sent,
    serve,
)
from tests.director_frames import (
    CLIENT_PORT,
    SERVICE,
    answer,
    datagram,
    icmp_error,
    ip4,
    segment,
)
from tests.fastpath import Engine, World, tick

ENGINES = pytest.mark.parametrize("engine", list(Engine))


@ENGINES
@pytest.mark.parametrize("kind", KINDS)
def test_a_flow_is_repeated(world: World, engine: Engine, kind: str) -> None:
    serve(world, flags_of(kind))
    put(world, kind)
    for _ in range(2):
        assert world.run(engine, frame_of(kind)) == sent(engine, frame_of(kind))
    assert world.served(ONE)[0] == 2
    assert world.reasons(SERVICE) == world.reasons(SERVICE, tc=True) == {}


@ENGINES
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("flags", ["A", "PA", "", "U"])
def test_a_flow_that_is_not_known(world: World, engine: Engine, kind: str, flags: str) -> None:
    serve(world, flags_of(kind))
    passes(world, engine, frame_of(kind, flags), Reason.NOT_LEARNED)
    assert get(world, kind) is None


@ENGINES
@pytest.mark.parametrize(
    "fields", [{"sport": CLIENT_PORT + 1}, {"src": "198.51.100.8"}], ids=["port", "client"]
)
def test_a_flow_of_another(world: World, engine: Engine, fields: dict[str, Any]) -> None:
    serve(world)
    put(world)
    frame = ip4(segment(), **fields) if "src" in fields else ip4(segment(**fields))
    passes(world, engine, frame, Reason.NOT_LEARNED)


@ENGINES
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("flags", ["S", "SA", "SF"])
def test_a_syn_forgets(world: World, engine: Engine, kind: str, flags: str) -> None:
    serve(world, flags_of(kind))
    put(world, kind)
    passes(world, engine, frame_of(kind, flags), Reason.NOT_LEARNED)
    assert get(world, kind) is None


@ENGINES
def test_a_syn_forgets_one_that_is_closing(world: World, engine: Engine) -> None:
    serve(world)
    put(world, state=LearnedState.CLOSING)
    passes(world, engine, ip4(segment("S")), Reason.NOT_LEARNED)
    assert get(world) is None


@ENGINES
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("flags", ["FA", "R", "RA"])
def test_closing_is_for_ipvs(world: World, engine: Engine, kind: str, flags: str) -> None:
    serve(world, flags_of(kind))
    refreshed = put(world, kind)
    passes(world, engine, frame_of(kind, flags), Reason.CLOSING)
    assert get(world, kind) == (ONE, LearnedState.CLOSING, refreshed)
    assert world.run(engine, frame_of(kind)).verdict is Verdict.PASS
    assert world.reasons(SERVICE, tc=engine is Engine.TC) == {Reason.CLOSING: 2}


@ENGINES
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("age", [REFRESH + 1, TIMEOUT - 2])
def test_a_refresh_is_due(world: World, engine: Engine, kind: str, age: int) -> None:
    serve(world, flags_of(kind))
    before = put(world, kind, age=age)
    passes(world, engine, frame_of(kind), Reason.REFRESH)
    found = get(world, kind)
    assert found is not None
    assert found[2] > before
    assert found[2] in {tick(), tick() - 1}


@ENGINES
def test_after_a_refresh_it_is_repeated_again(world: World, engine: Engine) -> None:
    serve(world)
    put(world, age=REFRESH)
    passes(world, engine, frame_of("flows4"), Reason.REFRESH)
    # tc cannot tell the refresh that XDP sent up from what follows it in the same tick
    put(world, age=1)
    assert world.run(engine, frame_of("flows4")) == sent(engine, frame_of("flows4"))


@ENGINES
@pytest.mark.parametrize("age", [0, 1, REFRESH - 2])
def test_no_refresh_is_due(world: World, engine: Engine, age: int) -> None:
    serve(world)
    put(world, age=age)
    outcome = world.run(engine, frame_of("flows4"))
    if engine is Engine.TC and age == 0 and outcome.verdict is Verdict.PASS:
        assert world.reasons(SERVICE, tc=True) == {Reason.REFRESH: 1}  # it may be XDP's
    else:
        assert outcome == sent(engine, frame_of("flows4"))


@ENGINES
@pytest.mark.parametrize("age", [TIMEOUT + 1, 100000])
def test_ipvs_forgot_it(world: World, engine: Engine, age: int) -> None:
    """A refresh would be scheduled anew, so the flow stays where it is."""
    serve(world)
    before = put(world, age=age)
    assert world.run(engine, frame_of("flows4")) == sent(engine, frame_of("flows4"))
    assert get(world) == (ONE, LearnedState.OPEN, before)


@ENGINES
@pytest.mark.parametrize("kind", KINDS)
def test_its_server_is_dead(world: World, engine: Engine, kind: str) -> None:
    serve(world, flags_of(kind))
    put(world, kind)
    world.server(ONE, MACS[ONE], alive=False)
    passes(world, engine, frame_of(kind), Reason.NO_SERVER)


@ENGINES
def test_a_refresh_of_a_dead_servers_flow(world: World, engine: Engine) -> None:
    """IPVS has it for good: nothing is written down as if it lived."""
    serve(world)
    before = put(world, age=REFRESH + 1)
    world.server(ONE, MACS[ONE], alive=False)
    passes(world, engine, frame_of("flows4"), Reason.NO_SERVER)
    assert get(world) == (ONE, LearnedState.OPEN, before)


@ENGINES
def test_its_server_is_not_resolved(world: World, engine: Engine) -> None:
    serve(world)
    put(world)
    world.server(ONE, None)
    passes(world, engine, frame_of("flows4"), Reason.NEIGHBOUR)


@ENGINES
@pytest.mark.parametrize("age", [1, REFRESH + 1], ids=["fresh", "due"])
def test_an_error_follows_its_flow(world: World, engine: Engine, age: int) -> None:
    """It is no sign of life for IPVS, so it is never the refresh."""
    serve(world)
    before = put(world, age=age)
    assert world.run(engine, icmp_error(answer())) == sent(engine, icmp_error(answer()))
    assert get(world) == (ONE, LearnedState.OPEN, before)


@ENGINES
def test_an_error_of_an_unknown_flow(world: World, engine: Engine) -> None:
    serve(world)
    passes(world, engine, icmp_error(answer()), Reason.NOT_LEARNED)


@ENGINES
def test_an_error_of_a_closing_flow(world: World, engine: Engine) -> None:
    serve(world)
    put(world, state=LearnedState.CLOSING)
    passes(world, engine, icmp_error(answer()), Reason.CLOSING)


@ENGINES
def test_udp_has_no_flags(world: World, engine: Engine) -> None:
    serve(world)
    put(world)
    frame = ip4(datagram() / Raw(b"\xff" * 20))
    assert world.run(engine, frame) == sent(engine, frame)


@ENGINES
def test_a_segment_without_its_flags(world: World, engine: Engine) -> None:
    serve(world)
    put(world)
    frame = ip4(Raw(bytes(segment())[:13]), proto=6)
    passes(world, engine, frame, Reason.NOT_LEARNED)
