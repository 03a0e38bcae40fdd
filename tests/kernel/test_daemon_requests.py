"""What a running daemon does when it is asked, and what its status tells."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from netlab import INTERFACE, Lab

from lbdr.control.client import RemoteError
from lbdr.control.protocol import RoleRequest, WeightRequest
from lbdr.errors import ControlError
from lbdr.model import Role
from tests.kernel.daemon_traffic import Load, real_servers
from tests.kernel.daemons import VIP, VIP6, WEB, Daemon, soon

HOSTS = {"client": 100, "director": 1, "web1": 21, "web2": 22, "peer": 2}
SIX = {"address": VIP6, "ports": [80], "real_servers": ["six1", "six2"]}


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """Running, with real servers behind it and another host beside it."""
    with Lab(HOSTS) as lab, real_servers(lab, VIP), Daemon(lab) as built:
        built.configure({"WEB": WEB, "SIX": SIX}, drift_check="200ms")
        built.start()
        yield built


def test_a_weight_is_one_write_and_there_with_the_answer(daemon: Daemon) -> None:
    for weight in (7, 65535, 0):
        mark = daemon.mark()
        done = daemon.ask(WeightRequest(real_server="web1", weight=weight))
        command = f"ipvsadm -e -t {VIP}:80 -r 10.77.0.21:80 -g -w {weight}"
        assert f"-a -t {VIP}:80 -r 10.77.0.21:80 -g -w {weight}" in daemon.ipvs()
        assert done["operations"] == [command]
        assert [
            line.partition("applied: ")[2] for line in daemon.lines(": ipvsadm", since=mark)
        ] == [command]
        server = daemon.status().virtual_services[0].real_servers[0]
        assert (server.weight, server.configured_weight) == (weight, 1)
        assert server.state == ("drain" if weight == 0 else "online")


def test_a_weight_outlives_the_daemon_until_it_is_reset(daemon: Daemon) -> None:
    """It goes on from the test before, which drained web1."""
    daemon.ask(WeightRequest(real_server="web1", weight=0))
    daemon.kill()
    daemon.start()
    assert daemon.lines("applied:") == []
    assert f"-a -t {VIP}:80 -r 10.77.0.21:80 -g -w 0" in daemon.ipvs()
    daemon.ask(WeightRequest(real_server="web1"))
    assert f"-a -t {VIP}:80 -r 10.77.0.21:80 -g -w 1" in daemon.ipvs()


def test_status_shows_names_states_and_the_owner(daemon: Daemon) -> None:
    status = daemon.status()
    assert status.daemon == daemon.running.pid
    assert (status.role, status.configured_role) == (Role.ACTIVE, Role.ACTIVE)
    assert (status.problems, status.foreign_services) == ([], [])
    web, six = status.virtual_services
    assert (web.name, web.protocol, web.ports, web.scheduler) == ("WEB", "tcp", "80", "wlc")
    assert web.state == six.state == "online"
    assert (web.vip.address, web.vip.interface) == (VIP, INTERFACE)
    assert web.vip.owner == six.vip.owner == "this director"
    assert [one.name for one in web.real_servers] == ["web1", "web2"]
    assert [one.state for one in web.real_servers] == ["online", "online"]
    assert [one.address for one in six.real_servers] == ["fd77::21", "fd77::22"]


def test_rates_and_counts_move_under_load(daemon: Daemon) -> None:
    def connections() -> int:
        return daemon.status().virtual_services[0].totals.connections or 0

    before = connections()
    with Load(daemon.lab) as load:

        def moving() -> bool:
            web = daemon.status().virtual_services[0]
            return bool(web.rates.connections and web.rates.bytes_in)

        soon(moving, "rates above 0", timeout=15)
        load.more(10)
    assert load.failures == []

    def counted() -> int:
        return connections() - before

    soon(lambda: counted() == load.count, "all are counted")  # the kernel sums up every 2 s
    web = daemon.status().virtual_services[0]
    counts = {one.name: one.totals.connections or 0 for one in web.real_servers}
    assert sum(counts.values()) >= load.count
    assert all(counts[name] >= count for name, count in load.answers.items())
    # some are remembered for a while after their end
    assert any(one.active_connections or one.inactive_connections for one in web.real_servers)


def test_a_standby_shows_who_owns_the_vip(daemon: Daemon) -> None:
    lab = daemon.lab
    daemon.ask(RoleRequest(role=Role.STANDBY))
    assert {one.vip.owner for one in daemon.status().virtual_services} == {""}
    both = [f"{VIP}/32", f"{VIP6}/128"]
    lab.ip("peer", *(f"address add {vip} dev {INTERFACE} nodad" for vip in both[1:]))
    lab.ip("peer", f"address add {both[0]} dev {INTERFACE}")
    try:
        status = daemon.status()
        assert status.role is Role.STANDBY
        assert {one.vip.owner for one in status.virtual_services} == {lab["peer"].mac}
        assert {one.vip.interface for one in status.virtual_services} == {INTERFACE}
    finally:
        lab.ip("peer", *(f"address del {vip} dev {INTERFACE}" for vip in both))
    daemon.ask(RoleRequest(reset=True))
    assert {one.vip.owner for one in daemon.status().virtual_services} == {"this director"}


def test_a_vip_conflict_is_shown_and_ends_by_itself(daemon: Daemon) -> None:
    lab = daemon.lab
    lab.ip("peer", f"address add {VIP}/32 dev {INTERFACE}")
    lab.ip("director", f"address del {VIP}/32 dev {INTERFACE}")
    soon(lambda: lab["peer"].mac in daemon.problems(), "the conflict")
    assert f"{VIP} is in use on {INTERFACE}" in daemon.problems()
    assert f"{VIP}/32" not in daemon.addresses()
    assert daemon.status().virtual_services[0].vip.owner == lab["peer"].mac
    lab.ip("peer", f"address del {VIP}/32 dev {INTERFACE}")
    soon(lambda: daemon.problems() == "", "no conflict", timeout=40)
    assert f"{VIP}/32" in daemon.addresses()


def test_real_servers_outside_of_all_subnets_are_shown(daemon: Daemon) -> None:
    """When the director lost the address that its subnet comes from; the VIP stays."""
    lab = daemon.lab
    own = f"address {{}} {lab['director'].ipv4}/24 dev {INTERFACE}"
    lab.ip("director", own.format("del"))
    try:
        soon(lambda: "real server web1 (10.77.0.21) is in no subnet" in daemon.problems(), "it")
        assert daemon.running.poll() is None
        assert daemon.real_servers() == 4
    finally:
        lab.ip("director", own.format("add"))
    soon(lambda: daemon.problems() == "", "no problem is left", timeout=40)
    soon(lambda: f"{VIP}/32" in daemon.addresses(), "the VIP", timeout=40)


def test_refusals_have_the_exit_code_of_their_cause(daemon: Daemon) -> None:
    with pytest.raises(RemoteError) as refused:
        daemon.ask(WeightRequest(real_server="web1", virtual_service="NOTHING", weight=1))
    assert refused.value.exit_code == ControlError.exit_code
    assert "lbdr status" in refused.value.hint
