"""The daemon with no more rights than it needs, and with less."""

from __future__ import annotations

import grp
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from netlab import INTERFACE, Lab

from lbdr.control.protocol import (
    ReloadRequest,
    RoleRequest,
    WithdrawRequest,
)
from lbdr.errors import PrivilegeError, StateError
from lbdr.model import Role
from tests.kernel.daemon_traffic import Wire, real_servers, request
from tests.kernel.daemons import NO_GROUP, VIP, VIP6, WEB, Daemon, soon

GROUP = "lbdr"
UNIT = Path(__file__).parents[2] / "lbdr" / "systemd" / "lbdr.service"
SYSTEMD = "/lib/systemd/systemd"
SIX = {"address": VIP6, "ports": [80], "real_servers": ["six1", "six2"]}
SERVICES = {"WEB": WEB, "SIX": SIX}


def only(*capabilities: str) -> list[str]:
    """The words before a command that leave root nothing but some capabilities."""
    kept = ",".join(["-all", *(f"+{name}" for name in capabilities)])
    return ["setpriv", "--no-new-privs", f"--inh-caps={kept}", f"--bounding-set={kept}"]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as built, real_servers(built, VIP):
        yield built


@pytest.fixture
def daemon(lab: Lab) -> Iterator[Daemon]:
    with Daemon(lab) as built:
        built.configure(SERVICES, drift_check="200ms")
        yield built
        built.kill()  # it may lack the rights to withdraw
        held = built.addresses() & {f"{VIP}/32", f"{VIP6}/128"}
    lab.ip("director", *(f"address del {vip} dev {INTERFACE}" for vip in held))
    lab.run("director", ["ipvsadm", "-C"])


@pytest.fixture(scope="module")
def gid() -> Iterator[int]:
    """The number of the group lbdr, which exists meanwhile."""
    assert os.environ.get("LBDR_GUEST") == "1", "groups are made in a guest only"
    subprocess.run(["groupadd", "--force", GROUP], check=True)
    yield grp.getgrnam(GROUP).gr_gid
    subprocess.run(["groupdel", GROUP], check=True)


def effective(daemon: Daemon) -> int:
    """The daemon's capabilities, a bit each (capability.h)."""
    status = Path(f"/proc/{daemon.running.pid}/status").read_text().splitlines()
    (line,) = [line for line in status if line.startswith("CapEff:")]
    return int(line.split()[1], 16)


def unload_ipvs() -> bool:
    """Take IPVS out of the kernel, so that it has to load it; whether that was possible."""
    modules = [line.split()[0] for line in Path("/proc/modules").read_text().splitlines()]
    schedulers = [name for name in modules if name.startswith("ip_vs_")]
    subprocess.run(["modprobe", "-r", *schedulers, "ip_vs"], check=False, capture_output=True)
    return "ip_vs " not in Path("/proc/modules").read_text()


def test_two_capabilities_are_enough(daemon: Daemon, gid: int) -> None:
    """As a unit with Group=lbdr and CapabilityBoundingSet= starts it: nothing is left out."""
    assert unload_ipvs()
    with Wire(daemon.lab) as wire:
        daemon.start(*only("net_admin", "net_raw"), f"--regid={gid}", "--clear-groups")
        wire.wait(5, VIP)
        wire.wait(5, VIP6)
    assert effective(daemon) == 1 << 12 | 1 << 13  # CAP_NET_ADMIN, CAP_NET_RAW
    # IPVS and the scheduler were loaded, the sysctls set
    assert "ip_vs_wlc " in Path("/proc/modules").read_text()
    assert daemon.real_servers() == 4
    assert daemon.sysctl("net.ipv4.vs.expire_nodest_conn") == "1"
    assert {f"{VIP}/32", f"{VIP6}/128"} <= daemon.addresses()
    assert {request(daemon.lab) for _ in range(10)} == {"web1", "web2"}
    # the socket is the group's although it may give no file away
    found = daemon.paths.socket.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (0, gid, 0o660)
    assert daemon.lines(NO_GROUP) == []
    assert daemon.problems() == ""
    # and it works on: roles, drift, reload, withdrawal
    daemon.ask(RoleRequest(role=Role.STANDBY))
    assert f"{VIP}/32" not in daemon.addresses()
    assert daemon.status().virtual_services[0].vip.owner == ""
    daemon.ask(RoleRequest(reset=True))
    daemon.ipvsadm("-C")
    daemon.lab.sysctl("director", "net.ipv4.vs.schedule_icmp", "0")
    soon(lambda: daemon.real_servers() == 4, "drift is put back")
    soon(lambda: daemon.sysctl("net.ipv4.vs.schedule_icmp") == "1", "the sysctl is put back")
    daemon.configure({"WEB": {**WEB, "scheduler": "mh"}}, drift_check="200ms")
    daemon.ask(ReloadRequest())
    assert daemon.sysctl("net.ipv4.vs.sloppy_tcp") == "1"
    daemon.ask(WithdrawRequest())
    assert daemon.wait() == 0
    assert daemon.real_servers() == 0
    assert daemon.lines("ERROR") == daemon.lines("WARNING") == []


def test_without_net_raw_it_serves_and_says_that_vips_cannot_be_claimed(
    daemon: Daemon, gid: int
) -> None:
    daemon.start(*only("net_admin"), f"--regid={gid}", "--clear-groups")
    assert daemon.real_servers() == 4
    assert f"{VIP}/32" not in daemon.addresses()
    assert "CAP_NET_RAW" in daemon.problems() or "not permitted" in daemon.problems()


def test_without_net_admin_it_does_not_start(daemon: Daemon, gid: int) -> None:
    """It could do nothing: to say READY=1 and to fail for ever would help nobody."""
    daemon.launch(*only("net_raw"), f"--regid={gid}", "--clear-groups")
    with pytest.raises(RuntimeError, match="CAP_NET_ADMIN"):
        daemon.wait_ready()
    assert daemon.wait() == PrivilegeError.exit_code
    assert "not permitted" in daemon.log()


def test_without_the_group_for_itself_it_says_what_to_do(daemon: Daemon, gid: int) -> None:
    """It may not give the socket to a group of which it is no member."""
    assert gid
    daemon.launch(*only("net_admin", "net_raw"), "--clear-groups")
    assert daemon.wait(40) == StateError.exit_code
    assert str(daemon.paths.run) in daemon.log()
    assert "Group=lbdr" in daemon.log()
