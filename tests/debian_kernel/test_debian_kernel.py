"""Debian's own kernel, the one that users run: a smoke test, since it is slow here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

DebianKernel = Callable[..., subprocess.CompletedProcess[str]]


def test_ipvs_loads_by_itself(debian_kernel: DebianKernel) -> None:
    done = debian_kernel("sh", "-c", "ipvsadm -A -t 192.0.2.1:80 -s mh && ipvsadm -Sn && uname -v")
    assert done.returncode == 0, done.stderr
    service, version = done.stdout.splitlines()
    assert service.split() == ["-A", "-t", "192.0.2.1:80", "-s", "mh"]
    assert "Debian" in version


def test_the_demo_runs(debian_kernel: DebianKernel) -> None:
    """The real daemon, solve-arp and traffic on the kernel that users run."""
    command = [sys.executable, "scripts/lib/demo.py", "--ipvs-alone", "--json"]
    done = debian_kernel(*command, seconds=400)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    result = json.loads(done.stdout.splitlines()[-1])
    assert "-amd64" in result["kernel"]
    assert result["engines"] == ["ipvs"]
    assert result["failed"] == 0
    assert sum(result["servers"].values()) == result["requests"]
    assert result["client_address_seen"]
    assert result["direct_return"]
    assert result["vip_answered_by"] == "director"


def test_mh_is_equal(debian_kernel: DebianKernel) -> None:
    """Lbdr and this kernel's IPVS choose alike for 10,240 clients of 16 services."""
    done = debian_kernel(
        "env", "PYTHONPATH=.:scripts/lib", sys.executable, "-m", "tests.mh_equality", "4", "640"
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    result = json.loads(done.stdout.splitlines()[-1])
    assert "-amd64" in result["kernel"]
    assert result["differences"] == []
    assert (result["cases"], result["clients"]) == (16, 10240)
    assert result["drained"] > 0
    verdict = result["verdict"]
    assert (verdict["outcome"], verdict["index"]) == ("agrees", 12), verdict
    assert verdict["versions"] == [4, 6]
