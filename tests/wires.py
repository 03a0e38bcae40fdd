"""The ends of a lab's links, where whole frames are sent and seen."""

from __future__ import annotations

import socket
import struct
from typing import Self

from netlab import INTERFACE, Lab

_ETH_P_ALL = 3
_SOL_PACKET, _PACKET_AUXDATA = 263, 8
_VLAN_VALID, _TPID_VALID = 0x10, 0x40
_AUXDATA = struct.Struct("=IIIHHHH")  # struct tpacket_auxdata
_SECONDS = 5.0


class Wire:
    """The end of a link, and what it sends and gets, with tags.

    Args:
        lab: whose host it is.
        host: its name.
        interface: of the host.
    """

    def __init__(self, lab: Lab, host: str, interface: str = INTERFACE) -> None:
        with lab.entered(host):
            self._socket = socket.socket(
                socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL)
            )
        self._socket.bind((interface, _ETH_P_ALL))
        self._socket.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
        self._socket.settimeout(_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, frame: bytes) -> None:
        self._socket.send(frame)

    def receive(self, mac: str) -> bytes:
        """The next frame that goes to a MAC, from another one's."""
        while True:
            data, auxiliary, _, address = self._socket.recvmsg(4096, 256)
            if address[2] == socket.PACKET_OUTGOING or data[:6].hex(":") != mac:
                continue
            return _with_tag(data, auxiliary)


def _with_tag(data: bytes, auxiliary: list[tuple[int, int, bytes]]) -> bytes:
    """A frame with the outer tag, which the kernel tells beside the data."""
    for level, kind, value in auxiliary:
        if (level, kind) == (_SOL_PACKET, _PACKET_AUXDATA):
            status, _, _, _, _, tci, tpid = _AUXDATA.unpack_from(value)
            if status & _VLAN_VALID:
                there = tpid if status & _TPID_VALID else 0x8100
                return data[:12] + struct.pack("!HH", there, tci) + data[12:]
    return data
