"""The demo: a director, two web servers and a client on one bridge, and 100 requests to the VIP."""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from netlab import INTERFACE, Lab, wait_for

from lbdr.datapath.addresses import observe_network
from lbdr.datapath.arp import who_has

PROJECT = Path(__file__).resolve().parents[2]
LBDR = PROJECT / ".venv" / "bin" / "lbdr"
CONFIG = PROJECT / "examples" / "demo.yaml"
VIP = "10.77.0.10"
SERVERS = ("web1", "web2")
REQUESTS = 100
_ETH_P_IP = 0x0800
_PLACES = ("--run-dir", "--state-dir", "--root")  # of no interest to who watches


@dataclass(slots=True)
class Traffic:
    """What the client met.

    Args:
        answers: requests answered, by the server's own name.
        failed: requests without an answer.
        clients_seen: the addresses that servers saw as the client's.
        reply_macs: source MACs of the frames that came from the VIP.
    """

    answers: Counter[str] = field(default_factory=Counter)
    failed: int = 0
    clients_seen: set[str] = field(default_factory=set)
    reply_macs: set[str] = field(default_factory=set)


class Demo:
    """The demo in a lab.

    Args:
        lab: with a client, a director and SERVERS.
        directory: for the daemon's files.
    """

    def __init__(self, lab: Lab, directory: Path) -> None:
        self._lab = lab
        self._log = directory / "daemon.log"
        self._places = [f"--run-dir={directory / 'run'}", f"--state-dir={directory / 'state'}"]

    def run(self) -> dict[str, object]:
        """Run it and show it; the result as one object."""
        self._solve_arp()
        with self._web_servers(), self._daemon():
            self._show("director", "status", *self._places)
            traffic = self._requests()
            answering = self._who_answers()
            self._show("director", "status", *self._places)
            result = self._result(traffic, answering)
            self._explain(traffic, answering)
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
        command = [str(LBDR), "daemon", str(CONFIG), *self._places]
        print(f"director# lbdr daemon {CONFIG.relative_to(PROJECT)}")
        with self._log.open("w") as log:
            process = self._lab.popen("director", command, stderr=log)
        try:
            wait_for(lambda: self._ready(process), "the daemon is ready", timeout=60)
        except TimeoutError:
            sys.stderr.write(self._log.read_text())
            raise
        print(self._log.read_text(), end="")
        yield
        self._lab.stop(process)

    def _ready(self, process: subprocess.Popen[str]) -> bool:
        if process.poll() is not None:
            raise RuntimeError(f"the daemon ended:\n{self._log.read_text()}")
        return " ready: " in self._log.read_text()

    def _requests(self) -> Traffic:
        _title(f"On the client: {REQUESTS} requests to http://{VIP}/")
        traffic = Traffic()
        with self._lab.entered("client"):
            sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_IP))
            sniffer.bind((INTERFACE, _ETH_P_IP))
            sniffer.setblocking(False)
            with sniffer:
                for _ in range(REQUESTS):
                    _request(traffic)
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

    def _result(self, traffic: Traffic, answering: set[str]) -> dict[str, object]:
        seen = {ip_address(seen.removeprefix("::ffff:")) for seen in traffic.clients_seen}
        replying = {self._name_of(mac) for mac in traffic.reply_macs}
        return {
            "engine": "ipvs",
            "kernel": os.uname().release,
            "requests": REQUESTS,
            "failed": traffic.failed,
            "servers": dict(sorted(traffic.answers.items())),
            "client_address_seen": seen == {self._lab["client"].ipv4},
            "direct_return": bool(replying) and replying <= set(SERVERS),
            "vip_answered_by": ", ".join(sorted(answering)) or "nobody",
        }

    def _explain(self, traffic: Traffic, answering: set[str]) -> None:
        _title("What happened")
        replying = sorted(self._name_of(mac) for mac in traffic.reply_macs)
        seen = sorted(seen.removeprefix("::ffff:") for seen in traffic.clients_seen)
        print(f"  {sum(traffic.answers.values())} of {REQUESTS} requests were answered")
        print(f"  servers saw the client as {', '.join(seen)}: its own address")
        print(f"  replies from {VIP} came in frames from {', '.join(replying)}: not the director")
        print(f"  ARP for {VIP} is answered by {', '.join(sorted(answering))}")

    def _show(self, host: str, *arguments: str) -> None:
        """Run lbdr on a host and show it as one would type it there."""
        typed = [word for word in arguments if not word.startswith(_PLACES)]
        print(f"{host}# lbdr {' '.join(typed)}")
        for line in self._lab.run(host, [str(LBDR), *arguments]).stdout.splitlines():
            print(line.rstrip())


def _request(traffic: Traffic) -> None:
    connection = http.client.HTTPConnection(VIP, 80, timeout=5)
    try:
        connection.request("GET", "/")
        answer = json.loads(connection.getresponse().read())
    except (OSError, http.client.HTTPException, ValueError):
        traffic.failed += 1
    else:
        traffic.answers[answer["server"]] += 1
        traffic.clients_seen.add(answer["client"])
    finally:
        connection.close()


def _sniff(sniffer: socket.socket, traffic: Traffic) -> None:
    """Note who sent the frames from the VIP that have come in."""
    while True:
        try:
            frame, place = sniffer.recvfrom(64)
        except BlockingIOError:
            return
        if place[2] != socket.PACKET_OUTGOING and frame[26:30] == ip_address(VIP).packed:
            traffic.reply_macs.add(frame[6:12].hex(":"))


def _title(text: str) -> None:
    print(f"\n=== {text}", flush=True)


def main() -> int:
    """Run the demo; 0 when all of it went as it should."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="the result as the last line")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lbdr-demo-") as directory, Lab() as lab:
        result = Demo(lab, Path(directory)).run()
    good = (
        result["failed"] == 0
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
