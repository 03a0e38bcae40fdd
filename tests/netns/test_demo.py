"""The demo on this kernel, and in user-mode-linux, where both engines are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.guest import PROJECT, UML, missing

DEMO = [sys.executable, str(PROJECT / "scripts/lib/demo.py"), "--json"]


def demo(*before: str) -> tuple[list[str], dict[str, Any]]:
    """Run it: its lines, and its result."""
    if os.geteuid() != 0:
        missing("network namespaces need root")
    done = subprocess.run(
        [*before, *DEMO], capture_output=True, text=True, timeout=320, check=False, cwd=PROJECT
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    lines = done.stdout.splitlines()
    result: dict[str, Any] = json.loads(lines[-1])
    assert (result["requests"], result["failed"]) == (100, 0)
    assert sum(result["servers"].values()) == 100
    assert set(result["servers"]) == {"web1", "web2"}
    assert result["forwarded_by_xdp"] >= 500
    assert result["client_address_seen"]
    assert result["direct_return"]
    assert result["vip_answered_by"] == "director"
    return lines, result


def test_it_runs_on_xdp_alone() -> None:
    if Path("/proc/net/ip_vs").exists():
        missing("this kernel has IPVS")
    lines, result = demo()
    assert result["engines"] == ["xdp"]
    assert result["kernel"] == os.uname().release
    assert result["forwarded_by_ipvs"] == 0
    assert result["same_choice"] is None
    assert "no IPVS in this kernel; forwards: XDP alone on eth0" in lines
    assert not [line for line in lines if "ipvsadm" in line]


def test_both_engines_choose_alike() -> None:
    if not (PROJECT / ".cache/user-mode-linux/usr/bin/linux.uml").exists():
        missing("user-mode-linux is not there: scripts/uml --fetch")
    _, result = demo(str(UML), "--timeout", "300", "--")
    assert result["engines"] == ["ipvs", "xdp"]
    assert result["forwarded_by_ipvs"] >= 500
    assert result["same_choice"] == 100
