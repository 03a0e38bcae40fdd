"""How HAProxy comes to life: as a unit of systemd, or as a process of its own."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from contextlib import suppress
from typing import Protocol

from lbdr.haproxy.errors import ProxyError
from lbdr.haproxy.files import Files

UNIT = "lbdr-haproxy.service"
ALERT = re.compile(r"^\[ALERT\]\s+\(\d+\) : (?:config : )?(.*)$")
_SECONDS = 60.0  # a thousand services, on a busy machine


class Launcher(Protocol):
    """How a HAProxy comes to life, when none is there to be reloaded."""

    async def start(self, places: Files) -> None:
        """Start it with the file that is in place; it may not answer yet.

        Raises:
            ProxyError: it does not start.
        """

    async def stop(self, master: int) -> None:
        """End it at once, by its master's process id; it may take a moment."""

    def failure(self, places: Files) -> str:
        """Why it does not run, in HAProxy's words; empty while that is not known."""


class Unit:
    """Under systemd: a unit of its own, which neither stops with lbdr's nor starts without it."""

    async def start(self, places: Files) -> None:  # noqa: ARG002  # the unit has them too
        """Start the unit."""
        code, words = await run("systemctl", "restart", UNIT)
        if code:
            raise ProxyError(
                f"{UNIT} does not start: {words.strip()}", hint=f"journalctl -u {UNIT}"
            )

    async def stop(self, master: int) -> None:  # noqa: ARG002  # systemd knows it
        """Stop the unit."""
        code, words = await run("systemctl", "stop", UNIT)
        if code:
            raise ProxyError(f"{UNIT} does not stop: {words.strip()}")

    def failure(self, places: Files) -> str:  # noqa: ARG002
        """Start waits for the unit's own word."""
        return ""


class OwnProcess:
    """Without systemd, as in labs: a process that nobody's end takes with it.

    Not by HAProxy's own -D: with it a reload that fails ends the master (seen with 2.6.12).
    """

    async def start(self, places: Files) -> None:
        """Start it, detached from this process; what it says goes to a file."""
        master = f"{places.master},mode,600"
        with places.log.open("w") as log_file:
            child = await asyncio.create_subprocess_exec(
                *("setsid", "--fork", "haproxy", "-W", "-S", master, "-f", str(places.config)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
            )
            await child.wait()

    async def stop(self, master: int) -> None:
        """Tell it."""
        with suppress(ProcessLookupError):
            os.kill(master, signal.SIGTERM)

    def failure(self, places: Files) -> str:
        """Its last words."""
        try:
            return _alerts(places.log.read_text(errors="replace"))
        except FileNotFoundError:
            return ""


async def run(*command: str) -> tuple[int, str]:
    """Run a command to its end: its status, and what it said on both streams.

    Raises:
        ProxyError: it is not there, or does not end.
    """
    try:
        child = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
    except FileNotFoundError as error:
        raise ProxyError(
            f"{command[0]} is not installed", hint="apt-get install haproxy"
        ) from error
    try:
        async with asyncio.timeout(_SECONDS):
            words, _ = await child.communicate()
    except TimeoutError as error:
        child.kill()
        await child.wait()
        raise ProxyError(f"{' '.join(command)}: no end after {_SECONDS:g} s") from error
    return child.returncode or 0, words.decode(errors="replace")


def _alerts(words: str) -> str:
    return "; ".join(match[1] for line in words.splitlines() if (match := ALERT.match(line)))
