"""What the fast path is to have of each service, by what the kernel has now."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from lbdr.datapath.neighbours import Neighbours
from lbdr.datapath.routes_wire import Link
from lbdr.datapath.xdp import FastPath
from lbdr.datapath.xdp_layout import ServiceFlag
from lbdr.datapath.xdp_wanted import WantedService
from lbdr.director import Director
from lbdr.fastpath_wanted import is_direct, only_marked, place_of, wanted_service
from lbdr.model import Address, Key, Service, VirtualAddress


async def forwarded(
    director: Director,
    neighbours: Neighbours,
    services: Mapping[Key, Service],
    links: Mapping[int, Link],
    held: Mapping[Address, VirtualAddress],
    *,
    alone: bool,
) -> dict[Key, WantedService]:
    """The services as IPVS has them now, with the ways to their real servers.

    Args:
        director: whose services they are.
        neighbours: keeps the real servers' resolved.
        services: those of the fast path; one that IPVS has otherwise is left out.
        links: this host's, by index.
        held: the VIPs that this host has.
        alone: there is no IPVS.

    Raises:
        KernelError: the kernel does not tell.
    """
    table = director.kernel.schedules()
    there = {
        key: found[1]
        for key, service in services.items()
        if (found := table.get(key)) is not None
        and found[0] == service.scheduler
        and is_direct(found[1])
    }
    rips = {server.address for scheduled in there.values() for server in scheduled}
    if rips == neighbours.kept:
        await neighbours.refresh()
    else:
        await neighbours.keep(rips)
    ways = await neighbours.observe(rips)
    # marks are set before clients are called here: where the VIP is to be
    placed = {vip.address: vip for vip in director.desired().addresses} if not alone else held
    timeouts = director.kernel.ipvs.timeouts()
    wanted = {}
    for key, scheduled in there.items():
        service, traffic = services[key], services[key].traffic
        if traffic is None:
            continue
        vip = (placed if service.marked else held).get(traffic.address)
        wanted[key] = wanted_service(
            service,
            traffic,
            scheduled,
            ways,
            place_of(vip, links),
            held=traffic.address in held,
            timeouts=timeouts,
            alone=alone,
        )
    return wanted


def marked_only(
    director: Director, without: Collection[Key], links: Mapping[int, Link]
) -> dict[Key, WantedService]:
    """The services that IPVS forwards, and knows by a mark alone.

    Args:
        director: whose services they are.
        without: those that the fast path forwards.
        links: this host's, by index.
    """
    desired = director.desired()
    vips = {vip.address: vip for vip in desired.addresses}
    return {
        key: only_marked(service, service.marked, place_of(vips.get(service.marked.address), links))
        for key, service in desired.services.items()
        if service.marked is not None and key not in without
    }


def successors(fast: FastPath, wanted: Mapping[Key, WantedService]) -> list[tuple[Key, Key]]:
    """Services with a table that got other ports, and so another identity in IPVS: from, and to.

    Args:
        fast: has those that were.
        wanted: that are to be.
    """
    new = {
        key: service
        for key, service in wanted.items()
        if key not in fast.keys and ServiceFlag.LEARNED not in service.flags
    }
    found = []
    for key in fast.forwarded - wanted.keys():
        traffic = fast.traffic(key)
        for other, service in new.items():
            if fast.has_table(key) and traffic.overlaps(service.traffic):
                found.append((key, other))
                del new[other]
                break
    return found


def unmarked(director: Director, wanted: Mapping[Key, WantedService]) -> dict[Address, str]:
    """The VIPs that are to be here and whose packets cannot be marked, and why.

    Args:
        director: whose services they are.
        wanted: all services of the fast path, by key.
    """
    vips = {vip.address: vip for vip in director.desired().addresses}
    return {
        address: f"{address} is on {vips[address].interface}, where lbdr cannot see its frames"
        for service in wanted.values()
        if service.mark and not service.vip.ifindex
        for address in [service.traffic.address]
        if address in vips
    }
