"""What a change of an mh service's servers does to its slots and records; pure.

In steady state a slot names one server, and nothing is stored per connection. When the table
changes, each slot whose owner changed goes on knowing its old server, who keeps all connections
without a record, and the programs record those that begin (bpf/track.h). This is the other half:
which slots are tracked, by which old server, how long, and which records may go.

A change of the control plane, in this order:

1. planned changes alone: write `anticipate`, wait ANTICIPATION, so that a SYN which is sent again
   after the change finds its record;
2. write `flip`, then clear the ALIVE flag of a server that is gone, then `sweep` the records; only
   then may a server's place be alive again. (The flag first, and for a moment UDP flows would begin
   at a slot's current server that are its old one's after the flip.)
3. from time to time `sweep`, and `release` what the sweep left no record for;
4. SETTLING before the settle time is over set the service's flag SETTLING, so that what still falls
   to an old server gets a record; at its end `settle`. A flip begins the settle time anew, and a
   record that could not be written meanwhile (Reason.RECORD) begins that last part anew.

UDP has no such part, its settle time is that of udp_until, UDP_IDLE from each flip. A record that
could not be written moves udp_until, but only while it is to come: once it has passed, new flows
are the current server's, so then `settle`, and always before the next flip.

A slot's word is xdp_layout's: the current server, ANTICIPATE, TRACKED, the old server.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Container, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Self

from lbdr.datapath.xdp_layout import (
    ANTICIPATE,
    EMPTY,
    FALLBACK,
    FLOW,
    OLD_SHIFT,
    RECORD,
    TICK_SHIFT,
    TRACKED,
    RecordState,
)
from lbdr.maglev import KEY1, hash_u32

CURRENT = FALLBACK
"""The bits of a slot's word that are its current server."""

_U32 = 0xFFFFFFFF
_NEVER_SENT = 0x80000000


def ticks(seconds: float) -> int:
    """The least number of ticks that last so long.

    Args:
        seconds: of time.
    """
    return -int(-seconds * 1_000_000_000 // (1 << TICK_SHIFT))


ANTICIPATION = 3.0
"""Seconds between `anticipate` and `flip`: a first SYN, sent again after 1 s and 3 s (RFC 6298)."""

CLOSING_IDLE = ticks(120)
"""Ticks that a record lives after FIN or RST; IPVS's FIN_WAIT."""

UNCONFIRMED_IDLE = ticks(75)
"""Ticks that a record lives whose SYN nothing followed."""

UDP_IDLE = ticks(300)
"""Ticks after which a UDP flow is forgotten; IPVS's UDP timeout."""

SETTLE = ticks(12 * 3600)
"""Ticks after which an old server keeps no more connections without a record."""

SETTLING = ticks(6 * 3600)
"""The last ticks of SETTLE, in which what falls to an old server is recorded."""


class Record(NamedTuple):
    """What is known of one flow.

    Args:
        server: who has it; FALLBACK for IPVS.
        previous: where this flow's packets went before its last SYN.
        sequence: initial, of that SYN.
        tick: when it was last seen, about.
        state: how far it is.
        sent: the upper half of the sequence number of what was last seen.
    """

    server: int
    previous: int
    sequence: int
    tick: int
    state: int
    sent: int = 0

    @classmethod
    def unpack(cls, value: bytes) -> Self:
        """From a value of `records`."""
        return cls._make(RECORD.unpack(value))

    def pack(self) -> bytes:
        """As `records` holds it."""
        return RECORD.pack(*self)

    def age(self, now: int) -> int:
        """Ticks since it was last seen; another CPU's clock may be a little ahead.

        Args:
            now: tick, of 32 bits like the record's.
        """
        age = now - self.tick & _U32
        return age if age < 1 << 31 else 0


@dataclass(slots=True)
class Swept:
    """What is to be done to the records of a service.

    A record may have changed since it was read. Who deletes does so by lookup-and-delete, or looks
    again just before.

    Args:
        delete: flows whose records go.
        change: flows whose records become others.
        elsewhere: slots of which records remain that point elsewhere than to the current server.
    """

    delete: list[bytes] = field(default_factory=list)
    change: dict[bytes, bytes] = field(default_factory=dict)
    elsewhere: set[int] = field(default_factory=set)


def no_slots(size: int) -> array[int]:
    """A table in which nobody has anything, from which a first one is flipped to.

    Args:
        size: slots.
    """
    return array("I", [EMPTY | EMPTY << OLD_SHIFT]) * size


def anticipate(
    slots: Sequence[int], owners: Sequence[int], drained: Container[int] = ()
) -> array[int]:
    """Slots before a planned change: those that it will change record every SYN.

    Args:
        slots: words, as they are.
        owners: of each slot in the table to come, EMPTY for none.
        drained: servers with weight 0 then.
    """

    def change(word: int, owner: int) -> int:
        if word & CURRENT == (FALLBACK if owner in drained else owner):
            return word
        return word | ANTICIPATE | TRACKED

    return _each(change, slots, owners)


def flip(
    slots: Sequence[int],
    owners: Sequence[int],
    alive: Container[int],
    drained: Container[int] = (),
    elsewhere: Collection[int] = (),
) -> array[int]:
    """Slots after a change.

    A slot keeps its old server while that one lives. A drained server's slots are FALLBACK: who
    gets a new connection depends on its client, and no later old server could name them all. So
    there the old server is never the current one, and everything is recorded, UDP flows too
    (ANTICIPATE).

    A slot that was tracked stays so until `release`: SYNs may be recorded while this is computed.

    Args:
        slots: words, as they are.
        owners: of each slot in the new table, EMPTY for none.
        alive: servers whose connections go on, drained ones too.
        drained: servers with weight 0.
        elsewhere: slots that are tracked anyhow, since records of them point elsewhere.
    """

    def change(word: int, owner: int) -> int:
        falls_back = owner in drained
        current = FALLBACK if falls_back else owner
        old = word >> OLD_SHIFT
        if old not in alive:
            old = owner
        marks = word & TRACKED
        if falls_back:
            marks = TRACKED | ANTICIPATE
        elif current != old:
            marks = TRACKED
        return current | marks | old << OLD_SHIFT

    flipped = _each(change, slots, owners)
    for place in elsewhere:
        flipped[place] |= TRACKED
    return flipped


def leave(slots: Sequence[int], alive: Container[int]) -> array[int]:
    """Slots of a service that is to be decided otherwise than by this table: by IPVS alone.

    What is open and has no record stays with its old server. A new connection is nobody's here: the
    programs record that IPVS has it.

    Args:
        slots: words, as they are.
        alive: servers whose connections go on.
    """

    def change(word: int) -> int:
        old = word >> OLD_SHIFT
        return FALLBACK | TRACKED | ANTICIPATE | (old if old in alive else EMPTY) << OLD_SHIFT

    return _each(change, slots)


def settle(slots: Sequence[int]) -> array[int]:
    """Slots after the settle time: the current server has what has no record.

    FALLBACK slots stay as they are: see `flip`.

    Args:
        slots: words, as they are.
    """

    def change(word: int) -> int:
        current = word & CURRENT
        if current == FALLBACK:
            return word
        return word & 0xFFFF | current << OLD_SHIFT

    return _each(change, slots)


def release(slots: Sequence[int], elsewhere: Container[int]) -> array[int]:
    """Slots that are tracked no longer than they must be; nothing is anticipated any more.

    No record that points elsewhere can be written to a slot whose current server is the old one, so
    what was swept a moment ago is still true. To one that was just settled it could be until then:
    `settle`, and release by the next sweep.

    Args:
        slots: words, as they are.
        elsewhere: slots of which records point elsewhere, from a `sweep` with these words.
    """

    def change(word: int) -> int:
        current = word & CURRENT
        if current == FALLBACK:
            return word
        word &= ~ANTICIPATE
        return word & ~TRACKED if current == word >> OLD_SHIFT else word

    released = _each(change, slots)
    for place, word in enumerate(slots):
        if word & TRACKED and place in elsewhere:
            released[place] |= TRACKED
    return released


def sweep(
    records: Iterable[tuple[bytes, bytes]],
    slots: Sequence[int],
    slot_of: Callable[[bytes], int],
    alive: Container[int],
    now: int,
    *,
    idle: int = SETTLE,
) -> Swept:
    """Which records of a service go, and which become others.

    A SYN that nothing followed, or whose server died, may have been anybody's: the flow is again
    who had it before. That takes a record, unless it is the slot's old server.

    Args:
        records: flows and records of this service.
        slots: words of its table, after the flip.
        slot_of: the slot of a flow.
        alive: servers whose connections go on.
        now: tick.
        idle: ticks after which a flow is forgotten; UDP_IDLE for UDP.
    """
    swept = Swept()

    def is_there(server: int) -> bool:
        return server == FALLBACK or server in alive  # FALLBACK: IPVS has it

    for flow, value in records:
        record = Record.unpack(value)
        age = record.age(now)
        unconfirmed = record.state == RecordState.UNCONFIRMED
        closing = record.state == RecordState.CLOSING
        dead = not is_there(record.server)
        if not unconfirmed and (dead or age >= (CLOSING_IDLE if closing else idle)):
            swept.delete.append(flow)
            continue
        place = slot_of(flow)
        word = slots[place]
        current, old = word & CURRENT, word >> OLD_SHIFT
        if unconfirmed and (dead or age >= UNCONFIRMED_IDLE):
            if record.previous == old or not is_there(record.previous):
                swept.delete.append(flow)
                continue
            record = _restored(record, now)
            swept.change[flow] = record.pack()
            unconfirmed = False
        if record.server == current and (
            not unconfirmed or record.previous == current or not is_there(record.previous)
        ):
            if current == old and not word & ANTICIPATE:
                swept.delete.append(flow)
                swept.change.pop(flow, None)
        else:
            swept.elsewhere.add(place)
    return swept


def service_of(flow: bytes) -> int:
    """The service of a key of `records`, by its index."""
    service: int = FLOW.unpack(flow)[3]
    return service


def flow_slot(flow: bytes, size: int, *, mh_port: bool) -> int:
    """The slot of a flow, as choose in bpf/track.h has it.

    Args:
        flow: a key of `records`.
        size: slots of the table.
        mh_port: the client's port counts.
    """
    client, port, _, _ = FLOW.unpack(flow)
    value = int.from_bytes(port, "big") if mh_port else 0
    folded = 0
    for start in range(0, 16, 4):
        folded ^= int.from_bytes(client[start : start + 4], "big")
    return hash_u32(value + folded & _U32, KEY1) % size


def _restored(record: Record, now: int) -> Record:
    """The flow of who had it before; the SYN that was for nothing is not known when sent again."""
    return Record(
        record.previous,
        record.previous,
        record.sequence ^ _NEVER_SENT,
        now & _U32,
        RecordState.ADOPTED,
    )


def _each(change: Callable[..., int], *columns: Sequence[int]) -> array[int]:
    """What a change makes of each slot; it is asked once for each combination that there is."""
    if len({len(column) for column in columns}) > 1:
        raise ValueError("as many owners as slots")
    rows = list(zip(*columns, strict=True))
    known = {row: change(*row) for row in set(rows)}
    return array("I", [known[row] for row in rows])
