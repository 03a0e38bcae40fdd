"""Interfaces and their addresses, by rtnetlink.

Sources: rtnetlink(7), include/uapi/linux/if_addr.h and if_link.h, net/ipv4/devinet.c,
net/ipv6/addrconf.c. Kernel and pyroute2 answer for the network namespace of the calling thread.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, Self

from pyroute2 import AsyncIPRoute
from pyroute2.netlink import (
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP_INTR,
    NLM_F_EXCL,
    NLM_F_REQUEST,
    NLMSG_ERROR,
)
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl import RTM_DELADDR, RTM_NEWADDR

from lbdr.datapath.notices import (
    Change,
    ChangeKind,
    interface_address,
    is_up,
    messages,
    open_notices,
    translate,
)
from lbdr.errors import KernelError, LbdrError, PrivilegeError
from lbdr.model import HostNetwork, Interface, InterfaceAddress, family
from lbdr.operations import AddAddress, DeleteAddress

_IFA_F_NODAD = 0x02
_IFA_ADDRESS, _IFA_LOCAL, _IFA_CACHEINFO = 1, 2, 6
_REQUEST = NLM_F_REQUEST | NLM_F_ACK
_CREATE = _REQUEST | NLM_F_CREATE | NLM_F_EXCL
_FOREVER = 0xFFFFFFFF
_NO_MAC = "00:00:00:00:00:00"  # loopback's

_BATCH = 128  # operations in one message; their answers fit well into the buffer
_ANSWERS_BUFFER = 1 << 20
_DUMP_ATTEMPTS = 5
_ANSWER = 10.0  # seconds; the kernel answers within the call, so this is a lost answer


class Addresses:
    """Observes interfaces, and adds and deletes addresses; inside a running event loop."""

    def __init__(self) -> None:
        self._route: Any = None
        self._opening = asyncio.Lock()
        self._dumping = asyncio.Lock()  # a second dump on one socket is refused with EBUSY

    async def __aenter__(self) -> Self:
        await self._socket()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket; a later call opens another one."""
        if self._route is not None:
            self._route.close()
            self._route = None

    async def observe(self) -> HostNetwork:
        """The interfaces of this host with their addresses.

        Raises:
            KernelError: the kernel refuses to list them.
        """
        links = await self._dump("ip link show", "get_links")
        addresses: dict[int, list[InterfaceAddress]] = {}
        for message in await self._dump("ip address show", "get_addr"):
            address = interface_address(message)
            if address is not None:
                addresses.setdefault(message["index"], []).append(address)
        interfaces = [_interface(link, addresses.get(link["index"], [])) for link in links]
        return HostNetwork({interface.name: interface for interface in interfaces})

    async def apply(self, operation: AddAddress | DeleteAddress) -> None:
        """Add or delete an address; one that is there, or gone, already is a success.

        An IPv4 VIP needs no care to stay out of source address selection: a route that the kernel
        makes for a subnet names the subnet's own address, and elsewhere the interface's first
        address wins, behind which a later one is sorted (net/ipv4/devinet.c, inet_select_addr). An
        IPv6 VIP would win by rule 8 of RFC 6724 section 5 wherever it shares the longest prefix
        with the destination; with a preferred lifetime of 0 it is deprecated and rule 3 avoids it,
        while sockets bound to it and answers from it work as ever. DAD is skipped: the address was
        probed before.

        Raises:
            PrivilegeError: the caller lacks CAP_NET_ADMIN.
            KernelError: no such interface, or the kernel refuses the address.
        """
        (error,) = await self.apply_many([operation])
        if error is not None:
            raise error

    async def apply_many(
        self, operations: Sequence[AddAddress | DeleteAddress]
    ) -> list[LbdrError | None]:
        """Apply many operations, in their order; a failure does not stop those after it.

        Returns:
            For each operation in turn, what apply would have raised, or None for success.
        """
        errors: list[LbdrError | None] = []
        for start in range(0, len(operations), _BATCH):
            errors += _transact(operations[start : start + _BATCH])
            await asyncio.sleep(0)  # others have their turn
        return errors

    async def changes(self) -> AsyncGenerator[Change, None]:
        """Notices of changed links and addresses, endlessly.

        The first one is a RESYNC, when the kernel has begun to report: who observes on it misses
        nothing. Another one follows whenever the kernel had to drop notices (ENOBUFS).

        Raises:
            KernelError: the kernel refuses the socket.
        """
        while True:
            try:
                with open_notices() as notices:
                    links = {
                        link["index"]: (link.get_attr("IFLA_IFNAME"), is_up(link))
                        for link in await self._dump("ip link show", "get_links")
                    }
                    yield Change(ChangeKind.RESYNC)
                    async for message in messages(notices):
                        for change in translate(message, links):
                            yield change
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    command = "ip monitor link address"
                    raise KernelError(command, errno=error.errno or 0) from error

    async def _socket(self) -> Any:
        async with self._opening:
            if self._route is None:
                route = AsyncIPRoute()
                await route.setup_endpoint()
                self._route = route
            return self._route

    async def _request(self, command: str, ask: Callable[[Any], Awaitable[Any]]) -> Any:
        route = await self._socket()
        try:
            async with asyncio.timeout(_ANSWER):
                return await ask(route)
        except NetlinkError as error:
            raise KernelError(command, errno=error.code) from error
        except OSError as error:
            # The socket itself failed, and pyroute2 keeps it failed, or it told those that wait
            # for an answer nothing (TimeoutError): the next call opens another one.
            if self._route is route:
                self.close()
            raise KernelError(command, errno=error.errno or errno.ETIMEDOUT) from error

    async def _dump(self, command: str, method: str) -> list[Any]:
        async def ask(route: Any) -> list[Any]:
            return [message async for message in await getattr(route, method)()]

        async with self._dumping:
            for _ in range(_DUMP_ATTEMPTS):
                messages: list[Any] = await self._request(command, ask)
                # a list that changed while it was read may lack something: read it again
                if not any(message["header"]["flags"] & NLM_F_DUMP_INTR for message in messages):
                    return messages
        raise KernelError(f"{command}: the list changed at each of {_DUMP_ATTEMPTS} readings")


def observe_network() -> HostNetwork:
    """The interfaces of this host with their addresses; outside of an event loop, without root.

    Raises:
        KernelError: the kernel refuses to list them.
    """

    async def observe() -> HostNetwork:
        async with Addresses() as addresses:
            return await addresses.observe()

    return asyncio.run(observe())


# --- changing addresses --------------------------------------------------------------------------
# Written here and not by pyroute2, whose requests cost 0.3 ms each: a director that takes over a
# hundred VIPs has 200 ms for everything, and this takes 3 of them.


def _transact(operations: Sequence[AddAddress | DeleteAddress]) -> list[LbdrError | None]:
    """Give the kernel operations in one message, and judge its answers.

    The kernel works while the message is sent, and each answer waits to be read when that returns
    (net/netlink/af_netlink.c, netlink_rcv_skb): this does not hold up an event loop longer than the
    work takes.
    """
    outcomes: dict[int, int] = {}
    requests: list[bytes] = []
    for number, operation in enumerate(operations):
        try:
            index = socket.if_nametoindex(operation.vip.interface)
        except OSError:
            outcomes[number] = errno.ENODEV
        else:
            requests.append(_encode(number, operation, index))
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
            kernel.settimeout(_ANSWER)
            kernel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _ANSWERS_BUFFER)
            if requests:
                kernel.send(b"".join(requests))
            while len(outcomes) < len(operations):
                outcomes |= _answers(kernel.recv(1 << 16))
    except OSError as error:
        missing = error.errno or errno.ETIMEDOUT
        outcomes = dict.fromkeys(range(len(operations)), missing) | outcomes
    return [_judge(operation, outcomes[number]) for number, operation in enumerate(operations)]


def _encode(number: int, operation: AddAddress | DeleteAddress, index: int) -> bytes:
    address = operation.vip.address
    adding = isinstance(operation, AddAddress)
    attributes = _attribute(_IFA_LOCAL, address.packed) + _attribute(_IFA_ADDRESS, address.packed)
    flags = 0
    if adding and address.version == 6:
        flags = _IFA_F_NODAD
        attributes += _attribute(_IFA_CACHEINFO, struct.pack("=IIII", 0, _FOREVER, 0, 0))
    fixed = (family(address.version), operation.vip.prefix_length, flags, 0, index)
    body = struct.pack("=BBBBI", *fixed) + attributes
    kind, request_flags = (RTM_NEWADDR, _CREATE) if adding else (RTM_DELADDR, _REQUEST)
    header = struct.pack("=IHHII", 16 + len(body), kind, request_flags, number, 0)
    return header + body


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value  # all lengths here are multiples of 4


def _answers(data: bytes) -> dict[int, int]:
    """Error numbers, 0 for success, by the requests' numbers."""
    answers: dict[int, int] = {}
    while len(data) >= 20:
        length, kind, _, number, _, error = struct.unpack_from("=IHHIIi", data)
        if kind == NLMSG_ERROR:
            answers[number] = -error
        data = data[(length + 3) & ~3 :]
    return answers


def _judge(operation: AddAddress | DeleteAddress, number: int) -> LbdrError | None:
    """What the kernel's answer to an operation means; None where it is as good as success."""
    interface = operation.vip.interface
    if number == 0:
        return None
    if number == errno.EPERM:
        return PrivilegeError(f"{operation.command}: not permitted", hint="run as root")
    if isinstance(operation, DeleteAddress):
        # with an interface its addresses went: nothing is left to delete
        gone = number in (errno.EADDRNOTAVAIL, errno.ENODEV, errno.ENXIO)
        return None if gone else KernelError(operation.command, errno=number)
    if number == errno.EEXIST:
        return None
    hint = ""
    if number == errno.ENODEV:
        hint = f"this machine has no interface {interface}; `ip link` lists them"
    elif number == errno.EACCES and operation.vip.address.version == 6:
        name = interface.replace(".", "/")
        hint = f"IPv6 is disabled on {interface}: sysctl -w net.ipv6.conf.{name}.disable_ipv6=0"
    return KernelError(operation.command, errno=number, hint=hint)


def _interface(link: Any, addresses: list[InterfaceAddress]) -> Interface:
    mac = link.get_attr("IFLA_ADDRESS") or ""
    return Interface(
        name=link.get_attr("IFLA_IFNAME"),
        index=link["index"],
        mac="" if mac == _NO_MAC else mac,
        up=is_up(link),
        addresses=tuple(addresses),
    )
