"""Asking who has an address: by ARP for IPv4, by neighbour discovery for IPv6."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address

from lbdr.datapath import frames, packets
from lbdr.datapath.frames import ArpOperation, NeighbourMessage, parse_arp, parse_neighbour
from lbdr.datapath.packets import PacketSocket
from lbdr.errors import KernelError
from lbdr.model import Address, AddressProbe, HostNetwork, Interface, VirtualAddress

_ASKS = 2  # requests of who_has, the second half way: a broadcast may be lost
_AT_ONCE = 64  # frames read before other tasks have their turn


async def probe(
    vips: Sequence[VirtualAddress], network: HostNetwork, settings: AddressProbe
) -> dict[VirtualAddress, str]:
    """Ask whether other hosts have VIPs, all of them at once.

    A host that probes for the same VIP at the same time counts too (RFC 5227 section 2.1.1, RFC
    4862 section 5.4.3). This host's own MACs do not, and an address of its own does not answer its
    own probe. Takes count x interval seconds; less where every VIP turns out taken.

    Args:
        vips: on Ethernet interfaces that are up.
        network: whose MACs are this host's.
        settings: how many probes, how far apart.

    Returns:
        The MACs of the hosts that have, or claim, a VIP; nothing for the VIPs that are free.

    Raises:
        PrivilegeError: the caller lacks CAP_NET_RAW.
        KernelError: an interface is missing, down, or has no ARP; nothing is known of any VIP then.
    """
    if not vips or not settings.count:
        return {}
    groups: dict[tuple[str, int], list[VirtualAddress]] = {}
    for vip in vips:
        groups.setdefault((vip.interface, vip.address.version), []).append(vip)
    own = {interface.mac for interface in network.interfaces.values() if interface.mac}
    claims = _Claims(frozenset(vips), frozenset(own))
    with contextlib.ExitStack() as stack:
        listeners = [
            (stack.enter_context(_listening(*where, members, claims.hear)), members)
            for where, members in groups.items()
        ]
        for _ in range(settings.count):
            for listener, members in listeners:
                mac = listener.packets.mac
                for vip in members:
                    if vip not in claims.taken:
                        await listener.packets.send(_probe_frame(mac, vip.address))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(claims.complete.wait(), settings.interval)
        for listener, _ in listeners:
            listener.finish()
    return claims.taken


async def who_has(address: Address, interface: Interface, wait: float) -> set[str]:
    """The MACs of all hosts that answer for an address; more than one is the ARP problem.

    It asks as an ordinary host does, with an address of its own, so that servers answer as they
    would answer a client. This host itself does not answer.

    Args:
        address: that is asked for.
        interface: an Ethernet interface that is up, with an address of its own.
        wait: seconds to wait for answers.

    Raises:
        PrivilegeError: the caller lacks CAP_NET_RAW.
        KernelError: the interface is missing, down, or has no ARP.
    """
    answers: set[str] = set()

    def hear(_interface: str, frame: bytes) -> None:
        answer = _answer(frame)
        if answer is not None and answer[0] == address:
            answers.add(answer[1])

    vip = VirtualAddress(address, interface.name)
    with _listening(interface.name, address.version, [vip], hear) as listener:
        question = _question(listener.packets.mac, address, interface)
        for _ in range(_ASKS):
            await listener.packets.send(question)
            await asyncio.sleep(wait / _ASKS)
        listener.finish()
    return answers


async def answerers(
    vips: Sequence[VirtualAddress], network: HostNetwork, wait: float
) -> dict[VirtualAddress, str]:
    """One host that answers for each VIP, all asked for at once, as an ordinary host asks.

    Unlike a probe it claims nothing, so another director's claim is not disturbed.

    Args:
        vips: on Ethernet interfaces that are up.
        network: this host's interfaces.
        wait: seconds to wait for answers.

    Raises:
        PrivilegeError: the caller lacks CAP_NET_RAW.
        KernelError: an interface is missing, down, or has no ARP.
    """
    groups: dict[tuple[str, int], list[VirtualAddress]] = {}
    for vip in vips:
        groups.setdefault((vip.interface, vip.address.version), []).append(vip)
    found: dict[VirtualAddress, str] = {}

    def hear(interface: str, frame: bytes) -> None:
        answer = _answer(frame)
        if answer is not None:
            found.setdefault(VirtualAddress(answer[0], interface), answer[1])

    with contextlib.ExitStack() as stack:
        listeners = []
        for (name, version), members in groups.items():
            listener = stack.enter_context(_listening(name, version, members, hear))
            listeners.append(listener)
            for vip in members:
                question = _question(listener.packets.mac, vip.address, network.interfaces[name])
                await listener.packets.send(question)
        if listeners:
            await asyncio.sleep(wait)
        for listener in listeners:
            listener.finish()
    return {vip: mac for vip, mac in found.items() if vip in set(vips)}


class _Claims:
    """Who else has VIPs, or is about to.

    Args:
        wanted: the VIPs in question.
        own: the MACs of this host.
    """

    def __init__(self, wanted: frozenset[VirtualAddress], own: frozenset[str]) -> None:
        self.taken: dict[VirtualAddress, str] = {}
        self.complete = asyncio.Event()
        self._wanted = wanted
        self._own = own

    def hear(self, interface: str, frame: bytes) -> None:
        """Take note of a frame."""
        claim = _arp_claim(frame) or _neighbour_claim(frame)
        if claim is None or claim[1] in self._own:
            return
        vip = VirtualAddress(claim[0], interface)
        if vip in self._wanted:
            self.taken.setdefault(vip, claim[1])
        if len(self.taken) == len(self._wanted):
            self.complete.set()


class _Listener:
    """Hands the frames of a socket to a function while the event loop runs."""

    def __init__(self, packets: PacketSocket, hear: Callable[[str, bytes], None]) -> None:
        self.packets = packets
        self._hear = hear
        self._error: KernelError | None = None
        packets.listen(self._read)

    def _read(self) -> None:
        try:
            for _ in range(_AT_ONCE):
                frame = self.packets.receive()
                if frame is None:
                    return
                self._hear(self.packets.interface, frame)
        except KernelError as error:  # raised by finish: nobody waits for this call
            self._error = error
            self.packets.deafen()

    def finish(self) -> None:
        """Read what has come meanwhile; KernelError where the interface failed."""
        self._read()
        if self._error is not None:
            raise self._error


@contextlib.contextmanager
def _listening(
    interface: str,
    version: int,
    vips: Sequence[VirtualAddress],
    hear: Callable[[str, bytes], None],
) -> Iterator[_Listener]:
    with packets.open_for(interface, version, {int(vip.address) for vip in vips}) as opened:
        # another host's DAD is sent to the address's own group
        opened.join(
            frames.multicast_mac(frames.solicited_node(vip.address))
            for vip in vips
            if isinstance(vip.address, IPv6Address)
        )
        listener = _Listener(opened, hear)
        try:
            yield listener
        finally:
            opened.deafen()


def _probe_frame(mac: str, address: Address) -> bytes:
    if isinstance(address, IPv6Address):
        return frames.dad_solicitation(mac, address)
    return frames.arp_probe(mac, address)


def _question(mac: str, address: Address, interface: Interface) -> bytes:
    """An ordinary request; without any address of our own a probe, which leaves caches alone."""
    own = [
        known.ip
        for known in interface.addresses
        if known.version == address.version and known.network.prefixlen < known.max_prefixlen
    ]
    if isinstance(address, IPv6Address):
        # a node asks with its link-local address where nothing else is to be sent
        own.sort(key=lambda ip: not ip.is_link_local)
        sender6 = next((ip for ip in own if isinstance(ip, IPv6Address)), IPv6Address("::"))
        return frames.neighbour_solicitation(mac, sender6, address)
    near = [
        known.ip
        for known in interface.addresses
        if known.version == 4 and known.ip in own and address in known.network
    ]
    sender = next((ip for ip in near + own if isinstance(ip, IPv4Address)), IPv4Address(0))
    return frames.arp_request(mac, sender, address)


def _arp_claim(frame: bytes) -> tuple[Address, str] | None:
    """The address that an ARP frame's sender has or is about to take, and its MAC."""
    arp = parse_arp(frame)
    if arp is None:
        return None
    if arp.sender != IPv4Address(0):
        return arp.sender, arp.sender_mac
    return (arp.target, arp.sender_mac) if arp.operation is ArpOperation.REQUEST else None


def _neighbour_claim(frame: bytes) -> tuple[Address, str] | None:
    """The address that a neighbour's sender has or is about to take, and its MAC."""
    neighbour = parse_neighbour(frame)
    if neighbour is None:
        return None
    if neighbour.message is NeighbourMessage.ADVERTISEMENT:
        return neighbour.target, neighbour.mac or neighbour.source
    return (neighbour.target, neighbour.source) if neighbour.sender == IPv6Address("::") else None


def _answer(frame: bytes) -> tuple[Address, str] | None:
    """The address that a frame answers for, and the MAC that it tells."""
    arp = parse_arp(frame)
    if arp is not None:
        return (arp.sender, arp.sender_mac) if arp.operation is ArpOperation.REPLY else None
    neighbour = parse_neighbour(frame)
    if neighbour is None or neighbour.message is not NeighbourMessage.ADVERTISEMENT:
        return None
    return neighbour.target, neighbour.mac or neighbour.source
