"""What the director program and its maps hold, byte by byte; pure.

Everything here has its counterpart in bpf/constants.h and bpf/maps.h, whose structs assert their
sizes. Another layout is another SCHEMA: pins carry it in their path, so that no program meets the
maps of another version.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from enum import IntEnum, IntFlag
from ipaddress import IPv4Address, IPv6Address, ip_address

from lbdr.datapath.bpf_wire import MapFlag, MapKind
from lbdr.maglev import DEFAULT_INDEX, fold, table_size
from lbdr.model import Address

SCHEMA = 1

FALLBACK = 0x3FFF
"""A slot's current server where it is drained: the kernel's loop finds another one."""

EMPTY = 0x3FFE
"""A slot's current server where no server has a weight."""

ANTICIPATE = 0x4000
TRACKED = 0x8000
OLD_SHIFT = 16
SLOTS_IN_LINE = 16
VIP_WORDS = 512
VIP = struct.Struct("=QQ")
PORT_LINE = 64
PORT_UDP = 0x8000
PORT_SERVICE = 0x7FFF
"""The services that a line of ports can name."""
MIX = 0xC4CEB9FE1A85EC53
FLOW_LINE = struct.Struct("=5Q5I4x")
FLOWS_IN_LINE = 5
RANGES = 16
TICK_SHIFT = 30

MOST_SERVERS = EMPTY
"""Real servers of all services together that slots can name."""


class ServiceFlag(IntFlag):
    """What a service is, in its decision."""

    ACTIVE = 1
    MH_PORT = 2
    LEARNED = 4
    ALONE = 8
    SETTLING = 16
    PORTS = 32
    GUARDED = 64


class ServerFlag(IntFlag):
    """What a server is, beside its MAC."""

    ALIVE = 1
    RESOLVED = 2
    SAME_DEVICE = 4
    SAME_TAGS = 8
    LOCAL = 16


class Reason(IntEnum):
    """Why a packet for a service was not forwarded by the fast path."""

    INACTIVE = 1
    OTHER_HOST = 2
    OTHER_VLAN = 3
    MARTIAN = 4
    LENGTH = 5
    TTL = 6
    MTU = 7
    NEIGHBOUR = 8
    LOCAL = 9
    OPTIONS = 10
    FRAGMENT = 11
    FALLBACK = 12
    NO_SERVER = 13
    NOT_LEARNED = 14
    REFRESH = 15
    CLOSING = 16
    FTP_DATA = 17
    PEER = 18
    TAGS = 19
    RECORD = 20


PASSED_UP = frozenset(
    {
        Reason.INACTIVE,
        Reason.OTHER_HOST,
        Reason.OTHER_VLAN,
        Reason.MARTIAN,
        Reason.PEER,
        Reason.LOCAL,
        Reason.FRAGMENT,
    }
)
"""Without IPVS, XDP drops what it does not forward, but for these, which tc ingress sees again."""

REASONS_OF_TC = 32
"""Counted by tc ingress from here on, since XDP may have counted the same packet."""

REASONS = 64
"""Counters of reasons for each service; service 0 is none."""


class LearnedState(IntEnum):
    """Whether a learned flow is repeated."""

    OPEN = 0
    CLOSING = 1


class RecordState(IntEnum):
    """How far a recorded connection is."""

    UNCONFIRMED = 0
    CONFIRMED = 1
    CLOSING = 2
    ADOPTED = 3


# decision; ifindex, udp_until; mac, tags, tag[2]; peer, has_peer; mark, timeout: in that order
SERVICE = struct.Struct("=QII6sHII6sHII16x")
# In that order: mac, flags, source, mtu, ifindex, device, tags, tag[2]
SERVER = struct.Struct("=6sH6sHIIHxxII4x")
SERVED = struct.Struct("=QQ")
KEY4 = struct.Struct("=4s2sBx")
KEY6 = struct.Struct("=16s2sBx")
FLOW = struct.Struct("=16s2s2sI")
FLOW4 = struct.Struct("=4s2sH")
LEARNED = struct.Struct("=HHI")
SERVER_KEY = struct.Struct("=I6sxx")
RECORD = struct.Struct("=HHIIHH")
PORT_RANGE = struct.Struct("=HHI")
PACKET_SIZE = 80
# For lbdr alone: which place a real server of a service has, and its last weight that was not 0.
PLACED_KEY = struct.Struct("=II16s")  # service, IP version, address
PLACED = struct.Struct("=II")
GUARD = struct.Struct("=II")
ABOUT = struct.Struct("=8IQ")  # schema, and Capacity
U32 = struct.Struct("=I")


@dataclass(frozen=True, slots=True)
class MapSpec:
    """A map of the programs.

    Args:
        kind: of the map.
        key_size: bytes.
        value_size: bytes, of one CPU's value.
        max_entries: at most so many.
        flags: MapFlag.
    """

    kind: MapKind
    key_size: int
    value_size: int
    max_entries: int
    flags: int = 0


@dataclass(frozen=True, slots=True)
class Capacity:
    """How much the maps are made for.

    Args:
        index: CONFIG_IP_VS_MH_TAB_INDEX of the kernel whose tables they hold.
        services: at most so many.
        servers: real servers of all services together.
        tables: of mh services; some more are kept for the tables that come.
        records: flows that are tracked, of each IP version.
        flows: that are learned from IPVS.
        devices: interfaces that packets leave by.
    """

    index: int = DEFAULT_INDEX
    services: int = 1024
    servers: int = 4096
    tables: int = 256
    records: int = 131072
    flows: int = 262144
    devices: int = 64

    def pack(self, version: int = 0) -> bytes:
        """As `about` holds it, with the schema.

        Args:
            version: of the programs that use the maps, see xdp_loader.version; 0 for none yet.
        """
        return ABOUT.pack(SCHEMA, *astuple(self), version)

    @classmethod
    def unpack(cls, value: bytes) -> tuple[Capacity, int]:
        """What `about` says: what the maps were made for, and the programs' version.

        Raises:
            ValueError: another schema, or nothing was ever written.
        """
        schema, *fields, version = ABOUT.unpack(value)
        if schema != SCHEMA:
            raise ValueError(f"schema {schema}, not {SCHEMA}")
        return cls(*fields), version

    @property
    def lines(self) -> int:
        """Lines of slots of one table."""
        return -(-table_size(self.index) // SLOTS_IN_LINE)


def map_specs(capacity: Capacity) -> dict[str, MapSpec]:
    """The maps of the programs, by name.

    Args:
        capacity: what they are to hold.
    """

    def whole(size: int) -> MapSpec:
        """An array of one value, which programs address without looking it up."""
        return MapSpec(MapKind.ARRAY, 4, size, 1, MapFlag.MMAPABLE)

    hashed = MapKind.HASH
    services, servers = capacity.services, min(capacity.servers, MOST_SERVERS)
    ranges = PORT_RANGE.size * RANGES
    return {
        "about": MapSpec(MapKind.ARRAY, 4, ABOUT.size, 1),
        "vips": whole(VIP.size * VIP_WORDS),
        "ports4": whole(PORT_LINE << port_bits(capacity, 4)),
        "ports6": whole(PORT_LINE << port_bits(capacity, 6)),
        "services4": MapSpec(hashed, KEY4.size, 4, services * 4),
        "services6": MapSpec(hashed, KEY6.size, 4, services * 4),
        "ranges4": MapSpec(hashed, KEY4.size, ranges, services),
        "ranges6": MapSpec(hashed, KEY6.size, ranges, services),
        "services": whole(SERVICE.size * services),
        "slots": whole(4 * SLOTS_IN_LINE * capacity.tables * capacity.lines),
        "servers": whole(SERVER.size * servers),
        "served": MapSpec(MapKind.PERCPU_ARRAY, 4, SERVED.size, servers),
        "reasons": MapSpec(MapKind.PERCPU_ARRAY, 4, 8, services * REASONS),
        "records": MapSpec(hashed, FLOW.size, RECORD.size, capacity.records),
        "flows4": whole(FLOW_LINE.size << flow_bits(capacity)),
        "flows": MapSpec(MapKind.LRU_HASH, FLOW.size, LEARNED.size, capacity.flows),
        "macs": MapSpec(hashed, SERVER_KEY.size, 4, servers),
        "places": MapSpec(hashed, PLACED_KEY.size, PLACED.size, servers),
        "guard": MapSpec(MapKind.PERCPU_ARRAY, 4, GUARD.size, 1),
        "packet": MapSpec(MapKind.PERCPU_ARRAY, 4, PACKET_SIZE, 1),
        "leaving": MapSpec(MapKind.PERCPU_ARRAY, 4, PACKET_SIZE, 1),
        "programs": MapSpec(MapKind.PROG_ARRAY, 4, 4, 1),
        "fragments": MapSpec(MapKind.LRU_HASH, 12, 4, 8192),
        "devices": MapSpec(MapKind.DEVMAP_HASH, 4, 4, capacity.devices),
    }


def vip_bit(address: Address) -> tuple[int, int]:
    """The word and the bit of an address in `vips`."""
    folded = fold(address)
    swapped = int.from_bytes(folded.to_bytes(4, "big"), "little")
    hashed = swapped * 0x9E3779B1 & 0xFFFFFFFF
    return hashed >> 23, hashed >> 17 & 63


def vip_words(addresses: Iterable[Address]) -> list[int]:
    """The first or the second words of `vips`, for addresses that have their bits set there."""
    words = [0] * VIP_WORDS
    for address in addresses:
        word, bit = vip_bit(address)
        words[word] |= 1 << bit
    return words


def port_bits(capacity: Capacity, version: int) -> int:
    """How many bits the number of a line of ports has: a line holds 8 of IPv4, 2 of IPv6."""
    return max(capacity.services - 1, 1).bit_length() + (version == 6)


def flow_bits(capacity: Capacity) -> int:
    """How many bits the number of a line of flows has.

    A line holds 5: with as many flows as the capacity, one in 90 finds no room. The bits that
    flows4.h keeps of a flow are enough from 16 on.
    """
    return max(16, (capacity.flows // 2 - 1).bit_length())


def division(size: int) -> tuple[int, int]:
    """A multiplier and a shift that divide any 32 bits by a table's size; (0, 0) where none does.

    Exact for all n < 2^32 while the product fits 64 bits and multiplier * size - 2^shift is at
    most 2^(shift - 32) (Granlund and Montgomery, Division by Invariant Integers, theorem 4.2).
    """
    for shift in range(32, 64):
        multiplier = -(-(1 << shift) // size)
        if multiplier < 1 << 32 and multiplier * size - (1 << shift) <= 1 << (shift - 32):
            return multiplier, shift
    return 0, 0


def macros(capacity: Capacity, *, records_per_tick: int) -> dict[str, int]:
    """What the programs are told when they are compiled.

    Args:
        capacity: of the maps.
        records_per_tick: that one CPU may write in a tick of about a second.
    """
    size = table_size(capacity.index)
    multiplier, shift = division(size)
    return {
        "MH_TABLE_SIZE": size,
        "MH_DIVIDE_MULTIPLIER": multiplier,
        "MH_DIVIDE_SHIFT": shift,
        "RECORDS_PER_TICK": records_per_tick,
        "SERVICES": capacity.services,
        "SERVERS": min(capacity.servers, MOST_SERVERS),
        "SLOTS": SLOTS_IN_LINE * capacity.tables * capacity.lines,
        "FLOW_BITS": flow_bits(capacity),
        "PORT_BITS4": port_bits(capacity, 4),
        "PORT_BITS6": port_bits(capacity, 6),
    }


def mac_bytes(text: str) -> bytes:
    """A MAC, colon-separated, as its 6 bytes."""
    return bytes.fromhex(text.replace(":", ""))


def tag_words(vlans: Iterable[tuple[int, int]]) -> tuple[int, int, int]:
    """The number of VLAN tags, and two words for them as bpf/packet.h's vlan_tag has it.

    Args:
        vlans: (TPID, VID), the outermost first; at most two.
    """
    words = [
        int.from_bytes(struct.pack("!HH", tpid, vid & 0x0FFF), "little") for tpid, vid in vlans
    ]
    first, second, *_ = *words, 0, 0
    return len(words), first, second


@dataclass(frozen=True, slots=True)
class Place:
    """Where frames of a VIP come in, or where those for a server go out.

    Args:
        ifindex: of the device below any VLAN devices.
        mac: this host's there, colon-separated.
        vlans: (TPID, VID) of each tag, the outermost first.
    """

    ifindex: int
    mac: str
    vlans: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class FastServer:
    """A real server of a service, as the programs reach it.

    Args:
        out: where its frames leave.
        mac: the next hop's; None while it is not known.
        mtu: of the way there, bytes of IP packet.
        local: it is this host.
        alive: its connections go on; not once it failed or is gone.
    """

    out: Place
    mac: str | None
    mtu: int = 1500
    local: bool = False
    alive: bool = True

    def pack(self, vip: Place) -> bytes:
        """As `servers` holds it.

        Args:
            vip: where its service's frames come in.
        """
        flags = ServerFlag(0)
        if self.alive:
            flags |= ServerFlag.ALIVE
        if self.mac is not None:
            flags |= ServerFlag.RESOLVED
        if self.out.ifindex == vip.ifindex:
            flags |= ServerFlag.SAME_DEVICE
        if self.out.vlans == vip.vlans:
            flags |= ServerFlag.SAME_TAGS
        if self.local:
            flags |= ServerFlag.LOCAL
        return SERVER.pack(
            mac_bytes(self.mac or "00:00:00:00:00:00"),
            flags,
            mac_bytes(self.out.mac),
            min(self.mtu, 0xFFFF),
            self.out.ifindex,
            self.out.ifindex,
            *tag_words(self.out.vlans),
        )


@dataclass(frozen=True, slots=True)
class FastService:
    """A service as the programs have it.

    Args:
        vip: where its frames come in.
        flags: what it is.
        table: the first line of its table.
        udp_until: tick until which a UDP flow without a record goes to the old server.
        peer: another director's MAC; "" for none.
        mark: of its packets, where IPVS tells it by one; 0 for none.
        timeout: ticks after which IPVS has forgotten a learned flow that it does not see.
    """

    vip: Place
    flags: ServiceFlag
    table: int = 0
    udp_until: int = 0
    peer: str = ""
    mark: int = 0
    timeout: int = 0

    def pack(self) -> bytes:
        """As `services` holds it; the first word is the decision."""
        return SERVICE.pack(
            self.flags << 32 | self.table * SLOTS_IN_LINE,
            self.vip.ifindex,
            self.udp_until,
            mac_bytes(self.vip.mac),
            *tag_words(self.vip.vlans),
            mac_bytes(self.peer or "00:00:00:00:00:00"),
            bool(self.peer),
            self.mark,
            self.timeout,
        )


def key_of(address: Address, port: int, protocol: int) -> bytes:
    """A key of `services4`, `services6`, `ranges4` or `ranges6`.

    Args:
        address: a VIP.
        port: of a service; 0 for ranges.
        protocol: its IP number.
    """
    layout = KEY4 if address.version == 4 else KEY6
    return layout.pack(address.packed, struct.pack("!H", port), protocol)


def address_of(key: bytes) -> Address:
    """The address in what `key_of` returned."""
    return ip_address(key[:4] if len(key) == KEY4.size else key[:16])


def unpack_address(packed: bytes, version: int) -> Address:
    """An address that is kept in 16 bytes, of which one of IPv4 has the first four.

    Args:
        packed: as FLOW and PLACED_KEY have it, or the four bytes of FLOW4.
        version: of IP.
    """
    return IPv4Address(packed[:4]) if version == 4 else IPv6Address(packed)


def placed_key(service: int, address: Address) -> bytes:
    """A key of `places`.

    Args:
        service: its index.
        address: the RIP of one of its real servers.
    """
    return PLACED_KEY.pack(service, address.version, address.packed)


def placed_of(key: bytes) -> tuple[int, Address]:
    """The service's index and the RIP in what `placed_key` returned."""
    service, version, packed = PLACED_KEY.unpack(key)
    return service, unpack_address(packed, version)


def flow_of(client: Address, client_port: int, port: int, service: int) -> bytes:
    """A key of `records`.

    Args:
        client: its address.
        client_port: its port.
        port: the service's.
        service: its index.
    """
    ports = struct.pack("!H", client_port), struct.pack("!H", port)
    return FLOW.pack(client.packed, *ports, service)
