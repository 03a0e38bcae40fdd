"""A real server in a lab: solve-arp run on it, and what the wire says about it."""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import json
import os
import select
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from netlab import Lab
from scapy import all as layers

from lbdr.model import VirtualAddress
from lbdr.realserver import arp_problem, cli, observe
from lbdr.realserver.findings import solved

VIP, VIP6 = "10.77.0.50", "fd77::50"
SERVER, DIRECTOR = "10.77.0.21", "10.77.0.1"
SERVER6 = "fd77::21"
NOBODY = str(ipaddress.IPv4Address(0))  # the sender of a probe (RFC 5227)
ETH_ARP, ETH_IPV6 = 0x0806, 0x86DD

_unknown = itertools.count(100)


def unknown() -> int:
    """The last number of an address that nobody has and nobody was asked for."""
    return 100 + next(_unknown) % 150


@contextlib.contextmanager
def one_cpu() -> Iterator[None]:
    """Frames of one sender stay in order: the queues of two CPUs could overtake each other."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def ip(text: str) -> Any:
    return ipaddress.ip_address(text)


def sysctls(lab: Lab) -> dict[str, str]:
    with lab.entered("web1"):
        return {
            str(path): path.read_text()
            for version in (4, 6)
            for path in sorted(Path(f"/proc/sys/net/ipv{version}/conf").glob("*/*"))
            if path.stat().st_mode & 0o444 == 0o444 and path.name != "stable_secret"
        }


def addresses(lab: Lab, interface: str) -> list[str]:
    out = json.loads(lab.run("web1", ["ip", "-j", "address", "show", "dev", interface]).stdout)
    return [f"{a['local']}/{a['prefixlen']}" for a in out[0]["addr_info"]]


def everything(lab: Lab) -> tuple[dict[str, str], str, str]:
    routes = lab.run("web1", ["ip", "route", "show", "table", "all"]).stdout
    return sysctls(lab), lab.run("web1", ["ip", "address"]).stdout, routes


def run(lab: Lab, root: Path, *arguments: str) -> int:
    with lab.entered("web1"):
        return cli.main(["--root", str(root), *arguments])


def result(
    lab: Lab, root: Path, capsys: pytest.CaptureFixture[str], *arguments: str
) -> dict[str, Any]:
    capsys.readouterr()
    code = run(lab, root, "--json", *arguments)
    shown: dict[str, Any] = json.loads(capsys.readouterr().out)
    if shown["exit_code"] != code:
        raise AssertionError(f"exit code {code}, and in the JSON {shown['exit_code']}")
    return shown


def set_conf(lab: Lab, **values: int) -> None:
    for name, value in values.items():
        interface, _, setting = name.partition("_")
        lab.sysctl("web1", f"net.ipv4.conf.{interface}.{setting}", str(value))


def frames(listener: socket.socket, deadline: float) -> Iterator[bytes]:
    while (left := deadline - time.monotonic()) > 0:
        if select.select([listener], [], [], left)[0]:
            yield listener.recv(2048)


@contextlib.contextmanager
def listening(lab: Lab, protocol: int) -> Iterator[socket.socket]:
    with (
        one_cpu(),
        lab.entered("director"),
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(protocol)) as listener,
    ):
        listener.bind(("eth0", protocol))
        yield listener


def who_has(lab: Lab, sender: str, target: str) -> bytes:
    mac = bytes.fromhex(lab["director"].mac.replace(":", ""))
    header = b"\xff" * 6 + mac + struct.pack("!H", ETH_ARP)
    body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + mac + ip(sender).packed
    frame: bytes = header + body + bytes(6) + ip(target).packed
    return frame


def answers_arp(lab: Lab) -> bool:
    """Whether the server answers a who-has or a probe for the VIP.

    No waiting for silence: the server answers a question for its own address, asked last, when it
    is through with those before.
    """
    with listening(lab, ETH_ARP) as listener:
        for sender, target in ((DIRECTOR, VIP), (NOBODY, VIP), (DIRECTOR, SERVER)):
            listener.send(who_has(lab, sender, target))
        found = False
        for frame in frames(listener, time.monotonic() + 5):
            operation, sender_ip = struct.unpack_from("!H", frame, 20)[0], frame[28:32]
            if operation == 2 and sender_ip == ip(VIP).packed:
                found = True
            if operation == 2 and sender_ip == ip(SERVER).packed:
                return found
    raise TimeoutError("the server does not answer for its own address")


def announces_vip(lab: Lab) -> bool:
    """Whether the server asks for a neighbour in the VIP's name, when it has to answer one."""
    target = f"10.77.0.{unknown()}"
    with listening(lab, ETH_ARP) as listener:
        lab.run("web1", ["ip", "neigh", "flush", "to", target], check=False)
        with lab.entered("web1"), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
            server.bind((VIP, 0))
            server.sendto(b"answer", (target, 9))
        for frame in frames(listener, time.monotonic() + 5):
            if struct.unpack_from("!H", frame, 20)[0] == 1 and frame[38:42] == ip(target).packed:
                return bool(frame[28:32] == ip(VIP).packed)
    raise TimeoutError("the server asked for nobody")


def check_says_solved(lab: Lab, vip: str = VIP) -> bool:
    with lab.entered("web1"):
        return solved(
            arp_problem.judge(observe.server_state("lo"), [VirtualAddress(ip(vip), "lo")])
        )


def neighbour_solicitation(lab: Lab, target: str) -> bytes:
    group = ip("ff02::1:ff00:0").packed[:13] + ip(target).packed[13:]
    frame = (
        layers.Ether(src=lab["director"].mac, dst=b"\x33\x33" + group[12:])
        / layers.IPv6(src="fd77::1", dst=str(ipaddress.IPv6Address(group)), hlim=255)
        / layers.ICMPv6ND_NS(tgt=target)
        / layers.ICMPv6NDOptSrcLLAddr(lladdr=lab["director"].mac)
    )
    return bytes(frame)


def advertises(lab: Lab) -> bool:
    with listening(lab, ETH_IPV6) as listener:
        for target in (VIP6, SERVER6):
            listener.send(neighbour_solicitation(lab, target))
        found = False
        for frame in frames(listener, time.monotonic() + 5):
            if frame[20] != 58 or frame[54] != 136:  # ICMPv6, neighbour advertisement
                continue
            if frame[62:78] == ip(VIP6).packed:
                found = True
            if frame[62:78] == ip(SERVER6).packed:
                return found
    raise TimeoutError("the server does not answer for its own address")


def arrives(lab: Lab, source: str) -> bool:
    """Whether a datagram from a source to the VIP, sent to the server's MAC, is delivered."""

    def datagram(sender: str, text: bytes) -> bytes:
        return bytes(
            layers.Ether(src=lab["director"].mac, dst=lab["web1"].mac)
            / layers.IP(src=sender, dst=VIP)
            / layers.UDP(sport=1000, dport=9000)
            / text
        )

    with lab.entered("web1"):
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with server, listening(lab, ETH_ARP) as wire:
        server.bind((VIP, 9000))
        server.settimeout(5)
        wire.send(datagram(source, b"asked"))
        wire.send(datagram(DIRECTOR, b"last"))
        got = [server.recv(100)]
        while got[-1] != b"last":
            got.append(server.recv(100))
    return b"asked" in got
