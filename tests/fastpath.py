"""The director's programs in a test: maps, services and frames, without any device but lo."""

from __future__ import annotations

import contextlib
import struct
import time
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from lbdr.datapath import xdp_layout as layout
from lbdr.datapath.bpf_programs import RunResult
from lbdr.datapath.bpf_wire import Verdict, skb_context, skb_mark, xdp_context
from lbdr.datapath.xdp_layout import (
    Capacity,
    FastServer,
    FastService,
    Place,
    Reason,
    ServiceFlag,
)
from lbdr.datapath.xdp_maps import DirectorMaps
from lbdr.datapath.xdp_programs import DirectorPrograms, prepare
from lbdr.maglev import MaglevServer, MaglevTable
from lbdr.model import Address, Protocol
from tests.bpf_programs import private_bpffs

OWN = "02:00:00:00:00:01"
LO = 1
CLOCK_MONOTONIC_COARSE = 6  # include/uapi/linux/time.h
_EDGE = 40_000_000  # ns of a tick, at its beginning and its end
_SKB_GSO_SIZE = 176  # in struct __sk_buff
VIP_PLACE = Place(LO, OWN)


def tick() -> int:
    """The programs' clock, at a moment when it is no other: theirs may be a few jiffies off."""
    length = 1 << layout.TICK_SHIFT
    while True:
        found, since = divmod(time.clock_gettime_ns(CLOCK_MONOTONIC_COARSE), length)
        if _EDGE <= since < length - _EDGE:
            return found
        time.sleep(0.001)


def slot(
    current: int, old: int | None = None, *, tracked: bool = False, anticipate: bool = False
) -> int:
    """A slot's word; old is current where it is not given."""
    word = current | (current if old is None else old) << layout.OLD_SHIFT
    return word | tracked * layout.TRACKED | anticipate * layout.ANTICIPATE


class Engine(StrEnum):
    """Who is asked."""

    XDP = "xdp"  # the steady program, with the director behind it
    DIRECTOR = "director"  # the director alone: it answers the same
    TC = "tc"


_OF_TC = {7: Verdict.REDIRECT, 0xFFFFFFFF: Verdict.PASS, 2: Verdict.DROP}  # TC_ACT_*, -1 and SHOT


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a frame.

    Args:
        verdict: in XDP's words, also tc's.
        data: the frame then.
        mark: that tc set.
    """

    verdict: Verdict
    data: bytes
    mark: int = 0


@dataclass
class World:
    """Programs and maps, and what was put into them."""

    programs: DirectorPrograms
    addresses: set[Address] = field(default_factory=set)
    _used_services: set[int] = field(default_factory=lambda: {0})
    _used_servers: set[int] = field(default_factory=set)

    @property
    def maps(self) -> DirectorMaps:
        return self.programs.maps

    def service(
        self,
        index: int,
        address: Address,
        port: int,
        protocol: Protocol = Protocol.TCP,
        **fields: object,
    ) -> None:
        """Add a service; `fields` are FastService's, active and on lo unless told otherwise."""
        settings: dict[str, object] = {"vip": VIP_PLACE, "flags": ServiceFlag.ACTIVE, **fields}
        self._used_services.add(index)
        self.maps.write_service(index, FastService(**settings).pack())  # type: ignore[arg-type]
        self.key(index, address, port, protocol)

    def key(
        self, index: int, address: Address, port: int, protocol: Protocol = Protocol.TCP
    ) -> None:
        """Let a service have one more address, port and protocol."""
        self.maps.write_port(layout.key_of(address, port, protocol.number), index)
        self._claim(address)

    def ranges(
        self,
        address: Address,
        ranges: Sequence[tuple[int, int, int]],
        protocol: Protocol = Protocol.TCP,
    ) -> None:
        """Let services have ranges of ports: first, last, and the service's index."""
        self.maps.write_ranges(layout.key_of(address, 0, protocol.number), ranges)
        self._claim(address)

    def _claim(self, address: Address) -> None:
        if address not in self.addresses:
            self.addresses.add(address)
            self.maps.write_vips(self.addresses)

    def server(self, index: int, mac: str | None, vip: Place = VIP_PLACE, **fields: object) -> None:
        """Add a server; `fields` are FastServer's, on the VIP's place unless told otherwise."""
        settings: dict[str, object] = {"out": VIP_PLACE, "mac": mac, **fields}
        self._used_servers.add(index)
        self.maps.write_server(index, FastServer(**settings).pack(vip))  # type: ignore[arg-type]

    def table(self, line: int, words: Sequence[int]) -> None:
        """Write a table, by lines of slots."""
        self.maps.write_table(line, array("I", words))

    def clear(self) -> None:
        """Take all away that was put in or counted, but for tables."""
        for index in self._used_services:
            self.maps.write_service(index, bytes(layout.SERVICE.size))
            first, nothing = index * layout.REASONS, bytes(self.maps["reasons"].value_size)
            places = range(first, first + layout.REASONS)
            self.maps["reasons"].update_many({layout.U32.pack(one): nothing for one in places})
        for index in self._used_servers:
            self.maps.write_server(index, bytes(layout.SERVER.size))
            self._zero("served", index)
        self._zero("guard", 0)
        for name, delete in (
            ("services4", self.maps.delete_port),
            ("services6", self.maps.delete_port),
            ("ranges4", self.maps.delete_ranges),
            ("ranges6", self.maps.delete_ranges),
        ):
            for key in self.maps[name].keys():  # noqa: SIM118  # it is no dict
                delete(key)
        for name in _HASHES:
            self.maps[name].delete_many(self.maps[name].keys())
        self.addresses.clear()
        self.maps.write_vips(())
        self._used_services = {0}
        self._used_servers = set()

    def _zero(self, name: str, index: int) -> None:
        one = self.maps[name]
        one.update(layout.U32.pack(index), bytes(one.value_size))

    def run(self, engine: Engine, frame: bytes, *, piece: int = 0) -> Outcome:
        """What an engine does with a frame that came in on lo.

        Args:
            engine: that is asked.
            frame: from its Ethernet header on.
            piece: bytes of payload in each piece into which tc's packet is cut later; 0 for none.
        """
        if engine is Engine.TC:
            result = self.run_tc(frame, piece=piece)
            return Outcome(_OF_TC[result.returned], result.data, skb_mark(result.context))
        result = self.run_xdp(frame) if engine is Engine.XDP else self.run_director(frame)
        return Outcome(Verdict(result.returned), result.data)

    def run_learn(self, frame: bytes, *, came_in: int = LO) -> RunResult:
        """The verdict of tc egress on a frame that came in on a device; 0 for the host's own."""
        context = skb_context(ifindex=LO, ingress_ifindex=came_in)
        return self.programs.learn.test_run(frame, context)

    def run_xdp(self, frame: bytes, *, ifindex: int = LO, repeat: int = 1) -> RunResult:
        """The verdict of XDP, the steady program first."""
        context = xdp_context(len(frame), ifindex=ifindex)
        return self.programs.steady.test_run(frame, context, repeat=repeat)

    def run_director(self, frame: bytes, *, ifindex: int = LO) -> RunResult:
        """The verdict of the XDP director alone, without the steady program before it."""
        return self.programs.director.test_run(frame, xdp_context(len(frame), ifindex=ifindex))

    def run_tc(self, frame: bytes, *, ifindex: int = LO, piece: int = 0) -> RunResult:
        """The verdict of tc ingress."""
        context = bytearray(skb_context(ifindex=ifindex, ingress_ifindex=ifindex))
        struct.pack_into("=I", context, _SKB_GSO_SIZE, piece)
        return self.programs.tc.test_run(frame, bytes(context))

    def reasons(self, service: int, *, tc: bool = False) -> dict[Reason, int]:
        """How often packets of a service were not forwarded, by reason; zeros left out."""
        counts = self.maps["reasons"]
        first = service * layout.REASONS + tc * layout.REASONS_OF_TC
        found = {}
        for reason in Reason:
            value = counts.lookup(layout.U32.pack(first + reason)) or b""
            (count,) = counts.totals(value)
            if count:
                found[reason] = count
        return found

    def served(self, server: int) -> tuple[int, int]:
        """Packets and bytes that a server got."""
        served = self.maps["served"]
        packets, octets = served.totals(served.lookup(layout.U32.pack(server)) or b"")
        return packets, octets


_HASHES = (
    "records",
    "flows4",
    "flows",
    "macs",
    "fragments",
    "devices",
)

SMALL = Capacity(services=64, servers=64, tables=16, records=64, flows=1024, devices=8)
"""Enough for a test, and quickly cleared."""


def load_world(path: Path, capacity: Capacity = SMALL) -> World:
    """Programs and maps that are pinned nowhere: they end when World.programs is closed."""
    with private_bpffs(path) as root:
        programs, _ = DirectorPrograms.open(root, capacity)
    return World(programs)


@contextlib.contextmanager
def fast_path(path: Path, capacity: Capacity | None = None) -> Iterator[World]:
    """Programs and empty maps on a bpffs that nobody else sees."""
    with private_bpffs(path) as root:
        programs, _ = DirectorPrograms.open(prepare(root), capacity or Capacity())
        with programs:
            yield World(programs)


def mh_words(addresses: Sequence[Address], port: int, first: int = 0) -> list[int]:
    """The slots of an mh table of servers of weight 1, in the kernel's order, from an index on."""
    servers = [MaglevServer(address, port, 1) for address in addresses]
    return [slot(first + place) for place in MaglevTable(servers).slots]
