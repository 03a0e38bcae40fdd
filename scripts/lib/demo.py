"""The demo: a director, two web servers and a client on one bridge, and 100 requests to the VIP.

Where the kernel has IPVS, both engines show: XDP forwards, then IPVS alone, with the same choices.
Where it has none, XDP alone forwards.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from netlab import INTERFACE, Lab, wait_for
from veth import fit_for_xdp

from lbdr.control import client
from lbdr.control.protocol import StatusRequest
from lbdr.datapath.addresses import observe_network
from lbdr.datapath.arp import who_has
from lbdr.datapath.bpf_fs import mount_bpffs, on_bpffs
from lbdr.paths import Paths
from lbdr.status import Status

PROJECT = Path(__file__).resolve().parents[2]
LBDR = PROJECT / ".venv" / "bin" / "lbdr"
CONFIG = PROJECT / "examples" / "demo.yaml"
VIP = "10.77.0.10"
SERVERS = ("web1", "web2")
REQUESTS = 100
_ETH_P_IP = 0x0800
BPFFS = Path("/sys/fs/bpf")
_FIRST_PORT = 40_000  # of the client's: the same ones each time, so that choices can be compared
_ADDING_UP = 2.5  # seconds in which IPVS adds up its counters once
_COMPILING = 150.0  # seconds that an emulated machine may take
_PLACES = ("--run-dir", "--state-dir", "--bpf-dir", "--root")  # of no interest to who watches


@dataclass(slots=True)
class Traffic:
    """What the client met.

    Args:
        choices: who answered, by the client's port.
        failed: requests without an answer.
        clients_seen: the addresses that servers saw as the client's.
        reply_macs: source MACs of the frames that came from the VIP.
    """

    choices: dict[int, str] = field(default_factory=dict)
    failed: int = 0
    clients_seen: set[str] = field(default_factory=set)
    reply_macs: set[str] = field(default_factory=set)

    @property
    def answers(self) -> Counter[str]:
        """Requests answered, by the server's own name."""
        return Counter(self.choices.values())


class Demo:
    """The demo in a lab.

    Args:
        lab: with a client, a director and SERVERS.
        directory: for the daemon's files.
        config: of the director.
    """

    def __init__(self, lab: Lab, directory: Path, config: Path = CONFIG) -> None:
        self._lab = lab
        self._log = directory / "daemon.log"
        paths = Paths(config, directory / "run", directory / "state", BPFFS / directory.name)
        self._paths = paths
        self._places = [
            f"--run-dir={paths.run}",
            f"--state-dir={paths.state}",
            f"--bpf-dir={paths.bpf}",
        ]

    def run(self) -> dict[str, object]:
        """Run it and show it; the result as one object."""
        self._solve_arp()
        with self._web_servers(), self._daemon():
            status = self._fast_path()
            engine = "XDP" if status.fastpath.state == "forwards" else "IPVS"
            traffic = [self._requests(f"forwarded by {engine}")]
            answering = self._who_answers()
            self._show("director", "status", *self._places)
            by_xdp = self._status()
            by_ipvs = None
            if (status.engine, engine) == ("ipvs", "XDP"):
                _title("The same again by IPVS: it chooses alike, so XDP can come and go")
                self._show("director", "fastpath", "off", *self._places)
                traffic.append(self._requests("forwarded by IPVS alone"))
                by_ipvs = self._counted()
                self._show("director", "fastpath", "on", *self._places)
            result = self._result(traffic, answering, by_xdp, by_ipvs)
            self._explain(result, traffic[0])
            self._show("director", "withdraw", *self._places)
        return result

    def _solve_arp(self) -> None:
        _title("On each real server: the VIP, and no answer to ARP for it")
        for name in SERVERS:
            self._show(name, "solve-arp", "--vip", VIP, *self._memory(name))
            self._show(name, "solve-arp", "--vip", VIP, *self._memory(name), "--check")

    def _memory(self, name: str) -> list[str]:
        """A folder for what it remembers: the servers share this machine's files."""
        return [f"--root={self._log.parent / name}"]

    @contextmanager
    def _web_servers(self) -> Iterator[None]:
        script = str(Path(__file__).with_name("webserver.py"))
        started = [self._lab.popen(name, [sys.executable, script, name]) for name in SERVERS]
        wait_for(lambda: all(map(self._listens, SERVERS)), "the servers listen", timeout=30)
        yield
        for process in started:
            self._lab.stop(process)

    def _listens(self, name: str) -> bool:
        with self._lab.entered(name):
            try:
                socket.create_connection(("127.0.0.1", 80), timeout=1).close()
            except OSError:
                return False
        return True

    @contextmanager
    def _daemon(self) -> Iterator[None]:
        _title("On the director: the daemon")
        command = [str(LBDR), "daemon", str(self._paths.config), *self._places]
        print(f"director# lbdr daemon {CONFIG.relative_to(PROJECT)}")
        with self._log.open("w") as log:
            process = self._lab.popen("director", command, stderr=log)
        try:
            wait_for(lambda: self._ready(process), "the daemon is ready", timeout=120)
        except TimeoutError:
            sys.stderr.write(self._log.read_text())
            raise
        print(self._log.read_text(), end="")
        yield
        self._lab.stop(process)
        shutil.rmtree(self._paths.bpf, ignore_errors=True)  # empty, if there at all

    def _status(self) -> Status:
        """As `lbdr status` asks for it, without a process, which takes long when emulated."""
        return Status.model_validate(client.ask(self._paths, StatusRequest()).result)

    def _fast_path(self) -> Status:
        """Wait until XDP forwards, or it is known that it will not."""
        deadline = time.monotonic() + _COMPILING
        while True:
            status = self._status()
            fast = status.fastpath
            waits = fast.state == "off" and fast.reason == "starting"
            if not waits or time.monotonic() > deadline:
                return status
            time.sleep(0.5)

    def _ready(self, process: subprocess.Popen[str]) -> bool:
        if process.poll() is not None:
            raise RuntimeError(f"the daemon ended:\n{self._log.read_text()}")
        return " ready: " in self._log.read_text()

    def _requests(self, how: str) -> Traffic:
        _title(f"On the client: {REQUESTS} requests to http://{VIP}/, {how}")
        traffic = Traffic()
        with self._lab.entered("client"):
            sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_IP))
            sniffer.bind((INTERFACE, _ETH_P_IP))
            sniffer.setblocking(False)
            with sniffer:
                for port in range(_FIRST_PORT, _FIRST_PORT + REQUESTS):
                    _request(traffic, port)
                    _sniff(sniffer, traffic)
        for name, count in sorted(traffic.answers.items()):
            print(f"  {name}: {count} answers")
        return traffic

    def _who_answers(self) -> set[str]:
        with self._lab.entered("client"):
            network = observe_network()
            macs = asyncio.run(who_has(ip_address(VIP), network.interfaces[INTERFACE], 0.5))
        return {self._name_of(mac) for mac in macs}

    def _name_of(self, mac: str) -> str:
        return next((host.name for host in self._lab.hosts.values() if host.mac == mac), mac)

    def _counted(self) -> Status:
        """The status, once IPVS has added up all that it forwarded, as it does every 2 seconds."""
        before = 0
        for _ in range(10):
            status = self._status()
            counted = status.virtual_services[0].totals.packets_in
            if counted and counted == before:
                break
            before = counted
            time.sleep(_ADDING_UP)
        return status

    def _result(
        self,
        traffic: Sequence[Traffic],
        answering: set[str],
        status: Status,
        by_ipvs: Status | None,
    ) -> dict[str, object]:
        first, last = traffic[0], traffic[-1]
        seen = {ip_address(seen.removeprefix("::ffff:")) for seen in first.clients_seen}
        replying = {self._name_of(mac) for mac in first.reply_macs}
        (web,) = status.virtual_services
        slow = by_ipvs.virtual_services[0] if by_ipvs else web
        engines = [one.mode for one in status.fastpath.devices if web.fastpath.state == "forwards"]
        return {
            "engines": sorted(
                {"xdp" if mode == "native" else "tc" for mode in engines}
                | ({"ipvs"} if status.engine == "ipvs" else set())
            ),
            "kernel": os.uname().release,
            "requests": REQUESTS,
            "failed": sum(one.failed for one in traffic),
            "servers": dict(sorted(first.answers.items())),
            "forwarded_by_xdp": web.fastpath.packets,
            "forwarded_by_ipvs": slow.totals.packets_in - slow.fastpath.packets,
            "not_forwarded": dict(web.fastpath.not_forwarded),
            "same_choice": sum(last.choices.get(port) == one for port, one in first.choices.items())
            if len(traffic) > 1
            else None,
            "client_address_seen": seen == {self._lab["client"].ipv4},
            "direct_return": bool(replying) and replying <= set(SERVERS),
            "vip_answered_by": ", ".join(sorted(answering)) or "nobody",
        }

    def _explain(self, result: Mapping[str, object], traffic: Traffic) -> None:
        _title("What happened")
        replying = sorted(self._name_of(mac) for mac in traffic.reply_macs)
        seen = sorted(seen.removeprefix("::ffff:") for seen in traffic.clients_seen)
        print(f"  {len(traffic.choices)} of {REQUESTS} requests were answered")
        print(
            f"  packets forwarded by XDP: {result['forwarded_by_xdp']}, "
            f"by IPVS: {result['forwarded_by_ipvs']}"
        )
        if result["same_choice"] is not None:
            print(f"  IPVS alone chose the same server for {result['same_choice']} of {REQUESTS}")
        else:
            print(f"  this kernel ({result['kernel']}) shows one engine; both: scripts/demo --uml")
        print(f"  servers saw the client as {', '.join(seen)}: its own address")
        print(f"  replies from {VIP} came in frames from {', '.join(replying)}: not the director")
        print(f"  ARP for {VIP} is answered by {result['vip_answered_by']}")

    def _show(self, host: str, *arguments: str) -> None:
        """Run lbdr on a host and show it as one would type it there."""
        typed = [word for word in arguments if not word.startswith(_PLACES)]
        print(f"{host}# lbdr {' '.join(typed)}")
        # an emulated machine takes half a minute to start one
        done = self._lab.run(host, [str(LBDR), *arguments], timeout=240)
        for line in done.stdout.splitlines():
            print(line.rstrip())


def _request(traffic: Traffic, port: int) -> None:
    connection = http.client.HTTPConnection(VIP, 80)
    try:
        connection.sock = _from(port)
        connection.request("GET", "/")
        answer = json.loads(connection.getresponse().read())
    except (OSError, http.client.HTTPException, ValueError):
        traffic.failed += 1
    else:
        traffic.choices[port] = answer["server"]
        traffic.clients_seen.add(answer["client"])
    finally:
        connection.close()


def _from(port: int) -> socket.socket:
    """A connection from a port of the client's, which is free again when it is closed."""
    connection = socket.socket()
    connection.settimeout(5)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    try:
        connection.bind(("", port))
        connection.connect((VIP, 80))
    except OSError:
        connection.close()
        raise
    return connection


def _sniff(sniffer: socket.socket, traffic: Traffic) -> None:
    """Note who sent the frames from the VIP that have come in."""
    while True:
        try:
            frame, place = sniffer.recvfrom(64)
        except BlockingIOError:
            return
        if place[2] != socket.PACKET_OUTGOING and frame[26:30] == ip_address(VIP).packed:
            traffic.reply_macs.add(frame[6:12].hex(":"))


def _without_xdp(directory: Path) -> Path:
    """The configuration with `fastpath: off`: compiling takes an emulated machine minutes."""
    config = directory / CONFIG.name
    config.write_text(
        CONFIG.read_text().replace("  name: demo\n", "  name: demo\n  fastpath: off\n")
    )
    return config


def _title(text: str) -> None:
    print(f"\n=== {text}", flush=True)


def main() -> int:
    """Run the demo; 0 when all of it went as it should."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="the result as the last line")
    parser.add_argument("--ipvs-alone", action="store_true", help="for a kernel that is emulated")
    arguments = parser.parse_args()
    if not on_bpffs(BPFFS):
        mount_bpffs(BPFFS)
    with (
        tempfile.TemporaryDirectory(prefix="lbdr-demo-") as directory,
        Lab() as lab,
        fit_for_xdp(lab, ["director"], ["client"]),
    ):
        config = _without_xdp(Path(directory)) if arguments.ipvs_alone else CONFIG
        result = Demo(lab, Path(directory), config).run()
    good = (
        result["failed"] == 0
        and result["same_choice"] in (None, REQUESTS)
        and result["client_address_seen"]
        and result["direct_return"]
        and result["vip_answered_by"] == "director"
    )
    print("\nas it should be" if good else "\nNOT as it should be", flush=True)
    if arguments.json:
        print(json.dumps(result))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
