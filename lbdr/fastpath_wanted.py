"""From what the kernel has to what the fast path's maps are to hold; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from lbdr.datapath.egress import Path as Way
from lbdr.datapath.egress import descend
from lbdr.datapath.ipvs_text import Scheduled
from lbdr.datapath.routes_wire import Link
from lbdr.datapath.xdp_layout import FastServer, Place, ServiceFlag
from lbdr.datapath.xdp_wanted import WantedServer, WantedService
from lbdr.fastpath import is_table
from lbdr.model import Address, MarkKey, Protocol, Service, Timeouts, Traffic, VirtualAddress
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
    service: Service,
    traffic: Traffic,
    scheduled: Sequence[Scheduled],
    ways: Mapping[Address, Way | None],
    place: Place | None,
    *,
    held: bool,
    timeouts: Timeouts,
    alone: bool = False,
) -> WantedService:
    """A service as IPVS has it, with the ways to its real servers.

    Args:
        service: as it is to be.
        traffic: its packets.
        scheduled: its real servers as IPVS has them.
        ways: to them.
        place: of the VIP; None where this host is not to have it.
        held: whether this host has the VIP.
        timeouts: IPVS's.
        alone: there is no IPVS: nothing of the service may reach the local stack, unless this host
            is one of its real servers.
    """
    flags = ServiceFlag(0) if place is None or not held else ServiceFlag.ACTIVE
    if not is_table(service):
        flags |= ServiceFlag.LEARNED
    elif "mh-port" in service.flags:
        flags |= ServiceFlag.MH_PORT
    if traffic.ports.single is None:
        flags |= ServiceFlag.PORTS
    real_servers = tuple(
        WantedServer(server.address, server.weight, _reach(ways.get(server.address)))
        for server in scheduled
    )
    if alone:
        flags |= ServiceFlag.ALONE
        if not any(server.reach.local for server in real_servers):
            flags |= ServiceFlag.GUARDED
    seconds = timeouts.udp if traffic.protocol is Protocol.UDP else timeouts.tcp
    timeout = max(0, ticks(seconds) - _MARGIN)
    return WantedService(
        place or _NOWHERE, flags, real_servers, traffic, timeout, _mark_of(service)
    )


def only_marked(service: Service, traffic: Traffic, place: Place | None) -> WantedService:
    """A service that IPVS alone forwards, and knows by the mark that tc ingress sets.

    Args:
        service: as it is to be.
        traffic: its packets.
        place: of the VIP; None where this host is not to have it.
    """
    nothing = WantedService(place or _NOWHERE, ServiceFlag(0), (), traffic, mark=_mark_of(service))
    return unforwarded(nothing)


def unforwarded(wanted: WantedService) -> WantedService:
    """A service that is only marked from now on."""
    flags = ServiceFlag.LEARNED | ServiceFlag.PORTS  # so there is no table for it
    return replace(wanted, flags=flags, real_servers=(), timeout=0, marked_only=True)


def _mark_of(service: Service) -> int:
    return service.key.mark if isinstance(service.key, MarkKey) else 0


def is_direct(scheduled: Sequence[Scheduled]) -> bool:
    """Whether all real servers that IPVS has of a service are reached by Direct Routing."""
    return all(server.method in _DIRECT for server in scheduled)


def to_guard(links: Mapping[int, Link]) -> frozenset[int]:
    """The devices whose frames the local stack takes, by index.

    Not the ports of a bridge or bond, nor what a macvlan is on: another device may yet serve those.

    Args:
        links: by index.
    """
    below = {link.shared for link in links.values()}
    return frozenset(
        index
        for index, link in links.items()
        if link.mac and not link.loopback and not link.port and index not in below
    )


def _reach(way: Way | None) -> FastServer:
    if way is None or not (way.source_mac or way.local):
        return _UNREACHED
    out = Place(way.ifindex, way.source_mac or _NOWHERE.mac, way.vlans)
    return FastServer(out, way.mac, way.mtu, local=way.local)
