"""From what the kernel has to what the fast path's maps are to hold; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lbdr.datapath.egress import Path as Way
from lbdr.datapath.egress import descend
from lbdr.datapath.ipvs_text import Scheduled
from lbdr.datapath.routes_wire import Link
from lbdr.datapath.xdp_layout import FastServer, Place, ServiceFlag
from lbdr.datapath.xdp_wanted import WantedServer, WantedService
from lbdr.fastpath import is_table
from lbdr.model import Address, Protocol, Service, ServiceKey, Timeouts, VirtualAddress
from lbdr.tracking import ticks

_NOWHERE = Place(0, "00:00:00:00:00:00")
_UNREACHED = FastServer(_NOWHERE, None)
_MARGIN = 2  # ticks by which lbdr takes a flow for forgotten before IPVS forgets it
_DIRECT = frozenset({"Route", "Local"})


def place_of(vip: VirtualAddress | None, links: Mapping[int, Link]) -> Place | None:
    """Where frames of a VIP come in; None where this host does not have it."""
    by_name = {link.name: link for link in links.values()}
    link = by_name.get(vip.interface) if vip is not None else None
    if link is None or not link.mac:
        return None
    device, vlans = descend(link, links)
    # further down is another namespace, or a third tag
    return None if device.tag is not None else Place(device.index, link.mac, vlans)


def wanted_service(
    key: ServiceKey,
    service: Service,
    scheduled: Sequence[Scheduled],
    ways: Mapping[Address, Way | None],
    place: Place | None,
    *,
    timeouts: Timeouts,
) -> WantedService:
    """A service as IPVS has it, with the ways to its real servers.

    Args:
        key: of the service.
        service: as it is to be.
        scheduled: its real servers as IPVS has them.
        ways: to them.
        place: of the VIP; None where this host does not have it.
        timeouts: IPVS's.
    """
    flags = ServiceFlag(0) if place is None else ServiceFlag.ACTIVE
    if not is_table(service):
        flags |= ServiceFlag.LEARNED
    elif "mh-port" in service.flags:
        flags |= ServiceFlag.MH_PORT
    if key.port == 0:
        flags |= ServiceFlag.PORTS
    real_servers = tuple(
        WantedServer(server.address, server.weight, _reach(ways.get(server.address)))
        for server in scheduled
    )
    seconds = timeouts.udp if key.protocol is Protocol.UDP else timeouts.tcp
    timeout = max(0, ticks(seconds) - _MARGIN)
    return WantedService(place or _NOWHERE, flags, real_servers, timeout)


def is_direct(scheduled: Sequence[Scheduled]) -> bool:
    """Whether all real servers that IPVS has of a service are reached by Direct Routing."""
    return all(server.method in _DIRECT for server in scheduled)


def _reach(way: Way | None) -> FastServer:
    if way is None or not (way.source_mac or way.local):
        return _UNREACHED
    out = Place(way.ifindex, way.source_mac or _NOWHERE.mac, way.vlans)
    return FastServer(out, way.mac, way.mtu, local=way.local)
