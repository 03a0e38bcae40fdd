"""IPVS's connection table: which client's connection goes to which real server.

Its netlink family has no request for connections; this text is all that the kernel offers. It is
not read at one instant: a connection that comes, goes or moves meanwhile may be missing or be there
twice.

Source: net/netfilter/ipvs/ip_vs_conn.c, ip_vs_conn_seq_show.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from lbdr.errors import KernelError
from lbdr.model import Address, Key, Protocol, ServiceKey

# The thread's own: /proc/net is the main thread's, which may be in another namespace.
_PATH = "/proc/thread-self/net/ip_vs_conn"
_PAGE = 1 << 16  # the kernel gives 4 KiB at a time all the same
_HEADER = b"Pro "
_FIELDS = 9
_PROTOCOLS = {protocol.name.encode(): protocol for protocol in Protocol}
_MARK = b"IP"  # the protocol of a firewall mark's template: IPPROTO_IP
_OTHERS = (b"ICMP", b"ICMPv6", b"IP_", b"AH", b"ESP")


@dataclass(frozen=True, slots=True)
class Connection:
    """An entry of the table.

    Args:
        protocol: None for a firewall mark's template.
        client: the client; where it is a template, its network.
        client_port: 0 for a template.
        virtual: the VIP; where it is a firewall mark's template, the mark in the first four bytes.
        virtual_port: 0 for the template of an any-port service.
        server: the RIP.
        server_port: the same as virtual_port in DR.
        state: the kernel's word, as ESTABLISHED; of a UDP connection, UDP.
        expires: seconds until it goes, if no packet comes.
    """

    protocol: Protocol | None
    client: Address
    client_port: int
    virtual: Address
    virtual_port: int
    server: Address
    server_port: int
    state: str
    expires: int

    @property
    def template(self) -> bool:
        """Whether it is no connection but a client's persistence."""
        return self.client_port == 0


@dataclass(frozen=True, slots=True)
class ConnectionTable:
    """What a table holds, by kind.

    Args:
        connections: those of TCP, UDP and SCTP.
        templates: persistence: where a client's next connection goes.
        others: lines about protocols that lbdr does not balance.
    """

    connections: tuple[Connection, ...]
    templates: tuple[Connection, ...] = ()
    others: tuple[bytes, ...] = ()


def read() -> bytes:
    """The table of this thread's network namespace, as text.

    Raises:
        KernelError: it cannot be read, as when IPVS is not loaded.
    """
    return b"".join(pages())


def pages() -> Iterator[bytes]:
    """The same in pieces of whole lines, so that a caller with an event loop can take turns.

    Raises:
        KernelError: it cannot be read, as when IPVS is not loaded.
    """
    try:
        descriptor = os.open(_PATH, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while part := os.read(descriptor, _PAGE):
                yield part
        finally:
            os.close(descriptor)
    except OSError as error:
        raise KernelError("cat /proc/net/ip_vs_conn", errno=error.errno or 0) from error


def parse(table: bytes) -> ConnectionTable:
    """A table by kind, in the kernel's order, which is that of hashes.

    Args:
        table: of `read`, or any number of its lines.

    Raises:
        KernelError: a line is not understood; it is named.
    """
    connections: list[Connection] = []
    templates: list[Connection] = []
    others: list[bytes] = []
    for line in table.splitlines():
        if not line or line.startswith(_HEADER):
            continue
        fields = line.split(None, _FIELDS)  # after the ninth one: a persistence engine's data
        protocol = _PROTOCOLS.get(fields[0]) if fields else None
        if protocol is None and (not fields or fields[0] != _MARK):
            if not line.startswith(_OTHERS):
                raise _not_understood(line)
            others.append(line)
            continue
        try:
            entry = _entry(protocol, fields)
        except (ValueError, IndexError) as error:
            raise _not_understood(line) from error
        (connections if entry.client_port else templates).append(entry)
    return ConnectionTable(tuple(connections), tuple(templates), tuple(others))


def identity(
    protocol: Protocol, client: Address, client_port: int, virtual: Address, virtual_port: int
) -> bytes:
    """What tells a connection from all others, as the table writes it; see `servers`."""
    text = f"{_text(client)} {client_port:04X} {_text(virtual)} {virtual_port:04X}"
    return f"{protocol.name} {text}".encode()


def persistence_of(key: Key) -> tuple[Protocol | None, Address, int]:
    """Protocol, virtual address and port of the templates of a service (ip_vs_sched_persist).

    Args:
        key: of the service; one that a mark tells has the mark where others have the VIP.
    """
    if isinstance(key, ServiceKey):
        return key.protocol, key.address, key.port
    mark = key.mark.to_bytes(4, "big")
    address = mark if key.version == 4 else mark.ljust(16, b"\0")
    return None, ipaddress.ip_address(address), 0


def server(address: Address, port: int) -> bytes:
    """A real server as the table writes it; see `servers`."""
    return f"{_text(address)} {port:04X}".encode()


def servers(lines: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Identity and real server of every connection and template: for those with a hundred thousand.

    Args:
        lines: of `pages`.
    """
    for line in lines.splitlines():
        fields = line.split(None, 7)
        if len(fields) == 8:
            yield b" ".join(fields[:5]), b" ".join(fields[5:7])


def _entry(protocol: Protocol | None, fields: list[bytes]) -> Connection:
    return Connection(
        protocol,
        _address(fields[1]),
        int(fields[2], 16),
        _known_address(fields[3]),
        int(fields[4], 16),
        _known_address(fields[5]),
        int(fields[6], 16),
        fields[7].decode("ascii"),
        int(fields[8]),
    )


def _address(text: bytes) -> Address:
    if len(text) == 8:
        return ipaddress.IPv4Address(int(text, 16))
    return ipaddress.IPv6Address(text.decode("ascii"))


_known_address = lru_cache(maxsize=1024)(_address)  # there are few VIPs and real servers


def _text(address: Address) -> str:
    return f"{int(address):08X}" if address.version == 4 else address.exploded


def _not_understood(line: bytes) -> KernelError:
    return KernelError(f"/proc/net/ip_vs_conn has a line that is not understood: {line!r}")
