"""What virtual services that are told by a packet mark must be, on any machine."""

from __future__ import annotations

from collections.abc import Iterator

from lbdr.config.finding import Finding
from lbdr.config.schema import Document, VirtualService
from lbdr.model import MAX_RANGES, Address, Ports

_ALTERNATIVE = "make a virtual service for each port"


def mark_findings(document: Document) -> Iterator[Finding]:
    """Services that cannot be told by a mark, and too many ranges of one VIP."""
    marked = [name for name, one in document.virtual_services.items() if _needs_mark(one)]
    for name in marked:
        service = document.virtual_services[name]
        if service.protocol == "sctp":
            yield Finding(
                ("virtual_services", name, "ports"),
                "several ports of sctp cannot be one decision: lbdr's programs, which set the "
                "packet mark that tells IPVS of them, know tcp and udp",
                f"{_ALTERNATIVE}, or use `any` with persistence",
            )
    allowed = document.director.marks
    if len(marked) > len(allowed):
        yield Finding(
            ("director", "marks"),
            f"{len(marked)} virtual services need a packet mark each, since they have several "
            f"ports or any, and there are {len(allowed)} marks: {allowed}",
            f"write a range of at least {len(marked)}, such as `marks: "
            f"{allowed.first}-{allowed.first + len(marked) - 1}`",
        )
    yield from _too_many_ranges(document)


def _needs_mark(service: VirtualService) -> bool:
    if service.forwarding != "dr":
        return False
    ports = Ports(tuple(service.ports))
    return service.persistence is None if ports.any else ports.single is None


def _too_many_ranges(document: Document) -> Iterator[Finding]:
    counts: dict[tuple[Address, str], int] = {}
    for name, service in document.virtual_services.items():
        where = (service.address, service.protocol)
        ranges = [index for index, one in enumerate(service.ports) if one.first != one.last]
        before = counts.get(where, 0)
        counts[where] = before + (len(ranges) if service.ports else 1)
        if before <= MAX_RANGES < counts[where]:
            path = ("virtual_services", name, "ports")
            yield Finding(
                path if not service.ports else (*path, ranges[MAX_RANGES - before]),
                f"{service.protocol} {service.address} has more than {MAX_RANGES} ranges of ports",
                "join ranges, write out short ones port by port, or use another VIP",
            )
