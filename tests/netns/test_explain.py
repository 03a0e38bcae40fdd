"""The program that is asked: it says what the director does, and touches nothing."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address

import pytest

from lbdr.datapath import xdp_layout as layout
from lbdr.datapath import xdp_remembered
from lbdr.datapath.bpf_wire import Verdict
from lbdr.datapath.xdp import FastPath
from lbdr.datapath.xdp_explain import (
    By,
    Explainer,
    Leaving,
    Question,
    compile_explainer,
    open_explainer,
)
from lbdr.datapath.xdp_layout import FastServer, LearnedState, Reason, RecordState, ServiceFlag
from lbdr.datapath.xdp_programs import EXPLAIN_PIN, DirectorPrograms
from lbdr.datapath.xdp_wanted import WantedServer, WantedService
from lbdr.errors import KernelError
from lbdr.explain import Asked as Client
from lbdr.explain_offline import offline
from lbdr.maglev import MaglevServer, MaglevTable
from lbdr.model import PortRange, Ports, Protocol, RealServer, ServiceKey, VirtualService
from tests import director_flows as flows
from tests import director_records as records
from tests.bpf_programs import private_bpffs
from tests.director_frames import (
    ACTIVE,
    ALONE,
    CLIENT,
    CLIENT_PORT,
    PORT,
    SERVER,
    SERVER_MAC,
    SERVICE,
    SLOTS,
    VIP,
    VIP6,
    Case,
    datagram,
    ip4,
    ip6,
    segment,
    standard,
)
from tests.fastpath import SMALL, VIP_PLACE, Engine, World, slot, tick
from tests.guest import missing
from tests.netns import test_director_fit, test_director_ours

ANSWER = 96  # bytes, which a frame must have
NEW, OPEN = True, False
CLIENT_IP = ip_address(CLIENT)


@dataclass
class Asked:
    """Programs, and the one that is asked."""

    world: World
    explainer: Explainer

    def dump(self) -> dict[str, object]:
        """What all maps hold."""
        maps = self.world.maps
        return {name: sorted(maps[name].items()) for name in maps}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    if os.geteuid() != 0:
        missing("BPF needs root")
    with private_bpffs(tmp_path_factory.mktemp("bpffs")) as root:
        programs, _ = DirectorPrograms.open(root, SMALL)
        with programs:
            compile_explainer(root, programs.maps)
            with open_explainer(root, programs.maps) as explainer:
                yield Asked(World(programs), explainer)


@pytest.fixture
def asked(loaded: Asked) -> Iterator[Asked]:
    yield loaded
    loaded.world.clear()


def ask(
    asked: Asked, *, new: bool = OPEN, protocol: Protocol = Protocol.TCP, port: int = CLIENT_PORT
) -> tuple[By, int | None, Reason | None]:
    """How the standard client's packet finds its server, and that nothing changes by asking."""
    before = asked.dump()
    said = asked.explainer.ask(Question(protocol, CLIENT_IP, port, VIP, PORT, new))
    assert asked.dump() == before
    assert said is not None
    return said.by, said.server, said.reason


def agree(asked: Asked, frame: bytes, engine: Engine = Engine.DIRECTOR) -> None:
    """What is said of a frame is what becomes of it, and saying it changes nothing."""
    world = asked.world
    before = asked.dump()
    said = asked.explainer.run(frame)
    assert asked.dump() == before
    outcome = world.run(engine, frame)
    counted = world.reasons(said.service, tc=engine is Engine.TC)
    if said.server is not None and counted == {Reason.NEIGHBOUR: 1}:
        return agree(asked, frame, Engine.TC)  # that is who forwards it
    verdict = Verdict.TX if outcome.verdict is Verdict.REDIRECT else outcome.verdict
    assert (Verdict.TX if said.verdict is Verdict.REDIRECT else said.verdict) is verdict
    assert (said.server is None) == (verdict is not Verdict.TX)
    assert counted == ({said.reason: 1} if said.reason else {})
    if said.server is not None:
        assert world.served(said.server)[0] == 1
        assert said.leaving is not None
        assert outcome.data[:6].hex(":") == said.leaving.mac
    return None


# --- the same as the director --------------------------------------------------------------------

CASES = [
    case
    for case in (*test_director_fit.ALL, *test_director_ours.FORWARDED, *test_director_ours.PASSED)
    if Engine.DIRECTOR in case.engines and case.reason is not Reason.LENGTH
] + [case for case in test_director_ours.INACTIVE if Engine.DIRECTOR in case.engines]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_what_is_said_is_what_happens(asked: Asked, case: Case) -> None:
    standard(asked.world, case)
    agree(asked, case.frame.ljust(ANSWER + 8, b"\0"))


@pytest.mark.parametrize("cut", [1, 40])
def test_a_frame_that_is_cut_off(asked: Asked, cut: int) -> None:
    standard(asked.world, Case("", b""))
    agree(asked, ip4(segment() / (b"x" * 100))[:-cut])


@pytest.mark.parametrize("seed", range(200))
def test_random_slots_records_and_flows(asked: Asked, seed: int) -> None:
    """Whatever a slot, a record and a flow may be, and whatever comes then."""
    chance = random.Random(seed)  # noqa: S311  # the same ones in every run
    world = asked.world
    servers = (3, 4, 5, 6)
    for server in servers:
        mac = chance.choice([f"02:00:00:00:01:{server:02x}"] * 5 + [None])
        world.server(server, mac, alive=chance.random() < 0.8, local=chance.random() < 0.05)
    owners = (*servers, layout.FALLBACK, layout.EMPTY)
    kinds = [
        slot(
            chance.choice(owners),
            chance.choice((*servers, layout.FALLBACK)),
            tracked=chance.random() < 0.8,
            anticipate=chance.random() < 0.2,
        )
        for _ in range(chance.randint(1, 3))
    ]
    world.table(0, [chance.choice(kinds) for _ in range(SLOTS)])
    flags = chance.choice([ACTIVE, ACTIVE, ALONE])
    for flag in (ServiceFlag.MH_PORT, ServiceFlag.SETTLING):
        flags |= flag if chance.random() < 0.3 else ServiceFlag(0)
    flags |= ServiceFlag.LEARNED if chance.random() < 0.3 else ServiceFlag(0)
    until = tick() + chance.choice([-100, 100])
    world.service(SERVICE, VIP, PORT, flags=flags, udp_until=until, timeout=flows.TIMEOUT)
    world.key(SERVICE, VIP, PORT, Protocol.UDP)
    world.key(SERVICE, VIP6, PORT)
    build = chance.choice([ip4, ip6])
    sequence = chance.randrange(1 << 32)
    if chance.random() < 0.7:
        records.put(
            world,
            chance.choice(servers),
            chance.choice(list(RecordState)),
            chance.choice(servers),
            sequence=sequence,
            build=build,
        )
    if chance.random() < 0.7 and flags & ServiceFlag.LEARNED:
        kind = "flows4" if build is ip4 else "flows of IPv6"
        age = chance.choice([1, 20, 2000])
        flows.put(world, kind, age=age, state=chance.choice(list(LearnedState)))
    if chance.random() < 0.4:
        payload = datagram() / (b"x" * 60)
    else:
        near = (sequence + chance.choice([0, 1, 70000])) & 0xFFFFFFFF
        payload = segment(chance.choice(["S", "A", "SA", "FA", "R"]), seq=near) / (b"x" * 60)
    agree(asked, build(payload))


def test_records_that_cannot_be_written(asked: Asked) -> None:
    records.serve(asked.world)
    guard = layout.GUARD.pack(tick(), records.RECORDS_PER_TICK)
    guard_map = asked.world.maps["guard"]
    guard_map.update(layout.U32.pack(0), guard * (guard_map.value_size // len(guard)))
    assert ask(asked, new=NEW) == (By.OLD, records.OLD, Reason.RECORD)


# --- how it is said ------------------------------------------------------------------------------


def test_a_slot_of_the_table(asked: Asked) -> None:
    rips = [ip_address(f"192.0.2.{20 + place}") for place in range(3)]
    table = MaglevTable([MaglevServer(rip, PORT, 1) for rip in rips])
    for place in range(3):
        asked.world.server(place, f"02:00:00:00:01:{place:02x}")
    asked.world.table(0, [slot(place) for place in table.slots])
    asked.world.service(SERVICE, VIP, PORT, flags=ACTIVE | ServiceFlag.MH_PORT)
    for port in range(1024, 1324):
        said = asked.explainer.ask(Question(Protocol.TCP, CLIENT_IP, port, VIP, PORT, NEW))
        assert said is not None
        assert (said.slot, said.server) == (
            table.slot(CLIENT_IP, port),
            table.choose(CLIENT_IP, port),
        )
        assert (said.by, said.tracked, said.drained) == (By.CURRENT, False, False)


def test_the_fallback(asked: Asked) -> None:
    rips = [ip_address(f"192.0.2.{20 + place}") for place in range(3)]
    table = MaglevTable([MaglevServer(rip, PORT, 1) for rip in rips])
    for place in range(3):
        asked.world.server(place, f"02:00:00:00:01:{place:02x}")
    asked.world.table(0, [slot(layout.FALLBACK if place else 0) for place in table.slots])
    asked.world.service(SERVICE, VIP, PORT, flags=ACTIVE | ServiceFlag.MH_PORT)
    tried = set()
    for port in range(1024, 1064):
        said = asked.explainer.ask(Question(Protocol.TCP, CLIENT_IP, port, VIP, PORT, NEW))
        assert said is not None
        assert said.server == 0
        assert said.drained == (table.choose(CLIENT_IP, port) != 0) == bool(said.tries)
        tried.add(said.tries)
    assert {0, 1, 2} <= tried


def test_a_tracked_slot(asked: Asked) -> None:
    records.serve(asked.world)
    assert ask(asked, new=NEW) == (By.CURRENT, records.CURRENT, None)
    assert ask(asked) == (By.OLD, records.OLD, None)


@pytest.mark.parametrize("state", list(RecordState))
def test_a_record(asked: Asked, state: RecordState) -> None:
    """What goes on with it is meant, and a SYN that is not the one of the record."""
    records.serve(asked.world)
    records.put(asked.world, records.THIRD, state)
    assert ask(asked) == (By.RECORD, records.THIRD, None)
    assert ask(asked, new=NEW) == (By.CURRENT, records.CURRENT, None)


def test_a_learned_flow(asked: Asked) -> None:
    flows.serve(asked.world)
    assert ask(asked) == (By.NOTHING, None, Reason.NOT_LEARNED)
    flows.put(asked.world)
    assert ask(asked) == (By.LEARNED, flows.ONE, None)
    assert ask(asked, new=NEW) == (By.NOTHING, None, Reason.NOT_LEARNED)
    flows.put(asked.world, age=flows.REFRESH)
    assert ask(asked) == (By.NOTHING, None, Reason.REFRESH)
    flows.put(asked.world, state=LearnedState.CLOSING)
    assert ask(asked) == (By.NOTHING, None, Reason.CLOSING)


@pytest.mark.parametrize("vlans", [(), ((0x8100, 7),), ((0x88A8, 100), (0x8100, 7))])
def test_where_it_leaves(asked: Asked, vlans: tuple[tuple[int, int], ...]) -> None:
    place = layout.Place(1, "02:00:00:00:00:77", vlans)
    asked.world.server(SERVER, SERVER_MAC, place, out=place)
    asked.world.table(0, [slot(SERVER)] * SLOTS)
    asked.world.service(SERVICE, VIP, PORT, vip=place)
    said = asked.explainer.ask(Question(Protocol.TCP, CLIENT_IP, CLIENT_PORT, VIP, PORT, NEW))
    assert said is not None
    assert said.leaving == Leaving("lo", SERVER_MAC, vlans)
    asked.world.server(SERVER, None, place, out=VIP_PLACE)
    said = asked.explainer.ask(Question(Protocol.TCP, CLIENT_IP, CLIENT_PORT, VIP, PORT, NEW))
    assert said is not None
    assert (said.server, said.reason, said.leaving) == (None, Reason.NEIGHBOUR, Leaving("lo", ""))


@pytest.mark.parametrize("flags", [(), ("mh-port",)], ids=["mh", "mh-port"])
@pytest.mark.parametrize("version", [4, 6])
def test_a_file_alone_says_the_same(asked: Asked, version: int, flags: tuple[str, ...]) -> None:
    """Of a fresh service with random weights, for random clients: live, offline and by packets."""
    chance = random.Random(f"{version} {flags}")  # noqa: S311  # the same ones in every run
    vip = VIP if version == 4 else VIP6
    rips = [
        ip_address(f"192.0.2.{20 + one}" if version == 4 else f"fd00::{one}") for one in range(6)
    ]
    servers = tuple(
        RealServer(rip, PORT, chance.choice([0, 1, 7, 65535]) if place else 3, name=f"rs{place}")
        for place, rip in enumerate(rips)
    )
    virtual = VirtualService(
        "WEB",
        vip,
        ports=Ports((PortRange(PORT, PORT),)),
        scheduler="mh",
        scheduler_flags=frozenset(flags),
        real_servers=servers,
    )
    fast = FastPath(asked.world.programs)
    key = ServiceKey(Protocol.TCP, vip, PORT)
    reached = {
        server.address: FastServer(VIP_PLACE, f"02:00:00:00:01:{place:02x}")
        for place, server in enumerate(servers)
    }
    wanted = WantedService(
        VIP_PLACE,
        ServiceFlag.ACTIVE | (ServiceFlag.MH_PORT if flags else ServiceFlag(0)),
        # IPVS's list has the last one that was added first
        tuple(WantedServer(one.address, one.weight, reached[one.address]) for one in servers[::-1]),
        key.traffic,
    )
    fast.put(key, wanted)
    try:
        placed = xdp_remembered.servers(fast.maps, [fast.index_of(key)])
        chosen = set()
        for _ in range(150):
            client = ip_address(11 << 24 | chance.getrandbits(24))
            if version == 6:
                client = ip_address(0x2001 << 112 | chance.getrandbits(112))
            port = chance.randrange(1024, 65536)
            alone = offline(Client(virtual, client, port, PORT))
            said = asked.explainer.ask(Question(Protocol.TCP, client, port, vip, PORT, NEW))
            assert said is not None
            assert said.server is not None
            assert (str(placed[said.server][0]), said.slot) == (alone.address, alone.slot)
            build = ip4 if version == 4 else ip6
            outcome = asked.world.run(Engine.XDP, build(segment("S", sport=port), src=str(client)))
            assert outcome.data[:6].hex(":") == reached[placed[said.server][0]].mac
            chosen.add(alone.server)
        assert len(chosen) > 1
        assert chosen <= {server.name for server in servers if server.weight}
    finally:
        fast.drop(key)


def test_no_service(asked: Asked) -> None:
    question = Question(Protocol.TCP, CLIENT_IP, CLIENT_PORT, VIP, PORT, NEW)
    assert asked.explainer.ask(question) is None
    standard(asked.world, Case("", b""))
    other = Question(Protocol.TCP, CLIENT_IP, CLIENT_PORT, VIP, PORT + 1, NEW)
    assert asked.explainer.ask(other) is None


def test_it_is_compiled_once_and_goes_with_its_version(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with private_bpffs(tmp_path_factory.mktemp("bpffs")) as root:
        programs, _ = DirectorPrograms.open(root, SMALL)
        with programs:
            compile_explainer(root, programs.maps)
            with open_explainer(root, programs.maps) as first:
                number = first.program.info().id
            pins = {pin.name for pin in root.iterdir() if pin.suffix != ".debug"}  # the kernel's
            assert pins - set(programs.maps) == {"steady", "director", "tc", "learn", EXPLAIN_PIN}
            compile_explainer(root, programs.maps)
            with open_explainer(root, programs.maps) as second:
                assert second.program.info().id == number
            programs.maps.set_version(1)
            with pytest.raises(KernelError, match="another version"):
                compile_explainer(root, programs.maps)
        programs, there = DirectorPrograms.open(root, SMALL)
        programs.close()
        assert not there
        assert not (root / EXPLAIN_PIN).exists()
