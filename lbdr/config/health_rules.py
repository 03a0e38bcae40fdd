"""What checks and the rules for health must have to do with the rest of the file."""

from __future__ import annotations

from collections.abc import Iterator

from lbdr.config import check_build, health_schema
from lbdr.config.finding import Finding
from lbdr.config.health_schema import Dependency
from lbdr.config.schema import Document, VirtualService
from lbdr.config.yaml12 import Path
from lbdr.model import Ports


def health_findings(document: Document) -> Iterator[Finding]:
    """Everything wrong with how real servers are checked, and who may serve."""
    for index, check in enumerate(document.director.check):
        base: Path = ("director", "check", index)
        yield from check_build.findings(base, check)
        if check.ports is not None:
            yield Finding(
                (*base, "ports"),
                "the director's check is for the ports of each service",
                "leave out `ports` here, and write a check with them in the services meant",
            )
    for name, server in document.real_servers.items():
        for index, needed in enumerate(server.depends_on):
            yield from _dependency(("real_servers", name, "depends_on", index), needed)
    for name, service in document.virtual_services.items():
        yield from _service(("virtual_services", name), service)


def _dependency(base: Path, needed: Dependency) -> Iterator[Finding]:
    for index, check in enumerate(needed.check):
        path = (*base, "check", index)
        yield from check_build.findings(path, check)
        if check.type == "vip":
            yield Finding(
                (*path, "type"),
                "what a real server depends on has no VIP of this director",
                "write connect, or the check of its protocol",
            )
        else:
            yield from check_build.needs_ports(path, check, Ports())


def _service(base: Path, service: VirtualService) -> Iterator[Finding]:
    for index, check in enumerate(service.check or ()):
        path = (*base, "check", index)
        yield from check_build.findings(path, check)
        yield from check_build.needs_ports(path, check, Ports(tuple(service.ports)))
        if check.type == "vip" and service.protocol != "tcp":
            yield Finding(
                (*path, "type"),
                f"a vip check begins a TCP connection, and the service is {service.protocol}",
                "write another check",
            )
    weights = {use.server: use.weight for use in service.real_servers}
    yield from health_schema.findings((*base, "health"), service.health, weights)
    yield from _standbys(base, service)


def _standbys(base: Path, service: VirtualService) -> Iterator[Finding]:
    active = {use.server for use in service.real_servers if not use.standby_for}
    names = {use.server for use in service.real_servers}
    for index, use in enumerate(service.real_servers):
        for place, other in enumerate(use.standby_for):
            if other in active:
                continue
            why = "is a standby itself" if other in names else "is no real server of this service"
            yield Finding(
                (*base, "real_servers", index, "standby_for", place),
                f"{use.server} cannot stand in for {other}, which {why}",
                f"name one of {', '.join(sorted(active)) or 'the active ones'}",
            )
