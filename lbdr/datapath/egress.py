"""The ways to real servers: from links, routes and neighbours, and by what changes them; pure."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import dataclass

from lbdr.datapath.routes_wire import Link, Neighbour, NeighbourKey, Network, Route
from lbdr.model import Address

_MOST_TAGS = 2


@dataclass(frozen=True, slots=True)
class Path:
    """The way to a real server from this host.

    Args:
        ifindex: of the device below any VLAN devices, which takes frames with their tags. A bridge,
            bond or macvlan is such a device.
        mtu: bytes of an IP packet: the egress device's, or the route's where that is smaller.
        source_mac: of the egress device (the VLAN device's own, if there is one); empty where that
            is not Ethernet.
        vlans: TPID and VLAN ID of each tag, outermost first; at most two.
        mac: of the next hop; None while the kernel does not know it, and where no frame can be
            written in advance: the address is local, a device is in the way that encapsulates or
            is not Ethernet, or there are more than two tags.
        local: the address is this host's own: a director that is itself a real server.
    """

    ifindex: int
    mtu: int
    source_mac: str
    vlans: tuple[tuple[int, int], ...]
    mac: str | None
    local: bool


def descend(link: Link, links: Mapping[int, Link]) -> tuple[Link, tuple[tuple[int, int], ...]]:
    """The device below VLAN devices, and their tags: TPID and VLAN ID, outermost first.

    It is a VLAN device itself where no way further down is known: the one below is in another
    namespace or has just gone, or there are more than two tags.

    Args:
        link: any device; one that is no VLAN device is its own answer.
        links: by index.
    """
    tags: list[tuple[int, int]] = []
    while link.tag is not None and link.lower is not None and len(tags) < _MOST_TAGS:
        lower = links.get(link.lower)
        if lower is None:
            break
        tags.append(link.tag)
        link = lower
    return link, tuple(reversed(tags))


def path(
    route: Route | None,
    links: Mapping[int, Link],
    entries: Mapping[NeighbourKey, Neighbour],
) -> Path | None:
    """The way that a route describes; None without a route, or when its device is gone.

    Args:
        route: the kernel's choice.
        links: by index.
        entries: neighbours by device and address.
    """
    egress = links.get(route.ifindex) if route is not None else None
    if route is None or egress is None:
        return None
    below, vlans = descend(egress, links)
    entry = entries.get((route.ifindex, route.next_hop))
    writable = egress.mac and route.plain and not route.local and below.tag is None
    return Path(
        ifindex=below.index,
        mtu=min(egress.mtu, route.mtu or egress.mtu),
        source_mac=egress.mac,
        vlans=vlans,
        mac=entry.mac if entry is not None and writable else None,
        local=route.local,
    )


def next_hop(route: Route | None, links: Mapping[int, Link]) -> NeighbourKey | None:
    """The neighbour that a route needs resolved."""
    if route is None or route.local or not route.plain:
        return None
    link = links.get(route.ifindex)
    return (link.index, route.next_hop) if link is not None and link.resolves else None


class Index:
    """Finds kept addresses by what a notice names; 1,000 of them cost a notice no search.

    Args:
        kept: device and next hop of each address, None where it has none that is resolved.
    """

    def __init__(self, kept: Mapping[Address, NeighbourKey | None]) -> None:
        self.everything = frozenset(kept)
        self._behind: dict[NeighbourKey, set[Address]] = {}
        for address, key in kept.items():
            if key is not None:
                self._behind.setdefault(key, set()).add(address)
        self._ordered = {
            version: sorted((each for each in kept if each.version == version), key=int)
            for version in (4, 6)
        }

    def behind(self, key: NeighbourKey) -> frozenset[Address]:
        """The addresses whose packets go to a neighbour."""
        return frozenset(self._behind.get(key, ()))

    def inside(self, network: Network) -> frozenset[Address]:
        """The addresses that belong to a network."""
        ordered = self._ordered[network.version]
        start = bisect_left(ordered, int(network.network_address), key=int)
        stop = bisect_right(ordered, int(network.broadcast_address), key=int)
        return frozenset(ordered[start:stop])
