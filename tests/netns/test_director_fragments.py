"""The director without IPVS: later fragments go where the first one went, and nowhere else."""

from __future__ import annotations

from typing import Any

import pytest
from scapy.packet import Raw

from lbdr.datapath.bpf_wire import Verdict
from lbdr.datapath.xdp_layout import Place, Reason, ServiceFlag
from tests.director_frames import (
    ACTIVE,
    ALONE,
    PORT,
    SERVER,
    SERVER_MAC,
    SERVICE,
    VIP,
    Case,
    changed,
    datagram,
    forwarded,
    ip4,
    segment,
    standard,
    tag,
)
from tests.fastpath import OWN, Engine, Outcome, World

ENGINES = pytest.mark.parametrize("engine", list(Engine))


def first(**fields: Any) -> bytes:
    return ip4(datagram() / Raw(b"x" * 30), **{"flags": "MF", "id": 7, **fields})


def later(**fields: Any) -> bytes:
    return ip4(Raw(b"y" * 40), **{"id": 7, "frag": 5, "proto": 17, **fields})


def begin(world: World, engine: Engine, **fields: Any) -> None:
    """A first fragment went to SERVER."""
    standard(world, Case("", b"", flags=ALONE, **fields))
    outcome = world.run(engine, first())
    assert outcome.data == forwarded(first())
    assert world.served(SERVER)[0] == 1


@ENGINES
@pytest.mark.parametrize(
    "fields",
    [{}, {"flags": "MF"}, {"frag": 8191}, {"ttl": 2}, {"tos": 8}, {"frag": 1}],
    ids=["later", "not the last", "the furthest", "ttl 2", "tos", "the nearest"],
)
def test_later_ones_follow(world: World, engine: Engine, fields: dict[str, Any]) -> None:
    begin(world, engine)
    outcome = world.run(engine, later(**fields))
    assert outcome.data == forwarded(later(**fields))
    assert outcome.verdict is (Verdict.REDIRECT if engine is Engine.TC else Verdict.TX)
    assert world.served(SERVER)[0] == 2
    assert world.reasons(SERVICE, tc=engine is Engine.TC) == {}


@ENGINES
def test_the_last_byte_follows(world: World, engine: Engine) -> None:
    begin(world, engine)
    frame = ip4(Raw(b"y"), id=7, frag=5, proto=17)
    assert world.run(engine, frame).data == forwarded(frame)


@ENGINES
@pytest.mark.parametrize(
    "fields",
    [{"id": 8}, {"proto": 6}, {"src": "198.51.100.8"}],
    ids=["identification", "protocol", "client"],
)
def test_those_of_others_pass(world: World, engine: Engine, fields: dict[str, Any]) -> None:
    begin(world, engine)
    assert world.run(engine, later(**fields)) == Outcome(Verdict.PASS, later(**fields))
    assert world.reasons(0, tc=engine is Engine.TC) == {Reason.FRAGMENT: 1}


@ENGINES
@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"mac": "02:00:00:00:00:02"}, Reason.OTHER_HOST),
        ({"mac": "ff:ff:ff:ff:ff:ff"}, Reason.OTHER_HOST),
        ({"tags": tag(7)}, Reason.OTHER_VLAN),
    ],
    ids=["another MAC", "broadcast", "another VLAN"],
)
def test_what_is_not_ours_passes(
    world: World, engine: Engine, fields: dict[str, Any], reason: Reason
) -> None:
    begin(world, engine)
    frame = later(**fields)
    assert world.run(engine, frame) == Outcome(Verdict.PASS, frame)
    if engine is not Engine.TC or "tags" not in fields:
        assert world.reasons(SERVICE, tc=engine is Engine.TC) == {reason: 1}
    assert world.served(SERVER)[0] == 1


@ENGINES
@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (later(ttl=1), Reason.TTL),
        (later(ttl=0), Reason.TTL),
        (later()[:-1], Reason.LENGTH),
        (changed(later(), 2, b"\0\x13"), Reason.LENGTH),
        (ip4(Raw(b"y" * 1481), id=7, frag=5, proto=17), Reason.MTU),
    ],
    ids=["ttl 1", "ttl 0", "short of a byte", "shorter than a header", "mtu"],
)
def test_what_is_unfit_is_dropped(
    world: World, engine: Engine, frame: bytes, reason: Reason
) -> None:
    begin(world, engine)
    assert world.run(engine, frame) == Outcome(Verdict.DROP, frame)
    assert world.reasons(SERVICE, tc=engine is Engine.TC) == {reason: 1}


@ENGINES
def test_a_server_that_died_meanwhile(world: World, engine: Engine) -> None:
    begin(world, engine)
    world.server(SERVER, SERVER_MAC, alive=False)
    assert world.run(engine, later()) == Outcome(Verdict.DROP, later())
    assert world.reasons(SERVICE, tc=engine is Engine.TC) == {Reason.NO_SERVER: 1}


@ENGINES
def test_a_service_that_is_gone_meanwhile(world: World, engine: Engine) -> None:
    begin(world, engine)
    world.service(SERVICE, VIP, PORT, flags=ServiceFlag(0))
    assert world.run(engine, later()) == Outcome(Verdict.PASS, later())
    assert world.served(SERVER)[0] == 1


@ENGINES
def test_ipvs_that_came_meanwhile(world: World, engine: Engine) -> None:
    begin(world, engine)
    world.service(SERVICE, VIP, PORT, flags=ACTIVE)
    assert world.run(engine, later()) == Outcome(Verdict.PASS, later())
    assert world.reasons(SERVICE, tc=engine is Engine.TC) == {Reason.FRAGMENT: 1}


@ENGINES
def test_another_device(world: World, engine: Engine) -> None:
    begin(world, engine)
    world.service(SERVICE, VIP, PORT, flags=ALONE, vip=Place(77, OWN))
    assert world.run(engine, later()) == Outcome(Verdict.PASS, later())
    assert world.reasons(SERVICE, tc=engine is Engine.TC) == {Reason.OTHER_VLAN: 1}


@ENGINES
def test_a_tcp_segment_in_fragments(world: World, engine: Engine) -> None:
    begin(world, engine)
    head = ip4(segment() / Raw(b"x" * 26), flags="MF", id=9)
    tail = ip4(Raw(b"y" * 40), id=9, frag=6, proto=6)
    assert world.run(engine, head).data == forwarded(head)
    assert world.run(engine, tail).data == forwarded(tail)


@ENGINES
def test_with_ipvs_nothing_is_remembered(world: World, engine: Engine) -> None:
    standard(world, Case("", b""))
    for frame in (first(), later()):
        assert world.run(engine, frame) == Outcome(Verdict.PASS, frame)
    assert world.maps["fragments"].keys() == []
