"""Learning at tc egress: the frames that leave show whom IPVS chose."""

from __future__ import annotations

import pytest
from scapy.packet import Raw

from lbdr.datapath.xdp_layout import LearnedState, ServiceFlag
from tests.director_flows import (
    KINDS,
    MACS,
    ONE,
    TWO,
    flags_of,
    frame_of,
    get,
    put,
    sent,
    serve,
)
from tests.director_frames import (
    CLIENT,
    VIP,
    answer,
    datagram,
    forwarded,
    icmp_error,
    ip4,
    segment,
)
from tests.fastpath import Engine, World, tick


def leaving(kind: str = "flows4", flags: str = "A", server: int = ONE) -> bytes:
    """A frame of the client, as IPVS sends it to a server."""
    return forwarded(frame_of(kind, flags), MACS[server])


def learn(world: World, frame: bytes, came_in: int = 1) -> None:
    """What leaves passes as it is."""
    result = world.run_learn(frame, came_in=came_in)
    assert result.returned == 0xFFFFFFFF
    assert result.data == frame


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("flags", ["A", "PA", ""])
def test_a_flow_is_learned(world: World, kind: str, flags: str) -> None:
    serve(world, flags_of(kind))
    learn(world, leaving(kind, flags))
    found = get(world, kind)
    assert found is not None
    assert found[:2] == (ONE, LearnedState.OPEN)
    assert found[2] in {tick(), tick() - 1}
    # and XDP repeats it at once
    assert world.run(Engine.XDP, frame_of(kind)) == sent(Engine.XDP, frame_of(kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("flags", ["S", "SA", "FA", "R"])
def test_a_beginning_or_an_end_teaches_nothing(world: World, kind: str, flags: str) -> None:
    serve(world, flags_of(kind))
    learn(world, leaving(kind, flags))
    assert get(world, kind) is None


def test_udp_is_learned(world: World) -> None:
    serve(world)
    learn(world, forwarded(ip4(datagram()), MACS[TWO]))
    assert (get(world) or ())[:1] == (TWO,)


@pytest.mark.parametrize(
    "frame",
    [
        forwarded(frame_of("flows4"), "02:00:00:00:00:77"),
        forwarded(ip4(segment(dport=81)), MACS[ONE]),
        forwarded(ip4(segment(), dst="192.0.2.11"), MACS[ONE]),
        forwarded(ip4(segment(), src=str(VIP), dst=CLIENT), MACS[ONE]),
        forwarded(icmp_error(answer()), MACS[ONE]),
        forwarded(ip4(segment(), flags="MF"), MACS[ONE]),
        forwarded(ip4(Raw(b"x" * 40), frag=3, proto=6), MACS[ONE]),
        forwarded(ip4(Raw(bytes(segment())[:13]), proto=6), MACS[ONE]),
    ],
    ids=[
        "to no server",
        "another port",
        "another address",
        "an answer",
        "an error",
        "a fragment",
        "a later fragment",
        "cut",
    ],
)
def test_what_teaches_nothing(world: World, frame: bytes) -> None:
    serve(world)
    learn(world, frame)
    assert world.maps["flows4"].keys() == world.maps["flows"].keys() == []


def test_the_hosts_own_teach_nothing(world: World) -> None:
    """A probe of the director's own goes to a server, too, and came in nowhere."""
    serve(world)
    learn(world, leaving(), came_in=0)
    assert get(world) is None


@pytest.mark.parametrize("flags", [ServiceFlag.ACTIVE, ServiceFlag.ACTIVE | ServiceFlag.ALONE])
def test_other_services_teach_nothing(world: World, flags: ServiceFlag) -> None:
    serve(world, flags)
    learn(world, leaving())
    assert world.maps["flows4"].keys() == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_flow_moves_when_ipvs_moved_it(world: World, kind: str) -> None:
    serve(world, flags_of(kind))
    refreshed = put(world, kind)
    learn(world, leaving(kind, server=TWO))
    assert get(world, kind) == (TWO, LearnedState.OPEN, refreshed)


def test_a_closing_flow_stays(world: World) -> None:
    """It is IPVS's until the next SYN, which forgets it."""
    serve(world)
    refreshed = put(world, state=LearnedState.CLOSING)
    learn(world, leaving(server=TWO))
    assert get(world) == (ONE, LearnedState.CLOSING, refreshed)
