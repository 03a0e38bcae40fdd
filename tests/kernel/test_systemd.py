"""The unit under a real systemd, which runs as process 1 of a container in the guest."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from netlab import Lab

PROJECT = Path(__file__).parents[2]
UNIT = PROJECT / "scripts" / "lib" / "lbdr.service"
SYSTEMD = Path("/lib/systemd/systemd")

CONFIG = """
director: {name: unit}
real_servers: {web1: {address: 10.77.0.21}}
virtual_services:
  WEB: {address: 10.77.0.10, ports: [80], real_servers: [web1]}
"""

# Mounts and units are the container's own: /run and its cgroups are gone with it.
BOOT = """
set -e
mount -t tmpfs tmpfs /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
{ cat /etc/group && echo 'lbdr:x:64999:'; } >"$1/group"
mount --bind "$1/group" /etc/group
mkdir -p /run/lock /run/systemd/system/lbdr.service.d
# what a boot does to the machine is not wanted here: /tmp emptied, sysctls set, devices probed
for unit in tmpfiles-setup tmpfiles-setup-dev sysctl udev-trigger random-seed; do
    ln -s /dev/null /run/systemd/system/systemd-$unit.service
done
cp "$1/lbdr.service" "$1/probe.service" /run/systemd/system/
cp "$1/test.conf" /run/systemd/system/lbdr.service.d/
exec env container=test /lib/systemd/systemd --system --unit=probe.service
"""

# What an administrator would do; each answer goes into a file of its own.
PROBE = """
set -u
out=$1 lbdr=$2
pid() { systemctl show lbdr -p MainPID --value; }
systemctl show lbdr -p ActiveState -p StatusText -p WatchdogUSec >$out/show
grep ^Cap /proc/$(pid)/status >$out/capabilities
stat -c '%n %a %U %G' /run/lbdr /run/lbdr/control.sock /var/lib/lbdr >$out/modes
$lbdr status --json >$out/status
before=$(pid)
kill -9 $before
ipvsadm -Sn >$out/after-kill
timeout 40 sh -c 'until [ $(systemctl show lbdr -p NRestarts --value) = 1 ] &&
    systemctl is-active -q lbdr; do sleep 0.2; done' || echo 'not restarted' >>$out/failures
journalctl -o cat _PID=$(pid) >$out/second-start
echo 'nonsense' >>$out/lbdr.yaml
systemctl reload lbdr && echo 'a bad file was reloaded' >>$out/failures
systemctl is-active lbdr >$out/after-bad-reload
systemctl stop lbdr
ipvsadm -Sn >$out/after-stop
journalctl -o cat -u lbdr >$out/journal
"""

RULES = "-A -t 10.77.0.10:80 -s wlc\n-a -t 10.77.0.10:80 -r 10.77.0.21:80 -g -w 1\n"


def test_the_unit_serves_under_systemd(lab: Lab, tmp_path: Path) -> None:
    """Two capabilities are enough; killed, it adopts; a bad reload and a stop change nothing."""
    if not SYSTEMD.exists():
        pytest.fail("the Debian package systemd is missing")
    lbdr = Path(sys.executable).with_name("lbdr")
    (tmp_path / "lbdr.yaml").write_text(CONFIG)
    (tmp_path / "lbdr.service").write_text(
        UNIT.read_text().replace("/opt/lbdr/bin/lbdr", str(lbdr))
    )
    # the project may be in a home directory, and its configuration is not in /etc
    (tmp_path / "test.conf").write_text(
        f"[Service]\nProtectHome=no\nPrivateTmp=no\nEnvironment=LBDR_CONFIG={tmp_path}/lbdr.yaml\n"
    )
    (tmp_path / "boot").write_text(BOOT)
    (tmp_path / "probe").write_text(PROBE)
    (tmp_path / "probe.service").write_text(
        "[Unit]\nWants=lbdr.service\nAfter=lbdr.service\nDefaultDependencies=yes\n"
        f"[Service]\nType=oneshot\nExecStart=/bin/sh {tmp_path}/probe {tmp_path} {lbdr}\n"
        "ExecStopPost=/bin/systemctl exit 0\n"
    )
    namespaces = ["unshare", "--pid", "--mount", "--cgroup", "--fork", "--mount-proc"]
    lab.run("director", [*namespaces, "sh", f"{tmp_path}/boot", str(tmp_path)], timeout=100)

    def said(name: str) -> str:
        return (tmp_path / name).read_text()

    assert not (tmp_path / "failures").exists(), said("failures")
    assert "ActiveState=active" in said("show")
    assert "StatusText=active, 1 virtual services" in said("show")
    assert "WatchdogUSec=30s" in said("show")
    # CAP_NET_ADMIN is bit 12 and CAP_NET_RAW bit 13 (include/uapi/linux/capability.h)
    for kind in ("CapPrm", "CapEff", "CapBnd"):
        assert f"{kind}:\t0000000000003000" in said("capabilities")
    assert '"state": "online"' in said("status")
    assert said("after-kill").replace(" \n", "\n") == RULES
    assert "applied" not in said("second-start")
    assert "ready" in said("second-start")
    assert said("after-bad-reload") == "active\n"
    assert said("after-stop").replace(" \n", "\n") == RULES
    assert said("modes").splitlines() == [
        "/run/lbdr 750 root lbdr",
        "/run/lbdr/control.sock 660 root lbdr",
        "/var/lib/lbdr 700 root lbdr",
    ]
