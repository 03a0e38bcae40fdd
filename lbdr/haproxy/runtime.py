"""The runtime API of the worker that serves: what changes without a reload."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from lbdr.haproxy import answers
from lbdr.haproxy.errors import ProxyError
from lbdr.haproxy.render.dicom import REFUSALS
from lbdr.haproxy.render.persistence import MARKERS
from lbdr.haproxy.socket_api import ask
from lbdr.haproxy.states import Cut, RuntimeOperation, SetAddress, SetState, SetWeight
from lbdr.model import Address


class AdminState(StrEnum):
    """A real server's state as HAProxy calls it.

    lbdr's `drain` is HAProxy's maintenance: open connections finish, and clients with persistence
    go elsewhere too, as they do in IPVS. HAProxy's own drain still takes those.
    """

    READY = "ready"
    DRAIN = "drain"
    MAINTENANCE = "maint"


class Runtime:
    """The runtime API on a unix socket.

    Args:
        socket: the worker's own.
        timeout: seconds for one answer.
    """

    def __init__(self, socket: Path, *, timeout: float = 5.0) -> None:
        self._socket = socket
        self._timeout = timeout

    async def set_state(self, proxy: str, server: str, state: AdminState) -> None:
        """Let a real server take connections, or not.

        Raises:
            ProxyError: there is no such server, or nobody answers.
        """
        await self._set(f"set server {_place(proxy, server)} state {state.value}")

    async def set_weight(self, proxy: str, server: str, weight: int) -> None:
        """Set a weight, 0 to 256, over that of the configuration."""
        if not 0 <= weight <= 256:
            raise ValueError(f"a weight of {weight}")
        await self._set(f"set server {_place(proxy, server)} weight {weight}")

    async def set_address(self, proxy: str, server: str, address: Address, port: int) -> None:
        """Move a real server; open connections stay with the old address."""
        command = f"set server {_place(proxy, server)} addr {address}"
        if port:
            command += f" port {port}"
        answer = await self._ask(command)
        if "changed" not in answer and "no need to change" not in answer:
            raise _refused(command, answer)

    async def apply(self, operation: RuntimeOperation) -> None:
        """Do what lbdr.haproxy.states found.

        Raises:
            ProxyError: HAProxy refuses it, or does not answer.
        """
        match operation:
            case SetState(proxy, server, ready):
                state = AdminState.READY if ready else AdminState.MAINTENANCE
                await self.set_state(proxy, server, state)
            case SetWeight(proxy, server, weight):
                await self.set_weight(proxy, server, weight)
            case SetAddress(proxy, server, address, port):
                await self.set_address(proxy, server, address, port)
            case Cut(proxy, server):
                await self.cut(proxy, server)

    async def cut(self, proxy: str, server: str) -> None:
        """End all connections of a real server, at once: what `halt` adds to `drain`."""
        await self._set(f"shutdown sessions server {_place(proxy, server)}")

    async def forget(self, proxy: str, key: str) -> None:
        """Take a client's persistence from it."""
        if not key.isprintable() or set(key) & set(" ;\\"):
            raise ValueError(f"{key!r} is no key")
        await self._set(f"clear table {_word(proxy)} key {key}")

    async def statistics(self) -> list[answers.Statistics]:
        """What was counted, of every frontend, pool and real server."""
        return answers.statistics(await self._ask("show stat"))

    async def information(self) -> dict[str, str]:
        """The worker itself: Pid, CurrConns, description and so on."""
        return answers.information(await self._ask("show info"))

    async def fingerprint(self) -> str:
        """Of the configuration that the worker serves; empty for one that lbdr did not render."""
        words = (await self.information()).get("description", "").split()
        return words[1] if len(words) == 2 and words[0] == "lbdr" else ""

    async def server_states(self) -> list[answers.ServerState]:
        """Every real server."""
        return answers.server_states(await self.server_states_text())

    async def server_states_text(self) -> str:
        """The same as HAProxy writes it, for its own file of server states."""
        return await self._ask("show servers state")

    async def table(self, proxy: str) -> list[answers.TableEntry]:
        """The persistence of a pool."""
        found = answers.table(await self._ask(f"show table {_word(proxy)}"))
        return [entry for entry in found if entry.key not in MARKERS.values()]

    async def refusals(self) -> dict[tuple[str, str], int]:
        """Refused associations: (service, reason) -> how many, over all reloads."""
        found: dict[tuple[str, str], int] = {}
        for entry in answers.table(await self._ask(f"show table {REFUSALS}")):
            service, _, reason = entry.key.rpartition("/")
            found[service, reason] = int(entry.data.get("conn_cnt", "0"))
        return found

    async def can_hand_over(self) -> bool:
        """Whether a reload now would keep the persistence.

        A worker hands its tables to the next one only after it has itself finished to ask others
        for theirs (src/peers.c, PEERS_RESYNC_FINISHED): some 10 s after a first start, for want of
        an answer. With empty tables there is nothing to hand over.
        """
        known = answers.tables(await self._ask("show table"))
        if not any(used for _, _, used in known):
            return True
        return answers.peers_finished(await self._ask("show peers"))

    async def mark_tables(self) -> None:
        """Write what is handed over last into each table, so that a new worker knows when."""
        for name, kind, used in answers.tables(await self._ask("show table")):
            if used and kind in MARKERS and name != REFUSALS:
                await self._set(f"set table {name} key {MARKERS[kind]}")

    async def _set(self, command: str) -> None:
        answer = await self._ask(command)
        if answer.strip():
            raise _refused(command, answer)

    async def _ask(self, command: str) -> str:
        return await ask(self._socket, command, patience=self._timeout)


def _place(proxy: str, server: str) -> str:
    return f"{_word(proxy)}/{_word(server)}"


def _word(name: str) -> str:
    if not name or not all(character.isalnum() or character in "_.-:" for character in name):
        raise ValueError(f"{name!r} is no name")
    return name


def _refused(command: str, answer: str) -> ProxyError:
    return ProxyError(f"HAProxy refuses `{command}`: {' '.join(answer.split())}")
