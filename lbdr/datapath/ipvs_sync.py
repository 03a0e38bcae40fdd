"""Flows handed over to this host's IPVS, by its own sync protocol.

IPVS takes entries of its connection table from nobody but another director's sync daemon. So we are
that director: a dummy interface that no frame leaves, IPVS's backup daemon listening on it, and the
messages that a master would send. Interface and daemon are there for the hand-over only.

Source: net/netfilter/ipvs/ip_vs_sync.c.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from pyroute2 import AsyncIPRoute
from pyroute2.netlink import NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, genlmsg, nla
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.generic import AsyncGenericNetlinkSocket
from pyroute2.netlink.generic import ipvs as uapi

from lbdr.datapath import ipvs_connections as table
from lbdr.datapath.ipvs_sync_wire import MTU, SYNC_ID, Flow, encode
from lbdr.errors import KernelError, PrivilegeError

INTERFACE = "lbdr-sync"

_GROUP, _PORT = "224.0.0.81", 8848
_STATE_BACKUP = 2
_START = f"ipvsadm --start-daemon backup --mcast-interface {INTERFACE} --syncid {SYNC_ID}"
_MIXED = "real servers of another IP version than their services forbid it: remove those first"
_STOP = "ipvsadm --stop-daemon backup"
_ADD_LINK = f"ip link add {INTERFACE} mtu {MTU} up type dummy"
_DELETE_LINK = f"ip link delete {INTERFACE}"

_WINDOW = 32  # messages under way: 74 KB of a socket's buffer, which is 208 KB by default
_LISTENER = b"%08X:%04X" % (int.from_bytes(socket.inet_aton(_GROUP), sys.byteorder), _PORT)
_POLL = 0.002  # seconds
_QUEUE_SECONDS = 1.0
_SILENT_SECONDS = 5.0
_ANSWER = 10.0  # seconds; the kernel answers within the call, so this is a lost answer
_TURN = 32  # pages of the table between two turns of the event loop


async def hand_over(
    flows: Sequence[Flow], progress: Callable[[int, int], None] | None = None
) -> int:
    """Give flows to IPVS of the calling thread's network namespace, and see that it has them.

    An entry that IPVS has already gets the flow's server, state and timeout. Of two flows with the
    same client and service the later one counts.

    Args:
        flows: their services need not be there yet.
        progress: told how many flows have been sent and how many there are.

    Returns:
        How many IPVS has now: all of them.

    Raises:
        PrivilegeError: the caller lacks CAP_NET_ADMIN.
        KernelError: someone else's backup daemon runs, the kernel refuses, or flows did not arrive.
    """
    if not flows:
        return 0
    wanted = {
        table.identity(
            flow.protocol, flow.client, flow.client_port, flow.virtual, flow.virtual_port
        ): flow
        for flow in flows
    }
    async with _links() as route, _daemons() as daemons:
        await _clear_up(route, daemons)
        async with _interface(route) as index, _backup_daemon(daemons):
            with _sender(index) as sender:
                await _deliver(sender, wanted, progress)
    return len(wanted)


# --- delivering -----------------------------------------------------------------------------------


async def _deliver(
    sender: socket.socket,
    wanted: dict[bytes, Flow],
    progress: Callable[[int, int], None] | None,
) -> None:
    """Send until the table has everything; an error when nothing more arrives."""
    _, disputed = await _differences(wanted)
    missing = set(wanted)  # the first time all: an entry that agrees may be about to expire
    deadline = time.monotonic() + _SILENT_SECONDS
    while missing:
        replaced = [wanted[identity] for identity in missing & disputed]
        others = [wanted[identity] for identity in missing - disputed]
        messages = encode(replaced, replacing=True) + encode(others)
        async for sent in _send(sender, messages):
            if progress is not None:
                progress(len(wanted) - len(missing) + sent, len(wanted))
        before = len(missing)
        missing, disputed = await _differences(wanted)
        if len(missing) < before:
            deadline = time.monotonic() + _SILENT_SECONDS
        elif time.monotonic() > deadline:
            raise KernelError(
                f"{len(missing)} of {len(wanted)} flows handed over did not reach IPVS",
                hint=f"a firewall must let UDP to {_GROUP} port {_PORT} out of and into "
                f"{INTERFACE}, which no frame leaves",
            )
        if missing:
            await asyncio.sleep(_POLL)


async def _send(sender: socket.socket, messages: list[bytes]) -> AsyncIterator[int]:
    """Send no faster than the daemon takes them: it answers nothing, and what overflows is lost.

    Yields:
        How many flows have been sent.
    """
    sent = 0
    for start in range(0, len(messages), _WINDOW):
        window = messages[start : start + _WINDOW]
        try:
            for message in window:
                sender.send(message)
        except OSError as error:
            raise KernelError(
                f"sending to {_GROUP} port {_PORT} on {INTERFACE}",
                errno=error.errno or 0,
                hint="a firewall must let it out",
            ) from error
        deadline = time.monotonic() + _QUEUE_SECONDS
        # the daemon is a thread of the kernel's, which tells nobody
        while _queued() and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(_POLL)
        sent += sum(message[4] for message in window)
        yield sent


def _queued() -> bool:
    """Whether the daemon's socket has messages that it has not taken yet (proc(5), net/udp)."""
    for line in Path("/proc/thread-self/net/udp").read_bytes().splitlines():
        fields = line.split(None, 5)
        if fields[1] == _LISTENER and not fields[4].endswith(b":00000000"):
            return True
    return False


async def _differences(wanted: dict[bytes, Flow]) -> tuple[set[bytes], set[bytes]]:
    """Flows that the table has not as wanted, and those of them that it has at another server."""
    agreed: set[bytes] = set()
    disputed: set[bytes] = set()
    for number, lines in enumerate(table.pages(), start=1):
        for identity, server in table.servers(lines):
            flow = wanted.get(identity)
            if flow is not None:
                right = server == table.server(flow.server, flow.virtual_port)
                (agreed if right else disputed).add(identity)
        if number % _TURN == 0:
            await asyncio.sleep(0)
    return set(wanted) - agreed | disputed, disputed


# --- what is there for the time of the hand-over --------------------------------------------------


@asynccontextmanager
async def _links() -> AsyncIterator[Any]:
    """A socket for requests about interfaces."""
    route = AsyncIPRoute()
    try:
        await route.setup_endpoint()
        yield route
    finally:
        route.close()


@asynccontextmanager
async def _daemons() -> AsyncIterator[Any]:
    """A socket for IPVS's requests about its daemons."""
    async with _DaemonSocket(flags=0) as sock:
        try:
            await sock.bind(uapi.GENL_NAME, _DaemonMessage)
        except NetlinkError as error:
            raise KernelError("this kernel has no IPVS", hint="modprobe ip_vs") from error
        yield sock


class _DaemonSocket(AsyncGenericNetlinkSocket):  # type: ignore[misc]  # pyroute2 is untyped
    module_err_level = "debug"  # an error is raised, and told once


class _DaemonMessage(genlmsg):  # type: ignore[misc]
    """Requests about daemons; pyroute2's own class has no attributes for them."""

    prefix = "IPVS_CMD_ATTR_"
    nla_map = (
        ("IPVS_CMD_ATTR_UNSPEC", "none"),
        ("IPVS_CMD_ATTR_SERVICE", "none"),
        ("IPVS_CMD_ATTR_DEST", "none"),
        ("IPVS_CMD_ATTR_DAEMON", "daemon"),
    )

    class daemon(nla):  # type: ignore[misc]  # noqa: N801  # nla_map names it
        prefix = "IPVS_DAEMON_ATTR_"
        nla_flags = 0x8000  # NLA_F_NESTED
        nla_map = (
            ("IPVS_DAEMON_ATTR_UNSPEC", "none"),
            ("IPVS_DAEMON_ATTR_STATE", "uint32"),
            ("IPVS_DAEMON_ATTR_MCAST_IFN", "asciiz"),
            ("IPVS_DAEMON_ATTR_SYNC_ID", "uint32"),
        )


async def _send_request(
    daemons: Any, command: int, flags: int, *attributes: tuple[str, Any]
) -> AsyncIterator[Any]:
    """Send a request, which the kernel has carried out when this returns; its answers to come."""
    message = _DaemonMessage()
    message["cmd"], message["version"] = command, 1
    named = [(f"IPVS_DAEMON_ATTR_{name}", value) for name, value in attributes]
    if named:
        message["attrs"] = [("IPVS_CMD_ATTR_DAEMON", {"attrs": named})]
    answers: AsyncIterator[Any] = await daemons.nlm_request(
        message, msg_type=daemons.prid, msg_flags=NLM_F_REQUEST | flags
    )
    return answers


async def _request(
    daemons: Any, command: int, flags: int, *attributes: tuple[str, Any]
) -> list[Any]:
    async with asyncio.timeout(_ANSWER):
        return [
            answer async for answer in await _send_request(daemons, command, flags, *attributes)
        ]


async def _running(daemons: Any) -> tuple[str, int] | None:
    """Interface and syncid of the backup daemon, if there is one."""
    with _asking("ipvsadm --list --daemon"):
        answers = await _request(daemons, uapi.IPVS_CMD_GET_DAEMON, NLM_F_DUMP)
    for answer in answers:
        daemon = answer.get_attr("IPVS_CMD_ATTR_DAEMON")
        if daemon is not None and daemon.get_attr("IPVS_DAEMON_ATTR_STATE") == _STATE_BACKUP:
            interface = daemon.get_attr("IPVS_DAEMON_ATTR_MCAST_IFN")
            return str(interface), int(daemon.get_attr("IPVS_DAEMON_ATTR_SYNC_ID"))
    return None


async def _clear_up(route: Any, daemons: Any) -> None:
    """Remove what a hand-over left that was killed; someone else's daemon is an error."""
    running = await _running(daemons)
    if running is not None:
        if running[0] != INTERFACE:
            raise _occupied(running)
        await _stop(daemons)
    with _asking(_DELETE_LINK):
        for index in await route.link_lookup(ifname=INTERFACE, kind="dummy"):
            await route.link("del", index=index)


def _occupied(running: tuple[str, int]) -> KernelError:
    interface, sync_id = running
    return KernelError(
        _START,
        errno=errno.EEXIST,
        hint=f"IPVS has one backup daemon, and it listens on {interface} with syncid {sync_id} "
        f"(keepalived's lvs_sync_daemon?): end it by who started it, or by `{_STOP}`, and again",
    )


@asynccontextmanager
async def _interface(route: Any) -> AsyncIterator[int]:
    """The dummy interface; its index."""
    with _asking(_ADD_LINK):
        await route.link("add", ifname=INTERFACE, kind="dummy", mtu=MTU)
    try:
        with _asking(_ADD_LINK):
            (index,) = await route.link_lookup(ifname=INTERFACE)
            await route.link("set", index=index, state="up")
        yield index
    finally:
        with _asking(_DELETE_LINK, gone=errno.ENODEV):
            await route.link("del", ifname=INTERFACE)


@asynccontextmanager
async def _backup_daemon(daemons: Any) -> AsyncIterator[None]:
    """IPVS's backup daemon on our interface."""
    try:
        with _asking(_START, hint=_MIXED):
            await _request(
                daemons,
                uapi.IPVS_CMD_NEW_DAEMON,
                NLM_F_ACK,
                ("STATE", _STATE_BACKUP),
                ("MCAST_IFN", INTERFACE),
                ("SYNC_ID", SYNC_ID),
            )
    except KernelError as error:
        running = await _running(daemons) if error.errno == errno.EEXIST else None
        if running is not None:  # started since we looked
            raise _occupied(running) from error
        raise
    try:
        yield
    finally:
        await _stop(daemons)


async def _stop(daemons: Any) -> None:
    """Stop our daemon, or see that it has stopped.

    One that is stopped before its thread ran for the first time is stopped with EINTR
    (kernel/kthread.c), and netlink answers a request that ended so with nothing at all
    (net/netlink/af_netlink.c, netlink_rcv_skb): so the answer is not waited for.
    """
    with _asking(_STOP):
        await _send_request(daemons, uapi.IPVS_CMD_DEL_DAEMON, NLM_F_ACK, ("STATE", _STATE_BACKUP))
    running = await _running(daemons)
    if running is not None and running[0] == INTERFACE:
        raise KernelError(f"{_STOP}: it still runs")


@contextmanager
def _sender(index: int) -> Iterator[socket.socket]:
    """A socket whose messages go to the daemon, and never leave this host (TTL 0)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        choice = struct.pack("=4s4si", bytes(4), bytes(4), index)  # struct ip_mreqn
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, choice)
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 0)
        try:
            sender.connect((_GROUP, _PORT))
        except OSError as error:
            raise KernelError(
                f"sending to {_GROUP} on {INTERFACE}", errno=error.errno or 0
            ) from error
        yield sender


@contextmanager
def _asking(command: str, hint: str = "", gone: int = 0) -> Iterator[None]:
    """Errors of netlink as ours, with the command an administrator would have typed.

    Args:
        command: what is asked for.
        hint: the remedy where the kernel finds the request invalid.
        gone: the error that says that what is to go has gone already.
    """
    try:
        yield
    except NetlinkError as error:
        if error.code == gone:
            return
        if error.code == errno.EPERM:
            raise PrivilegeError(
                f"{command}: not permitted", hint="run as root (CAP_NET_ADMIN)"
            ) from error
        invalid = error.code == errno.EINVAL
        raise KernelError(command, errno=error.code, hint=hint if invalid else "") from error
    except OSError as error:  # or TimeoutError: no answer
        raise KernelError(command, errno=error.errno or errno.ETIMEDOUT) from error
