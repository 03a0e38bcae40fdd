"""A connection to a target: TCP, and TLS over it; always closed."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

from lbdr.health.checks.attempt import Attempt, CheckError, quote
from lbdr.health.results import FailureKind
from lbdr.health.spec import Target, Tls
from lbdr.model import family

_CHUNK = 16384


class Stream:
    """Bytes to and from a target.

    Args:
        attempt: whose connection it is.
        reader: what comes.
        writer: what goes.
    """

    def __init__(
        self, attempt: Attempt, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._attempt = attempt
        self._reader = reader
        self._writer = writer
        self._buffer = b""

    async def send(self, data: bytes) -> None:
        """Send all of it."""
        self._attempt.sent(data)
        self._writer.write(data)
        await self._writer.drain()

    async def some(self) -> bytes:
        """What comes next; nothing at the end."""
        if self._buffer:
            data, self._buffer = self._buffer, b""
            return data
        data = await self._reader.read(_CHUNK)
        if data:
            self._attempt.received(data)
        return data

    async def begins(self, start: bytes, protocol: str) -> None:
        """Make sure, by its first bytes, that an answer speaks a protocol; they stay to be read.

        Raises:
            CheckError: it does not, or ended before.
        """
        data = b""
        while len(data) < len(start) and start.startswith(data):
            more = await self.some()
            if not more:
                raise _ended("its answer", data)
            data += more
        if not data.startswith(start):
            words = f"does not speak {protocol}: it sent {quote(data)}"
            raise CheckError(words, FailureKind.PROTOCOL)
        self._buffer = data

    async def exactly(self, count: int, what: str) -> bytes:
        """So many bytes.

        Args:
            count: bytes.
            what: named where the connection ends before.

        Raises:
            CheckError: it ended before.
        """
        data = b""
        while len(data) < count:
            more = await self.some()
            if not more:
                raise _ended(what, data)
            data += more
        self._buffer = data[count:]
        return data[:count]

    async def until(self, end: bytes, limit: int, what: str) -> bytes:
        """Everything up to a mark, without it.

        Args:
            end: the mark.
            limit: bytes to look at.
            what: named where the connection or the limit ends before.

        Raises:
            CheckError: it ended before.
        """
        data = b""
        while end not in data:
            if len(data) > limit:
                words = f"sent more than {limit} bytes and no end of {what}"
                raise CheckError(words, FailureKind.PROTOCOL)
            more = await self.some()
            if not more:
                raise _ended(what, data)
            data += more
        found, _, self._buffer = data.partition(end)
        return found

    async def start_tls(self, tls: Tls) -> None:
        """Encrypt what follows."""
        if self._buffer:
            # what came before is not to be taken for what comes encrypted (CVE-2011-0411)
            raise CheckError("sent more than its answer to STARTTLS", FailureKind.PROTOCOL)
        name = tls.server_name or str(self._attempt.target.address)
        self._attempt.note(f"TLS handshake, server name {name}")
        await self._writer.start_tls(context_for(tls), server_hostname=name)

    def abort(self) -> None:
        """Close at once."""
        self._writer.transport.abort()


def open_socket(target: Target, kind: socket.SocketKind) -> socket.socket:
    """A socket for a target, from its source address, that does not block; not connected yet."""
    opened = socket.socket(family(target.address.version), kind | socket.SOCK_NONBLOCK)
    try:
        if target.source is not None:
            opened.bind((str(target.source), 0))
    except OSError:
        opened.close()
        raise
    return opened


@contextlib.asynccontextmanager
async def connected(attempt: Attempt, tls: Tls | None = None) -> AsyncIterator[Stream]:
    """A connection to an attempt's target, closed at the end whatever happens.

    Args:
        attempt: whose target it is.
        tls: None for plain TCP.
    """
    target = attempt.target
    attempt.missing = "did not accept a connection"
    with open_socket(target, socket.SOCK_STREAM) as opened:
        where = (str(target.address), target.port)
        await asyncio.get_running_loop().sock_connect(opened, where)
        attempt.note(f"connected to {target}")
        # from here on the transport owns it
        owned = socket.socket(fileno=opened.detach())
    try:
        reader, writer = await asyncio.open_connection(sock=owned)
    except BaseException:
        owned.close()
        raise
    stream = Stream(attempt, reader, writer)
    try:
        if tls is not None:
            attempt.missing = "accepted the connection, but did not complete the TLS handshake"
            await stream.start_tls(tls)
        yield stream
    finally:
        stream.abort()


def context_for(tls: Tls) -> ssl.SSLContext:
    """The context of TLS settings; made anew only when a file of theirs changed.

    Raises:
        CheckError: a file is missing, or is no certificate or key.
    """
    files = (tls.ca_file, tls.certificate, tls.key)
    try:
        times = tuple(Path(name).stat().st_mtime_ns if name else 0 for name in files)
        return _context(tls, times)
    except OSError as error:  # SSLError too
        named = ", ".join(name for name in files if name)
        words = f"could not be asked: the files for TLS ({named}) do not serve: {error}"
        raise CheckError(words, FailureKind.LOCAL) from error


@functools.lru_cache(maxsize=256)
def _context(tls: Tls, _times: tuple[int, ...]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if tls.verify:
        if tls.ca_file:
            context.load_verify_locations(tls.ca_file)
        else:
            context.load_default_certs()
    else:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        # an old modality's or archive's TLS is better checked than not
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
        context.minimum_version = ssl.TLSVersion.TLSv1_2
    if tls.certificate:
        # a key that wants a password is an error: nobody is there to be asked
        context.load_cert_chain(tls.certificate, tls.key or None, password=lambda: "")
    return context


def _ended(what: str, data: bytes) -> CheckError:
    got = f"after {len(data)} bytes of" if data else "before"
    return CheckError(f"closed the connection {got} {what}", FailureKind.CLOSED)
