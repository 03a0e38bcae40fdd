"""The whole of haproxy.cfg."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from lbdr.errors import ConfigError
from lbdr.haproxy.check import problems
from lbdr.haproxy.model import Proxy, ProxyConfiguration, ProxyService
from lbdr.haproxy.render import backends, dicom, frontends, process_wide, rules
from lbdr.haproxy.render.persistence import PEERS
from lbdr.haproxy.render.process_wide import Surroundings

_HEAD = "# Written by lbdr: changes are made in its own configuration, and are lost here."


@dataclass(frozen=True, slots=True)
class Rendered:
    """A configuration of HAProxy.

    Args:
        text: the file.
        fingerprint: of the text; a running worker tells it in `show info`.
        owners: the first line of each section, from 1, and the name of the service or backend that
            it is of; empty for what is of none.
    """

    text: str
    fingerprint: str
    owners: tuple[tuple[int, str], ...]

    def owner(self, number: int) -> str:
        """Whose a line is, to tell a user what HAProxy refuses; empty for no service's."""
        found = ""
        for first, name in self.owners:
            if first > number:
                break
            found = name
        return found


def render(configuration: ProxyConfiguration, around: Surroundings) -> Rendered:
    """The text of haproxy.cfg: the same for the same services, whatever their order.

    Raises:
        ConfigError: the services cannot be served as they are; all reasons at once.
    """
    found = problems(configuration)
    if found:
        raise ConfigError(found)
    sections = [("", process_wide.defaults()), *_sections(configuration, around)]
    digest = hashlib.sha256()
    for part in (process_wide.process(configuration, around, ""), *(part for _, part in sections)):
        digest.update("\n".join(part).encode() + b"\n\n")
    fingerprint = digest.hexdigest()[:16]
    sections.insert(0, ("", process_wide.process(configuration, around, fingerprint)))
    lines = [_HEAD, ""]
    owners: list[tuple[int, str]] = []
    for owner, part in sections:
        owners.append((len(lines) + 1, owner))
        lines += [*part, ""]
    return Rendered("\n".join(lines), fingerprint, tuple(owners))


def _sections(
    configuration: ProxyConfiguration, around: Surroundings
) -> Iterator[tuple[str, list[str]]]:
    yield "", process_wide.peers(configuration.settings, around)
    if process_wide.has_names(configuration):
        yield "", process_wide.resolvers(configuration.settings)
    if process_wide.has_dicom(configuration):
        yield "", dicom.refusals(PEERS)
    ipv6 = _names_with_ipv6(configuration)
    for service in sorted(configuration.services, key=lambda service: service.name):
        yield service.name, frontends.frontend(service)
    proxies: list[Proxy] = [*configuration.services, *configuration.backends]
    for proxy in sorted(proxies, key=lambda proxy: proxy.name):
        yield proxy.name, backends.backend(proxy, ipv6=proxy.name in ipv6)


def _names_with_ipv6(configuration: ProxyConfiguration) -> set[str]:
    """The pools that IPv6 clients come to: by a VIP, or as a PROXY header says."""
    found: set[str] = set()
    for service in configuration.services:
        if _sees_ipv6(service):
            found |= {service.name, *(name for name, _ in rules.targets(service))}
    return found


def _sees_ipv6(service: ProxyService) -> bool:
    return service.accept_proxy_protocol or any(
        address.version == 6 for address in service.addresses
    )
