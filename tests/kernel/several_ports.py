"""Virtual services with several ports in a lab: who answers a client on each of them."""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeAlias

from netlab import HOSTS, INTERFACE, Lab

from tests.kernel.open_connections import answering
from tests.kernel.test_fastpath import passing

KEPT, HASHED, SOURCE, ALL, SIX = *(f"10.77.0.{last}" for last in range(50, 54)), "fd77::50"
SERVERS = {"web1": 21, "web2": 22, "web3": 23}
SEVERAL = [104, 2104, "4001-4005"]
PORTS = [104, 2104, 4001, 4003, 4005]
DATAGRAMS = [53, 514]
FIRST_MARK = 0x3000
SERVICES: Mapping[str, Mapping[str, Any]] = {
    "KEPT": {"address": KEPT, "ports": SEVERAL, "persistence": "5m"},
    "HASHED": {"address": HASHED, "ports": SEVERAL, "scheduler": "mh"},
    "SOURCE": {"address": SOURCE, "ports": SEVERAL, "scheduler": "sh"},
    "SIX": {
        "address": SIX,
        "ports": SEVERAL,
        "scheduler": "mh",
        "real_servers": ["six1", "six2"],
    },
    "NAMES": {"address": HASHED, "ports": DATAGRAMS, "protocol": "udp", "scheduler": "mh"},
    "NAMES6": {
        "address": SIX,
        "ports": DATAGRAMS,
        "protocol": "udp",
        "scheduler": "mh",
        "real_servers": ["six1", "six2"],
    },
    "ALL": {"address": ALL, "ports": "any", "scheduler": "mh"},
}
MARKS = {name: FIRST_MARK + place for place, name in enumerate(SERVICES)}
CLIENTS = [f"10.77.0.{last}" for last in range(130, 142)]
CLIENTS6 = [f"fd77::{last}" for last in range(130, 142)]


Changes: TypeAlias = Mapping[str, Mapping[str, Any]]
"""Keys of services that are to be otherwise, by the service's name."""


def services(changes: Changes) -> dict[str, dict[str, Any]]:
    """The services, with changes."""
    return {
        name: {"real_servers": ["web1", "web2"], **one, **changes.get(name, {})}
        for name, one in SERVICES.items()
    }


@contextlib.contextmanager
def several_ports_lab() -> Iterator[Lab]:
    """A client with many addresses, and real servers that answer on every port of the services."""
    with Lab({**HOSTS, "web3": SERVERS["web3"]}) as lab, passing(lab):
        for client in CLIENTS:
            lab.ip("client", f"address add {client}/24 dev {INTERFACE}")
        for client in CLIENTS6:
            lab.ip("client", f"address add {client}/64 dev {INTERFACE} nodad")
        # what XDP sends has no checksum that somebody else would still fill in
        lab.run("client", ["ethtool", "-K", INTERFACE, "tx", "off"])
        vips = (KEPT, HASHED, SOURCE, ALL, SIX)
        with (
            answering(lab, list(SERVERS), *vips, ports=PORTS),
            _answering_datagrams(lab, list(SERVERS)),
        ):
            yield lab


@contextlib.contextmanager
def _answering_datagrams(lab: Lab, hosts: Sequence[str]) -> Iterator[None]:
    """Hosts answer each datagram by their name."""
    ended = threading.Event()
    threads = []
    with contextlib.ExitStack() as stack:
        for host in hosts:
            with lab.entered(host):
                sockets = [
                    stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                    for _ in DATAGRAMS
                ]
            for one, port in zip(sockets, DATAGRAMS, strict=True):
                one.bind((HASHED, port))
            threads.append(threading.Thread(target=_answer, args=(sockets, host, ended)))
            threads[-1].start()
        try:
            yield
        finally:
            ended.set()
            for thread in threads:
                thread.join(10)


def _answer(sockets: Sequence[socket.socket], name: str, ended: threading.Event) -> None:
    with selectors.DefaultSelector() as ready:
        for one in sockets:
            ready.register(one, selectors.EVENT_READ)
        while not ended.is_set():
            for key, _ in ready.select(0.1):
                assert isinstance(key.fileobj, socket.socket)
                _, client = key.fileobj.recvfrom(64)
                with contextlib.suppress(OSError):  # made-up clients have no route
                    key.fileobj.sendto(name.encode(), client)


def _connected(
    lab: Lab, kind: socket.SocketKind, source: str, vip: str, port: int
) -> socket.socket:
    with lab.entered("client"):
        one = socket.socket(socket.AF_INET6 if ":" in vip else socket.AF_INET, kind)
    try:
        one.settimeout(5)
        one.bind((source, 0))
        one.connect((vip, port))
    except OSError:
        one.close()
        raise
    return one


def owner(lab: Lab, source: str, vip: str, port: int) -> str:
    """The server that a client's new connection reaches."""
    with _connected(lab, socket.SOCK_STREAM, source, vip, port) as connection:
        connection.sendall(b"who are?")
        return connection.recv(8, socket.MSG_WAITALL).decode().strip()


def datagrams_owner(lab: Lab, source: str, port: int, size: int = 3) -> str:
    """The server that a client's datagram reaches.

    Args:
        lab: whose client.
        source: its address.
        port: of the virtual service.
        size: bytes of the datagram, which comes in fragments where it is longer than a frame.
    """
    with _connected(lab, socket.SOCK_DGRAM, source, HASHED, port) as sender:
        sender.send(bytes(size))
        return sender.recv(64).decode()


def owners(lab: Lab, vip: str) -> dict[str, str]:
    """The server of each client: the same one on every port, and not the same one for all."""
    found = {}
    for client in CLIENTS6 if ":" in vip else CLIENTS:
        who = {port: owner(lab, client, vip, port) for port in PORTS}
        assert len(set(who.values())) == 1, (client, who)
        found[client] = who[PORTS[0]]
    assert len(set(found.values())) > 1, found
    return found


def errors_of(lab: Lab, host: str) -> int:
    """ICMP errors that a host got."""
    with lab.entered(host):
        lines = Path("/proc/thread-self/net/snmp").read_text().splitlines()
    names, values = (line.split() for line in lines if line.startswith("Icmp:"))
    return int(values[names.index("InDestUnreachs")])


def send_errors(lab: Lab, client: str, vip: str, count: int) -> None:
    """A client complains of packets of a connection that nobody knows: they are too long for it."""
    addresses = ip_address(vip).packed + ip_address(client).packed
    quote = struct.pack("!BBHHHBBH", 0x45, 0, 40, 1, 0x4000, 64, 6, 0) + addresses
    quote += struct.pack("!HHI", PORTS[0], 40000, 1)
    body = struct.pack("!BBHHH", 3, 4, 0, 0, 1300) + quote
    body = body[:2] + struct.pack("!H", _checksum(body)) + body[4:]
    with lab.entered("client"):
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    with raw:
        raw.bind((client, 0))
        for _ in range(count):
            raw.sendto(body, (vip, 0))


def datagram(lab: Lab, client: str, client_port: int, vip: str, port: int) -> bytes:
    """A datagram for a VIP, as it comes to the director."""
    ends = ip_address(client).packed + ip_address(vip).packed
    udp = struct.pack("!HHHH", client_port, port, 8, 0)
    macs = bytes.fromhex((lab["director"].mac + lab["client"].mac).replace(":", ""))
    if ":" in vip:
        return macs + b"\x86\xdd" + struct.pack("!IHBB", 6 << 28, len(udp), 17, 64) + ends + udp
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0) + ends
    header = header[:10] + struct.pack("!H", _checksum(header)) + header[12:]
    return macs + b"\x08\x00" + header + udp


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF
