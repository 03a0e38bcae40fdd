"""Rules of a proxy service: what they look at, and where they lead; pure data."""

from __future__ import annotations

from dataclasses import dataclass, fields
from ipaddress import IPv4Network, IPv6Network
from typing import TypeAlias

Network: TypeAlias = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class HeaderMatch:
    """A request header that equals one of the values, or matches one of the patterns.

    With neither, any value will do: the header is there.
    """

    name: str
    values: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class QueryMatch:
    """A parameter of the query string that equals one of the values; with none, it is there."""

    name: str
    values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Condition:
    """What a rule looks at: everything that is given must hold, by any one of its values.

    Args:
        source: networks of the client.
        path: whole paths.
        path_prefix: beginnings of the path.
        path_suffix: ends of the path.
        path_regex: regular expressions found in the path.
        method: GET and the like.
        host: names in the Host header, without port; `*.example.org` for all below.
        headers: request headers, all of them.
        query: parameters of the query string, all of them.
        tls_server_name: names that the client's TLS asks for, where TLS passes through.
        called_ae: DICOM: the AE that is called.
        calling_ae: DICOM: the AE that calls.
        sop_class: DICOM: UIDs, of which the association proposes one.
        modality: DICOM: CT, MR and so on, of whose storage classes it proposes one.
    """

    source: tuple[Network, ...] = ()
    path: tuple[str, ...] = ()
    path_prefix: tuple[str, ...] = ()
    path_suffix: tuple[str, ...] = ()
    path_regex: tuple[str, ...] = ()
    method: tuple[str, ...] = ()
    host: tuple[str, ...] = ()
    headers: tuple[HeaderMatch, ...] = ()
    query: tuple[QueryMatch, ...] = ()
    tls_server_name: tuple[str, ...] = ()
    called_ae: tuple[str, ...] = ()
    calling_ae: tuple[str, ...] = ()
    sop_class: tuple[str, ...] = ()
    modality: tuple[str, ...] = ()

    @property
    def given(self) -> tuple[str, ...]:
        """The names of the keys that are given, in their order."""
        return tuple(part.name for part in fields(self) if getattr(self, part.name))


HTTP_KEYS = frozenset(
    {
        "path",
        "path_prefix",
        "path_suffix",
        "path_regex",
        "method",
        "host",
        "headers",
        "query",
    }
)
"""Keys of a Condition that only HTTP has."""
DICOM_KEYS = frozenset({"called_ae", "calling_ae", "sop_class", "modality"})
"""Keys of a Condition that only DICOM has."""


@dataclass(frozen=True, slots=True)
class ToBackend:
    """Lead to another pool."""

    backend: str


@dataclass(frozen=True, slots=True)
class ToServer:
    """Lead to one real server of the service's pool; while it is down, the others stand in."""

    server: str


@dataclass(frozen=True, slots=True)
class Redirect:
    """Send an HTTP client elsewhere.

    Args:
        to: a URL, or a path of this site; placeholders as in HeaderEdit.
        code: 301, 302, 303, 307 or 308.
    """

    to: str
    code: int = 302


@dataclass(frozen=True, slots=True)
class Refuse:
    """Serve it not: HTTP answers 403, DICOM rejects the association, TCP closes."""


Action: TypeAlias = ToBackend | ToServer | Redirect | Refuse


@dataclass(frozen=True, slots=True)
class Rule:
    """What is done when a condition holds.

    Args:
        when: the condition.
        action: None stays with the service's own pool.
        priority: what is taken out of a server's queue first: -100 before 0 before 100.
    """

    when: Condition
    action: Action | None = None
    priority: int = 0
