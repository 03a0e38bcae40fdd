"""Debian's own kernel, the one that users run: a smoke test, since it is slow here."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

DebianKernel = Callable[..., subprocess.CompletedProcess[str]]


def test_ipvs_loads_by_itself(debian_kernel: DebianKernel) -> None:
    done = debian_kernel("sh", "-c", "ipvsadm -A -t 192.0.2.1:80 -s mh && ipvsadm -Sn && uname -v")
    assert done.returncode == 0, done.stderr
    service, version = done.stdout.splitlines()
    assert service.split() == ["-A", "-t", "192.0.2.1:80", "-s", "mh"]
    assert "Debian" in version
