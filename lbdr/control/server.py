"""The daemon's end of the control socket."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from pydantic import ValidationError

from lbdr.control.peers import GROUP, Peer, group_id, is_allowed, peer_of
from lbdr.control.protocol import (
    ENVELOPE,
    REQUEST_LIMIT,
    VERSION,
    Answer,
    ExplainRequest,
    Failure,
    FlowsRequest,
    Request,
    StatusRequest,
)
from lbdr.errors import ControlError, LbdrError, PrivilegeError, StateError
from lbdr.paths import Paths

log = logging.getLogger(__name__)

_IDLE = 60.0  # seconds that a connection may stay silent
_PATIENCE = 10.0  # seconds in which an answer has to be taken
_GOODBYE = 2.0  # seconds for requests under way when the daemon stops
_CONNECTIONS = 64
"""At most so many; of more, those that are silent for longest are closed, so that nobody can keep
others out, nor use up the daemon's files."""

_NOT_ALLOWED = Failure(
    exit_code=PrivilegeError.exit_code,
    message="you may not use the control socket",
    hint=f"run as root, or join the group {GROUP}",
)

Handler = Callable[[Request], Awaitable[dict[str, Any]]]


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
        self._silent: dict[asyncio.StreamWriter, None] = {}  # in the order of their last word

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
        except StateError:
            listener.close()
            raise
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
        for writer in list(self._silent):
            writer.close()
        if self._connections:
            await asyncio.wait(self._connections, timeout=_GOODBYE)

    def _open_to_group(self) -> None:
        gid = group_id()
        if gid is None:
            log.warning("there is no group %s: the control socket is for root alone", GROUP)
            return
        for entry in (self._paths.run, self._paths.socket):
            if entry.stat().st_gid == gid:
                continue
            try:
                os.chown(entry, -1, gid)
            except PermissionError as error:
                raise StateError(
                    f"{entry} cannot be given to the group {GROUP}: {error.strerror}",
                    hint="run in that group (systemd: Group=lbdr), or with CAP_CHOWN",
                ) from error
        self._paths.socket.chmod(0o660)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)
        try:
            peer = peer_of(writer.get_extra_info("socket"))
            if not is_allowed(peer):
                log.warning("control: refused %s: not root and not in group %s", peer, GROUP)
                await _reply(writer, Answer(failure=_NOT_ALLOWED))
                return
            if len(self._connections) > _CONNECTIONS:
                if not self._silent:
                    return
                oldest = next(iter(self._silent))
                del self._silent[oldest]  # now, since many may come before its task has its turn
                oldest.close()
            while line := await self._line(reader, writer):
                await _reply(writer, await self._answer(line, peer))
        except (TimeoutError, ConnectionError):
            # it went away, had nothing to say, or does not read what it asked for
            writer.transport.abort()
        except ValueError as error:  # a line over the limit
            log.warning("control: %s", error)
        finally:
            writer.close()

    async def _line(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        """The next line; empty when there will be none."""
        self._silent[writer] = None
        try:
            return await asyncio.wait_for(reader.readline(), _IDLE)
        finally:
            self._silent.pop(writer, None)

    async def _answer(self, line: bytes, peer: Peer) -> Answer:
        try:
            request = _parse(line)
            if not isinstance(request, StatusRequest | ExplainRequest | FlowsRequest):
                log.info("control: %s by %s", request.model_dump_json(exclude_none=True), peer)
            return Answer(result=await self._handler(request))
        except LbdrError as error:
            failure = Failure(exit_code=error.exit_code, message=error.message, hint=error.hint)
        except Exception:
            # one bad request must not end the daemon; the journal has what happened
            log.exception("control: request failed")
            failure = Failure(exit_code=1, message="internal error", hint="journalctl -u lbdr")
        return Answer(failure=failure)


async def _reply(writer: asyncio.StreamWriter, answer: Answer) -> None:
    writer.write(answer.model_dump_json(exclude_none=True).encode() + b"\n")
    await asyncio.wait_for(writer.drain(), _PATIENCE)


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
