"""Exact ports by the line: what the programs look at before the tables of all ports.

A line fills a cache line and is found by a multiplication, so that a service costs one access to
memory. The hash tables hold every port, and are right where a line is full; what is in the lines
is made from them again when they are opened.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from lbdr.datapath import xdp_layout as layout
from lbdr.model import Protocol

_WORDS = layout.PORT_LINE // 8
_U64 = 0xFFFFFFFFFFFFFFFF


def port_words(key: bytes) -> tuple[int, ...]:
    """A port as its line has it, for service 0.

    Args:
        key: of `layout.key_of`.
    """
    *address, port, protocol = struct.unpack(
        "=IHBx" if len(key) == layout.KEY4.size else "=QQHBx", key
    )
    rest = port << 16 | (layout.PORT_UDP if protocol == Protocol.UDP.number else 0)
    return (address[0] << 32 | rest,) if len(address) == 1 else (*address, rest)


def port_key(words: tuple[int, ...]) -> bytes:
    """The key of a port, by what `port_words` makes of it."""
    *address, rest = words
    number = Protocol.UDP.number if rest & layout.PORT_UDP else Protocol.TCP.number
    port = rest >> 16 & 0xFFFF
    if not address:
        return struct.pack("=IHBx", rest >> 32, port, number)
    return struct.pack("=QQHBx", *address, port, number)


def port_line(key: bytes, bits: int) -> int:
    """The line of a port, as bpf/ports.h finds it.

    Args:
        key: of `layout.key_of`.
        bits: layout.port_bits().
    """
    *address, rest = port_words(key)
    if address:
        mixed = (address[0] ^ address[1] * layout.MIX) & _U64
        rest += mixed ^ mixed >> 32
    return (rest * layout.MIX & _U64) >> 64 - bits


class PortLines:
    """The lines of one IP version, as memory that programs read meanwhile.

    Args:
        memory: the lines' 64-bit words.
        version: of IP.
        ports: every port there is, as the hash table has them; lines are made to hold them.
    """

    def __init__(self, memory: memoryview, version: int, ports: Mapping[bytes, int]) -> None:
        self.left: dict[bytes, int] = {}
        """Ports that found no room, with their services."""
        self._memory = memory
        self._size = 1 if version == 4 else 3  # words of an entry
        self._bits = (len(memory) // _WORDS).bit_length() - 1
        known = set()
        for place in self._places():
            words = tuple(memory[place : place + self._size])
            if not words[-1]:
                continue
            service = words[-1] & layout.PORT_SERVICE
            key = port_key((*words[:-1], words[-1] - service))
            if ports.get(key) == service and key not in known:
                known.add(key)
            else:
                self._store(place, (0,) * self._size)
        for key in ports.keys() - known:
            self.put(key, ports[key])

    def put(self, key: bytes, service: int) -> None:
        """Let a line have a port, if there is room.

        Args:
            key: layout.key_of().
            service: its index.
        """
        self.left.pop(key, None)
        *address, rest = port_words(key)
        there, free = self._find(key)
        place = free if there is None else there
        if place is not None and service <= layout.PORT_SERVICE:
            self._store(place, (*address, rest | service))
            return
        if there is not None:
            self._store(there, (0,) * self._size)
        self.left[key] = service

    def drop(self, key: bytes) -> None:
        """Let no line have a port; another one may get its place.

        Args:
            key: layout.key_of().
        """
        self.left.pop(key, None)
        there, _ = self._find(key)
        if there is None:
            return
        self._store(there, (0,) * self._size)
        line = port_line(key, self._bits)
        for other, service in self.left.items():
            if service <= layout.PORT_SERVICE and port_line(other, self._bits) == line:
                self.put(other, service)
                return

    def _find(self, key: bytes) -> tuple[int | None, int | None]:
        """Where a port is in its line, and where there is room."""
        words, size = port_words(key), self._size
        first = port_line(key, self._bits) * _WORDS
        free = None
        for place in range(first, first + _WORDS - size + 1, size):
            *address, rest = self._memory[place : place + size]
            if rest and (*address, rest & ~layout.PORT_SERVICE) == words:
                return place, free
            if not rest and free is None:
                free = place
        return None, free

    def _places(self) -> list[int]:
        """Of all entries that are not empty, and some that are."""
        filled = [
            first
            for first in range(0, len(self._memory), _WORDS)
            if any(self._memory[first : first + _WORDS])
        ]
        size = self._size
        return [
            place for first in filled for place in range(first, first + _WORDS - size + 1, size)
        ]

    def _store(self, place: int, words: tuple[int, ...]) -> None:
        """The last word says whether the others count: it is 0 while they change."""
        last = place + self._size - 1
        if len(words) > 1:
            self._memory[last] = 0
            for offset, word in enumerate(words[:-1]):
                self._memory[place + offset] = word
        self._memory[last] = words[-1]
