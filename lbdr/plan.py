"""The operations that lead from what the kernel holds to what it is to hold; pure.

Order: sysctls, services and their real servers, then the VIPs and their announcement, so that a
client never reaches a VIP that has nothing behind it. What goes away goes backwards: VIP first,
sysctls last. In a service, servers that are to serve come before those that are to drain or go, so
that it is never without one on the way.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from lbdr.model import (
    Address,
    DesiredState,
    HostNetwork,
    Key,
    ObservedService,
    ObservedState,
    RealServer,
    Service,
    Timeouts,
    VirtualAddress,
)
from lbdr.operations import (
    AddAddress,
    AddRealServer,
    AddService,
    AnnounceAddress,
    DeleteAddress,
    DeleteRealServer,
    DeleteService,
    Operation,
    ProbeAddress,
    SetRealServer,
    SetService,
    SetSysctl,
    SetTimeouts,
)
from lbdr.own_words import words


@dataclass(frozen=True, slots=True)
class Ownership:
    """What in the kernel is lbdr's: IPVS entries and addresses carry no owner of their own.

    Args:
        services: keys of the virtual services that lbdr made.
        addresses: VIPs that lbdr added.
        sysctls: the values that were there before lbdr set its own.
        timeouts: IPVS's, before lbdr set its own; None where it never did.
    """

    services: frozenset[Key] = frozenset()
    addresses: frozenset[VirtualAddress] = frozenset()
    sysctls: Mapping[str, str] = field(default_factory=dict)
    timeouts: Timeouts | None = None


@dataclass(frozen=True, slots=True)
class Conflict:
    """A wanted service that is there, is not lbdr's, and is not as wanted: it is left alone."""

    key: Key
    name: str

    def __str__(self) -> str:
        return (
            f"virtual service {self.name} ({self.key}) exists in IPVS, differs from the "
            f"configuration, and lbdr did not make it; `lbdr apply --adopt` takes it over"
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done.

    Args:
        operations: in order.
        conflicts: services that others made; nothing is done about them.
        adopted: services that others made, exactly as wanted: they become lbdr's.
        missing_sysctls: those that this kernel does not have.
        former_sysctls: the values that the operations replace.
        former_timeouts: IPVS's, where the operations replace some.
        vanished: what was lbdr's, is not wanted, and is not there: someone else put it right.
        alone: the kernel has no IPVS, which decides how operations are told.
    """

    operations: tuple[Operation, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    adopted: frozenset[Key] = frozenset()
    missing_sysctls: tuple[str, ...] = ()
    former_sysctls: Mapping[str, str] = field(default_factory=dict)
    former_timeouts: Timeouts | None = None
    vanished: Ownership = field(default_factory=Ownership)
    alone: bool = False

    @property
    def commands(self) -> list[str]:
        """The operations, as they are shown."""
        return [words(operation, alone=self.alone) for operation in self.operations]


def make_plan(
    desired: DesiredState,
    observed: ObservedState,
    owned: Ownership,
    *,
    adopt: bool = False,
    kept: Collection[Key] = (),
) -> Plan:
    """The operations that make the kernel hold what is desired.

    Args:
        desired: what it is to hold.
        observed: what it holds; sysctls that desired or owned name must have been asked for.
        owned: what lbdr made.
        adopt: take over also those services of others that are not as wanted.
        kept: services that are not deleted yet, though they are not wanted.
    """
    withdrawn, moved = _addresses_to_delete(desired, observed.network, owned)
    restored = {name: was for name, was in owned.sysctls.items() if name not in desired.sysctls}
    conflicts: list[Conflict] = []
    adopted: set[Key] = set()
    changes: list[Operation] = []
    for key in sorted(desired.services, key=lambda key: key.sort_key):
        service = desired.services[key]
        found = observed.services.get(key)
        operations = list(service_operations(service, found))
        if found is not None and key not in owned.services:
            if operations and not adopt:
                conflicts.append(Conflict(key, service.name))
                continue
            adopted.add(key)
        changes += operations
    operations = [
        *_sysctls(desired.sysctls, observed),
        *(DeleteAddress(vip) for vip in withdrawn),
        *_deleted_services(desired, observed, owned, kept),
        *(SetTimeouts(timeouts) for timeouts in _timeouts_to_set(desired, observed, owned)),
        *changes,
        *_added_addresses(desired, observed.network),
        *(DeleteAddress(vip) for vip in moved),
        *_sysctls(restored, observed),
    ]
    return Plan(
        operations=tuple(operations),
        conflicts=tuple(conflicts),
        adopted=frozenset(adopted),
        missing_sysctls=tuple(
            name for name in sorted(desired.sysctls) if observed.sysctls.get(name) is None
        ),
        former_sysctls={
            operation.name: observed.sysctls[operation.name] or ""
            for operation in operations
            if isinstance(operation, SetSysctl)
        },
        former_timeouts=(
            observed.timeouts
            if any(isinstance(operation, SetTimeouts) for operation in operations)
            else None
        ),
        vanished=Ownership(
            services=owned.services - desired.services.keys() - observed.services.keys(),
            addresses=frozenset(
                vip
                for vip in owned.addresses - desired.addresses
                if not _held(vip, observed.network)
            ),
            sysctls={
                name: was for name, was in restored.items() if observed.sysctls.get(name) == was
            },
            timeouts=(
                owned.timeouts
                if desired.timeouts is None and not _timeouts_to_set(desired, observed, owned)
                else None
            ),
        ),
    )


def service_operations(wanted: Service, found: ObservedService | None) -> Iterator[Operation]:
    """What one service needs.

    Args:
        wanted: as it is to be.
        found: as it is; None where it is not there.
    """
    if found is None:
        yield AddService(wanted)
        for server in wanted.real_servers:
            yield AddRealServer(wanted.key, server)
        return
    if _without_servers(wanted) != _without_servers(found.service):
        yield SetService(wanted)
    there = {server.key: server for server in found.service.real_servers}
    # who is to serve begins before others end: on the way someone always serves
    drained_last = sorted(wanted.real_servers, key=lambda server: server.weight == 0)
    for server in drained_last:
        if server.key not in there:
            yield AddRealServer(wanted.key, server)
        elif there[server.key] != server:
            yield SetRealServer(wanted.key, server)
    kept = {server.key for server in wanted.real_servers}
    for server in sorted(there.values(), key=_server_order):
        if server.key not in kept:
            yield DeleteRealServer(wanted.key, server)


def _server_order(server: RealServer) -> tuple[int, int, int]:
    return (server.address.version, int(server.address), server.port)


def _without_servers(service: Service) -> Service:
    return replace(service, real_servers=())


def _deleted_services(
    desired: DesiredState, observed: ObservedState, owned: Ownership, kept: Collection[Key]
) -> Iterator[Operation]:
    gone = (owned.services - desired.services.keys()) & observed.services.keys()
    for key in sorted(gone - set(kept), key=lambda key: key.sort_key):
        yield DeleteService(key)


def _timeouts_to_set(
    desired: DesiredState, observed: ObservedState, owned: Ownership
) -> list[Timeouts]:
    """One, where a timeout is neither as wanted nor, when it is not wanted, as before lbdr."""
    wanted, former = desired.timeouts or Timeouts(), owned.timeouts or Timeouts()
    there = observed.timeouts
    target = Timeouts(
        wanted.tcp or former.tcp, wanted.tcp_fin or former.tcp_fin, wanted.udp or former.udp
    )
    pairs = ((target.tcp, there.tcp), (target.tcp_fin, there.tcp_fin), (target.udp, there.udp))
    return [target] if any(want and want != is_ for want, is_ in pairs) else []


def _sysctls(wanted: Mapping[str, str], observed: ObservedState) -> Iterator[Operation]:
    for name in sorted(wanted):
        there = observed.sysctls.get(name)
        if there is not None and there != wanted[name]:
            yield SetSysctl(name, wanted[name])


def _order(vips: Iterable[VirtualAddress]) -> list[VirtualAddress]:
    return sorted(vips, key=lambda vip: (vip.address.version, int(vip.address), vip.interface))


def _held(vip: VirtualAddress, network: HostNetwork) -> bool:
    """Whether the interface has the address, with whatever prefix."""
    return vip.interface in network.holders(vip.address)


def _addresses_to_delete(
    desired: DesiredState, network: HostNetwork, owned: Ownership
) -> tuple[list[VirtualAddress], list[VirtualAddress]]:
    """VIPs that are no longer wanted, and those that are wanted on another interface."""
    wanted: set[Address] = {vip.address for vip in desired.addresses}
    gone = [vip for vip in _order(owned.addresses - desired.addresses) if _held(vip, network)]
    withdrawn = [vip for vip in gone if vip.address not in wanted]
    moved = [vip for vip in gone if vip.address in wanted]
    return withdrawn, moved


def _added_addresses(desired: DesiredState, network: HostNetwork) -> Iterator[Operation]:
    """All probes first, since they wait together; then each VIP and its announcement."""
    missing = [vip for vip in _order(desired.addresses) if not _held(vip, network)]
    # an address that this host holds already needs no probe: the answer would be its own
    yield from (ProbeAddress(vip) for vip in missing if not network.holders(vip.address))
    yield from (AddAddress(vip) for vip in missing)
    yield from (AnnounceAddress(vip) for vip in missing)
