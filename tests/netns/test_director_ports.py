"""The director: which service a port is of, in its line, in the tables behind, or in a range."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache

import pytest

from lbdr.datapath import xdp_layout as layout
from lbdr.datapath.bpf_wire import Verdict
from lbdr.datapath.xdp_ports import port_line
from lbdr.model import Address, Protocol
from tests.director_frames import (
    SLOTS,
    VIP,
    VIP6,
    datagram,
    forwarded,
    ip4,
    ip6,
    segment,
)
from tests.fastpath import Engine, Outcome, World, slot

ENGINES = pytest.mark.parametrize("engine", list(Engine))
VIPS = pytest.mark.parametrize("vip", [VIP, VIP6], ids=["4", "6"])
SERVICES = 12


def serve(world: World) -> None:
    """Services without ports yet, each with a server of its own."""
    lines = world.maps.capacity.lines
    for index in range(1, SERVICES + 1):
        world.server(index, mac_of(index))
        world.table(index * lines, [slot(index)] * SLOTS)
        world.service(index, VIP, index, table=index * lines)
        world.maps.delete_port(layout.key_of(VIP, index, Protocol.TCP.number))


def mac_of(service: int) -> str:
    return f"02:00:00:00:02:{service:02x}"


@cache
def frame_to(vip: Address, port: int, protocol: Protocol = Protocol.TCP) -> bytes:
    payload = segment(dport=port) if protocol is Protocol.TCP else datagram(dport=port)
    return ip4(payload) if vip.version == 4 else ip6(payload)


def asked(
    world: World, engine: Engine, vip: Address, port: int, protocol: Protocol = Protocol.TCP
) -> int:
    """The service that a frame is of, seen by its server; 0 where it passes."""
    frame = frame_to(vip, port, protocol)
    outcome = world.run(engine, frame)
    if outcome == Outcome(Verdict.PASS, frame):
        return 0
    service = outcome.data[5]
    assert outcome.data == forwarded(frame, mac_of(service))
    return service


def sharing(world: World, vip: Address) -> Sequence[int]:
    """Ports of an address whose line is the same."""
    bits = layout.port_bits(world.maps.capacity, vip.version)
    by_line: dict[int, list[int]] = {}
    for port in range(1, 65536):
        key = layout.key_of(vip, port, Protocol.TCP.number)
        ports = by_line.setdefault(port_line(key, bits), [])
        ports.append(port)
        if len(ports) == SERVICES:
            return ports
    raise AssertionError("no line is so full")


@VIPS
@ENGINES
def test_more_ports_than_a_line_holds(world: World, engine: Engine, vip: Address) -> None:
    serve(world)
    ports = sharing(world, vip)
    for service, port in enumerate(ports, 1):
        world.key(service, vip, port)
    assert [asked(world, engine, vip, port) for port in ports] == list(range(1, SERVICES + 1))
    for port in ports[:4]:  # others get their places
        world.maps.delete_port(layout.key_of(vip, port, Protocol.TCP.number))
    found = [asked(world, engine, vip, port) for port in ports]
    assert found == [0, 0, 0, 0, *range(5, SERVICES + 1)]


@VIPS
@ENGINES
def test_a_port_becomes_anothers(world: World, engine: Engine, vip: Address) -> None:
    serve(world)
    world.key(1, vip, 443)
    assert asked(world, engine, vip, 443) == 1
    world.key(2, vip, 443)
    assert asked(world, engine, vip, 443) == 2
    world.maps.delete_port(layout.key_of(vip, 443, Protocol.TCP.number))
    assert asked(world, engine, vip, 443) == 0


@VIPS
@ENGINES
def test_a_range_behind_exact_ports(world: World, engine: Engine, vip: Address) -> None:
    """It comes and goes beside a port that is in a line."""
    serve(world)
    key = layout.key_of(vip, 0, Protocol.TCP.number)
    world.key(1, vip, 443)
    assert asked(world, engine, vip, 444) == 0
    world.ranges(vip, [(440, 449, 2), (1000, 1000, 3)])
    assert [asked(world, engine, vip, port) for port in (443, 444, 450, 1000)] == [1, 2, 0, 3]
    assert asked(world, engine, vip, 444, Protocol.UDP) == 0
    world.maps.delete_ranges(key)
    assert [asked(world, engine, vip, port) for port in (443, 444, 1000)] == [1, 0, 0]


@ENGINES
@pytest.mark.parametrize("seed", range(3))
def test_any_ports(world: World, engine: Engine, seed: int) -> None:
    """Many of many addresses, that come, go, and become others'."""
    serve(world)
    chance = random.Random(seed)  # noqa: S311  # ports
    ports: dict[tuple[Address, int, Protocol], int] = {}
    for _ in range(80):
        vip = chance.choice([VIP, VIP6])
        one = vip, chance.randrange(20, 24), chance.choice([Protocol.TCP, Protocol.UDP])
        key = layout.key_of(vip, one[1], one[2].number)
        if one in ports and chance.random() < 0.5:
            del ports[one]
            world.maps.delete_port(key)
        else:
            ports[one] = chance.randrange(1, SERVICES + 1)
            world.key(ports[one], *one)
        for vip in (VIP, VIP6):
            for port in range(19, 25):
                for protocol in (Protocol.TCP, Protocol.UDP):
                    expected = ports.get((vip, port, protocol), 0)
                    assert asked(world, engine, vip, port, protocol) == expected
