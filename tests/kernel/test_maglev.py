"""lbdr's mh table against the running kernel's IPVS: the same server for every client."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import pytest
from netlab import INTERFACE, Lab, wait_for

from lbdr.datapath.ipvs import Ipvs
from lbdr.maglev import MaglevServer, MaglevTable
from lbdr.model import Address, Protocol, RealServer, Service, ServiceKey
from lbdr.operations import AddRealServer, AddService, DeleteService, SetRealServer

CLIENTS = 1000
SEEDS = range(3)  # 12,000 clients in all
VIPS = {4: ip_address("10.77.0.10"), 6: ip_address("fd77::10")}
PORT = 5000
FTP_DATA = 20
BURST = 100


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab({"client": 100, "director": 1}) as built:
        built.ip(
            "director",
            f"address add {VIPS[4]}/32 dev lo",
            f"address add {VIPS[6]}/128 dev lo nodad",
            # clients of all the world come in here, and no neighbour has to be found for them
            "route add default dev eth0",
            "route add ::/0 dev eth0",
        )
        yield built


@pytest.mark.parametrize("flags", [set(), {"mh-port"}], ids=["address", "port"])
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("seed", SEEDS)
def test_every_client_goes_where_the_table_says(
    lab: Lab, seed: int, version: int, flags: set[str]
) -> None:
    """Random servers, weights and clients; a drained server in every second case."""
    # connections of earlier cases are still in the kernel's table: each case has its own clients
    chance = random.Random(f"{seed} {version} {flags}")  # noqa: S311  # cases, not secrets
    key = ServiceKey(Protocol.UDP, VIPS[version], PORT)
    service = Service(key, "mh", frozenset({"mh-fallback", *flags}))
    wanted = _servers(chance, version)
    drained = set(chance.sample(range(len(wanted)), len(wanted) // 3)) if seed % 2 else set()
    clients = _clients(chance, version)
    with lab.entered("director"):
        ipvs = asyncio.run(Ipvs.open())
    with ipvs:
        assert not any(ipvs.apply([AddService(service)]))
        assert not any(ipvs.apply([AddRealServer(key, server) for server in wanted]))
        try:
            drain = [SetRealServer(key, replace(wanted[n], weight=0)) for n in sorted(drained)]
            assert not drain or not any(ipvs.apply(drain))
            # the order of the kernel's list, and the weights from before the drain
            order = [entry.real_server.address for entry in ipvs.real_servers(key)]
            weights = {server.address: server.weight for server in wanted}
            table = MaglevTable([MaglevServer(rip, PORT, weights[rip]) for rip in order])
            away = {order.index(wanted[n].address) for n in drained}
            chosen = _ask_the_kernel(lab, ipvs, key, clients)
        finally:
            assert not any(ipvs.apply([DeleteService(key)]))
    for client, port in clients:
        place = table.choose(client, port if flags else 0, unavailable=away)
        assert place is not None
        assert chosen[client, port] == order[place], (client, port)


def _servers(chance: random.Random, version: int) -> list[RealServer]:
    count = chance.randint(2, 9)
    base = "10.77.0." if version == 4 else "fd77::"
    heavy = chance.random() < 0.5
    return [
        RealServer(ip_address(f"{base}{last}"), PORT, chance.randint(1, 65535 if heavy else 4))
        for last in chance.sample(range(20, 90), count)
    ]


def _clients(chance: random.Random, version: int) -> list[tuple[Address, int]]:
    """Any unicast addresses and ports, each pair once.

    Not port 20: IPVS schedules nothing that comes from it, whatever the protocol, since it could be
    a real server's own FTP data (ip_vs_core.c, ip_vs_schedule).
    """
    ports = [port for port in range(1, 65536) if port != FTP_DATA]
    found: dict[tuple[Address, int], None] = {}
    while len(found) < CLIENTS:
        address: Address
        if version == 4:
            address = IPv4Address(chance.randint(0x0B000000, 0x7EFFFFFF))
        else:
            address = IPv6Address(0x2 << 124 | chance.getrandbits(124))
        found[address, chance.choice(ports)] = None
    return list(found)


def _ask_the_kernel(
    lab: Lab, ipvs: Ipvs, key: ServiceKey, clients: list[tuple[Address, int]]
) -> dict[tuple[Address, int], Address]:
    """Send a datagram from each client, and read where IPVS put it."""
    with lab.entered("client"):
        sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        sender.bind((INTERFACE, 0))
    with sender:
        for start in range(0, len(clients), BURST):
            burst = clients[start : start + BURST]
            for client, port in burst:
                sender.send(_frame(lab, client, port))
            # what comes faster than the kernel reads is dropped: no more until these are in
            known = partial(_known, ipvs, key, start + len(burst))
            wait_for(known, f"{start + len(burst)} connections")
    return _connections(lab)


def _known(ipvs: Ipvs, key: ServiceKey, count: int) -> bool:
    servers = ipvs.real_servers(key)
    return sum(entry.active_connections + entry.inactive_connections for entry in servers) >= count


def _frame(lab: Lab, client: Address, port: int) -> bytes:
    ethernet = bytes.fromhex((lab["director"].mac + lab["client"].mac).replace(":", ""))
    udp = struct.pack("!HHHH", port, PORT, 8, 0)
    vip = VIPS[client.version].packed
    if client.version == 6:
        header = struct.pack("!IHBB", 6 << 28, len(udp), 17, 64) + client.packed + vip
        return ethernet + b"\x86\xdd" + header + udp
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0) + client.packed + vip
    total = sum(struct.unpack("!10H", header))
    total = (total & 0xFFFF) + (total >> 16)
    checksum = ~(total + (total >> 16)) & 0xFFFF
    return ethernet + b"\x08\x00" + header[:10] + struct.pack("!H", checksum) + header[12:] + udp


def _connections(lab: Lab) -> dict[tuple[Address, int], Address]:
    """Real servers by client (ip_vs_conn_seq_show: addresses and ports in hexadecimal)."""
    with lab.entered("director"):
        lines = Path("/proc/thread-self/net/ip_vs_conn").read_text().splitlines()[1:]
    found = {}
    for line in lines:
        _, client, port, _, _, server, *_ = line.split()
        found[_address(client), int(port, 16)] = _address(server)
    return found


def _address(text: str) -> Address:
    return ip_address(text.strip("[]")) if ":" in text else IPv4Address(int(text, 16))
