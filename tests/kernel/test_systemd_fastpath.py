"""The fast path under the unit: root loads it, and a daemon with few rights uses it."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from netlab import HOSTS, INTERFACE, Lab

from lbdr.control import client
from lbdr.control.protocol import (
    ExplainRequest,
    FastPathRequest,
    FastPathResult,
    ReloadRequest,
    StatusRequest,
    WithdrawRequest,
)
from lbdr.datapath import bpf_netlink, namespace
from lbdr.datapath.xdp_maps import DirectorMaps
from lbdr.errors import LbdrError, PrivilegeError
from lbdr.explain import Explanation
from lbdr.status import Status
from tests.kernel.daemons import BPFFS, LBDR, VIP, configuration, soon
from tests.kernel.open_connections import Connections, answering, talking
from tests.kernel.systemd import CONFIG, PATHS, Systemd, running
from tests.kernel.test_fastpath import HASHED, LEAST, SERVERS, passing

UNPRIVILEGED = Path("/proc/sys/kernel/unprivileged_bpf_disabled")
KILL, SETGID, SETUID, NET_ADMIN, NET_RAW = (1 << bit for bit in (5, 6, 7, 12, 13))
CAPABILITIES = KILL | SETGID | SETUID | NET_ADMIN | NET_RAW
_FOLLOWED = 15.0  # seconds in a guest


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with (
        Lab({**HOSTS, "web3": 23}) as built,
        passing(built),
        answering(built, SERVERS, VIP, ports=[80, 8080]),
    ):
        # what XDP sends has no checksum that somebody else would still fill in
        built.run("client", ["ethtool", "-K", INTERFACE, "tx", "off"])
        yield built


@pytest.fixture(scope="module")
def systemd(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Systemd]:
    """The unit as it is shipped; the tests go on from each other."""
    assert os.environ.get("LBDR_GUEST") == "1", "groups and sysctls are changed in a guest only"
    before = UNPRIVILEGED.read_text()
    if before.strip() == "0":  # Debian's kernels begin with 2
        UNPRIVILEGED.write_text("2")
    subprocess.run(["groupadd", "--force", "lbdr"], check=True)
    configure()
    with running(Systemd(lab, tmp_path_factory.mktemp("units"))) as built:
        yield built
    subprocess.run(["groupdel", "lbdr"], check=True)
    UNPRIVILEGED.write_text(before)


@pytest.fixture
def open_connections(lab: Lab, systemd: Systemd) -> Iterator[list[Connections]]:
    """Some of each service; whatever a test does, none of them breaks or changes server."""
    start(systemd)
    with Connections(lab, VIP, 80, 50) as hashed, Connections(lab, VIP, 8080, 50) as least:
        yield [hashed, least]
        assert not wrong([hashed, least])


def configure(hashed: Mapping[str, object] = HASHED, fastpath: str = "auto") -> None:
    services = {"WEB": hashed, "LEAST": LEAST}
    CONFIG.write_text(configuration(services, drift_check="200ms", fastpath=fastpath))


def start(systemd: Systemd) -> None:
    """Start it, if it does not run, and wait until the fast path serves both services."""
    systemd.ctl("start", "lbdr")
    soon(forwards, f"it forwards: {systemd.log()}", _FOLLOWED)


def status() -> Status:
    return Status.model_validate(client.ask(PATHS, StatusRequest(), timeout=30).result)


def forwards() -> bool:
    found = status()
    return bool(found.fastpath.devices) and all(
        each.fastpath.state == "forwards" for each in found.virtual_services
    )


def packets() -> dict[str, int]:
    """Packets that the fast path forwarded, by service."""
    return {each.name: each.fastpath.packets for each in status().virtual_services}


def wrong(open_: list[Connections]) -> list[str]:
    return [line for each in open_ for line in each.wrong()]


def switch(*, on: bool) -> FastPathResult:
    answer = client.ask(PATHS, FastPathRequest(on=on, virtual_service=None), timeout=60)
    return FastPathResult.model_validate(answer.result)


def xdp(lab: Lab) -> set[int]:
    """The XDP programs of the director's interface."""
    with lab.entered("director"):
        index = socket.if_nametoindex(INTERFACE)
        return {each.program_id for each in bpf_netlink.attached(index)}


def pins(lab: Lab) -> Path:
    """The directory of the pins, as the rest of the guest sees it."""
    with lab.entered("director"):
        (directory,) = (PATHS.bpf / str(namespace.namespace_id())).iterdir()
    return directory


def main_process(systemd: Systemd) -> dict[str, str]:
    """What the kernel says of the daemon."""
    lines = systemd.inside(f"/proc/{systemd.show('MainPID')}/status").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_the_unit_starts_a_fast_path(systemd: Systemd, lab: Lab) -> None:
    start(systemd)
    found = status()
    assert found.problems == []
    assert [(each.device, each.mode) for each in found.fastpath.devices] == [(INTERFACE, "native")]
    for word in ("ERROR", "WARNING", "<3>", "<4>"):
        assert word not in systemd.log()
    before = packets()
    with Connections(lab, VIP, 80, 20) as hashed, Connections(lab, VIP, 8080, 20) as least:
        assert not wrong([hashed, least, hashed, least])
    after = packets()
    assert after["WEB"] - before["WEB"] >= 20 * 6
    assert after["LEAST"] - before["LEAST"] >= 20 * 3


def test_its_daemon_has_no_right_to_load(systemd: Systemd) -> None:
    start(systemd)
    process = main_process(systemd)
    for name in ("CapBnd", "CapPrm", "CapEff"):
        assert int(process[name], 16) == CAPABILITIES, name
    assert (process["NoNewPrivs"], process["Seccomp"]) == ("1", "2")
    verdict = (PATHS.run / "mh.json").stat()
    assert (verdict.st_uid, verdict.st_gid, verdict.st_mode & 0o777) == (0, 0, 0o600)
    inside = ["nsenter", f"--target={systemd.show('MainPID')}", "--mount"]
    for place, writable in ((PATHS.bpf, True), (BPFFS, False), (Path("/sys"), False)):
        done = systemd.run(*inside, "sh", "-c", f"mkdir {place}/t && rmdir {place}/t", check=False)
        assert done == ""
        found = systemd.run(*inside, "sh", "-c", f"test -w {place} && echo yes", check=False)
        assert (found == "yes\n") == writable, place


def test_root_loads_what_is_asked(
    systemd: Systemd, lab: Lab, open_connections: list[Connections]
) -> None:
    """The daemon may not load the program that explains; once root asked, it has it."""
    hashed = open_connections[0]
    (address, port), owner = hashed.clients[0], hashed.owners[0]
    request = ExplainRequest(virtual_service="WEB", client=address, client_port=port)
    with pytest.raises(LbdrError, match="may not load") as error:
        client.ask(PATHS, request, timeout=60)
    assert error.value.exit_code == PrivilegeError.exit_code
    command = [str(LBDR), "explain", "--client", f"{address}:{port}", "WEB"]
    done = lab.run("director", command, check=False)
    assert done.returncode == 0, f"{done.stderr}{systemd.log()}"
    shown = done.stdout.splitlines()
    assert shown[2].split()[:3] == ["open", "connection", owner]
    found = Explanation.model_validate(client.ask(PATHS, request, timeout=60).result)
    assert found.established is not None
    assert (found.established.server, found.established.by) == (owner, "slot")


def test_its_daemon_cannot_read_what_is_anothers(systemd: Systemd) -> None:
    start(systemd)
    mode = CONFIG.stat().st_mode
    os.chown(CONFIG, 65534, 65534)
    CONFIG.chmod(0o600)
    try:
        with pytest.raises(LbdrError, match="ermission denied"):
            client.ask(PATHS, ReloadRequest())
    finally:
        os.chown(CONFIG, 0, 0)
        CONFIG.chmod(mode)
    client.ask(PATHS, ReloadRequest())


def test_a_daemon_that_is_killed(
    systemd: Systemd, lab: Lab, open_connections: list[Connections]
) -> None:
    """The datapath goes on, and the next one, as little privileged, adopts it."""
    programs, mark = xdp(lab), len(systemd.log())
    with talking(open_connections):
        systemd.ctl("kill", "--signal=SIGKILL", "--kill-whom=main", "lbdr")
        systemd.wait(NRestarts="1", ActiveState="active", SubState="running")
        soon(forwards, "adopted", _FOLLOWED)
    assert "fast path: adopted" in systemd.log()[mark:]
    assert xdp(lab) == programs


def test_a_service_that_is_stopped_forwards_on(
    systemd: Systemd, lab: Lab, open_connections: list[Connections]
) -> None:
    """Commands of root's outside of the unit adopt the same pins, and so does another version.

    As an upgrade does: root loads, and the daemon exchanges the programs in place.
    """
    programs, mark = xdp(lab), len(systemd.log())
    systemd.ctl("stop", "lbdr")
    assert systemd.show("Result") == "success"
    assert xdp(lab) == programs
    assert not wrong(open_connections)
    lab.run("director", [str(LBDR), "apply", str(CONFIG)])
    assert xdp(lab) == programs
    assert not wrong(open_connections)
    with DirectorMaps.open(pins(lab)) as maps:
        maps.set_version(1)
    with talking(open_connections):
        start(systemd)
    assert "replaced the XDP program" in systemd.log()[mark:]
    assert xdp(lab) != programs


def test_the_fast_path_is_switched_off_and_on(
    systemd: Systemd, lab: Lab, open_connections: list[Connections]
) -> None:
    """Off gives IPVS what it would place elsewhere: its sync protocol works in the unit, too."""
    mark = len(systemd.log())
    configure({**HASHED, "real_servers": SERVERS})
    client.ask(PATHS, ReloadRequest())
    soon(lambda: "table of" in systemd.log()[mark:], "the flip", _FOLLOWED)
    with talking(open_connections):
        off = switch(on=False)
    assert off.forwards == []
    assert off.handed_over > 0
    forwarded = packets()
    assert not wrong(open_connections)
    assert packets() == forwarded
    assert not xdp(lab)
    assert switch(on=True).forwards == ["LEAST", "WEB"]
    assert not wrong(open_connections)
    assert packets()["WEB"] > forwarded["WEB"]
    configure()
    client.ask(PATHS, ReloadRequest())
    assert "ERROR" not in systemd.log()


def test_nothing_is_left_attached_that_cannot_be_followed(systemd: Systemd, lab: Lab) -> None:
    """Programs of another version, and nobody who loads: IPVS forwards, until a reload loads."""
    start(systemd)
    systemd.ctl("stop", "lbdr")
    with DirectorMaps.open(pins(lab)) as maps:
        maps.set_version(1)
    drop_in = systemd.units / "lbdr.service.d" / "unloaded.conf"
    drop_in.write_text("[Service]\nExecStartPre=\n")
    systemd.ctl("daemon-reload")
    with Connections(lab, VIP, 8080, 20) as least:
        systemd.ctl("start", "lbdr")
        soon(lambda: not xdp(lab), "detached", _FOLLOWED)
        assert not least.wrong()
    soon(lambda: status().fastpath.reason not in ("", "starting"), "the reason", _FOLLOWED)
    assert status().fastpath.reason.startswith("the fast path is not loaded: ")
    assert status().problems == []
    systemd.ctl("reload", "lbdr")
    soon(forwards, "it forwards", _FOLLOWED)


def test_a_withdrawal_leaves_nothing_attached(systemd: Systemd, lab: Lab) -> None:
    """The last one: the daemon ends with it, and is not started again."""
    start(systemd)
    directory = pins(lab)
    client.ask(PATHS, WithdrawRequest(), timeout=60)
    systemd.wait(ActiveState="inactive")
    assert systemd.show("Result") == "success"
    assert not xdp(lab)
    for direction in ("ingress", "egress"):
        command = ["tc", "filter", "show", "dev", INTERFACE, direction]
        assert not lab.run("director", command).stdout
    assert not directory.exists()
