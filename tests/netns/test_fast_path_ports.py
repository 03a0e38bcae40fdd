"""The maps as FastPath keeps them for several ports, ranges and any: asked with frames."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from lbdr.datapath import xdp_layout as layout
from lbdr.datapath.bpf_wire import Verdict
from lbdr.datapath.xdp import FastPath
from lbdr.datapath.xdp_layout import FastServer, ServiceFlag
from lbdr.datapath.xdp_wanted import KnownFlow, WantedServer, WantedService
from lbdr.errors import KernelError
from lbdr.model import (
    Address,
    Key,
    MarkKey,
    PortRange,
    Ports,
    Protocol,
    ServiceKey,
    Traffic,
)
from tests.director_frames import CLIENT, VIP, VIP6, datagram, ip4, ip6, segment
from tests.fastpath import VIP_PLACE, Engine, World, fast_path

MARK = 0x3000
MAC = "02:00:00:00:01:01"
OTHER_MAC = "02:00:00:00:01:02"
RIP, RIP6 = ip_address("192.0.2.20"), ip_address("2001:db8::20")
OTHER = ip_address("192.0.2.21")
ENGINES = pytest.mark.parametrize("engine", list(Engine))
TABLE = ServiceFlag.ACTIVE | ServiceFlag.PORTS
ONLY_MARKED = ServiceFlag.LEARNED | ServiceFlag.PORTS


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with fast_path(tmp_path_factory.mktemp("several-ports")) as world:
        yield world


@pytest.fixture
def world(programs: World) -> Iterator[World]:
    yield programs
    fast = FastPath(programs.programs)
    for key in fast.keys:
        fast.drop(key)
    fast.sweep()


def ports(*parts: int | tuple[int, int]) -> Ports:
    return Ports(
        tuple(
            PortRange(part, part) if isinstance(part, int) else PortRange(*part) for part in parts
        )
    )


def wanted(
    which: Ports,
    address: Address = VIP,
    protocol: Protocol = Protocol.TCP,
    *,
    mark: int = MARK,
    servers: tuple[Address, ...] = (),
) -> WantedService:
    """An mh service of one server, unless told otherwise."""
    rips = servers or (RIP6 if address.version == 6 else RIP,)
    macs = dict(zip((RIP, RIP6, OTHER), (MAC, MAC, OTHER_MAC), strict=True))
    real_servers = tuple(WantedServer(rip, 1, FastServer(VIP_PLACE, macs[rip])) for rip in rips)
    return WantedService(
        VIP_PLACE, TABLE, real_servers, Traffic(protocol, address, which), mark=mark
    )


def only_marked(which: Ports, address: Address = VIP, *, mark: int = MARK) -> WantedService:
    traffic = Traffic(Protocol.TCP, address, which)
    return WantedService(VIP_PLACE, ONLY_MARKED, (), traffic, mark=mark, marked_only=True)


def frame(port: int, address: Address = VIP, protocol: Protocol = Protocol.TCP) -> bytes:
    payload = (segment if protocol is Protocol.TCP else datagram)(dport=port)
    return ip6(payload) if address.version == 6 else ip4(payload)


def goes(world: World, engine: Engine, data: bytes) -> str:
    """The server's MAC, where a frame is forwarded; else an empty text."""
    outcome = world.run(engine, data)
    return "" if outcome.verdict is Verdict.PASS else outcome.data[:6].hex(":")


@ENGINES
@pytest.mark.parametrize(
    ("address", "protocol"),
    [(VIP, Protocol.TCP), (VIP, Protocol.UDP), (VIP6, Protocol.TCP), (VIP6, Protocol.UDP)],
)
def test_the_ports_of_a_service(
    world: World, engine: Engine, address: Address, protocol: Protocol
) -> None:
    fast = FastPath(world.programs)
    key = MarkKey(MARK, address.version)
    fast.put(key, wanted(ports(104, 2104, (4001, 4005)), address, protocol))
    for port in (104, 2104, 4001, 4003, 4005):
        assert goes(world, engine, frame(port, address, protocol)) == MAC
    other = Protocol.UDP if protocol is Protocol.TCP else Protocol.TCP
    for port, which in ((103, protocol), (4000, protocol), (4006, protocol), (104, other)):
        outcome = world.run(engine, frame(port, address, which))
        assert (outcome.verdict, outcome.mark) == (Verdict.PASS, 0)


@ENGINES
def test_an_exact_port_wins_over_a_range_and_both_over_any(world: World, engine: Engine) -> None:
    fast = FastPath(world.programs)
    fast.put(MarkKey(MARK, 4), wanted(Ports(), servers=(RIP,)))
    fast.put(ServiceKey(Protocol.TCP, VIP, 80), wanted(ports(80), mark=0, servers=(OTHER,)))
    fast.put(MarkKey(MARK + 1, 4), wanted(ports((90, 99)), mark=MARK + 1, servers=(OTHER,)))
    assert goes(world, engine, frame(1)) == goes(world, engine, frame(65535)) == MAC
    assert goes(world, engine, frame(80)) == goes(world, engine, frame(95)) == OTHER_MAC
    fast.drop(MarkKey(MARK + 1, 4))
    assert goes(world, engine, frame(95)) == MAC
    fast.drop(MarkKey(MARK, 4))
    assert goes(world, engine, frame(95)) == ""
    assert goes(world, engine, frame(80)) == OTHER_MAC


@ENGINES
def test_any_port_of_a_persistent_service_needs_no_mark(world: World, engine: Engine) -> None:
    fast = FastPath(world.programs)
    key = ServiceKey(Protocol.TCP, VIP, 0)
    fast.put(key, wanted(Ports(), mark=0))
    assert goes(world, engine, frame(12345)) == MAC
    assert FastPath(world.programs).keys == {key}


@pytest.mark.parametrize(
    "port", [104, 2104, 4001, 4005], ids=["exact", "exact too", "first", "last"]
)
@pytest.mark.parametrize("address", [VIP, VIP6])
def test_what_is_only_marked_is_marked_at_tc(world: World, address: Address, port: int) -> None:
    fast = FastPath(world.programs)
    fast.put(MarkKey(MARK, address.version), only_marked(ports(104, 2104, (4001, 4005)), address))
    outcome = world.run(Engine.TC, frame(port, address))
    assert (outcome.verdict, outcome.data, outcome.mark) == (
        Verdict.PASS,
        frame(port, address),
        MARK,
    )
    assert world.run(Engine.XDP, frame(port, address)).verdict is Verdict.PASS
    assert fast.keys == {MarkKey(MARK, address.version)}
    assert not fast.forwarded


def test_what_is_not_forwarded_yet_is_marked(world: World) -> None:
    """A VIP that is about to be claimed."""
    fast = FastPath(world.programs)
    fast.put(MarkKey(MARK, 4), replace_flags(wanted(ports(104, 2104)), ServiceFlag.PORTS))
    assert world.run(Engine.TC, frame(104)).mark == MARK
    fast.put(MarkKey(MARK, 4), wanted(ports(104, 2104)))
    assert goes(world, Engine.TC, frame(104)) == MAC


def replace_flags(service: WantedService, flags: ServiceFlag) -> WantedService:
    return WantedService(
        service.vip, flags, service.real_servers, service.traffic, mark=service.mark
    )


@ENGINES
def test_ports_come_and_go(world: World, engine: Engine) -> None:
    fast = FastPath(world.programs)
    key = MarkKey(MARK, 4)
    every = (104, 105, 4001, 4010, 5000)

    def served() -> list[int]:
        return [port for port in every if goes(world, engine, frame(port))]

    for which, expected in (
        (ports(104, (4001, 4005)), [104, 4001]),
        (ports(104, 105, (4001, 4010)), [104, 105, 4001, 4010]),
        (ports((100, 110), 5000), [104, 105, 5000]),
        (Ports(), list(every)),
        (ports(105, 5000), [105, 5000]),
    ):
        fast.put(key, wanted(which))
        assert served() == expected
        assert FastPath(world.programs).traffic(key).ports == Ports(tuple(sorted(which.ranges)))
    fast.drop(key)
    assert served() == []


@ENGINES
def test_a_port_moves_from_one_service_to_another(world: World, engine: Engine) -> None:
    """In whatever order the two are written."""
    fast = FastPath(world.programs)
    one, other = MarkKey(MARK, 4), MarkKey(MARK + 1, 4)
    fast.put(one, wanted(ports(104, 2104)))
    fast.put(other, wanted(ports(105, 106), mark=MARK + 1, servers=(OTHER,)))
    fast.put(other, wanted(ports(104, 105), mark=MARK + 1, servers=(OTHER,)))
    fast.put(one, wanted(ports(106, 2104)))
    found = [goes(world, engine, frame(port)) for port in (104, 105, 106, 2104)]
    assert found == [OTHER_MAC, OTHER_MAC, MAC, MAC]


def test_leaving_and_coming_back_moves_no_connection(world: World) -> None:
    """Between only marked and forwarded the key leads from one place to another, never to none."""
    fast = FastPath(world.programs)
    key, which = MarkKey(MARK, 4), ports(104, (4001, 4005))
    fast.put(key, wanted(which, servers=(RIP, OTHER)))
    fast.put(key, only_marked(which))
    assert world.run(Engine.TC, frame(104)).mark == MARK
    tables = {frame_port: goes(world, Engine.XDP, frame(frame_port)) for frame_port in (104, 4003)}
    assert set(tables.values()) == {""}
    # whom the table does not have it for: recorded before the first packet comes
    fast.put(key, wanted(which, servers=(RIP, OTHER)))
    there = goes(world, Engine.XDP, frame(104))
    moved, mac = (OTHER, OTHER_MAC) if there == MAC else (RIP, MAC)
    fast.put(key, only_marked(which))
    held = [KnownFlow(ip_address(CLIENT), segment(dport=104).sport, 104, moved)]
    fast.put(key, wanted(which, servers=(RIP, OTHER)), held)
    assert goes(world, Engine.XDP, ip4(segment("A", dport=104))) == mac
    assert fast.known_flows(key) == held
    assert FastPath(world.programs).known_flows(key) == held


def test_a_service_that_gets_more_ports_keeps_its_connections(world: World) -> None:
    """To them it is a change of the table, in which the ports of the servers count."""
    fast = FastPath(world.programs)
    key, other = ServiceKey(Protocol.TCP, VIP, 104), MarkKey(MARK, 4)
    servers = (RIP, OTHER)
    fast.put(key, wanted(ports(104), mark=0, servers=servers))
    clients = [f"198.51.100.{last}" for last in range(1, 60)]
    frames = [ip4(segment("A", dport=104), src=client) for client in clients]
    before = [goes(world, Engine.XDP, one) for one in frames]
    new = wanted(ports(104, 2104), servers=servers)
    for here, there, service in (
        (key, other, new),
        (other, key, wanted(ports(104), mark=0, servers=servers)),
    ):
        fast.rename(here, there)
        fast.put(there, service)
        assert fast.due is not None  # SYNs are recorded first
        fast._services[there].due = 0.0  # noqa: SLF001  # its clock
        fast.put(there, service)
        assert [goes(world, Engine.XDP, one) for one in frames] == before
        assert FastPath(world.programs).keys == {there}
    assert {MAC, OTHER_MAC} == set(before)
    fast.rename(key, other)
    fast.put(other, new)
    fast._services[other].due = 0.0  # noqa: SLF001  # its clock
    fast.put(other, new)
    begin = [goes(world, Engine.XDP, ip4(segment("S", dport=2104), src=one)) for one in clients]
    again = [goes(world, Engine.XDP, ip4(segment("S", dport=104), src=one)) for one in clients]
    assert begin == again  # new connections are one decision
    assert begin != before


def test_another_process_finds_all_of_it(world: World) -> None:
    fast = FastPath(world.programs)
    put: dict[Key, WantedService] = {
        MarkKey(MARK, 4): wanted(ports(104, 2104, (4001, 4005))),
        MarkKey(MARK + 1, 6): wanted(ports((1, 9), (11, 19)), VIP6, mark=MARK + 1),
        MarkKey(MARK + 2, 4): wanted(ports((5, 6)), protocol=Protocol.UDP, mark=MARK + 2),
        MarkKey(MARK + 3, 4): only_marked(ports(80, 81), mark=MARK + 3),
        ServiceKey(Protocol.TCP, VIP, 0): wanted(Ports(), mark=0),
        ServiceKey(Protocol.TCP, VIP, 443): wanted(ports(443), mark=0),
    }
    for key, service in put.items():
        fast.put(key, service)
    found = FastPath(world.programs)
    assert found.keys == put.keys()
    assert {key: found.traffic(key) for key in put} == {
        key: service.traffic for key, service in put.items()
    }
    assert found.keys - found.forwarded == {MarkKey(MARK + 3, 4)}
    for key in put:
        found.drop(key)
    assert not [key for name in MAPS for key in world.maps[name].keys()]  # noqa: SIM118


MAPS = ("services4", "services6", "ranges4", "ranges6")


@pytest.mark.parametrize("there", [True, False])
def test_more_ranges_than_there_is_room_for(world: World, there: bool) -> None:
    """An error, and all is as before."""
    fast = FastPath(world.programs)
    key = MarkKey(MARK, 4)
    if there:
        fast.put(key, only_marked(ports(104, (10, 11))))
    many = [(first, first + 1) for first in range(1000, 1000 + 10 * layout.RANGES + 1, 10)]
    with pytest.raises(KernelError, match="more than 16 ranges of ports"):
        fast.put(key, wanted(ports(104, *many)))
    assert fast.keys == ({key} if there else set())
    for port in (104, 10):
        assert world.run(Engine.TC, frame(port)).mark == (MARK if there else 0)
    assert world.run(Engine.TC, frame(1000)).mark == 0
    fast.put(key, wanted(ports(*many[: layout.RANGES])))
    assert goes(world, Engine.XDP, frame(many[layout.RANGES - 1][1])) == MAC
