"""What the live programs, IPVS's table and its entries say of a client, as one answer; pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from lbdr.datapath.bpf_wire import Verdict
from lbdr.datapath.ipvs_connections import Connection
from lbdr.datapath.xdp_explain import By, Explained
from lbdr.datapath.xdp_layout import FALLBACK, TICK_SHIFT, Reason, RecordState
from lbdr.explain import Asked, Choice, Explanation, Leaves
from lbdr.model import Address
from lbdr.tracking import Record

NO_IPVS = "this kernel has no IPVS"

_By = Literal["slot", "fallback", "old", "record", "learned"]

_WHY: Mapping[Reason, str] = {
    Reason.INACTIVE: "this host does not have the VIP",
    Reason.OTHER_HOST: "the frame is for another host",
    Reason.OTHER_VLAN: "the VIP is in another VLAN or on another device",
    Reason.MARTIAN: "no packet may come from that address",
    Reason.MTU: "it is longer than the way to its server allows",
    Reason.NEIGHBOUR: "the MAC of its server is not known",
    Reason.LOCAL: "its server is this host",
    Reason.FALLBACK: "the fallback found no server in 32 tries",
    Reason.NO_SERVER: "it has no server that lives",
    Reason.NOT_LEARNED: "no flow is learned for it",
    Reason.REFRESH: "IPVS is to see that the flow lives",
    Reason.CLOSING: "the flow is closing, and IPVS has its end",
    Reason.FTP_DATA: "it comes from port 20 (FTP data), which IPVS does not balance",
    Reason.PEER: "it comes from the other director",
}
_NOBODYS = frozenset({Reason.OTHER_HOST, Reason.MARTIAN, Reason.FTP_DATA, Reason.PEER})
_STATES = {
    RecordState.UNCONFIRMED: "no data confirmed it yet",
    RecordState.CONFIRMED: "confirmed",
    RecordState.CLOSING: "closing",
    RecordState.ADOPTED: "taken over from IPVS",
}


@dataclass(frozen=True, slots=True)
class Heard:
    """What was said of a client.

    Args:
        question: what was asked.
        new: by the programs, of a packet that begins a connection; None where they have no say.
        established: of one that does not.
        off: why they have no say.
        servers: real servers by the programs' indexes.
        now: the programs' clock.
        table: whom a table of what IPVS, or the table in its place, has names; None where no table
            decides.
        entry: of IPVS, for this very connection.
        template: of IPVS, for the client.
        absent: why IPVS has no say; empty where it has the service.
        notes: what else is to be told.
    """

    question: Asked
    new: Explained | None = None
    established: Explained | None = None
    off: str = ""
    servers: Mapping[int, Address] = field(default_factory=dict)
    now: int = 0
    table: Choice | None = None
    entry: Connection | None = None
    template: Connection | None = None
    absent: str = ""
    notes: tuple[str, ...] = ()


def seconds(ticks: int) -> int:
    """Ticks of the programs' clock as seconds; a clock that is a little ahead is now."""
    ticks &= 0xFFFFFFFF
    return round(ticks * (1 << TICK_SHIFT) / 1e9) if ticks < 1 << 31 else 0


def explain(heard: Heard) -> Explanation:
    """One answer of all that was said."""
    new = _choice(heard, heard.new, begins=True)
    established = _choice(heard, heard.established, begins=False)
    return heard.question.answer(
        new,
        established=established,
        table=heard.table,
        ipvs=_entry(heard),
        engine="alone" if heard.absent == NO_IPVS else "ipvs",
        leaves=_leaves(heard.established) or _leaves(heard.new),
        differences=list(_differences(heard, new, established)),
        notes=list(heard.notes),
    )


def _choice(heard: Heard, said: Explained | None, *, begins: bool) -> Choice:
    if said is None:
        who = "nobody" if heard.absent == NO_IPVS else "IPVS"
        return _by_ipvs(heard, f"{who} forwards ({heard.off})" if heard.off else "", begins=begins)
    if said.server is None:
        reason = _WHY.get(said.reason, "") if said.reason else ""
        reason = reason or (said.reason.name.lower() if said.reason else "no service")
        if said.verdict is Verdict.DROP:
            return Choice(by="nobody", why=f"dropped, since there is no IPVS here: {reason}")
        if said.reason in _NOBODYS:
            return Choice(by="nobody", why=reason)
        return _by_ipvs(heard, reason, begins=begins)
    address = heard.servers.get(said.server)
    by, why = _how(heard, said, begins=begins)
    return Choice(
        server=heard.question.name(address) if address else f"server {said.server}, just gone",
        address=str(address) if address else None,
        slot=said.slot,
        by=by,
        why=why,
    )


def _how(heard: Heard, said: Explained, *, begins: bool) -> tuple[_By, str]:
    """How the programs found a server."""
    which = f"slot {said.slot}"
    if said.by is By.LEARNED and said.learned is not None:
        age = seconds(heard.now - said.learned.refreshed)
        return "learned", f"a flow that was learned from IPVS, which saw it {age} s ago"
    if said.by is By.RECORD and said.record is not None:
        return "record", f"{_record(heard, said, said.record)}; {which} changed hands"
    if said.by is By.OLD:
        if begins and said.reason is Reason.RECORD:
            return "old", f"{which} changed hands, and no more records can be written just now"
        return "old", f"{which} changed hands, and what has no record stays where it was"
    if said.drained:
        tries = f"try {said.tries}"
        return "fallback", f"{which} is a drained server's; the fallback finds this one, {tries}"
    why = f"{which} is its own"
    if said.tracked and said.old not in {said.server, FALLBACK}:
        other = heard.servers.get(said.old)
        before = f"{heard.question.name(other)}'s" if other else "a server's that is gone"
        why += f" since a change; before it was {before}"
    return "slot", why


def _record(heard: Heard, said: Explained, record: Record) -> str:
    state = RecordState(record.state)
    words = f"a record ({_STATES[state]}, seen {seconds(heard.now - record.tick)} s ago)"
    if state is RecordState.UNCONFIRMED and said.server == record.previous != record.server:
        return f"{words} names it as the server of the connection before"
    return f"{words} names it"


def _by_ipvs(heard: Heard, reason: str, *, begins: bool) -> Choice:
    """What the programs leave to IPVS, and what it does with it."""
    question, entry, table = heard.question, heard.entry, heard.table
    before = f"{reason}; " if reason else ""
    if heard.absent:
        return Choice(by="nobody", why=before + heard.absent)
    if entry is not None and not begins:
        return _as_entry(question, entry, f"{before}IPVS has an entry for it ({entry.state})")
    if begins and heard.template is not None:
        words = f"{before}IPVS's persistence keeps the client there"
        return _as_entry(question, heard.template, words)
    if table is not None:
        by = "nobody" if table.address is None else "ipvs"
        why = f"{before}IPVS goes by the same table: {table.why}"
        return Choice.model_validate({**table.model_dump(), "by": by, "why": why})
    if begins:
        scheduler = question.virtual.scheduler
        return Choice(by="ipvs", why=f"{before}IPVS decides at the first packet, by {scheduler}")
    why = f"{before}IPVS has no entry for it either: there is no such connection"
    return Choice(by="nobody", why=why)


def _as_entry(question: Asked, entry: Connection, why: str) -> Choice:
    return Choice(server=question.name(entry.server), address=str(entry.server), by="ipvs", why=why)


def _entry(heard: Heard) -> Choice | None:
    found = heard.entry or heard.template
    if found is None:
        return None
    what = "persistence of the client" if found is heard.template else found.state
    return _as_entry(heard.question, found, f"{what}, expires in {found.expires} s")


def _leaves(said: Explained | None) -> Leaves | None:
    if said is None or said.server is None or said.leaving is None:
        return None
    leaving = said.leaving
    vlans = [tag & 0x0FFF for _, tag in leaving.vlans]
    return Leaves(device=leaving.device, mac=leaving.mac, vlans=vlans)


def _differences(heard: Heard, new: Choice, established: Choice) -> Iterator[str]:
    table, entry = heard.table, heard.entry
    whose = "lbdr's" if heard.absent == NO_IPVS else "IPVS's"
    if established.address and new.address and established.address != new.address:
        yield (
            f"an open connection is {established.server}'s, a new one {new.server}'s: "
            f"{established.why}"
        )
    if table is not None and new.address != table.address and new.by != "nobody":
        yield (
            f"{whose} table names {table.server or 'nobody'} for a new connection, the fast path "
            f"{new.server or 'nobody'}: a change of it is under way, and follows within seconds"
        )
    if entry is not None and str(entry.server) != established.address:
        yield (
            f"IPVS has an entry with {heard.question.name(entry.server)}, and does not see what "
            "the fast path forwards: it is left from before"
        )
