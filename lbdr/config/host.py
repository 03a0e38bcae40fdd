"""What a configuration needs of the machine that it is to run on."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from lbdr.config.load import Loaded
from lbdr.config.without_ipvs import needs_ipvs
from lbdr.errors import Problem
from lbdr.model import Address, Forwarding, HostNetwork, Interface, VirtualService

_NO_MACS = ("", "00:00:00:00:00:00")  # of a tunnel, and of lo
_SHOWN = 8  # subnets named in a message


def host_problems(loaded: Loaded, network: HostNetwork, *, ipvs: bool = True) -> list[Problem]:
    """Everything that keeps a valid configuration from running on a machine.

    Args:
        loaded: the configuration.
        network: the machine's interfaces and addresses.
        ipvs: whether its kernel has IPVS.
    """
    found: list[Problem] = [] if ipvs else needs_ipvs(loaded)
    served: set[str] = set()
    vips: set[Address] = set()
    for service in loaded.configuration.virtual_services:
        if service.forwarding is not Forwarding.DR:
            continue
        if service.address not in vips:
            vips.add(service.address)
            found += _vip(loaded, service, network)
        sorry = (service.sorry_server,) if service.sorry_server else ()
        served.update(server.name for server in (*service.real_servers, *sorry))
    for name, address in loaded.real_servers.items():
        if name in served:
            found += _real_server(loaded, name, address, network)
    return sorted(found, key=lambda problem: (problem.line, problem.column))


def _vip(loaded: Loaded, service: VirtualService, network: HostNetwork) -> Iterator[Problem]:
    base = ("virtual_services", service.name)
    vip = service.address
    if service.interface is not None:
        interface = network.interfaces.get(service.interface)
        path = (*base, "interface")
        if interface is None:
            names = ", ".join(sorted(network.interfaces)) or "none"
            yield loaded.problem(
                path,
                f"this machine has no interface {service.interface}; it has: {names}",
                "correct the name, or leave `interface` out",
            )
            return
    else:
        interface = network.interface_for(vip)
        path = (*base, "address")
        if interface is None:
            yield loaded.problem(
                path,
                f"the VIP {vip} is in no subnet of an interface of this machine "
                f"({_subnets(network, vip.version)})",
                "correct it, or name the interface where it is to go: `interface: eth0`",
            )
            return
    if not interface.up:
        yield loaded.problem(
            path,
            f"the interface {interface.name}, where the VIP {vip} goes, is down or has no carrier",
            f"ip link set {interface.name} up",
        )
    if service.needs_mark and interface.mac in _NO_MACS:
        yield loaded.problem(
            path,
            f"the VIP {vip} of {service.name} goes to {interface.name}, where no frames come in: "
            "several ports as one decision need a packet mark, which lbdr sets on the VIP's "
            "interface",
            "name the interface that clients' packets come in on: `interface: eth0`",
        )
    yield from _own_address(loaded, service, network)


def _own_address(
    loaded: Loaded, service: VirtualService, network: HostNetwork
) -> Iterator[Problem]:
    """A VIP that is this machine's own, or no host's address in its subnet."""
    vip = service.address
    path = ("virtual_services", service.name, "address")
    for interface in network.interfaces.values():
        for own in interface.addresses:
            if own.version != vip.version or own.network.prefixlen == vip.max_prefixlen:
                continue
            if own.ip == vip:
                yield loaded.problem(
                    path,
                    f"the VIP {vip} is this machine's own address on {interface.name}: real "
                    "servers hold the VIP too, and could not reach the director",
                    "write an unused address",
                )
            elif vip.version == 4 and own.network.prefixlen < 31 and vip in _ends(own.network):
                yield loaded.problem(
                    path,
                    f"the VIP {vip} is the first or last address of {own.network} on "
                    f"{interface.name}, which stand for the subnet and for all of its hosts",
                    "write an unused address",
                )


def _ends(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> tuple[Address, Address]:
    return (network.network_address, network.broadcast_address)


def _real_server(
    loaded: Loaded, name: str, address: Address, network: HostNetwork
) -> Iterator[Problem]:
    path = ("real_servers", name, "address")
    interface = network.interface_for(address)
    if interface is None:
        yield loaded.problem(
            path,
            f"real server {name} ({address}) is in no subnet of an interface of this machine "
            f"({_subnets(network, address.version)}): DR needs one hop on layer 2",
            "correct it, or give the director an interface in the real server's subnet",
        )
    elif not interface.up:
        yield loaded.problem(
            path,
            f"the interface {interface.name}, by which real server {name} ({address}) is reached, "
            "is down or has no carrier",
            f"ip link set {interface.name} up",
        )


def _subnets(network: HostNetwork, version: int) -> str:
    """The subnets of one IP version, for a message."""
    found = [
        f"{interface.name} {subnet}"
        for interface in network.interfaces.values()
        for subnet in _of(interface, version)
    ]
    more = ", ..." if len(found) > _SHOWN else ""
    return (", ".join(found[:_SHOWN]) + more) or f"none has an IPv{version} subnet"


def _of(interface: Interface, version: int) -> list[str]:
    return [
        str(own.network)
        for own in interface.addresses
        if own.version == version
        and own.network.prefixlen != own.max_prefixlen
        and not own.is_loopback
        and not own.is_link_local
    ]
