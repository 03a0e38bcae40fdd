"""What a proxy virtual service is, as the user wants it; pure data.

A `ProxyService` has a client's side (addresses, ports, TLS, rules) and a `Pool` of real servers. A
`ProxyBackend` is a pool without a client's side: rules of services lead to it. Times are seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import TypeAlias

from lbdr.haproxy.matching import Rule
from lbdr.model import Address, Ports

HTTP_TIMEOUT = 50.0
LONG_TIMEOUT = 12 * 3600.0  # associations and database sessions idle for hours, and must not break
CONNECT_TIMEOUT = 5.0
MAX_CONNECTIONS = 40000


class ProxyProtocol(StrEnum):
    """What a proxy service speaks with its clients."""

    TCP = "tcp"
    HTTP = "http"
    DICOM = "dicom"


class Scheduler(StrEnum):
    """How a pool chooses, by IPVS's names: rr and lc take no notice of weights."""

    RR = "rr"
    WRR = "wrr"
    LC = "lc"
    WLC = "wlc"
    SH = "sh"


class PersistenceKind(StrEnum):
    """What tells a client that comes again."""

    SOURCE = "source"
    COOKIE = "cookie"
    RDP_COOKIE = "rdp-cookie"
    TLS_SESSION = "tls-session"
    FORWARDED_FOR = "forwarded-for"


@dataclass(frozen=True, slots=True)
class ProxyPersistence:
    """A client's later connections, on all ports of the service, go to the same real server.

    Args:
        kind: what tells the client.
        timeout: seconds since the client was last seen; 0 lets a cookie end with the browser.
        cookie: the cookie's name, for the kind of that name.
        granularity: prefix length by which IPv4 clients count as one.
        granularity6: the same of IPv6 clients.
        size: clients remembered at most; the least recently seen is forgotten first.
    """

    kind: PersistenceKind = PersistenceKind.SOURCE
    timeout: float = 300.0
    cookie: str = "SERVERID"
    granularity: int = 32
    granularity6: int = 128
    size: int = 100_000


@dataclass(frozen=True, slots=True)
class ServerTls:
    """TLS towards real servers.

    Args:
        verify: refuse a certificate that ca_file does not vouch for.
        ca_file: what vouches for their certificates; empty trusts the system's authorities.
        name: the name sent to the server (SNI) and expected in its certificate; empty sends the
            name that the client asked for, in HTTP the Host header's.
        certificate: shown to a server that asks for one: a PEM file with its key.
        http2: offer HTTP/2 to the server.
    """

    verify: bool = True
    ca_file: str = ""
    name: str = ""
    certificate: str = ""
    http2: bool = False


@dataclass(frozen=True, slots=True)
class ProxyServer:
    """One real server of a pool.

    Args:
        name: the user's name for it.
        address: its address, or a host name that is followed as DNS changes.
        port: None for the port that the client came to.
        weight: from 1; a drained server is a state, not a weight.
        max_connections: further ones wait in the pool's queue; None for no limit.
        max_queue: how many may wait for this very server; None for no limit.
    """

    name: str
    address: Address | str
    port: int | None = None
    weight: int = 1
    max_connections: int | None = None
    max_queue: int | None = None


class HeaderAction(StrEnum):
    """What is done to a header."""

    ADD = "add"
    SET = "set"
    DELETE = "delete"
    REPLACE = "replace"


@dataclass(frozen=True, slots=True)
class HeaderEdit:
    r"""A change of one header of requests or responses.

    Args:
        action: add one more, set the only one, delete all, replace what a pattern matches.
        name: the header's name.
        value: text with `{client_address}` and the like (lbdr.haproxy.templates.PLACEHOLDERS); in
            a replacement \1 to \9 stand for the pattern's groups.
        pattern: a regular expression over the whole value, for REPLACE.
        response: change the server's answers and not the requests.
    """

    action: HeaderAction
    name: str
    value: str = ""
    pattern: str = ""
    response: bool = False


@dataclass(frozen=True, slots=True)
class Rewrite:
    r"""A change of a request's path (the query stays).

    Args:
        pattern: a regular expression.
        replacement: with placeholders and \1 to \9, as in HeaderEdit.
    """

    pattern: str
    replacement: str


class ForwardedFor(StrEnum):
    """What is done with X-Forwarded-For: add the client's address, put it alone, nothing."""

    ADD = "add"
    REPLACE = "replace"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class Source:
    """Whose address the real servers see; the director's own by default.

    Args:
        address: an address of the director, such as the VIP.
        transparent: the client's own (TProxy): replies must come back through the director.
        proxy_protocol: tell the client's address in a PROXY header of version 1 or 2; 0 sends none.
    """

    address: Address | None = None
    transparent: bool = False
    proxy_protocol: int = 0


@dataclass(frozen=True, slots=True)
class ServerTimeouts:
    """Seconds: to connect, of silence of a server, and of waiting in the queue.

    `server` is None for the protocol's own: 50 s for HTTP, 12 h else.
    """

    connect: float = CONNECT_TIMEOUT
    server: float | None = None
    queue: float = 60.0


@dataclass(frozen=True, slots=True)
class Pool:
    """Real servers, and how one of them is chosen and reached.

    Args:
        servers: in the order of the file.
        sorry_server: serves when none of them can.
        scheduler: how one is chosen.
        persistence: None for none.
        source: whose address they see.
        tls: None for clear.
        timeouts: towards them.
        headers: changes of requests and responses, in order.
        rewrites: changes of the path, in order.
        forwarded_for: HTTP only.
    """

    servers: tuple[ProxyServer, ...]
    sorry_server: ProxyServer | None = None
    scheduler: Scheduler = Scheduler.WLC
    persistence: ProxyPersistence | None = None
    source: Source = field(default_factory=Source)
    tls: ServerTls | None = None
    timeouts: ServerTimeouts = field(default_factory=ServerTimeouts)
    headers: tuple[HeaderEdit, ...] = ()
    rewrites: tuple[Rewrite, ...] = ()
    forwarded_for: ForwardedFor = ForwardedFor.ADD


@dataclass(frozen=True, slots=True)
class ClientTls:
    """TLS with clients, ended at the director.

    Args:
        certificates: PEM files with key and chain, or directories of such; the client's server name
            (SNI) chooses, the first serves whoever names none of them.
        ports: those of the service's ports that speak TLS; none named means all.
        strict_sni: refuse a client that names no certificate's name.
        client_ca_file: ask clients for a certificate that this file vouches for.
        minimum: the oldest version, "1.2" or "1.3".
        http2: offer HTTP/2.
    """

    certificates: tuple[str, ...]
    ports: Ports = field(default_factory=Ports)
    strict_sni: bool = False
    client_ca_file: str = ""
    minimum: str = "1.2"
    http2: bool = True


@dataclass(frozen=True, slots=True)
class ClientTimeouts:
    """Seconds: of silence of a client, to send a request's header, and between two requests.

    `client` is None for the protocol's own: 50 s for HTTP, 12 h else. `request` also bounds the
    wait for an association request, and for what a rule needs to see.
    """

    client: float | None = None
    request: float = 10.0
    keep_alive: float = 10.0


@dataclass(frozen=True, slots=True)
class Compression:
    """Compression of answers that the server sent uncompressed.

    Args:
        types: MIME types.
    """

    types: tuple[str, ...] = (
        "text/html",
        "text/plain",
        "text/css",
        "text/xml",
        "application/javascript",
        "application/json",
        "application/xml",
        "application/dicom+json",
    )


@dataclass(frozen=True, slots=True)
class ProxyService:
    """A Layer 7 virtual service.

    Args:
        name: unique among services and backends.
        addresses: the VIPs.
        ports: not any.
        pool: the real servers.
        protocol: what clients speak.
        translate: ports of the service -> ports of the real servers; others stay as they are.
        tls: None leaves TLS, where clients speak it, to the real servers.
        redirect_to_https: clients of the ports without TLS are sent to this port; None serves them.
        rules: the first that matches decides; none sends to the pool.
        accept_proxy_protocol: clients come through a proxy that says who they are.
        compression: None for none.
        timeouts: towards clients.
        max_connections: further ones wait in the kernel.
        called_aes: a DICOM service refuses other called AEs; none named means all are taken.
        calling_aes: likewise.
    """

    name: str
    addresses: tuple[Address, ...]
    ports: Ports
    pool: Pool
    protocol: ProxyProtocol = ProxyProtocol.TCP
    translate: Mapping[int, int] = field(default_factory=lambda: MappingProxyType({}))
    tls: ClientTls | None = None
    redirect_to_https: int | None = None
    rules: tuple[Rule, ...] = ()
    accept_proxy_protocol: bool = False
    compression: Compression | None = None
    timeouts: ClientTimeouts = field(default_factory=ClientTimeouts)
    max_connections: int = MAX_CONNECTIONS
    called_aes: tuple[str, ...] = ()
    calling_aes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ProxyBackend:
    """A pool that only rules lead to: a backend-only virtual service.

    Args:
        name: unique among services and backends.
        pool: the real servers.
        protocol: that of the services whose rules lead here; tcp and dicom go together.
    """

    name: str
    pool: Pool
    protocol: ProxyProtocol = ProxyProtocol.HTTP


@dataclass(frozen=True, slots=True)
class ProxySettings:
    """What holds for the whole HAProxy.

    Args:
        max_connections: of all services together.
        hard_stop: seconds after a reload at which an old worker ends, whatever connections it has;
            longer than any association or database session is meant to last.
        nameservers: asked for host names of real servers; none named means those of resolv.conf.
        name_hold: seconds for which an answer of theirs is good.
        peers: other directors that share the persistence: name -> (address, port).
        peer: this director's own (address, port) for them; None for none.
        name: this director's name among them.
        threads: None for one per core.
    """

    max_connections: int = MAX_CONNECTIONS
    hard_stop: float = 24 * 3600.0
    nameservers: tuple[Address, ...] = ()
    name_hold: float = 10.0
    peers: Mapping[str, tuple[Address, int]] = field(default_factory=lambda: MappingProxyType({}))
    peer: tuple[Address, int] | None = None
    name: str = "lbdr"
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class ProxyConfiguration:
    """All that the companion HAProxy is to serve."""

    settings: ProxySettings = field(default_factory=ProxySettings)
    services: tuple[ProxyService, ...] = ()
    backends: tuple[ProxyBackend, ...] = ()


Proxy: TypeAlias = ProxyService | ProxyBackend
"""Whatever has a pool and a name."""


def server_timeout(proxy: Proxy) -> float:
    """Seconds of silence of a real server."""
    chosen = proxy.pool.timeouts.server
    return _protocol_timeout(proxy.protocol) if chosen is None else chosen


def client_timeout(service: ProxyService) -> float:
    """Seconds of silence of a client."""
    chosen = service.timeouts.client
    return _protocol_timeout(service.protocol) if chosen is None else chosen


def _protocol_timeout(protocol: ProxyProtocol) -> float:
    return HTTP_TIMEOUT if protocol is ProxyProtocol.HTTP else LONG_TIMEOUT
