"""The demo where the kernel has IPVS: both engines."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.guest import PROJECT


def test_both_engines_choose_alike() -> None:
    command = [sys.executable, str(PROJECT / "scripts/lib/demo.py"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["engines"] == ["ipvs", "xdp"]
    assert (result["requests"], result["failed"]) == (100, 0)
    assert result["same_choice"] == 100
    assert result["forwarded_by_xdp"] >= 500
    assert result["forwarded_by_ipvs"] >= 500
    assert result["vip_answered_by"] == "director"
