"""The director: VLAN tags kept, rewritten, pushed and popped; servers on other devices (XDP)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lbdr.datapath import xdp_layout as layout
from lbdr.datapath.bpf_wire import Verdict
from lbdr.datapath.xdp_layout import Place, Reason
from tests.director_frames import (
    ALONE,
    Case,
    answer,
    check,
    datagram,
    forwarded,
    icmp_error,
    ip4,
    ip6,
    segment,
    tag,
)
from tests.director_vlans import COME, LEAVE, Q, tags_out
from tests.fastpath import LO, OWN, Engine, World

XDP = (Engine.XDP, Engine.DIRECTOR)
ELSEWHERE, ITS_MAC = 9, "02:00:00:00:00:02"

BUILD: dict[str, Callable[..., bytes]] = {"IPv4": ip4, "IPv6": ip6}


@pytest.mark.parametrize("engine", XDP)
@pytest.mark.parametrize("version", BUILD)
@pytest.mark.parametrize("leave", LEAVE)
@pytest.mark.parametrize("come", COME)
def test_tags_are_exchanged(
    world: World, engine: Engine, version: str, come: str, leave: str
) -> None:
    tags, vlans = COME[come]
    frame = BUILD[version](segment(), tags=tags)
    out = forwarded(frame, tags=tags_out(come, leave))
    service = {"vip": Place(LO, OWN, vlans)}
    server = {"out": Place(LO, OWN, LEAVE[leave])}
    check(world, engine, Case("tags", frame, sent=True, service=service, server=server, out=out))


@pytest.mark.parametrize("engine", XDP)
@pytest.mark.parametrize("come", COME)
def test_tags_of_its_own_vlan_are_kept_as_they_are(world: World, engine: Engine, come: str) -> None:
    tags, vlans = COME[come]
    service = {"vip": Place(LO, OWN, vlans)}
    check(world, engine, Case("tcp", ip4(segment(), tags=tags), sent=True, service=service))
    world.clear()
    check(world, engine, Case("udp", ip6(datagram(), tags=tags), sent=True, service=service))


@pytest.mark.parametrize("engine", XDP)
def test_an_icmp_error_changes_its_vlan(world: World, engine: Engine) -> None:
    frame = icmp_error(answer(), tags=tag(7, 5, dei=1))
    service = {"vip": Place(LO, OWN, ((Q, 7),))}
    server = {"out": Place(LO, OWN, LEAVE["two tags"])}
    out = forwarded(frame, tags=tags_out("a tag", "two tags"))
    check(world, engine, Case("error", frame, sent=True, service=service, server=server, out=out))


@pytest.mark.parametrize("engine", XDP)
def test_what_cannot_be_forwarded_keeps_its_tags(world: World, engine: Engine) -> None:
    frame = ip4(segment(), ttl=1, tags=tag(7, 5))
    service = {"vip": Place(LO, OWN, ((Q, 7),))}
    server = {"out": Place(LO, OWN)}
    case = Case("ttl", frame, Reason.TTL, service=service, server=server)
    check(world, engine, case)


# --- another device ------------------------------------------------------------------------------


def other_device(world: World) -> None:
    """The map knows a device; that it is lo does not matter before the frame leaves."""
    world.maps["devices"].update(layout.U32.pack(ELSEWHERE), layout.U32.pack(LO))


def away(frame: bytes, **fields: Any) -> Case:
    """A frame for a server on another device."""
    settings: dict[str, Any] = {
        "sent": True,
        "server": {"out": Place(ELSEWHERE, ITS_MAC)},
        "setup": other_device,
        **fields,
    }
    return Case("another device", frame, **settings)


@pytest.mark.parametrize("engine", list(Engine))
@pytest.mark.parametrize(
    "frame",
    [ip4(segment("S")), ip4(datagram()), ip6(segment()), icmp_error(answer())],
    ids=["SYN", "udp", "IPv6", "error"],
)
def test_another_device(world: World, engine: Engine, frame: bytes) -> None:
    check(world, engine, away(frame))


@pytest.mark.parametrize("engine", XDP)
@pytest.mark.parametrize("leave", LEAVE)
def test_another_device_and_vlan(world: World, engine: Engine, leave: str) -> None:
    tags, vlans = COME["a tag"]
    frame = ip4(segment(), tags=tags)
    out = forwarded(frame, source=ITS_MAC, tags=tags_out("a tag", leave))
    server = {"out": Place(ELSEWHERE, ITS_MAC, LEAVE[leave])}
    case = away(frame, service={"vip": Place(LO, OWN, vlans)}, server=server, out=out)
    check(world, engine, case)


@pytest.mark.parametrize("engine", XDP)
@pytest.mark.parametrize("tags", [(), ((Q, 100),)], ids=["untagged", "tagged"])
def test_a_device_that_is_gone(world: World, engine: Engine, tags: Any) -> None:
    """The kernel takes a device that goes out of the map: IPVS has the packet, as it came."""
    server = {"out": Place(ELSEWHERE, ITS_MAC, tags)}
    gone = away(ip4(segment()), sent=False, reason=Reason.NEIGHBOUR, server=server, setup=None)
    check(world, engine, gone)


@pytest.mark.parametrize("engine", XDP)
def test_a_device_that_is_gone_without_ipvs(world: World, engine: Engine) -> None:
    gone = away(
        ip6(segment()),
        sent=False,
        dropped=True,
        reason=Reason.NEIGHBOUR,
        flags=ALONE,
        setup=None,
    )
    check(world, engine, gone)


def test_tc_does_not_look_for_tags_in_the_data(world: World) -> None:
    """The kernel takes the outer tag off before tc: a frame that has one there is no IP packet."""
    check(world, Engine.TC, Case("none", ip4(segment()), sent=True))
    outcome = world.run(Engine.TC, ip4(segment(), tags=tag(7)))
    assert outcome.verdict is Verdict.PASS
    assert outcome.data == ip4(segment(), tags=tag(7))
