"""Whether one real server serves a VIP: a SYN to the VIP in a frame to that server's MAC.

It needs no tunnel and no other address of the server, and sees what a client would see: the server
has the VIP, and its service listens on it.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import socket
from dataclasses import dataclass
from enum import StrEnum

from lbdr.datapath import routes as rtnetlink
from lbdr.datapath import routes_wire as wire
from lbdr.datapath.frames import ETHERTYPE_IPV6
from lbdr.datapath.packets import PacketSocket
from lbdr.datapath.routes_wire import NeighbourKey
from lbdr.datapath.syn import (
    ACK,
    ETHERTYPE_IPV4,
    RST,
    SYN,
    Segment,
    answer_filter,
    encode,
    parse,
)
from lbdr.errors import KernelError
from lbdr.model import Address, family

_PORTS = range(61000, 65000)  # above those that Linux gives to its own connections
_FRESH = 30.0  # seconds for which the way to a server that answers is not asked for again
_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 0.5  # seconds between looks for a MAC that is being resolved
_SEND_AGAIN = 1.0  # seconds after which a SYN may be lost
_AT_ONCE = 64


class VipAnswer(StrEnum):
    """What came back."""

    ACCEPTED = "accepted"
    REFUSED = "refused"  # it has the VIP, and nothing listens there


@dataclass(slots=True)
class _Waiting:
    """A SYN that waits for its answer."""

    vip: Address
    port: int
    sequence: int
    answer: asyncio.Future[VipAnswer]


@dataclass(frozen=True, slots=True)
class _Way:
    """Where a server is; not to be trusted for ever."""

    interface: str
    mac: str
    until: float


class VipProber:
    """Probes VIPs, by one socket for each interface and IP version.

    For the network namespace of the calling thread. Close it at the end.
    """

    def __init__(self) -> None:
        self._sockets: dict[tuple[str, int], PacketSocket] = {}
        self._waiting: dict[int, _Waiting] = {}
        self._ports = itertools.cycle(_PORTS)
        self._ways: dict[Address, _Way] = {}

    def close(self) -> None:
        """Close its sockets."""
        for key in list(self._sockets):
            self._drop(key)

    async def probe(self, vip: Address, port: int, server: Address) -> VipAnswer:
        """Ask a server for a connection to a VIP, endlessly: the caller limits the time.

        The connection that it may open is reset at once.

        Args:
            vip: of the virtual service.
            port: TCP's, of the virtual service.
            server: the RIP, on a link of this host.

        Raises:
            PrivilegeError: the caller lacks CAP_NET_RAW.
            KernelError: there is no way to the server on a link, or the interface is down.
        """
        way = await self._way(server)
        packets = self._socket(way.interface, vip.version)
        own = next(each for each in self._ports if each not in self._waiting)
        sequence = secrets.randbelow(1 << 32)
        loop = asyncio.get_running_loop()
        waiting = _Waiting(vip, port, sequence, loop.create_future())
        self._waiting[own] = waiting
        source = _source(server)
        if source == vip:
            raise KernelError(
                f"{vip} is the address from which {server} is asked",
                hint="give this director an address of its own in the server's subnet",
            )
        try:
            syn = Segment(source, own, vip, port, SYN, sequence)
            while True:
                await self._send(packets, vip.version, encode(syn, packets.mac, way.mac))
                done, _ = await asyncio.wait([waiting.answer], timeout=_SEND_AGAIN)
                if done:
                    break
            answer = waiting.answer.result()
            if answer is VipAnswer.ACCEPTED:
                after = (sequence + 1) & 0xFFFFFFFF
                reset = Segment(source, own, vip, port, RST, after)
                await self._send(packets, vip.version, encode(reset, packets.mac, way.mac))
        finally:
            del self._waiting[own]
            if not waiting.answer.done() or waiting.answer.cancelled():
                self._ways.pop(server, None)  # it may have another MAC by now
        return answer

    async def _send(self, packets: PacketSocket, version: int, frame: bytes) -> None:
        try:
            await packets.send(frame)
        except KernelError:
            self._drop((packets.interface, version))  # it may come back under its name
            raise

    def _socket(self, interface: str, version: int) -> PacketSocket:
        key = (interface, version)
        if key not in self._sockets:
            program = answer_filter(version, _PORTS[0], _PORTS[-1])
            kind = ETHERTYPE_IPV6 if version == 6 else ETHERTYPE_IPV4
            opened = PacketSocket(interface, kind, program)
            self._sockets[key] = opened
            opened.listen(lambda: self._hear(key))
        return self._sockets[key]

    def _drop(self, key: tuple[str, int]) -> None:
        packets = self._sockets.pop(key, None)
        if packets is not None:
            packets.deafen()
            packets.close()

    def _hear(self, key: tuple[str, int]) -> None:
        try:
            for _ in range(_AT_ONCE):
                frame = self._sockets[key].receive()
                if frame is None:
                    return
                parsed = parse(frame)
                if parsed is not None:
                    self._take(parsed[0])
        except KernelError:
            self._drop(key)  # who waits sees the time run out, and the next one the reason

    def _take(self, segment: Segment) -> None:
        waiting = self._waiting.get(segment.receiver_port)
        if waiting is None or waiting.answer.done():
            return
        if (segment.sender, segment.sender_port) != (waiting.vip, waiting.port):
            return
        if segment.acknowledges != (waiting.sequence + 1) & 0xFFFFFFFF:
            return
        if segment.flags & RST:
            waiting.answer.set_result(VipAnswer.REFUSED)
        elif segment.flags == SYN | ACK:
            waiting.answer.set_result(VipAnswer.ACCEPTED)

    async def _way(self, server: Address) -> _Way:
        """The device on whose link a server is, and its MAC there."""
        loop = asyncio.get_running_loop()
        known = self._ways.get(server)
        if known is not None and loop.time() < known.until:
            return known
        route = (await rtnetlink.routes([server]))[server]
        if route is None:
            raise KernelError(f"no route to {server}")
        if route.local:
            raise KernelError(f"{server} is this director itself")
        if route.next_hop != server or not route.plain:
            raise KernelError(f"{server} is not on a link of this director")
        try:
            name = socket.if_indextoname(route.ifindex)
        except OSError as error:
            raise KernelError(f"no route to {server}", errno=error.errno or 0) from error
        mac = await _resolve((route.ifindex, server), name)
        found = self._ways[server] = _Way(name, mac, loop.time() + _FRESH)
        return found


async def _resolve(key: NeighbourKey, name: str) -> str:
    """The MAC of a neighbour, endlessly asked for until the kernel knows it."""
    pause, asked = _FIRST_PAUSE, False
    while True:
        (answer,) = await rtnetlink.ask([wire.get_neighbour(key, name)])
        entries = [wire.neighbour_of(message) for message in answer.messages]
        for entry in entries:
            if entry is not None and entry.key == key and entry.mac is not None:
                return entry.mac
        if not asked:
            await rtnetlink.ask([wire.use(key, name)])
            asked = True
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def _source(server: Address) -> Address:
    """This host's own address for a server."""
    with socket.socket(family(server.version), socket.SOCK_DGRAM) as any_socket:
        any_socket.connect((str(server), 9))  # UDP: nothing is sent
        name: str = any_socket.getsockname()[0]
    # never a scope here: a link-local RIP is no address that the configuration takes
    return type(server)(name.partition("%")[0])
