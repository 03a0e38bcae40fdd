"""The plan: golden plans as a shell session, and what holds for all of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_address, ip_interface
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbdr.config.load import parse
from lbdr.desired import expand
from lbdr.model import (
    DesiredState,
    MarkKey,
    Persistence,
    Protocol,
    RealServer,
    Role,
    Service,
    ServiceKey,
    Timeouts,
    VirtualAddress,
)
from lbdr.operations import (
    AddAddress,
    AddService,
    DeleteAddress,
    DeleteService,
    Operation,
    ProbeAddress,
    SetService,
    SetSysctl,
)
from lbdr.plan import Ownership, Plan, make_plan
from tests.unit.simulated import World, subject
from tests.unit.strategies import changed, desired_states, worlds

CONFIG = """\
director:
  name: lb1
  timeouts: {tcp: 2h}
real_servers:
  rs1: {address: 10.0.0.31}
  rs2: {address: 10.0.0.32}
  rs6: {address: "fd00::31"}
  sorry: {address: 10.0.0.39}
virtual_services:
  WEB:
    address: 10.0.0.50
    ports: [80]
    real_servers: [rs1, {server: rs2, weight: 2, upper_threshold: 200, lower_threshold: 150}]
    sorry_server: sorry
  WARD:
    address: 10.0.0.50
    ports: any
    persistence: {timeout: 5m, granularity: /24}
    real_servers: [rs1, rs2]
  DNS:
    address: 10.0.0.51
    ports: [53]
    protocol: udp
    one_packet: true
    scheduler: rr
    real_servers: [rs1]
  DIAMETER:
    address: 10.0.0.51
    ports: [3868]
    protocol: sctp
    scheduler: sh
    scheduler_flags: [sh-port]
    real_servers: [rs2]
  WEB6:
    address: "fd00::50"
    ports: [443]
    scheduler: mh
    scheduler_flags: [mh-port]
    persistence: {timeout: 1m, granularity: /64}
    real_servers: [rs6]
"""

COLD_START = """\
sysctl -w net.ipv4.vs.expire_nodest_conn=1
sysctl -w net.ipv4.vs.expire_quiescent_template=1
sysctl -w net.ipv4.vs.schedule_icmp=1
sysctl -w net.ipv4.vs.sloppy_sctp=1
sysctl -w net.ipv4.vs.sloppy_tcp=1
ipvsadm --set 7200 0 0
ipvsadm -A -t 10.0.0.50:0 -s wlc -p 300 -M 255.255.255.0
ipvsadm -a -t 10.0.0.50:0 -r 10.0.0.31:0 -g -w 1
ipvsadm -a -t 10.0.0.50:0 -r 10.0.0.32:0 -g -w 1
ipvsadm -A -t 10.0.0.50:80 -s wlc
ipvsadm -a -t 10.0.0.50:80 -r 10.0.0.31:80 -g -w 1
ipvsadm -a -t 10.0.0.50:80 -r 10.0.0.32:80 -g -w 2 -x 200 -y 150
ipvsadm -A --sctp-service 10.0.0.51:3868 -s sh -b sh-port
ipvsadm -a --sctp-service 10.0.0.51:3868 -r 10.0.0.32:3868 -g -w 1
ipvsadm -A -u 10.0.0.51:53 -s rr -o
ipvsadm -a -u 10.0.0.51:53 -r 10.0.0.31:53 -g -w 1
ipvsadm -A -t [fd00::50]:443 -s mh -p 60 -M 64 -b mh-fallback,mh-port
ipvsadm -a -t [fd00::50]:443 -r [fd00::31]:443 -g -w 1
arping -D -c 2 -I eth0 10.0.0.50
arping -D -c 2 -I eth0 10.0.0.51
ndptool -t ns -i eth0 -T fd00::50 send
ip address add 10.0.0.50/32 dev eth0
ip address add 10.0.0.51/32 dev eth0
ip address add fd00::50/128 dev eth0 nodad preferred_lft 0
arping -U -c 5 -I eth0 10.0.0.50
arping -U -c 5 -I eth0 10.0.0.51
ndptool -t na -U -i eth0 -T fd00::50 send
"""

CHANGED = (
    CONFIG.replace("scheduler: rr", "scheduler: wrr")
    .replace("[rs1, {server: rs2, weight: 2,", "[rs3, {server: rs2, weight: 5,")
    .replace("  rs6:", "  rs3: {address: 10.0.0.33}\n  rs6:")
    .split("  WEB6:")[0]
)

CHANGE = """\
ip address del fd00::50/128 dev eth0
ipvsadm -D -t [fd00::50]:443
ipvsadm -a -t 10.0.0.50:80 -r 10.0.0.33:80 -g -w 1
ipvsadm -e -t 10.0.0.50:80 -r 10.0.0.32:80 -g -w 5 -x 200 -y 150
ipvsadm -d -t 10.0.0.50:80 -r 10.0.0.31:80
ipvsadm -E -u 10.0.0.51:53 -s wrr -o
sysctl -w net.ipv4.vs.sloppy_sctp=0
sysctl -w net.ipv4.vs.sloppy_tcp=0
"""

WITHDRAWAL = """\
ip address del 10.0.0.50/32 dev eth0
ip address del 10.0.0.51/32 dev eth0
ip address del fd00::50/128 dev eth0
ipvsadm -D -t 10.0.0.50:0
ipvsadm -D -t 10.0.0.50:80
ipvsadm -D --sctp-service 10.0.0.51:3868
ipvsadm -D -u 10.0.0.51:53
ipvsadm -D -t [fd00::50]:443
sysctl -w net.ipv4.vs.expire_nodest_conn=0
sysctl -w net.ipv4.vs.expire_quiescent_template=0
sysctl -w net.ipv4.vs.schedule_icmp=0
sysctl -w net.ipv4.vs.sloppy_sctp=0
sysctl -w net.ipv4.vs.sloppy_tcp=0
"""

STANDBY = """\
ip address del 10.0.0.50/32 dev eth0
ip address del 10.0.0.51/32 dev eth0
ip address del fd00::50/128 dev eth0
"""

ACTIVE = """\
arping -D -c 2 -I eth0 10.0.0.50
arping -D -c 2 -I eth0 10.0.0.51
ndptool -t ns -i eth0 -T fd00::50 send
ip address add 10.0.0.50/32 dev eth0
ip address add 10.0.0.51/32 dev eth0
ip address add fd00::50/128 dev eth0 nodad preferred_lft 0
arping -U -c 5 -I eth0 10.0.0.50
arping -U -c 5 -I eth0 10.0.0.51
ndptool -t na -U -i eth0 -T fd00::50 send
"""

WEB = ServiceKey(Protocol.TCP, ip_address("10.0.0.50"), 80)
VIP = VirtualAddress(WEB.address, "eth0")
RS1 = RealServer(ip_address("10.0.0.31"), 80)
RS2 = RealServer(ip_address("10.0.0.32"), 80)
NOTHING = Ownership()


def wanted(text: str, role: Role = Role.ACTIVE) -> DesiredState:
    return expand(parse(text.encode(), "lbdr.yaml").configuration, World().network, role=role)


def holding(*services: Service) -> DesiredState:
    return DesiredState({service.key: service for service in services})


def text(operations: Iterable[Operation]) -> str:
    return "".join(f"{operation.command}\n" for operation in operations)


def apply(
    world: World, desired: DesiredState, owned: Ownership = NOTHING, *, adopt: bool = False
) -> tuple[Plan, Ownership]:
    """Plan and do it; the plan, and what is lbdr's afterwards."""
    plan = make_plan(desired, world.observe(), owned, adopt=adopt)
    for operation in plan.operations:
        world.do(operation)
    conflicts = {conflict.key for conflict in plan.conflicts}
    added = {operation.vip for operation in plan.operations if isinstance(operation, AddAddress)}
    former = {**plan.former_sysctls, **owned.sysctls}
    return plan, Ownership(
        services=frozenset(desired.services.keys() - conflicts),
        addresses=(owned.addresses & desired.addresses) | added,
        sysctls={name: was for name, was in former.items() if name in desired.sysctls},
    )


# --- golden -------------------------------------------------------------------------------------


def test_golden_cold_start() -> None:
    plan, _ = apply(World(), wanted(CONFIG))
    assert text(plan.operations) == COLD_START
    assert plan.former_sysctls == {
        "net.ipv4.vs.expire_nodest_conn": "0",
        "net.ipv4.vs.expire_quiescent_template": "0",
        "net.ipv4.vs.schedule_icmp": "0",
        "net.ipv4.vs.sloppy_sctp": "0",
        "net.ipv4.vs.sloppy_tcp": "0",
    }
    assert not plan.conflicts
    assert not plan.missing_sysctls


def test_golden_change() -> None:
    world = World()
    _, owned = apply(world, wanted(CONFIG))
    plan, _ = apply(world, wanted(CHANGED), owned)
    assert text(plan.operations) == CHANGE


def test_golden_withdrawal_deletes_the_vips_first_and_leaves_nothing() -> None:
    world = World()
    before = world.dump()
    _, owned = apply(world, wanted(CONFIG))
    plan, owned = apply(world, DesiredState(), owned)
    assert text(plan.operations) == WITHDRAWAL
    assert owned == NOTHING
    # IPVS's timeouts stay: they are no one's, and connections live by them
    assert [line for line in world.dump() if "--set" not in line] == [
        line for line in before if "--set" not in line
    ]


def test_golden_roles() -> None:
    world = World()
    _, owned = apply(world, wanted(CONFIG))
    plan, owned = apply(world, wanted(CONFIG, Role.STANDBY), owned)
    assert text(plan.operations) == STANDBY
    plan, _ = apply(world, wanted(CONFIG), owned)
    assert text(plan.operations) == ACTIVE


def test_golden_what_is_there_already_is_adopted_without_a_command() -> None:
    world = World()
    _, owned = apply(world, wanted(CONFIG))
    assert make_plan(wanted(CONFIG), world.observe(), owned) == Plan()
    # the state file is lost: IPVS entries that are exactly as wanted become lbdr's again
    plan = make_plan(wanted(CONFIG), world.observe(), NOTHING)
    assert plan.operations == ()
    assert plan.adopted == wanted(CONFIG).services.keys()


# --- what is others' ----------------------------------------------------------------------------


def test_a_service_of_others_is_a_conflict_and_the_rest_goes_on() -> None:
    world = World()
    apply(world, holding(Service(WEB, "rr", real_servers=(RS1,))))  # by hand: not in owned
    theirs = world.service(WEB)
    plan, owned = apply(world, wanted(CONFIG))
    assert [conflict.key for conflict in plan.conflicts] == [WEB]
    assert str(plan.conflicts[0]) == (
        "virtual service WEB (tcp 10.0.0.50:80) exists in IPVS, differs from the configuration, "
        "and lbdr did not make it; `lbdr apply --adopt` takes it over"
    )
    assert world.service(WEB) == theirs
    assert WEB not in owned.services
    assert len(world.services) == len(wanted(CONFIG).services)
    apply(world, DesiredState(), owned)
    assert list(world.services) == [WEB]


def test_adopt_takes_over_what_is_not_as_wanted() -> None:
    world = World()
    apply(world, holding(Service(WEB, "rr", real_servers=(RS1,))))
    desired = holding(Service(WEB, "wlc", real_servers=(RS2,)))
    plan, _ = apply(world, desired, adopt=True)
    assert plan.adopted == {WEB}
    assert text(plan.operations) == (
        "ipvsadm -E -t 10.0.0.50:80 -s wlc\n"
        "ipvsadm -a -t 10.0.0.50:80 -r 10.0.0.32:80 -g -w 1\n"
        "ipvsadm -d -t 10.0.0.50:80 -r 10.0.0.31:80\n"
    )


def test_a_vip_that_the_host_has_with_a_prefix_of_its_own_is_not_lbdrs() -> None:
    world = World()
    world.interfaces["eth0"].append(ip_interface("10.0.0.50/24"))
    desired = DesiredState(addresses=frozenset({VIP}))
    plan, owned = apply(world, desired)
    assert plan.operations == ()
    assert make_plan(DesiredState(), world.observe(), owned).operations == ()


def test_a_vip_of_lbdr_that_is_gone_is_not_deleted_again() -> None:
    owned = Ownership(addresses=frozenset({VIP}), services=frozenset({WEB}))
    assert make_plan(DesiredState(), World().observe(), owned).operations == ()


def test_a_vip_moves_to_another_interface_before_it_leaves_the_first() -> None:
    world = World()
    _, owned = apply(world, DesiredState(addresses=frozenset({VIP})))
    plan, _ = apply(
        world, DesiredState(addresses=frozenset({replace(VIP, interface="eth1")})), owned
    )
    assert text(plan.operations) == (
        "ip address add 10.0.0.50/32 dev eth1\n"
        "arping -U -c 5 -I eth1 10.0.0.50\n"
        "ip address del 10.0.0.50/32 dev eth0\n"
    )


# --- details ------------------------------------------------------------------------------------


def test_a_sysctl_that_the_kernel_lacks_is_told_and_not_set() -> None:
    world = World()
    del world.sysctls["net.ipv4.vs.sloppy_sctp"]
    plan, _ = apply(world, wanted(CONFIG))
    assert plan.missing_sysctls == ("net.ipv4.vs.sloppy_sctp",)
    assert "sloppy_sctp" not in text(plan.operations)


@pytest.mark.parametrize(
    ("timeouts", "command"),
    [
        (None, ""),
        (Timeouts(), ""),
        (Timeouts(tcp=900), ""),  # as it is
        (Timeouts(tcp=900, udp=30), "ipvsadm --set 900 0 30\n"),
        (Timeouts(tcp_fin=1), "ipvsadm --set 0 1 0\n"),
    ],
)
def test_timeouts_are_set_only_where_they_differ(timeouts: Timeouts | None, command: str) -> None:
    plan, _ = apply(World(), DesiredState(timeouts=timeouts))
    assert text(plan.operations) == command


@pytest.mark.parametrize(
    "changed",
    [
        Service(WEB, "rr"),
        Service(WEB, "mh", frozenset({"mh-port"})),
        Service(WEB, "wlc", persistence=Persistence(300, 24)),
        Service(WEB, "wlc", one_packet=True),
    ],
)
def test_each_setting_of_a_service_is_noticed(changed: Service) -> None:
    world = World()
    _, owned = apply(world, holding(Service(WEB, "wlc")))
    plan, _ = apply(world, holding(changed), owned)
    assert plan.operations == (SetService(changed),)


def test_names_and_the_order_of_real_servers_change_nothing() -> None:
    world = World()
    _, owned = apply(world, holding(Service(WEB, "wlc", real_servers=(RS1, RS2), name="WEB")))
    renamed = Service(WEB, "wlc", real_servers=(RS2, replace(RS1, name="x")), name="OTHER")
    assert make_plan(holding(renamed), world.observe(), owned) == Plan()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({1: 1}, {1: 0, 2: 1}),  # a sorry server comes in for the last one that drains
        ({1: 1, 2: 0}, {1: 0, 2: 1}),  # one is drained, another one put online
        ({1: 0, 2: 1}, {1: 1}),  # a sorry server goes
        ({1: 1}, {2: 1}),  # one is replaced
    ],
)
def test_a_change_never_leaves_a_service_without_a_server(
    before: dict[int, int], after: dict[int, int]
) -> None:
    def service(weights: dict[int, int]) -> DesiredState:
        servers = (replace((RS1, RS2)[n - 1], weight=weight) for n, weight in weights.items())
        return holding(Service(WEB, "wlc", real_servers=tuple(servers)))

    world = World()
    _, owned = apply(world, service(before))
    assert lost_servers(world, service(after), owned) == []


def lost_servers(world: World, desired: DesiredState, owned: Ownership) -> list[str]:
    """The operations that leave a service without a server that has one before and after."""
    end = World(dict(world.services), {key: [*of] for key, of in world.real_servers.items()})
    operations = make_plan(desired, world.observe(), owned).operations
    for operation in operations:
        if isinstance(subject(operation), ServiceKey | MarkKey):
            end.do(operation)
    always = {key for key in world.services if world.serves(key) and end.serves(key)}
    lost = []
    for operation in operations:
        world.do(operation)
        if not all(world.serves(key) for key in always):
            lost.append(operation.command)
    return lost


# --- properties ---------------------------------------------------------------------------------


def assert_holds(world: World, desired: DesiredState, conflicts: set[ServiceKey | MarkKey]) -> None:
    """The kernel holds what is desired: an empty plan alone may come of a blind planner."""
    for key in desired.services.keys() - conflicts:
        wanted_, there = desired.services[key], world.service(key)
        assert there is not None
        assert replace(there.service, real_servers=()) == replace(wanted_, real_servers=())
        assert set(there.service.real_servers) == set(wanted_.real_servers)
    for vip in desired.addresses:
        assert vip.interface in world.network.holders(vip.address)
    for name, value in desired.sysctls.items():
        assert world.sysctls.get(name, value) == value


@settings(max_examples=60, deadline=None)
@given(worlds(), desired_states(), desired_states(), st.booleans())
def test_applied_once_nothing_is_left_to_do(
    world: World, first: DesiredState, second: DesiredState, adopt: bool
) -> None:
    owned = NOTHING
    for desired in (first, second, first, DesiredState()):
        plan, owned = apply(world, desired, owned, adopt=adopt)
        again = make_plan(desired, world.observe(), owned, adopt=adopt)
        assert text(again.operations) == ""
        assert again.conflicts == plan.conflicts
        assert_holds(world, desired, {conflict.key for conflict in plan.conflicts})


@settings(max_examples=60, deadline=None)
@given(worlds(), desired_states(), desired_states())
def test_what_others_made_is_never_touched(
    world: World, first: DesiredState, second: DesiredState
) -> None:
    services = {key: world.service(key) for key in world.services}
    adopted = make_plan(first, world.observe(), NOTHING).adopted
    adopted |= make_plan(second, world.observe(), NOTHING).adopted
    theirs = {key: service for key, service in services.items() if key not in adopted}
    addresses = {(name, own) for name, all_ in world.interfaces.items() for own in all_}
    sysctls = {
        name: value
        for name, value in world.sysctls.items()
        if name not in (*first.sysctls, *second.sysctls)
    }
    owned = NOTHING
    for desired in (first, second, DesiredState()):
        plan, owned = apply(world, desired, owned)
        assert not theirs.keys() & {subject(operation) for operation in plan.operations}
        assert {key: world.service(key) for key in theirs} == theirs
        assert all(own in world.interfaces[name] for name, own in addresses)
        assert sysctls.items() <= world.sysctls.items()


@settings(max_examples=60, deadline=None)
@given(worlds(), desired_states(), desired_states())
def test_a_withdrawal_leaves_everything_as_it_was(
    world: World, first: DesiredState, second: DesiredState
) -> None:
    first, second = replace(first, timeouts=None), replace(second, timeouts=None)
    adopted = make_plan(first, world.observe(), NOTHING).adopted
    adopted |= make_plan(second, world.observe(), NOTHING).adopted
    for key in adopted & world.services.keys():  # it becomes lbdr's, and leaves with it
        del world.services[key], world.real_servers[key]
    before = world.dump()
    owned = NOTHING
    for desired in (first, second, DesiredState()):
        _, owned = apply(world, desired, owned)
    assert world.dump() == before


@settings(max_examples=60, deadline=None)
@given(desired_states().flatmap(lambda state: st.tuples(st.just(state), changed(state))))
def test_a_service_that_serves_before_and_after_serves_all_the_time(
    states: tuple[DesiredState, DesiredState],
) -> None:
    first, second = states
    world = World()
    _, owned = apply(world, first)
    assert lost_servers(world, second, owned) == []


@settings(max_examples=60, deadline=None)
@given(worlds(), desired_states(), st.randoms(use_true_random=False))
def test_two_orders_of_a_configuration_plan_the_same(
    world: World, desired: DesiredState, random: Random
) -> None:
    keys = list(desired.services)
    random.shuffle(keys)
    shuffled = replace(desired, services={key: desired.services[key] for key in keys})
    one = make_plan(desired, world.observe(), NOTHING)
    other = make_plan(shuffled, world.observe(), NOTHING)
    assert text(one.operations) == text(other.operations)


@settings(max_examples=60, deadline=None)
@given(worlds(), desired_states(), desired_states())
def test_the_order_of_kinds(world: World, first: DesiredState, second: DesiredState) -> None:
    """A client never reaches a VIP with nothing behind it: services before VIPs, and backwards."""
    _, owned = apply(world, first)
    operations = make_plan(second, world.observe(), owned).operations
    wanted_vips = {vip.address for vip in second.addresses}

    def stage(operation: Operation) -> int:
        match operation:
            case SetSysctl(name, _):
                return 0 if name in second.sysctls else 9
            case DeleteAddress(vip):
                return 8 if vip.address in wanted_vips else 1
            case DeleteService():
                return 2
            case ProbeAddress():
                return 5
            case AddAddress():
                return 6
        return 7 if isinstance(subject(operation), VirtualAddress) else 3

    stages = [stage(operation) for operation in operations]
    assert stages == sorted(stages)


@settings(max_examples=60, deadline=None)
@given(desired_states())
def test_every_service_is_added_before_its_real_servers(desired: DesiredState) -> None:
    there: set[ServiceKey | MarkKey] = set()
    for operation in make_plan(desired, World().observe(), NOTHING).operations:
        if isinstance(operation, AddService):
            there.add(operation.service.key)
        elif isinstance(subject(operation), ServiceKey | MarkKey):
            assert subject(operation) in there
