"""The director on a real link at tc, where the kernel takes the outer tag off before."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from itertools import product

import pytest
from netlab import INTERFACE, Lab

from lbdr.datapath import tc
from lbdr.datapath import xdp_layout as layout
from lbdr.datapath.tc import Direction
from lbdr.datapath.xdp_layout import Place, Reason, ServiceFlag
from tests.director_frames import (
    ACTIVE,
    PORT,
    SERVER,
    SERVICE,
    SLOTS,
    VIP,
    VIP6,
    forwarded,
    ip4,
    ip6,
    segment,
    tag,
)
from tests.director_vlans import COME, LEAVE, tags_out
from tests.fastpath import World, slot
from tests.wires import Wire


@pytest.fixture
def place(lab: Lab, world: World) -> Place:
    """The director's link, where tc asks the program."""
    with lab.entered("director"):
        ifindex = socket.if_nametoindex(INTERFACE)
        asyncio.run(tc.attach(world.programs.tc, ifindex, Direction.INGRESS))
    return Place(ifindex, lab["director"].mac)


def serve(world: World, lab: Lab, vip: Place, out: Place, flags: ServiceFlag = ACTIVE) -> None:
    world.server(SERVER, lab["web1"].mac, vip, out=out)
    world.table(0, [slot(SERVER)] * SLOTS)
    world.service(SERVICE, VIP, PORT, vip=vip, flags=flags)
    world.key(SERVICE, VIP6, PORT)


def test_tags_are_exchanged(lab: Lab, world: World, place: Place) -> None:
    """With the priorities that came in, and checksums that are right."""
    builds: tuple[Callable[..., bytes], ...] = (ip4, ip6)
    with Wire(lab, "client") as client, Wire(lab, "web1") as web:
        for come, leave, build in product(COME, LEAVE, builds):
            tags, vlans = COME[come]
            vip = Place(place.ifindex, place.mac, vlans)
            serve(world, lab, vip, Place(place.ifindex, place.mac, LEAVE[leave]))
            frame = build(segment(), mac=place.mac, tags=tags)
            client.send(frame)
            out = forwarded(frame, lab["web1"].mac, place.mac, tags_out(come, leave))
            if vlans == LEAVE[leave]:
                out = forwarded(frame, lab["web1"].mac, place.mac)
            assert web.receive(lab["web1"].mac).hex() == out.hex(), (come, leave)
    assert world.served(SERVER)[0] == len(COME) * len(LEAVE) * 2


def test_another_vlan_passes(lab: Lab, world: World, place: Place) -> None:
    """What comes after it shows that it had been there."""
    vip = Place(place.ifindex, place.mac, ((0x8100, 7),))
    serve(world, lab, vip, vip)
    with Wire(lab, "client") as client, Wire(lab, "web1") as web:
        for tags in (None, tag(8), tag(7, outer=True), tag(7) / tag(8), tag(0, 5)):
            client.send(ip4(segment(), mac=place.mac, tags=tags))
        frame = ip4(segment("F"), mac=place.mac, tags=tag(7, 2))
        client.send(frame)
        assert web.receive(lab["web1"].mac) == forwarded(frame, lab["web1"].mac, place.mac)
    assert world.reasons(SERVICE, tc=True) == {Reason.OTHER_VLAN: 5}
    assert world.served(SERVER)[0] == 1


def test_a_flow_in_a_vlan_is_learned(lab: Lab, world: World, place: Place) -> None:
    """What leaves for a server by a tag is seen by the program at egress; the host's own is not."""
    vip = Place(place.ifindex, place.mac)
    out = Place(place.ifindex, place.mac, ((0x8100, 7),))
    serve(world, lab, vip, out)
    key = layout.SERVER_KEY.pack(SERVICE, layout.mac_bytes(lab["web1"].mac))
    world.maps["macs"].update(key, layout.U32.pack(SERVER))
    with lab.entered("director"):
        asyncio.run(tc.attach(world.programs.learn, place.ifindex, Direction.EGRESS))
    with Wire(lab, "client") as client, Wire(lab, "web1") as web:
        client.send(ip4(segment(), mac=place.mac))
        web.receive(lab["web1"].mac)
        assert world.maps["flows4"].keys() == []  # the director's own choice is nothing to learn
        world.service(SERVICE, VIP, PORT, vip=vip, flags=ACTIVE | ServiceFlag.LEARNED)
        with Wire(lab, "director") as own:
            own.send(forwarded(ip4(segment()), lab["web1"].mac))
            web.receive(lab["web1"].mac)
    assert world.maps["flows4"].keys() == []
