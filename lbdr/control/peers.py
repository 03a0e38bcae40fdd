"""Who is at the other end of the control socket, and whether that may be."""

from __future__ import annotations

import grp
import os
import pwd
import socket
import struct
from dataclasses import dataclass

GROUP = "lbdr"

_UCRED = struct.Struct("=iII")
_SO_PEERGROUPS = 59  # include/uapi/asm-generic/socket.h
_GROUPS_LIMIT = 1024  # bytes: 256 groups; Python reads no more


@dataclass(frozen=True, slots=True)
class Peer:
    """A process, as the kernel says (unix(7), SO_PEERCRED and SO_PEERGROUPS).

    Args:
        pid: its process id.
        uid: its user.
        gid: its group.
        groups: its supplementary groups, which a service may have without its user having them.
    """

    pid: int
    uid: int
    gid: int
    groups: frozenset[int] = frozenset()

    def __str__(self) -> str:
        return f"uid {self.uid}, pid {self.pid}"


def peer_of(connection: socket.socket) -> Peer:
    """Who is at the other end of a connected unix socket."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    try:
        groups = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_LIMIT)
    except OSError:  # more of them: then its user's groups decide
        groups = b""
    pid, uid, gid = _UCRED.unpack(credentials)
    return Peer(pid, uid, gid, frozenset(struct.unpack(f"={len(groups) // 4}I", groups)))


def group_id() -> int | None:
    """The number of the group that may use the socket; None where there is none."""
    try:
        return grp.getgrnam(GROUP).gr_gid
    except KeyError:
        return None


def is_allowed(peer: Peer) -> bool:
    """Root, the daemon's own user, and members of the group."""
    if peer.uid in (0, os.geteuid()):
        return True
    gid = group_id()
    if gid is None:
        return False
    if gid == peer.gid or gid in peer.groups:
        return True
    try:
        user = pwd.getpwuid(peer.uid)
    except KeyError:
        return False
    return gid in os.getgrouplist(user.pw_name, user.pw_gid)
