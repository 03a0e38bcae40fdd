"""A kernel that exists in memory, as strict as Linux about what may be done when; pure.

It refuses what IPVS and the address table refuse, with the same error numbers, and forgives nothing
that `lbdr.datapath` forgives: an operation that is out of order is a KernelError here.

Source: net/netfilter/ipvs/ip_vs_ctl.c, net/ipv4/devinet.c, net/ipv6/addrconf.c.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast

from lbdr.datapath.addresses import Addresses
from lbdr.datapath.ipvs import Ipvs
from lbdr.datapath.kernel import Kernel, Outcome
from lbdr.desired import SYSCTLS
from lbdr.errors import AddressInUseError, KernelError, LbdrError
from lbdr.model import (
    SCHEDULER_FLAGS,
    Address,
    AddressProbe,
    HostNetwork,
    Interface,
    InterfaceAddress,
    Key,
    MarkKey,
    ObservedRealServer,
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

T = TypeVar("T")

INTERFACES: Mapping[str, tuple[str, ...]] = {
    "lo": ("127.0.0.1/8", "::1/128"),
    "eth0": ("10.0.0.2/24", "fd00::2/64"),
    "eth1": ("10.0.1.2/24",),
}
FRESH: Mapping[str, str] = dict.fromkeys(SYSCTLS, "0") | {
    "net.ipv4.vs.conn_reuse_mode": "1",
    "net.ipv4.ip_forward": "1",  # nobody of lbdr's business
}


@dataclass(slots=True)
class World:
    """What a kernel holds.

    Args:
        services: IPVS's, without real servers.
        real_servers: of each service, in the kernel's list order: last added first.
        interfaces: their addresses by name.
        sysctls: values by name.
        timeouts: IPVS's.
        schedulers: those that this kernel has.
        others: MACs of other hosts by the address that they answer for.
        announced: VIPs in the order of their announcements.
    """

    services: dict[Key, Service] = field(default_factory=dict)
    real_servers: dict[Key, list[RealServer]] = field(default_factory=dict)
    interfaces: dict[str, list[InterfaceAddress]] = field(
        default_factory=lambda: {
            name: [ipaddress.ip_interface(text) for text in texts]
            for name, texts in INTERFACES.items()
        }
    )
    sysctls: dict[str, str] = field(default_factory=lambda: dict(FRESH))
    timeouts: Timeouts = field(default_factory=lambda: Timeouts(900, 120, 300))
    schedulers: Collection[str] = frozenset(SCHEDULER_FLAGS)
    others: dict[Address, str] = field(default_factory=dict)
    announced: list[VirtualAddress] = field(default_factory=list)

    # --- what is there ---------------------------------------------------------------------------

    @property
    def network(self) -> HostNetwork:
        """The interfaces, as the datapath would report them."""
        return HostNetwork(
            {
                name: Interface(name, index, f"02:00:00:00:00:0{index}", addresses=tuple(addresses))
                for index, (name, addresses) in enumerate(self.interfaces.items(), start=1)
            }
        )

    def service(self, key: Key) -> ObservedService | None:
        """One service as the datapath would report it."""
        if key not in self.services:
            return None
        servers = tuple(self.real_servers[key])
        return ObservedService(
            service=replace(self.services[key], real_servers=servers),
            real_servers=tuple(ObservedRealServer(server) for server in servers),
        )

    def observe(
        self, sysctls: Iterable[str] = SYSCTLS, keys: Iterable[Key] | None = None
    ) -> ObservedState:
        """What the datapath would report."""
        found = {key: self.service(key) for key in (self.services if keys is None else keys)}
        return ObservedState(
            services={key: service for key, service in found.items() if service is not None},
            network=self.network,
            sysctls={name: self.sysctls.get(name) for name in sysctls},
            timeouts=self.timeouts,
        )

    def serves(self, key: Key) -> bool:
        """Whether a new connection to a service finds a real server."""
        return any(server.weight for server in self.real_servers.get(key, ()))

    def dump(self) -> list[str]:
        """All of it as sorted commands; two worlds that hold the same print the same."""
        lines = [AddService(service).command for service in self.services.values()]
        lines += [
            AddRealServer(key, server).command
            for key, servers in self.real_servers.items()
            for server in servers
        ]
        lines += [
            f"ip address add {address} dev {name}"
            for name, addresses in self.interfaces.items()
            for address in addresses
        ]
        lines += [SetSysctl(name, value).command for name, value in self.sysctls.items()]
        return sorted([*lines, SetTimeouts(self.timeouts).command])

    # --- doing -----------------------------------------------------------------------------------

    def do(self, operation: Operation) -> None:
        """Do an operation.

        Raises:
            KernelError: as Linux would refuse it.
            AddressInUseError: a probe that another host answers.
        """
        match operation:
            case AddService() | SetService() | DeleteService():
                self._service(operation)
            case AddRealServer() | SetRealServer() | DeleteRealServer():
                self._real_server(operation)
            case SetTimeouts(timeouts):
                there = self.timeouts
                self.timeouts = Timeouts(
                    timeouts.tcp or there.tcp,
                    timeouts.tcp_fin or there.tcp_fin,
                    timeouts.udp or there.udp,
                )
            case SetSysctl(name, value):
                _require(name in self.sysctls, operation, errno.ENOENT)
                self.sysctls[name] = value
            case ProbeAddress(vip):
                # its own answer would make the probe fail
                _require(not self.network.holders(vip.address), operation, errno.EADDRINUSE)
                if vip.address in self.others:
                    raise AddressInUseError(f"{vip.address}: {self.others[vip.address]} answers")
            case AddAddress() | DeleteAddress():
                self._address(operation)
            case AnnounceAddress(vip):
                held = vip.interface in self.network.holders(vip.address)
                _require(held, operation, errno.EADDRNOTAVAIL)
                self.announced.append(vip)

    def _service(self, operation: AddService | SetService | DeleteService) -> None:
        if isinstance(operation, DeleteService):
            _require(operation.key in self.services, operation, errno.ESRCH)
            del self.services[operation.key], self.real_servers[operation.key]
            return
        service = replace(operation.service, real_servers=(), name="")
        if isinstance(operation, AddService):
            _require(service.key not in self.services, operation, errno.EEXIST)
        else:
            _require(service.key in self.services, operation, errno.ESRCH)
        _require(service.scheduler in self.schedulers, operation, errno.ENOENT)
        self.services[service.key] = service
        self.real_servers.setdefault(service.key, [])

    def _real_server(self, operation: AddRealServer | SetRealServer | DeleteRealServer) -> None:
        key, server = operation.key, replace(operation.real_server, name="")
        _require(key in self.services, operation, errno.ESRCH)
        servers = self.real_servers[key]
        places = [place for place, there in enumerate(servers) if there.key == server.key]
        if isinstance(operation, AddRealServer):
            version = key.version if isinstance(key, MarkKey) else key.address.version
            _require(not places, operation, errno.EEXIST)
            _require(version == server.address.version, operation, errno.EINVAL)
            _require(server.lower_threshold <= server.upper_threshold, operation, errno.ERANGE)
            servers.insert(0, server)
            return
        _require(bool(places), operation, errno.ENOENT)
        if isinstance(operation, SetRealServer):
            servers[places[0]] = server
        else:
            del servers[places[0]]

    def _address(self, operation: AddAddress | DeleteAddress) -> None:
        vip = operation.vip
        _require(vip.interface in self.interfaces, operation, errno.ENODEV)
        addresses = self.interfaces[vip.interface]
        own = ipaddress.ip_interface(f"{vip.address}/{vip.prefix_length}")
        if isinstance(operation, AddAddress):
            _require(own not in addresses, operation, errno.EEXIST)
            addresses.append(own)
        else:
            _require(own in addresses, operation, errno.EADDRNOTAVAIL)
            addresses.remove(own)


def _require(condition: bool, operation: Operation, code: int) -> None:
    if not condition:
        raise KernelError(operation.command, errno=code)


def subject(operation: Operation) -> object:
    """What an operation is about: a service's key, an address on an interface, a sysctl's name."""
    match operation:
        case AddService(service) | SetService(service):
            return service.key
        case SetSysctl(name, _):
            return name
        case SetTimeouts():
            return "timeouts"
        case ProbeAddress(vip) | AddAddress(vip) | DeleteAddress(vip) | AnnounceAddress(vip):
            return vip
    return operation.key


class _Addresses:
    """The part of Addresses that observes."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def observe(self) -> HostNetwork:
        return self._world.network


class SimulatedKernel(Kernel):
    """A Kernel whose operations are done in a World, one after the other.

    Args:
        world: that holds what is done.
    """

    def __init__(self, world: World) -> None:  # it has no sockets to hand to Kernel
        self.world = world
        self.ipvs = cast("Ipvs", None)
        self.addresses = cast("Addresses", _Addresses(world))
        self.probe = AddressProbe()
        self.announcer = None
        self.before: Callable[[Operation], None] = lambda _: None
        """Called before each operation; what it raises is what the kernel answers."""
        self.tried: list[Operation] = []

    def observe_host(self, sysctls: Iterable[str]) -> tuple[dict[str, str | None], Timeouts]:
        return dict(self.world.observe(sysctls, ()).sysctls), self.world.timeouts

    def service_keys(self) -> set[Key]:
        return set(self.world.services)

    async def observe_services(
        self, keys: Iterable[Key] | None = None
    ) -> dict[Key, ObservedService]:
        return dict(self.world.observe((), keys).services)

    async def apply(
        self,
        operations: Sequence[Operation],
        network: HostNetwork,  # noqa: ARG002  # the world has its own
        report: Callable[[Outcome], None],
        between: Callable[[], Awaitable[Collection[Key]]] | None = None,
    ) -> None:
        """As the real one, with a call of `between` after every operation."""
        failed: set[object] = set()
        outdated: Collection[Key] = ()
        for operation in operations:
            if subject(operation) in failed or subject(operation) in outdated:
                report(Outcome(operation, skipped=True))
                continue
            self.tried.append(operation)
            try:
                self.before(operation)
                self.world.do(operation)
            except LbdrError as error:
                if isinstance(operation, AddService | ProbeAddress | AddAddress):
                    failed.add(subject(operation))
                report(Outcome(operation, error))
            else:
                report(Outcome(operation))
            if between is not None:
                outdated = await between()


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine; one that never waits costs no event loop."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        value: T = done.value
        return value
    coroutine.close()
    raise AssertionError("it waits: give it to asyncio.run")


def run_in_loop(coroutine: Coroutine[Any, Any, T], seconds: float = 10.0) -> T:
    """Run a coroutine in an event loop, with a deadline."""

    async def bounded() -> T:
        async with asyncio.timeout(seconds):
            return await coroutine

    return asyncio.run(bounded())
