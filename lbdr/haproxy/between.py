"""What must not be between proxy services, and between them and DR services; pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lbdr.haproxy.matching import ToBackend
from lbdr.haproxy.model import Proxy, ProxyConfiguration, ProxyProtocol, ProxyService
from lbdr.model import Address, Forwarding, PortRange, Ports, Protocol, VirtualService, endpoint

Found = Iterator[str]


def between(configuration: ProxyConfiguration) -> Found:
    """Names, addresses and rules of services and backends."""
    proxies: list[Proxy] = [*configuration.services, *configuration.backends]
    names = [proxy.name for proxy in proxies]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"{name} names more than one service or backend"
    yield from _overlaps(configuration.services)
    pools = {proxy.name: proxy for proxy in proxies}
    for service in configuration.services:
        for number, rule in enumerate(service.rules, 1):
            if not isinstance(rule.action, ToBackend):
                continue
            where = f"{service.name}: rule {number}"
            target = pools.get(rule.action.backend)
            if target is None:
                yield f"{where}: there is no backend {rule.action.backend}"
            elif (target.protocol is ProxyProtocol.HTTP) != (
                service.protocol is ProxyProtocol.HTTP
            ):
                yield (
                    f"{where}: {target.name} speaks {target.protocol.value}, and this service "
                    f"{service.protocol.value}"
                )


def beside_direct_routing(
    services: Sequence[ProxyService | Proxy], virtual_services: Sequence[VirtualService]
) -> Found:
    """What a proxy service and a DR service of one director cannot both be.

    Args:
        services: proxy services and backends.
        virtual_services: of any forwarding; those by proxy are passed over.
    """
    routed = [
        virtual
        for virtual in virtual_services
        if virtual.forwarding is Forwarding.DR and virtual.protocol is Protocol.TCP
    ]
    for proxy in services:
        if isinstance(proxy, ProxyService):
            yield from _beside(proxy, routed)
        vips = {virtual.address: virtual for virtual in virtual_services}
        for server in (
            *proxy.pool.servers,
            *([proxy.pool.sorry_server] if proxy.pool.sorry_server else []),
        ):
            if isinstance(server.address, str):
                continue
            virtual = vips.get(server.address)
            if virtual is not None and virtual.forwarding is Forwarding.DR:
                yield (
                    f"{proxy.name}: the real server {server.name} is the VIP of {virtual.name}, "
                    "which this director routes itself: name that service's real servers"
                )


def _beside(service: ProxyService, routed: list[VirtualService]) -> Found:
    for virtual in routed:
        if virtual.address not in service.addresses:
            continue
        if virtual.ports.any:
            yield (
                f"{service.name}: {virtual.name} routes every port of {virtual.address}: give one "
                "of them another address, or name the ports of {virtual.name}"
            ).replace("{virtual.name}", virtual.name)
        elif (common := _common(service.ports, virtual.ports)) is not None:
            yield (
                f"{service.name}: {endpoint(virtual.address, common)} is a port of {virtual.name} "
                "too, which routes it: a packet can go one way"
            )


def _overlaps(services: tuple[ProxyService, ...]) -> Found:
    """Found by sorting: a thousand services are not compared in pairs."""
    taken: dict[Address, list[tuple[PortRange, str]]] = {}
    for service in services:
        for address in service.addresses:
            for part in service.ports.ranges:
                taken.setdefault(address, []).append((part, service.name))
    for address, parts in taken.items():
        parts.sort()
        last, owner = -1, ""
        for part, name in parts:
            if part.first <= last and name != owner:
                yield f"{name}: {endpoint(address, part.first)} is a port of {owner} too"
            if part.last > last:
                last, owner = part.last, name


def _common(one: Ports, other: Ports) -> int | None:
    for a in one.ranges:
        for b in other.ranges:
            if max(a.first, b.first) <= min(a.last, b.last):
                return max(a.first, b.first)
    return None
