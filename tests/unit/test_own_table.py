"""What stands in IPVS's place keeps IPVS's rules; the simulated kernel is the witness."""

from __future__ import annotations

import errno
from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from lbdr.datapath.own_table import OwnTable
from lbdr.errors import KernelError
from lbdr.model import ForwardingMethod, Protocol, RealServer, Service, ServiceKey, Timeouts
from lbdr.operations import (
    AddRealServer,
    AddService,
    DeleteRealServer,
    DeleteService,
    IpvsOperation,
    Operation,
    SetRealServer,
    SetService,
    SetSysctl,
    SetTimeouts,
)
from lbdr.own_words import words
from tests.unit.simulated import World

KEYS = [ServiceKey(Protocol.TCP, ip_address("10.0.0.50"), port) for port in (80, 443)]
servers = st.builds(
    RealServer,
    st.sampled_from([ip_address(f"10.0.0.{last}") for last in (21, 22, 23)]),
    st.just(80),
    st.integers(0, 3),
)
services = st.builds(
    Service, st.sampled_from(KEYS), st.just("mh"), st.sampled_from([frozenset(), {"mh-port"}])
).map(lambda service: Service(service.key, "mh", frozenset(service.flags)))
operations = st.one_of(
    st.builds(AddService, services),
    st.builds(SetService, services),
    st.builds(DeleteService, st.sampled_from(KEYS)),
    *(
        st.builds(kind, st.sampled_from(KEYS), servers)
        for kind in (AddRealServer, SetRealServer, DeleteRealServer)
    ),
)


def of_ipvs(world: World, operation: IpvsOperation) -> int:
    """The error number that IPVS gives, 0 for none; what is to go and is not there, is gone."""
    try:
        world.do(operation)
    except KernelError as error:
        gone = isinstance(operation, DeleteService | DeleteRealServer)
        return 0 if gone else error.errno
    return 0


@given(st.lists(operations, max_size=40))
def test_it_does_what_ipvs_does(history: list[IpvsOperation]) -> None:
    table, world = OwnTable(), World()
    for operation in history:
        (error,) = table.apply([operation])
        found = error.errno if isinstance(error, KernelError) else 0
        assert found == of_ipvs(world, operation)
        for key in KEYS:
            assert table.service(key) == world.service(key)  # the order of the list, too


@given(st.lists(operations, max_size=40))
def test_what_is_kept_is_loaded(history: list[IpvsOperation]) -> None:
    table, other = OwnTable(), OwnTable()
    table.apply(history)
    other.load(table.kept)
    assert list(other.observe()) == list(table.observe())
    assert other.schedules() == table.schedules()


def test_it_schedules_as_ipvs_tells() -> None:
    """All by Direct Routing, the server that was added last first."""
    table = OwnTable()
    added = [RealServer(ip_address(f"10.0.0.{last}"), 80, last) for last in (21, 22)]
    table.apply(
        [AddService(Service(KEYS[0], "mh")), *(AddRealServer(KEYS[0], one) for one in added)]
    )
    scheduler, scheduled = table.schedules()[KEYS[0]]
    assert scheduler == "mh"
    assert [(str(one.address), one.weight) for one in scheduled] == [
        ("10.0.0.22", 22),
        ("10.0.0.21", 21),
    ]
    assert {one.method for one in scheduled} == {"Route"}
    assert {one.method for one in added} == {ForwardingMethod.DR}


def test_its_operations_are_no_commands_that_somebody_could_type() -> None:
    server = RealServer(ip_address("10.0.0.21"), 80, 2)
    service = Service(KEYS[0], "mh", frozenset({"mh-port", "mh-fallback"}))
    key = KEYS[0]
    told: dict[Operation, str] = {
        AddService(service): "add tcp 10.0.0.50:80 mh mh-fallback mh-port",
        SetService(service): "set tcp 10.0.0.50:80 mh mh-fallback mh-port",
        DeleteService(key): "delete tcp 10.0.0.50:80",
        AddRealServer(key, server): "add tcp 10.0.0.50:80 real server 10.0.0.21:80 weight 2",
        SetRealServer(key, server): "set tcp 10.0.0.50:80 real server 10.0.0.21:80 weight 2",
        DeleteRealServer(key, server): "delete tcp 10.0.0.50:80 real server 10.0.0.21:80",
    }
    for operation, line in told.items():
        assert words(operation, alone=True) == f"table: {line}"
        assert words(operation, alone=False) == operation.command
    assert words(SetSysctl("a", "1"), alone=True) == "sysctl -w a=1"


def test_it_has_no_timeouts() -> None:
    table = OwnTable()
    (error,) = table.apply([SetTimeouts(Timeouts(1, 2, 3))])
    assert isinstance(error, KernelError)
    assert error.errno == errno.EOPNOTSUPP
    assert table.timeouts() == Timeouts()
