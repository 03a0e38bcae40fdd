"""Packet sockets: an interface's Ethernet frames, in and out (packet(7))."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import fcntl
import socket
import struct
from collections.abc import Callable, Collection, Iterable
from types import TracebackType
from typing import Self

from lbdr.datapath.frames import ETHERTYPE_ARP, ETHERTYPE_IPV6
from lbdr.errors import KernelError, PrivilegeError

_SIOCGIFFLAGS = 0x8913
_IFF_UP, _IFF_RUNNING, _IFF_NOARP = 0x1, 0x40, 0x80
_ARPHRD_ETHER = 1
_SO_ATTACH_FILTER = 26
_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, _PACKET_MR_MULTICAST = 263, 1, 0

_ICMPV6, _SOLICITATION, _ADVERTISEMENT = 58, 135, 136
_FILTER_WORDS = 1000  # the kernel takes 4096 instructions

_FULL_ATTEMPTS = 20
_FULL_PAUSE = 0.002  # seconds; the kernel does not tell when a device's queue has room again


class PacketSocket:
    """Frames on an Ethernet interface that is up.

    Args:
        interface: its name.
        protocol: ethertype to receive; 0 only sends.
        filter_program: classic BPF, from arp_filter or neighbour_filter; None receives all.

    Raises:
        PrivilegeError: the caller lacks CAP_NET_RAW.
        KernelError: the interface is missing, down, without carrier, or has no ARP.
    """

    def __init__(
        self, interface: str, protocol: int = 0, filter_program: bytes | None = None
    ) -> None:
        self.interface = interface
        self._name = f"ARP and neighbour discovery on {interface}"
        try:
            # Protocol 0 receives nothing until bind names one: nothing slips past the filter.
            # A sender's protocol is read from its frames (Linux 5.1, commit 75c65772c3d1).
            self._socket = socket.socket(
                socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0
            )
        except PermissionError as error:
            raise PrivilegeError(f"{self._name}: not permitted", hint="run as root") from error
        except OSError as error:
            raise self._failure(error) from error
        try:
            if filter_program is not None:
                _attach(self._socket, filter_program)
            self._socket.bind((interface, protocol))
            self._require_ready()
        except OSError as error:
            self.close()
            raise self._failure(error) from error
        except KernelError:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close it; more than once does no harm.

        The kernel makes the caller wait until no CPU uses the socket any more (packet_release, 10
        ms and more), so inside an event loop another thread waits.
        """
        try:
            asyncio.get_running_loop().run_in_executor(None, self._socket.close)
        except RuntimeError:  # no loop, or it is about to end
            self._socket.close()

    @property
    def mac(self) -> str:
        """The interface's MAC."""
        address: bytes = self._socket.getsockname()[4]
        return address.hex(":")

    def join(self, groups: Iterable[str]) -> None:
        """Let the NIC pass multicast MACs while this socket is open.

        No MLD report is sent, so a switch that snoops may still withhold them.
        """
        try:
            index = socket.if_nametoindex(self.interface)
            for group in set(groups):
                address = bytes.fromhex(group.replace(":", ""))
                request = struct.pack("iHH8s", index, _PACKET_MR_MULTICAST, len(address), address)
                self._socket.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, request)
        except OSError as error:
            raise self._failure(error) from error

    async def send(self, frame: bytes) -> None:
        """Send a frame; waits while the socket's buffer or the device's queue is full.

        Raises:
            KernelError: the interface went down or away, or the queue stays full.
        """
        loop = asyncio.get_running_loop()
        for attempt in range(1, _FULL_ATTEMPTS + 1):
            try:
                await loop.sock_sendall(self._socket, frame)
            except OSError as error:
                if error.errno != errno.ENOBUFS or attempt == _FULL_ATTEMPTS:
                    raise self._failure(error) from error
                await asyncio.sleep(_FULL_PAUSE)
            else:
                return

    def receive(self) -> bytes | None:
        """The next frame; None where none has come.

        Raises:
            KernelError: the interface went down or away.
        """
        try:
            return self._socket.recv(2048)
        except BlockingIOError:
            return None
        except OSError as error:
            raise self._failure(error) from error

    def listen(self, heard: Callable[[], None]) -> None:
        """Have a function called whenever a frame can be received, until deafen."""
        asyncio.get_running_loop().add_reader(self._socket, heard)

    def deafen(self) -> None:
        """Undo listen."""
        asyncio.get_running_loop().remove_reader(self._socket)

    def _require_ready(self) -> None:
        hardware: int = self._socket.getsockname()[3]
        request = struct.pack("16s16x", self.interface.encode())
        (flags,) = struct.unpack_from("H", fcntl.ioctl(self._socket, _SIOCGIFFLAGS, request), 16)
        if hardware != _ARPHRD_ETHER or flags & _IFF_NOARP:
            hint = "put the VIP on the Ethernet interface by which clients come"
            raise KernelError(f"{self._name}: the interface has no ARP", hint=hint)
        if not flags & _IFF_UP:
            raise self._failure(OSError(errno.ENETDOWN, ""))
        if not flags & _IFF_RUNNING:
            hint = f"no carrier: see to the cable, the port or the master of {self.interface}"
            raise KernelError(self._name, errno=errno.ENETDOWN, hint=hint)

    def _failure(self, error: OSError) -> KernelError:
        hints = {
            errno.ENODEV: f"this machine has no interface {self.interface}; `ip link` lists them",
            errno.ENXIO: f"interface {self.interface} went away",
            errno.ENETDOWN: f"ip link set {self.interface} up",
            errno.ENOBUFS: f"the queue of {self.interface} stays full",
        }
        number = error.errno or 0
        return KernelError(self._name, errno=number, hint=hints.get(number, ""))


# --- filters (classic BPF, Documentation/networking/filter.rst) ----------------------------------

_LOAD_WORD, _LOAD_BYTE, _IF_EQUAL, _RETURN = 0x20, 0x30, 0x15, 0x06


def _instruction(code: int, operand: int, equal: int = 0, other: int = 0) -> bytes:
    return struct.pack("=HBBI", code, equal, other, operand)


_ACCEPT = _instruction(_RETURN, 0xFFFFFFFF)
_IGNORE = _instruction(_RETURN, 0)


def arp_filter(addresses: Collection[int]) -> bytes:
    """Takes ARP frames in which another host has, or probes for, one of some IPv4 addresses."""
    return (
        _accept_word(28, addresses)  # sender
        + _instruction(_LOAD_WORD, 28)
        + _require(0)  # a probe
        + _accept_word(38, addresses)  # target
        + _IGNORE
    )


def neighbour_filter(addresses: Collection[int]) -> bytes:
    """Takes neighbour solicitations and advertisements about some IPv6 addresses.

    It looks at the last four bytes of an address alone: it thins, the reader decides.
    """
    return (
        _instruction(_LOAD_BYTE, 20)  # next header
        + _require(_ICMPV6)
        + _instruction(_LOAD_BYTE, 54)  # type
        + _instruction(_IF_EQUAL, _SOLICITATION, equal=2)
        + _instruction(_IF_EQUAL, _ADVERTISEMENT, equal=1)
        + _IGNORE
        + _accept_word(74, {address & 0xFFFFFFFF for address in addresses})  # target
        + _IGNORE
    )


def open_for(interface: str, version: int, addresses: Collection[int]) -> PacketSocket:
    """A socket that receives what other hosts say about some addresses of an IP version."""
    if version == 4:
        return PacketSocket(interface, ETHERTYPE_ARP, arp_filter(addresses))
    return PacketSocket(interface, ETHERTYPE_IPV6, neighbour_filter(addresses))


def _require(value: int) -> bytes:
    return _instruction(_IF_EQUAL, value, equal=1) + _IGNORE


def _accept_word(offset: int, words: Collection[int]) -> bytes:
    if len(words) > _FILTER_WORDS:
        return _ACCEPT
    tests = [_instruction(_IF_EQUAL, word, other=1) + _ACCEPT for word in sorted(words)]
    return _instruction(_LOAD_WORD, offset) + b"".join(tests)


def _attach(packets: socket.socket, program: bytes) -> None:
    # struct sock_fprog: a count and a pointer; the kernel copies what it points to
    buffer = ctypes.create_string_buffer(program, len(program))
    argument = struct.pack("HP", len(program) // 8, ctypes.addressof(buffer))
    packets.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, argument)
