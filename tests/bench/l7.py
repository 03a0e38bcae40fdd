"""The cost of Layer 7: the rendered configuration beside a hand-written one, on one machine.

Both sides of a ratio run in turns, since machines drift. Servers are HAProxys that answer by
themselves, so that what is measured is the director.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from netlab import Lab, wait_for

from lbdr.haproxy.association import Association, build
from lbdr.haproxy.matching import Condition, Rule, ToBackend, ToServer
from lbdr.haproxy.model import (
    Pool,
    ProxyBackend,
    ProxyConfiguration,
    ProxyProtocol,
    ProxyServer,
    ProxyService,
    ProxySettings,
)
from lbdr.haproxy.process import Companion
from lbdr.haproxy.runtime import AdminState
from lbdr.model import PortRange, Ports
from tests.bench.xdp_report import Row
from tests.proxies import Director

WEB, DICOM, PLAIN, MANY = 80, 2104, 2105, 10000
REFERENCE = IPv4Address("10.77.0.2")
ROUNDS, SECONDS = 9, 2
ASSOCIATIONS = 400
SERVICES, SERVERS = 1000, 4
CHANGES = 50
_CT = "1.2.840.10008.5.1.4.1.1.2"

_SERVER = """\
defaults
    timeout client 60s
    timeout server 60s
    timeout connect 5s
frontend web
    mode http
    bind 0.0.0.0:{web}
    http-request return status 200 content-type text/plain string "a small answer"
frontend dicom
    mode tcp
    bind 0.0.0.0:{dicom}
    tcp-request inspect-delay 5s
    tcp-request content use-service lua.answer if {{ req.len gt 0 }}
"""
_LUA = """\
core.register_service("answer", "tcp", function(applet) applet:send("2") end)
"""
_MINIMAL = """\
global
    maxconn 4000
    nbthread 2
defaults
    timeout client 50s
    timeout server 50s
    timeout connect 5s
frontend web
    mode http
    bind {reference}:{web}
    default_backend web
backend web
    mode http
    balance leastconn
    server web1 {web1}:{web}
    server web2 {web2}:{web}
"""


def configuration(lab: Lab) -> ProxyConfiguration:
    """A web service, a DICOM service with rules, and a TCP service that leads to the same."""
    vip = (lab["director"].ipv4,)

    def pool(port: int) -> Pool:
        return Pool(tuple(ProxyServer(name, lab[name].ipv4, port) for name in ("web1", "web2")))

    rules = (
        Rule(Condition(called_ae=("PACS_STAT",)), ToBackend("STAT")),
        Rule(Condition(modality=("MR", "US", "SR", "SC")), ToServer("web1")),
        Rule(Condition(modality=("CT",)), ToServer("web2")),
    )
    return ProxyConfiguration(
        ProxySettings(max_connections=4000, threads=2),
        (
            ProxyService("WEB", vip, ports(WEB), pool(WEB), ProxyProtocol.HTTP),
            ProxyService("DICOM", vip, ports(DICOM), pool(DICOM), ProxyProtocol.DICOM, rules=rules),
            ProxyService("PLAIN", vip, ports(PLAIN), pool(DICOM)),
        ),
        (ProxyBackend("STAT", pool(DICOM), ProxyProtocol.DICOM),),
    )


def many() -> ProxyConfiguration:
    """A thousand services with four servers each."""
    vip = (IPv4Address("10.77.0.1"),)
    return ProxyConfiguration(
        ProxySettings(max_connections=4000, threads=2),
        tuple(
            ProxyService(
                f"S{n}",
                vip,
                ports(MANY + n),
                Pool(
                    tuple(
                        ProxyServer(f"s{k}", IPv4Address(f"10.77.1.{k + 1}"), MANY + n)
                        for k in range(SERVERS)
                    )
                ),
                (ProxyProtocol.TCP, ProxyProtocol.HTTP, ProxyProtocol.DICOM)[n % 3],
            )
            for n in range(SERVICES)
        ),
    )


def ports(*numbers: int) -> Ports:
    """Ports of a service."""
    return Ports(tuple(PortRange(number, number) for number in numbers))


@contextlib.contextmanager
def running(lab: Lab, host: str, text: str, folder: Path, address: str) -> Iterator[int]:
    """A HAProxy with a configuration of its own, on a host; answers on the web port."""
    file = folder / f"{host}.cfg"
    file.write_text(text)
    process = lab.popen(host, ["haproxy", "-db", "-f", str(file)], stderr=subprocess.DEVNULL)

    def answers() -> bool:
        with lab.entered(host), contextlib.suppress(OSError):
            socket.create_connection((address, WEB), 1).close()
            return True
        return False

    try:
        wait_for(answers, f"HAProxy on {host}")
        yield process.pid
    finally:
        lab.stop(process)


@dataclass(frozen=True, slots=True)
class Load:
    """What a round of requests showed.

    Args:
        rate: requests a second.
        latency: the median, in ms.
        processor: microseconds of processor time that HAProxy took for each.
    """

    rate: float
    latency: float
    processor: float


def processor_time(pid: int) -> float:
    """Seconds of a process so far, in user and kernel mode."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def requests(lab: Lab, address: str, pid: int) -> Load:
    """A round of requests to one of the two."""
    before = processor_time(pid)
    argv = ["wrk", "-t1", "-c32", f"-d{SECONDS}s", "--latency", f"http://{address}:{WEB}/"]
    words = lab.run("client", argv).stdout
    took = processor_time(pid) - before
    rate = re.search(r"Requests/sec:\s+([\d.]+)", words)
    count = re.search(r"(\d+) requests in", words)
    half = re.search(r"50%\s+([\d.]+)(us|ms)", words)
    if "Non-2xx" in words or "Socket errors" in words or not (rate and half and count):
        raise RuntimeError(words)
    latency = float(half[1]) / (1000 if half[2] == "us" else 1)
    return Load(float(rate[1]), latency, took * 1e6 / int(count[1]))


def web_rows(lab: Lab, director: Director, minimal: int) -> Iterator[Row]:
    """Throughput, latency and processor time beside the minimal configuration."""
    (worker,) = director.processes().current
    pairs = [
        (
            requests(lab, str(lab["director"].ipv4), worker.pid),
            requests(lab, str(REFERENCE), minimal),
        )
        for _ in range(ROUNDS)
    ]

    def row(name: str, unit: str, what: Callable[[Load], float], limit: float) -> Row:
        return Row(
            f"{name}, to a minimal configuration",
            statistics.median(what(ours) for ours, _ in pairs),
            unit,
            statistics.median(what(ours) / what(other) for ours, other in pairs),
            limit,
            at_least=limit < 1,
        )

    yield row("requests", "1/s", lambda load: load.rate, 0.95)
    yield row("latency", "ms", lambda load: load.latency, 1.05)
    yield row("processor time", "us", lambda load: load.processor, 1.05)


def first_answer(lab: Lab, port: int, data: bytes) -> float:
    """Milliseconds from the connection to the server's first byte."""
    start = time.perf_counter()
    with socket.create_connection((str(lab["director"].ipv4), port), 10) as connection:
        connection.sendall(data)
        if not connection.recv(1):
            raise RuntimeError(f"port {port}: no answer")
        return (time.perf_counter() - start) * 1000


def dicom_rows(lab: Lab) -> Iterator[Row]:
    """What reading and routing adds to an association."""
    ct = (_CT,)
    for name, data in (
        ("an association, routed by class", build(Association("PACS", "CT_ER", ct * 8))),
        (
            "the largest legal one (128 contexts x 10)",
            build(Association("PACS", "CT_ER", ct * 128), transfer_syntaxes=10),
        ),
    ):
        added: list[float] = []
        with lab.entered("client"):
            for _ in range(ASSOCIATIONS):
                plain = first_answer(lab, PLAIN, data)
                added.append(first_answer(lab, DICOM, data) - plain)
        limit = 1.0 if "routed" in name else None
        yield Row(f"added to {name}", statistics.median(added), "ms", None, limit)


def many_rows(director: Director) -> Iterator[Row]:
    """A thousand services: rendered and checked, and one server's state set."""
    start = time.perf_counter()
    rendered = director.render(many())
    took = time.perf_counter() - start
    yield Row(f"{SERVICES} services with {SERVERS} servers rendered", took, "s")
    start = time.perf_counter()
    director.run(lambda companion: companion.check(rendered))
    yield Row("rendered and validated", took + time.perf_counter() - start, "s", None, 10)
    director.run(lambda companion: companion.apply(rendered))

    async def change(companion: Companion) -> list[float]:
        times: list[float] = []
        for number in range(CHANGES):
            state = AdminState.MAINTENANCE if number % 2 else AdminState.READY
            start = time.perf_counter()
            await companion.runtime.set_state(f"S{SERVICES - 1}", "s3", state)
            times.append((time.perf_counter() - start) * 1000)
        return times

    times = director.run(change)
    yield Row("a server's state set, the slowest of 50", max(times), "ms", None, 100)


def measure(say: Callable[[Row], None]) -> bool:
    """Measure everything; says whether all limits are kept."""
    kept = True
    with contextlib.ExitStack() as stack:
        lab = stack.enter_context(Lab())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lbdr-bench-")))
        folder.chmod(0o755)
        (folder / "answer.lua").write_text(_LUA)
        lab.ip("director", f"address add {REFERENCE}/24 dev eth0")
        servers = f"global\n    lua-load-per-thread {folder}/answer.lua\n    nbthread 1\n" + (
            _SERVER.format(web=WEB, dicom=DICOM)
        )
        for host in ("web1", "web2"):
            stack.enter_context(running(lab, host, servers, folder, str(lab[host].ipv4)))
        minimal = _MINIMAL.format(
            reference=REFERENCE, web=WEB, web1=lab["web1"].ipv4, web2=lab["web2"].ipv4
        )
        reference = running(lab, "director", minimal, folder, str(REFERENCE))
        other = stack.enter_context(reference)
        director = stack.enter_context(Director(lab, folder / "haproxy"))
        director.apply(configuration(lab))
        for rows in (web_rows(lab, director, other), dicom_rows(lab), many_rows(director)):
            for row in rows:
                say(row)
                kept &= row.kept
    return kept


def main() -> int:
    """Print each figure as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    as_json = parser.parse_args().json
    return 0 if measure(lambda row: print(row.json() if as_json else row, flush=True)) else 1


if __name__ == "__main__":
    sys.exit(main())
