"""Frontends: the client's side of a service."""

from __future__ import annotations

from lbdr.haproxy.model import ProxyProtocol, ProxyService, client_timeout
from lbdr.haproxy.render import dicom, rules, tls
from lbdr.haproxy.render.text import chunks, line, seconds
from lbdr.model import Address, PortRange, endpoint

_PORT = "sess.lbdr_port"
_LONG = (
    line("option", "clitcpka"),
    # A client that does not close after its server did would hold a place there for 12 h.
    line("timeout", "client-fin", "60s"),
)


def frontend(service: ProxyService) -> list[str]:
    """The lines of one frontend."""
    http = service.protocol is ProxyProtocol.HTTP
    lines = [
        f"frontend {service.name}",
        line("mode", "http" if http else "tcp"),
        line("maxconn", service.max_connections),
        line("timeout", "client", seconds(client_timeout(service))),
    ]
    lines += [
        _bind(service, address, part)
        for address in service.addresses
        for part in tls.split(service)
    ]
    lines += _translation(service)
    if http:
        lines += _http(service)
    elif service.protocol is ProxyProtocol.DICOM:
        lines += [*_LONG, *dicom.frontend(service)]
    else:
        lines += [*_LONG, *_tcp(service)]
    lines += rules.leading(service)
    lines.append(line("default_backend", service.name))
    return lines


def _bind(service: ProxyService, address: Address, part: PortRange) -> str:
    words = ["bind", endpoint(address, part.first)]
    if part.last > part.first:
        words[-1] += f"-{part.last}"
    # A standby does not hold the VIP, and is ready for it all the same.
    words.append("transparent")
    if service.accept_proxy_protocol:
        words.append("accept-proxy")
    if service.tls is not None and tls.speaks_tls(service, part):
        words += tls.of_bind(service.tls, http=service.protocol is ProxyProtocol.HTTP)
    return line(*words)


def _translation(service: ProxyService) -> list[str]:
    """A server without a port of its own is reached on the port that the client came to."""
    if not service.translate:
        return []
    # The port as it was: what is changed once must not be changed again.
    lines = [line("tcp-request", "connection", f"set-var({_PORT})", "dst_port")]
    for port, to in sorted(service.translate.items()):
        came = ("{", f"var({_PORT})", "-m", "int", port, "}")
        lines.append(line("tcp-request", "connection", "set-dst-port", f"int({to})", "if", *came))
    return lines


def _http(service: ProxyService) -> list[str]:
    lines = [
        line("timeout", "http-request", seconds(service.timeouts.request)),
        line("timeout", "http-keep-alive", seconds(service.timeouts.keep_alive)),
        # Over a reload a client's idle connection is closed with an answer, and not while the next
        # request may be on its way.
        line("option", "idle-close-on-response"),
    ]
    if service.compression is not None:
        lines.append(line("compression", "algo", "gzip"))
        lines += [line("compression", "type", *part) for part in chunks(service.compression.types)]
    if service.redirect_to_https is not None:
        port = "" if service.redirect_to_https == 443 else f":{service.redirect_to_https}"
        to = f"https://%[req.hdr(host),host_only]{port}%[pathq]"
        words = ("location", to, "code", 301, "unless", "{", "ssl_fc", "}")
        lines.append(line("http-request", "redirect", *words))
    return lines + rules.matching(service) + rules.acting(service)


def _tcp(service: ProxyService) -> list[str]:
    lines: list[str] = []
    if rules.needs_tls_hello(service.rules):
        lines.append(line("tcp-request", "inspect-delay", seconds(service.timeouts.request)))
    return lines + rules.matching(service) + rules.acting(service)
