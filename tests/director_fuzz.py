"""Random and mutated frames, a director of all kinds of services, and its model beside it."""

from __future__ import annotations

import ctypes
import random
import struct
from collections.abc import Iterator
from ipaddress import ip_address
from itertools import product
from typing import Any

from scapy.layers.inet import ICMP, IPOption_NOP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop
from scapy.layers.l2 import ARP
from scapy.packet import Raw

from lbdr.datapath import bpf
from lbdr.datapath import bpf_wire as wire
from lbdr.datapath import xdp_layout as layout
from lbdr.datapath.bpf_programs import Program
from lbdr.datapath.xdp_layout import LearnedState, Place, ServiceFlag
from lbdr.maglev import EMPTY, MaglevServer, MaglevTable
from lbdr.model import Address, Protocol
from tests.director_frames import (
    SLOTS,
    VIP,
    VIP6,
    answer,
    answer6,
    datagram,
    ether,
    icmp6_error,
    icmp_error,
    ip4,
    ip6,
    segment,
    tag,
)
from tests.director_model import FALLBACK, Model, ModelServer, ModelService
from tests.fastpath import LO, OWN, World, slot, tick

MH, MH_PORT, RANGE, INACTIVE, ALONE, LEARNED, POP, PUSH, AWAY, PEER, TRACKED, DRAINED = range(1, 13)
PORTS = {
    MH: 80,
    MH_PORT: 81,
    INACTIVE: 82,
    ALONE: 83,
    LEARNED: 84,
    POP: 85,
    PUSH: 86,
    AWAY: 87,
    PEER: 88,
    TRACKED: 89,
    DRAINED: 90,
}
FIRST, LAST = 1000, 1099  # the range's ports
ELSEWHERE, GONE = 9, 10
HERE = Place(LO, OWN)
VLAN = Place(LO, OWN, ((0x8100, 7),))
OTHER_PEER = "02:00:00:00:00:98"
TRACKED_SERVERS = {11, 12}
FOREVER = 100_000  # ticks
SERVERS = {
    1: ModelServer("02:00:00:00:01:01", HERE),
    2: ModelServer("02:00:00:00:01:02", HERE),
    3: ModelServer("02:00:00:00:01:03", HERE, mtu=100),
    4: ModelServer(None, HERE),
    5: ModelServer("02:00:00:00:01:05", HERE, alive=False),
    6: ModelServer("02:00:00:00:01:06", HERE, local=True),
    7: ModelServer("02:00:00:00:01:07", HERE),
    8: ModelServer("02:00:00:00:01:08", Place(LO, OWN, ((0x88A8, 20), (0x8100, 21)))),
    9: ModelServer("02:00:00:00:01:09", Place(ELSEWHERE, "02:00:00:00:00:02")),
    10: ModelServer("02:00:00:00:01:0a", Place(GONE, "02:00:00:00:00:03")),
    11: ModelServer("02:00:00:00:01:0b", HERE),
    12: ModelServer("02:00:00:00:01:0c", HERE),
}


def spread(*servers: int) -> list[int]:
    """The kernel's table of some servers."""
    rips = [MaglevServer(ip_address(f"192.0.2.{100 + one}"), 80, 1) for one in servers]
    return [servers[place] if place != EMPTY else EMPTY for place in MaglevTable(rips).slots]


def first_flows() -> dict[tuple[bytes, int], list[int]]:
    """Those of some clients."""
    return {
        (ip_address(f"198.51.100.{last}").packed, port): [1 + last % 3, 0]
        for last in (7, *range(64))
        for port in (40000, 20, 1024)
    }


def make_services() -> dict[int, ModelService]:
    """All kinds of services."""
    alike = spread(1, 2, 3, 4, 5, 6)
    drained = [FALLBACK if server in {2, 7} else server for server in spread(1, 2, 7)]
    for place in range(0, SLOTS, 40):
        drained[place] = EMPTY
    return {
        MH: ModelService(HERE, alike),
        MH_PORT: ModelService(HERE, alike, port_hash=True),
        RANGE: ModelService(HERE, [1] * SLOTS),
        INACTIVE: ModelService(HERE, [1] * SLOTS, active=False),
        ALONE: ModelService(HERE, alike, alone=True),
        LEARNED: ModelService(HERE, [], flows={}),
        POP: ModelService(VLAN, [1] * SLOTS),
        PUSH: ModelService(HERE, [8] * SLOTS),
        AWAY: ModelService(HERE, spread(9, 10)),
        PEER: ModelService(HERE, [2] * SLOTS, peer=OTHER_PEER),
        TRACKED: ModelService(HERE, [11] * SLOTS, tracked=12),
        DRAINED: ModelService(HERE, drained, port_hash=True, alone=True),
    }


def build(world: World) -> Model:
    """Put the director into the maps; its model."""
    model = Model(LO, make_services(), dict(SERVERS), {ELSEWHERE})
    for number, server in SERVERS.items():
        # POP's server is in another VLAN than its VIP: what it is told is relative to that
        world.server(number, server.mac, HERE, **_fields(server))
    world.server(13, SERVERS[1].mac, VLAN, **_fields(SERVERS[1]))
    model.servers[13] = SERVERS[1]
    model.services[POP].slots = [13] * SLOTS
    world.maps["devices"].update(layout.U32.pack(ELSEWHERE), layout.U32.pack(LO))
    lines = world.maps.capacity.lines
    for index, service in model.services.items():
        words = [
            slot(_word(one), service.tracked, tracked=service.tracked is not None)
            for one in service.slots
        ]
        world.table((index - 1) * lines, words)
        world.service(index, ip_address("192.0.2.99"), index, **_settings(index, service, lines))
        for address in (VIP, VIP6):
            model.vips.add(address.packed)
            if index == RANGE:
                world.ranges(address, [(FIRST, LAST, RANGE)])
                model.ranges[address.packed, 6] = [(FIRST, LAST, RANGE)]
                continue
            for protocol in (Protocol.TCP, Protocol.UDP):
                world.key(index, address, PORTS[index], protocol)
                model.ports[address.packed, protocol.number, PORTS[index]] = index
    world.addresses.discard(ip_address("192.0.2.99"))
    world.maps.write_vips(world.addresses)
    return model


def _fields(server: ModelServer) -> dict[str, Any]:
    return {"out": server.out, "mtu": server.mtu, "alive": server.alive, "local": server.local}


def _word(server: int) -> int:
    return {FALLBACK: layout.FALLBACK, EMPTY: layout.EMPTY}.get(server, server)


def _settings(index: int, service: ModelService, lines: int) -> dict[str, Any]:
    flags = ServiceFlag.ACTIVE if service.active else ServiceFlag(0)
    flags |= ServiceFlag.MH_PORT if service.port_hash else 0
    flags |= ServiceFlag.ALONE if service.alone else 0
    flags |= ServiceFlag.LEARNED if service.flows is not None else 0
    table = (index - 1) * lines
    return {"flags": flags, "vip": service.vip, "peer": service.peer, "table": table}


def begin_again(world: World, model: Model) -> None:
    """Learned flows as at first, and no fragments: no map forgets anything by itself meanwhile."""
    model.services[LEARNED].flows = flows = first_flows()
    for (client, port), (server, _) in flows.items():
        key = layout.FLOW4.pack(client, port.to_bytes(2, "big"), LEARNED)
        seen = 0 if client[-1] % 2 else tick() + FOREVER  # forgotten by IPVS, or just seen
        world.maps["flows4"].update(key, layout.LEARNED.pack(server, LearnedState.OPEN, seen))
    model.fragments.clear()
    for key in world.maps["fragments"].keys():  # noqa: SIM118  # it is no dict
        world.maps["fragments"].delete(key)


# --- frames --------------------------------------------------------------------------------------


def seeds() -> list[bytes]:
    """Frames of all kinds, for services and not, from which others are made."""
    made: list[bytes] = []
    versions: tuple[tuple[Any, Address], ...] = ((ip4, VIP), (ip6, VIP6))
    for port, (make, _) in product((*PORTS.values(), FIRST, 4321), versions):
        tags = tag(7, 5) if port == PORTS[POP] else None
        made += [make(segment(flags, dport=port), tags=tags) for flags in ("S", "A", "FA")]
        made.append(make(datagram(dport=port), tags=tags))
        error, quote = (icmp_error, answer) if make is ip4 else (icmp6_error, answer6)
        made.append(error(quote(payload=segment(sport=port, dport=40000)), tags=tags))
    for port in PORTS.values():
        made.append(ip4(datagram(dport=port), flags="MF", id=port))
        made.append(ip4(Raw(b"x" * 24), proto=17, frag=2, id=port))
        made.append(ip4(segment(dport=port), options=[IPOption_NOP()] * 4))
        made.append(ip6(IPv6ExtHdrHopByHop() / IPv6ExtHdrFragment() / segment(dport=port)))
        made.append(ip4(segment(dport=port), tags=tag(7, 3) / tag(8)))
        made.append(icmp_error(answer(payload=datagram(sport=port), options=[IPOption_NOP()] * 8)))
    made += [
        ether(ARP(pdst=str(VIP))),
        ip4(ICMP()),
        ip6(ICMPv6EchoRequest()),
        ip4(segment(), dst="192.0.2.11"),
        ip4(segment() / Raw(b"x" * 600)),
        ip4(segment(), mac="ff:ff:ff:ff:ff:ff"),
        bytes.fromhex("ff" * 14),
    ]
    return made


_INTERESTING = (
    *(0, 1, 2, 4, 5, 6, 17, 20, 44, 58),
    *(0x40, 0x45, 0x46, 0x60, 0x7F, 0x80, 0x81, 0x88, 0xE0, 0xFF),
)
_TYPES = (b"\x08\x00", b"\x86\xdd", b"\x81\x00", b"\x88\xa8")
_LONGEST = 1300


def frames(seed: int) -> Iterator[bytes]:
    """Frames without an end: some as they were built, most of them changed, some all random."""
    chance = random.Random(seed)  # noqa: S311  # the same ones in every run
    basis = seeds()
    while True:
        frame = _changed(bytearray(chance.choice(basis)), chance, basis)
        yield bytes(frame[:_LONGEST].ljust(14, b"\0"))


def _changed(frame: bytearray, chance: random.Random, basis: list[bytes]) -> bytearray:
    """One frame made of another."""
    kind = chance.getrandbits(6)
    if kind < 24 and len(frame) > 40:
        _be_anothers(frame, chance)
    elif kind < 50:
        _damage(frame, chance)
    elif kind < 54:
        del frame[14 + int(chance.random() * (len(frame) - 14)) :]
    elif kind < 57:
        frame += chance.randbytes(chance.getrandbits(5))
    elif kind < 60:  # two frames, joined somewhere
        at = int(chance.random() * len(frame))
        frame[at:] = chance.choice(basis)[at:]
    elif kind < 61:  # bytes too many among the headers
        at = 12 + int(chance.random() * 40)
        frame[at:at] = chance.randbytes(1 + chance.getrandbits(2))
    elif kind < 63:
        frame[12:] = chance.choice(_TYPES) + chance.randbytes(chance.getrandbits(7))
    else:
        frame = bytearray(chance.randbytes(14 + chance.getrandbits(8)))
    return frame


def _be_anothers(frame: bytearray, chance: random.Random) -> None:
    """Another client's, and most often from another port; without tags, that is."""
    frame[28 + chance.getrandbits(1)] = chance.getrandbits(8)
    if chance.getrandbits(2):
        frame[34:36] = chance.randbytes(2)


def _damage(frame: bytearray, chance: random.Random) -> None:
    """Other bytes among the headers: one, or some."""
    for _ in range(1 + (chance.getrandbits(2) and chance.getrandbits(2))):
        at = int(chance.random() * min(len(frame), 80))
        if chance.getrandbits(1):
            frame[at] = chance.choice(_INTERESTING)
        else:
            frame[at] ^= 1 << chance.getrandbits(3)


# --- running -------------------------------------------------------------------------------------


class Runner:
    """A program, asked about many frames with buffers that are made once.

    Args:
        program: an XDP program.
    """

    def __init__(self, program: Program) -> None:
        self._into = ctypes.create_string_buffer(2048)
        self._out = ctypes.create_string_buffer(4096)
        self._context = ctypes.create_string_buffer(wire.xdp_context(0, ifindex=LO), 24)
        self._attributes = ctypes.create_string_buffer(wire.TEST.size)
        self._address = ctypes.addressof(self._attributes)
        wire.TEST.pack_into(
            self._attributes,
            0,
            program.fd,
            0,
            0,
            0,
            ctypes.addressof(self._into),
            ctypes.addressof(self._out),
            1,
            0,
            24,
            0,
            ctypes.addressof(self._context),
            0,
            0,
            0,
            0,
        )

    def __call__(self, frame: bytes) -> tuple[int, bytes]:
        """The verdict, and the frame then."""
        size = len(frame)
        ctypes.memmove(self._into, frame, size)
        _SIZES.pack_into(self._attributes, 4, 0, size, 4096)
        _SIZE.pack_into(self._context, 4, size)
        result = bpf.call_buffer(wire.Command.PROG_TEST_RUN, self._address, wire.TEST.size)
        assert result == 0, (result, frame.hex())
        verdict, _, left = _SIZES.unpack_from(self._attributes, 4)
        return verdict, ctypes.string_at(self._out, left)


_SIZES = struct.Struct("=III")
_SIZE = struct.Struct("=I")
