"""The companion HAProxy as a process: checked, started, reloaded with no connection lost, adopted.

It outlives lbdr's daemon, which finds it by the master's socket. A worker tells the fingerprint of
the configuration that it serves, so whoever comes next knows what there is to do.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
from contextlib import suppress
from dataclasses import replace as changed
from pathlib import Path

from lbdr.errors import ConfigError, Problem
from lbdr.haproxy import answers, files
from lbdr.haproxy.errors import ProxyError
from lbdr.haproxy.files import Files
from lbdr.haproxy.launch import ALERT, UNIT, Launcher, run
from lbdr.haproxy.render.whole import Rendered
from lbdr.haproxy.runtime import Runtime
from lbdr.haproxy.socket_api import ask
from lbdr.haproxy.taken_ports import taken

log = logging.getLogger(__name__)

_PLACE = re.compile(r"\[[^\]\s]*haproxy\.cfg(?:\.new)?:(\d+)\]")
_NO_JIT = (
    "or this process may not have memory that is writable and executable, which HAProxy compiles "
    "regular expressions into: MemoryDenyWriteExecute of its unit"
)
_RELOAD_SECONDS = 60.0  # a new worker with a thousand services, on a busy machine
_HAND_OVER_SECONDS = 15.0  # twice HAProxy's PEER_RESYNC_TIMEOUT of 5 s, and some
_POLL = 0.02
_STOP_SECONDS = 10.0


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
        code, words = await run("haproxy", "-c", "-f", str(self.places.candidate))
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

    async def stop(self, *, grace: float) -> None:
        """End HAProxy: no new connections now, and the open ones by the end of a grace.

        Args:
            grace: seconds.

        Raises:
            ProxyError: it does not end.
        """
        present = await self.processes()
        if present is None:
            return
        states = await self.runtime.server_states_text()
        files.replace(self.places.states, states)
        with suppress(ProcessLookupError):
            os.kill(present.master, signal.SIGUSR1)
        if not await self._ended(grace):
            await self._launcher.stop(present.master)
            if not await self._ended(_STOP_SECONDS):
                raise ProxyError(f"HAProxy, process {present.master}, does not end")

    async def _ended(self, patience: float) -> bool:
        deadline = asyncio.get_running_loop().time() + patience
        while self._alive():
            if asyncio.get_running_loop().time() > deadline:
                return False
            await asyncio.sleep(_POLL)
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
                            f"journalctl -u {UNIT}",
                        )
                    await asyncio.sleep(_POLL)
        except TimeoutError as error:
            raise ProxyError(
                f"HAProxy does not serve configuration {fingerprint} after {_RELOAD_SECONDS:g} s",
                hint=f"its log has the reason: journalctl -u {UNIT}",
            ) from error


def _problems(words: str, rendered: Rendered) -> list[Problem]:
    """HAProxy's words, each with the service of its line."""
    found: list[Problem] = []
    for line in words.splitlines():
        alert = ALERT.match(line)
        if alert is None or "found in configuration" in line:
            continue  # how many there were, in which file
        place = _PLACE.search(line)
        owner = rendered.owner(int(place[1])) if place else ""
        text = _PLACE.sub("", alert[1]).replace("parsing  : ", "")
        hint = _NO_JIT if "jit compilation failed" in text else ""
        message = f"{owner}: HAProxy: {text}" if owner else f"HAProxy: {text}"
        found.append(Problem(message, hint=hint))
    return found or [Problem(f"HAProxy refuses its configuration: {words.strip()}")]
