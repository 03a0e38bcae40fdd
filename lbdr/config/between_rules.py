"""What virtual services must have to do with each other, on any machine."""

from __future__ import annotations

from collections.abc import Iterator

from lbdr.config.finding import Finding
from lbdr.config.schema import Document
from lbdr.config.yaml12 import Path
from lbdr.model import Address, PortRange


def overlaps(document: Document) -> Iterator[Finding]:
    """Services that claim the same packets; an exact port beside `any` is clear: it wins."""
    groups: dict[tuple[Address, str], list[tuple[PortRange | None, str, Path]]] = {}
    for name, service in document.virtual_services.items():
        group = groups.setdefault((service.address, service.protocol), [])
        base: Path = ("virtual_services", name, "ports")
        if not service.ports:
            group.append((None, name, base))
        group += [(ports, name, (*base, i)) for i, ports in enumerate(service.ports)]
    for (address, protocol), group in groups.items():
        yield from _overlaps_within(address, protocol, group)


def _overlaps_within(
    address: Address, protocol: str, group: list[tuple[PortRange | None, str, Path]]
) -> Iterator[Finding]:
    remedy = "give one another address or port, or put their real servers into one service"
    every = [(name, path) for ports, name, path in group if ports is None]
    for name, path in every[1:]:
        yield Finding(
            path, f"{name} and {every[0][0]} both have any port of {protocol} {address}", remedy
        )
    ranges = [(ports, name, path) for ports, name, path in group if ports is not None]
    ranges.sort(key=lambda item: (item[0].first, item[0].last))
    reported: set[frozenset[str]] = set()
    widest: tuple[PortRange, str, Path] | None = None
    for item in ranges:
        ports, name, path = item
        if widest is not None and ports.first <= widest[0].last and name != widest[1]:
            pair = frozenset((name, widest[1]))
            if pair not in reported:
                reported.add(pair)
                same = PortRange(ports.first, min(ports.last, widest[0].last))
                yield Finding(
                    path,
                    f"{name} and {widest[1]} both have {protocol} {address} port {same}",
                    remedy,
                )
        if widest is None or ports.last > widest[0].last:
            widest = item


def interfaces(document: Document) -> Iterator[Finding]:
    """A VIP that is to be on two interfaces."""
    first: dict[Address, tuple[str, str]] = {}
    for name, service in document.virtual_services.items():
        if service.interface is None:
            continue
        other, interface = first.setdefault(service.address, (name, service.interface))
        if interface != service.interface:
            yield Finding(
                ("virtual_services", name, "interface"),
                f"{service.address} is on {interface} in {other} and on {service.interface} here: "
                "a VIP is on one interface",
                f"write {interface} in both, or leave it out in one",
            )
