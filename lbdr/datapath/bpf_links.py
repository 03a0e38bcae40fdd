"""Links: a program attached to a device for as long as something holds the link.

A pinned link goes on after the process dies, and its program can be replaced without a gap. What
holds it is its pin or an fd: when the last one goes, the program is detached. `ip link set DEVICE
xdp off` is refused meanwhile. Kernels before Linux 5.9 attach by bpf_netlink alone.

Sources: net/core/dev.c (bpf_xdp_link_attach, dev_xdp_attach), kernel/bpf/tcx.c.
"""

from __future__ import annotations

import errno
import socket
import struct
from pathlib import Path
from typing import Self

from lbdr.datapath import bpf
from lbdr.datapath import bpf_wire as wire
from lbdr.datapath.bpf_infos import LinkInfo, parse_link
from lbdr.datapath.bpf_programs import Program
from lbdr.datapath.bpf_wire import AttachPoint, Command, XdpFlag
from lbdr.errors import KernelError, LbdrError

_DIRECTION = {
    AttachPoint.XDP: "xdp",
    AttachPoint.TCX_INGRESS: "tcx_ingress",
    AttachPoint.TCX_EGRESS: "tcx_egress",
}
_MODE = {XdpFlag.GENERIC: "xdpgeneric", XdpFlag.NATIVE: "xdpdrv"}


class Link(bpf.BpfObject):
    """A program's attachment to a device."""

    kind = "bpf-link"
    noun = "link"
    get_by_id = Command.LINK_GET_FD_BY_ID

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a pinned link.

        Raises:
            LayoutError: the path is pinned to something else.
            PrivilegeError, KernelError: it cannot be opened.
        """
        return cls(bpf.open_kind(path, cls), f"pinned {path}")

    @classmethod
    def create(
        cls,
        program: Program,
        ifindex: int,
        attach: AttachPoint = AttachPoint.XDP,
        flags: XdpFlag = XdpFlag.NONE,
    ) -> Self:
        """Attach a program to a device; never replaces what is attached. Pin it to let it last.

        Args:
            program: loaded for this attach point.
            ifindex: of the device, in this thread's namespace.
            attach: where.
            flags: NATIVE or GENERIC for XDP; by default native where the driver can.

        Raises:
            KernelError: EBUSY: another XDP program is attached; EOPNOTSUPP or EINVAL: the driver,
                or this kernel, cannot.
            PrivilegeError: the caller lacks CAP_NET_ADMIN.
        """
        fd = bpf.call(
            Command.LINK_CREATE, wire.link_create(program.fd, ifindex, attach, int(flags))
        )
        if fd < 0:
            direction = _MODE.get(flags, _DIRECTION[attach])
            words = f"bpftool net attach {direction} {program.label} dev {device(ifindex)}"
            raise attach_refused(words, -fd, attach)
        return cls(fd, f"of {_DIRECTION[attach]} on {device(ifindex)}")

    def info(self) -> LinkInfo:
        """What the kernel says of it."""
        return parse_link(self._info())

    def update(self, program: Program, expected: Program | None = None) -> None:
        """Replace its program in one step; no packet goes without one.

        Args:
            program: the new one.
            expected: the one that it must have now; None for any.

        Raises:
            KernelError: EBUSY: it has another program than `expected`; ENOLINK: the device is gone,
                attach anew; EINVAL: the program is not for this attach point.
            PrivilegeError: the caller lacks CAP_NET_ADMIN.
        """
        attributes = wire.link_update(self.fd, program.fd, expected.fd if expected else None)
        result = bpf.call(Command.LINK_UPDATE, attributes)
        if result == 0:
            return
        words = f"replace the program of bpftool link {self.label} by {program.label}"
        found = self.info()
        if result == -errno.EPERM and expected and found.program_id != expected.info().id:
            hint = f"it has program {found.program_id}: someone else replaced it"
            raise KernelError(words, errno=errno.EBUSY, hint=hint)
        if result == -errno.ENOLINK:
            raise KernelError(words, errno=errno.ENOLINK, hint="its device is gone: attach anew")
        raise attach_refused(words, -result, found.attach)

    def detach(self) -> None:
        """Detach the program now, whoever holds the link; what remains is an empty link.

        Raises:
            PrivilegeError, KernelError: the kernel refuses.
        """
        result = bpf.call(Command.LINK_DETACH, bytearray(struct.pack("=I", self.fd)))
        if result < 0:
            raise bpf.refused(f"bpftool link detach {self.label}", -result)


def device(ifindex: int) -> str:
    """A device's name, for messages; its number where it is gone."""
    try:
        return socket.if_indextoname(ifindex)
    except OSError:
        return f"#{ifindex}"


def attach_refused(words: str, number: int, attach: int, kernel_words: str = "") -> LbdrError:
    """What it means that a program cannot be attached.

    Args:
        words: what was asked.
        number: the error number, positive.
        attach: where.
        kernel_words: what the kernel itself said, where it said something.
    """
    hints = {
        errno.EPERM: "run as root (CAP_NET_ADMIN; loading wants CAP_BPF as well)",
        errno.ENODEV: "no such device in this network namespace; `ip link` lists them",
    }
    if attach == AttachPoint.XDP:
        hints |= {
            errno.EBUSY: "another XDP program is attached (`ip link`), and is left alone: detach "
            "it with what attached it, or `ip link set DEVICE xdp off`",
            errno.EEXIST: "an XDP program is attached in the other mode (`ip link`)",
            errno.EOPNOTSUPP: "the driver has no native XDP: attach in generic mode, or at tc",
            errno.ERANGE: "the MTU is above what the driver takes without xdp.frags",
            errno.EINVAL: "the driver refuses this MTU, LRO or number of channels, the program was "
            "not loaded for XDP, or the kernel has no XDP links (Linux 5.9)",
        }
    elif number == errno.EINVAL:
        hints[number] = "this kernel has no tcx (Linux 6.6): use a clsact filter"
    return bpf.refused(words, number, kernel_words or hints.get(number, ""))
