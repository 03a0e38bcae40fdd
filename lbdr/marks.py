"""Which packet mark tells IPVS which virtual service; pure.

IPVS takes one decision for several ports only where a packet mark tells it the service. The
director's program at tc ingress sets it. Each service that needs one gets one of the range that
the file names, and keeps it: another mark is another service to IPVS, and its connections end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lbdr.model import Configuration, Forwarding, Key, MarkKey, VirtualService

Marks = Mapping[str, int]
"""The mark of each virtual service that needs one, by its name."""


def needing(configuration: Configuration) -> list[VirtualService]:
    """The virtual services that need a mark, in the order of the file."""
    return [
        virtual
        for virtual in configuration.virtual_services
        if virtual.forwarding is Forwarding.DR and virtual.needs_mark
    ]


def assign(configuration: Configuration, before: Marks) -> dict[str, int]:
    """A mark for each service that needs one; one that has a mark of the range keeps it.

    Args:
        configuration: whose range is large enough (lbdr.config.between_rules).
        before: the marks up to now. Those of services that are gone are used again last: who was
            sent somewhere by an old one is not to be found by a new one.
    """
    allowed = configuration.director.marks
    services = needing(configuration)
    marks = {
        virtual.name: before[virtual.name]
        for virtual in services
        if before.get(virtual.name, 0) in allowed
    }
    taken, former = set(marks.values()), set(before.values())
    free = list(_first(allowed.first, len(allowed), taken | former, len(services)))
    free += sorted(former - taken)
    for virtual in services:
        if virtual.name not in marks:
            mark = next((one for one in free if one in allowed), None)
            if mark is None:
                break  # more services than marks: the rules refuse it
            free.remove(mark)
            marks[virtual.name] = mark
    return marks


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
