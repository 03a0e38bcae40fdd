"""The BPF programs on a device's way in, and whose they are; reads only.

Sources: include/uapi/linux/bpf.h (BPF_PROG_QUERY), kernel/bpf/syscall.c (bpf_prog_show_fdinfo,
bpf_link_show_fdinfo: `prog_id` in /proc/PID/fdinfo).
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from lbdr.datapath import bpf, bpf_netlink
from lbdr.datapath.bpf_netlink import XdpMode
from lbdr.datapath.bpf_programs import Program
from lbdr.datapath.bpf_wire import AttachPoint
from lbdr.doctor_facts import AttachedProgram, Place
from lbdr.errors import KernelError, LbdrError, PrivilegeError

OUR_NAMES = "lbdr"
"""What the names of lbdr's programs begin with."""

_PLACES = {
    XdpMode.NATIVE: Place.NATIVE,
    XdpMode.GENERIC: Place.GENERIC,
    XdpMode.OFFLOADED: Place.OFFLOADED,
}
_PROG_QUERY = 16
_QUERY = struct.Struct("=IIIIQI")  # ifindex, attach type, query and attach flags, ids, count
_MOST = 64  # BPF_MPROG_MAX
_TCA_BPF_ID = 11  # include/uapi/linux/pkt_cls.h
_INGRESS = 0xFFFFFFF2  # TC_H_CLSACT, TC_H_MIN_INGRESS


def programs(ifindex: int, not_seen: list[tuple[str, str]]) -> tuple[AttachedProgram, ...]:
    """The programs that a device runs on what it receives.

    Args:
        ifindex: in this thread's namespace.
        not_seen: what could not be looked at is added.

    Raises:
        KernelError: no such device.
    """
    found = [(_PLACES[each.mode], each.program_id) for each in bpf_netlink.attached(ifindex)]
    try:
        found += [(Place.TC, number) for number in (*_tcx(ifindex), *_filters(ifindex))]
    except LbdrError as error:
        device = socket.if_indextoname(ifindex)
        not_seen.append((f"programs at tc ingress of {device}", error.message))
    return tuple(_program(place, number) for place, number in found)


def _program(place: Place, number: int) -> AttachedProgram:
    try:
        with Program.by_id(number) as program:
            name = program.info().name
    except (PrivilegeError, KernelError):  # not root, or it has just been detached
        return AttachedProgram(place, number)
    if name.startswith(OUR_NAMES):
        return AttachedProgram(place, number, name, ours=True)
    return AttachedProgram(place, number, name, ours=False, holders=tuple(_holders(number)))


def _holders(number: int) -> Iterator[str]:
    """The processes with an fd of a program, or of a link of it."""
    line = f"prog_id:\t{number}\n"
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(line in each.read_text() for each in (process / "fdinfo").iterdir()):
                yield f"{(process / 'comm').read_text().strip()} (pid {process.name})"
        except OSError:
            continue  # it ended meanwhile, or is not ours to look into


def _tcx(ifindex: int) -> tuple[int, ...]:
    """The programs at tc ingress by links."""
    numbers = (ctypes.c_uint32 * _MOST)()
    place = ctypes.addressof(numbers)
    room = bytearray(
        _QUERY.pack(ifindex, AttachPoint.TCX_INGRESS, 0, 0, place, _MOST).ljust(64, b"\0")
    )
    result = bpf.call(_PROG_QUERY, room)
    if result in (-errno.ENOENT, -errno.EINVAL):
        return ()  # none, or a kernel without tcx
    if result < 0:
        raise bpf.refused("bpftool net list", -result)
    count: int = _QUERY.unpack_from(room)[5]
    return tuple(numbers[:count])


def _filters(ifindex: int) -> Iterator[int]:
    """The programs at tc ingress by filters."""
    try:
        with IPRoute() as route:
            for message in route.get_filters(index=ifindex, parent=_INGRESS):
                if message.get_attr("TCA_KIND") == "bpf":
                    yield from _filter_program(message.get_attr("TCA_OPTIONS"))
    except NetlinkError as error:
        if error.code not in (errno.EINVAL, errno.ENOENT, errno.EOPNOTSUPP):
            raise KernelError("tc filter show ingress", errno=error.code) from error


def _filter_program(options: Any) -> Iterator[int]:
    """The program of a filter, from an attribute that pyroute2 does not know."""
    for attribute in options["attrs"] if options is not None else ():
        value = attribute[1]
        if attribute[0] == "UNKNOWN" and value["header"]["type"] == _TCA_BPF_ID:
            yield struct.unpack_from("=I", value.data, value.offset + 4)[0]
