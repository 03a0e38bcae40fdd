"""smtp: greeting, EHLO, STARTTLS where wanted (RFC 5321, RFC 3207)."""

from __future__ import annotations

import re

from lbdr.health.checks.attempt import Attempt, CheckError, plain, quote
from lbdr.health.checks.stream import Stream, connected
from lbdr.health.results import FailureKind
from lbdr.health.spec import Smtp

_LINE = 2048
_LINES = 100


async def smtp(check: Smtp, attempt: Attempt) -> str:
    """Whether a mail server greets, and answers."""
    async with connected(attempt) as stream:
        attempt.missing = "accepted the connection, but did not greet"
        greeting = await _reply(stream, 220, "greeted")
        attempt.missing = "greeted, but did not answer EHLO"
        offers = await _ask(stream, f"EHLO {check.hello}", 250)
        if check.starttls:
            if "STARTTLS" not in {line.upper().strip() for line in offers}:
                raise CheckError("does not offer STARTTLS", FailureKind.UNEXPECTED)
            attempt.missing = "offers STARTTLS, but did not complete it"
            await _ask(stream, "STARTTLS", 220)
            await stream.start_tls(check.tls)
            attempt.missing = "did not answer EHLO after STARTTLS"
            await _ask(stream, f"EHLO {check.hello}", 250)
        attempt.missing = "answered EHLO, but not QUIT"
        await _ask(stream, "QUIT", 221)
    return f"greeted: {greeting[0]}" if greeting[0] else "greeted"


async def _ask(stream: Stream, command: str, code: int) -> list[str]:
    await stream.send(f"{command}\r\n".encode())
    return await _reply(stream, code, f"answered {command.partition(' ')[0]}")


async def _reply(stream: Stream, code: int, did: str) -> list[str]:
    """The lines of a reply; CheckError where its code is another one."""
    lines: list[str] = []
    for _ in range(_LINES):
        line = await stream.until(b"\n", _LINE, "an SMTP reply")
        match = re.fullmatch(rb"([2-5][0-9]{2})(?:([ -])(.*))?", line.rstrip(b"\r"), re.DOTALL)
        if match is None:
            words = f"does not speak SMTP: it sent {quote(line)}"
            raise CheckError(words, FailureKind.PROTOCOL)
        lines.append(plain(match[3] or b""))
        if match[2] != b"-":
            if int(match[1]) != code:
                words = f"{did} by {int(match[1])} {lines[0]}".rstrip()
                raise CheckError(words, FailureKind.REJECTED)
            return lines
    raise CheckError(f"{did} by more than {_LINES} lines", FailureKind.PROTOCOL)
