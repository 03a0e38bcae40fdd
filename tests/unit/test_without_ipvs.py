"""What is wanted and shown where the kernel has no IPVS."""

from __future__ import annotations

from lbdr.config.load import parse
from lbdr.datapath.routes_wire import Link
from lbdr.desired import expand
from lbdr.fastpath_wanted import to_guard
from lbdr.model import Role
from lbdr.status import RealServerStatus, Status, Totals, VipStatus, VirtualServiceStatus
from lbdr.status_alone import without_ipvs
from tests.unit.test_config_without_ipvs import NETWORK, TEXT


def test_neither_its_sysctls_nor_its_timeouts_are_wanted() -> None:
    loaded = parse(TEXT.replace("lb1", "lb1, timeouts: {tcp: 9m}").encode(), "f")
    there, not_there = (
        expand(loaded.configuration, NETWORK, role=Role.ACTIVE, ipvs=ipvs) for ipvs in (True, False)
    )
    assert there.sysctls
    assert there.timeouts is not None
    assert (not_there.sysctls, not_there.timeouts) == ({}, None)
    assert not_there.services == there.services
    assert not_there.addresses == there.addresses


def test_a_status_without_ipvs_says_what_is_unknown() -> None:
    server = RealServerStatus(
        name="rs1",
        address="10.0.0.1",
        port=80,
        state="online",
        configured_weight=1,
        totals=Totals(packets_in=5),
    )
    web = VirtualServiceStatus(
        name="WEB",
        protocol="tcp",
        ports="80",
        vip=VipStatus(address="10.0.0.9"),
        scheduler="mh",
        state="online",
        totals=Totals(packets_in=5),
        real_servers=[server],
    )
    status = Status(
        director="lb1",
        role=Role.ACTIVE,
        configured_role=Role.ACTIVE,
        version="1",
        config="f",
        kernel="6",
        virtual_services=[web],
    )
    found = without_ipvs(status)
    assert found.engine == "alone"
    (service,) = found.virtual_services
    assert (service.totals.connections, service.totals.packets_in) == (None, 5)
    assert service.rates.packets_in is None
    (shown,) = service.real_servers
    assert (shown.active_connections, shown.inactive_connections) == (None, None)
    assert (shown.totals.connections, shown.totals.packets_in) == (None, 5)
    assert status.virtual_services[0].totals.connections == 0
    assert Status.model_validate_json(found.model_dump_json()) == found


def test_devices_whose_frames_the_local_stack_takes_are_guarded() -> None:
    links = [
        Link(1, "lo", "00:00:00:00:00:00", loopback=True),
        Link(2, "eth0", "02:00:00:00:00:02"),
        Link(3, "eth0.7", "02:00:00:00:00:02", lower=2, tag=(0x8100, 7)),
        Link(4, "eth1", "02:00:00:00:00:04", port=True),  # of br0
        Link(5, "br0", "02:00:00:00:00:04"),
        Link(6, "eth2", "02:00:00:00:00:06"),  # below macvlan0
        Link(7, "macvlan0", "02:00:00:00:00:07", shared=6),
        Link(8, "tun0"),
    ]
    assert to_guard({link.index: link for link in links}) == {2, 3, 5, 7}
