"""What a change of servers does to slots and records."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbdr import tracking
from lbdr.datapath.xdp_layout import (
    ANTICIPATE,
    EMPTY,
    FALLBACK,
    OLD_SHIFT,
    TRACKED,
    RecordState,
    flow_of,
)
from lbdr.maglev import MaglevServer, MaglevTable, table_size
from lbdr.model import Address
from lbdr.tracking import CURRENT, Record, Swept

A, B, C = 10, 11, 12
ALL = {A, B, C}
UNCONFIRMED, CONFIRMED, CLOSING, ADOPTED = RecordState
NOW = 1_000_000


def slot(current: int, old: int, marks: int = 0) -> int:
    return current | marks | old << OLD_SHIFT


def flipped(word: int, owner: int, alive: set[int], drained: Sequence[int] = ()) -> int:
    return tracking.flip([word], [owner], alive, drained)[0]


# --- slots ---------------------------------------------------------------------------------------


def test_a_first_table_tracks_nothing() -> None:
    slots = tracking.flip(tracking.no_slots(3), [A, B, EMPTY], ALL)
    assert list(slots) == [slot(A, A), slot(B, B), slot(EMPTY, EMPTY)]


def test_a_first_table_with_a_drained_server_records_for_its_slots() -> None:
    assert flipped(slot(EMPTY, EMPTY), A, ALL, [A]) == slot(FALLBACK, A, TRACKED | ANTICIPATE)


@pytest.mark.parametrize(
    ("word", "owner", "alive", "drained", "becomes"),
    [
        # nothing changes
        (slot(A, A), A, ALL, (), slot(A, A)),
        # another owner: the old one keeps what has no record
        (slot(A, A), B, ALL, (), slot(B, A, TRACKED)),
        # and again: what the second one got is recorded
        (slot(B, A, TRACKED), C, ALL, (), slot(C, A, TRACKED)),
        # back to the first: there may be records of the second, until `release`
        (slot(B, A, TRACKED), A, ALL, (), slot(A, A, TRACKED)),
        # the old one dies: what has no record is nobody's any more
        (slot(A, A), B, {B, C}, (), slot(B, B)),
        (slot(B, A, TRACKED), B, {B, C}, (), slot(B, B, TRACKED)),
        # the new owner dies: those without a record are still the old one's
        (slot(B, A, TRACKED), C, {A, C}, (), slot(C, A, TRACKED)),
        # the dead one is back, and is not the old one again
        (slot(B, B), A, ALL, (), slot(A, B, TRACKED)),
        # drained: its connections stay
        (slot(A, A), A, ALL, (A,), slot(FALLBACK, A, TRACKED | ANTICIPATE)),
        # drained while another one was old, which dies later: never FALLBACK as the old one
        (slot(B, A, TRACKED), B, ALL, (B,), slot(FALLBACK, A, TRACKED | ANTICIPATE)),
        (slot(FALLBACK, A, TRACKED), B, {B, C}, (B,), slot(FALLBACK, B, TRACKED | ANTICIPATE)),
        # the drained one is back, or gone
        (slot(FALLBACK, A, TRACKED | ANTICIPATE), A, ALL, (), slot(A, A, TRACKED)),
        (slot(FALLBACK, A, TRACKED | ANTICIPATE), C, {B, C}, (), slot(C, C, TRACKED)),
        # no server has a weight; the old one may live
        (slot(A, A), EMPTY, {A}, (), slot(EMPTY, A, TRACKED)),
        (slot(A, A), EMPTY, set(), (), slot(EMPTY, EMPTY)),
        (slot(EMPTY, EMPTY), A, {A}, (), slot(A, A)),
        # what was anticipated has come
        (slot(A, A, TRACKED | ANTICIPATE), B, ALL, (), slot(B, A, TRACKED)),
        (slot(A, A, TRACKED | ANTICIPATE), A, ALL, (), slot(A, A, TRACKED)),
    ],
)
def test_flip(word: int, owner: int, alive: set[int], drained: Sequence[int], becomes: int) -> None:
    assert flipped(word, owner, alive, drained) == becomes


def test_flip_tracks_slots_with_records_of_others() -> None:
    slots = tracking.flip([slot(A, A)] * 3, [A] * 3, ALL, elsewhere={1})
    assert list(slots) == [slot(A, A), slot(A, A, TRACKED), slot(A, A)]


def test_as_many_owners_as_slots() -> None:
    with pytest.raises(ValueError, match="as many owners as slots"):
        tracking.flip([slot(A, A)] * 3, [A] * 2, ALL)


def test_anticipate_marks_what_will_change() -> None:
    words = [slot(A, A), slot(A, A), slot(B, A, TRACKED), slot(C, C), slot(FALLBACK, C, TRACKED)]
    slots = tracking.anticipate(words, [A, B, A, C, C], {C})
    assert list(slots) == [
        slot(A, A),
        slot(A, A, TRACKED | ANTICIPATE),
        slot(B, A, TRACKED | ANTICIPATE),
        slot(C, C, TRACKED | ANTICIPATE),
        slot(FALLBACK, C, TRACKED),
    ]


def test_settle_gives_what_has_no_record_to_the_current_server() -> None:
    slots = tracking.settle([slot(B, A, TRACKED), slot(A, A), slot(EMPTY, A, TRACKED)])
    assert list(slots) == [slot(B, B, TRACKED), slot(A, A), slot(EMPTY, EMPTY, TRACKED)]


def test_settle_leaves_the_connections_of_a_drained_server() -> None:
    word = slot(FALLBACK, A, TRACKED | ANTICIPATE)
    assert list(tracking.settle([word])) == [word]


def test_release() -> None:
    words = [
        slot(A, A, TRACKED),  # of which a record points elsewhere
        slot(A, A, TRACKED | ANTICIPATE),
        slot(B, A, TRACKED | ANTICIPATE),
        slot(FALLBACK, A, TRACKED | ANTICIPATE),
        slot(A, A),
    ]
    assert list(tracking.release(words, {0, 4})) == [
        slot(A, A, TRACKED),
        slot(A, A),
        slot(B, A, TRACKED),
        slot(FALLBACK, A, TRACKED | ANTICIPATE),
        slot(A, A),
    ]


# --- records -------------------------------------------------------------------------------------


def swept(
    word: int, record: Record, alive: set[int] = ALL, *, idle: int = tracking.SETTLE
) -> str | Record:
    """What becomes of a record: "goes", "stays", "elsewhere", or another record."""
    found = tracking.sweep(
        [(b"flow", record.pack())], [0, word], lambda _: 1, alive, NOW, idle=idle
    )
    assert found.elsewhere <= {1}
    if found.delete:
        assert found == Swept(delete=[b"flow"])
        return "goes"
    if found.change:
        assert set(found.change) == {b"flow"}
        return Record.unpack(found.change[b"flow"])
    return "elsewhere" if found.elsewhere else "stays"


def record(server: int, previous: int, state: RecordState, age: int = 0) -> Record:
    return Record(server, previous, 0x12345678, NOW - age, state)


B_AFTER_A = slot(B, A, TRACKED)


@pytest.mark.parametrize(
    ("word", "found", "becomes"),
    [
        (B_AFTER_A, record(B, A, CONFIRMED), "stays"),
        (B_AFTER_A, record(B, A, CONFIRMED, tracking.SETTLE - 1), "stays"),
        (B_AFTER_A, record(B, A, CONFIRMED, tracking.SETTLE), "goes"),
        (B_AFTER_A, record(B, A, CLOSING, tracking.CLOSING_IDLE - 1), "stays"),
        (B_AFTER_A, record(B, A, CLOSING, tracking.CLOSING_IDLE), "goes"),
        (B_AFTER_A, record(B, A, UNCONFIRMED, tracking.UNCONFIRMED_IDLE - 1), "elsewhere"),
        (B_AFTER_A, record(B, A, UNCONFIRMED, tracking.UNCONFIRMED_IDLE), "goes"),
        (B_AFTER_A, record(C, C, CONFIRMED), "elsewhere"),
        # written while settling: it says the same as the slot, but not for long
        (B_AFTER_A, record(A, A, CONFIRMED), "elsewhere"),
        # what an untracked slot says as well
        (slot(A, A, TRACKED), record(A, B, CONFIRMED), "goes"),
        (slot(A, A, TRACKED), record(A, A, UNCONFIRMED), "goes"),
        (slot(A, A, TRACKED), record(A, B, UNCONFIRMED), "elsewhere"),
        (slot(A, A, TRACKED | ANTICIPATE), record(A, A, UNCONFIRMED), "stays"),
        (slot(FALLBACK, A, TRACKED), record(B, A, CONFIRMED), "elsewhere"),
        # IPVS has it: the program's loop found no server that is not drained
        (slot(FALLBACK, A, TRACKED), record(FALLBACK, A, CONFIRMED), "stays"),
        (slot(A, A, TRACKED), record(FALLBACK, A, CONFIRMED), "elsewhere"),
        (slot(A, A, TRACKED), record(FALLBACK, A, CONFIRMED, tracking.SETTLE), "goes"),
    ],
)
def test_sweep(word: int, found: Record, becomes: str) -> None:
    assert swept(word, found) == becomes


def test_a_clock_that_is_ahead_or_has_begun_anew() -> None:
    assert record(A, A, CONFIRMED, -3).age(NOW) == 0
    assert Record(A, A, 0, 0xFFFFFFF0, CONFIRMED).age(0x10) == 0x20


def test_idle_udp_flows_go() -> None:
    flow = record(A, A, CONFIRMED, tracking.UDP_IDLE)
    assert swept(B_AFTER_A, flow) == "elsewhere"
    assert swept(B_AFTER_A, flow, idle=tracking.UDP_IDLE) == "goes"


def test_a_dead_server_s_connections_go() -> None:
    for state in (CONFIRMED, CLOSING):
        assert swept(slot(C, A, TRACKED), record(B, A, state), {A, C}) == "goes"


def test_a_syn_to_a_dead_server_leaves_the_flow_to_who_had_it() -> None:
    assert swept(slot(C, A, TRACKED), record(B, A, UNCONFIRMED), {A, C}) == "goes"
    restored = swept(slot(A, A, TRACKED), record(B, C, UNCONFIRMED), {A, C})
    assert isinstance(restored, Record)
    assert restored[:2] == (C, C)
    assert restored[3:5] == (NOW, ADOPTED)
    # the same SYN sent again is a new connection's there
    assert restored.sequence != record(B, C, UNCONFIRMED).sequence
    assert swept(slot(A, A, TRACKED), record(B, C, UNCONFIRMED), {A}) == "goes"


def test_a_syn_that_nothing_followed_leaves_the_flow_to_who_had_it() -> None:
    """A spoofed one must not take the record of an open connection with it when it expires."""
    spoofed = record(B, C, UNCONFIRMED, tracking.UNCONFIRMED_IDLE)
    ours = spoofed._replace(previous=FALLBACK)
    assert isinstance(restored := swept(B_AFTER_A, ours), Record)
    assert restored.server == FALLBACK
    restored = swept(B_AFTER_A, spoofed)
    assert isinstance(restored, Record)
    assert (restored.server, restored.state, restored.tick) == (C, ADOPTED, NOW)
    # it is as good as none where that is the slot's own server
    assert swept(slot(C, C, TRACKED), spoofed) == "goes"


# --- flows ---------------------------------------------------------------------------------------


@given(
    st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)),
    st.integers(0, 0xFFFF),
    st.booleans(),
)
def test_the_slot_of_a_flow_is_mh_s(
    client: IPv4Address | IPv6Address, port: int, mh_port: bool
) -> None:
    table = MaglevTable([MaglevServer(ip_address("10.0.0.1"), 80, 1)], 8)
    flow = flow_of(client, port, 80, 7)
    assert tracking.flow_slot(flow, table.size, mh_port=mh_port) == table.slot(
        client, port if mh_port else 0
    )
    assert tracking.service_of(flow) == 7


def test_ticks() -> None:
    assert tracking.ticks(0) == 0
    assert tracking.ticks(1) == 1
    assert tracking.ticks(1 << 30) * (1 << 30) >= (1 << 30) * 10**9
    assert tracking.ticks(120) == 112


# --- properties ----------------------------------------------------------------------------------

_PLACES = range(5)
_CHANGES = st.lists(
    st.tuples(
        st.lists(st.sampled_from(_PLACES), min_size=8, max_size=8),
        st.sets(st.sampled_from(_PLACES), min_size=1),
        st.sets(st.sampled_from(_PLACES)),
        st.sampled_from(["", "anticipate", "settle", "release"]),
    ),
    max_size=8,
)


def _walk(changes: list[tuple[list[int], set[int], set[int], str]]) -> list[tuple[int, ...]]:
    """Each slot's word before and after each flip, its owner, and who lives and is drained."""
    slots = tracking.no_slots(8)
    seen = []
    for wanted, alive, drained, then in changes:
        living = sorted(alive)
        owners = [living[owner % len(living)] for owner in wanted]
        before = slots
        slots = tracking.flip(slots, owners, alive, drained)
        seen += [
            (*words, owner in drained, sum(1 << server for server in alive))
            for *words, owner in zip(before, slots, owners, owners, strict=True)
        ]
        if then == "anticipate":
            slots = tracking.anticipate(slots, owners[::-1], drained)
        elif then == "settle":
            slots = tracking.settle(slots)
        elif then == "release":
            slots = tracking.release(slots, set())
    return seen


@given(_CHANGES)
def test_who_has_connections_without_a_record_keeps_them_while_it_lives(
    changes: list[tuple[list[int], set[int], set[int], str]],
) -> None:
    for before, after, owner, is_drained, alive in _walk(changes):
        current, old = after & CURRENT, after >> OLD_SHIFT
        assert current == (FALLBACK if is_drained else owner)
        if before >> OLD_SHIFT < EMPTY and alive >> (before >> OLD_SHIFT) & 1:
            assert old == before >> OLD_SHIFT
        else:
            assert old == owner
        assert alive >> old & 1
        assert current == old or after & TRACKED
        assert after & TRACKED or not before & TRACKED
        assert after & ANTICIPATE == (ANTICIPATE if is_drained else 0)


@given(_CHANGES)
def test_release_and_settle_end_all_tracking(
    changes: list[tuple[list[int], set[int], set[int], str]],
) -> None:
    words = array("I", (after for _, after, *_ in _walk(changes)))
    for word in tracking.release(tracking.settle(words), set()):
        if word & CURRENT != FALLBACK:
            assert not word & (TRACKED | ANTICIPATE)
            assert word & CURRENT == word >> OLD_SHIFT


_RECORDS = st.builds(
    Record,
    st.sampled_from(_PLACES),
    st.sampled_from(_PLACES),
    st.integers(0, 0xFFFFFFFF),
    st.integers(NOW - tracking.SETTLE - 9, NOW + 1),
    st.sampled_from(RecordState),
    st.just(0),
)


def _goes_to(word: int, found: Record | None, alive: set[int], *, mine: bool) -> int:
    """Who gets a packet of an open connection, as `tracked` in bpf/track.h has it."""
    if found is not None and word & TRACKED:
        server = found.server
        if found.state == UNCONFIRMED and (server not in alive or not mine):
            server = found.previous
        if server in alive:
            return server
    return word >> OLD_SHIFT


@given(
    _RECORDS, st.sampled_from(_PLACES), st.sampled_from(_PLACES), st.sets(st.sampled_from(_PLACES))
)
def test_no_packet_goes_elsewhere_because_of_a_sweep(
    found: Record, current: int, old: int, others: set[int]
) -> None:
    """But for those of flows that are over."""
    alive = others | {current, old}
    word = slot(current, old, TRACKED)
    result = tracking.sweep([(b"flow", found.pack())], [word], lambda _: 0, alive, NOW)
    after = None if result.delete else found
    if result.change:
        after = Record.unpack(result.change[b"flow"])
    (released,) = tracking.release([word], result.elsewhere)
    age = found.age(NOW)
    if found.state != UNCONFIRMED:
        over = age >= (tracking.CLOSING_IDLE if found.state == CLOSING else tracking.SETTLE)
        if not over:
            for now in (word, released):
                assert _goes_to(now, after, alive, mine=True) == _goes_to(
                    word, found, alive, mine=True
                )
        return
    for now in (word, released):
        assert _goes_to(now, after, alive, mine=False) == _goes_to(word, found, alive, mine=False)
        if age < tracking.UNCONFIRMED_IDLE:
            assert _goes_to(now, after, alive, mine=True) == _goes_to(word, found, alive, mine=True)


def test_a_server_more_changes_few_slots_of_a_real_table() -> None:
    rips: list[Address] = [ip_address(f"10.0.0.{last}") for last in range(1, 11)]
    before = MaglevTable([MaglevServer(rip, 80, 1) for rip in rips[:9]]).slots
    after = MaglevTable([MaglevServer(rip, 80, 1) for rip in rips]).slots
    alive = set(range(10))
    slots = tracking.flip(tracking.no_slots(table_size()), before, alive)
    anticipated = tracking.anticipate(slots, after)
    changed = tracking.flip(anticipated, after, alive)
    differing = {place for place, owner in enumerate(after) if owner != before[place]}
    assert 0 < len(differing) < table_size() // 4
    for words in (anticipated, changed):
        assert {place for place, word in enumerate(words) if word & TRACKED} == differing
