"""Which devices the programs are needed on; pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lbdr.datapath.xdp_layout import ServiceFlag
from lbdr.datapath.xdp_wanted import WantedService


@dataclass(frozen=True, slots=True)
class Devices:
    """Indexes of devices, by what they are for.

    Args:
        incoming: that VIPs are on whose services are forwarded.
        outgoing: that lead to servers whose service IPVS decides.
        marking: that VIPs are on whose packets are marked.
        behind: that servers are reached by from a VIP on another one.
    """

    incoming: frozenset[int]
    outgoing: frozenset[int]
    marking: frozenset[int]
    behind: frozenset[int]


def devices_of(services: Iterable[WantedService]) -> Devices:
    """The devices that services need.

    Args:
        services: as they are wanted.
    """
    incoming: set[int] = set()
    outgoing: set[int] = set()
    marking: set[int] = set()
    behind: set[int] = set()
    for service in services:
        if service.mark:
            marking.add(service.vip.ifindex)
        if ServiceFlag.ACTIVE not in service.flags:
            continue
        incoming.add(service.vip.ifindex)
        leave = {server.reach.out.ifindex for server in service.real_servers}
        behind |= leave - {service.vip.ifindex}
        if ServiceFlag.LEARNED in service.flags:
            outgoing |= leave
    nowhere = {0}
    return Devices(
        frozenset(incoming),
        frozenset(outgoing - nowhere),
        frozenset(marking - nowhere),
        frozenset(behind - nowhere),
    )
