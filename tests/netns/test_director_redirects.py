"""Redirecting to another device in XDP: only where that device takes such frames."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing

import pytest
from netlab import INTERFACE, Lab

from lbdr.datapath import xdp_redirects
from lbdr.datapath.bpf_links import Link
from lbdr.datapath.bpf_wire import XdpFlag
from lbdr.datapath.xdp_layout import Place, Reason
from tests.director_frames import (
    ACTIVE,
    PORT,
    SERVER,
    SERVICE,
    SLOTS,
    VIP,
    forwarded,
    ip4,
    segment,
)
from tests.fastpath import World, slot
from tests.wires import Wire

_BACK = "back"
_SECONDS = 5.0


@pytest.fixture
def back(lab: Lab) -> Iterator[int]:
    """The director's second device, which leads to web1 alone; this thread is on the director."""
    lab.ip(
        "director",
        f"link add name {_BACK} type veth peer name {_BACK} netns {lab['web1'].namespace}",
        f"link set dev {_BACK} up",
    )
    lab.ip("web1", f"link set dev {_BACK} up")
    with lab.entered("director"):
        yield socket.if_nametoindex(_BACK)


def take(lab: Lab, takes: bool) -> None:
    """A veth takes redirected frames while its peer has NAPI, as with GRO."""
    lab.run("web1", ["ethtool", "-K", _BACK, "gro", "on" if takes else "off"])


async def until(
    changes: AsyncGenerator[None, None], condition: Callable[[frozenset[int]], bool]
) -> None:
    """Wait for a notice after which the takers are as wanted."""
    async with asyncio.timeout(_SECONDS):
        while not condition(await xdp_redirects.takers()):
            await anext(changes)


def test_a_change_is_told(lab: Lab, back: int) -> None:
    async def main() -> None:
        async with aclosing(xdp_redirects.changes()) as changes:
            await anext(changes)
            assert back not in await xdp_redirects.takers()
            take(lab, True)
            await until(changes, lambda found: back in found)
            take(lab, False)
            await until(changes, lambda found: back not in found)

    asyncio.run(main())


def test_only_devices_that_take_frames_are_kept(lab: Lab, back: int, world: World) -> None:
    devices = world.maps["devices"]
    own = socket.if_nametoindex(INTERFACE)

    def keep(*wanted: int) -> frozenset[int]:
        return asyncio.run(xdp_redirects.keep(devices, wanted))

    assert keep(back) == frozenset()
    assert devices.keys() == []
    take(lab, True)
    assert keep(back) == {back}
    assert len(devices.keys()) == 1
    assert keep(own) <= {own}
    assert back.to_bytes(4, "little") not in devices.keys()  # noqa: SIM118  # it is no dict
    assert keep(back, own) >= {back}
    take(lab, False)
    assert back not in keep(back, own)
    assert keep() == frozenset()
    assert devices.keys() == []


def test_frames_leave_by_the_other_device(lab: Lab, back: int, world: World) -> None:
    """And pass up, to tc or IPVS, while it takes none."""
    ifindex = socket.if_nametoindex(INTERFACE)
    vip = Place(ifindex, lab["director"].mac)
    mac, server = "02:77:00:00:00:01", "02:77:00:00:00:02"
    world.server(SERVER, server, vip, out=Place(back, mac))
    world.table(0, [slot(SERVER)] * SLOTS)
    world.service(SERVICE, VIP, PORT, vip=vip, flags=ACTIVE)
    frames = [ip4(segment("S", sport=port), mac=vip.mac) for port in (40001, 40002)]
    attached = Link.create(world.programs.steady, ifindex, flags=XdpFlag.NATIVE)
    with attached, Wire(lab, "client") as client, Wire(lab, "web1", _BACK) as web:
        asyncio.run(xdp_redirects.keep(world.maps["devices"], [back]))
        with Wire(lab, "director") as stack:  # who sees what passes
            client.send(frames[0])
            assert stack.receive(vip.mac) == frames[0]
        assert world.reasons(SERVICE) == {Reason.NEIGHBOUR: 1}
        take(lab, True)
        assert asyncio.run(xdp_redirects.keep(world.maps["devices"], [back])) == {back}
        client.send(frames[1])
        assert web.receive(server) == forwarded(frames[1], server, mac)
    assert world.reasons(SERVICE) == {Reason.NEIGHBOUR: 1}
    assert world.served(SERVER)[0] == 1
