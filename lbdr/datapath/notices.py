"""What the kernel tells of changed interfaces and addresses (rtnetlink multicast groups)."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pyroute2.netlink import NETLINK_ROUTE
from pyroute2.netlink.rtnl import (
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTMGRP_IPV4_IFADDR,
    RTMGRP_IPV6_IFADDR,
    RTMGRP_LINK,
)
from pyroute2.netlink.rtnl.marshal import MarshalRtnl

from lbdr.model import InterfaceAddress

LINKS_AND_ADDRESSES = RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR
"""Groups of notices that `translate` understands."""

# IFF_UP, IFF_LOWER_UP (carrier), and IFF_RUNNING, which follows the carrier by a moment: only then
# frames pass
_IFF_READY = 0x1 | 0x10000 | 0x40
_BUFFER = 1 << 20


class ChangeKind(StrEnum):
    """What happened to an interface or an address."""

    ADDRESS_ADDED = "address added"
    ADDRESS_REMOVED = "address removed"
    LINK_ADDED = "link added"
    LINK_UP = "link up"
    LINK_DOWN = "link down"
    LINK_RENAMED = "link renamed"
    LINK_REMOVED = "link removed"
    RESYNC = "resync"


@dataclass(frozen=True, slots=True)
class Change:
    """A notice of the kernel's.

    Args:
        kind: RESYNC means that anything may have changed: observe again.
        interface: its name now, or its last one; empty with RESYNC.
        address: with its prefix length, where the notice is about an address.
        former_name: where the interface was renamed.
    """

    kind: ChangeKind
    interface: str = ""
    address: InterfaceAddress | None = None
    former_name: str = ""


def is_up(link: Any) -> bool:
    """Whether a link message tells of an interface that is up, with carrier."""
    flags: int = link["flags"]
    return flags & _IFF_READY == _IFF_READY


def interface_address(message: Any) -> InterfaceAddress | None:
    """The address that an address message tells of."""
    # IFA_ADDRESS is the peer's on a point-to-point link; IFA_LOCAL, where it is given, is ours
    address = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
    if address is None:
        return None
    return ipaddress.ip_interface(f"{address}/{message['prefixlen']}")


def open_notices(groups: int = LINKS_AND_ADDRESSES) -> socket.socket:
    """A socket that the kernel reports changes on from now on.

    Args:
        groups: RTMGRP_*, together.
    """
    notices = socket.socket(
        socket.AF_NETLINK,
        socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
        NETLINK_ROUTE,
    )
    notices.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
    notices.bind((0, groups))
    return notices


async def messages(notices: socket.socket) -> AsyncGenerator[Any, None]:
    """The messages that arrive; OSError with ENOBUFS when the kernel had to drop some."""
    loop = asyncio.get_running_loop()
    marshal = MarshalRtnl()
    while True:
        for message in marshal.parse(await loop.sock_recv(notices, 1 << 16)):
            yield message


def translate(message: Any, links: dict[int, tuple[str, bool]]) -> list[Change]:
    """The changes that a message tells of.

    Args:
        message: of the socket's groups.
        links: names and whether up, by index; kept up to date.
    """
    kind, index = message["header"]["type"], message["index"]
    if kind in (RTM_NEWADDR, RTM_DELADDR):
        address = interface_address(message)
        what = ChangeKind.ADDRESS_ADDED if kind == RTM_NEWADDR else ChangeKind.ADDRESS_REMOVED
        return [Change(what, links.get(index, ("", False))[0], address)]
    # a bridge reports its ports, one that leaves it as deleted, by messages of its own family
    if kind not in (RTM_NEWLINK, RTM_DELLINK) or message["family"] != socket.AF_UNSPEC:
        return []
    if kind == RTM_DELLINK:
        name, _ = links.pop(index, (message.get_attr("IFLA_IFNAME"), False))
        return [Change(ChangeKind.LINK_REMOVED, name)]
    name, up = message.get_attr("IFLA_IFNAME"), is_up(message)
    changes = []
    if index not in links:
        changes.append(Change(ChangeKind.LINK_ADDED, name))
    former_name, was_up = links.get(index, (name, False))
    if name != former_name:
        changes.append(Change(ChangeKind.LINK_RENAMED, name, former_name=former_name))
    if up != was_up:
        changes.append(Change(ChangeKind.LINK_UP if up else ChangeKind.LINK_DOWN, name))
    links[index] = (name, up)
    return changes
