"""Programs at tc: by filters of a clsact qdisc, which every kernel that lbdr runs on has.

A filter lasts until it is removed, whatever becomes of the process that added it. lbdr's have a
priority of their own; a clsact qdisc that is there is used, and never removed, since filters of
others may hang on it.

Sources: net/sched/cls_bpf.c, net/sched/sch_ingress.c (clsact), tc-bpf(8).
"""

from __future__ import annotations

import errno
import struct
from enum import IntEnum

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from lbdr.datapath.bpf_links import device
from lbdr.datapath.bpf_programs import Program
from lbdr.errors import KernelError, LbdrError, PrivilegeError

PRIORITY = 0x6C62
"""Of lbdr's filters, "lb": after those of others, which usually begin at 1 or 49152."""

_ETH_P_ALL = 3
_HANDLE = 1
_TCA_BPF_ID = 11  # include/uapi/linux/pkt_cls.h; pyroute2 0.9 does not know it


class Direction(IntEnum):
    """Where a filter of a clsact qdisc hangs (TC_H_MIN_INGRESS, TC_H_MIN_EGRESS)."""

    INGRESS = 0xFFFFFFF2
    EGRESS = 0xFFFFFFF3

    @property
    def word(self) -> str:
        """The word that tc(8) has for it."""
        return self.name.lower()


async def attach(program: Program, ifindex: int, direction: Direction) -> None:
    """Have a device run a program, instead of an earlier one of lbdr's in one step.

    Args:
        program: a direct-action classifier.
        ifindex: of the device, in this thread's namespace.
        direction: on its way in or out.

    Raises:
        KernelError: the kernel has no clsact or cls_bpf, or no such device.
        PrivilegeError: the caller lacks CAP_NET_ADMIN.
    """
    name = device(ifindex)
    words = (
        f"tc filter replace dev {name} {direction.word} prio {PRIORITY} handle {_HANDLE} "
        f"bpf direct-action {program.label}"
    )
    async with AsyncIPRoute() as route:
        try:
            await route.tc("add", "clsact", ifindex)
        except NetlinkError as error:
            if error.code != errno.EEXIST:
                raise _refused(f"tc qdisc add dev {name} clsact", error) from error
        try:
            await route.tc(
                "replace-filter",
                "bpf",
                ifindex,
                _HANDLE,
                fd=program.fd,
                name=program.info().name,
                parent=int(direction),
                prio=PRIORITY,
                protocol=_ETH_P_ALL,
                direct_action=True,
            )
        except NetlinkError as error:
            raise _refused(words, error) from error


async def attached(ifindex: int, direction: Direction) -> int | None:
    """The number of the program that lbdr's filter has; None where there is no such filter.

    Raises:
        KernelError: no such device.
    """
    async with AsyncIPRoute() as route:
        try:
            messages = [
                message
                async for message in await route.get_filters(index=ifindex, parent=int(direction))
            ]
        except NetlinkError as error:
            if error.code in (errno.EINVAL, errno.ENOENT, errno.EOPNOTSUPP):
                return None  # no clsact there
            raise _refused(
                f"tc filter show dev {device(ifindex)} {direction.word}", error
            ) from error
    for message in messages:
        options = message.get_attr("TCA_OPTIONS")
        if message["info"] >> 16 == PRIORITY and options is not None:
            for name, value in options["attrs"]:
                if name == "UNKNOWN" and value["header"]["type"] == _TCA_BPF_ID:
                    return int(struct.unpack_from("=I", value.data, value.offset + 4)[0])
    return None


async def detach(ifindex: int, direction: Direction) -> bool:
    """Remove lbdr's filter; whether there was one.

    Raises:
        KernelError, PrivilegeError: it cannot be removed.
    """
    async with AsyncIPRoute() as route:
        try:
            await route.tc(
                "del-filter",
                "bpf",
                ifindex,
                _HANDLE,
                parent=int(direction),
                prio=PRIORITY,
                protocol=_ETH_P_ALL,
            )
        except NetlinkError as error:
            if error.code in {errno.ENOENT, errno.ENODEV, errno.EINVAL}:
                return False
            words = f"tc filter delete dev {device(ifindex)} {direction.word} prio {PRIORITY}"
            raise _refused(words, error) from error
    return True


def _refused(words: str, error: NetlinkError) -> LbdrError:
    number = error.code
    if number == errno.EPERM:
        return PrivilegeError(f"{words}: not permitted", hint="run as root (CAP_NET_ADMIN)")
    hint = ""
    if number in (errno.ENOENT, errno.EOPNOTSUPP):
        hint = "a kernel with CONFIG_NET_SCH_INGRESS and CONFIG_NET_CLS_BPF has it"
    return KernelError(words, errno=number, hint=hint)
