"""Whether IPVS's mh and lbdr's table choose the same servers, with random cases on the wire.

A case is a service with random servers and weights, some of them drained, and random clients, each
of which sends a datagram from another host. tests/kernel asks it of user-mode-linux. As a command,
for tests/debian_kernel, it asks many cases at once, prints what it found as one line of JSON, and
never needs pytest, which takes long to import there:

    env PYTHONPATH=.:scripts/lib python -m tests.mh_equality SEEDS CLIENTS
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import product

from netlab import INTERFACE, Lab, wait_for

from lbdr.datapath import mh_check
from lbdr.datapath.ipvs import Ipvs
from lbdr.maglev import MaglevServer, MaglevTable
from lbdr.model import Address, Protocol, RealServer, Service, ServiceKey
from lbdr.operations import AddRealServer, AddService, DeleteService, SetRealServer

VERSIONS = (4, 6)
FLAGS = (frozenset[str](), frozenset({"mh-port"}))
FIRST_PORT = 5000
FTP_DATA = 20
BURST = 100
_VIPS = {4: ip_address("10.77.0.10"), 6: ip_address("fd77::10")}

Client = tuple[Address, int]


@dataclass(frozen=True, slots=True)
class Case:
    """What is asked.

    Args:
        seed: of all that is random; in every second one some servers are drained.
        version: IP version.
        flags: of mh beside mh-fallback.
        clients: how many.
    """

    seed: int
    version: int
    flags: frozenset[str]
    clients: int

    @property
    def key(self) -> ServiceKey:
        """A service of its own: connections of earlier cases are still in the kernel's table."""
        place = self.seed * len(FLAGS) + FLAGS.index(self.flags)
        return ServiceKey(Protocol.UDP, _VIPS[self.version], FIRST_PORT + place)


@dataclass(frozen=True, slots=True)
class Asked:
    """A case that the kernel has answered.

    Args:
        case: what was asked.
        order: the servers in the kernel's order, by their weights from before they were drained.
        away: places of the drained ones.
        clients: their addresses and ports.
    """

    case: Case
    order: tuple[MaglevServer, ...]
    away: frozenset[int]
    clients: tuple[Client, ...]


@contextmanager
def mh_lab() -> Iterator[Lab]:
    """Hosts client and director; the director takes in all that is sent to it for the VIPs."""
    with Lab({"client": 100, "director": 1}) as lab:
        lab.ip(
            "director",
            f"address add {_VIPS[4]}/32 dev lo",
            f"address add {_VIPS[6]}/128 dev lo nodad",
            # clients of all the world come in here, and no neighbour has to be found for them
            "route add default dev eth0",
            "route add ::/0 dev eth0",
        )
        yield lab


def ask(lab: Lab, case: Case) -> Asked:
    """Make the case's service, and send a datagram from each of its clients."""
    chance = random.Random(f"{case.seed} {case.version} {sorted(case.flags)}")  # noqa: S311  # cases
    key = case.key
    wanted = _servers(chance, key)
    drained = chance.sample(wanted, len(wanted) // 3) if case.seed % 2 else []
    clients = tuple(_clients(chance, case))
    with lab.entered("director"):
        ipvs = asyncio.run(Ipvs.open())
    with ipvs:
        service = Service(key, "mh", frozenset({"mh-fallback", *case.flags}))
        assert not any(ipvs.apply([AddService(service)]))
        try:
            assert not any(ipvs.apply([AddRealServer(key, server) for server in wanted]))
            drain = [SetRealServer(key, replace(server, weight=0)) for server in drained]
            assert not drain or not any(ipvs.apply(drain))
            weights = {server.address: server.weight for server in wanted}
            rips = [entry.real_server.address for entry in ipvs.real_servers(key)]
            _send_all(lab, ipvs, key, clients)
        finally:
            assert not any(ipvs.apply([DeleteService(key)]))
    order = tuple(MaglevServer(rip, key.port, weights[rip]) for rip in rips)
    return Asked(case, order, frozenset(rips.index(one.address) for one in drained), clients)


def differences(lab: Lab, answers: Sequence[Asked]) -> list[str]:
    """The clients whom IPVS sent elsewhere than the table says."""
    with lab.entered("director"):
        connections = mh_check.connections()
    found = []
    for asked in answers:
        table = MaglevTable(asked.order)
        chosen = connections[asked.case.key]
        for client, port in asked.clients:
            hashed = port if "mh-port" in asked.case.flags else 0
            place = table.choose(client, hashed, unavailable=asked.away)
            assert place is not None
            if chosen[client, port] != asked.order[place].address:
                found.append(f"{asked.case}: {client} {port}: {chosen[client, port]}")
    return found


def _servers(chance: random.Random, key: ServiceKey) -> list[RealServer]:
    count = chance.randint(2, 9)
    base = "10.77.0." if key.version == 4 else "fd77::"
    heavy = chance.random() < 0.5
    return [
        RealServer(ip_address(f"{base}{last}"), key.port, chance.randint(1, 65535 if heavy else 4))
        for last in chance.sample(range(20, 90), count)
    ]


def _clients(chance: random.Random, case: Case) -> list[Client]:
    """Any unicast addresses and ports, each pair once.

    Not port 20: IPVS schedules nothing that comes from it, whatever the protocol, since it could be
    a real server's own FTP data (ip_vs_core.c, ip_vs_schedule).
    """
    found: dict[Client, None] = {}
    while len(found) < case.clients:
        address: Address
        if case.version == 4:
            address = IPv4Address(chance.randint(0x0B000000, 0x7EFFFFFF))
        else:
            address = IPv6Address(0x2 << 124 | chance.getrandbits(124))
        port = chance.randint(1, 65535)
        if port != FTP_DATA:
            found[address, port] = None
    return list(found)


def _send_all(lab: Lab, ipvs: Ipvs, key: ServiceKey, clients: Sequence[Client]) -> None:
    with lab.entered("client"):
        sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        sender.bind((INTERFACE, 0))
    with sender:
        for start in range(0, len(clients), BURST):
            burst = clients[start : start + BURST]
            for client, port in burst:
                sender.send(_frame(lab, key, client, port))
            # what comes faster than the kernel reads is dropped: no more until these are in
            known = partial(_known, ipvs, key, start + len(burst))
            wait_for(known, f"{start + len(burst)} connections")


def _known(ipvs: Ipvs, key: ServiceKey, count: int) -> bool:
    servers = ipvs.real_servers(key)
    return sum(entry.active_connections + entry.inactive_connections for entry in servers) >= count


def _frame(lab: Lab, key: ServiceKey, client: Address, port: int) -> bytes:
    ethernet = bytes.fromhex((lab["director"].mac + lab["client"].mac).replace(":", ""))
    udp = struct.pack("!HHHH", port, key.port, 8, 0)
    ends = client.packed + key.address.packed
    if client.version == 6:
        header = struct.pack("!IHBB", 6 << 28, len(udp), 17, 64) + ends
        return ethernet + b"\x86\xdd" + header + udp
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0) + ends
    total = sum(struct.unpack("!10H", header))
    total = (total & 0xFFFF) + (total >> 16)
    checksum = ~(total + (total >> 16)) & 0xFFFF
    return ethernet + b"\x08\x00" + header[:10] + struct.pack("!H", checksum) + header[12:] + udp


def main(seeds: int, clients: int) -> None:
    """Print the verdict of mh_check, and the differences of many cases."""
    before = time.perf_counter()
    told = mh_check.table_index()
    verdict = mh_check.probe()
    probed = time.perf_counter()
    with mh_lab() as lab:
        cases = [Case(*what, clients) for what in product(range(seeds), VERSIONS, FLAGS)]
        answers = [ask(lab, case) for case in cases]
        found = differences(lab, answers)
    result = {
        "kernel": os.uname().release,
        "table_index": told,
        "verdict": {**asdict(verdict), "versions": sorted(verdict.versions)},
        "probe_seconds": round(probed - before, 2),
        "cases": len(answers),
        "drained": sum(bool(asked.away) for asked in answers),
        "clients": sum(len(asked.clients) for asked in answers),
        "seconds": round(time.perf_counter() - probed, 1),
        "differences": found,
    }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
