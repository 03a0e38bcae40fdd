"""The companion HAProxy as a process: checked, started, reloaded with no connection lost, adopted.

It outlives lbdr's daemon, which finds it by the master's socket. A worker tells the fingerprint of
the configuration that it serves, so whoever comes next knows what there is to do.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from contextlib import suppress
from dataclasses import replace as changed
from pathlib import Path
from typing import Protocol

from lbdr.errors import ConfigError, Problem
from lbdr.haproxy import answers, files
from lbdr.haproxy.errors import ProxyError
from lbdr.haproxy.files import Files
from lbdr.haproxy.render.whole import Rendered
from lbdr.haproxy.runtime import Runtime
from lbdr.haproxy.socket_api import ask
from lbdr.haproxy.taken_ports import taken

log = logging.getLogger(__name__)

_PLACE = re.compile(r"\[[^\]\s]*haproxy\.cfg(?:\.new)?:(\d+)\]")
_ALERT = re.compile(r"^\[ALERT\]\s+\(\d+\) : (?:config : )?(.*)$")
_CHECK_SECONDS = 60.0
_RELOAD_SECONDS = 60.0  # a new worker with a thousand services, on a busy machine
_HAND_OVER_SECONDS = 15.0  # twice HAProxy's PEER_RESYNC_TIMEOUT of 5 s, and some
_POLL = 0.02
_UNIT = "lbdr-haproxy.service"


class Launcher(Protocol):
    """How a HAProxy comes to life, when none is there to be reloaded."""

    async def start(self, places: Files) -> None:
        """Start it with the file that is in place; it may not answer yet.

        Raises:
            ProxyError: it does not start.
        """

    def failure(self, places: Files) -> str:
        """Why it does not run, in HAProxy's words; empty while that is not known."""


class Unit:
    """Under systemd: a unit of its own, which neither stops with lbdr's nor starts without it."""

    async def start(self, places: Files) -> None:  # noqa: ARG002  # the unit has them too
        """Start the unit."""
        code, words = await _run("systemctl", "restart", _UNIT)
        if code:
            raise ProxyError(
                f"{_UNIT} does not start: {words.strip()}", hint=f"journalctl -u {_UNIT}"
            )

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

    def failure(self, places: Files) -> str:
        """Its last words."""
        try:
            return _alerts(places.log.read_text(errors="replace"))
        except FileNotFoundError:
            return ""


class Companion:
    """One HAProxy.

    Args:
        places: its files.
        launcher: how it is started.
    """

    def __init__(self, places: Files, launcher: Launcher) -> None:
        self.places = places
        self.runtime = Runtime(places.admin)
        self._launcher = launcher

    async def check(self, rendered: Rendered) -> None:
        """Let HAProxy itself say whether it takes a configuration; changes nothing that runs.

        Raises:
            ConfigError: it does not; each reason with the service that it is of.
        """
        self.places.prepare()
        files.replace(self.places.candidate, rendered.text)
        code, words = await _run("haproxy", "-c", "-f", str(self.places.candidate))
        if code:
            raise ConfigError(_problems(words, rendered))
        for line in words.splitlines():
            if line.startswith("[WARNING]"):
                log.warning("haproxy: %s", line)

    async def apply(self, rendered: Rendered) -> bool:
        """Make HAProxy serve a configuration; says whether anything had to change.

        Server states and persistence are kept over it. Where it does not work out, what served
        before serves on, and its file is back in place.

        Raises:
            ConfigError: HAProxy does not take the configuration; nothing was changed.
            ProxyError: it cannot be started or reloaded.
        """
        self.places.prepare()
        present = await self.processes()
        reloads = present.reloads if present is not None else -1
        if present is not None and await self._serves(rendered.fingerprint):
            return False
        await self.check(rendered)
        before = self.places.config.read_text() if self.places.config.exists() else ""
        if ports := taken(rendered.text, before if present is not None else ""):
            raise ProxyError(
                f"another program of this machine holds {', '.join(ports)}",
                hint="`ss -ltnp` says which: end it, or give the service other ports",
            )
        if present is None:
            self.places.candidate.replace(self.places.config)
            await self._launcher.start(self.places)
        else:
            await self.reload_ready()
            await self.save_states()
            self.places.candidate.replace(self.places.config)
            await ask(self.places.master, "reload")
        try:
            await self._until_served(rendered.fingerprint, reloads)
        except ProxyError:
            if before:
                files.replace(self.places.config, before)
            raise
        return True

    async def processes(self) -> answers.Processes | None:
        """The master and its workers; None where no HAProxy runs.

        A master that loads its configuration answers nobody meanwhile; it is waited for.

        Raises:
            ProxyError: there is a master, and it does not answer.
        """
        deadline = asyncio.get_running_loop().time() + _RELOAD_SECONDS
        while True:
            try:
                return answers.processes(await ask(self.places.master, "show proc"))
            except ProxyError:
                if not self._alive():
                    return None
                if asyncio.get_running_loop().time() > deadline:
                    raise
            await asyncio.sleep(_POLL)

    async def old_workers(self) -> list[answers.Worker]:
        """Workers that a reload left behind, with the connections for which they stay."""
        present = await self.processes()
        found: list[answers.Worker] = []
        for worker in present.old if present else ():
            try:
                answer = await ask(self.places.master, f"@!{worker.pid} show info")
                connections = int(answers.information(answer).get("CurrConns", "0"))
            except ProxyError:
                found.append(worker)  # it ended meanwhile, or is about to
            else:
                found.append(changed(worker, connections=connections))
        return found

    async def reload_ready(self) -> None:
        """Wait until a reload keeps the persistence; a young worker takes some seconds."""
        deadline = asyncio.get_running_loop().time() + _HAND_OVER_SECONDS
        while not await self.runtime.can_hand_over():
            if asyncio.get_running_loop().time() > deadline:
                log.warning("haproxy: reloading although its persistence may be lost")
                return
            await asyncio.sleep(_POLL * 5)
        await self.runtime.mark_tables()

    async def save_states(self) -> None:
        """Keep the server states, so that a reload and a new start begin with them."""
        files.replace(self.places.states, await self.runtime.server_states_text())

    def _alive(self) -> bool:
        """Whether any process has our file: a master that loads answers nobody, and no pid file."""
        config = os.fsencode(self.places.config)
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                words = path.read_bytes().split(b"\0")
                if config in words and {b"-W", b"-Ws"} & set(words):
                    return True
        return False

    async def _serves(self, fingerprint: str) -> bool:
        try:
            return await self.runtime.fingerprint() == fingerprint
        except ProxyError:
            return False

    async def _until_served(self, fingerprint: str, reloads: int) -> None:
        try:
            async with asyncio.timeout(_RELOAD_SECONDS):
                while not await self._serves(fingerprint):
                    present = await self.processes()
                    words = "" if present else self._launcher.failure(self.places)
                    if words:
                        raise ProxyError(f"HAProxy does not start: {words}")
                    if present is not None and present.failed and present.reloads > reloads:
                        raise ProxyError(
                            "HAProxy could not load its new configuration, and serves on with the "
                            "one before",
                            hint="its log has the reason, often a port that another program holds: "
                            f"journalctl -u {_UNIT}",
                        )
                    await asyncio.sleep(_POLL)
        except TimeoutError as error:
            raise ProxyError(
                f"HAProxy does not serve configuration {fingerprint} after {_RELOAD_SECONDS:g} s",
                hint=f"its log has the reason: journalctl -u {_UNIT}",
            ) from error


async def _run(*command: str) -> tuple[int, str]:
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
        async with asyncio.timeout(_CHECK_SECONDS):
            words, _ = await child.communicate()
    except TimeoutError as error:
        child.kill()
        await child.wait()
        raise ProxyError(f"{' '.join(command)}: no end after {_CHECK_SECONDS:g} s") from error
    return child.returncode or 0, words.decode(errors="replace")


def _problems(words: str, rendered: Rendered) -> list[Problem]:
    """HAProxy's words, each with the service of its line."""
    found: list[Problem] = []
    for line in words.splitlines():
        alert = _ALERT.match(line)
        if alert is None or "found in configuration" in line:
            continue  # how many there were, in which file
        place = _PLACE.search(line)
        owner = rendered.owner(int(place[1])) if place else ""
        text = _PLACE.sub("", alert[1]).replace("parsing  : ", "")
        found.append(Problem(f"{owner}: HAProxy: {text}" if owner else f"HAProxy: {text}"))
    return found or [Problem(f"HAProxy refuses its configuration: {words.strip()}")]


def _alerts(words: str) -> str:
    return "; ".join(match[1] for line in words.splitlines() if (match := _ALERT.match(line)))
