"""Whether the mh scheduler of the running kernel chooses as lbdr's table does: tried, not assumed.

IPVS is asked in a network namespace that ends with the call: lo, a few virtual services at
127.0.0.1 and ::1, and a datagram from each of some hundred made-up clients. IPVS schedules what
this host itself sends (NF_INET_LOCAL_OUT), within the system call, so there is nothing to wait for.
No real server can be reached there, so each datagram ends where it was scheduled; its connection
stays, and names the server.

Source: net/netfilter/ipvs/ip_vs_core.c (ip_vs_schedule); net/ipv4/raw.c and
net/ipv6/raw.c (raw_send_hdrinc, rawv6_send_hdrinc).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gzip
import os
import re
import socket
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from lbdr.datapath import ipvs_connections, namespace
from lbdr.datapath.ipvs import Ipvs
from lbdr.errors import KernelError, LbdrError, PrivilegeError
from lbdr.maglev import DEFAULT_INDEX, TABLE_SIZES, MaglevServer, MaglevTable
from lbdr.model import Address, Protocol, RealServer, Service, ServiceKey, endpoint, family
from lbdr.operations import AddRealServer, AddService, IpvsOperation, SetRealServer

_SETTING = re.compile(rb"^CONFIG_IP_VS_MH_TAB_INDEX=([0-9]+)$", re.MULTILINE)
_INDEXES = range(8, 8 + len(TABLE_SIZES))

_VIPS: Mapping[int, Address] = {4: ip_address("127.0.0.1"), 6: ip_address("::1")}
_RIPS: Mapping[int, Address] = {4: ip_address("198.51.100.10"), 6: ip_address("2001:db8::10")}
_FLAGS = (
    frozenset({"mh-fallback"}),
    frozenset({"mh-fallback", "mh-port"}),
    frozenset({"mh-port"}),
)
_WEIGHTS = (65535, 30000, 41234, 700, 52001, 9)  # no common divisor, and far apart: all are shifted
_DRAINED = 2  # has a fifth of the table, so a fifth of the clients needs the fallback
_SCHEDULER = "mh"
_CLIENTS = 64  # of each service
_GOLDEN = 0x9E3779B97F4A7C15F39CC0605CEDC835  # 2^128 over the golden ratio: spreads evenly

_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.ENETUNREACH)  # not built in; disabled


class MhOutcome(StrEnum):
    """What became of the question."""

    AGREES = "agrees"
    DIFFERS = "differs"
    NO_IPVS = "no-ipvs"
    NO_SCHEDULER = "no-scheduler"
    UNTESTED = "untested"
    FORBIDDEN = "forbidden"


@dataclass(frozen=True, slots=True)
class MhVerdict:
    """Whether, and with which table, lbdr may choose in IPVS's place.

    Args:
        outcome: the answer.
        index: CONFIG_IP_VS_MH_TAB_INDEX: the one that agrees, else the one that was expected.
        versions: IP versions that were compared: not those that this kernel's IPVS lacks.
        reason: one sentence for people; empty where they agree.
    """

    outcome: MhOutcome
    index: int
    versions: frozenset[int] = frozenset()
    reason: str = ""

    @property
    def agrees(self) -> bool:
        """Whether every client went where the table says."""
        return self.outcome is MhOutcome.AGREES


@dataclass(frozen=True, slots=True)
class _Case:
    """A virtual service, and what IPVS did with its clients.

    Args:
        key: protocol, VIP and port.
        flags: of the scheduler.
        order: the real servers in the kernel's order, by the weights that the table was made of.
        clients: addresses and ports.
        chosen: the real server by client; nothing for one that IPVS turned away.
    """

    key: ServiceKey
    flags: frozenset[str]
    order: tuple[MaglevServer, ...]
    clients: tuple[tuple[Address, int], ...]
    chosen: Mapping[tuple[Address, int], Address]


class _NoIpvsError(KernelError):
    pass


class _NoSchedulerError(KernelError):
    pass


def table_index(files: Sequence[Path] | None = None) -> int | None:
    """CONFIG_IP_VS_MH_TAB_INDEX of the running kernel; None where no file tells it.

    Args:
        files: kernel configurations, the first that tells wins; None for those of this kernel.
    """
    if files is None:
        release = os.uname().release
        files = (
            Path("/proc/config.gz"),
            Path(f"/boot/config-{release}"),
            Path(f"/lib/modules/{release}/config"),
        )
    for file in files:
        try:
            text = file.read_bytes()
            found = _SETTING.search(gzip.decompress(text) if file.suffix == ".gz" else text)
        except (OSError, EOFError, zlib.error):
            continue  # not there, or not readable: the next one may tell, and the probe finds out
        if found and int(found[1]) in _INDEXES:
            return int(found[1])
    return None


def probe(index: int | None = None) -> MhVerdict:
    """Compare this kernel's choices with lbdr's table; blocks for some 0.1 s, and never raises.

    Loads ip_vs and ip_vs_mh where they are modules.

    Args:
        index: the only table to compare with; None for the one that the kernel's configuration
            names and, where that one differs, any other: the verdict says which.
    """
    expected = index or table_index() or DEFAULT_INDEX
    try:
        # a thread of its own, since the namespace ends with the last thread and socket in it
        with ThreadPoolExecutor(1, thread_name_prefix="mh-check") as thread:
            cases = thread.submit(_ask).result()
    except _NoIpvsError as error:
        return MhVerdict(MhOutcome.NO_IPVS, expected, reason=error.message)
    except _NoSchedulerError as error:
        return MhVerdict(MhOutcome.NO_SCHEDULER, expected, reason=error.message)
    except LbdrError as error:
        forbidden = isinstance(error, PrivilegeError)
        outcome = MhOutcome.FORBIDDEN if forbidden else MhOutcome.UNTESTED
        reason = f"IPVS's mh could not be tried: {error.message}"
        return MhVerdict(outcome, expected, reason=reason)
    return _judge(cases, expected, () if index else _INDEXES)


# --- judging, pure --------------------------------------------------------------------------------


def _judge(cases: Sequence[_Case], expected: int, others: Sequence[int]) -> MhVerdict:
    versions = frozenset(case.key.version for case in cases)
    reason = _difference(cases, expected)
    if not reason:
        return MhVerdict(MhOutcome.AGREES, expected, versions)
    for index in others:
        if index != expected and not _difference(cases, index):
            return MhVerdict(MhOutcome.AGREES, index, versions)
    return MhVerdict(MhOutcome.DIFFERS, expected, versions, reason)


def _difference(cases: Sequence[_Case], index: int) -> str:
    """The first client on whom they differ, as a sentence."""
    for case in cases:
        table = MaglevTable(case.order, index)
        away = {place for place, server in enumerate(case.order) if _is_drained(server.address)}
        for client, port in case.clients:
            place = table.choose(
                client,
                port if "mh-port" in case.flags else 0,
                unavailable=away,
                fallback="mh-fallback" in case.flags,
            )
            ours = None if place is None else case.order[place].address
            kernels = case.chosen.get((client, port))
            if ours != kernels:
                return (
                    f"client {endpoint(client, port)} of a service with "
                    f"{' and '.join(sorted(case.flags))}: IPVS's mh chose "
                    f"{kernels or 'no real server'}, lbdr's table of {table.size} slots chose "
                    f"{ours or 'no real server'}"
                )
    return ""


def _is_drained(address: Address) -> bool:
    return address == _RIPS[address.version] + _DRAINED


# --- asking IPVS ----------------------------------------------------------------------------------


def _ask() -> list[_Case]:
    """What IPVS chooses, in a new namespace for this thread."""
    try:
        namespace.enter_new()
        namespace.set_lo_up()
        with _open_ipvs() as ipvs:
            return [*_ask_version(ipvs, 4), *_ask_version(ipvs, 6)]
    except OSError as error:
        raise KernelError("a datagram to IPVS", errno=error.errno or 0) from error


def _open_ipvs() -> Ipvs:
    try:
        return asyncio.run(Ipvs.open())
    except KernelError as error:
        raise _NoIpvsError(error.message, errno=0, hint=error.hint) from error


def _ask_version(ipvs: Ipvs, version: int) -> list[_Case]:
    """The cases of an IP version; none where this kernel has no IPv6, or its IPVS has none."""
    keys = [ServiceKey(Protocol.UDP, _VIPS[version], 1 + place) for place in range(len(_FLAGS))]
    clients = tuple(_clients(version))
    try:
        # with the IP header from us, and so with any source
        with socket.socket(family(version), socket.SOCK_RAW, socket.IPPROTO_RAW) as sender:
            orders = [_serve(ipvs, *service) for service in zip(keys, _FLAGS, strict=True)]
            for key in keys:
                for client in clients:
                    _send(sender, client, key)
    except (OSError, KernelError) as error:
        if version == 6 and error.errno in _NO_IPV6:
            return []
        raise
    chosen = connections()
    return [
        _Case(key, flags, order, clients, chosen.get(key, {}))
        for key, flags, order in zip(keys, _FLAGS, orders, strict=True)
    ]


def _serve(ipvs: Ipvs, key: ServiceKey, flags: frozenset[str]) -> tuple[MaglevServer, ...]:
    """Make a service with a drained server; its servers in the kernel's order."""
    servers = [
        RealServer(_RIPS[key.version] + place, key.port, weight)
        for place, weight in enumerate(_WEIGHTS)
    ]
    _apply(ipvs, AddService(Service(key, _SCHEDULER, flags)))
    _apply(ipvs, *(AddRealServer(key, server) for server in servers))
    # it keeps its slots: mh goes by the last weight that was not 0
    _apply(ipvs, SetRealServer(key, replace(servers[_DRAINED], weight=0)))
    weights = {server.address: server.weight for server in servers}
    order = [entry.real_server.address for entry in ipvs.real_servers(key)]
    return tuple(MaglevServer(address, key.port, weights[address]) for address in order)


def _apply(ipvs: Ipvs, *operations: IpvsOperation) -> None:
    for operation, error in zip(operations, ipvs.apply(operations), strict=True):
        if error is None:
            continue
        if (
            isinstance(operation, AddService)
            and isinstance(error, KernelError)
            and error.errno == errno.ENOENT
        ):
            raise _NoSchedulerError(error.hint) from error
        raise error


def _clients(version: int) -> Iterator[tuple[Address, int]]:
    """Unicast addresses and ports all over their ranges, always the same.

    No port is 20: IPVS schedules nothing that comes from it (ip_vs_core.c, ip_vs_schedule).
    """
    for number in range(1, _CLIENTS + 1):
        bits = number * _GOLDEN % (1 << 128)
        port = 1024 + (bits >> 32) % 64512
        if version == 4:
            yield IPv4Address(0x0B000000 + (bits >> 64) % 0x73000000), port
        else:
            yield IPv6Address(0x2 << 124 | bits >> 4), port


def _send(sender: socket.socket, client: tuple[Address, int], key: ServiceKey) -> None:
    address, port = client
    udp = struct.pack("!HHHH", port, key.port, 8, 0)
    ends = address.packed + key.address.packed
    if key.version == 6:
        header = struct.pack("!IHBB", 6 << 28, len(udp), key.protocol.number, 64)
    else:  # the kernel fills in length and checksum
        header = struct.pack("!BBHHHBBH", 0x45, 0, 0, 0, 0, 64, key.protocol.number, 0)
    # not permitted: IPVS turned it away and has no connection of it, which is its choice
    with contextlib.suppress(PermissionError):
        sender.sendto(header + ends + udp, (str(key.address), 0))


def connections() -> dict[ServiceKey, dict[tuple[Address, int], Address]]:
    """Real servers by service and client, of all UDP connections of this thread's namespace.

    Raises:
        KernelError: IPVS is not loaded, or its text is not understood.
    """
    found: dict[ServiceKey, dict[tuple[Address, int], Address]] = {}
    for each in ipvs_connections.parse(ipvs_connections.read()).connections:
        if each.protocol is Protocol.UDP:
            key = ServiceKey(Protocol.UDP, each.virtual, each.virtual_port)
            found.setdefault(key, {})[each.client, each.client_port] = each.server
    return found
