"""Making veth links of a lab fit for XDP: the peer takes what XDP sends, and checksums are whole.

A veth driver delivers what XDP sends only to a peer that has an XDP program, too, and what XDP
sends has no checksum that somebody would still fill in (drivers/net/veth.c).
"""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from netlab import INTERFACE, Lab

from lbdr.datapath.bpf_links import Link
from lbdr.datapath.bpf_programs import Program
from lbdr.datapath.bpf_wire import AttachPoint, ProgramKind, Verdict, XdpFlag

_SIOCETHTOOL = 0x8946
_ETHTOOL_STXCSUM = 0x17


@contextmanager
def fit_for_xdp(lab: Lab, directors: Sequence[str], senders: Sequence[str]) -> Iterator[None]:
    """Directors' ports take frames that XDP sends, and senders write their checksums themselves.

    Args:
        lab: built.
        directors: hosts that run XDP programs.
        senders: hosts whose packets they forward.
    """
    for host in senders:
        with lab.entered(host):
            _write_checksums(INTERFACE)
    with (
        Program.load(
            _returns(Verdict.PASS), ProgramKind.XDP, name="passes", attach=AttachPoint.XDP
        ) as program,
        lab.entered_switch(),
        ExitStack() as links,
    ):
        for host in directors:
            index = socket.if_nametoindex(host)
            links.enter_context(Link.create(program, index, flags=XdpFlag.NATIVE))
        yield


def _returns(verdict: int) -> bytes:
    """The instructions `r0 = verdict; exit` (Documentation/bpf/standardization)."""
    return struct.pack("=BBhiBBhi", 0xB7, 0, 0, verdict, 0x95, 0, 0, 0)


def _write_checksums(interface: str) -> None:
    """`ethtool -K INTERFACE tx off`."""
    value = ctypes.create_string_buffer(struct.pack("=II", _ETHTOOL_STXCSUM, 0))
    request = struct.pack("16sP", interface.encode(), ctypes.addressof(value)).ljust(40, b"\0")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCETHTOOL, request)
