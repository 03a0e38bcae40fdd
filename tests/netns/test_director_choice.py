"""The director: which server an mh service gives a client, against the kernel's table in Python."""

from __future__ import annotations

import random
from collections.abc import Sequence
from ipaddress import ip_address

import pytest

from lbdr.datapath import xdp_layout as layout
from lbdr.datapath.bpf_wire import Verdict
from lbdr.datapath.xdp_layout import Reason, ServiceFlag
from lbdr.maglev import KEY1, MaglevServer, MaglevTable, hash_endpoint
from lbdr.model import Address, Protocol
from tests.director_frames import (
    ACTIVE,
    ALONE,
    CLIENT,
    PORT,
    SERVICE,
    SLOTS,
    VIP,
    VIP6,
    answer,
    answer6,
    datagram,
    icmp6_error,
    icmp_error,
    ip4,
    ip6,
    segment,
)
from tests.fastpath import Engine, Outcome, World, slot

ENGINES = pytest.mark.parametrize("engine", list(Engine))
RIPS = [ip_address(f"192.0.2.{20 + number}") for number in range(5)]
TABLE = MaglevTable([MaglevServer(rip, PORT, 1 + place) for place, rip in enumerate(RIPS)])
PORT_FLAGS = ACTIVE | ServiceFlag.MH_PORT


def mac_of(server: int) -> str:
    return f"02:00:00:00:01:{server:02x}"


def serve(
    world: World, words: Sequence[int], flags: ServiceFlag = ACTIVE, port: int = PORT
) -> None:
    """A service of the five servers, by these slots."""
    for server in range(len(RIPS)):
        world.server(server, mac_of(server))
    world.table(0, words)
    world.service(SERVICE, VIP, port, flags=flags)
    for address in (VIP, VIP6):
        for protocol in (Protocol.TCP, Protocol.UDP):
            world.key(SERVICE, address, port, protocol)


def words(unavailable: Sequence[int] = ()) -> list[int]:
    """The table's slots, those of servers that take no connection as FALLBACK."""
    return [slot(layout.FALLBACK if server in unavailable else server) for server in TABLE.slots]


def server_of(outcome: Outcome) -> int | None:
    """Who got a frame, by the MAC it goes to; None where it was not forwarded."""
    if outcome.verdict in {Verdict.TX, Verdict.REDIRECT}:
        assert outcome.data[:5].hex(":") == mac_of(0)[:-3]
        return outcome.data[5]
    return None


def clients(version: int, count: int = 60) -> list[tuple[Address, int]]:
    """Random clients and ports, always the same ones."""
    source = random.Random(version)  # noqa: S311  # the same ones in every run
    found: list[tuple[Address, int]] = []
    while len(found) < count:
        first = 0x2001 << 112 if version == 6 else 11 << 24
        size = 112 if version == 6 else 24
        address = ip_address(first | source.getrandbits(size))
        found.append((address, source.randrange(1024, 65536)))
    return found


@ENGINES
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("flags", [ACTIVE, PORT_FLAGS, ALONE], ids=["mh", "mh-port", "alone"])
@pytest.mark.parametrize("unavailable", [(), (1,), (0, 2), (1, 2, 3, 4)], ids=str)
def test_the_kernels_choice(
    world: World, engine: Engine, version: int, flags: ServiceFlag, unavailable: tuple[int, ...]
) -> None:
    serve(world, words(unavailable), flags)
    build = ip6 if version == 6 else ip4
    chosen, missed = set(), 0
    for client, port in clients(version):
        wanted = TABLE.choose(client, port if flags is PORT_FLAGS else 0, unavailable=unavailable)
        for payload in (segment("S", sport=port), datagram(sport=port)):
            outcome = world.run(engine, build(payload, src=str(client)))
            found = server_of(outcome)
            if found is None:  # 32 tries did not find it, as the kernel's thousands did
                reason = Verdict.DROP if flags is ALONE else Verdict.PASS
                assert outcome.verdict is reason
                assert len(unavailable) == 4
                assert tries(client, port if flags is PORT_FLAGS else 0, unavailable) > 32
                missed += 1
                continue
            assert found == wanted
            chosen.add(found)
    assert chosen == set(range(5)) - set(unavailable)
    assert bool(missed) == (len(unavailable) == 4)


def tries(client: Address, port: int, unavailable: Sequence[int]) -> int:
    """How many slots the kernel's loop looks at until it finds a server."""
    first = TABLE.slot(client, port)
    for offset in range(SLOTS):
        at = hash_endpoint(client, port, KEY1, (offset + first) % SLOTS) % SLOTS
        if TABLE.slots[at] not in unavailable:
            return offset + 1
    return SLOTS


@ENGINES
@pytest.mark.parametrize("flags", [ACTIVE, PORT_FLAGS], ids=["mh", "mh-port"])
def test_errors_follow_their_flow(world: World, engine: Engine, flags: ServiceFlag) -> None:
    serve(world, words((2,)), flags)
    for client, port in clients(4, 40):
        sent = world.run(engine, ip4(segment(sport=port), src=str(client)))
        quote = answer(dst=str(client), payload=segment(sport=PORT, dport=port))
        error = world.run(engine, icmp_error(quote))
        assert server_of(error) == server_of(sent) is not None
    for client, port in clients(6, 40):
        sent = world.run(engine, ip6(segment(sport=port), src=str(client)))
        quote = answer6(dst=str(client), payload=segment(sport=PORT, dport=port))
        error = world.run(engine, icmp6_error(quote))
        assert server_of(error) == server_of(sent) is not None


@ENGINES
@pytest.mark.parametrize(
    ("word", "reason"),
    [(layout.EMPTY, Reason.NO_SERVER), (layout.FALLBACK, Reason.FALLBACK)],
    ids=["empty", "all drained"],
)
@pytest.mark.parametrize("alone", [False, True])
def test_no_server(world: World, engine: Engine, word: int, reason: Reason, alone: bool) -> None:
    serve(world, [slot(word)] * SLOTS, ALONE if alone else ACTIVE)
    for frame in (ip4(segment("S")), ip4(datagram()), ip6(segment())):
        verdict = Verdict.DROP if alone else Verdict.PASS
        assert world.run(engine, frame) == Outcome(verdict, frame)
    assert world.reasons(SERVICE, tc=engine is Engine.TC) == {reason: 3}


@ENGINES
def test_a_slot_that_names_no_server(world: World, engine: Engine) -> None:
    serve(world, [slot(layout.MOST_SERVERS - 1)] * SLOTS)
    assert world.run(engine, ip4(segment())) == Outcome(Verdict.PASS, ip4(segment()))
    assert world.reasons(SERVICE, tc=engine is Engine.TC) == {Reason.NO_SERVER: 1}


@ENGINES
def test_another_table_is_one_store(world: World, engine: Engine) -> None:
    """A service's decision names its first line; nothing else changes."""
    serve(world, [slot(1)] * SLOTS)
    lines = world.maps.capacity.lines
    world.table(lines, [slot(2)] * SLOTS)
    assert server_of(world.run(engine, ip4(segment()))) == 1
    world.service(SERVICE, VIP, PORT, table=lines)
    assert server_of(world.run(engine, ip4(segment()))) == 2


# --- ports ---------------------------------------------------------------------------------------


def one_server(world: World, service: int, port: int | None, server: int) -> None:
    """A service of one server, in a table of its own."""
    line = service * world.maps.capacity.lines
    world.server(server, mac_of(server))
    world.table(line, [slot(server)] * SLOTS)
    if port is not None:
        world.service(service, VIP, port, table=line)
        world.key(service, VIP6, port)
    else:
        world.service(service, ip_address("192.0.2.99"), 1, table=line)


@ENGINES
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    ("port", "server"),
    [
        (99, None),
        (100, 1),
        (150, 1),
        (199, 1),
        (200, None),
        (300, 2),
        (301, None),
        (150 + 16, 3),
        (65535, 2),
        (0, None),
    ],
)
def test_ranges(world: World, engine: Engine, version: int, port: int, server: int | None) -> None:
    """The exact port wins; a range's ends belong to it."""
    one_server(world, 1, None, 1)
    one_server(world, 2, None, 2)
    one_server(world, 3, 166, 3)
    ranges = [(100, 199, 1), (300, 300, 2), (65535, 65535, 2)]
    world.ranges(VIP, ranges)
    world.ranges(VIP6, ranges)
    build = ip6 if version == 6 else ip4
    assert server_of(world.run(engine, build(segment(dport=port)))) == server
    assert server_of(world.run(engine, build(datagram(dport=port)))) is None
    assert server_of(world.run(engine, icmp_error(answer(payload=segment(sport=port))))) == server


@ENGINES
@pytest.mark.parametrize("port", [1, 80, 32768, 65535])
def test_any_port(world: World, engine: Engine, port: int) -> None:
    one_server(world, 1, None, 1)
    world.ranges(VIP, [(0, 65535, 1)], Protocol.UDP)
    assert server_of(world.run(engine, ip4(datagram(dport=port)))) == 1
    assert server_of(world.run(engine, ip4(segment(dport=port)))) is None
    assert server_of(world.run(engine, ip6(datagram(dport=port)))) is None


@ENGINES
def test_sixteen_ranges(world: World, engine: Engine) -> None:
    one_server(world, 1, None, 1)
    world.ranges(VIP, [(number * 10, number * 10 + 1, 1) for number in range(1, 17)])
    for port in range(1, 180):
        wanted = 1 if port % 10 < 2 and 10 <= port < 162 else None
        assert server_of(world.run(engine, ip4(segment(dport=port)))) == wanted


@ENGINES
def test_several_ports_are_one_decision(world: World, engine: Engine) -> None:
    """Two ports of a service: a client's server is the same one on both."""
    serve(world, words(), ACTIVE | ServiceFlag.PORTS)
    world.key(SERVICE, VIP, 443)
    for client, port in clients(4, 50):
        one = world.run(engine, ip4(segment(sport=port), src=str(client)))
        other = world.run(engine, ip4(segment(sport=port, dport=443), src=str(client)))
        assert server_of(one) == server_of(other) == TABLE.choose(client)


@ENGINES
def test_a_mark_is_set_for_ipvs_alone(world: World, engine: Engine) -> None:
    serve(world, [slot(layout.EMPTY)] * SLOTS)
    world.service(SERVICE, VIP, PORT, mark=0xFFFFFFFF)
    outcome = world.run(engine, ip4(segment(), src=CLIENT))
    assert outcome.mark == (0xFFFFFFFF if engine is Engine.TC else 0)
    assert world.run(engine, ip4(segment(dport=81))).mark == 0
