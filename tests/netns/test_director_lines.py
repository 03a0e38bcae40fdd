"""Learned flows of IPv4 lie in lines: who makes room for whom; none is taken for another."""

from __future__ import annotations

import random
import threading
import time
from functools import cache
from ipaddress import IPv4Address

import pytest

from lbdr.datapath import xdp_layout as layout
from lbdr.datapath.bpf_wire import Verdict
from lbdr.datapath.xdp_flows import FlowTable, mixed
from lbdr.datapath.xdp_layout import LearnedState
from tests.director_flows import LEARNED, TIMEOUT
from tests.director_frames import PORT, SERVICE, VIP, forwarded, ip4, segment
from tests.fastpath import OWN, Engine, World, tick

FLOWS = 8  # more than a line holds, each with a server of its own
FIRST = 20
KEEP = 16  # ticks, KEEP_TICKS of bpf/flows4.h
CLIENT_PORT = 40000
STRESS = 2.0  # seconds


@cache
def clients(bits: int) -> tuple[IPv4Address, ...]:
    """Clients whose flows share a line."""
    by_line: dict[int, list[IPv4Address]] = {}
    for number in range(1 << 22):
        client = IPv4Address(0x0A000000 + number)
        found = by_line.setdefault(mixed(key_of(client)) >> 64 - bits, [])
        found.append(client)
        if len(found) == FLOWS:
            return tuple(found)
    raise AssertionError("no line is so full")


def key_of(client: IPv4Address) -> bytes:
    return layout.FLOW4.pack(client.packed, CLIENT_PORT.to_bytes(2, "big"), SERVICE)


def mac_of(number: int) -> str:
    """A server's; the first one's frames come back, to be sent again."""
    return f"02:00:00:00:03:{number:02x}" if number else OWN


class Line:
    """A learned service, and flows of it that share a line."""

    def __init__(self, world: World) -> None:
        self.world = world
        table = world.maps["flows4"]
        assert isinstance(table, FlowTable)
        self.table = table
        self.clients = clients(layout.flow_bits(world.maps.capacity))
        self.keys = [key_of(client) for client in self.clients]
        world.service(SERVICE, VIP, PORT, flags=LEARNED, timeout=TIMEOUT)
        for number in range(FLOWS):
            world.server(FIRST + number, mac_of(number))
            mac = layout.SERVER_KEY.pack(SERVICE, layout.mac_bytes(mac_of(number)))
            world.maps["macs"].update(mac, layout.U32.pack(FIRST + number))
        self.frames = [ip4(segment(), src=str(client)) for client in self.clients]
        self.leaving = [
            forwarded(frame, mac_of(number)) for number, frame in enumerate(self.frames)
        ]

    def put(self, number: int, age: int, state: LearnedState = LearnedState.OPEN) -> None:
        refreshed = tick() - age & 0xFFFFFFFF
        self.table.update(self.keys[number], layout.LEARNED.pack(FIRST + number, state, refreshed))

    def learn(self, number: int) -> None:
        assert self.world.run_learn(self.leaving[number]).returned == 0xFFFFFFFF

    @property
    def there(self) -> set[int]:
        """The flows that are known, each with its own server."""
        found = set()
        for key, value in self.table.items():
            number = self.keys.index(key)
            assert layout.LEARNED.unpack(value)[0] == FIRST + number
            assert self.table.lookup(key) == value
            found.add(number)
        return found


@pytest.fixture
def line(world: World) -> Line:
    return Line(world)


def test_a_line_holds_five(line: Line) -> None:
    for number in range(FLOWS):
        line.learn(number)
    assert line.there == set(range(5))
    for engine in (Engine.XDP, Engine.DIRECTOR):
        for number, frame in enumerate(line.frames):
            outcome = line.world.run(engine, frame)
            expected = forwarded(frame, mac_of(number)) if number < 5 else frame
            assert outcome.data == expected


@pytest.mark.parametrize(
    ("ages", "goes"),
    [
        ((0, 1, 2, 3, 4), None),
        ((KEEP - 1, 0, 0, 0, 0), None),
        ((KEEP + 1, 0, 0, 0, 0), 0),
        ((1, KEEP + 1, KEEP + 9, 2, KEEP + 5), 2),
        ((1, TIMEOUT - 9, TIMEOUT + 9, 2, KEEP + 5), 1),
        ((1, 2, TIMEOUT + 9, 3, TIMEOUT + 99), 4),
        ((-3600, -3600, -3600, -3600, -3600), None),
        ((-1, -1, KEEP + 1, -1, -1), 2),
    ],
)
def test_who_makes_room(line: Line, ages: tuple[int, ...], goes: int | None) -> None:
    """The longest silent of those that IPVS knows; else of those that it forgot; nobody in use."""
    for number, age in enumerate(ages):
        line.put(number, age)
    line.learn(6)
    expected = {0, 1, 2, 3, 4}
    if goes is not None:
        expected = expected - {goes} | {6}
    assert line.there == expected


def test_a_closing_flow_makes_room(line: Line) -> None:
    for number in range(4):
        line.put(number, TIMEOUT + 500)
    line.put(4, TIMEOUT + 20, LearnedState.CLOSING)
    line.learn(5)
    assert line.there == {0, 1, 2, 3, 5}


def test_room_that_is_empty_is_taken_first(line: Line) -> None:
    for number in range(5):
        line.put(number, TIMEOUT - 1)
    line.table.delete(line.keys[3])
    line.learn(5)
    assert line.there == {0, 1, 2, 4, 5}


@pytest.mark.parametrize("engine", list(Engine))
def test_a_flow_that_is_there_twice_is_forgotten_whole(line: Line, engine: Engine) -> None:
    """Two CPUs may learn it at the same moment."""
    line.put(0, 1)
    place = mixed(line.keys[0]) >> 64 - layout.flow_bits(line.world.maps.capacity)
    with line.table.memory() as memory:
        words = list(layout.FLOW_LINE.unpack_from(memory, place * layout.FLOW_LINE.size))
        there = next(number for number, word in enumerate(words) if word)
        other = (there + 1) % 5
        words[other], words[5 + other] = words[there], words[5 + there]
        layout.FLOW_LINE.pack_into(memory, place * layout.FLOW_LINE.size, *words)
    assert [key for key, _ in line.table.items()] == [line.keys[0]] * 2
    assert line.world.run(engine, line.frames[0]).verdict is not Verdict.PASS
    line.world.run(engine, ip4(segment("S"), src=str(line.clients[0])))
    assert list(line.table.items()) == []


def test_another_flow_of_the_line_is_no_flow(line: Line) -> None:
    line.put(0, 1)
    for engine in Engine:
        assert line.world.run(engine, line.frames[1]).verdict is Verdict.PASS
        assert line.world.run(engine, line.frames[0]).verdict is not Verdict.PASS


def test_the_table_as_a_map(line: Line) -> None:
    """Whatever is written is read back, by each way."""
    chance = random.Random(1)  # noqa: S311  # flows
    expected: dict[bytes, bytes] = {}
    for _ in range(3000):
        key = chance.randbytes(layout.FLOW4.size)
        state = chance.choice(list(LearnedState))
        value = layout.LEARNED.pack(chance.randrange(0x3FFF), state, chance.getrandbits(32))
        expected[key] = value
    line.table.update_many(expected)
    found = dict(line.table.items())
    assert found.items() <= expected.items()
    assert len(found) > len(expected) - 10  # of 65,536 lines hardly one is full
    assert set(line.table.keys()) == found.keys()
    for key in expected:
        assert line.table.lookup(key) == found.get(key)
    gone = chance.sample(sorted(found), 100)
    assert line.table.delete_many([*gone, *gone]) == 100
    assert dict(line.table.items()) == {key: found[key] for key in found.keys() - set(gone)}
    line.table.delete_many(line.table.keys())
    assert line.table.keys() == []


def test_no_packet_goes_to_another_flows_server(line: Line) -> None:
    """While its place becomes others', again and again, on another CPU."""
    end = time.monotonic() + STRESS
    counted = {"learned": 0, "aged": 0}

    def learn() -> None:
        chance = random.Random(1)  # noqa: S311  # flows
        while time.monotonic() < end:
            line.learn(chance.randrange(FLOWS))
            counted["learned"] += 1

    def age() -> None:
        place = mixed(line.keys[0]) >> 64 - layout.flow_bits(line.world.maps.capacity)
        first = (place * layout.FLOW_LINE.size + layout.FLOWS_IN_LINE * 8) // 4
        chance = random.Random(2)  # noqa: S311  # ages
        memory = line.table.memory()
        with memory, memoryview(memory) as octets, octets.cast("I") as ticks:
            while time.monotonic() < end:
                now = time.monotonic_ns() >> layout.TICK_SHIFT
                ticks[first + chance.randrange(layout.FLOWS_IN_LINE)] = now - KEEP - 2
                ticks[first + chance.randrange(layout.FLOWS_IN_LINE)] = now - 1
                counted["aged"] += 1

    threads = [threading.Thread(target=work, name=f"lbdr-{work.__name__}") for work in (learn, age)]
    for thread in threads:
        thread.start()
    packets = 0
    frame = ip4(segment(), src=str(line.clients[0]), ttl=255)
    while time.monotonic() < end:
        for _ in range(50):
            line.world.run_xdp(frame, repeat=200)
            packets += 200
    for thread in threads:
        thread.join()
    served = [line.world.served(FIRST + number)[0] for number in range(FLOWS)]
    assert served[1:] == [0] * (FLOWS - 1)
    assert 0 < served[0] < packets
    assert min(counted.values()) > 100
