"""Exact ports by the line: what is in them, and what found no room."""

from __future__ import annotations

import random
from array import array
from ipaddress import ip_address

import pytest

from lbdr.datapath import xdp_layout as layout
from lbdr.datapath.xdp_layout import Capacity
from lbdr.datapath.xdp_ports import PortLines, port_key, port_line, port_words

VERSIONS = pytest.mark.parametrize("version", [4, 6])
SMALL = Capacity(services=4)
BASE = {4: ip_address("192.0.2.0"), 6: ip_address("2001:db8::")}


def memory_of(capacity: Capacity, version: int) -> memoryview:
    return memoryview(array("Q", bytes(layout.PORT_LINE << layout.port_bits(capacity, version))))


def any_key(chance: random.Random, version: int) -> bytes:
    address = BASE[version] + chance.randrange(256)
    return layout.key_of(address, chance.randrange(1, 65536), chance.choice([6, 17]))


def held(memory: memoryview, version: int) -> dict[bytes, int]:
    """What the lines say, read as the programs read them: by a key's own line alone."""
    size = 1 if version == 4 else 3
    bits = (len(memory) // 8).bit_length() - 1
    found = {}
    for first in range(0, len(memory), 8):
        for place in range(first, first + 9 - size, size):
            *address, rest = memory[place : place + size]
            service = rest & layout.PORT_SERVICE
            if service:
                key = port_key((*address, rest - service))
                assert port_line(key, bits) == first // 8
                assert key not in found
                found[key] = service
    return found


@VERSIONS
def test_a_key_is_what_its_words_say(version: int) -> None:
    chance = random.Random(version)  # noqa: S311  # keys
    for _ in range(500):
        key = any_key(chance, version)
        assert port_key(port_words(key)) == key
        assert port_words(key)[-1] & layout.PORT_SERVICE == 0


@VERSIONS
@pytest.mark.parametrize("services", [4, 64])
def test_lines_and_what_is_left_are_all(version: int, services: int) -> None:
    """Whatever comes and goes, and whoever opens them again."""
    capacity, chance = Capacity(services=services), random.Random(services)  # noqa: S311  # keys
    memory = memory_of(capacity, version)
    lines = PortLines(memory, version, {})
    ports: dict[bytes, int] = {}
    many, crowded = services * (8 if version == 4 else 3), 0
    for step in range(2000):
        key = any_key(chance, version)
        if ports and chance.random() < (0.7 if len(ports) > many else 0.3):
            key = chance.choice(list(ports))
            if chance.random() < 0.8:
                lines.drop(key)
                del ports[key]
        else:
            ports[key] = chance.randrange(1, services)
            lines.put(key, ports[key])
        if step % 20 == 0:
            assert held(memory, version) | lines.left == ports
            assert not held(memory, version).keys() & lines.left.keys()
            crowded += bool(lines.left)
        if step % 100 == 0:
            lines = PortLines(memory, version, ports)
            assert held(memory, version) | lines.left == ports
    assert crowded > 10 or services == 64


@VERSIONS
def test_what_is_in_no_table_goes_from_the_lines(version: int) -> None:
    """As after a process that was killed between the two."""
    memory = memory_of(SMALL, version)
    one, two = (layout.key_of(BASE[version], port, 6) for port in (80, 443))
    PortLines(memory, version, {one: 1, two: 2})
    PortLines(memory, version, {two: 3})
    assert held(memory, version) == {two: 3}


@VERSIONS
def test_room_goes_to_who_was_left(version: int) -> None:
    memory = memory_of(SMALL, version)
    lines = PortLines(memory, version, {})
    chance = random.Random(1)  # noqa: S311  # keys
    ports = [any_key(chance, version) for _ in range(200)]
    for key in ports:
        lines.put(key, 1)
    left = lines.left.copy()
    assert left
    for key in ports:
        if key not in left:
            lines.drop(key)
    assert held(memory, version).keys() & left.keys()


def test_a_service_that_no_line_can_name() -> None:
    memory = memory_of(SMALL, 4)
    key = layout.key_of(BASE[4], 80, 6)
    lines = PortLines(memory, 4, {key: 1})
    lines.put(key, 0x8000)
    assert lines.left == {key: 0x8000}
    assert held(memory, 4) == {}
    lines.put(key, 7)
    assert lines.left == {}
    assert held(memory, 4) == {key: 7}


@VERSIONS
def test_ports_spread(version: int) -> None:
    """As many services as the maps are made for, each with its port: hardly any is left."""
    capacity = Capacity()
    memory = memory_of(capacity, version)
    ports = {
        layout.key_of(BASE[version] + n // 16, 8000 + n % 16, 6): n % 1000 + 1
        for n in range(capacity.services)
    }
    lines = PortLines(memory, version, ports)
    assert len(lines.left) <= capacity.services // 20
