"""What the parts of one proxy service must have to do with each other; pure."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from lbdr.haproxy.matching import DICOM_KEYS, HTTP_KEYS, Redirect, ToServer
from lbdr.haproxy.model import (
    HeaderAction,
    PersistenceKind,
    Proxy,
    ProxyPersistence,
    ProxyProtocol,
    ProxyServer,
    ProxyService,
)
from lbdr.model import Ports

_MAX_CERTIFICATES = 20  # on one line of HAProxy's, which takes 64 words
_HTTP_PERSISTENCE = frozenset({PersistenceKind.COOKIE, PersistenceKind.FORWARDED_FOR})
_TCP_PERSISTENCE = frozenset({PersistenceKind.RDP_COOKIE, PersistenceKind.TLS_SESSION})

Found = Iterator[str]


def pool(proxy: Proxy) -> Found:
    """What is wrong within a pool."""
    servers = proxy.pool.servers
    if not servers:
        yield "no real server"
    everyone = (*servers, *([proxy.pool.sorry_server] if proxy.pool.sorry_server else []))
    names = [server.name for server in everyone]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"the real server {name} is there more than once"
    http = proxy.protocol is ProxyProtocol.HTTP
    if proxy.pool.persistence is not None:
        yield from _persistence(proxy.pool.persistence, proxy)
    if not http and (proxy.pool.headers or proxy.pool.rewrites):
        yield f"headers and rewrites need `protocol: http`, and this is {proxy.protocol.value}"
    yield from _source(proxy, everyone)
    for number, edit in enumerate(proxy.pool.headers, 1):
        if edit.pattern and edit.action is not HeaderAction.REPLACE:
            yield f"header {number}: a pattern belongs to `replace` alone"


def _source(proxy: Proxy, everyone: tuple[ProxyServer, ...]) -> Found:
    source = proxy.pool.source
    if source.proxy_protocol not in {0, 1, 2}:
        yield "proxy_protocol is neither 1 nor 2"
    if source.transparent and source.address is not None:
        yield "the real servers see the client's address or the director's: not both"
    for server in everyone:
        named = isinstance(server.address, str)
        if source.transparent and named:
            yield f"transparent: the real server {server.name} needs an address, not a name"
        if source.transparent and server.port is None and not isinstance(proxy, ProxyService):
            yield f"transparent: the real server {server.name} of a backend needs a port"
        if source.address is None or isinstance(server.address, str):
            continue
        if server.address.version != source.address.version:
            yield (
                f"the source address {source.address} and the real server {server.name} are of "
                "different IP versions"
            )


def _persistence(persistence: ProxyPersistence, proxy: Proxy) -> Found:
    kind, protocol = persistence.kind, proxy.protocol
    if kind in _HTTP_PERSISTENCE and protocol is not ProxyProtocol.HTTP:
        yield f"persistence by {kind.value} needs `protocol: http`, and this is {protocol.value}"
    if kind in _TCP_PERSISTENCE and protocol is not ProxyProtocol.TCP:
        yield f"persistence by {kind.value} needs `protocol: tcp`, and this is {protocol.value}"
    if kind is PersistenceKind.TLS_SESSION and isinstance(proxy, ProxyService) and proxy.tls:
        yield "persistence by tls-session needs TLS that passes through, and it ends here"
    if kind is not PersistenceKind.COOKIE and persistence.timeout < 1:
        yield "persistence: a timeout of at least one second is needed"


def service(service: ProxyService) -> Found:
    """What is wrong with the client's side of a service."""
    if not service.addresses:
        yield "no address"
    if len(set(service.addresses)) < len(service.addresses):
        yield "an address is there more than once"
    yield from _ports(service)
    if service.protocol is not ProxyProtocol.HTTP and service.compression is not None:
        yield "compression needs `protocol: http`"
    if service.protocol is not ProxyProtocol.DICOM and (service.called_aes or service.calling_aes):
        yield "called_aes and calling_aes need `protocol: dicom`"
    yield from _tls(service)
    yield from _redirection(service)
    yield from _rules(service)


def _ports(service: ProxyService) -> Found:
    if service.ports.any:
        yield "a proxy service needs ports: a proxy opens each of them"
    for before, after in pairwise(sorted(service.ports.ranges)):
        if after.first <= before.last:
            yield f"the ports {before} and {after} overlap"
    for port in service.translate:
        if not _within(port, service.ports):
            yield f"translate: {port} is no port of the service"
    if service.translate and all(server.port is not None for server in service.pool.servers):
        yield "translate: the real servers have ports of their own, which come first"


def _tls(service: ProxyService) -> Found:
    tls = service.tls
    if tls is None:
        return
    if not tls.certificates:
        yield "tls: no certificate"
    if len(tls.certificates) > _MAX_CERTIFICATES:
        yield (
            f"tls: {len(tls.certificates)} certificates, {_MAX_CERTIFICATES} at most: put them "
            "in a directory and name that"
        )
    if tls.minimum not in {"1.2", "1.3"}:
        yield f"tls: minimum {tls.minimum!r} is neither 1.2 nor 1.3"
    for part in tls.ports.ranges:
        if not any(p.first <= part.first and part.last <= p.last for p in service.ports.ranges):
            yield f"tls: {part} are no ports of the service"


def _redirection(service: ProxyService) -> Found:
    port = service.redirect_to_https
    if port is None:
        return
    if service.protocol is not ProxyProtocol.HTTP:
        yield "redirect_to_https needs `protocol: http`"
    if not 1 <= port <= 65535:
        yield f"redirect_to_https: {port} is no port"
    if service.tls is not None and not service.tls.ports.ranges:
        yield "redirect_to_https: every port speaks TLS already; name those that do in tls: ports"


def _rules(service: ProxyService) -> Found:
    own = {server.name for server in service.pool.servers}
    http, dicom = (
        service.protocol is ProxyProtocol.HTTP,
        service.protocol is ProxyProtocol.DICOM,
    )
    for number, rule in enumerate(service.rules, 1):
        for key in rule.when.given:
            if key in HTTP_KEYS and not http:
                yield f"rule {number}: {key} needs `protocol: http`"
            if key in DICOM_KEYS and not dicom:
                yield f"rule {number}: {key} needs `protocol: dicom`"
            if key == "tls_server_name" and (http or dicom or service.tls is not None):
                yield f"rule {number}: {key} needs `protocol: tcp` and TLS that passes through"
        if not rule.when.given:
            yield f"rule {number}: no condition: it would hold always"
        if isinstance(rule.action, Redirect) and not http:
            yield f"rule {number}: a redirect needs `protocol: http`"
        if isinstance(rule.action, ToServer) and rule.action.server not in own:
            yield f"rule {number}: {rule.action.server} is no real server of this service"


def _within(port: int, ports: Ports) -> bool:
    return any(part.first <= port <= part.last for part in ports.ranges)
