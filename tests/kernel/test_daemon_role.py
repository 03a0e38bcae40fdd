"""Active and standby: who holds the VIPs, and how the network is told."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
from netlab import Lab

from lbdr.control.client import RemoteError
from lbdr.control.protocol import RoleRequest
from lbdr.model import Role
from tests.kernel.daemon_traffic import Wire
from tests.kernel.daemons import Daemon, soon

VIPS = [
    *(f"10.77.0.{last}" for last in range(101, 151)),
    *(f"fd77::1:{last:x}" for last in range(1, 51)),
]
SERVICES = {
    f"S{number}": {
        "address": vip,
        "ports": [80],
        "real_servers": ["six1", "six2"] if ":" in vip else ["web1", "web2"],
    }
    for number, vip in enumerate(VIPS)
}
HOSTS = {"client": 100, "director": 1, "peer": 2}
DELAY, REFRESH = 1.0, 1.0  # seconds
SLACK = 0.5  # of a guest on a busy machine


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """A standby with a hundred VIPs, running; the tests go on from each other."""
    with Lab(HOSTS) as lab, Daemon(lab) as built:
        schedule = {"repeat": 5, "delay": "1s", "refresh": "1s", "refresh_repeat": 1}
        built.configure(SERVICES, role="standby", gratuitous_arp=schedule, address_probe={})
        built.start()
        yield built


def held(daemon: Daemon) -> set[str]:
    """Those of the VIPs that the director's interface has."""
    return {address.partition("/")[0] for address in daemon.addresses()} & set(VIPS)


def test_a_standby_programs_all_but_the_vips(daemon: Daemon) -> None:
    assert daemon.ask(RoleRequest()) == {
        "role": "standby",
        "configured": "standby",
        "operations": [],
    }
    assert daemon.real_servers() == 2 * len(VIPS)
    assert daemon.sysctl("net.ipv4.vs.expire_nodest_conn") == "1"
    assert held(daemon) == set()
    assert daemon.lines("ip address add") == []
    assert daemon.lines("arping") == []


def test_a_standby_that_is_refused_a_vip_serves_the_others(daemon: Daemon) -> None:
    """Another host answers for one of them; when it has given it up, the director takes it."""
    lab, taken = daemon.lab, VIPS[0]
    lab.ip("peer", f"address add {taken}/32 dev eth0")
    with pytest.raises(RemoteError) as refused:
        daemon.ask(RoleRequest(role=Role.ACTIVE))
    assert refused.value.exit_code == 6
    assert f"{taken} is in use" in refused.value.message
    assert lab["peer"].mac in refused.value.message
    assert held(daemon) == set(VIPS) - {taken}
    assert lab["peer"].mac in daemon.problems()
    assert daemon.ask(RoleRequest())["role"] == "active"
    with Wire(lab) as wire:
        lab.ip("peer", f"address del {taken}/32 dev eth0")
        wire.wait(5, taken, timeout=30)  # it tries again by itself
    assert held(daemon) == set(VIPS)
    soon(lambda: daemon.problems() == "", "no problem is left")


def test_a_standby_gives_the_vips_up(daemon: Daemon) -> None:
    result = daemon.ask(RoleRequest(role=Role.STANDBY))
    assert result["role"] == "standby"
    assert len(result["operations"]) == len(VIPS)
    assert held(daemon) == set()
    with Wire(daemon.lab) as wire:  # it is silent now: a schedule of ours would say something
        begin = time.monotonic()
        soon(lambda: time.monotonic() > begin + REFRESH + SLACK, "a whole refresh went by")
        assert wire.announcements() == []
    assert daemon.real_servers() == 2 * len(VIPS)


def test_becoming_active_announces_by_schedule(
    daemon: Daemon,
    record_property: Callable[[str, object], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Wire(daemon.lab) as wire:
        begin = time.time()
        result = daemon.ask(RoleRequest(role=Role.ACTIVE))
        replied = time.time()
        assert held(daemon) == set(VIPS)
        # frames are seen late on a busy machine, and then the time to the next ones is short;
        # of each VIP 5 at once, 5 after the delay, then one each refresh
        wire.wait(12 * len(VIPS), timeout=30)
        seen = wire.announcements()
    assert result["role"] == "active"
    times = {vip: [at for at, address in seen if address == vip] for vip in VIPS}
    for vip, at in times.items():
        assert at[4] - at[0] < SLACK, vip
        assert DELAY / 2 < at[5] - at[0] < DELAY + SLACK, vip
        assert at[9] - at[5] < SLACK, vip
        assert REFRESH / 2 < at[10] - at[5] < REFRESH + SLACK, vip
        assert REFRESH / 2 < at[11] - at[10] < REFRESH + SLACK, vip
    # the first frames of all go before the second of any
    firsts = [address for _, address in seen[: len(VIPS)]]
    assert sorted(firsts) == sorted(VIPS)

    last_first = max(at[0] for at in times.values()) - begin
    text = (
        f"role active, {len(VIPS)} VIPs: first announcement of the last VIP after "
        f"{last_first * 1000:.0f} ms, answer after {(replied - begin) * 1000:.0f} ms"
    )
    record_property("active", text)
    with capsys.disabled():
        print(f"\n{text}")  # noqa: T201  # a figure for whoever watches


def test_the_role_outlives_the_daemon(daemon: Daemon) -> None:
    before = daemon.ipvs()
    daemon.kill()
    assert held(daemon) == set(VIPS)
    with Wire(daemon.lab) as wire:
        daemon.start()
        wire.wait(5 * len(VIPS))  # adopted VIPs have someone again who announces them
    assert daemon.ask(RoleRequest())["role"] == "active"
    assert daemon.lines("applied:") == []
    assert daemon.lines("drift") == []
    assert daemon.ipvs() == before
    assert held(daemon) == set(VIPS)


def test_reset_returns_to_the_configured_role(daemon: Daemon) -> None:
    result = daemon.ask(RoleRequest(reset=True))
    assert result["role"] == result["configured"] == "standby"
    assert held(daemon) == set()
    assert (daemon.paths.state / "state.json").read_text().count('"role": null') == 1
