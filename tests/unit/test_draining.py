"""When a drained real server is empty."""

from __future__ import annotations

import pytest

from lbdr.draining import QUIET, Draining, Remaining
from lbdr.model import Role
from lbdr.status import (
    FastPathService,
    RealServerState,
    RealServerStatus,
    Status,
    Totals,
    VipStatus,
    VirtualServiceStatus,
)


def service(
    name: str = "WEB",
    *,
    protocol: str = "tcp",
    scheduler: str = "wlc",
    fast: bool = False,
    persistence: int | None = None,
    state: RealServerState = "drain",
    active: int | None = 0,
    inactive: int | None = 0,
    packets: int = 0,
) -> VirtualServiceStatus:
    server = RealServerStatus(
        name="rs1",
        address="10.0.0.31",
        port=80,
        state=state,
        configured_weight=1,
        active_connections=active,
        inactive_connections=inactive,
        totals=Totals(packets_in=packets),
    )
    return VirtualServiceStatus(
        name=name,
        protocol=protocol,
        ports="80",
        vip=VipStatus(address="10.0.0.50"),
        scheduler=scheduler,
        persistence=persistence,
        state="online",
        fastpath=FastPathService(state="forwards" if fast else "off"),
        real_servers=[server],
    )


def status(*services: VirtualServiceStatus) -> Status:
    return Status(
        director="lb1",
        role=Role.ACTIVE,
        configured_role=Role.ACTIVE,
        version="",
        config="",
        kernel="",
        virtual_services=list(services),
    )


@pytest.mark.parametrize(
    ("given", "left"),
    [
        (service(active=3, inactive=9), 3),
        (service(protocol="udp", active=0, inactive=9), 9),
        (service(scheduler="mh", active=2), 2),  # IPVS forwards, and counts
        (service(scheduler="mh", fast=True, persistence=300, active=2), 2),
        (service(fast=True, active=1), 1),  # learned flows are kept alive in IPVS
    ],
)
def test_connections_are_counted_by_ipvs(given: VirtualServiceStatus, left: int) -> None:
    (remaining,) = Draining("rs1").look(status(given), 0.0)
    assert remaining == Remaining("WEB", "drain", left)
    assert not remaining.empty


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_nobody_counts_where_there_is_no_ipvs(protocol: str) -> None:
    draining = Draining("rs1")
    given = status(service(protocol=protocol, active=None, inactive=None))
    for now in (0.0, QUIET - 1, QUIET):
        (remaining,) = draining.look(given, now)
        assert (remaining.connections, remaining.quiet) == (None, now)
        assert remaining.empty is (now == QUIET)


def test_nobody_counts_those_of_mh_on_the_fast_path() -> None:
    draining = Draining("rs1")

    def empty(packets: int, now: float) -> bool:
        given = service(scheduler="mh", fast=True, packets=packets)
        (remaining,) = draining.look(status(given), now)
        return remaining.empty

    assert not empty(5, 0.0)
    assert not empty(5, QUIET - 1)
    assert not empty(6, QUIET)  # one more came
    assert not empty(6, 2 * QUIET - 1)
    assert empty(6, 2 * QUIET)


@pytest.mark.parametrize("state", ["halt", "missing"])
def test_one_that_is_out_has_nothing_left(state: RealServerState) -> None:
    (remaining,) = Draining("rs1").look(status(service(state=state, active=3)), 0.0)
    assert remaining.empty


def test_every_service_that_has_it_or_the_one_that_was_named() -> None:
    found = status(service("WEB", active=1), service("TLS"))
    assert [each.virtual_service for each in Draining("rs1").look(found, 0.0)] == ["WEB", "TLS"]
    assert [each.virtual_service for each in Draining("rs1", "TLS").look(found, 0.0)] == ["TLS"]
    assert Draining("rs2").look(found, 0.0) == []
