"""A client behind a router that takes no large packets, and servers that send it some.

    client --1500-- near --1300-- far --1500-- the lab's bridge: director, web1, web2

The ICMP error about what a server sends comes from `far`, and goes to the VIP: the director must
carry it to the right server, or the download stalls. That about what the client sends comes from
`near` to the client itself.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from netlab import HOSTS, INTERFACE, Lab

HOSTS_BEHIND = {**{name: last for name, last in HOSTS.items() if name != "client"}, "far": 2}
"""Of a lab whose client is behind routers; the other two hosts, which are not on its bridge."""
BEYOND = {"client": 100, "near": 101}

SMALL = 1300
SIZE = 200_000
PORT = 80
_SECONDS = 15.0
_STALLED = 6.0  # seconds without progress; a stalled sender tries again after 0.2, 0.4, 0.8, ...
_CLIENT, _NEAR = ("10.78.1.2", "fd78:1::2"), ("10.78.1.1", "fd78:1::1")
_NEAR_FAR, _FAR = ("10.78.2.1", "fd78:2::1"), ("10.78.2.2", "fd78:2::2")


def all_hosts() -> dict[str, int]:
    """Hosts of the lab; client's and near's links to its bridge are down."""
    return {**HOSTS_BEHIND, **BEYOND}


@dataclass(frozen=True, slots=True)
class Moved:
    """What a transfer came to.

    Args:
        server: who had it.
        octets: that arrived.
    """

    server: str
    octets: int


def build(lab: Lab, vips: Sequence[str]) -> None:
    """Put the routers between client and servers, and give servers the VIPs.

    Args:
        lab: with all_hosts().
        vips: that servers hold, and the director answers for.
    """
    for host in ("client", "near"):
        lab.ip(host, f"link set {INTERFACE} down", f"address flush dev {INTERFACE}")
    _link(lab, ("client", "upper", _CLIENT), ("near", "lower", _NEAR), 1500)
    _link(lab, ("near", "upper", _NEAR_FAR), ("far", "lower", _FAR), SMALL)
    for host in ("near", "far"):
        lab.sysctl(host, "net.ipv4.ip_forward", "1")
        lab.sysctl(host, "net.ipv6.conf.all.forwarding", "1")
    far = lab["far"]
    ways = {"client": _NEAR, "near": _FAR}
    ways |= dict.fromkeys(("director", "web1", "web2"), (str(far.ipv4), str(far.ipv6)))
    for host, way in ways.items():
        lab.ip(host, *(f"route add default via {router}" for router in way))
    back = zip(("10.78.1.0/24", "fd78:1::/64"), _NEAR_FAR, strict=True)
    lab.ip("far", *(f"route add {network} via {router}" for network, router in back))
    for host in ("web1", "web2"):
        lab.sysctl(host, "net.ipv4.conf.all.arp_ignore", "1")
        lab.sysctl(host, "net.ipv4.conf.all.arp_announce", "2")
        lab.ip(host, *(f"address add {vip} dev lo" for vip in vips))
    # what XDP sends has no checksum that somebody else would still fill in
    lab.run("client", ["ethtool", "-K", "upper", "tx", "off"])


def _link(
    lab: Lab, one: tuple[str, str, Sequence[str]], other: tuple[str, str, Sequence[str]], mtu: int
) -> None:
    host, name, addresses = one
    peer, peer_name, peer_addresses = other
    there = f"peer name {peer_name} netns {lab[peer].namespace}"
    lab.ip(host, f"link add {name} type veth {there}")
    for where, device, held in ((host, name, addresses), (peer, peer_name, peer_addresses)):
        lab.ip(
            where,
            f"link set {device} mtu {mtu} up",
            f"address add {held[0]}/24 dev {device}",
            f"address add {held[1]}/64 dev {device} nodad",
        )


@contextlib.contextmanager
def serving(lab: Lab, vips: Sequence[str], port: int = PORT) -> Iterator[None]:
    """web1 and web2 take uploads, and send downloads."""
    ended = threading.Event()
    threads: list[threading.Thread] = []
    with contextlib.ExitStack() as stack:
        for host in ("web1", "web2"):
            for vip in vips:
                family = socket.AF_INET6 if ":" in vip else socket.AF_INET
                with lab.entered(host):
                    listener = socket.create_server((vip, port), family=family, backlog=100)
                stack.enter_context(listener)
                listener.settimeout(0.1)
                threads.append(
                    threading.Thread(target=_accept, args=(listener, host, ended, threads))
                )
                threads[-1].start()
        try:
            yield
        finally:
            ended.set()
            for thread in threads:
                thread.join(_SECONDS)


def _accept(
    listener: socket.socket, name: str, ended: threading.Event, threads: list[threading.Thread]
) -> None:
    while not ended.is_set():
        with contextlib.suppress(TimeoutError):
            connection, _ = listener.accept()
            threads.append(threading.Thread(target=_serve, args=(connection, name)))
            threads[-1].start()


def _serve(connection: socket.socket, name: str) -> None:
    with connection, contextlib.suppress(OSError):
        connection.settimeout(_SECONDS)
        if connection.recv(1) == b"d":
            connection.sendall(name.encode().ljust(8) + bytes(SIZE))
            return
        left = SIZE
        while left and (got := len(connection.recv(1 << 16))):
            left -= got
        connection.sendall(name.encode().ljust(8) + (SIZE - left).to_bytes(8, "big"))


def upload(lab: Lab, vip: str, port: int = PORT) -> Moved:
    """Send a server some large segments.

    Raises:
        TimeoutError: it stalls.
    """
    with _connected(lab, vip, port) as connection:
        connection.sendall(b"u" + bytes(SIZE))
        answer = connection.recv(16, socket.MSG_WAITALL)
    return Moved(answer[:8].decode().strip(), int.from_bytes(answer[8:], "big"))


def download(lab: Lab, vip: str, port: int = PORT) -> Moved:
    """Have a server send some large segments.

    Raises:
        TimeoutError: it stalls.
    """
    with _connected(lab, vip, port) as connection:
        connection.sendall(b"d")
        name = connection.recv(8, socket.MSG_WAITALL).decode().strip()
        octets = 0
        while got := len(connection.recv(1 << 16)):
            octets += got
    return Moved(name, octets)


@contextlib.contextmanager
def _connected(lab: Lab, vip: str, port: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in vip else socket.AF_INET
    with lab.entered("client"):
        connection = socket.socket(family, socket.SOCK_STREAM)
    with connection:
        connection.settimeout(_STALLED)
        connection.connect((vip, port))
        yield connection


@contextlib.contextmanager
def lost_errors(lab: Lab, vip: str) -> Iterator[None]:
    """What the router itself sends to a VIP gets lost meanwhile; what it forwards does not."""
    ip = ["ip", "-6" if ":" in vip else "-4"]
    lab.run("far", [*ip, "route", "add", "blackhole", "default", "table", "99"])
    lab.run("far", [*ip, "rule", "add", "iif", "lo", "to", vip, "lookup", "99"])
    try:
        yield
    finally:
        lab.run("far", [*ip, "rule", "del", "iif", "lo", "to", vip, "lookup", "99"])
        lab.run("far", [*ip, "route", "del", "blackhole", "default", "table", "99"])


def known_mtu(lab: Lab, host: str, version: int) -> int:
    """The path MTU to the client that a host knows; 0 for none.

    Args:
        lab: of the host.
        host: its name.
        version: of IP.
    """
    client = _CLIENT[0] if version == 4 else _CLIENT[1]
    words = ["ip", f"-{version}", "route", "get", client]
    found = re.search(r"mtu (\d+)", lab.run(host, words).stdout)
    return int(found[1]) if found else 0


def forget(lab: Lab, version: int) -> None:
    """Nobody knows a path MTU any more.

    Args:
        lab: of client and servers.
        version: of IP.
    """
    for host in ("client", "web1", "web2"):
        lab.run(host, ["ip", f"-{version}", "route", "flush", "cache"])
