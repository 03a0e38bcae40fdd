"""What the values of a configuration must have to do with each other, on any machine.

Pure functions over the schema: each yields what is wrong, why, and where.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from itertools import pairwise

from lbdr.config import words
from lbdr.config.address_rules import address_findings
from lbdr.config.between_rules import interfaces, overlaps
from lbdr.config.finding import Finding
from lbdr.config.health_rules import health_findings
from lbdr.config.mark_rules import mark_findings
from lbdr.config.schema import Document, RealServerUse, SorryServer, VirtualService
from lbdr.config.yaml12 import Path
from lbdr.model import SCHEDULER_FLAGS

_MAX_HINTS = 50  # names for which a near one is sought, among perhaps thousands


def check(document: Document, declared: Collection[str] | None = None) -> list[Finding]:
    """Everything wrong between the values of a document.

    Args:
        document: valid by its form; without the parts that are not.
        declared: names of real servers that count as declared beside the document's own, since
            their settings were wrong; None where nothing is known of them.
    """
    known = None if declared is None else {*document.real_servers, *declared}
    hints: dict[str, str] = {}
    found = list(address_findings(document))
    for name, service in document.virtual_services.items():
        base: Path = ("virtual_services", name)
        for rule in _RULES:
            found += rule(base, service)
        for path, use in uses(base, service):
            found += _known_server(path, use, known, hints)
            found += _same_family(path, use, service, document)
    found += overlaps(document)
    found += interfaces(document)
    found += mark_findings(document)
    found += health_findings(document)
    return found


def uses(base: Path, service: VirtualService) -> Iterator[tuple[Path, RealServerUse | SorryServer]]:
    """The real servers of a service, the sorry server last, with their paths."""
    for index, use in enumerate(service.real_servers):
        yield (*base, "real_servers", index), use
    if service.sorry_server is not None:
        yield (*base, "sorry_server"), service.sorry_server


def _forwarding(base: Path, service: VirtualService) -> Iterator[Finding]:
    if service.forwarding == "proxy":
        yield Finding(
            (*base, "forwarding"),
            "this version programs dr only: Layer 7 services (proxy) are not there yet",
            "write dr, or leave this service out",
        )


def _port_translation(base: Path, service: VirtualService) -> Iterator[Finding]:
    if service.forwarding != "dr":
        return
    single = single_port(service)
    for path, use in uses(base, service):
        if use.port is None or use.port == single:
            continue
        if single is not None:
            yield Finding(
                (*path, "port"),
                f"real server {use.server} has port {use.port}, and the service port {single}: DR "
                "cannot translate ports, since the packet reaches the real server unchanged",
                f"leave out `port`, and let {use.server} listen on {single}",
            )
        else:
            several = "several ports" if service.ports else "any port"
            yield Finding(
                (*path, "port"),
                f"real server {use.server} has port {use.port}, and the service {several}: DR "
                "cannot translate ports, so the real server gets what the client sent",
                "leave out `port`",
            )


def single_port(service: VirtualService) -> int | None:
    """The service's port, where it has exactly one."""
    if len(service.ports) == 1 and service.ports[0].first == service.ports[0].last:
        return service.ports[0].first
    return None


def _own_ports(base: Path, service: VirtualService) -> Iterator[Finding]:
    ordered = sorted(enumerate(service.ports), key=lambda pair: (pair[1].first, pair[1].last))
    for (_, before), (index, after) in pairwise(ordered):
        if after.first <= before.last:
            what = f"{after} stands twice" if after == before else f"{before} and {after} overlap"
            yield Finding((*base, "ports", index), f"`ports`: {what}", "remove one")


def _one_decision(base: Path, service: VirtualService) -> Iterator[Finding]:
    if single_port(service) is not None or service.persistence is not None:
        return
    ported = [flag for flag in service.scheduler_flags if flag.endswith("-port")]
    if service.scheduler in ("mh", "sh") and not ported:
        return
    ports = "several ports need" if service.ports else "any port needs"
    because = (
        f"{service.scheduler} with {ported[0]} decides for each port"
        if ported and service.scheduler in ("mh", "sh")
        else f"{service.scheduler} decides for each connection"
    )
    yield Finding(
        (*base, "ports"),
        f"{ports} one decision, or a client's connections end up on different real servers: "
        f"{because}",
        "add `persistence: 5m`, or use scheduler mh or sh without a -port flag",
    )


def _flags(base: Path, service: VirtualService) -> Iterator[Finding]:
    own = SCHEDULER_FLAGS[service.scheduler]
    for index, flag in enumerate(service.scheduler_flags):
        path = (*base, "scheduler_flags", index)
        if flag in service.scheduler_flags[:index]:
            yield Finding(path, f"scheduler flag {flag} stands twice", "remove one")
        elif flag not in own:
            has = f"has {' and '.join(sorted(own))}" if own else "has no flags"
            owner = flag.partition("-")[0]
            yield Finding(
                path,
                f"scheduler {service.scheduler} {has}, not {flag}",
                f"{flag} belongs to scheduler {owner}",
            )


def _one_packet(base: Path, service: VirtualService) -> Iterator[Finding]:
    if not service.one_packet:
        return
    if service.protocol != "udp":
        yield Finding(
            (*base, "one_packet"),
            f"one_packet schedules every datagram on its own: it is for udp, not {service.protocol}"
            ", whose connections must stay with one real server",
            "remove `one_packet`",
        )
    if service.persistence is not None:
        yield Finding(
            (*base, "one_packet"),
            "one_packet spreads a client's datagrams over the real servers, and persistence keeps "
            "them on one: only one of the two can be meant",
            "remove `one_packet` or `persistence`",
        )


def _granularity(base: Path, service: VirtualService) -> Iterator[Finding]:
    if service.persistence is None or service.persistence.granularity is None:
        return
    length, longest = service.persistence.granularity, service.address.max_prefixlen
    if length > longest:
        yield Finding(
            (*base, "persistence", "granularity"),
            f"the clients of an IPv{service.address.version} service have addresses of {longest} "
            f"bits, found a granularity of /{length}",
            f"write /1 to /{longest}",
        )


def _thresholds(base: Path, service: VirtualService) -> Iterator[Finding]:
    for index, use in enumerate(service.real_servers):
        path = (*base, "real_servers", index, "lower_threshold")
        if use.lower_threshold and not use.upper_threshold:
            yield Finding(
                path,
                f"lower_threshold of {use.server} has no effect without upper_threshold",
                "add `upper_threshold`, or remove this",
            )
        elif use.lower_threshold > use.upper_threshold:
            yield Finding(
                path,
                f"lower_threshold {use.lower_threshold} of {use.server} is above its "
                f"upper_threshold {use.upper_threshold}",
                "new connections stop above the upper one and begin again below the lower one",
            )


def _twice(base: Path, service: VirtualService) -> Iterator[Finding]:
    seen: dict[str, int] = {}
    for index, use in enumerate(service.real_servers):
        if use.server in seen:
            yield Finding(
                (*base, "real_servers", index),
                f"real server {use.server} stands twice in this service",
                "remove one, and give the other the weight that is meant",
            )
        seen.setdefault(use.server, index)
    sorry = service.sorry_server
    if sorry is not None and sorry.server in seen:
        yield Finding(
            (*base, "sorry_server"),
            f"{sorry.server} is a real server of this service: a sorry server serves when none of "
            "them can",
            "name another server, or remove it from `real_servers`",
        )


_RULES: tuple[Callable[[Path, VirtualService], Iterator[Finding]], ...] = (
    _forwarding,
    _own_ports,
    _port_translation,
    _one_decision,
    _flags,
    _one_packet,
    _granularity,
    _thresholds,
    _twice,
)


def _known_server(
    path: Path,
    use: RealServerUse | SorryServer,
    known: Collection[str] | None,
    hints: dict[str, str],
) -> Iterator[Finding]:
    if known is None or use.server in known:
        return
    if use.server not in hints and len(hints) < _MAX_HINTS:
        hints[use.server] = words.near(use.server, known)
    names = ", ".join(sorted(known)[:10]) + (", ..." if len(known) > 10 else "")
    yield Finding(
        (*path, "server"),
        f"no real server is named {use.server}; named are: {names or 'none'}",
        hints.get(use.server)
        or f"add `{use.server}: {{address: ...}}` to `real_servers` at the top of the file",
    )


def _same_family(
    path: Path, use: RealServerUse | SorryServer, service: VirtualService, document: Document
) -> Iterator[Finding]:
    server = document.real_servers.get(use.server)
    if server is None or server.address.version == service.address.version:
        return
    yield Finding(
        (*path, "server"),
        f"real server {use.server} ({server.address}) has an IPv{server.address.version} address, "
        f"and the service ({service.address}) is IPv{service.address.version}: DR passes packets "
        "on as they are",
        "name a real server of the same IP version, or make a service for each",
    )
