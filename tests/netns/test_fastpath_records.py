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
from lbdr.datapath.bpf_wire import Verdict
from lbdr.datapath.xdp import FastPath
from lbdr.datapath.xdp_layout import Capacity, FastServer, Reason, RecordState, ServiceFlag
from lbdr.datapath.xdp_places import tick
from lbdr.datapath.xdp_wanted import WantedServer, WantedService
from lbdr.maglev import table_size
from lbdr.model import Address, Protocol, ServiceKey
from lbdr.tracking import Record
from tests.director_frames import CLIENT, CLIENT_PORT, PORT, VIP, answer, icmp_error, ip4, segment
from tests.fastpath import VIP_PLACE, Engine, World, fast_path
from tests.guest import missing

CAPACITY = Capacity(index=8, services=8, servers=64, tables=8, records=64, flows=64, devices=8)
RIPS = [ip_address(f"192.0.2.{20 + n}") for n in range(3)]
TCP, UDP = ServiceKey(Protocol.TCP, VIP, PORT), ServiceKey(Protocol.UDP, VIP, PORT)
PORT_HASH = ServiceFlag.ACTIVE | ServiceFlag.MH_PORT
HASHED, LEARNED = ServiceFlag.ACTIVE, ServiceFlag.ACTIVE | ServiceFlag.LEARNED
PORTS = range(1024, 1064)


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

    def put(self, key: ServiceKey, *weights: int, flags: ServiceFlag = PORT_HASH) -> WantedService:
        """Have a service with servers of these weights, now."""
        servers = tuple(
            WantedServer(rip, weight, FastServer(VIP_PLACE, f"02:00:00:00:01:{place:02x}"))
            for place, (rip, weight) in enumerate(zip(RIPS, weights, strict=False))
        )
        wanted = WantedService(VIP_PLACE, flags, servers, key.traffic, 800)
        self.fast.put(key, wanted)
        service = self.fast._services[key]  # noqa: SLF001  # its clock
        if service.due is not None:
            service.due = 0.0
            self.fast.put(key, wanted)
        return wanted

    def slots(self, key: ServiceKey) -> list[int]:
        """The words of a service's table."""
        return list(self.fast._places.slots(self.service(key).line))  # noqa: SLF001  # to look

    def goes(self, frame: bytes) -> Address | None:
        """The server of TCP that gets a frame; None where it goes up."""
        outcome = self.world.run(Engine.XDP, frame)
        return None if outcome.verdict is Verdict.PASS else RIPS[outcome.data[5]]

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
        flow = layout.flow_of(ip_address(CLIENT), CLIENT_PORT, PORT, self.service(key).index)
        self.world.maps["records"].update(flow, record.pack())
        return flow

    def tracked(self, key: ServiceKey) -> int:
        """Slots that are tracked."""
        return sum(bool(word & layout.TRACKED) for word in self.slots(key))


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
    before = {word & tracking.CURRENT for word in again.slots(UDP)}
    olds = [word >> layout.OLD_SHIFT for word in again.slots(UDP)]
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
    word = keeper.slots(TCP)[tracking.flow_slot(flow, table_size(8), mh_port=True)]
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
    words = keeper.slots(TCP)
    alive = keeper.service(TCP).alive
    assert {word & tracking.CURRENT for word in words} == {layout.EMPTY}
    assert {word >> layout.OLD_SHIFT for word in words} == alive
    assert keeper.tracked(TCP) == len(words)
    keeper.put(TCP, 1, 0)
    words = keeper.slots(TCP)
    assert {word & tracking.CURRENT for word in words} >= {layout.FALLBACK}
    assert layout.EMPTY not in {word & tracking.CURRENT for word in words}
    assert {word >> layout.OLD_SHIFT for word in words} == alive


# --- a service that is to be decided otherwise ----------------------------------------------------


def syn(port: int) -> bytes:
    return ip4(segment("S", sport=port, seq=7))


def data(port: int, sequence: int = 8) -> bytes:
    return ip4(segment(sport=port, seq=sequence))


@pytest.mark.parametrize("becomes", [LEARNED, HASHED])
def test_another_scheduler_has_the_new_connections_alone(
    keeper: Keeper, becomes: ServiceFlag
) -> None:
    """An open one stays where it is, with or without a record; IPVS never heard of it."""
    keeper.put(TCP, 1, 1)
    before = {port: keeper.goes(data(port)) for port in PORTS}
    assert set(before.values()) == set(RIPS[:2])
    wanted = keeper.put(TCP, 1, 1, flags=becomes)
    for port in PORTS:
        assert keeper.goes(data(port)) == before[port]
        assert (
            keeper.goes(icmp_error(answer(payload=segment(sport=PORT, dport=port))))
            == (before[port])
        )
    for port in PORTS[:10]:  # used again
        assert keeper.goes(syn(port)) is None
        assert keeper.goes(data(port, 1 << 30)) == before[port]
        assert keeper.goes(data(port)) is None
        assert keeper.goes(syn(port)) is None
        assert keeper.goes(data(port)) is None
    keeper.fast.sweep()
    assert not keeper.fast.is_other(TCP, wanted)
    assert [keeper.goes(data(port)) for port in PORTS[10:]] == [before[p] for p in PORTS[10:]]
    assert [keeper.goes(data(port)) for port in PORTS[:10]] == [None] * 10
    # another process goes on with it
    again = replace(keeper, fast=FastPath(keeper.world.programs))
    again.put(TCP, 1, 1, flags=becomes)
    assert [again.goes(data(port)) for port in PORTS[10:]] == [before[p] for p in PORTS[10:]]
    assert [again.goes(data(port)) for port in PORTS[:10]] == [None] * 10


def test_its_table_goes_once_what_is_open_is_known(keeper: Keeper) -> None:
    keeper.put(TCP, 1, 1)
    before = {port: keeper.goes(data(port)) for port in PORTS}
    wanted = keeper.put(TCP, 1, 1, flags=LEARNED)
    keeper.older(TCP, tracking.SETTLE - tracking.SETTLING)
    keeper.fast.sweep()
    keeper.put(TCP, 1, 1, flags=LEARNED)
    for port in PORTS[:20]:
        assert keeper.goes(data(port)) == before[port]
    assert keeper.goes(syn(PORTS[0] - 1)) is None  # IPVS has it
    keeper.older(TCP, tracking.SETTLING - 5)
    keeper.fast.sweep()
    assert not keeper.fast.is_other(TCP, wanted)
    keeper.older(TCP, 5)
    keeper.fast.sweep()
    assert keeper.fast.is_other(TCP, wanted)
    known = keeper.fast.known_flows(TCP)
    assert {flow.client_port: flow.server for flow in known} == {p: before[p] for p in PORTS[:20]}


def test_a_server_that_fails_then_leaves_its_own_to_ipvs(keeper: Keeper) -> None:
    keeper.put(TCP, 1, 1)
    before = {port: keeper.goes(data(port)) for port in PORTS}
    keeper.put(TCP, 1, 1, flags=LEARNED)
    keeper.put(TCP, 1, flags=LEARNED)
    for port in PORTS:
        assert keeper.goes(data(port)) == (RIPS[0] if before[port] == RIPS[0] else None)


def test_the_scheduler_that_it_had_is_back(keeper: Keeper) -> None:
    keeper.put(TCP, 1, 1)
    before = {port: keeper.goes(data(port)) for port in PORTS}
    keeper.put(TCP, 1, 1, flags=LEARNED)
    assert keeper.goes(syn(PORTS[0])) is None
    keeper.put(TCP, 1, 1)
    assert not keeper.service(TCP).leaving
    for port in PORTS:
        assert keeper.goes(data(port)) == (None if port == PORTS[0] else before[port])
    assert keeper.goes(syn(PORTS[1])) == before[PORTS[1]]


def test_learned_flows_that_ipvs_has_forgotten_are_known(keeper: Keeper) -> None:
    """They must not get lost when IPVS is to have them again, or a table."""
    wanted = keeper.put(TCP, 1, 1, flags=LEARNED)
    flows, service = keeper.world.maps["flows4"], keeper.service(TCP)
    server = service.servers[RIPS[1]].index
    for port, age, state in ((1, 799, 0), (2, 800, 0), (3, 900, 0), (4, 900, 1)):
        flow = layout.FLOW4.pack(ip_address(CLIENT).packed, port.to_bytes(2, "big"), service.index)
        value = layout.LEARNED.pack(server, state, tick() - age & 0xFFFFFFFF)
        flows.update(flow, value)
    assert {(one.client_port, one.server) for one in keeper.fast.known_flows(TCP)} == {
        (2, RIPS[1]),
        (3, RIPS[1]),
    }
    assert {one.client_port for one in keeper.fast.learned(TCP)} == {1, 2, 3}
    assert not keeper.fast.is_other(TCP, wanted)
    assert keeper.fast.is_other(TCP, replace(wanted, flags=PORT_HASH))
