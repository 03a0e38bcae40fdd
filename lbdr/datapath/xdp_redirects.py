"""Which devices take frames that XDP redirects to them, by the kernel's own word.

A driver that cannot take them loses them unseen, so a device has redirected frames only while the
kernel vouches for it. Before Linux 6.3 it vouches for none: tc ingress redirects there.

Sources: Documentation/netlink/specs/netdev.yaml, net/core/netdev-genl.c, drivers/net/veth.c
(veth_set_xdp_features).
"""

from __future__ import annotations

import errno
import logging
from collections.abc import AsyncGenerator, Collection
from contextlib import closing

from pyroute2.netlink import NLM_F_DUMP, NLM_F_REQUEST, genlmsg
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.generic import AsyncGenericNetlinkSocket

from lbdr.datapath.bpf_links import device
from lbdr.datapath.bpf_maps import Map
from lbdr.datapath.xdp_layout import U32
from lbdr.errors import KernelError

log = logging.getLogger(__name__)

_FAMILY = "netdev"
_NOTICES = "mgmt"
_GET = 1  # NETDEV_CMD_DEV_GET
_TAKES = 0x4  # NETDEV_XDP_ACT_NDO_XMIT
_NONE = (errno.ENOENT, errno.EOPNOTSUPP)


class _Device(genlmsg):  # type: ignore[misc]  # pyroute2 is untyped
    nla_map = (
        ("NETDEV_A_DEV_UNSPEC", "none"),
        ("NETDEV_A_DEV_IFINDEX", "uint32"),
        ("NETDEV_A_DEV_PAD", "none"),
        ("NETDEV_A_DEV_XDP_FEATURES", "uint64"),
    )


class _Netdev(AsyncGenericNetlinkSocket):  # type: ignore[misc]  # pyroute2 is untyped
    module_err_level = "debug"  # an older kernel is no error


async def takers() -> frozenset[int]:
    """The indexes of the devices that take redirected frames now.

    Raises:
        KernelError: the kernel refuses to tell.
    """
    netdev = await _connected()
    if netdev is None:
        return frozenset()
    request = _Device()
    request["cmd"], request["version"] = _GET, 1
    with closing(netdev):
        try:
            answers = [
                answer
                async for answer in await netdev.nlm_request(
                    request, msg_type=netdev.prid, msg_flags=NLM_F_REQUEST | NLM_F_DUMP
                )
            ]
        except NetlinkError as error:
            raise _refused(error) from error
    return frozenset(
        answer.get_attr("NETDEV_A_DEV_IFINDEX")
        for answer in answers
        if (answer.get_attr("NETDEV_A_DEV_XDP_FEATURES") or 0) & _TAKES
    )


async def changes() -> AsyncGenerator[None, None]:
    """A turn whenever a device came, went, or changed in what it takes; none on an older kernel.

    The first one comes when the kernel has begun to report.

    Raises:
        KernelError: the kernel refuses to tell.
    """
    netdev = await _connected()
    if netdev is None:
        return
    with closing(netdev):
        netdev.add_membership(_NOTICES)
        yield
        while True:
            async for _ in netdev.get():
                yield


async def keep(devices: Map, wanted: Collection[int]) -> frozenset[int]:
    """Let XDP redirect to those devices that take it, and to no other.

    Args:
        devices: the map `devices`.
        wanted: indexes of those that real servers are behind.

    Returns:
        Those that it may redirect to.

    Raises:
        KernelError, PrivilegeError: the kernel refuses.
    """
    able = (await takers()) & frozenset(wanted) if wanted else frozenset[int]()
    there = {U32.unpack(key)[0] for key in devices.keys()}  # noqa: SIM118  # it is no dict
    for ifindex in there - able:
        devices.delete(U32.pack(ifindex))
        log.info("%s takes no frames from XDP any more, tc ingress redirects", device(ifindex))
    for ifindex in able - there:
        devices.update(U32.pack(ifindex), U32.pack(ifindex))
        log.info("XDP redirects to %s", device(ifindex))
    return able


async def _connected() -> _Netdev | None:
    """A socket to the family, which the caller closes; None where this kernel has none."""
    netdev = _Netdev(flags=0)
    try:
        await netdev.bind(_FAMILY, _Device)
    except NetlinkError as error:
        netdev.close()
        if error.code not in _NONE:
            raise _refused(error) from error
        return None
    return netdev


def _refused(error: NetlinkError) -> KernelError:
    return KernelError("ynl --family netdev --dump dev-get", errno=error.code)
