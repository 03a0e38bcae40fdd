"""TLS: with clients on `bind` lines, with real servers on `server` lines."""

from __future__ import annotations

from lbdr.haproxy.model import ClientTls, ProxyProtocol, ProxyService, ServerTls
from lbdr.model import PortRange

SYSTEM_AUTHORITIES = "@system-ca"
_HTTP2 = "h2,http/1.1"


def of_bind(tls: ClientTls, *, http: bool) -> list[str]:
    """The words of a `bind` line whose port speaks TLS."""
    words = ["ssl"]
    for certificate in tls.certificates:
        words += ["crt", certificate]
    words += ["ssl-min-ver", f"TLSv{tls.minimum}"]
    if tls.strict_sni:
        words.append("strict-sni")
    if tls.client_ca_file:
        words += ["ca-file", tls.client_ca_file, "verify", "required"]
    if http:
        words += ["alpn", _HTTP2 if tls.http2 else "http/1.1"]
    return words


def of_server(tls: ServerTls, *, protocol: ProxyProtocol) -> list[str]:
    """The words of a `server` line that is reached by TLS."""
    http = protocol is ProxyProtocol.HTTP
    words = ["ssl"]
    if tls.verify:
        words += ["verify", "required", "ca-file", tls.ca_file or SYSTEM_AUTHORITIES]
    else:
        words += ["verify", "none"]
    if tls.name:
        words += ["sni", f"str({tls.name})"]
        if tls.verify:
            words += ["verifyhost", tls.name]
    else:
        words += ["sni", "req.hdr(host),host_only" if http else "ssl_fc_sni"]
    if tls.certificate:
        words += ["crt", tls.certificate]
    if http and tls.http2:
        words += ["alpn", _HTTP2]
    return words


def speaks_tls(service: ProxyService, part: PortRange) -> bool:
    """Whether a range of the service's ports, which lies within one kind, speaks TLS."""
    if service.tls is None:
        return False
    ranges = service.tls.ports.ranges
    return not ranges or any(tls.first <= part.first <= tls.last for tls in ranges)


def split(service: ProxyService) -> list[PortRange]:
    """The service's ports in ranges, each wholly with TLS or wholly without."""
    edges = [] if service.tls is None else service.tls.ports.ranges
    cuts = sorted({edge.first for edge in edges} | {edge.last + 1 for edge in edges})
    found: list[PortRange] = []
    for part in service.ports.ranges:
        starts = [part.first, *(cut for cut in cuts if part.first < cut <= part.last)]
        ends = [*(start - 1 for start in starts[1:]), part.last]
        found += [PortRange(first, last) for first, last in zip(starts, ends, strict=True)]
    return found
