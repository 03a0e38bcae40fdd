"""What this kernel can do with BPF programs: tried, never read from its version."""

from __future__ import annotations

import errno
import threading
from dataclasses import dataclass

from lbdr.datapath import namespace
from lbdr.datapath.bpf_links import Link
from lbdr.datapath.bpf_programs import Program
from lbdr.datapath.bpf_wire import F_XDP_HAS_FRAGS, AttachPoint, ProgramKind, XdpFlag
from lbdr.errors import KernelError, LbdrError

_PASS = bytes.fromhex("b7000000020000009500000000000000")  # r0 = 2; exit
_NEXT = bytes.fromhex("b7000000ffffffff9500000000000000")  # r0 = TC_ACT_UNSPEC; exit
_LO = 1  # index of lo in every namespace


@dataclass(frozen=True, slots=True)
class Features:
    """What was tried, and worked.

    Args:
        xdp_link: attaching XDP by a link (Linux 5.9).
        tcx_link: attaching tc programs by a link (Linux 6.6).
        xdp_frags: XDP programs for frames in several buffers (Linux 5.18).
    """

    xdp_link: bool
    tcx_link: bool
    xdp_frags: bool


def require_loading() -> None:
    """Require that this process may load programs.

    Raises:
        PrivilegeError: it may not.
        KernelError: the kernel has none.
    """
    Program.load(_PASS, ProgramKind.XDP, name="lbdr_probe").close()


def probe() -> Features:
    """Try what this kernel can, on lo of a network namespace that ends with the call.

    Raises:
        PrivilegeError: the caller may not make namespaces (CAP_SYS_ADMIN) or load programs.
        KernelError: the kernel cannot do without which nothing works: load a program.
    """
    found: list[Features | LbdrError] = []

    def work() -> None:
        try:
            found.append(_probe())
        except LbdrError as error:
            found.append(error)

    thread = threading.Thread(target=work, name="bpf-probe")  # a namespace of its own
    thread.start()
    thread.join()
    (result,) = found
    if isinstance(result, LbdrError):
        raise result
    return result


def _probe() -> Features:
    namespace.enter_new()
    with Program.load(_PASS, ProgramKind.XDP, name="lbdr_probe", attach=AttachPoint.XDP) as program:
        xdp_link = _attaches(program, AttachPoint.XDP)
    with Program.load(_NEXT, ProgramKind.SCHED_CLS, name="lbdr_probe") as program:
        tcx_link = _attaches(program, AttachPoint.TCX_INGRESS)
    return Features(xdp_link, tcx_link, _loads_frags())


def _attaches(program: Program, attach: AttachPoint) -> bool:
    flags = XdpFlag.GENERIC if attach is AttachPoint.XDP else XdpFlag.NONE
    try:
        Link.create(program, _LO, attach, flags).close()
    except KernelError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    return True


def _loads_frags() -> bool:
    try:
        Program.load(
            _PASS,
            ProgramKind.XDP,
            name="lbdr_probe",
            attach=AttachPoint.XDP,
            flags=F_XDP_HAS_FRAGS,
        ).close()
    except KernelError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    return True
