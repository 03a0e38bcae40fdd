"""XDP attachments by rtnetlink: what a device has, and attaching where there are no links.

Such an attachment lasts until it is replaced or removed, whatever becomes of its process.

Sources: include/uapi/linux/if_link.h (IFLA_XDP_*), net/core/rtnetlink.c (do_setlink,
rtnl_xdp_fill), net/core/dev.c (dev_change_xdp_fd). The request is answered while it is sent.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from lbdr.datapath.bpf_links import attach_refused, device
from lbdr.datapath.bpf_programs import Program
from lbdr.datapath.bpf_wire import AttachPoint, XdpFlag
from lbdr.errors import KernelError

_RTM_NEWLINK, _RTM_GETLINK, _RTM_SETLINK = 16, 18, 19
_NLMSG_ERROR = 2
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_ACK_TLVS = 1, 4, 0x200
_NLMSGERR_ATTR_MSG = 1
_SOL_NETLINK, _NETLINK_CAP_ACK, _NETLINK_EXT_ACK = 270, 10, 11
_NLA_F_NESTED, _NLA_TYPE_MASK = 0x8000, 0x3FFF
_IFLA_XDP, _IFLA_EXT_MASK = 43, 29
_RTEXT_FILTER_SKIP_STATS = 8
_FD, _ATTACHED, _FLAGS, _PROG_ID, _EXPECTED_FD = 1, 2, 3, 4, 8
_SEVERAL = 4  # XDP_ATTACHED_MULTI
_HEADER = struct.Struct("=IHHII")
_MESSAGE = struct.Struct("=BxHiII")  # struct ifinfomsg
_RECEIVE = 1 << 16


class XdpMode(IntEnum):
    """How an XDP program is attached (XDP_ATTACHED_*)."""

    NATIVE = 1
    GENERIC = 2
    OFFLOADED = 3


@dataclass(frozen=True, slots=True)
class XdpAttachment:
    """A program that a device runs."""

    mode: XdpMode
    program_id: int


def attached(ifindex: int) -> tuple[XdpAttachment, ...]:
    """The XDP programs of a device, attached by links or not; at most one in each mode.

    Args:
        ifindex: in this thread's namespace.

    Raises:
        KernelError: no such device (ENODEV).
    """
    words = f"ip link show dev {device(ifindex)}"
    mask = _attribute(_IFLA_EXT_MASK, struct.pack("=I", _RTEXT_FILTER_SKIP_STATS))
    kind, payload = _ask(_RTM_GETLINK, ifindex, mask, 0)
    if kind == _NLMSG_ERROR:
        raise KernelError(words, errno=_error(payload)[0])
    for attribute, value in _attributes(payload[_MESSAGE.size :]):
        if attribute == _IFLA_XDP:
            return _attachments(dict(_attributes(value)))
    return ()


def attach(program: Program, ifindex: int, flags: XdpFlag, expected: Program | None = None) -> None:
    """Attach a program to a device; never replaces another one than the expected.

    Args:
        program: the new one.
        ifindex: in this thread's namespace.
        flags: NATIVE or GENERIC.
        expected: the program that is attached now in this mode; None for none.

    Raises:
        KernelError: EBUSY or EEXIST: something else is attached; EOPNOTSUPP and others: the driver
            cannot.
        PrivilegeError: the caller lacks CAP_NET_ADMIN.
    """
    _set(program.fd, program.label, ifindex, flags, expected)


def detach(ifindex: int, flags: XdpFlag, expected: Program) -> None:
    """Detach a program from a device, if it still is the expected one; raises as `attach` does."""
    _set(-1, "off", ifindex, flags, expected)


def _set(fd: int, label: str, ifindex: int, flags: XdpFlag, expected: Program | None) -> None:
    if expected is None:
        request = _xdp(_FD, fd) + _xdp(_FLAGS, flags | XdpFlag.UPDATE_IF_NOEXIST)
    else:
        request = _xdp(_FD, fd) + _xdp(_FLAGS, flags | XdpFlag.REPLACE)
        request += _xdp(_EXPECTED_FD, expected.fd)
    nested = _attribute(_IFLA_XDP | _NLA_F_NESTED, request)
    _, payload = _ask(_RTM_SETLINK, ifindex, nested, _NLM_F_ACK)
    number, text = _error(payload)
    if number:
        mode = {XdpFlag.GENERIC: "xdpgeneric", XdpFlag.NATIVE: "xdpdrv"}.get(flags, "xdp")
        words = f"ip link set dev {device(ifindex)} {mode} {label}"
        hint = f"the kernel says: {text}" if text and number != errno.EBUSY else ""
        raise attach_refused(words, number, AttachPoint.XDP, hint)


def _attachments(found: dict[int, bytes]) -> tuple[XdpAttachment, ...]:
    mode = found.get(_ATTACHED, b"\0")[0]
    modes = list(XdpMode) if mode == _SEVERAL else [XdpMode(mode)] if mode else []
    return tuple(
        XdpAttachment(each, struct.unpack("=I", found[_PROG_ID + each])[0])
        for each in modes
        if _PROG_ID + each in found  # IFLA_XDP_DRV_PROG_ID and so on follow in the modes' order
    )


def _ask(kind: int, ifindex: int, attributes: bytes, flags: int) -> tuple[int, bytes]:
    """Send one request; the type and content of its answer."""
    body = _MESSAGE.pack(socket.AF_UNSPEC, 0, ifindex, 0, 0) + attributes
    header = _HEADER.pack(_HEADER.size + len(body), kind, _NLM_F_REQUEST | flags, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as route:
        route.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        route.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
        route.sendto(header + body, (0, 0))
        answer = route.recv(_RECEIVE)
    length, answered, answer_flags, _, _ = _HEADER.unpack_from(answer)
    payload = answer[_HEADER.size : length]
    if answered == _NLMSG_ERROR and not answer_flags & _NLM_F_ACK_TLVS:
        payload = payload[: 4 + _HEADER.size]
    return answered, payload


def _error(payload: bytes) -> tuple[int, str]:
    """The error number, 0 for an acknowledgement, and the kernel's own words where it has any."""
    for kind, value in _attributes(payload[4 + _HEADER.size :]):
        if kind == _NLMSGERR_ATTR_MSG:
            return -struct.unpack_from("=i", payload)[0], value.rstrip(b"\0").decode()
    return -struct.unpack_from("=i", payload)[0], ""


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        if length < 4:
            return
        yield kind & _NLA_TYPE_MASK, data[offset + 4 : offset + length]
        offset += length + (-length % 4)


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value  # all lengths here are multiples of 4


def _xdp(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack("=i", value))
