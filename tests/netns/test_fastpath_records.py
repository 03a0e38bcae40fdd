"""The fast path's records, kept by its control plane while packets change them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Any

import pytest

from lbdr import tracking
from lbdr.datapath import xdp_layout as layout
from lbdr.datapath.xdp import FastPath
from lbdr.datapath.xdp_layout import Capacity, FastServer, Reason, RecordState, ServiceFlag
from lbdr.datapath.xdp_places import tick
from lbdr.datapath.xdp_wanted import WantedServer, WantedService
from lbdr.maglev import table_size
from lbdr.model import Protocol, ServiceKey
from lbdr.tracking import Record
from tests.director_frames import CLIENT, CLIENT_PORT, PORT, VIP
from tests.fastpath import VIP_PLACE, World, fast_path
from tests.guest import missing

CAPACITY = Capacity(index=8, services=8, servers=64, tables=8, records=64, flows=64, devices=8)
RIPS = [ip_address(f"192.0.2.{20 + n}") for n in range(3)]
TCP, UDP = ServiceKey(Protocol.TCP, VIP, PORT), ServiceKey(Protocol.UDP, VIP, PORT)
FLOW_OF = layout.flow_of


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    if os.geteuid() != 0:
        missing("BPF needs root")
    with fast_path(tmp_path_factory.mktemp("bpffs"), CAPACITY) as made:
        yield made


@dataclass
class Keeper:
    """A fast path, and its clock, which a test sets on."""

    world: World
    fast: FastPath

    def put(self, key: ServiceKey, *weights: int) -> None:
        """Have a service with servers of these weights, now."""
        servers = tuple(
            WantedServer(rip, weight, FastServer(VIP_PLACE, f"02:00:00:00:01:{place:02x}"))
            for place, (rip, weight) in enumerate(zip(RIPS, weights, strict=False))
        )
        wanted = WantedService(VIP_PLACE, ServiceFlag.ACTIVE | ServiceFlag.MH_PORT, servers)
        self.fast.put(key, wanted)
        service = self.fast._services[key]  # noqa: SLF001  # its clock
        if service.due is not None:
            service.due = 0.0
            self.fast.put(key, wanted)

    def service(self, key: ServiceKey) -> Any:
        return self.fast._services[key]  # noqa: SLF001  # its clock

    def older(self, key: ServiceKey, ticks: int) -> None:
        """The last change was so long ago."""
        service = self.service(key)
        service.flipped -= ticks
        word = self.world.maps.services[service.word + 1]
        until = (word >> 32) - ticks & 0xFFFFFFFF
        self.world.maps.services[service.word + 1] = word & 0xFFFFFFFF | until << 32

    def udp_until(self, key: ServiceKey) -> int:
        """Ticks until new flows of UDP are the current server's."""
        until: int = self.world.maps.services[self.service(key).word + 1] >> 32
        left = until - tick() & 0xFFFFFFFF
        return left - (1 << 32) if left >> 31 else left

    def refuse(self, key: ServiceKey) -> None:
        """A record of the service's could not be written."""
        reasons = self.world.maps["reasons"]
        index = self.service(key).index * layout.REASONS + Reason.RECORD
        count = reasons.totals(reasons.lookup(layout.U32.pack(index)) or b"")[0]
        value = (count + 1).to_bytes(8, "little").ljust(reasons.value_size, b"\0")
        reasons.update(layout.U32.pack(index), value)

    def record(self, key: ServiceKey, record: Record) -> bytes:
        """Write a record of the client's; its flow."""
        flow = FLOW_OF(ip_address(CLIENT), CLIENT_PORT, PORT, self.service(key).index)
        self.world.maps["records"].update(flow, record.pack())
        return flow

    def tracked(self, key: ServiceKey) -> int:
        """Slots that are tracked."""
        words = self.fast._places.slots(self.service(key).line)  # noqa: SLF001  # to look
        return sum(bool(word & layout.TRACKED) for word in words)


@pytest.fixture
def keeper(loaded: World) -> Iterator[Keeper]:
    fast = FastPath(loaded.programs)
    yield Keeper(loaded, fast)
    for key in list(fast.keys):
        fast.drop(key)
    records = loaded.maps["records"]
    records.delete_many(records.keys())
    reasons = loaded.maps["reasons"]
    nothing = bytes(reasons.value_size)
    reasons.update_many(dict.fromkeys(reasons.keys(), nothing))


# --- how long an old server keeps what has no record ---------------------------------------------


def test_a_change_settles_after_its_time(keeper: Keeper) -> None:
    keeper.put(TCP, 1, 1)
    keeper.put(TCP, 1, 1, 1)
    assert keeper.tracked(TCP)
    keeper.older(TCP, tracking.SETTLE - tracking.SETTLING)
    keeper.fast.sweep()
    assert keeper.service(TCP).settling
    keeper.older(TCP, tracking.SETTLING)
    keeper.fast.sweep()
    keeper.fast.sweep()
    assert not keeper.tracked(TCP)


def test_a_record_that_was_refused_begins_settling_anew(keeper: Keeper) -> None:
    """What it was of depends on the slot's old server yet, and shows itself again."""
    keeper.put(TCP, 1, 1)
    keeper.put(TCP, 1, 1, 1)
    keeper.older(TCP, tracking.SETTLE - tracking.SETTLING)
    keeper.fast.sweep()
    keeper.older(TCP, tracking.SETTLING)
    keeper.refuse(TCP)
    for _ in range(2):
        keeper.fast.sweep()
        assert keeper.tracked(TCP)
        assert keeper.service(TCP).settling
    keeper.older(TCP, tracking.SETTLING)
    for _ in range(2):
        keeper.fast.sweep()
    assert not keeper.tracked(TCP)


def test_a_record_that_was_refused_long_before_does_not(keeper: Keeper) -> None:
    keeper.put(TCP, 1, 1)
    keeper.put(TCP, 1, 1, 1)
    keeper.refuse(TCP)
    keeper.fast.sweep()
    keeper.older(TCP, tracking.SETTLE - tracking.SETTLING)
    keeper.fast.sweep()
    keeper.older(TCP, tracking.SETTLING)
    for _ in range(2):
        keeper.fast.sweep()
    assert not keeper.tracked(TCP)


def test_udp_settles_when_new_flows_are_the_current_servers(keeper: Keeper) -> None:
    keeper.put(UDP, 1, 1)
    keeper.put(UDP, 1, 1, 1)
    assert tracking.UDP_IDLE - 2 <= keeper.udp_until(UDP) <= tracking.UDP_IDLE
    keeper.older(UDP, tracking.UDP_IDLE - 3)
    keeper.fast.sweep()
    assert keeper.tracked(UDP)
    keeper.older(UDP, 3)
    for _ in range(2):
        keeper.fast.sweep()
    assert not keeper.tracked(UDP)


def test_a_udp_record_that_was_refused_gives_more_time(keeper: Keeper) -> None:
    keeper.put(UDP, 1, 1)
    keeper.put(UDP, 1, 1, 1)
    keeper.fast.sweep()
    keeper.older(UDP, tracking.UDP_IDLE - 10)
    keeper.refuse(UDP)
    keeper.fast.sweep()
    assert keeper.udp_until(UDP) >= tracking.UDP_IDLE - 2
    keeper.older(UDP, 20)
    for _ in range(2):
        keeper.fast.sweep()
    assert keeper.tracked(UDP)


def test_a_udp_record_that_was_refused_too_late_changes_nothing(keeper: Keeper) -> None:
    """New flows are the current server's already: who is asked again must not be the old one."""
    keeper.put(UDP, 1, 1)
    keeper.put(UDP, 1, 1, 1)
    keeper.fast.sweep()
    keeper.older(UDP, tracking.UDP_IDLE + 1)
    keeper.refuse(UDP)
    for _ in range(2):
        keeper.fast.sweep()
    assert keeper.udp_until(UDP) < 0
    assert not keeper.tracked(UDP)


def test_a_process_that_restarted_settles_udp_before_it_changes(keeper: Keeper) -> None:
    """It does not know when the last change was, but until when flows were the old server's."""
    keeper.put(UDP, 1, 1)
    keeper.put(UDP, 1, 1, 1)
    keeper.older(UDP, tracking.UDP_IDLE + 1)
    again = replace(keeper, fast=FastPath(keeper.world.programs))
    again.service(UDP).flipped = tick()
    again.put(UDP, 1, 1, 7)
    line = again.service(UDP).line
    before = {word & tracking.CURRENT for word in again.fast._places.slots(line)}  # noqa: SLF001
    olds = [word >> layout.OLD_SHIFT for word in again.fast._places.slots(line)]  # noqa: SLF001
    third = again.service(UDP).servers[RIPS[2]].index
    assert third in before
    assert olds.count(third) > len(olds) // 5  # the table before gave it a third


# --- a record that changes while it is looked at -------------------------------------------------


def long_ago() -> int:
    """A tick after which a flow is forgotten."""
    return tick() - tracking.SETTLE - 5 & 0xFFFFFFFF


def meanwhile(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], object]) -> None:
    """Packets come between a look at the records and what is done about them."""
    look = tracking.sweep

    def sweep(*arguments: Any, **more: Any) -> tracking.Swept:
        found = look(*arguments, **more)
        happens()
        return found

    monkeypatch.setattr(tracking, "sweep", sweep)


@pytest.mark.parametrize("state", [RecordState.CONFIRMED, RecordState.UNCONFIRMED])
@pytest.mark.parametrize("becomes", [RecordState.CONFIRMED, RecordState.UNCONFIRMED, None])
def test_a_record_that_is_used_again_meanwhile_stays(
    keeper: Keeper,
    monkeypatch: pytest.MonkeyPatch,
    state: RecordState,
    becomes: RecordState | None,
) -> None:
    """It would go, or be given back to who had it before, but a packet came."""
    keeper.put(TCP, 1, 1)
    keeper.put(TCP, 1, 1, 1)
    first, second, third = (keeper.service(TCP).servers[rip].index for rip in RIPS)
    old = Record(first, third, 7, long_ago(), state)
    flow = keeper.record(TCP, old)
    word = keeper.fast._places.slots(keeper.service(TCP).line)[  # noqa: SLF001  # to look
        tracking.flow_slot(flow, table_size(8), mh_port=True)
    ]
    assert word >> layout.OLD_SHIFT != third
    fresh = None if becomes is None else Record(second, first, 9, tick(), becomes, 1)
    table = keeper.world.maps["records"]
    meanwhile(
        monkeypatch,
        lambda: table.delete(flow) if fresh is None else table.update(flow, fresh.pack()),
    )
    keeper.fast.sweep()
    assert table.lookup(flow) == (None if fresh is None else fresh.pack())


@pytest.mark.parametrize("there", [False, True], ids=["alone", "with one more packet"])
def test_a_record_that_changes_at_the_last_moment_is_put_back(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    keeper.put(TCP, 1, 1)
    keeper.put(TCP, 1, 1, 1)
    server = keeper.service(TCP).servers[RIPS[0]].index
    flow = keeper.record(TCP, Record(server, server, 7, long_ago(), 1))
    fresh = Record(server, server, 8, tick(), 0)
    newest = fresh._replace(sequence=10)
    table = keeper.world.maps["records"]
    take = table.take

    def taken(key: bytes) -> bytes | None:
        table.update(key, fresh.pack())
        found = take(key)
        if there:
            table.update(key, newest.pack())
        return found

    monkeypatch.setattr(table, "take", taken)
    keeper.fast.sweep()
    assert table.lookup(flow) == (newest if there else fresh).pack()


# --- all are drained -----------------------------------------------------------------------------


def test_where_all_are_drained_nobody_is_looked_for(keeper: Keeper) -> None:
    """No loop would find a server: nothing is recorded for IPVS, which refuses new connections."""
    keeper.put(TCP, 1, 1)
    keeper.put(TCP, 0, 0)
    words = keeper.fast._places.slots(keeper.service(TCP).line)  # noqa: SLF001  # to look
    alive = keeper.service(TCP).alive
    assert {word & tracking.CURRENT for word in words} == {layout.EMPTY}
    assert {word >> layout.OLD_SHIFT for word in words} == alive
    assert keeper.tracked(TCP) == len(words)
    keeper.put(TCP, 1, 0)
    words = keeper.fast._places.slots(keeper.service(TCP).line)  # noqa: SLF001  # to look
    assert {word & tracking.CURRENT for word in words} >= {layout.FALLBACK}
    assert layout.EMPTY not in {word & tracking.CURRENT for word in words}
    assert {word >> layout.OLD_SHIFT for word in words} == alive
