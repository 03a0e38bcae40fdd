"""What the director's routing needs so that real servers see the client's address (TProxy); pure.

HAProxy connects from the client's address, so a real server answers to the client. The answer has
to come to the director (its gateway, or a route of the real server's) and must end there instead of
being forwarded: packets from the ports of the real servers are looked up in a table in which every
address is local. Linux has such rules since 4.17 (FRA_IP_PROTO, FRA_SPORT_RANGE); no firewall takes
part, so none can be missing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from lbdr.haproxy.model import Proxy, ProxyConfiguration, ProxyService
from lbdr.model import Address, PortRange

TABLE = 7619
"""The routing table in which every address is local; lbdr's alone."""
PRIORITY = 7619
"""Of the rules: after `local`, before `main`."""


@dataclass(frozen=True, slots=True)
class AnswerRule:
    """A rule for what one real server answers.

    Args:
        server: its address.
        ports: its ports.
    """

    server: Address
    ports: PortRange

    def __str__(self) -> str:
        version = "-6 " if self.server.version == 6 else ""
        return (
            f"ip {version}rule add priority {PRIORITY} from {self.server} ipproto 6 "
            f"sport {self.ports} lookup {TABLE}"
        )


@dataclass(frozen=True, slots=True)
class LocalRoute:
    """The one route of the table.

    Args:
        version: 4 or 6.
    """

    version: int

    def __str__(self) -> str:
        version = "-6 " if self.version == 6 else ""
        return f"ip {version}route add local default dev lo table {TABLE}"


@dataclass(frozen=True, slots=True)
class Needs:
    """What is to be there; each prints as the command of an administrator.

    Args:
        rules: in a stable order.
        routes: one for each IP version in use.
    """

    rules: tuple[AnswerRule, ...] = ()
    routes: tuple[LocalRoute, ...] = ()

    def missing(
        self, rules: Collection[AnswerRule], routes: Collection[LocalRoute]
    ) -> tuple[AnswerRule | LocalRoute, ...]:
        """What is not there yet, the route first: a rule without it would lose packets."""
        return (
            *(route for route in self.routes if route not in routes),
            *(rule for rule in self.rules if rule not in rules),
        )


def needs(configuration: ProxyConfiguration) -> Needs:
    """What transparent services need.

    Real servers by host name have no address here: what they need is known once they are resolved,
    so the check of a service refuses them with `transparent`.
    """
    rules = sorted(
        set(_rules(configuration)),
        key=lambda rule: (rule.server.version, int(rule.server), rule.ports),
    )
    versions = sorted({rule.server.version for rule in rules})
    return Needs(tuple(rules), tuple(LocalRoute(version) for version in versions))


def _rules(configuration: ProxyConfiguration) -> Iterator[AnswerRule]:
    proxies: list[Proxy] = [*configuration.services, *configuration.backends]
    for proxy in proxies:
        if not proxy.pool.source.transparent:
            continue
        sorry = [proxy.pool.sorry_server] if proxy.pool.sorry_server else []
        for server in (*proxy.pool.servers, *sorry):
            if isinstance(server.address, str):
                continue
            for ports in _ports(proxy, server.port):
                yield AnswerRule(server.address, ports)


def _ports(proxy: Proxy, own: int | None) -> Iterator[PortRange]:
    if own is not None:
        yield PortRange(own, own)
    elif isinstance(proxy, ProxyService):
        yield from proxy.ports.ranges
        for port in proxy.translate.values():
            yield PortRange(port, port)
