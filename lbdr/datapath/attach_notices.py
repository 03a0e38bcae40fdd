"""What the kernel tells when programs are attached or detached by hand, and when devices come."""

from __future__ import annotations

import asyncio
import errno
import struct
from collections.abc import AsyncGenerator, Iterator

from pyroute2.netlink.rtnl import (
    RTM_DELQDISC,
    RTM_DELTFILTER,
    RTM_NEWLINK,
    RTMGRP_LINK,
    RTMGRP_TC,
)

from lbdr.datapath.notices import open_notices
from lbdr.errors import KernelError

_HEADER = struct.Struct("=IHHII")
_TELLING = frozenset({RTM_NEWLINK, RTM_DELTFILTER, RTM_DELQDISC})
_LARGEST = 1 << 16


async def attachment_changes() -> AsyncGenerator[None, None]:
    """Each time that a device came or changed, its XDP program too, or that a tc filter went.

    The first one is when the kernel has begun to report. There is no notice of a tcx link.

    Raises:
        KernelError: the kernel refuses the socket.
    """
    loop = asyncio.get_running_loop()
    try:
        with open_notices(RTMGRP_LINK | RTMGRP_TC) as notices:
            yield None
            while True:
                try:
                    data = await loop.sock_recv(notices, _LARGEST)
                except OSError as error:
                    if error.errno != errno.ENOBUFS:
                        raise
                    yield None  # some were lost
                    continue
                if any(kind in _TELLING for kind in _kinds(data)):
                    yield None
    except OSError as error:
        raise KernelError("ip monitor link; tc monitor", errno=error.errno or 0) from error


def _kinds(data: bytes) -> Iterator[int]:
    """The types of a datagram's messages."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, offset)
        yield kind
        offset += max(length, _HEADER.size) + 3 & ~3
