"""What the programs remember, as a person is shown it."""

from __future__ import annotations

from ipaddress import ip_address

from lbdr.datapath import xdp_layout as layout
from lbdr.datapath.xdp_layout import LearnedState, RecordState
from lbdr.datapath.xdp_remembered import FoundFlow, flows, servers
from lbdr.model import Address
from lbdr.tracking import Record
from tests.fastpath import World, tick

ONE, TWO = ip_address("192.0.2.21"), ip_address("2001:db8::22")
SERVICES = {1: (4, 80), 2: (6, 81)}


def place(world: World, service: int, rip: Address, index: int) -> None:
    key = layout.PLACED_KEY.pack(service, rip.version, rip.packed)
    world.maps["places"].update(key, layout.PLACED.pack(index, 1))


def record(world: World, service: int, client: str, state: RecordState, age: int) -> None:
    """A record of a client's port 1000: server 5, before that 6."""
    key = layout.flow_of(ip_address(client), 1000, 8080, service)
    world.maps["records"].update(key, Record(5, 6, 7, tick() - age, state).pack())


def learned(world: World, service: int, client: str, state: LearnedState, age: int) -> None:
    """A learned flow of a client's port 1000 to server 6."""
    address = ip_address(client)
    value = layout.LEARNED.pack(6, state, tick() - age)
    if address.version == 4:
        key = layout.FLOW4.pack(address.packed, (1000).to_bytes(2, "big"), service)
        world.maps["flows4"].update(key, value)
    else:
        world.maps["flows"].update(layout.flow_of(address, 1000, 81, service), value)


def short(found: FoundFlow) -> tuple[object, ...]:
    return found.service, str(found.client), found.port, found.state, found.server, found.previous


def test_what_is_remembered(world: World) -> None:
    for key in world.maps["places"].keys():  # noqa: SIM118  # it is no dict
        world.maps["places"].delete(key)
    place(world, 1, ONE, 5)
    place(world, 2, TWO, 6)
    place(world, 3, ONE, 7)
    assert servers(world.maps, [1, 2]) == {5: (ONE, 1), 6: (TWO, 1)}
    record(world, 1, "198.51.100.1", RecordState.UNCONFIRMED, 30)
    record(world, 1, "198.51.100.2", RecordState.CONFIRMED, 20)
    record(world, 2, "2001:db8::1", RecordState.CLOSING, 10)
    record(world, 9, "198.51.100.3", RecordState.CLOSING, 1)
    learned(world, 1, "198.51.100.4", LearnedState.OPEN, 40)
    learned(world, 2, "2001:db8::2", LearnedState.CLOSING, 50)
    found, total = flows(world.maps, SERVICES, 100)
    assert total == 5
    assert [short(one) for one in found] == [
        (2, "2001:db8::1", 8080, "closing", ONE, None),
        (1, "198.51.100.2", 8080, "confirmed", ONE, None),
        (1, "198.51.100.1", 8080, "unconfirmed", ONE, TWO),
        (1, "198.51.100.4", 80, "open", TWO, None),
        (2, "2001:db8::2", 81, "closing", TWO, None),
    ]
    assert [one.learned for one in found] == [False, False, False, True, True]
    assert all(
        one.age - age in {0, 1} for one, age in zip(found, (10, 20, 30, 40, 50), strict=True)
    )
    assert {one.client_port for one in found} == {1000}
    for key in world.maps["places"].keys():  # noqa: SIM118  # it is no dict
        world.maps["places"].delete(key)


def test_the_youngest_of_many(world: World) -> None:
    for last in range(60):
        record(world, 1, f"198.51.100.{last}", RecordState.CONFIRMED, 100 - last)
    found, total = flows(world.maps, SERVICES, 7)
    assert total == 60
    assert [str(one.client) for one in found] == [
        f"198.51.100.{last}" for last in range(59, 52, -1)
    ]
    assert [one.server for one in found] == [None] * 7
    assert flows(world.maps, SERVICES, 0) == ([], 60)
    assert flows(world.maps, {2: (6, 81)}, 7) == ([], 0)


def test_a_clock_that_is_ahead(world: World) -> None:
    record(world, 1, "198.51.100.1", RecordState.CONFIRMED, -1)
    ((found,), _) = flows(world.maps, SERVICES, 7)
    assert found.age == 0
