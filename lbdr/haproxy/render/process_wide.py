"""What holds for the whole HAProxy: process, sockets, defaults, peers, resolvers."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address

from lbdr.haproxy.model import Proxy, ProxyConfiguration, ProxyProtocol, ProxySettings
from lbdr.haproxy.render import backends, dicom
from lbdr.haproxy.render.persistence import PEERS
from lbdr.haproxy.render.text import line, seconds
from lbdr.model import Address, endpoint

_LUA_MEMORY = 64  # MB a thread
_RESERVED = 1024  # bytes of a buffer in which headers may grow; HAProxy's own default


PEER: tuple[Address, int] = (IPv4Address("127.76.66.1"), 1019)
"""A port of root's, at a loopback address that nobody else uses. No abstract unix socket: it cannot
be paused, so a failed reload would end the worker that serves (seen with 2.6.12)."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Where HAProxy finds and keeps things on this machine.

    Args:
        admin: the unix socket of the runtime API.
        state: the file of server states that a reload starts from.
        chroot: an empty directory.
        lua: the directory of the programs that HAProxy runs.
        user: whom the workers run as.
        group: likewise.
        peer: the loopback address and port over which a reload hands persistence on.
    """

    admin: str
    state: str
    chroot: str
    lua: str
    user: str = "haproxy"
    group: str = "haproxy"
    peer: tuple[Address, int] = PEER


def process(configuration: ProxyConfiguration, around: Surroundings, fingerprint: str) -> list[str]:
    """The global section."""
    settings = configuration.settings
    proxies: tuple[Proxy, ...] = (*configuration.services, *configuration.backends)
    lines = [
        "global",
        line("description", f"lbdr {fingerprint}"),
        line("log", "stderr", "format", "raw", "daemon", "notice"),
        line("chroot", around.chroot),
        line(
            "stats",
            "socket",
            around.admin,
            "mode",
            "600",
            "level",
            "admin",
            "expose-fd",
            "listeners",
        ),
        line("stats", "timeout", "1m"),
        line("server-state-file", around.state),
        line("localpeer", settings.name),
        line("maxconn", settings.max_connections),
        line("hard-stop-after", seconds(settings.hard_stop)),
        line("ssl-default-bind-options", "ssl-min-ver", "TLSv1.2"),
        line("tune.ssl.default-dh-param", 2048),
    ]
    if settings.threads is not None:
        lines.append(line("nbthread", settings.threads))
    if not any(proxy.pool.source.transparent for proxy in proxies):
        # HAProxy 2.6 keeps no capability when it changes its user, and foreign source addresses
        # need one: then the workers stay root, with the few capabilities that the unit leaves.
        lines += [line("user", around.user), line("group", around.group)]
    if has_dicom(configuration):
        lines += [
            line("tune.bufsize", dicom.BUFFER),
            line("tune.maxrewrite", _RESERVED),
            line("lua-load-per-thread", f"{around.lua}/dicom.lua"),
        ]
    if any(proxy.pool.persistence is not None for proxy in proxies):
        lines.append(line("lua-load-per-thread", f"{around.lua}/handover.lua"))
    lines.append(line("tune.lua.maxmem", _LUA_MEMORY))
    return lines


def defaults() -> list[str]:
    """The defaults section."""
    return [
        "defaults",
        line("load-server-state-from-file", "global"),
        line("option", "redispatch", 1),  # a server that does not answer is not tried twice
        line("retries", 2),
        line("timeout", "connect", "5s"),
        line("timeout", "client", "50s"),
        line("timeout", "server", "50s"),
    ]


def peers(settings: ProxySettings, around: Surroundings) -> list[str]:
    """The peers section: a reload hands persistence to the new worker, over the local peer."""
    own = endpoint(*(settings.peer or around.peer))
    lines = [f"peers {PEERS}", line("peer", settings.name, own)]
    for name, (address, port) in sorted(settings.peers.items()):
        lines.append(line("peer", name, endpoint(address, port)))
    return lines


def resolvers(settings: ProxySettings) -> list[str]:
    """The resolvers section."""
    lines = [f"resolvers {backends.RESOLVERS}"]
    if settings.nameservers:
        lines += [
            line("nameserver", f"ns{number}", endpoint(address, 53))
            for number, address in enumerate(settings.nameservers, 1)
        ]
    else:
        lines.append(line("parse-resolv-conf"))
    return [
        *lines,
        line("accepted_payload_size", 4096),
        line("timeout", "resolve", "1s"),
        line("timeout", "retry", "1s"),
        line("hold", "valid", seconds(settings.name_hold)),
    ]


def has_dicom(configuration: ProxyConfiguration) -> bool:
    """Whether any service reads association requests."""
    return any(service.protocol is ProxyProtocol.DICOM for service in configuration.services)


def has_names(configuration: ProxyConfiguration) -> bool:
    """Whether any server's address has to be resolved."""
    proxies: tuple[Proxy, ...] = (*configuration.services, *configuration.backends)
    return any(
        backends.by_name(server)
        for proxy in proxies
        for server in (
            *proxy.pool.servers,
            *([proxy.pool.sorry_server] if proxy.pool.sorry_server else []),
        )
    )
