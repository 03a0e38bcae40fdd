"""Links, routes and neighbours of a network namespace, asked of rtnetlink.

Each call answers for the network namespace of the calling thread.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pyroute2.netlink import NLM_F_DUMP_INTR, NLM_F_MULTI, NLMSG_DONE, NLMSG_ERROR
from pyroute2.netlink.rtnl.marshal import MarshalRtnl

from lbdr.datapath.routes_wire import (
    LIST_LINKS,
    LIST_NEIGHBOURS,
    Link,
    Neighbour,
    NeighbourKey,
    Request,
    Route,
    get_route,
    link_of,
    neighbour_of,
    pack,
    route_of,
)
from lbdr.errors import KernelError
from lbdr.model import Address

_NO_ROUTE = frozenset(
    {
        errno.ENETUNREACH,  # no route, or a route of type throw
        errno.EHOSTUNREACH,  # a route of type unreachable
        errno.EACCES,  # a route of type prohibit
        errno.EINVAL,  # a route of type blackhole
        errno.EAFNOSUPPORT,  # a kernel without IPv6, or booted with ipv6.disable=1
        errno.EOPNOTSUPP,
    }
)

_BATCH = 64  # requests in one message; their answers fit into the buffer that any host allows
_BUFFER = 1 << 20
_RECEIVE = 1 << 16
_DUMP_ATTEMPTS = 5
_ANSWER = 10.0  # seconds; the kernel answers within the call, so this is a lost answer


@dataclass(slots=True)
class Answer:
    """What the kernel says to a request; an errno of 0 is success."""

    errno: int = 0
    messages: list[Any] = field(default_factory=list)
    complete: bool = False


async def ask(requests: Sequence[Request]) -> list[Answer]:
    """Give the kernel requests, and collect its answers in the requests' order.

    The kernel works while a message is sent, and its answers wait to be read when that returns
    (net/netlink/af_netlink.c, netlink_rcv_skb): nothing here waits for anything outside.

    Raises:
        KernelError: the socket failed, or an answer was lost.
    """
    answers = [Answer() for _ in requests]
    marshal = MarshalRtnl()
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
            kernel.settimeout(_ANSWER)
            kernel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
            for start in range(0, len(requests), _BATCH):
                batch = range(start, min(start + _BATCH, len(requests)))
                kernel.send(b"".join(pack(requests[number], number) for number in batch))
                while not all(answers[number].complete for number in batch):
                    for message in marshal.parse(kernel.recv(_RECEIVE)):
                        _collect(message, answers[message["header"]["sequence_number"]])
                    await asyncio.sleep(0)  # others have their turn
    except OSError as error:
        number = error.errno or errno.ETIMEDOUT
        raise KernelError(requests[0].command, errno=number) from error
    return answers


async def links() -> dict[int, Link]:
    """The devices of this namespace by index.

    Raises:
        KernelError: the kernel refuses to list them.
    """
    found = map(link_of, await _dump(LIST_LINKS))
    return {link.index: link for link in found}


async def neighbours() -> dict[NeighbourKey, Neighbour]:
    """The neighbour entries of this namespace by device and address.

    Raises:
        KernelError: the kernel refuses to list them.
    """
    found = map(neighbour_of, await _dump(LIST_NEIGHBOURS))
    return {entry.key: entry for entry in found if entry is not None}


async def routes(addresses: Sequence[Address]) -> dict[Address, Route | None]:
    """Where packets to addresses go; None where the kernel would not send them to one host.

    Raises:
        KernelError: the kernel refuses to say.
    """
    requests = [get_route(address) for address in addresses]
    found: dict[Address, Route | None] = {}
    for address, request, answer in zip(addresses, requests, await ask(requests), strict=True):
        if answer.errno and answer.errno not in _NO_ROUTE:
            raise KernelError(request.command, errno=answer.errno)
        found[address] = next((route_of(address, each) for each in answer.messages), None)
    return found


def _collect(message: Any, answer: Answer) -> None:
    header = message["header"]
    if header["type"] == NLMSG_ERROR:
        answer.errno = -message["error"]
    elif header["type"] != NLMSG_DONE:
        answer.messages.append(message)
    answer.complete = header["type"] == NLMSG_DONE or not header["flags"] & NLM_F_MULTI


async def _dump(request: Request) -> list[Any]:
    for _ in range(_DUMP_ATTEMPTS):
        (answer,) = await ask([request])
        if answer.errno:
            raise KernelError(request.command, errno=answer.errno)
        # a list that changed while it was read may lack something: read it again
        if not any(each["header"]["flags"] & NLM_F_DUMP_INTR for each in answer.messages):
            return answer.messages
    raise KernelError(f"{request.command}: the list changed at each of {_DUMP_ATTEMPTS} readings")
