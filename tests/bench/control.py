"""The cost of control: 1,000 virtual services with 10 real servers each, on one director.

Both sides of a ratio run in turns in one process's life, since machines drift.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import IO

from netlab import INTERFACE, Lab, wait_for

from lbdr.control.client import ask
from lbdr.control.protocol import RoleRequest, StatusRequest, WeightRequest
from lbdr.datapath.frames import parse_arp
from lbdr.model import Role
from lbdr.paths import Paths

LBDR = Path(sys.executable).with_name("lbdr")
HOSTS = {"client": 100, "director": 1, "reference": 2}
VIPS, PORTS, SERVERS = 10, 100, 10
ROUNDS = 3
CHANGES = 15
IDLE_SECONDS = 30
_ETH_P_ARP = 0x0806
_SO_TIMESTAMPNS = 35  # include/uapi/asm-generic/socket.h
_SMALL = "real_servers: {web1: {address: 10.77.0.21}}\nvirtual_services: {}\n"


@dataclass(frozen=True, slots=True)
class Row:
    """A measured figure.

    Args:
        value: the median, in `unit`.
        ratio: to the reference that ran beside it; None where there is none.
        limit: that the ratio, or without one the value, is to stay under.
    """

    row: str
    value: float
    unit: str
    ratio: float | None
    limit: float

    @property
    def kept(self) -> bool:
        """Whether the limit is kept."""
        return (self.value if self.ratio is None else self.ratio) <= self.limit

    def __str__(self) -> str:
        ratio = "" if self.ratio is None else f"ratio {self.ratio:.2f}, "
        verdict = "" if self.kept else ", NOT KEPT"
        return f"{self.row:32} {self.value:8.2f} {self.unit:12} {ratio}limit {self.limit}{verdict}"


def large_configuration(role: str = "active") -> str:
    """The file: VIPS x PORTS services; VIPs 10.77.0.101 and up, servers 10.77.0.11 and up."""
    lines = [f"director: {{name: bench, role: {role}, check: 'on'}}", "real_servers:"]
    lines += [f"  s{n}: {{address: 10.77.0.{11 + n}}}" for n in range(SERVERS)]
    lines.append("virtual_services:")
    names = ", ".join(f"s{n}" for n in range(SERVERS))
    for vip in range(VIPS):
        for port in range(1000, 1000 + PORTS):
            lines += [
                f"  V{vip}P{port}:",
                f"    address: 10.77.0.{101 + vip}",
                f"    ports: [{port}]",
                f"    real_servers: [{names}]",
            ]
    return "\n".join(lines) + "\n"


def many_vips(count: int) -> str:
    """The file of a standby with many VIPs."""
    lines = ["director: {name: bench, role: standby, check: 'on'}"]
    lines += ["real_servers: {s0: {address: 10.77.0.11}}", "virtual_services:"]
    for vip in range(count):
        lines += [
            f"  V{vip}:",
            f"    address: 10.77.0.{101 + vip}",
            "    ports: [80]",
            "    real_servers: [s0]",
        ]
    return "\n".join(lines) + "\n"


def ipvsadm_rules() -> str:
    """The same services for `ipvsadm -R`."""
    lines = []
    for vip in range(VIPS):
        for port in range(1000, 1000 + PORTS):
            service = f"-t 10.77.0.{101 + vip}:{port}"
            lines.append(f"-A {service} -s wlc")
            lines += [f"-a {service} -r 10.77.0.{11 + n}:{port} -g -w 1" for n in range(SERVERS)]
    return "\n".join(lines) + "\n"


class Bench:
    """The benchmark in a lab.

    Args:
        lab: with HOSTS.
        directory: for files.
    """

    def __init__(self, lab: Lab, directory: Path) -> None:
        self._lab = lab
        self._directory = directory

    def rows(self) -> Iterator[Row]:
        """All rows, one after the other."""
        yield self._cold_apply()
        with self._daemon("small", _SMALL) as (_, process):
            yield Row("daemon memory, idle", _rss(process), "MiB", None, 60)
        with self._daemon("large", large_configuration()) as (paths, process):
            yield self._idle(process)
            yield self._weight(paths)
            ask(paths, StatusRequest())
            yield Row("daemon memory, 1,000 services", _rss(process), "MiB", None, 120)
            self._lab.run("director", [str(LBDR), "withdraw", *_options(paths)])
        with self._daemon("vips", many_vips(100)) as (paths, _):
            yield self._role(paths)

    def _cold_apply(self) -> Row:
        paths = self._paths("cold", large_configuration())
        rules = self._directory / "rules"
        rules.write_text(ipvsadm_rules())
        ours, theirs = [], []
        for _ in range(ROUNDS):
            ours.append(self._timed("director", [str(LBDR), "apply", *_options(paths)]))
            self._lab.run("director", [str(LBDR), "withdraw", *_options(paths)])
            with rules.open() as stream:
                theirs.append(self._timed("reference", ["ipvsadm", "-R"], stream))
            self._lab.run("reference", ["ipvsadm", "-C"])
        ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
        return Row("cold apply, to ipvsadm -R", statistics.median(ours), "s", ratio, 2)

    def _timed(
        self, host: str, argv: list[str], stdin: IO[str] | int = subprocess.DEVNULL
    ) -> float:
        namespace = f"--net=/run/netns/{self._lab[host].namespace}"
        begin = time.perf_counter()
        subprocess.run(
            ["nsenter", namespace, *argv],
            check=True,
            stdin=stdin,
            stdout=subprocess.DEVNULL,
        )
        return time.perf_counter() - begin

    def _idle(self, process: subprocess.Popen[str]) -> Row:
        """CPU of the idle daemon: nothing is asked of it, it only looks for drift."""
        before, begin = _cpu(process), time.monotonic()
        wait_for(lambda: time.monotonic() - begin > IDLE_SECONDS, "time", timeout=2 * IDLE_SECONDS)
        share = (_cpu(process) - before) / (time.monotonic() - begin)
        return Row("idle daemon's drift check", 100 * share, "% of a core", None, 3)

    def _weight(self, paths: Paths) -> Row:
        """From the request to the answer, which comes when the kernel has the weight."""
        times = []
        for n in range(CHANGES):
            request = WeightRequest(real_server="s3", virtual_service="V5P1050", weight=2 + n)
            begin = time.perf_counter()
            answer = ask(paths, request)
            times.append(1000 * (time.perf_counter() - begin))
            assert answer.result is not None
            assert len(answer.result["operations"]) == 1, answer.result
        return Row("one changed weight", statistics.median(times), "ms", None, 50)

    def _role(self, paths: Paths) -> Row:
        """From the request to the first gratuitous ARP of the last of 100 VIPs, at the client."""
        times = []
        for _ in range(ROUNDS):
            with self._lab.entered("client"):
                sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ARP))
                sniffer.bind((INTERFACE, _ETH_P_ARP))
                sniffer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
                sniffer.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
                sniffer.settimeout(10)
            with sniffer:
                begin = time.time()
                ask(paths, RoleRequest(role=Role.ACTIVE))
                times.append(1000 * (_last_announced(sniffer, 100) - begin))
            ask(paths, RoleRequest(role=Role.STANDBY))
        return Row("active, 100 VIPs announced", statistics.median(times), "ms", None, 200)

    def _paths(self, name: str, text: str) -> Paths:
        place = self._directory / name
        place.mkdir()
        (place / "lbdr.yaml").write_text(text)
        return Paths(place / "lbdr.yaml", place / "run", place / "state")

    @contextlib.contextmanager
    def _daemon(self, name: str, text: str) -> Iterator[tuple[Paths, subprocess.Popen[str]]]:
        paths = self._paths(name, text)
        log = self._directory / f"{name}.log"
        with log.open("w") as stream:
            command = [str(LBDR), "daemon", *_options(paths)]
            process = self._lab.popen("director", command, stderr=stream)
        try:
            wait_for(lambda: " ready: " in log.read_text(), f"{name} ready", timeout=60)
            yield paths, process
        except BaseException:
            sys.stderr.write(log.read_text()[-4000:])
            raise
        finally:
            self._lab.stop(process)


def _options(paths: Paths) -> list[str]:
    return [
        f"--config={paths.config}",
        f"--run-dir={paths.run}",
        f"--state-dir={paths.state}",
    ]


def _last_announced(sniffer: socket.socket, count: int) -> float:
    """When the first gratuitous ARP of the last VIP came, by the kernel's own clock."""
    seen: set[IPv4Address] = set()
    while True:
        frame, (control,), _, _ = sniffer.recvmsg(128, 64)
        arp = parse_arp(frame)
        if arp is not None and arp.sender == arp.target:
            seen.add(arp.sender)
            if len(seen) == count:
                seconds, nanoseconds = struct.unpack("qq", control[2])
                return float(seconds + nanoseconds / 1e9)


def _rss(process: subprocess.Popen[str]) -> float:
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("a process without VmRSS")


def _cpu(process: subprocess.Popen[str]) -> float:
    """Seconds of CPU so far (proc(5): utime and stime, in clock ticks)."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    """Print all rows; 1 where a limit is not kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one object a line")
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
    kept = True
    if not arguments.json:
        print(f"on {os.environ.get('LBDR_MACHINE', os.uname().release)}")
    with tempfile.TemporaryDirectory(prefix="lbdr-bench-") as directory, Lab(HOSTS) as lab:
        for row in Bench(lab, Path(directory)).rows():
            kept &= row.kept
            if arguments.json:
                print(json.dumps(asdict(row)), flush=True)
            else:
                print(row, flush=True)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
