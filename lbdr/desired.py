"""From what the user wrote to what the kernel is to hold; pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from lbdr.marks import Marks, key_of
from lbdr.model import (
    Configuration,
    DesiredState,
    DrainPersistence,
    Forwarding,
    HostNetwork,
    Key,
    MarkKey,
    RealServer,
    Role,
    Service,
    VirtualAddress,
    VirtualService,
)

Weights = Mapping[tuple[str, str], int | None]
"""What stands over the file's weights: (virtual service, real server) -> weight; None: out."""

DIRECTOR_SYSCTLS: Mapping[str, str] = {
    # A deleted real server's connections end at once, instead of vanishing for up to 15 minutes.
    "net.ipv4.vs.expire_nodest_conn": "1",
    # A reused client port is scheduled anew; without conntrack that delays no SYN.
    "net.ipv4.vs.conn_reuse_mode": "1",
    "net.ipv4.vs.conntrack": "0",
    # ICMP errors reach a real server also when IPVS has no entry: path MTU discovery works.
    "net.ipv4.vs.schedule_icmp": "1",
}
"""What Direct Routing needs of IPVS (Documentation/networking/ipvs-sysctl.rst)."""

MH_SYSCTLS: Mapping[str, str] = {
    # With mh any packet of a connection finds its server again, so a connection without an entry
    # goes on. For other schedulers it would be scheduled anew, and break: only while mh is used.
    "net.ipv4.vs.sloppy_tcp": "1",
    "net.ipv4.vs.sloppy_sctp": "1",
}

EXPIRE_QUIESCENT = "net.ipv4.vs.expire_quiescent_template"
"""1: a drained server's persistent clients move; 0: they stay for the timeout."""

SYSCTLS: tuple[str, ...] = (*DIRECTOR_SYSCTLS, EXPIRE_QUIESCENT, *MH_SYSCTLS)
"""Every sysctl that a director may set."""


def expand(
    configuration: Configuration,
    network: HostNetwork,
    *,
    role: Role,
    weights: Weights | None = None,
    placed: Collection[VirtualAddress] = (),
    marks: Marks | None = None,
    ipvs: bool = True,
) -> DesiredState:
    """What the kernel of this host is to hold.

    Args:
        configuration: as the user wrote it, free of static errors.
        network: this host's interfaces; they place the VIPs. One that has no place is left out:
            lbdr.config.host says so.
        role: a standby holds no VIP.
        weights: what stands over the file's.
        placed: VIPs that lbdr added. One stays where it is while its subnet is not seen anywhere:
            the host's own address may be gone for a moment, and with the VIP all its clients.
        marks: of the services that need one (lbdr.marks); one without is left out.
        ipvs: whether this kernel has it; its sysctls and timeouts are wanted only then.
    """
    services: dict[Key, Service] = {}
    addresses: set[VirtualAddress] = set()
    places = {
        vip.address: vip.interface
        for vip in placed
        if vip.interface in network.holders(vip.address)
    }
    for virtual in configuration.virtual_services:
        key = key_of(virtual, marks or {})
        if virtual.forwarding is not Forwarding.DR or key is None:
            continue
        services[key] = service_for(virtual, weights or {}, key)
        interface = _interface_for(virtual, network) or places.get(virtual.address)
        if interface is not None and role is Role.ACTIVE:
            addresses.add(VirtualAddress(virtual.address, interface))
    return DesiredState(
        services=services,
        addresses=frozenset(addresses),
        sysctls=_sysctls(services, configuration.director.drain_persistence) if ipvs else {},
        timeouts=configuration.director.timeouts if ipvs else None,
    )


def service_for(virtual: VirtualService, weights: Weights, key: Key | None = None) -> Service:
    """The IPVS service of a virtual service.

    mh always gets mh-fallback: without it a drained server's new clients are refused, not moved.
    The sorry server stands in while no real server takes new connections.

    Args:
        virtual: as the user wrote it.
        weights: those the operator set over the file's.
        key: its identity in IPVS; None for that of one that needs no mark.
    """
    flags = virtual.scheduler_flags
    if virtual.scheduler == "mh":
        flags |= {"mh-fallback"}
    real_servers = virtual.real_servers
    if any((virtual.name, server.name) in weights for server in real_servers):
        real_servers = tuple(
            replace(server, weight=weight)
            for server in real_servers
            if (weight := weights.get((virtual.name, server.name), server.weight)) is not None
        )
    if virtual.sorry_server is not None and not any(server.weight for server in real_servers):
        real_servers += (_serving(virtual.sorry_server),)
    return Service(
        key=key or virtual.key,
        scheduler=virtual.scheduler,
        flags=flags,
        persistence=virtual.persistence,
        one_packet=virtual.one_packet,
        real_servers=real_servers,
        name=virtual.name,
        marked=virtual.traffic if isinstance(key, MarkKey) else None,
    )


def _serving(sorry_server: RealServer) -> RealServer:
    return replace(sorry_server, weight=max(1, sorry_server.weight))


def _interface_for(virtual: VirtualService, network: HostNetwork) -> str | None:
    if virtual.interface is not None:
        return virtual.interface if virtual.interface in network.interfaces else None
    found = network.interface_for(virtual.address)
    return found.name if found else None


def _sysctls(
    services: Mapping[Key, Service], drain_persistence: DrainPersistence
) -> dict[str, str]:
    if not services:
        return {}
    moves = drain_persistence is DrainPersistence.MOVE
    wanted = {**DIRECTOR_SYSCTLS, EXPIRE_QUIESCENT: "1" if moves else "0"}
    if any(service.scheduler == "mh" for service in services.values()):
        wanted |= MH_SYSCTLS
    return wanted
