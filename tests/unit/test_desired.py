"""From what the user wrote to what the kernel is to hold."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface

import pytest

from lbdr.desired import DIRECTOR_SYSCTLS, EXPIRE_QUIESCENT, MH_SYSCTLS, SYSCTLS, Weights, expand
from lbdr.model import (
    Configuration,
    DesiredState,
    Director,
    DrainPersistence,
    Forwarding,
    HostNetwork,
    Interface,
    MarkKey,
    Persistence,
    PortRange,
    Ports,
    Protocol,
    RealServer,
    Role,
    Service,
    ServiceKey,
    Timeouts,
    Traffic,
    VirtualAddress,
    VirtualService,
)

NETWORK = HostNetwork(
    {
        "eth0": Interface("eth0", 2, addresses=(ip_interface("10.0.0.2/16"),)),
        "eth1": Interface(
            "eth1",
            3,
            addresses=(
                ip_interface("10.0.1.2/24"),
                ip_interface("fd00::2/64"),
                ip_interface("10.0.0.99/32"),  # somebody's VIP: it spans no subnet
            ),
        ),
    }
)
RS1 = RealServer(ip_address("10.0.0.31"), 80, name="rs1")
RS2 = RealServer(ip_address("10.0.0.32"), 80, weight=2, name="rs2")
SORRY = RealServer(ip_address("10.0.0.39"), 80, name="sorry")
KEY = ServiceKey(Protocol.TCP, ip_address("10.0.0.50"), 80)


def web(**changes: object) -> VirtualService:
    """WEB on 10.0.0.50:80 with two real servers, changed."""
    fields: dict[str, object] = {
        "name": "WEB",
        "address": KEY.address,
        "ports": Ports((PortRange(80, 80),)),
        "real_servers": (RS1, RS2),
    } | changes
    return VirtualService(**fields)  # type: ignore[arg-type]  # fields of VirtualService


def desired(
    *virtual: VirtualService,
    role: Role = Role.ACTIVE,
    weights: Weights | None = None,
) -> DesiredState:
    return expand(Configuration(virtual_services=virtual), NETWORK, role=role, weights=weights)


def servers(state: DesiredState) -> dict[str, int]:
    """The weights of WEB's real servers by name."""
    return {server.name: server.weight for server in state.services[KEY].real_servers}


def test_what_one_service_becomes() -> None:
    state = desired(web(scheduler="sh", scheduler_flags=frozenset({"sh-port"})))
    assert state == DesiredState(
        services={KEY: Service(KEY, "sh", frozenset({"sh-port"}), real_servers=(RS1, RS2))},
        addresses=frozenset({VirtualAddress(KEY.address, "eth0")}),
        sysctls={**DIRECTOR_SYSCTLS, EXPIRE_QUIESCENT: "1"},
    )
    assert state.services[KEY].name == "WEB"
    assert [server.name for server in state.services[KEY].real_servers] == ["rs1", "rs2"]


def test_nothing_configured_wants_nothing_of_the_kernel() -> None:
    assert desired() == DesiredState()


def test_a_standby_holds_everything_but_the_vips() -> None:
    active, standby = desired(web()), desired(web(), role=Role.STANDBY)
    assert standby.addresses == frozenset()
    assert (standby.services, standby.sysctls) == (active.services, active.sysctls)


@pytest.mark.parametrize(
    ("address", "interface", "place"),
    [
        ("10.0.0.50", None, "eth0"),
        ("10.0.1.50", None, "eth1"),  # in both subnets: the longer prefix wins
        ("10.0.0.99", None, "eth0"),  # a /32 of that very address is no subnet
        ("fd00::50", None, "eth1"),
        ("10.0.0.50", "eth1", "eth1"),  # named by the user
        ("10.0.0.50", "eth9", None),  # which this machine does not have
        ("192.0.2.1", None, None),
    ],
)
def test_where_a_vip_goes(address: str, interface: str | None, place: str | None) -> None:
    state = desired(web(address=ip_address(address), interface=interface, real_servers=()))
    wanted = {VirtualAddress(ip_address(address), place)} if place else set()
    assert state.addresses == wanted
    assert len(state.services) == 1


def test_two_services_on_one_vip_want_it_once() -> None:
    state = desired(web(), web(name="TLS", ports=Ports((PortRange(443, 443),))))
    assert len(state.services) == 2
    assert state.addresses == {VirtualAddress(KEY.address, "eth0")}


def test_mh_always_falls_back_and_sets_its_sysctls() -> None:
    state = desired(web(scheduler="mh", scheduler_flags=frozenset({"mh-port"})))
    assert state.services[KEY].flags == {"mh-port", "mh-fallback"}
    assert state.sysctls == {**DIRECTOR_SYSCTLS, EXPIRE_QUIESCENT: "1", **MH_SYSCTLS}
    assert set(state.sysctls) == set(SYSCTLS)


def test_only_mh_makes_connections_begin_anywhere() -> None:
    assert MH_SYSCTLS.keys().isdisjoint(desired(web(scheduler="sh")).sysctls)


def test_the_operators_weight_goes_before_the_files() -> None:
    state = desired(web(), weights={("WEB", "rs2"): 9, ("OTHER", "rs1"): 7})
    assert servers(state) == {"rs1": 1, "rs2": 9}


def test_the_sorry_server_stands_in_only_while_no_other_serves() -> None:
    virtual = web(sorry_server=SORRY)
    assert servers(desired(virtual)) == {"rs1": 1, "rs2": 2}
    half = {("WEB", "rs1"): 0}
    assert servers(desired(virtual, weights=half)) == {"rs1": 0, "rs2": 2}
    all_drained = half | {("WEB", "rs2"): 0}
    assert servers(desired(virtual, weights=all_drained)) == {"rs1": 0, "rs2": 0, "sorry": 1}
    assert servers(desired(web(sorry_server=SORRY, real_servers=()))) == {"sorry": 1}


def test_a_sorry_server_of_weight_0_serves_nevertheless() -> None:
    state = desired(web(sorry_server=RealServer(SORRY.address, 80, weight=0), real_servers=()))
    assert [server.weight for server in state.services[KEY].real_servers] == [1]


def test_any_port_needs_persistence_to_be_one_service() -> None:
    persistent = desired(web(ports=Ports(), persistence=Persistence(300, 32)))
    assert list(persistent.services) == [ServiceKey(Protocol.TCP, KEY.address, 0)]
    assert desired(web(ports=Ports())) == DesiredState()


@pytest.mark.parametrize(
    "virtual",
    [
        web(ports=Ports((PortRange(80, 81),)), persistence=Persistence(300, 32)),
        web(ports=Ports((PortRange(80, 80), PortRange(443, 443))), scheduler="mh"),
        web(ports=Ports(), scheduler="sh"),
        web(ports=Ports((PortRange(80, 81),)), address=ip_address("fd00::50"), scheduler="mh"),
    ],
)
def test_several_ports_are_a_service_that_a_mark_tells(virtual: VirtualService) -> None:
    wanted = Configuration(virtual_services=(virtual,))
    state = expand(wanted, NETWORK, role=Role.ACTIVE, marks={"WEB": 7})
    (service,) = state.services.values()
    assert list(state.services) == [service.key] == [MarkKey(7, virtual.address.version)]
    assert service.traffic == Traffic(Protocol.TCP, virtual.address, virtual.ports)
    assert (service.scheduler, service.persistence) == (virtual.scheduler, virtual.persistence)
    assert ("mh-fallback" in service.flags) == (virtual.scheduler == "mh")
    assert {vip.address for vip in state.addresses} == {virtual.address}
    assert state.sysctls.keys() >= MH_SYSCTLS.keys() or virtual.scheduler != "mh"
    # nothing of it reaches the kernel before it has a mark
    assert expand(wanted, NETWORK, role=Role.ACTIVE, marks={"OTHER": 7}) == DesiredState()


def test_what_this_version_cannot_do_reaches_no_kernel() -> None:
    assert desired(web(forwarding=Forwarding.PROXY)) == DesiredState()


def test_timeouts_are_the_configurations() -> None:
    timeouts = Timeouts(tcp=7200)
    configuration = Configuration(Director(timeouts=timeouts), (web(),))
    assert expand(configuration, NETWORK, role=Role.ACTIVE).timeouts == timeouts


def test_a_vip_outlives_a_moment_without_its_subnet() -> None:
    """The host's own address may be gone for a moment; with the VIP all its clients would be."""
    vip = VirtualAddress(KEY.address, "eth0")
    own = ip_interface(f"{KEY.address}/32")
    gone = HostNetwork({"eth0": Interface("eth0", 2, addresses=(own,))})
    wanted = Configuration(virtual_services=(web(),))
    assert expand(wanted, gone, role=Role.ACTIVE).addresses == frozenset()
    assert expand(wanted, gone, role=Role.ACTIVE, placed={vip}).addresses == {vip}
    assert expand(wanted, gone, role=Role.STANDBY, placed={vip}).addresses == frozenset()
    # and not where it is not: then there is nothing to keep
    elsewhere = HostNetwork({"eth0": Interface("eth0", 2)})
    assert expand(wanted, elsewhere, role=Role.ACTIVE, placed={vip}).addresses == frozenset()
    # where another interface has its subnet, it moves there
    there = Interface("eth1", 3, addresses=(ip_interface("10.0.0.2/16"),))
    moved = HostNetwork({**gone.interfaces, "eth1": there})
    assert {
        v.interface for v in expand(wanted, moved, role=Role.ACTIVE, placed={vip}).addresses
    } == {"eth1"}


def test_one_that_is_out_is_no_real_server_and_the_sorry_server_stands_in() -> None:
    virtual = web(sorry_server=SORRY)
    assert servers(desired(virtual, weights={("WEB", "rs1"): None})) == {"rs2": 2}
    both: Weights = {("WEB", "rs1"): None, ("WEB", "rs2"): 0}
    assert servers(desired(virtual, weights=both)) == {"rs2": 0, "sorry": 1}


def test_clients_bound_to_a_drained_server_move_or_stay() -> None:
    director = Director(drain_persistence=DrainPersistence.STAY)
    stay = expand(Configuration(director, (web(),)), NETWORK, role=Role.ACTIVE)
    assert (desired(web()).sysctls[EXPIRE_QUIESCENT], stay.sysctls[EXPIRE_QUIESCENT]) == ("1", "0")
