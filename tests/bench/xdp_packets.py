"""The kinds of packets that the benchmark sends, and the services and flows that they meet."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address

from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet

from lbdr.datapath import xdp_layout as layout
from lbdr.datapath.xdp_layout import (
    FALLBACK,
    MOST_SERVERS,
    Place,
    RecordState,
    ServiceFlag,
)
from lbdr.maglev import MaglevServer, MaglevTable
from lbdr.model import Address, Protocol
from tests.fastpath import LO, OWN, World, slot

REPEATS = 100_000
FLOWS = 100_000  # in the tables, and in the rows that say so
NEW = 15_000  # SYNs that are recorded in a round: below what one CPU may write in a tick
SERVERS = 10
VIP, VIP6 = ip_address("192.0.2.10"), ip_address("2001:db8::10")
STRANGER = ip_address("192.0.2.77")
CLIENT = ip_address("10.9.9.9")  # not among those of 100,000 flows
FIRST_CLIENT = ip_address("10.0.0.0")
CLIENT_PORT = 30000  # below those of new flows
RIPS = [ip_address(f"192.0.2.{20 + n}") for n in range(SERVERS)]

# Services of the benchmark, by their index in `services`.
MH, TRACKED, MH_PORT, LEARNED, UDP_MH, VLAN, DRAINED, AS_IS = range(1, 9)
CLOSED = 900

# Servers of the benchmark, by the first of their indexes in `servers`.
_PLAIN, _TAGGED, _SELF = 0, SERVERS, 2 * SERVERS
_TAGGED_PLACE = Place(LO, OWN, ((0x8100, 7),))

ONE: Mapping[str, int] = {"FLOWS": 0}
MANY: Mapping[str, int] = {"FLOWS": FLOWS}
EACH: Mapping[str, int] = {"FLOWS": 1}


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of packet, and what must become of it.

    Args:
        row: what the table calls it.
        frame: the first of them.
        limit: of the ratio to a MAC swap; None for a row that informs.
        service: whose counters tell of it; 0 for none.
        restore: how `xdp_rows.c` makes it again what came in, its macros; None: nothing changes.
        at_tc: tc ingress has it.
        forwarded: to a server; otherwise it passes.
        deep: the director decides, behind the steady program.
        inserts: each packet adds a record.
        repeats: packets of a round.
    """

    row: str
    frame: bytes
    limit: float | None = None
    service: int = 0
    restore: Mapping[str, int] | None = None
    at_tc: bool = False
    forwarded: bool = True
    deep: bool = False
    inserts: bool = False
    repeats: int = REPEATS


def kinds() -> list[Kind]:
    """All of them, in the order of the table."""
    mh = frame(segment(MH))
    udp = frame(UDP(sport=CLIENT_PORT, dport=port_of(UDP_MH)))
    syn = frame(segment(TRACKED, "S"))
    return [
        Kind("mh, one flow", mh, 3.2, MH, ONE),
        Kind("mh, 100,000 flows", mh, 3.4, MH, MANY),
        Kind("mh, SYN flood, each a new flow", frame(segment(MH, "S")), 3.4, MH, EACH),
        Kind("tracked slot, established, no record", frame(segment(TRACKED)), 5.0, TRACKED, ONE),
        Kind("learned, one flow", frame(segment(LEARNED)), 5.0, LEARNED, ONE),
        Kind("learned, 100,000 flows", frame(segment(LEARNED)), 10, LEARNED, MANY),
        Kind("mh, IPv6, one flow", frame(segment(MH), VIP6), 4.0, MH, {**ONE, "V6": 1}),
        Kind("not a service, PASS", frame(segment(MH), STRANGER), 2.2, forwarded=False),
        Kind("mh-port, one flow", frame(segment(MH_PORT)), None, MH_PORT, ONE),
        Kind("mh, UDP, one flow", udp, None, UDP_MH, ONE),
        Kind("mh, 802.1Q, one flow", frame(segment(VLAN), vlan=7), None, VLAN, {**ONE, "TAGS": 1}),
        Kind("mh, drained server, one flow", frame(segment(DRAINED)), None, DRAINED, ONE,
             deep=True),
        Kind("tracked slot, 100,000 with records", frame(segment(TRACKED)), None, TRACKED, MANY,
             deep=True),
        Kind("tracked slot, SYN, record added", syn, None, TRACKED, EACH, deep=True, inserts=True,
             repeats=NEW),
        Kind("closed port of a VIP, PASS", frame(segment(CLOSED)), forwarded=False),
        Kind("mh at tc ingress, one flow", mh, None, MH, ONE, at_tc=True),
    ]  # fmt: skip


def port_of(service: int) -> int:
    """The port of a service of the benchmark."""
    return 79 + service


def frame(l4: Packet, to: Address = VIP, *, vlan: int = 0, hops: int = 64) -> bytes:
    """A frame for the director, at least of 64 bytes; xdp_rows.c counts in its end."""
    ethernet = Ether(dst=OWN, src="02:00:00:00:00:99")
    if to.version == 6:
        l3 = IPv6(src="2001:db8:1::5", dst=str(to), hlim=hops)
    else:
        l3 = IP(src=str(CLIENT), dst=str(to), ttl=hops)
    made = bytes((ethernet / Dot1Q(vlan=vlan) if vlan else ethernet) / l3 / l4)
    return made + bytes(max(64 - len(made), 8))


def as_is() -> bytes:
    """A frame that its service sends back to the director itself: only its TTL changes."""
    return frame(segment(AS_IS), hops=255)


def segment(service: int, flags: str = "A") -> Packet:
    """A TCP segment for a service."""
    return TCP(sport=CLIENT_PORT, dport=port_of(service), flags=flags)


def fill(world: World) -> None:
    """Put services, tables, servers and 100,000 flows of each kind into empty maps."""
    if layout.vip_bit(STRANGER) in {layout.vip_bit(VIP), layout.vip_bit(VIP6)}:
        raise RuntimeError(f"{STRANGER} looks like a VIP: take another one")
    for place in range(SERVERS):
        mac = f"02:00:00:00:01:{place:02x}"
        world.server(_PLAIN + place, mac)
        world.server(_TAGGED + place, mac, vip=_TAGGED_PLACE, out=_TAGGED_PLACE)
    world.server(_SELF, OWN)

    mh = MaglevTable([MaglevServer(rip, port_of(MH), 1) for rip in RIPS])
    drained = mh.slots[mh.slot(CLIENT)]
    tables = [
        [slot(server) for server in mh.slots],
        [slot(server, (server + 1) % SERVERS, tracked=True) for server in mh.slots],
        [slot(_TAGGED + server) for server in mh.slots],
        [slot(FALLBACK if server == drained else server) for server in mh.slots],
        [slot(_SELF)] * mh.size,
    ]
    assert len(mh.slots) == mh.size
    assert _SELF < MOST_SERVERS
    lines = [world.maps.capacity.lines * n for n in range(len(tables))]
    for line, words in zip(lines, tables, strict=True):
        world.table(line, words)
    plain, tracked, tagged, fallback, self_only = lines

    active = ServiceFlag.ACTIVE
    world.service(MH, VIP, port_of(MH), table=plain)
    world.service(MH, VIP6, port_of(MH), table=plain)
    world.service(TRACKED, VIP, port_of(TRACKED), table=tracked)
    world.service(MH_PORT, VIP, port_of(MH_PORT), table=plain, flags=active | ServiceFlag.MH_PORT)
    world.service(LEARNED, VIP, port_of(LEARNED), flags=active | ServiceFlag.LEARNED, timeout=900)
    world.service(UDP_MH, VIP, port_of(UDP_MH), Protocol.UDP, table=plain)
    world.service(VLAN, VIP, port_of(VLAN), table=tagged, vip=_TAGGED_PLACE)
    world.service(DRAINED, VIP, port_of(DRAINED), table=fallback)
    world.service(AS_IS, VIP, port_of(AS_IS), table=self_only)
    _fill_flows(world)


def _fill_flows(world: World) -> None:
    """Learned flows, as if IPVS had seen each just now for as long as this runs, and records."""
    tick = time.clock_gettime_ns(time.CLOCK_MONOTONIC) >> layout.TICK_SHIFT
    clients = [FIRST_CLIENT + n for n in range(FLOWS)]
    learned = {
        layout.FLOW4.pack(client.packed, CLIENT_PORT.to_bytes(2, "big"), LEARNED): (
            layout.LEARNED.pack(n % SERVERS, 0, tick + 3600)
        )
        for n, client in enumerate([*clients, CLIENT])
    }
    records = {
        layout.flow_of(client, CLIENT_PORT, port_of(TRACKED), TRACKED): (
            layout.RECORD.pack(n % SERVERS, n % SERVERS, 0, tick, RecordState.CONFIRMED, 0)
        )
        for n, client in enumerate(clients)
    }
    world.maps["flows4"].update_many(learned)
    world.maps["records"].update_many(records)
