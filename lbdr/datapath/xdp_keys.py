"""Which packets lead to which service: exact ports, and ranges of ports of a VIP and protocol.

An exact port is found at once, and wins; of ranges a VIP and protocol have one entry, which all of
its services share.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from ipaddress import IPv4Address, IPv6Address

from lbdr.datapath import xdp_layout as layout
from lbdr.datapath.xdp_maps import DirectorMaps
from lbdr.errors import KernelError
from lbdr.model import Address, PortRange, Ports, Protocol, Traffic

_EVERY = PortRange(0, 65535)

Owned = tuple[Traffic, int]
"""Packets, and the service they are for."""


def read_keys(maps: DirectorMaps) -> dict[int, Traffic]:
    """The packets that lead to each service, by its place."""
    found: dict[int, tuple[Protocol, Address, set[PortRange]]] = {}

    def add(index: int, protocol: Protocol, address: Address, ports: PortRange) -> None:
        found.setdefault(index, (protocol, address, set()))[2].add(ports)

    for version, kind, key_layout in ((4, IPv4Address, layout.KEY4), (6, IPv6Address, layout.KEY6)):
        for key, value in maps[f"services{version}"].items():
            address, port, number = key_layout.unpack(key)
            single = int.from_bytes(port, "big")
            (index,) = layout.U32.unpack(value)
            add(index, Protocol.from_number(number), kind(address), PortRange(single, single))
        for key, value in maps[f"ranges{version}"].items():
            address, _, number = key_layout.unpack(key)
            for first, last, index in layout.PORT_RANGE.iter_unpack(value):
                if index:
                    ports = PortRange(first, last)
                    add(index, Protocol.from_number(number), kind(address), ports)
    return {
        index: Traffic(protocol, address, Ports(() if _EVERY in ports else tuple(sorted(ports))))
        for index, (protocol, address, ports) in found.items()
    }


def write_keys(
    maps: DirectorMaps,
    index: int,
    traffic: Traffic,
    before: Traffic | None,
    every: Collection[Owned],
) -> None:
    """Lead packets to a service; those that it has no longer lead nowhere.

    Args:
        maps: of the programs.
        index: the service's place.
        traffic: its packets from now on.
        before: its packets until now.
        every: those of all services, its own new ones among them: ranges stand together.

    Raises:
        KernelError: there is no room for them.
    """
    exact, former = set(_exact(traffic)), set(_exact(before)) if before is not None else set()
    _write_ranges(maps, traffic, every)
    for key in exact:
        maps.write_port(key, index)
    _delete(maps, index, former - exact, traffic)
    if before is not None:
        _write_ranges(maps, before, every)


def delete_keys(maps: DirectorMaps, index: int, traffic: Traffic, every: Collection[Owned]) -> None:
    """Lead packets to a service no more.

    Args:
        maps: of the programs.
        index: the service's place.
        traffic: its packets.
        every: those of all other services.
    """
    _delete(maps, index, set(_exact(traffic)), traffic)
    _write_ranges(maps, traffic, every)


def _delete(maps: DirectorMaps, index: int, keys: Collection[bytes], traffic: Traffic) -> None:
    services = maps[f"services{traffic.address.version}"]
    for key in keys:
        if services.lookup(key) == layout.U32.pack(index):  # else another service has it by now
            maps.delete_port(key)


def _write_ranges(maps: DirectorMaps, traffic: Traffic, every: Collection[Owned]) -> None:
    """Write the ranges of a VIP and protocol: `any` last, since the first one that fits counts."""
    found = [
        (part, index)
        for one, index in every
        if (one.protocol, one.address) == (traffic.protocol, traffic.address)
        for part in _ranges(one)
    ]
    found.sort(key=lambda entry: (entry[0] == _EVERY, entry[0]))
    key = layout.key_of(traffic.address, 0, traffic.protocol.number)
    if len(found) > layout.RANGES:
        raise KernelError(
            f"{traffic.protocol} {traffic.address} has more than {layout.RANGES} ranges of ports",
            hint="join ranges, write out short ones port by port, or use another VIP",
        )
    if found:
        maps.write_ranges(key, [(part.first, part.last, index) for part, index in found])
    else:
        maps.delete_ranges(key)


def _exact(traffic: Traffic) -> Iterator[bytes]:
    for part in traffic.ports.ranges:
        if part.first == part.last:
            yield layout.key_of(traffic.address, part.first, traffic.protocol.number)


def _ranges(traffic: Traffic) -> Iterator[PortRange]:
    if traffic.ports.any:
        yield _EVERY
    yield from (part for part in traffic.ports.ranges if part.first != part.last)
