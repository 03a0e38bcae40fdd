"""From what a worker has of its real servers to what it is to have, without a reload; pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from lbdr.haproxy.answers import ServerState
from lbdr.haproxy.model import Proxy, ProxyConfiguration
from lbdr.haproxy.render.backends import server_weights
from lbdr.model import Address

Place: TypeAlias = tuple[str, str]
"""A real server of a pool: (service or backend, real server)."""


class Standing(StrEnum):
    """What a real server is to do, by health and operator together.

    online: takes connections. drain: no new ones, open ones finish. halt: none, at once.
    """

    ONLINE = "online"
    DRAIN = "drain"
    HALT = "halt"


@dataclass(frozen=True, slots=True)
class SetState:
    """Let a real server take connections, or not; open ones finish."""

    proxy: str
    server: str
    ready: bool

    def __str__(self) -> str:
        return f"set server {self.proxy}/{self.server} state {'ready' if self.ready else 'maint'}"


@dataclass(frozen=True, slots=True)
class SetWeight:
    """Give a real server more or fewer of the next connections."""

    proxy: str
    server: str
    weight: int

    def __str__(self) -> str:
        return f"set server {self.proxy}/{self.server} weight {self.weight}"


@dataclass(frozen=True, slots=True)
class SetAddress:
    """Move a real server; port 0 leaves the port."""

    proxy: str
    server: str
    address: Address
    port: int

    def __str__(self) -> str:
        port = f" port {self.port}" if self.port else ""
        return f"set server {self.proxy}/{self.server} addr {self.address}{port}"


@dataclass(frozen=True, slots=True)
class Cut:
    """End all connections of a real server."""

    proxy: str
    server: str

    def __str__(self) -> str:
        return f"shutdown sessions server {self.proxy}/{self.server}"


RuntimeOperation: TypeAlias = SetState | SetWeight | SetAddress | Cut


def operations(
    configuration: ProxyConfiguration,
    observed: Collection[ServerState],
    standings: Mapping[Place, Standing],
    weights: Mapping[Place, int] | None = None,
    connected: Collection[Place] = (),
) -> list[RuntimeOperation]:
    """What is to change; servers come in before others go out.

    Args:
        configuration: what the worker serves.
        observed: what it has.
        standings: by place; online for one that is not named.
        weights: HAProxy's, over those of the configuration.
        connected: places with open connections, of which a halted one is cut.
    """
    have = {(one.proxy, one.server): one for one in observed}
    come: list[RuntimeOperation] = []
    go: list[RuntimeOperation] = []
    proxies: list[Proxy] = [*configuration.services, *configuration.backends]
    for proxy in sorted(proxies, key=lambda proxy: proxy.name):
        usual = server_weights(proxy.pool)
        sorry = [proxy.pool.sorry_server] if proxy.pool.sorry_server else []
        for server in (*proxy.pool.servers, *sorry):
            place = (proxy.name, server.name)
            state = have.get(place)
            if state is None:
                continue  # of another configuration: a reload is to come
            if not isinstance(server.address, str) and state.address != str(server.address):
                come.append(SetAddress(*place, server.address, server.port or 0))
            weight = (weights or {}).get(place, usual.get(server.name, 1))
            if state.weight != weight:
                come.append(SetWeight(*place, weight))
            standing = standings.get(place, Standing.ONLINE)
            if standing is Standing.ONLINE:
                if state.maintenance or state.drain:
                    come.append(SetState(*place, ready=True))
            elif not state.maintenance:
                go.append(SetState(*place, ready=False))
            if standing is Standing.HALT and place in connected:
                go.append(Cut(*place))
    return [*come, *go]
