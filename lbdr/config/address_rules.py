"""Which addresses can be a VIP or a real server's, on any machine.

Sources: RFC 6890 (special-purpose addresses), RFC 4291 section 2.5.5.2 (IPv4-mapped).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from lbdr.config.finding import Finding
from lbdr.config.schema import Document
from lbdr.model import Address

_THIS_NETWORK = ipaddress.IPv4Network("0.0.0.0/8")
_BROADCAST = ipaddress.IPv4Address("255.255.255.255")


def unusable(address: Address) -> str:
    """Why an address can be neither a VIP nor a real server's; empty where it can."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return f"an IPv4 address in IPv6 notation: write {address.ipv4_mapped}"
    kinds = (
        (address.is_unspecified, "the unspecified address"),
        (address.is_loopback, "a loopback address, which never leaves a machine"),
        (address.is_multicast, "a multicast address"),
        (address == _BROADCAST, "the broadcast address"),
        (address.version == 4 and address in _THIS_NETWORK, 'in "this network" (0.0.0.0/8)'),
        (address.is_link_local, "a link-local address, which no router passes on"),
    )
    return next((why for applies, why in kinds if applies), "")


def address_findings(document: Document) -> Iterator[Finding]:
    """Addresses that cannot be what they are given for, and those given twice."""
    owners: dict[Address, str] = {}
    for name, server in document.real_servers.items():
        path = ("real_servers", name, "address")
        why = unusable(server.address)
        if why:
            yield Finding(
                path,
                f"{server.address} cannot be a real server's address: it is {why}",
                "write the address that the real server has on its own interface",
            )
        elif server.address in owners:
            yield Finding(
                path,
                f"{name} has the address of {owners[server.address]}, {server.address}: a real "
                "server is named once",
                f"use {owners[server.address]} in the services, or correct the address",
            )
        owners.setdefault(server.address, name)
    for name, service in document.virtual_services.items():
        path = ("virtual_services", name, "address")
        why = unusable(service.address)
        if why:
            yield Finding(
                path,
                f"{service.address} cannot be a VIP: it is {why}",
                "write an unused address of a subnet that clients reach",
            )
        elif service.address in owners:
            yield Finding(
                path,
                f"the VIP {service.address} is the own address of real server "
                f"{owners[service.address]}: it would answer ARP for the VIP itself, past the "
                "director",
                "write an address that no machine has as its own",
            )
