"""What is wrong with proxy services, before anything is rendered; pure.

`problems` has all of it: values (here), what belongs to one service (`check_service`), and what
stands between services (`between`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

from lbdr.errors import Problem
from lbdr.haproxy import check_service, sop_classes, values
from lbdr.haproxy.between import between
from lbdr.haproxy.matching import Condition, Redirect, Rule
from lbdr.haproxy.model import (
    HeaderAction,
    HeaderEdit,
    Pool,
    Proxy,
    ProxyConfiguration,
    ProxyPersistence,
    ProxyServer,
    ProxyService,
    ServerTls,
)

_FOREVER = 30 * 24 * 3600.0
_MAX_COUNT = 1_000_000
_MAX_TABLE = 10_000_000
_MAX_PRIORITY = 1000
_MAX_LISTENERS = 4096
_REDIRECTIONS = (301, 302, 303, 307, 308)

_CONDITION: dict[str, values.Check] = {
    "path": values.path,
    "path_prefix": values.path,
    "path_suffix": values.url_text,
    "path_regex": values.regex,
    "method": values.method,
    "host": values.host_pattern,
    "tls_server_name": values.host_name,
    "called_ae": values.ae_title,
    "calling_ae": values.ae_title,
    "sop_class": values.uid,
}

Found = Iterator[str]


def problems(configuration: ProxyConfiguration) -> list[Problem]:
    """All that is wrong, in the order of the services."""
    found: list[str] = []
    proxies: list[Proxy] = [*configuration.services, *configuration.backends]
    for proxy in proxies:
        label = proxy.name if not values.name(proxy.name) else repr(proxy.name)
        found += [f"{label}: {message}" for message in _proxy(proxy)]
        if isinstance(proxy, ProxyService):
            found += [f"{label}: {message}" for message in _service(proxy)]
            found += [f"{label}: {message}" for message in check_service.service(proxy)]
        found += [f"{label}: {message}" for message in check_service.pool(proxy)]
    found += _settings(configuration)
    if not found:
        found += between(configuration)
    return [Problem(message) for message in found]


def _settings(configuration: ProxyConfiguration) -> Found:
    settings = configuration.settings
    for name in (settings.name, *settings.peers):
        yield from _value("the peer's name", name, values.name)
    yield from _number("max_connections", settings.max_connections, 1, _MAX_COUNT)
    yield from _number("hard_stop", settings.hard_stop, 1, _FOREVER)
    yield from _number("name_hold", settings.name_hold, 1, _FOREVER)
    if settings.threads is not None:
        yield from _number("threads", settings.threads, 1, 64)
    for _, port in (*settings.peers.values(), *([settings.peer] if settings.peer else [])):
        yield from _number("the peer's port", port, 1, 65535)
    if settings.name in settings.peers:
        yield f"the peer {settings.name} has this director's own name"


def _proxy(proxy: Proxy) -> Found:
    yield from _value("name", proxy.name, values.name)
    pool = proxy.pool
    servers = (*pool.servers, *([pool.sorry_server] if pool.sorry_server else []))
    for server in servers:
        yield from _server(server)
    yield from _number("timeouts: connect", pool.timeouts.connect, 0.001, _FOREVER)
    yield from _number("timeouts: queue", pool.timeouts.queue, 0.001, _FOREVER)
    if pool.timeouts.server is not None:
        yield from _number("timeouts: server", pool.timeouts.server, 0.001, _FOREVER)
    if pool.persistence is not None:
        yield from _persistence(pool.persistence)
    if pool.tls is not None:
        yield from _server_tls(pool.tls)
    yield from _edits(pool)


def _server(server: ProxyServer) -> Found:
    where = f"real server {server.name!r}"
    yield from _value(where, server.name, values.name)
    if isinstance(server.address, str):
        yield from _value(f"{where}: address", server.address, values.host_name)
    if server.port is not None:
        yield from _number(f"{where}: port", server.port, 1, 65535)
    yield from _number(f"{where}: weight", server.weight, 1, 65535)
    if server.max_connections is not None:
        yield from _number(f"{where}: max_connections", server.max_connections, 1, _MAX_COUNT)
    if server.max_queue is not None:
        yield from _number(f"{where}: max_queue", server.max_queue, 1, _MAX_COUNT)


def _persistence(persistence: ProxyPersistence) -> Found:
    yield from _number("persistence: timeout", persistence.timeout, 0, _FOREVER)
    yield from _value("persistence: cookie", persistence.cookie, values.token)
    yield from _number("persistence: granularity", persistence.granularity, 1, 32)
    yield from _number("persistence: granularity6", persistence.granularity6, 1, 128)
    yield from _number("persistence: size", persistence.size, 1, _MAX_TABLE)


def _server_tls(tls: ServerTls) -> Found:
    for name, value in (("ca_file", tls.ca_file), ("certificate", tls.certificate)):
        if value:
            yield from _value(f"tls: {name}", value, values.file)
    if tls.name:
        yield from _value("tls: name", tls.name, values.host_name)


def _edits(pool: Pool) -> Found:
    for number, rewrite in enumerate(pool.rewrites, 1):
        yield from _value(f"rewrite {number}: pattern", rewrite.pattern, values.regex)
        yield from _value(f"rewrite {number}: replacement", rewrite.replacement, values.replacement)
    for number, edit in enumerate(pool.headers, 1):
        yield from _header_edit(f"header {number}", edit)


def _header_edit(where: str, edit: HeaderEdit) -> Found:
    yield from _value(f"{where}: name", edit.name, values.token)
    if edit.action is HeaderAction.REPLACE:
        yield from _value(f"{where}: pattern", edit.pattern, values.regex)
        check = partial(values.replacement, response=edit.response)
        yield from _value(f"{where}: value", edit.value, check)
    elif edit.action is not HeaderAction.DELETE:
        check = partial(values.template, response=edit.response)
        yield from _value(f"{where}: value", edit.value, check)


def _service(service: ProxyService) -> Found:
    ports = sum(part.last - part.first + 1 for part in service.ports.ranges)
    if ports * len(service.addresses) > _MAX_LISTENERS:
        yield (
            f"{ports} ports on {len(service.addresses)} addresses: HAProxy opens a socket for "
            f"each, {_MAX_LISTENERS} at most"
        )
    tls_ports = service.tls.ports.ranges if service.tls else ()
    for part in (*service.ports.ranges, *tls_ports):
        if not 1 <= part.first <= part.last <= 65535:
            yield f"ports: {part} is no range of ports"
    yield from _number("max_connections", service.max_connections, 1, _MAX_COUNT)
    yield from _number("timeouts: request", service.timeouts.request, 0.001, _FOREVER)
    yield from _number("timeouts: keep_alive", service.timeouts.keep_alive, 0.001, _FOREVER)
    if service.timeouts.client is not None:
        yield from _number("timeouts: client", service.timeouts.client, 0.001, _FOREVER)
    for port in (*service.translate, *service.translate.values()):
        yield from _number("translate", port, 1, 65535)
    if service.tls is not None:
        yield from _values("tls: certificates", service.tls.certificates, values.file)
        if service.tls.client_ca_file:
            yield from _value("tls: client_ca_file", service.tls.client_ca_file, values.file)
    if service.compression is not None:
        yield from _values("compression", service.compression.types, values.mime_type)
    yield from _values("called_aes", service.called_aes, values.ae_title)
    yield from _values("calling_aes", service.calling_aes, values.ae_title)
    for number, rule in enumerate(service.rules, 1):
        yield from _rule(f"rule {number}", rule)


def _rule(where: str, rule: Rule) -> Found:
    yield from _number(f"{where}: priority", rule.priority, -_MAX_PRIORITY, _MAX_PRIORITY)
    yield from _condition(where, rule.when)
    if isinstance(rule.action, Redirect):
        yield from _value(f"{where}: redirect", rule.action.to, values.location)
        if rule.action.code not in _REDIRECTIONS:
            yield f"{where}: redirect: code {rule.action.code} is none of " + ", ".join(
                str(code) for code in _REDIRECTIONS
            )


def _condition(where: str, when: Condition) -> Found:
    for key, check in _CONDITION.items():
        yield from _values(f"{where}: {key}", getattr(when, key), check)
    for name in when.modality:
        if name not in sop_classes.MODALITIES:
            yield f"{where}: modality {name!r} is none of {', '.join(sop_classes.MODALITIES)}"
    for header in when.headers:
        yield from _value(f"{where}: header", header.name, values.token)
        yield from _values(f"{where}: header {header.name!r}", header.values, values.ascii_text)
        yield from _values(f"{where}: header {header.name!r}", header.patterns, values.regex)
    for parameter in when.query:
        yield from _value(f"{where}: query", parameter.name, values.token)
        yield from _values(
            f"{where}: query {parameter.name!r}", parameter.values, values.ascii_text
        )


def _values(where: str, given: Iterable[str], check: Callable[[str], str]) -> Found:
    for value in given:
        yield from _value(where, value, check)


def _value(where: str, value: str, check: Callable[[str], str]) -> Found:
    reason = check(value)
    if reason:
        shown = ascii(value if len(value) <= 80 else value[:77] + "...")
        yield f"{where}: {shown} {reason}"


def _number(where: str, value: float, least: float, most: float) -> Found:
    if not least <= value <= most:
        yield f"{where}: {value:g} is not between {least:g} and {most:g}"
