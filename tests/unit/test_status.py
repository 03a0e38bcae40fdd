"""What status says of a director, from a configuration and a kernel that are made up."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_interface
from typing import Any

import pytest

from lbdr.desired import Weights
from lbdr.model import (
    Configuration,
    Counters,
    Director,
    ForwardingMethod,
    HostNetwork,
    Interface,
    MarkKey,
    ObservedRealServer,
    ObservedService,
    Persistence,
    PortRange,
    Ports,
    Protocol,
    RealServer,
    Role,
    Service,
    ServiceKey,
    Standing,
    VirtualService,
)
from lbdr.operator_states import OperatorState
from lbdr.status import (
    Rates,
    RealServerStatus,
    Status,
    Totals,
    VipStatus,
    VirtualServiceStatus,
    director_status,
    virtual_service_status,
)

KEY = ServiceKey(Protocol.TCP, ip_address("10.0.0.50"), 80)
RS1 = RealServer(ip_address("10.0.0.31"), 80, name="rs1")
RS2 = RealServer(ip_address("10.0.0.32"), 80, weight=2, name="rs2")
SORRY = RealServer(ip_address("10.0.0.39"), 80, name="sorry")
WEB = VirtualService("WEB", KEY.address, ports=Ports((PortRange(80, 80),)), real_servers=(RS1, RS2))
NETWORK = HostNetwork(
    {
        "eth0": Interface("eth0", 2, addresses=(ip_interface("10.0.0.2/24"),)),
        "eth1": Interface("eth1", 3, addresses=(ip_interface("10.0.1.2/24"),)),
    }
)
COUNTERS = Counters(*range(1, 11))


def in_ipvs(*servers: RealServer, counters: Counters = COUNTERS) -> ObservedService:
    """What IPVS has: it knows no names."""
    nameless = tuple(replace(server, name="") for server in servers)
    return ObservedService(
        Service(KEY, "wlc", real_servers=nameless),
        tuple(ObservedRealServer(server, 7, 8, 9, counters) for server in nameless),
        counters,
    )


def status(
    virtual: VirtualService = WEB,
    observed: ObservedService | None = None,
    *,
    network: HostNetwork = NETWORK,
    weights: Weights | None = None,
    owners: dict[str, str] | None = None,
) -> VirtualServiceStatus:
    return virtual_service_status(virtual, observed, network, weights or {}, owners or {})


def states(found: VirtualServiceStatus) -> dict[str, str]:
    return {server.name or server.address: server.state for server in found.real_servers}


def test_all_of_a_service_that_is_as_wanted() -> None:
    found = status(observed=in_ipvs(RS1, RS2))
    assert found.state == "online"
    assert (found.name, found.protocol, found.ports) == ("WEB", "tcp", "80")
    assert found.totals == Totals(
        connections=1, packets_in=2, packets_out=3, bytes_in=4, bytes_out=5
    )
    assert found.rates == Rates(
        connections=6, packets_in=7, packets_out=8, bytes_in=9, bytes_out=10
    )
    assert found.real_servers[1] == RealServerStatus(
        name="rs2",
        address="10.0.0.32",
        port=80,
        state="online",
        configured_weight=2,
        weight=2,
        active_connections=7,
        inactive_connections=8,
        persistent_connections=9,
        totals=found.totals,
        rates=found.rates,
    )


def test_settings_are_shown_as_they_are_in_force() -> None:
    virtual = replace(
        WEB,
        scheduler="mh",
        scheduler_flags=frozenset({"mh-port"}),
        one_packet=True,
        persistence=Persistence(300, 24),
        protocol=Protocol.UDP,
    )
    found = status(virtual)
    assert found.scheduler_flags == ["mh-fallback", "mh-port"]
    assert (found.persistence, found.granularity) == (300, 24)
    assert (found.one_packet, found.protocol) == (True, "udp")


@pytest.mark.parametrize(
    ("observed", "service", "servers"),
    [
        (None, "missing", {"rs1": "missing", "rs2": "missing"}),
        (in_ipvs(RS1), "degraded", {"rs1": "online", "rs2": "missing"}),
        (in_ipvs(RS1, replace(RS2, weight=0)), "online", {"rs1": "online", "rs2": "drain"}),
        (
            in_ipvs(replace(RS1, weight=0), replace(RS2, weight=0)),
            "drain",
            {"rs1": "drain", "rs2": "drain"},
        ),
        (
            in_ipvs(RS1, RS2, replace(SORRY, weight=5)),
            "online",
            {"rs1": "online", "rs2": "online", "10.0.0.39": "foreign"},
        ),
    ],
)
def test_states(observed: ObservedService | None, service: str, servers: dict[str, str]) -> None:
    found = status(observed=observed)
    assert (found.state, states(found)) == (service, servers)


def test_the_weight_of_the_file_and_the_weight_in_ipvs() -> None:
    found = status(observed=in_ipvs(RS1, replace(RS2, weight=9)), weights={("WEB", "rs2"): 9})
    assert [(s.configured_weight, s.weight) for s in found.real_servers] == [(1, 1), (2, 9)]
    gone = status(observed=in_ipvs(RS1)).real_servers[1]
    assert (gone.configured_weight, gone.weight) == (2, None)


def test_the_sorry_server_is_shown_waiting_and_standing_in() -> None:
    virtual = replace(WEB, sorry_server=SORRY)
    waiting = status(virtual, in_ipvs(RS1, RS2))
    assert states(waiting) == {"rs1": "online", "rs2": "online", "sorry": "spare"}
    drained = {("WEB", "rs1"): 0, ("WEB", "rs2"): 0}
    observed = in_ipvs(replace(RS1, weight=0), replace(RS2, weight=0), SORRY)
    standing_in = status(virtual, observed, weights=drained)
    assert standing_in.state == "online"
    assert states(standing_in) == {"rs1": "drain", "rs2": "drain", "sorry": "sorry"}


def test_a_forwarding_method_that_others_set() -> None:
    found = status(observed=in_ipvs(RS1, replace(RS2, method=ForwardingMethod.TUNNEL)))
    assert [server.method for server in found.real_servers] == ["dr", "tunnel"]


def test_several_ports() -> None:
    virtual = replace(WEB, ports=Ports((PortRange(80, 81),)), persistence=Persistence(300, 32))
    found = status(virtual)
    assert (found.state, found.ports) == ("missing", "80-81")
    assert states(found) == {"rs1": "missing", "rs2": "missing"}


def test_what_the_operator_set_is_shown() -> None:
    """And a halted server keeps its place among the others, though IPVS has it no more."""
    found = virtual_service_status(
        WEB,
        in_ipvs(replace(RS1, weight=0)),
        NETWORK,
        {("WEB", "rs1"): 0, ("WEB", "rs2"): None},
        {},
        operator={
            ("WEB", "rs1"): OperatorState(Standing.DRAIN, 5.0, 9.0),
            ("WEB", "rs2"): OperatorState(Standing.HALT, 6.0),
        },
    )
    assert [(one.name, one.state, one.since, one.deadline) for one in found.real_servers] == [
        ("rs1", "drain", 5.0, 9.0),
        ("rs2", "halt", 6.0, None),
    ]
    assert [one.reason for one in found.real_servers] == [
        "drained by the operator",
        "halted by the operator",
    ]
    assert found.state == "drain"


def test_a_halted_server_that_ipvs_still_has_is_not_foreign() -> None:
    found = status(WEB, in_ipvs(RS1, RS2), weights={("WEB", "rs2"): None})
    assert states(found) == {"rs1": "online", "rs2": "halt"}


def test_whose_the_vip_is() -> None:
    holder = Interface("eth1", 3, addresses=(ip_interface("10.0.0.50/32"),))
    held = HostNetwork({**NETWORK.interfaces, "eth1": holder})
    address = "10.0.0.50"
    own = VipStatus(address=address, interface="eth1", owner="this director")
    assert status(network=held).vip == own
    assert status().vip == VipStatus(address=address, interface="eth0")
    mac = "02:00:00:00:00:99"
    other = status(owners={address: mac}).vip
    assert other == VipStatus(address=address, interface="eth0", owner=mac)
    # while both hold it, what this host has is the better known
    assert status(network=held, owners={address: mac}).vip == own
    named = status(replace(WEB, interface="eth1")).vip
    assert named == VipStatus(address=address, interface="eth1")
    nowhere = status(replace(WEB, address=ip_address("192.0.2.1"))).vip
    assert nowhere == VipStatus(address="192.0.2.1")


def director(**changes: Any) -> Status:
    arguments: dict[str, Any] = {
        "role": Role.STANDBY,
        "services": {KEY: in_ipvs(RS1, RS2)},
        "owned": frozenset({KEY}),
        "network": NETWORK,
        "weights": {},
        "marks": {},
        "owners": {},
        "problems": ["a problem"],
        "config": "/etc/lbdr/lbdr.yaml",
        "version": "1",
        "kernel": "6.1",
        "daemon": 42,
    } | changes
    configuration = arguments.pop("configuration", Configuration(Director("lb1"), (WEB,)))
    return director_status(configuration, **arguments)


def test_a_director() -> None:
    found = director()
    assert (found.director, found.role, found.configured_role) == (
        "lb1",
        Role.STANDBY,
        Role.ACTIVE,
    )
    assert (found.daemon, found.kernel, found.problems) == (42, "6.1", ["a problem"])
    assert [service.state for service in found.virtual_services] == ["online"]
    assert found.foreign_services == []


def test_status_survives_the_control_socket() -> None:
    found = director()
    assert Status.model_validate_json(found.model_dump_json()) == found


def test_services_of_others_are_listed() -> None:
    others = [
        ServiceKey(Protocol.UDP, ip_address("10.0.0.51"), 53),
        ServiceKey(Protocol.TCP, ip_address("fd00::50"), 443),
        MarkKey(7, 4),
    ]
    services = {key: in_ipvs() for key in (KEY, *others)}
    assert director(services=services).foreign_services == [
        "mark 7 (IPv4)",
        "udp 10.0.0.51:53",
        "tcp [fd00::50]:443",
    ]
    # what lbdr made and the configuration no longer has is lbdr's, too
    owned = frozenset(services)
    assert director(services=services, owned=owned).foreign_services == []
    # one that the configuration has is shown there, whoever made it
    assert director(owned=frozenset()).foreign_services == []


def test_a_service_that_a_mark_tells_is_found_by_it() -> None:
    """One of any port on its VIP is somebody else's."""
    several = replace(WEB, ports=Ports((PortRange(80, 81),)), persistence=Persistence(300, 32))
    other, key = ServiceKey(Protocol.TCP, KEY.address, 0), MarkKey(9, 4)
    found = director(
        configuration=Configuration(virtual_services=(several,)),
        services={other: in_ipvs(), key: in_ipvs(RS1, RS2)},
        marks={"WEB": 9},
        owned=frozenset(),
    )
    assert found.foreign_services == ["tcp 10.0.0.50:0"]
    assert found.virtual_services[0].state == "online"
