"""`lbdr solve-arp` on a real kernel: what it does, refuses, remembers and takes back."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from arp_wire import (
    VIP,
    VIP6,
    addresses,
    advertises,
    announces_vip,
    answers_arp,
    everything,
    ip,
    result,
    run,
    set_conf,
)
from netlab import Lab

from lbdr.datapath.addresses import Addresses
from lbdr.errors import KernelError
from lbdr.operations import AddAddress
from lbdr.realserver import cli, persist

REPOSITORY = Path(__file__).resolve().parents[2]


def test_solving_silences_and_undoing_restores_byte_for_byte(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = everything(lab)
    assert result(lab, tmp_path, capsys, "--check", "--vip", VIP)["solved"] is False
    assert run(lab, tmp_path, "--vip", VIP, "--vip", VIP6) == 0
    assert capsys.readouterr().out.splitlines() == [
        "sysctl -w net.ipv4.conf.all.arp_ignore=1",
        "sysctl -w net.ipv4.conf.all.arp_announce=2",
        f"ip address add {VIP}/32 dev lo",
        f"ip address add {VIP6}/128 dev lo nodad preferred_lft 0",
        f"solved: {VIP}, {VIP6}",
    ]
    assert not answers_arp(lab)
    assert not announces_vip(lab)
    assert result(lab, tmp_path, capsys, "--check", "--vip", VIP)["solved"] is True

    after = everything(lab)
    assert run(lab, tmp_path, "--vip", VIP, "--vip", VIP6) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert everything(lab) == after

    assert run(lab, tmp_path, "--undo") == 0
    assert capsys.readouterr().out.splitlines()[:4] == [
        f"ip address del {VIP}/32 dev lo",
        f"ip address del {VIP6}/128 dev lo",
        "sysctl -w net.ipv4.conf.all.arp_announce=0",
        "sysctl -w net.ipv4.conf.all.arp_ignore=0",
    ]
    assert everything(lab) == before
    assert result(lab, tmp_path, capsys, "--undo")["operations"] == []


def test_a_stricter_setting_is_left_alone(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    set_conf(lab, all_arp_ignore=2, eth0_arp_announce=2)
    done = result(lab, tmp_path, capsys, "--vip", VIP)
    assert [o["command"] for o in done["operations"]] == [f"ip address add {VIP}/32 dev lo"]
    assert not answers_arp(lab)


def test_dry_run_changes_nothing(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = everything(lab)
    done = result(lab, tmp_path, capsys, "--dry-run", "--persist", "--vip", VIP)
    assert len(done["operations"]) == 6
    assert not any(o["done"] for o in done["operations"])
    assert everything(lab) == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (f"address add {VIP}/32 dev eth0", "vip-on-nic"),
        (f"address add {VIP}/24 dev eth0", "vip-on-nic"),
        (f"address add {VIP6}/128 dev eth0 nodad", "vip-on-nic"),
        (f"address add {VIP}/24 dev lo", "vip-prefix"),
        (f"address add {VIP6}/64 dev lo", "vip-prefix"),
    ],
)
def test_what_only_a_person_can_put_right_is_refused(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, code: str
) -> None:
    vip = VIP6 if VIP6 in command else VIP
    lab.ip("web1", command)
    before = everything(lab)
    checked = result(lab, tmp_path, capsys, "--check", "--vip", vip)
    assert checked["exit_code"] == 1
    assert code in [finding["code"] for finding in checked["findings"]]
    refused = result(lab, tmp_path, capsys, "--vip", vip)
    assert refused["exit_code"] == 3
    # an address with a subnet on a NIC may be the host's own: no command that cuts it off
    own = command.endswith("/24 dev eth0")
    words = "was another VIP meant" if own else "ip address del"
    assert words in refused["error"]["message"]
    assert ("ip address del" in refused["error"]["message"]) is not own
    assert everything(lab) == before


def test_what_lbdr_did_not_make_stays(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.ip("web1", f"address add {VIP}/32 dev lo")
    done = result(lab, tmp_path, capsys, "--undo", "--vip", VIP)
    assert done["exit_code"] == 1
    assert "not lbdr's doing" in done["notes"][0]
    # sysctls are lbdr's, the address is not
    assert run(lab, tmp_path, "--vip", VIP) == 0
    assert not answers_arp(lab)
    assert run(lab, tmp_path, "--undo", "--vip", VIP) == 0
    assert f"{VIP}/32" in addresses(lab, "lo")
    assert answers_arp(lab)


def test_sysctls_stay_until_the_last_vip_goes(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = everything(lab)
    other = "10.77.0.51"
    assert run(lab, tmp_path, "--vip", VIP) == 0
    assert run(lab, tmp_path, "--vip", other) == 0
    first = result(lab, tmp_path, capsys, "--undo", "--vip", VIP)
    assert [o["command"] for o in first["operations"]] == [f"ip address del {VIP}/32 dev lo"]
    assert run(lab, tmp_path, "--undo", "--vip", other) == 0
    assert everything(lab) == before


def test_a_value_that_somebody_changed_since_is_not_put_back(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(lab, tmp_path, "--vip", VIP) == 0
    set_conf(lab, all_arp_ignore=2)
    done = result(lab, tmp_path, capsys, "--undo")
    assert any("arp_ignore is 2: somebody changed it" in note for note in done["notes"])
    with lab.entered("web1"):
        assert Path("/proc/sys/net/ipv4/conf/all/arp_ignore").read_text() == "2\n"


def test_a_failure_half_way_is_reported_and_remembered(
    lab: Lab,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = everything(lab)

    async def refuse(_self: Addresses, operation: AddAddress) -> None:
        raise KernelError(operation.command, errno=12)

    with monkeypatch.context() as patch:
        patch.setattr(Addresses, "apply", refuse)
        failed = result(lab, tmp_path, capsys, "--vip", VIP)
    assert failed["exit_code"] == 5
    assert [o["done"] for o in failed["operations"]] == [True, True, False]
    assert "Cannot allocate memory" in failed["error"]["message"]
    # the address that lbdr failed to add is not lbdr's when somebody else adds it
    lab.ip("web1", f"address add {VIP}/32 dev lo")
    assert run(lab, tmp_path, "--undo") == 0
    lab.ip("web1", f"address del {VIP}/32 dev lo")
    assert everything(lab) == before


def test_a_full_disk_changes_nothing(lab: Lab, tmp_path: Path) -> None:
    before = everything(lab)
    script = f"mount -t tmpfs -o size=4k t {tmp_path}; mkdir -p {tmp_path}/var/lib/lbdr; "
    script += f'head -c 4096 /dev/zero > {tmp_path}/full; exec "$@"'
    done = lab.run(
        "web1",
        [
            "unshare",
            "-m",
            "sh",
            "-c",
            script,
            "-",
            *command(),
            "--root",
            str(tmp_path),
            "--vip",
            VIP,
        ],
        check=False,
        env=environment(),
    )
    assert done.returncode == 8, done.stderr
    assert "No space left" in done.stderr
    assert everything(lab) == before


def test_without_root_only_looking_works(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    before = everything(lab)
    arguments = ["--root", "/nonexistent-root-of-a-test", "--vip", VIP]
    with lab.entered("web1"):
        os.seteuid(65534)
        try:
            codes = [cli.main([*arguments, *more]) for more in (["--check"], ["--dry-run"], [])]
        finally:
            os.seteuid(0)
    assert codes == [1, 0, 4]
    assert "run it as root" in capsys.readouterr().err
    assert everything(lab) == before


def test_the_vip_may_be_on_another_quiet_interface(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.ip("web1", "link add vip0 up type ifb")  # a dummy in all that matters; every kernel has it
    where = ["--interface", "vip0", "--vip", VIP, "--vip", VIP6]
    assert run(lab, tmp_path, *where) == 0
    assert f"{VIP}/32" in addresses(lab, "vip0")
    assert not answers_arp(lab)
    assert not advertises(lab)
    # lo is the default place, and where it is it may stay
    assert result(lab, tmp_path, capsys, "--vip", VIP)["operations"] == []
    assert run(lab, tmp_path, "--undo") == 0
    assert f"{VIP}/32" not in addresses(lab, "vip0")


def test_disabled_ipv6_is_said_before_anything_is_done(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.sysctl("web1", "net.ipv6.conf.lo.disable_ipv6", "1")
    before = everything(lab)
    done = result(lab, tmp_path, capsys, "--vip", VIP, "--vip", VIP6)
    assert done["exit_code"] == 3
    assert "net.ipv6.conf.lo.disable_ipv6=0" in done["error"]["message"]
    assert everything(lab) == before
    lab.sysctl("web1", "net.ipv6.conf.lo.disable_ipv6", "0")


def test_persisting_accumulates_and_undo_removes(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = persist.Paths(tmp_path)
    assert run(lab, tmp_path, "--vip", VIP, "--persist") == 0
    assert run(lab, tmp_path, "--vip", VIP6, "--persist") == 0
    unit = persist.read_unit(paths)
    assert unit is not None
    assert unit.vips == {ip(VIP): "lo", ip(VIP6): "lo"}
    assert (paths.wants.resolve(), paths.unit_file.stat().st_mode) == (paths.unit_file, 0o100644)
    assert persist.read_sysctl_file(paths) == {
        "net.ipv4.conf.all.arp_ignore": "1",
        "net.ipv4.conf.all.arp_announce": "2",
    }
    assert result(lab, tmp_path, capsys, "--vip", VIP, "--persist")["operations"] == []
    at_boot = result(lab, tmp_path, capsys, "--check")["at_boot"]
    assert at_boot["unit"] == {"enabled": True, "vips": [VIP, VIP6]}

    assert run(lab, tmp_path, "--undo", "--vip", VIP) == 0
    unit = persist.read_unit(paths)
    assert unit is not None
    assert unit.vips == {ip(VIP6): "lo"}
    assert not paths.sysctl_file.exists()
    assert run(lab, tmp_path, "--undo") == 0
    assert [str(p) for p in tmp_path.rglob("*") if p.is_file() and "lbdr-solve" in p.name] == []
    assert not paths.wants.is_symlink()


@pytest.mark.parametrize("which", ["sysctl_file", "unit_file"])
def test_a_foreign_file_is_never_overwritten(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str], which: str
) -> None:
    path: Path = getattr(persist.Paths(tmp_path), which)
    path.parent.mkdir(parents=True)
    path.write_text("# somebody's\n")
    before = everything(lab)
    done = result(lab, tmp_path, capsys, "--vip", VIP, "--persist")
    assert done["exit_code"] == 3
    assert str(path) in done["error"]["message"]
    assert path.read_text() == "# somebody's\n"
    assert everything(lab) == before


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_systemd_finds_nothing_wrong_with_the_unit(lab: Lab, tmp_path: Path) -> None:
    assert run(lab, tmp_path, "--vip", VIP, "--vip", VIP6, "--persist") == 0
    unit = str(persist.Paths(tmp_path).unit_file)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    ours = [line for line in done.stderr.splitlines() if "lbdr-solve-arp" in line]
    assert (done.returncode, ours) == (0, []), done.stderr


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY)}


def command() -> list[str]:
    return [sys.executable, "-m", "lbdr", "solve-arp"]


def test_cap_net_admin_is_all_that_it_needs(lab: Lab, tmp_path: Path) -> None:
    bare = ["setpriv", "--bounding-set=-all,+net_admin", "--inh-caps=-all", "--no-new-privs"]
    arguments = ["--root", str(tmp_path), "--vip", VIP, "--vip", VIP6]
    done = lab.run("web1", [*bare, *command(), *arguments], check=False, env=environment())
    assert done.returncode == 0, done.stderr
    assert not answers_arp(lab)


def test_it_runs_with_pyroute2_alone(lab: Lab, tmp_path: Path) -> None:
    program = f"""
import runpy, sys
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {{"click", "pydantic", "yaml", "rich", "tenacity", "scapy"}}:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Nothing())
sys.argv = ["lbdr", "solve-arp", "--root", {str(tmp_path)!r}, "--vip", {VIP!r}]
runpy.run_module("lbdr", run_name="__main__")
"""
    done = lab.run("web1", [sys.executable, "-c", program], check=False, env=environment())
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"solved: {VIP}\n")
