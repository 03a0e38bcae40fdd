"""From what the kernel has to what the fast path's maps are to hold; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lbdr.datapath.ipvs_text import Scheduled
from lbdr.datapath.neighbours import Path as Way
from lbdr.datapath.routes import Link
from lbdr.datapath.xdp import Member, WantedService
from lbdr.datapath.xdp_layout import FastServer, Place, ServiceFlag
from lbdr.fastpath import is_table
from lbdr.model import Address, Protocol, Service, ServiceKey, VirtualAddress

_MOST_TAGS = 2
_NOWHERE = Place(0, "00:00:00:00:00:00")
_UNREACHED = FastServer(_NOWHERE, None)
_TIMEOUTS = {Protocol.TCP: 840, Protocol.UDP: 280}  # ticks: IPVS's 15 and 5 minutes


def place_of(vip: VirtualAddress | None, links: Mapping[int, Link]) -> Place | None:
    """Where frames of a VIP come in; None where this host does not have it."""
    by_name = {link.name: link for link in links.values()}
    link = by_name.get(vip.interface) if vip is not None else None
    if link is None or not link.mac:
        return None
    mac, tags = link.mac, list[tuple[int, int]]()
    while link.tag is not None and link.lower is not None and len(tags) < _MOST_TAGS:
        tags.append(link.tag)
        lower = links.get(link.lower)
        if lower is None:
            return None  # in another namespace
        link = lower
    return None if link.tag is not None else Place(link.index, mac, tuple(reversed(tags)))


def wanted_service(
    key: ServiceKey,
    service: Service,
    scheduled: Sequence[Scheduled],
    ways: Mapping[Address, Way | None],
    place: Place | None,
) -> WantedService:
    """A service as IPVS has it, with the ways to its real servers."""
    flags = ServiceFlag(0) if place is None else ServiceFlag.ACTIVE
    if not is_table(service):
        flags |= ServiceFlag.LEARNED
    elif "mh-port" in service.flags:
        flags |= ServiceFlag.MH_PORT
    if key.port == 0:
        flags |= ServiceFlag.PORTS
    members = tuple(
        Member(server.address, server.weight, _reach(ways.get(server.address)))
        for server in scheduled
    )
    timeout = _TIMEOUTS[key.protocol]
    return WantedService(place or _NOWHERE, flags, members, timeout)


def _reach(way: Way | None) -> FastServer:
    if way is None or not (way.source_mac or way.local):
        return _UNREACHED
    out = Place(way.ifindex, way.source_mac or _NOWHERE.mac, way.vlans)
    return FastServer(out, way.mac, way.mtu, local=way.local)
