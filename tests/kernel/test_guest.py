"""The guest has what the other tests here stand on: IPVS and the links of a lab."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCHEDULERS = [
    *("rr", "wrr", "lc", "wlc", "lblc", "lblcr", "sh", "mh", "dh", "sed", "nq", "fo", "ovf")
]


def test_runs_as_root_in_the_guest() -> None:
    assert os.geteuid() == 0
    assert os.environ["LBDR_GUEST"] == "1"


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_scheduler_loads_by_itself(scheduler: str) -> None:
    service = ["-t", "192.0.2.1:80"]
    subprocess.run(["ipvsadm", "-A", *service, "-s", scheduler], check=True)
    try:
        listing = Path("/proc/net/ip_vs").read_text()
    finally:
        subprocess.run(["ipvsadm", "-D", *service], check=True)
    assert f"C0000201:0050 {scheduler}" in listing


@pytest.mark.parametrize("kind", ["veth", "bridge", "dummy"])
def test_link_kind_loads_by_itself(kind: str) -> None:
    subprocess.run(["ip", "link", "add", "lbdr-probe", "type", kind], check=True)
    subprocess.run(["ip", "link", "delete", "lbdr-probe"], check=True)
