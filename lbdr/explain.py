"""Which real server a client gets, and why: what is asked, what is answered, and the table; pure.

What the live programs say is lbdr.explain_live's, what a file alone tells lbdr.explain_offline's.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from pydantic import BaseModel, ConfigDict

from lbdr.errors import EXIT_USAGE, LbdrError
from lbdr.maglev import MaglevServer, MaglevTable
from lbdr.model import Address, Configuration, VirtualService, endpoint

_ENDPOINT = re.compile(r"(?:\[(?P<v6>[^\]]+)\]|(?P<v4>[^:\[\]]+)):(?P<port>[0-9]{1,5})", re.ASCII)


class QuestionError(LbdrError):
    """What was asked for is not there, or not one thing."""

    exit_code = EXIT_USAGE


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Choice(_Model):
    """Who gets a packet.

    Args:
        server: its name; None where there is none, or it is not known.
        address: its RIP.
        slot: of the table.
        by: slot, or fallback (the slot's own server is drained), of the table; old (the slot
            changed, and this server keeps what has no record); record; learned (a flow); ipvs
            (its entry, or it is to decide); nobody.
        why: in words.
    """

    server: str | None = None
    address: str | None = None
    slot: int | None = None
    by: Literal["slot", "fallback", "old", "record", "learned", "ipvs", "nobody"]
    why: str


class Leaves(_Model):
    """Where a frame leaves.

    Args:
        device: by name.
        mac: it goes to.
        vlans: the ids of its tags, the outermost first.
    """

    device: str
    mac: str
    vlans: list[int] = []


class Explanation(_Model):
    """Which real server a client gets.

    Args:
        client: address and port.
        virtual: address and port.
        offline: from a file alone.
        engine: ipvs; or alone: this kernel has none, and the table is lbdr's own.
        server: as `new` has it, like address, slot and why.
        new: who gets a new connection's first packet.
        established: who gets a packet of an open connection; None offline.
        table: whom a table of what IPVS, or lbdr's own table, has now names; None where no table
            decides.
        ipvs: what IPVS's connection table has of the client.
        leaves: where the packet of an open connection leaves, or else that of a new one.
        differences: where these disagree, and why.
        notes: what the answer depends on.
    """

    service: str
    protocol: str
    client: str
    virtual: str
    scheduler: str
    offline: bool = False
    engine: Literal["ipvs", "alone"] = "ipvs"
    server: str | None
    address: str | None
    slot: int | None
    why: str
    new: Choice
    established: Choice | None = None
    table: Choice | None = None
    ipvs: Choice | None = None
    leaves: Leaves | None = None
    differences: list[str] = []
    notes: list[str] = []


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked about.

    Args:
        virtual: the service.
        client: its address.
        client_port: its port.
        port: where to; 0 where it does not matter.
    """

    virtual: VirtualService
    client: Address
    client_port: int
    port: int

    def answer(self, new: Choice, **fields: object) -> Explanation:
        """An explanation whose first answer is that for a new connection."""
        virtual = self.virtual
        where = endpoint(virtual.address, self.port) if self.port else f"{virtual.address} any port"
        told: dict[str, object] = {
            "service": virtual.name,
            "protocol": virtual.protocol.value,
            "client": endpoint(self.client, self.client_port),
            "virtual": where,
            "scheduler": words_of(virtual),
            **new.model_dump(include={"server", "address", "slot", "why"}),
            "new": new,
        }
        return Explanation.model_validate({**told, **fields})

    def name(self, address: Address) -> str:
        """A real server's name; its address where it has none."""
        virtual = self.virtual
        sorry = (virtual.sorry_server,) if virtual.sorry_server else ()
        names = {server.address: server.name for server in (*sorry, *virtual.real_servers)}
        return names.get(address, "") or str(address)

    @property
    def hashed_port(self) -> int:
        """The client's port, where it counts for the table."""
        return self.client_port if "mh-port" in self.virtual.scheduler_flags else 0


def parse_endpoint(text: str) -> tuple[Address, int]:
    """An address and a port: 10.1.2.3:40000, or [2001:db8::1]:40000.

    Raises:
        ValueError: it is none.
    """
    match = _ENDPOINT.fullmatch(text)
    if match is None or not 0 < int(match["port"]) < 1 << 16:
        raise ValueError(f"{text!r} is no IP:PORT, as 10.1.2.3:40000 or [2001:db8::1]:40000")
    return ipaddress.ip_address(match["v4"] or match["v6"]), int(match["port"])


def words_of(virtual: VirtualService) -> str:
    """How a service chooses."""
    words = [virtual.scheduler, *sorted(virtual.scheduler_flags)]
    return " ".join(words + (["persistent"] if virtual.persistence else []))


def asked(
    configuration: Configuration,
    name: str,
    client: Address,
    client_port: int,
    port: int | None,
    *,
    any_port: bool = False,
) -> Asked:
    """What is asked about, checked.

    Args:
        configuration: with the service.
        name: the service's.
        client: its address.
        client_port: its port.
        port: where to; None for the service's first one.
        any_port: a service of any port may be asked about without one.

    Raises:
        QuestionError: there is no such service or port.
    """
    found = {virtual.name: virtual for virtual in configuration.virtual_services}
    virtual = found.get(name)
    if virtual is None:
        names = ", ".join(sorted(found)) or "none"
        raise QuestionError(f"there is no virtual service {name}", hint=f"there is: {names}")
    if virtual.address.version != client.version:
        raise QuestionError(
            f"{name} is IPv{virtual.address.version}, and the client is not",
            hint=f"its VIP is {virtual.address}",
        )
    ranges = virtual.ports.ranges
    if port is None:
        if not ranges and not any_port:
            raise QuestionError(f"{name} has any port", hint="say which one: --port PORT")
        port = ranges[0].first if ranges else 0
    elif ranges and not any(part.first <= port <= part.last for part in ranges):
        raise QuestionError(f"{name} has no port {port}", hint=f"it has {virtual.ports}")
    return Asked(virtual, client, client_port, port)


@dataclass(frozen=True, slots=True)
class InTable:
    """A real server as IPVS has it.

    Args:
        address: its RIP.
        port: its port.
        weight: now.
        last_weight: the last one that was not 0; 0 where there never was one.
    """

    address: Address
    port: int
    weight: int
    last_weight: int


@lru_cache(maxsize=4)  # who asks once asks again
def _table(servers: tuple[MaglevServer, ...], index: int) -> MaglevTable:
    return MaglevTable(servers, index)


def by_table(question: Asked, servers: Sequence[InTable], index: int) -> Choice:
    """Whom the table of an mh service names for a new connection.

    Args:
        question: of a client.
        servers: in the order of the kernel's list.
        index: CONFIG_IP_VS_MH_TAB_INDEX of the kernel.
    """
    table = _table(
        tuple(MaglevServer(server.address, server.port, server.last_weight) for server in servers),
        index,
    )
    client, port = question.client, question.hashed_port
    slot = table.slot(client, port)
    owner = table.slots[slot]
    drained = {place for place, server in enumerate(servers) if not server.weight}
    place = table.choose(client, port, unavailable=drained)
    if place is None or owner < 0:
        why = "no real server has a weight" if owner < 0 or drained else "there is no real server"
        return Choice(slot=slot, by="nobody", why=why)
    address = servers[place].address
    which = f"slot {slot} of {table.size}"
    if place == owner:
        by: Literal["slot", "fallback"] = "slot"
        why = f"{which} is its own"
    else:
        by = "fallback"
        other = question.name(servers[owner].address)
        why = f"{which} is {other}'s, which has weight 0; the fallback finds this one"
    return Choice(server=question.name(address), address=str(address), slot=slot, by=by, why=why)
