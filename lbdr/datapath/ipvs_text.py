"""IPVS's text table, for noticing cheaply that something changed.

Reading /proc/net/ip_vs costs a small part of a netlink dump, and IPVS announces no change. The text
has every service and real server with scheduler, persistence, method and weight; scheduler flags
and thresholds are not in it: a slower audit by netlink covers them.

Source: net/netfilter/ipvs/ip_vs_ctl.c, ip_vs_info_seq_show.
"""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass

from lbdr.errors import KernelError
from lbdr.model import Address, Key, MarkKey, Protocol, ServiceKey

# The thread's own: /proc/net is the main thread's, which may be in another namespace.
_PATH = "/proc/thread-self/net/ip_vs"
_PAGE = 1 << 16
# The weight before the two counts tells them from a persistence timeout and its mask.
_CONNECTIONS = re.compile(rb"(?<=\d) +\d+ +\d+ *$", re.MULTILINE)
_SERVICE = re.compile(
    rb"^(?P<protocol>TCP|UDP|SCTP) +(?:(?P<v4>[0-9A-F]{8})|\[(?P<v6>[0-9a-f:]+)\])"
    rb":(?P<port>[0-9A-F]{4}) "
    rb"|^FWM +(?P<mark>[0-9A-F]{8}) "
)
_SERVER = re.compile(
    rb"^  -> (?:(?P<v4>[0-9A-F]{8})|\[(?P<v6>[0-9a-f:]+)\]):(?P<port>[0-9A-F]{4}) +"
    rb"(?P<method>\w+) +(?P<weight>\d+)"
)


def read() -> bytes:
    """The table of this thread's network namespace.

    Raises:
        KernelError: it cannot be read, as when IPVS is not loaded.
    """
    try:
        descriptor = os.open(_PATH, os.O_RDONLY | os.O_CLOEXEC)
        try:
            parts = []
            while part := os.read(descriptor, _PAGE):
                parts.append(part)
            return b"".join(parts)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise KernelError("cat /proc/net/ip_vs", errno=error.errno or 0) from error


def configuration(table: bytes) -> bytes:
    """The table without its counts of connections, which change with every packet."""
    return _CONNECTIONS.sub(b"", table)


def changed(before: bytes, after: bytes) -> set[Key]:
    """The services that differ between two tables.

    Args:
        before: an earlier table, of `configuration`.
        after: a later one.
    """
    old, new = _blocks(before), _blocks(after)
    return {
        key
        for headers in (old, new)
        for header in headers
        if old.get(header) != new.get(header)
        for key in _keys(header)
    }


def _keys(header: bytes) -> tuple[Key, ...]:
    key = _key(header)
    # a header does not tell a mark's IPv4 service from its IPv6 one
    return (key, MarkKey(key.mark, 6)) if isinstance(key, MarkKey) else (key,)


@dataclass(frozen=True, slots=True)
class Scheduled:
    """A real server as the table has it.

    Args:
        address: its RIP.
        port: its port.
        method: IPVS's word for the forwarding method, `Route` for DR.
        weight: now.
    """

    address: Address
    port: int
    method: str
    weight: int


def schedules(table: bytes) -> dict[Key, tuple[str, tuple[Scheduled, ...]]]:
    """The scheduler of each service, and its real servers in the kernel's list order.

    A mark's service is IPv6 where its real servers are; without any it is taken for IPv4.

    Args:
        table: of `read` or `configuration`.

    Raises:
        KernelError: a line is not understood.
    """
    found: dict[Key, tuple[str, tuple[Scheduled, ...]]] = {}
    servers: list[Scheduled] = []
    key: Key | None = None
    for line in table.splitlines()[3:]:
        if line.startswith(b"  ->"):
            match = _SERVER.match(line)
            if match is None or key is None:
                raise KernelError(f"/proc/net/ip_vs has a line that is not understood: {line!r}")
            servers.append(
                Scheduled(
                    _address(match),
                    int(match["port"], 16),
                    match["method"].decode(),
                    int(match["weight"]),
                )
            )
            if isinstance(key, MarkKey) and servers[-1].address.version != key.version:
                before, key = key, MarkKey(key.mark, servers[-1].address.version)
                mine, other = found.pop(before), found.pop(key, None)
                found[key] = mine
                if other is not None:
                    found[before] = other
            found[key] = found[key][0], tuple(servers)
            continue
        header = _SERVICE.match(line)
        if header is None:
            raise KernelError(f"/proc/net/ip_vs has a line that is not understood: {line!r}")
        key, servers = _key(header.group(0)), []
        if isinstance(key, MarkKey) and key in found:
            key = MarkKey(key.mark, 6)
        found[key] = line[header.end() :].split()[0].decode(), ()
    return found


def _address(match: re.Match[bytes]) -> Address:
    if match["v4"]:
        return ipaddress.IPv4Address(int(match["v4"], 16))
    return ipaddress.IPv6Address(match["v6"].decode())


def _blocks(table: bytes) -> dict[bytes, list[bytes]]:
    """The lines of each service (its own after the address, its servers'), by its identity.

    Real servers are sorted: their order is history, not configuration. Two services of one mark,
    for IPv4 and IPv6, look the same and are kept together.
    """
    blocks: dict[bytes, list[bytes]] = {}
    lines: list[bytes] = []
    for line in table.splitlines()[3:]:
        if line.startswith(b"  ->"):
            lines.append(line)
            continue
        match = _SERVICE.match(line)
        if match is None:
            raise KernelError(f"/proc/net/ip_vs has a line that is not understood: {line!r}")
        lines = blocks.setdefault(match.group(0), [])
        lines.append(line[match.end() :])
    return {identity: sorted(lines) for identity, lines in blocks.items()}


def _key(header: bytes) -> Key:
    match = _SERVICE.match(header)
    if match is None:
        raise ValueError(f"no header of a service: {header!r}")
    if match["mark"]:
        # the text does not tell IPv4 from IPv6
        return MarkKey(int(match["mark"], 16), 4)
    protocol = Protocol(match["protocol"].decode().lower())
    return ServiceKey(protocol, _address(match), int(match["port"], 16))
