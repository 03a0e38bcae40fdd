"""IPVS of this network namespace: what is there, and changing it.

Netlink requests are answered while they are sent: when send() returns, the kernel has done the work
and the answers are in the socket's buffer. So nothing here waits, and many operations go into one
send. Callers with an event loop split long work by `BATCH`.
"""

from __future__ import annotations

import errno
import itertools
import logging
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Self

from pyroute2 import NetlinkError
from pyroute2.netlink import NETLINK_GENERIC, SOL_NETLINK, genlmsg
from pyroute2.netlink.generic import AsyncGenericNetlinkSocket
from pyroute2.netlink.generic.ipvs import GENL_NAME

from lbdr.datapath import ipvs_wire as wire
from lbdr.errors import KernelError, LbdrError, NoIpvsError, PrivilegeError
from lbdr.model import (
    Key,
    ObservedRealServer,
    ObservedService,
    Timeouts,
)
from lbdr.operations import (
    AddRealServer,
    AddService,
    DeleteRealServer,
    DeleteService,
    IpvsOperation,
    SetService,
)

BATCH = 64
"""Operations in one send: their acknowledgements fit the default receive buffer several times."""

_NETLINK_EXT_ACK = 11  # include/uapi/linux/netlink.h
_NETLINK_CAP_ACK = 10
_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_NLM_F_DUMP_INTR = 0x10
_NLM_F_ACK_TLVS = 0x200
_NLMSGERR_ATTR_MSG = 1
_HEADER = struct.Struct("=IHHII")
_RECEIVE = 1 << 16
_DUMP_TRIES = 5
_LIST = "ipvsadm -Ln"
_TIMEOUTS = "ipvsadm -L --timeout"


class _Discovery(AsyncGenericNetlinkSocket):  # type: ignore[misc]  # pyroute2 is untyped
    """Asks for IPVS's family number, which loads the module where there is one."""

    module_err_level = "debug"  # an error is raised, and told once


class Ipvs:
    """A connection to IPVS in the network namespace of the calling thread.

    Made by `open`. Not for use by several threads at once.
    """

    def __init__(self, sock: socket.socket, family_id: int) -> None:
        self._socket = sock
        self._family_id = family_id
        self._sequence = itertools.count(1)

    @classmethod
    async def open(cls) -> Self:
        """Connect, loading the kernel's module if it is not loaded.

        Raises:
            NoIpvsError: this kernel has no IPVS.
        """
        async with _Discovery(flags=0) as discovery:
            try:
                await discovery.bind(GENL_NAME, genlmsg)
            except NetlinkError as error:
                if error.code != errno.ENOENT:
                    raise KernelError("ask for IPVS by netlink", errno=error.code) from error
                raise NoIpvsError(
                    "this kernel has no IPVS",
                    hint="modprobe ip_vs; if that fails, run a kernel with CONFIG_IP_VS "
                    "(Debian's linux-image-amd64 has it)",
                ) from error
            family_id = int(discovery.prid)
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_GENERIC)
        sock.setsockopt(SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        sock.setsockopt(SOL_NETLINK, _NETLINK_EXT_ACK, 1)
        sock.bind((0, 0))
        return cls(sock, family_id)

    def close(self) -> None:
        """Close the connection; IPVS stays as it is."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- what is there ---------------------------------------------------------------------------

    def services(self) -> list[ObservedService]:
        """All virtual services, without their real servers, in no order.

        Raises:
            PrivilegeError, KernelError: the kernel refuses.
        """
        for _ in range(_DUMP_TRIES):
            found = self._dump(wire.dump_services(self._family_id, self._next()), _LIST)
            if found is not None:
                with _understood(_LIST):
                    return [wire.parse_service(payload) for payload in found]
        raise KernelError(_LIST, errno=errno.EINTR, hint="IPVS changes without end; again")

    def real_servers(self, key: Key) -> tuple[ObservedRealServer, ...]:
        """The real servers of a virtual service, in the kernel's list order (last added first)."""
        for _ in range(_DUMP_TRIES):
            request = wire.dump_real_servers(self._family_id, self._next(), key)
            found = self._dump(request, _LIST)
            if found is not None:
                with _understood(_LIST):
                    return tuple(wire.parse_real_server(payload, key.version) for payload in found)
        raise KernelError(_LIST, errno=errno.EINTR, hint="IPVS changes without end; again")

    def service(self, key: Key) -> ObservedService | None:
        """One virtual service with its real servers; None where there is none."""
        request = wire.get_service(self._family_id, self._next(), key)
        self._send(request)
        found = None
        for kind, flags, payload in self._answers():
            if kind == _NLMSG_ERROR:
                code, text = _error(payload, flags)
                if code == errno.ESRCH:
                    return None
                if code:
                    raise _refused(f"{_LIST} ({key})", code, text)
                break
            with _understood(_LIST):
                found = wire.parse_service(payload)
        if found is None:
            return None
        return _with_real_servers(found, self.real_servers(key))

    def observe(self) -> Iterator[ObservedService]:
        """All virtual services with their real servers, one by one."""
        for found in self.services():
            yield _with_real_servers(found, self.real_servers(found.service.key))

    def timeouts(self) -> Timeouts:
        """IPVS's timeouts of this namespace, in seconds."""
        self._send(wire.get_timeouts(self._family_id, self._next()))
        timeouts = Timeouts()
        for kind, flags, payload in self._answers():
            if kind == _NLMSG_ERROR:
                code, text = _error(payload, flags)
                if code:
                    raise _refused(_TIMEOUTS, code, text)
                break
            with _understood(_TIMEOUTS):
                timeouts = wire.parse_timeouts(payload)
        return timeouts

    # --- do it -----------------------------------------------------------------------------------

    def apply(self, operations: Sequence[IpvsOperation]) -> list[LbdrError | None]:
        """Do some operations, all in one send; the answer to each is in its place.

        Args:
            operations: at most BATCH of them. A later one is tried also when an earlier one failed.

        Returns:
            None for what is now as asked (what is to be deleted and is not there is so, too), or
            the error.
        """
        if len(operations) > BATCH:
            raise ValueError(f"{len(operations)} operations in one batch, at most {BATCH}")
        pending: dict[int, int] = {}
        messages = []
        for place, operation in enumerate(operations):
            sequence = self._next()
            pending[sequence] = place
            messages.append(wire.encode(operation, self._family_id, sequence))
        results: list[LbdrError | None] = [None] * len(operations)
        self._send(b"".join(messages))
        while pending:
            for kind, flags, sequence, payload in _split(self._receive()):
                place = pending.pop(sequence, -1)
                if place < 0 or kind != _NLMSG_ERROR:
                    continue
                code, text = _error(payload, flags)
                if code and not _already_gone(operations[place], code):
                    results[place] = _refused(
                        operations[place].command, code, text, operations[place]
                    )
        return results

    # --- transport -------------------------------------------------------------------------------

    def _next(self) -> int:
        self._last = next(self._sequence) & 0xFFFFFFFF
        return self._last

    def _send(self, data: bytes) -> None:
        try:
            self._socket.send(data)
        except OSError as error:
            raise KernelError("netlink request to IPVS", errno=error.errno or 0) from error

    def _receive(self) -> bytes:
        """A datagram; KernelError where answers were lost (ENOBUFS), so that nobody waits."""
        try:
            return self._socket.recv(_RECEIVE)
        except OSError as error:
            raise KernelError("netlink answer of IPVS", errno=error.errno or 0) from error

    def _answers(self) -> Iterator[tuple[int, int, memoryview]]:
        """The answers to the last request; the caller stops at the last one."""
        while True:
            for kind, flags, sequence, payload in _split(self._receive()):
                if sequence == self._last:
                    yield kind, flags, payload

    def _dump(self, request: bytes, command: str) -> list[memoryview] | None:
        """All answers to a dump; None when the kernel says that it was interrupted by a change."""
        self._send(request)
        found: list[memoryview] = []
        interrupted = False
        for kind, flags, payload in self._answers():
            interrupted |= bool(flags & _NLM_F_DUMP_INTR)
            if kind == _NLMSG_DONE:
                break
            if kind == _NLMSG_ERROR:
                code, text = _error(payload, flags)
                raise _refused(command, code, text)
            found.append(payload)
        return None if interrupted else found


@contextmanager
def _understood(command: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError) as error:
        raise KernelError(f"{command}: the kernel's answer is not understood: {error}") from error


def _with_real_servers(
    found: ObservedService, real_servers: tuple[ObservedRealServer, ...]
) -> ObservedService:
    wanted = replace(found.service, real_servers=tuple(entry.real_server for entry in real_servers))
    return replace(found, service=wanted, real_servers=real_servers)


def _split(data: bytes) -> Iterator[tuple[int, int, int, memoryview]]:
    """The netlink messages of one datagram: type, flags, sequence, what follows the header."""
    view = memoryview(data)
    offset = 0
    while offset + _HEADER.size <= len(view):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(view, offset)
        if length < _HEADER.size or offset + length > len(view):
            raise ValueError(f"netlink message of length {length} at {offset} of {len(view)}")
        yield kind, flags, sequence, view[offset + _HEADER.size : offset + length]
        offset += length + (-length % 4)


def _error(payload: memoryview, flags: int) -> tuple[int, str]:
    """The errno (0 for an acknowledgement) and the kernel's own words, where it has any."""
    code = -struct.unpack_from("=i", payload)[0]
    text = ""
    if flags & _NLM_F_ACK_TLVS:
        rest = payload[4 + _HEADER.size :]
        while len(rest) >= 4:
            length, kind = struct.unpack_from("=HH", rest)
            if kind == _NLMSGERR_ATTR_MSG:
                text = bytes(rest[4:length]).rstrip(b"\0").decode(errors="replace")
            rest = rest[length + (-length % 4) :] if length >= 4 else rest[:0]
    return code, text


def _already_gone(operation: IpvsOperation, code: int) -> bool:
    if isinstance(operation, DeleteService):
        return code == errno.ESRCH
    return isinstance(operation, DeleteRealServer) and code in (errno.ENOENT, errno.ESRCH)


def _refused(
    command: str, code: int, text: str, operation: IpvsOperation | None = None
) -> LbdrError:
    if code == errno.EPERM:
        return PrivilegeError(f"{command}: not permitted", hint="run as root (CAP_NET_ADMIN)")
    hint = text
    if isinstance(operation, AddService | SetService) and code == errno.ENOENT:
        scheduler = operation.service.scheduler
        hint = f"this kernel has no scheduler {scheduler}: modprobe ip_vs_{scheduler}"
    elif isinstance(operation, AddService | AddRealServer) and code == errno.EEXIST:
        hint = "it was added meanwhile"
    if text:
        logging.getLogger(__name__).debug("%s: the kernel says: %s", command, text)
    return KernelError(command, errno=code, hint=hint)
