"""What is to become of any frame: a model of the director in Python, from RFCs and rules alone.

Sources: RFC 791 and 8200 (headers), RFC 792 and 4443 (errors and what they quote), IEEE 802.1Q
(tags), RFC 1812 section 5.3.7 (martians), net/netfilter/ipvs/ip_vs_mh.c (the choice). It is written
for the case that nothing expires meanwhile, and for speed: a million frames are asked about.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from lbdr.datapath.bpf_wire import Verdict
from lbdr.datapath.xdp_layout import Place, Reason
from lbdr.maglev import KEY1, hash_u32

_TPIDS = {b"\x81\x00", b"\x88\xa8"}
_BALANCED = {6, 17}
_ERRORS4 = {3, 4, 11, 12}
_ERRORS6 = {1, 2, 3, 4}
_EXTENSIONS = {0, 43, 44, 60}
_MOST_EXTENSIONS, _FURTHEST = 4, 1020
_TRIES = 32
_SYN, _FIN_RST = 2, 5
FALLBACK = -2


@dataclass(frozen=True, slots=True)
class ModelServer:
    """A real server.

    Args:
        mac: its own; None where it is not known.
        out: where it is reached.
        mtu: of the way there.
        alive: its connections go on.
        local: it is this host.
    """

    mac: str | None
    out: Place
    mtu: int = 1500
    alive: bool = True
    local: bool = False


@dataclass(slots=True)
class ModelService:
    """A service.

    Args:
        vip: where its frames come in.
        slots: a server for each slot, -1 for none, FALLBACK for one that is drained.
        active: it is forwarded.
        port_hash: the client's port counts, too.
        alone: there is no IPVS.
        flows: learned ones, with whether they are closing; None where nothing is learned.
        tracked: the other server that a packet may go to, by what was before it.
        peer: another director's MAC.
    """

    vip: Place
    slots: Sequence[int]
    active: bool = True
    port_hash: bool = False
    alone: bool = False
    flows: dict[tuple[bytes, int], list[int]] | None = None
    tracked: int | None = None
    peer: str = ""


@dataclass(slots=True)
class Expected:
    """What a frame may become.

    Args:
        verdict: of XDP.
        frames: one of these comes out.
    """

    verdict: Verdict
    frames: tuple[bytes, ...]


@dataclass(slots=True)
class _Packet:
    frame: bytes
    at: int  # where IP begins
    tags: tuple[tuple[bytes, int], ...]
    version: int
    length: int
    hops: int
    client: bytes
    vip: bytes
    protocol: int = 0
    client_port: int = 0
    port: int = 0
    payload: int = 0  # where TCP begins
    options: bool = False
    first: bool = False
    quoted: bool = False


@dataclass(slots=True)
class Model:
    """A director.

    Args:
        ifindex: of the device on which all frames come in.
        services: by index.
        servers: by index.
        devices: that are there.
    """

    ifindex: int
    services: dict[int, ModelService]
    servers: dict[int, ModelServer]
    devices: set[int]
    ports: dict[tuple[bytes, int, int], int] = field(default_factory=dict)
    ranges: dict[tuple[bytes, int], list[tuple[int, int, int]]] = field(default_factory=dict)
    vips: set[bytes] = field(default_factory=set)
    reasons: Counter[tuple[int, Reason]] = field(default_factory=Counter)
    served: Counter[int] = field(default_factory=Counter)
    fragments: dict[tuple[bytes, bytes, bytes, int], tuple[int, int]] = field(default_factory=dict)

    def expect(self, frame: bytes) -> Expected:
        """What becomes of a frame; what it changes is remembered."""
        at, kind = 14, frame[12:14]
        tags: tuple[tuple[bytes, int], ...] = ()
        while kind in _TPIDS and len(tags) < 2:
            tci = frame[at : at + 2]
            if len(frame) < at + 4:
                return Expected(Verdict.PASS, (frame,))
            tags = (*tags, (kind, int.from_bytes(tci, "big")))
            kind = frame[at + 2 : at + 4]
            at += 4
        found: Expected | None = None
        if kind == b"\x08\x00" and frame[at + 16 : at + 20] in self.vips:
            found = self._ip4(frame, at, tags)
        elif kind == b"\x86\xdd" and frame[at + 24 : at + 40] in self.vips:
            found = self._ip6(frame, at, tags)
        return found or Expected(Verdict.PASS, (frame,))

    # --- parsing ---------------------------------------------------------------------------------

    def _ip4(self, frame: bytes, at: int, tags: tuple[tuple[bytes, int], ...]) -> Expected | None:
        size = (frame[at] & 15) * 4
        if frame[at] >> 4 != 4 or size < 20:
            return None
        length = int.from_bytes(frame[at + 2 : at + 4], "big")
        fragment = int.from_bytes(frame[at + 6 : at + 8], "big")
        client, vip = frame[at + 12 : at + 16], frame[at + 16 : at + 20]
        packet = _Packet(frame, at, tags, 4, length, frame[at + 8], client, vip, frame[at + 9])
        if fragment & 0x1FFF:
            return self._later(packet)
        packet.options = size > 20
        packet.first = bool(fragment & 0x2000)
        packet.payload = at + size
        if packet.protocol == 1:
            if packet.first or not self._quoted4(packet):
                return None
        elif packet.protocol not in _BALANCED or not self._take_ports(packet):
            return None
        return self._decide(packet)

    def _ip6(self, frame: bytes, at: int, tags: tuple[tuple[bytes, int], ...]) -> Expected | None:
        if frame[at] >> 4 != 6:
            return None
        length = int.from_bytes(frame[at + 4 : at + 6], "big") + 40
        client, vip = frame[at + 8 : at + 24], frame[at + 24 : at + 40]
        packet = _Packet(frame, at, tags, 6, length, frame[at + 7], client, vip, frame[at + 6])
        packet.payload = at + 40
        if packet.protocol == 58 and frame[at] >> 4 == 6:
            return self._decide(packet) if self._quoted6(packet) else None
        known = frame[at] >> 4 == 6 and _skip_extensions(packet) and self._take_ports(packet)
        return self._decide(packet) if known else None

    @staticmethod
    def _take_ports(packet: _Packet) -> bool:
        at, frame = packet.payload, packet.frame
        packet.client_port = int.from_bytes(frame[at : at + 2], "big")
        packet.port = int.from_bytes(frame[at + 2 : at + 4], "big")
        return len(frame) >= at + 8

    @staticmethod
    def _quoted4(packet: _Packet) -> bool:
        """An error's quote is at least the header and 8 bytes more (RFC 792)."""
        quote = packet.frame[packet.payload + 8 : packet.at + packet.length]
        if len(quote) < 28 or packet.frame[packet.payload] not in _ERRORS4:
            return False
        size = (quote[0] & 15) * 4
        if quote[0] >> 4 != 4 or not 20 <= size <= len(quote) - 8 or quote[12:16] != packet.vip:
            return False
        if int.from_bytes(quote[6:8], "big") & 0x1FFF or quote[9] not in _BALANCED:
            return False
        packet.protocol, packet.client, packet.quoted = quote[9], quote[16:20], True
        packet.port = int.from_bytes(quote[size : size + 2], "big")
        packet.client_port = int.from_bytes(quote[size + 2 : size + 4], "big")
        return True

    @staticmethod
    def _quoted6(packet: _Packet) -> bool:
        quote = packet.frame[packet.payload + 8 :]
        if len(quote) < 48 or packet.frame[packet.payload] not in _ERRORS6 or packet.length < 96:
            return False
        if quote[8:24] != packet.vip or quote[6] not in _BALANCED:
            return False
        packet.protocol, packet.client, packet.quoted = quote[6], quote[24:40], True
        packet.port = int.from_bytes(quote[40:42], "big")
        packet.client_port = int.from_bytes(quote[42:44], "big")
        return True

    # --- deciding --------------------------------------------------------------------------------

    def _find(self, packet: _Packet) -> int | None:
        exact = self.ports.get((packet.vip, packet.protocol, packet.port))
        if exact is not None:
            return exact
        for first, last, index in self.ranges.get((packet.vip, packet.protocol), ()):
            if first <= packet.port <= last:
                return index
        return None

    def _decide(self, packet: _Packet) -> Expected | None:
        index = self._find(packet)
        if index is None:
            return None
        service = self.services[index]
        least = 28 if packet.version == 4 else 48
        refused = self._refused(packet, index, service, least)
        if refused:
            return refused
        server = self._choose(packet, service)
        if isinstance(server, Reason):
            return self._passed(packet, index, service, server)
        if packet.first:
            self.fragments[_fragment(packet)] = index, server
        if service.tracked is not None:
            if not packet.quoted and packet.protocol == 6 and not _flags(packet):
                return self._passed(packet, index, service, Reason.NO_SERVER)
            frames = {self._sent(packet, one) for one in (server, service.tracked)}
            return Expected(Verdict.TX, tuple(frames))
        return self._forward(packet, index, service, server)

    def _refused(
        self, packet: _Packet, index: int, service: ModelService, least: int
    ) -> Expected | None:
        reason = self._not_ours(packet, service)
        if reason:
            self.reasons[index, reason] += 1
            return Expected(Verdict.PASS, (packet.frame,))
        if not least <= packet.length <= len(packet.frame) - packet.at:
            reason = Reason.LENGTH
        elif packet.hops <= 1:
            reason = Reason.TTL
        elif packet.client_port == 20:  # FTP's data, which ip_vs_schedule leaves alone
            reason = Reason.FTP_DATA
        elif packet.options:
            reason = Reason.OPTIONS
        elif packet.first and not service.alone:
            reason = Reason.FRAGMENT
        return self._passed(packet, index, service, reason) if reason else None

    def _not_ours(self, packet: _Packet, service: ModelService) -> Reason | None:
        frame = packet.frame
        tags = tuple((int.from_bytes(tpid, "big"), tci & 0xFFF) for tpid, tci in packet.tags)
        start, end = (12, 16) if packet.version == 4 else (8, 24)
        reason = None
        if frame[:6].hex(":") != service.vip.mac:
            reason = Reason.OTHER_HOST
        elif tags != service.vip.vlans or service.vip.ifindex != self.ifindex:
            reason = Reason.OTHER_VLAN
        elif service.peer and frame[6:12].hex(":") == service.peer:
            reason = Reason.PEER
        elif _is_martian(frame[packet.at + start : packet.at + end], packet.vip):
            reason = Reason.MARTIAN
        elif not service.active:
            reason = Reason.INACTIVE
        return reason

    def _passed(
        self, packet: _Packet, index: int, service: ModelService, reason: Reason
    ) -> Expected:
        self.reasons[index, reason] += 1
        return Expected(Verdict.DROP if service.alone else Verdict.PASS, (packet.frame,))

    def _choose(self, packet: _Packet, service: ModelService) -> int | Reason:
        if service.flows is not None:
            return self._learned(packet, service.flows)
        value = _fold(packet.client) + (packet.client_port if service.port_hash else 0)
        size = len(service.slots)
        slot = _hash(value & 0xFFFFFFFF) % size
        server = service.slots[slot]
        if server == FALLBACK:
            for offset in range(_TRIES):
                again = _hash((value + (slot + offset) % size) & 0xFFFFFFFF) % size
                if service.slots[again] >= 0:
                    return service.slots[again]
                if service.slots[again] != FALLBACK:
                    break
            return Reason.FALLBACK
        return Reason.NO_SERVER if server < 0 else server

    @staticmethod
    def _learned(packet: _Packet, flows: dict[tuple[bytes, int], list[int]]) -> int | Reason:
        key = packet.client, packet.client_port
        flow = flows.get(key)
        if flow is None:
            return Reason.NOT_LEARNED
        if packet.protocol == 6 and not packet.quoted:
            flags = _flags(packet)
            if not flags:
                return Reason.NOT_LEARNED
            if flags[0] & _SYN:
                del flows[key]
                return Reason.NOT_LEARNED
            if flags[0] & _FIN_RST:
                flow[1] = 1
        return Reason.CLOSING if flow[1] else flow[0]

    def _later(self, packet: _Packet) -> Expected:
        known = self.fragments.get(_fragment(packet))
        if known is None:
            self.reasons[0, Reason.FRAGMENT] += 1
            return Expected(Verdict.PASS, (packet.frame,))
        index, server = known
        service = self.services[index]
        refused = self._refused(packet, index, service, 20)
        return refused or self._forward(packet, index, service, server)

    # --- forwarding ------------------------------------------------------------------------------

    def _forward(self, packet: _Packet, index: int, service: ModelService, number: int) -> Expected:
        server = self.servers[number]
        if server.local:
            self.reasons[index, Reason.LOCAL] += 1
            return Expected(Verdict.PASS, (packet.frame,))
        same = server.out.ifindex == service.vip.ifindex
        reason = None
        if not server.alive:
            reason = Reason.NO_SERVER
        elif server.mac is None or not (same or server.out.ifindex in self.devices):
            reason = Reason.NEIGHBOUR
        elif packet.length > server.mtu:
            reason = Reason.MTU
        if reason:
            return self._passed(packet, index, service, reason)
        self.served[number] += 1
        verdict = Verdict.TX if same else Verdict.REDIRECT
        return Expected(verdict, (self._sent(packet, number),))

    def _sent(self, packet: _Packet, number: int) -> bytes:
        server = self.servers[number]
        frame, at = packet.frame, packet.at
        there = [tci & 0xF000 for _, tci in packet.tags] or [0]
        vlans = server.out.vlans
        tags = b"".join(
            tpid.to_bytes(2, "big") + (vid | there[min(place, len(there) - 1)]).to_bytes(2, "big")
            for place, (tpid, vid) in enumerate(vlans)
        )
        hops = at + (8 if packet.version == 4 else 7)
        head = bytearray(frame[at:hops])
        rest = bytearray(frame[hops:])
        rest[0] -= 1
        if packet.version == 4:  # a hop less is 0x0100 less: RFC 1624, equation 3
            total = (~int.from_bytes(rest[2:4], "big") & 0xFFFF) + 0xFEFF
            total = (total & 0xFFFF) + (total >> 16)
            rest[2:4] = (~total & 0xFFFF).to_bytes(2, "big")
        return b"".join(
            (_macs(server.mac or "", server.out.mac), tags, frame[at - 2 : at], head, rest)
        )


def _skip_extensions(packet: _Packet) -> bool:
    """Whether TCP or UDP is found behind extension headers, if there are any."""
    for _ in range(_MOST_EXTENSIONS):
        if packet.protocol in _BALANCED:
            break
        header = packet.frame[packet.payload : packet.payload + 8]
        if packet.protocol not in _EXTENSIONS or len(header) < 8:
            return False
        if packet.protocol == 44 and int.from_bytes(header[2:4], "big") & 0xFFF8:
            return False
        packet.payload += 8 + (0 if packet.protocol == 44 else header[1] * 8)
        packet.protocol = header[0]
        packet.options = True
        if packet.payload > _FURTHEST:
            return False
    return packet.protocol in _BALANCED


def _flags(packet: _Packet) -> bytes:
    """TCP's flags; nothing where the segment is cut off before them."""
    return packet.frame[packet.payload + 13 : packet.payload + 14]


def _fragment(packet: _Packet) -> tuple[bytes, bytes, bytes, int]:
    identification = packet.frame[packet.at + 4 : packet.at + 6]
    return packet.client, packet.vip, identification, packet.protocol


def _is_martian(source: bytes, destination: bytes) -> bool:
    if source == destination:
        return True
    if len(source) == 4:
        return source[0] in {0, 127} or source[0] >= 224
    return source[0] == 0xFF or source[:12] in {bytes(12), bytes(10) + b"\xff\xff"}


def _fold(address: bytes) -> int:
    value = 0
    for start in range(0, len(address), 4):
        value ^= int.from_bytes(address[start : start + 4], "big")
    return value


@lru_cache(maxsize=1 << 16)
def _hash(value: int) -> int:
    return hash_u32(value, KEY1)


@lru_cache(maxsize=64)
def _macs(destination: str, source: str) -> bytes:
    return bytes.fromhex((destination + source).replace(":", ""))
