"""Which packet mark tells IPVS which virtual service; pure.

IPVS takes one decision for several ports only where a packet mark tells it the service. The
director's program at tc ingress sets it. Each service that needs one gets one of the range that
the file names, and keeps it: another mark is another service to IPVS, and its connections end.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from lbdr.model import (
    Configuration,
    DesiredState,
    Forwarding,
    Key,
    MarkKey,
    ObservedService,
    Service,
    ServiceKey,
    VirtualService,
)

Marks = Mapping[str, int]
"""The mark of each virtual service that needs one, by its name."""


def needing(configuration: Configuration) -> list[VirtualService]:
    """The virtual services that need a mark, in the order of the file."""
    return [
        virtual
        for virtual in configuration.virtual_services
        if virtual.forwarding is Forwarding.DR and virtual.needs_mark
    ]


def assign(
    configuration: Configuration, before: Marks, former: Configuration | None = None
) -> dict[str, int]:
    """A mark for each service that needs one; one that has a mark of the range keeps it.

    Args:
        configuration: whose range is large enough (lbdr.config.mark_rules).
        before: the marks up to now. Those of services that are gone are used again last: who was
            sent somewhere by an old one is not to be found by a new one.
        former: the configuration up to now, where it is known: a service that was renamed keeps its
            mark, too.
    """
    allowed = configuration.director.marks
    services = needing(configuration)
    before = {**before, **_renamed(services, before, former)}
    marks = {
        virtual.name: before[virtual.name]
        for virtual in services
        if before.get(virtual.name, 0) in allowed
    }
    taken, earlier = set(marks.values()), set(before.values())
    free = list(_first(allowed.first, len(allowed), taken | earlier, len(services)))
    free += sorted(earlier - taken)
    for virtual in services:
        if virtual.name not in marks:
            mark = next((one for one in free if one in allowed), None)
            if mark is None:
                break  # more services than marks: the rules refuse it
            free.remove(mark)
            marks[virtual.name] = mark
    return marks


def _renamed(
    services: Collection[VirtualService], before: Marks, former: Configuration | None
) -> dict[str, int]:
    """The marks of services that had another name, by the new one."""
    names = {virtual.name for virtual in services}
    gone = {
        virtual.traffic: before[virtual.name]
        for virtual in (needing(former) if former is not None else ())
        if virtual.name not in names and virtual.name in before
    }
    return {
        virtual.name: gone[virtual.traffic]
        for virtual in services
        if virtual.name not in before and virtual.traffic in gone
    }


def lingering(
    desired: DesiredState, observed: Mapping[Key, ObservedService], owned: Collection[Key]
) -> frozenset[Key]:
    """Services of one port whose place one with several took, while connections are open.

    IPVS asks for a mark's service first, so new connections are that one's. Open ones go by their
    entries, and would end with their service (net/netfilter/ipvs/ip_vs_ctl.c, __ip_vs_svc_fwm_find
    before __ip_vs_service_find; ip_vs_core.c, expire_nodest_conn).

    Args:
        desired: what the kernel is to hold.
        observed: IPVS's virtual services.
        owned: those that lbdr made.
    """
    return frozenset(
        key
        for key in owned
        if isinstance(key, ServiceKey)
        and key not in desired.services
        and key in observed
        and _is_used(observed[key])
        and any(_follows(key, observed[key], service) for service in desired.services.values())
    )


def _is_used(service: ObservedService) -> bool:
    return any(
        server.active_connections or server.inactive_connections for server in service.real_servers
    )


def _follows(key: ServiceKey, there: ObservedService, service: Service) -> bool:
    """Whether a service has the packets of one that is there, and all of its real servers."""
    marked = service.marked
    if marked is None or (marked.protocol, marked.address) != (key.protocol, key.address):
        return False
    servers = {server.address for server in service.real_servers}
    left = {entry.real_server.address for entry in there.real_servers}
    return marked.has(key.port) and left <= servers


def _first(first: int, length: int, without: set[int], count: int) -> Iterable[int]:
    """The first marks of a range that are none of some, at most so many."""
    found = 0
    for mark in range(first, first + length):
        if found == count:
            return
        if mark not in without:
            found += 1
            yield mark


def key_of(virtual: VirtualService, marks: Marks) -> Key | None:
    """A virtual service's identity in IPVS; None where it needs a mark and has none yet."""
    if not virtual.needs_mark:
        return virtual.key
    mark = marks.get(virtual.name)
    return None if mark is None else MarkKey(mark, virtual.address.version)
