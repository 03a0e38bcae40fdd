"""The demo on this kernel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.guest import PROJECT, missing


def test_it_runs_on_xdp_alone() -> None:
    if os.geteuid() != 0:
        missing("network namespaces need root")
    if Path("/proc/net/ip_vs").exists():
        missing("this kernel has IPVS: tests/kernel has that demo")
    command = [sys.executable, str(PROJECT / "scripts/lib/demo.py"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    lines = done.stdout.splitlines()
    result = json.loads(lines[-1])
    assert result["engines"] == ["xdp"]
    assert result["kernel"] == os.uname().release
    assert (result["requests"], result["failed"]) == (100, 0)
    assert sum(result["servers"].values()) == 100
    assert set(result["servers"]) == {"web1", "web2"}
    assert result["forwarded_by_xdp"] >= 500
    assert result["forwarded_by_ipvs"] == 0
    assert result["same_choice"] is None
    assert result["client_address_seen"]
    assert result["direct_return"]
    assert result["vip_answered_by"] == "director"
    assert "no IPVS in this kernel; forwards: XDP alone on eth0" in lines
    assert not [line for line in lines if "ipvsadm" in line]
