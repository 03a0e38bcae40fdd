"""The daemon's end of the control socket."""

from __future__ import annotations

import asyncio
import grp
import json
import logging
import os
import pwd
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from lbdr.control.protocol import (
    ENVELOPE,
    REQUEST_LIMIT,
    VERSION,
    Answer,
    Failure,
    Request,
    StatusRequest,
)
from lbdr.errors import ControlError, LbdrError, StateError
from lbdr.paths import Paths

log = logging.getLogger(__name__)

GROUP = "lbdr"
_UCRED = struct.Struct("=iII")
_IDLE = 60.0  # seconds that a connection may stay silent

Handler = Callable[[Request], Awaitable[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end, as the kernel says (unix(7), SO_PEERCRED)."""

    pid: int
    uid: int
    gid: int

    def __str__(self) -> str:
        return f"uid {self.uid}, pid {self.pid}"


class ControlServer:
    """Listens on the control socket and passes requests to a handler.

    Args:
        paths: of the director; the lock must be held, so that an old socket is no one's.
        handler: does a request and returns the result; an LbdrError becomes a failure.
    """

    def __init__(self, paths: Paths, handler: Handler) -> None:
        self._paths = paths
        self._handler = handler
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen: mode 0660 with group lbdr, where there is one; else root's alone.

        Raises:
            StateError: the socket cannot be made.
        """
        path = str(self._paths.socket)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with suppress(FileNotFoundError):
                self._paths.socket.unlink()
            # made narrow and then opened to the group: never wider than it is to be
            mask = os.umask(0o177)
            try:
                listener.bind(path)
            finally:
                os.umask(mask)
            self._open_to_group()
        except OSError as error:
            listener.close()
            raise StateError(
                f"{path}: {error.strerror or error}", hint="give another --run-dir"
            ) from error
        self._server = await asyncio.start_unix_server(
            self._accept, sock=listener, limit=REQUEST_LIMIT
        )

    async def close(self) -> None:
        """Stop listening and remove the socket; requests under way are answered first."""
        if self._server is None:
            return
        self._server.close()
        with suppress(FileNotFoundError):
            self._paths.socket.unlink()
        current = asyncio.current_task()
        waiting = [task for task in self._connections if task is not current]
        if waiting:
            _, late = await asyncio.wait(waiting, timeout=1.0)
            for task in late:
                task.cancel()

    def _open_to_group(self) -> None:
        gid = _group()
        if gid is None:
            log.warning("there is no group %s: the control socket is for root alone", GROUP)
            return
        for entry in (self._paths.run, self._paths.socket):
            if entry.stat().st_gid != gid:
                os.chown(entry, -1, gid)
        self._paths.socket.chmod(0o660)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)
        peer = _peer(writer)
        try:
            if not _allowed(peer):
                log.warning("control: refused %s: not root and not in group %s", peer, GROUP)
                return
            while line := await asyncio.wait_for(reader.readline(), _IDLE):
                answer = await self._answer(line, peer)
                writer.write(answer.model_dump_json(exclude_none=True).encode() + b"\n")
                await writer.drain()
        except (TimeoutError, ConnectionError):
            pass  # it went away, or had nothing to say
        except ValueError as error:  # a line over the limit
            log.warning("control: %s from %s", error, peer)
        finally:
            writer.close()

    async def _answer(self, line: bytes, peer: Peer) -> Answer:
        try:
            request = _parse(line)
            if not isinstance(request, StatusRequest):
                log.info("control: %s by %s", request.model_dump_json(exclude_none=True), peer)
            return Answer(result=await self._handler(request))
        except LbdrError as error:
            failure = Failure(exit_code=error.exit_code, message=error.message, hint=error.hint)
        except Exception:
            # one bad request must not end the daemon; the journal has what happened
            log.exception("control: request failed")
            failure = Failure(exit_code=1, message="internal error", hint="journalctl -u lbdr")
        return Answer(failure=failure)


def _parse(line: bytes) -> Request:
    try:
        version = json.loads(line).get("version")
    except (ValueError, AttributeError, RecursionError) as error:
        raise ControlError("the request is no JSON object") from error
    if version != VERSION:
        raise ControlError(
            f"the request speaks version {version} of the protocol, this daemon {VERSION}",
            hint="the daemon is of another version than this command: restart it",
        )
    try:
        return ENVELOPE.validate_json(line).request
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ControlError(f"the request is not understood: {place}: {first['msg']}") from error


def _peer(writer: asyncio.StreamWriter) -> Peer:
    connection = writer.get_extra_info("socket")
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    return Peer(*_UCRED.unpack(data))


def _group() -> int | None:
    try:
        return grp.getgrnam(GROUP).gr_gid
    except KeyError:
        return None


def _allowed(peer: Peer) -> bool:
    """Root, the daemon's own user, and members of the group."""
    if peer.uid in (0, os.geteuid()):
        return True
    gid = _group()
    if gid is None:
        return False
    if peer.gid == gid:
        return True
    try:
        user = pwd.getpwuid(peer.uid)
    except KeyError:
        return False
    return gid in os.getgrouplist(user.pw_name, user.pw_gid)
