"""Backends: a pool's real servers, and how one is chosen and reached."""

from __future__ import annotations

from lbdr.haproxy.model import (
    ForwardedFor,
    HeaderAction,
    HeaderEdit,
    Pool,
    Proxy,
    ProxyProtocol,
    ProxyServer,
    ProxyService,
    Scheduler,
    server_timeout,
)
from lbdr.haproxy.render import persistence, rules, tls
from lbdr.haproxy.render.text import formatted, line, seconds
from lbdr.model import Address, endpoint

MAX_WEIGHT = 256  # of HAProxy (configuration.txt, 5.2, weight)
RESOLVERS = "lbdr"
_TUNNEL = 12 * 3600  # a WebSocket may be as silent as an association

_BALANCE = {
    Scheduler.RR: "roundrobin",
    Scheduler.WRR: "roundrobin",
    Scheduler.LC: "leastconn",
    Scheduler.WLC: "leastconn",
    Scheduler.SH: "source",
}


def backend(proxy: Proxy, *, ipv6: bool) -> list[str]:
    """The lines of one backend; IPv6 clients come to it or not."""
    pool = proxy.pool
    http = proxy.protocol is ProxyProtocol.HTTP
    lines = [
        f"backend {proxy.name}",
        line("mode", "http" if http else "tcp"),
        line("balance", _BALANCE[pool.scheduler]),
        line("timeout", "connect", seconds(pool.timeouts.connect)),
        line("timeout", "server", seconds(server_timeout(proxy))),
        line("timeout", "queue", seconds(pool.timeouts.queue)),
        line("log", "global"),  # what becomes of servers
    ]
    if pool.scheduler is Scheduler.SH:
        lines.append(line("hash-type", "consistent"))
    if http:
        lines.append(line("timeout", "tunnel", seconds(_TUNNEL)))
    else:
        lines.append(line("option", "srvtcpka"))
    lines += _source(pool)
    if pool.persistence is not None:
        secure = (
            isinstance(proxy, ProxyService) and proxy.tls is not None and not proxy.tls.ports.ranges
        )
        lines += persistence.of_backend(proxy.name, pool.persistence, ipv6=ipv6, secure=secure)
    if http:
        lines += _edits(pool)
    if isinstance(proxy, ProxyService):
        lines += rules.servers(proxy)
    weights = server_weights(pool)
    lines += [_server(proxy, server, weights[server.name]) for server in pool.servers]
    if pool.sorry_server is not None:
        # non-stick: clients return to the real servers as soon as one serves again
        lines.append(_server(proxy, pool.sorry_server, 1) + " backup non-stick")
    return lines


def server_weights(pool: Pool) -> dict[str, int]:
    """HAProxy's weights, in the proportions that the user wrote."""
    if pool.scheduler in {Scheduler.RR, Scheduler.LC}:
        return {server.name: 1 for server in pool.servers}
    largest = max((server.weight for server in pool.servers), default=1)
    if largest <= MAX_WEIGHT:
        return {server.name: server.weight for server in pool.servers}
    return {
        server.name: max(1, round(server.weight * MAX_WEIGHT / largest)) for server in pool.servers
    }


def by_name(server: ProxyServer) -> bool:
    """Whether a server's address has to be resolved."""
    return isinstance(server.address, str)


def _server(proxy: Proxy, server: ProxyServer, weight: int) -> str:
    pool = proxy.pool
    words: list[str | int] = ["server", server.name, _target(server.address, server.port)]
    words += ["weight", weight]
    if server.max_connections is not None:
        words += ["maxconn", server.max_connections]
    if server.max_queue is not None:
        words += ["maxqueue", server.max_queue]
    if by_name(server):
        words += ["resolvers", RESOLVERS, "init-addr", "last,none"]
    if pool.source.proxy_protocol:
        words.append("send-proxy" if pool.source.proxy_protocol == 1 else "send-proxy-v2")
    if pool.tls is not None:
        words += tls.of_server(pool.tls, protocol=proxy.protocol)
    if persistence.has_cookie(pool.persistence) and server is not pool.sorry_server:
        words += ["cookie", server.name]
    return line(*words)


def _target(address: Address | str, port: int | None) -> str:
    if isinstance(address, str):
        host = address.rstrip(".")
        return host if port is None else f"{host}:{port}"
    if port is not None:
        return endpoint(address, port)
    return f"[{address}]" if address.version == 6 else str(address)


def _source(pool: Pool) -> list[str]:
    if pool.source.transparent:
        return [line("source", "0.0.0.0", "usesrc", "clientip")]  # noqa: S104  # no address of ours
    if pool.source.address is not None:
        return [line("source", str(pool.source.address))]
    return []


def _edits(pool: Pool) -> list[str]:
    lines: list[str] = []
    for rewrite in pool.rewrites:
        words = ("replace-path", rewrite.pattern, formatted(rewrite.replacement))
        lines.append(line("http-request", *words))
    lines += [_edit(edit) for edit in pool.headers]
    if pool.forwarded_for is ForwardedFor.ADD:
        lines.append(line("option", "forwardfor"))
    elif pool.forwarded_for is ForwardedFor.REPLACE:
        lines.append(line("http-request", "set-header", "X-Forwarded-For", "%[src]"))
    return lines


def _edit(edit: HeaderEdit) -> str:
    words = ["http-response" if edit.response else "http-request"]
    match edit.action:
        case HeaderAction.ADD:
            words += ["add-header", edit.name, formatted(edit.value)]
        case HeaderAction.SET:
            words += ["set-header", edit.name, formatted(edit.value)]
        case HeaderAction.DELETE:
            words += ["del-header", edit.name]
        case HeaderAction.REPLACE:
            words += ["replace-header", edit.name, edit.pattern, formatted(edit.value)]
    return line(*words)
