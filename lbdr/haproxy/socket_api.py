"""One question, one answer on a unix socket of HAProxy's: of a worker, or of the master."""

from __future__ import annotations

import asyncio
from pathlib import Path

from lbdr.haproxy.errors import ProxyError

_LIMIT = 64 << 20  # bytes of an answer: a table with a million clients has about 80 each


async def ask(path: Path, command: str, *, patience: float = 5.0) -> str:
    """Give one command and return the whole answer.

    Args:
        path: of the socket.
        command: one command of the runtime API (management.txt 9.3), without an end of line.
        patience: seconds for all of it.

    Raises:
        ProxyError: nobody answers, in time or at all.
        ValueError: the command is none, or more than one.
    """
    if not command.isprintable() or ";" in command:
        raise ValueError(f"{command!r} is not one command")
    try:
        async with asyncio.timeout(patience):
            return await _exchange(path, command)
    except TimeoutError as error:
        raise ProxyError(
            f"HAProxy on {path} does not answer `{command}` within {patience:g} s",
            hint="see its log: journalctl -u lbdr-haproxy",
        ) from error
    except OSError as error:
        raise ProxyError(
            f"HAProxy on {path} cannot be asked: {error.strerror or error}",
            hint="`systemctl status lbdr-haproxy`: lbdr starts it again with the next change",
        ) from error


async def _exchange(path: Path, command: str) -> str:
    reader, writer = await asyncio.open_unix_connection(str(path))
    try:
        writer.write(command.encode() + b"\n")
        writer.write_eof()  # without it, the master keeps the connection open after its answer
        await writer.drain()
        answer = bytearray()
        while part := await reader.read(1 << 16):
            answer += part
            if len(answer) > _LIMIT:
                raise ProxyError(f"HAProxy's answer to `{command}` is longer than {_LIMIT} bytes")
    finally:
        writer.close()
    return answer.decode(errors="replace")
