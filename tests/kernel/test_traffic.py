"""Real packets through the VIPs of a director that lbdr programmed, on a bridge of namespaces."""

from __future__ import annotations

import selectors
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from ipaddress import ip_address
from typing import NamedTuple

import pytest
from netlab import INTERFACE, Lab, wait_for

from tests.directors import Director

HOSTS = {"client": 100, "director": 1, "web1": 21, "web2": 22, "sorry": 29}
WEBS = ("web1", "web2")
VIP, VIP6, ANY_VIP = "10.77.0.10", "fd77::10", "10.77.0.12"
VIPS = (VIP, VIP6, ANY_VIP)
CLIENTS = [f"10.77.0.{last}" for last in range(101, 121)]
CLIENTS6 = [f"fd77::1:{last}" for last in range(1, 21)]
CONFIG = """\
director: {timeouts: {udp: 1m}}
real_servers:
  web1: {address: 10.77.0.21}
  web2: {address: 10.77.0.22}
  web1v6: {address: "fd77::21"}
  web2v6: {address: "fd77::22"}
  sorry: {address: 10.77.0.29}
virtual_services:
  TCP: {address: 10.77.0.10, ports: [80], scheduler: rr, real_servers: [web1, web2]}
  PERSISTENT: {address: 10.77.0.10, ports: [81], scheduler: rr, persistence: 5m,
    real_servers: [web1, web2]}
  GRANULAR: {address: 10.77.0.10, ports: [82], scheduler: rr,
    persistence: {timeout: 5m, granularity: /24}, real_servers: [web1, web2]}
  SH: {address: 10.77.0.10, ports: [83], scheduler: sh, real_servers: [web1, web2]}
  MH: {address: 10.77.0.10, ports: [84], scheduler: mh, real_servers: [web1, web2]}
  MH_PORT: {address: 10.77.0.10, ports: [85], scheduler: mh, scheduler_flags: [mh-port],
    real_servers: [web1, web2]}
  SORRY: {address: 10.77.0.10, ports: [86], sorry_server: sorry,
    real_servers: [{server: web1, weight: 0}, {server: web2, weight: 0}]}
  CHANGING: {address: 10.77.0.10, ports: [87], scheduler: rr,
    real_servers: [{server: web1, weight: 1}, {server: web2, weight: 1}]}
  WEIGHTED: {address: 10.77.0.10, ports: [88], scheduler: wrr,
    real_servers: [{server: web1, weight: 3}, {server: web2, weight: 1}]}
  FULL: {address: 10.77.0.10, ports: [89], scheduler: rr,
    real_servers: [{server: web1, upper_threshold: 2}, web2]}
  COUNTED: {address: 10.77.0.10, ports: [90], scheduler: rr, real_servers: [web1, web2]}
  UDP: {address: 10.77.0.10, protocol: udp, ports: [53], scheduler: rr,
    real_servers: [web1, web2]}
  ONE_PACKET: {address: 10.77.0.10, protocol: udp, ports: [54], scheduler: rr, one_packet: true,
    real_servers: [web1, web2]}
  SCTP: {address: 10.77.0.10, protocol: sctp, ports: [2905], scheduler: rr,
    real_servers: [web1, web2]}
  TCP6: {address: "fd77::10", ports: [80], scheduler: rr, real_servers: [web1v6, web2v6]}
  UDP6: {address: "fd77::10", protocol: udp, ports: [53], scheduler: rr,
    real_servers: [web1v6, web2v6]}
  MH6: {address: "fd77::10", ports: [84], scheduler: mh, real_servers: [web1v6, web2v6]}
  ANY: {address: 10.77.0.12, ports: any, scheduler: rr, persistence: 5m,
    real_servers: [web1, web2]}
"""
LISTENERS = [
    *(("tcp", VIP, port) for port in range(80, 91)),
    ("tcp", ANY_VIP, 1001),
    ("tcp", ANY_VIP, 60000),
    ("tcp", VIP6, 80),
    ("tcp", VIP6, 84),
    ("udp", VIP, 53),
    ("udp", VIP, 54),
    ("udp", VIP6, 53),
    ("sctp", VIP, 2905),
]


class Answer(NamedTuple):
    """Which real server answered, and whom it saw."""

    server: str
    client: str


def open_socket(protocol: str, address: str) -> socket.socket:
    """A socket for the IP version of an address."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    if protocol == "udp":
        return socket.socket(family, socket.SOCK_DGRAM)
    number = socket.IPPROTO_SCTP if protocol == "sctp" else socket.IPPROTO_TCP
    return socket.socket(family, socket.SOCK_STREAM, number)


class RealServers:
    """Real servers that say who they are and whom they see, on all of LISTENERS; one thread."""

    def __init__(self, lab: Lab, names: tuple[str, ...]) -> None:
        self._selector = selectors.DefaultSelector()
        self._waking, self._woken = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ, None)
        for name in names:
            for protocol, address, port in LISTENERS:
                with lab.entered(name):
                    listener = open_socket(protocol, address)
                # of the VIP and not of every address: else a datagram's answer would come from
                # the real server's own address
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind((address, port))
                answer = self._datagram if protocol == "udp" else self._accept
                if protocol != "udp":
                    listener.listen()
                self._selector.register(listener, selectors.EVENT_READ, partial(answer, name))
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._waking.close()
        self._thread.join(10)
        for key in list(self._selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        self._selector.close()

    def _serve(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.data is None:
                    return
                key.data(key.fileobj)

    def _datagram(self, name: str, listener: socket.socket) -> None:
        _, client = listener.recvfrom(100)
        listener.sendto(f"{name} {client[0]}".encode(), client)

    def _accept(self, name: str, listener: socket.socket) -> None:
        connection, client = listener.accept()
        talk = partial(self._talk, f"{name} {client[0]}".encode())
        self._selector.register(connection, selectors.EVENT_READ, talk)

    def _talk(self, words: bytes, connection: socket.socket) -> None:
        try:
            asked = connection.recv(100)
        except OSError:
            asked = b""
        if asked:
            connection.sendall(words)
        else:
            self._selector.unregister(connection)
            connection.close()


class Site:
    """A director under test, its real servers, and the client."""

    def __init__(self, lab: Lab, director: Director) -> None:
        self.lab = lab
        self.director = director

    def connect(
        self,
        port: int,
        *,
        vip: str = VIP,
        protocol: str = "tcp",
        client: str = "",
        client_port: int = 0,
    ) -> socket.socket:
        """A client's connection, by any address of its host; UDP as far as it has one."""
        with self.lab.entered("client"):
            opened = open_socket(protocol, vip)
        opened.settimeout(5)
        try:
            if client or client_port:
                opened.bind((client, client_port))
            opened.connect((vip, port))
        except OSError:
            opened.close()
            raise
        return opened

    def ask(self, port: int, *, vip: str = VIP, protocol: str = "tcp", client: str = "") -> Answer:
        """One question on a connection of its own."""
        with self.connect(port, vip=vip, protocol=protocol, client=client) as connection:
            return exchange(connection)

    def ask_often(
        self, times: int, port: int, *, vip: str = VIP, protocol: str = "tcp", client: str = ""
    ) -> Counter[str]:
        """How often each server answered."""
        return Counter(
            self.ask(port, vip=vip, protocol=protocol, client=client).server for _ in range(times)
        )


def exchange(connection: socket.socket) -> Answer:
    """Ask on a connection; an error where it is no more."""
    connection.sendall(b"who is there?")
    words = connection.recv(100).decode()
    if not words:
        raise ConnectionResetError("closed by the other end")
    server, client = words.split()
    return Answer(server, client)


def exchange_on(connection: socket.socket) -> None:
    """Ask as long as somebody answers, but not for ever."""
    for _ in range(100):
        exchange(connection)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """All of CONFIG applied, and the ARP problem of the real servers solved."""
    with Lab(HOSTS) as lab:
        names = (*WEBS, "sorry")
        for name in names:
            lab.sysctl(name, "net.ipv4.conf.all.arp_ignore", "1")
            lab.sysctl(name, "net.ipv4.conf.all.arp_announce", "2")
            lab.ip(name, *(f"address add {vip} dev lo" for vip in VIPS))
        more = [*(f"{address}/24" for address in CLIENTS), *(f"{a}/64" for a in CLIENTS6)]
        lab.ip("client", *(f"address add {address} dev {INTERFACE}" for address in more))
        servers = RealServers(lab, names)
        try:
            director = Director(tmp_path_factory.mktemp("site"), partial(lab.entered, "director"))
            director.configure(CONFIG)
            assert director.apply().clean
            yield Site(lab, director)
        finally:
            servers.close()


@pytest.mark.parametrize(
    ("protocol", "vip", "port", "client"),
    [
        ("tcp", VIP, 80, CLIENTS[0]),
        ("tcp", VIP6, 80, CLIENTS6[0]),
        ("udp", VIP, 53, CLIENTS[0]),
        ("udp", VIP6, 53, CLIENTS6[0]),
        ("sctp", VIP, 2905, CLIENTS[0]),
    ],
)
def test_connections_are_shared_and_servers_see_the_client(
    site: Site, protocol: str, vip: str, port: int, client: str
) -> None:
    answers = [site.ask(port, vip=vip, protocol=protocol, client=client) for _ in range(6)]
    assert Counter(answer.server for answer in answers) == {"web1": 3, "web2": 3}
    assert {answer.client for answer in answers} == {client}


def test_replies_go_straight_to_the_client(site: Site) -> None:
    """None of the frames that come from the VIP are the director's."""
    protocol_ip = 0x0800
    with site.lab.entered("client"):
        sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(protocol_ip))
    with sniffer:
        sniffer.bind((INTERFACE, protocol_ip))
        sniffer.settimeout(5)
        assert len(site.ask_often(4, 80)) == 2
        macs: set[bytes] = set()
        while len(macs) < 2:
            frame, place = sniffer.recvfrom(64)
            if place[2] != socket.PACKET_OUTGOING and frame[26:30] == ip_address(VIP).packed:
                macs.add(frame[6:12])
    assert {mac.hex(":") for mac in macs} == {site.lab[name].mac for name in WEBS}


def test_datagrams_of_one_client_port_stay_together(site: Site) -> None:
    with site.connect(53, protocol="udp") as connection:
        assert len({exchange(connection).server for _ in range(6)}) == 1


def test_one_packet_schedules_every_datagram(site: Site) -> None:
    with site.connect(54, protocol="udp") as connection:
        assert Counter(exchange(connection).server for _ in range(6)) == {"web1": 3, "web2": 3}


def test_a_persistent_client_stays(site: Site) -> None:
    """And clients are told apart by their whole addresses."""
    chosen = {client: site.ask(81, client=client).server for client in CLIENTS[:6]}
    assert Counter(chosen.values()) == {"web1": 3, "web2": 3}
    for client, server in chosen.items():
        assert site.ask_often(3, 81, client=client) == {server: 3}


def test_granularity_makes_a_subnet_one_client(site: Site) -> None:
    assert len({site.ask(82, client=client).server for client in CLIENTS[:6]}) == 1


@pytest.mark.parametrize(
    ("vip", "port", "clients"), [(VIP, 83, CLIENTS), (VIP, 84, CLIENTS), (VIP6, 84, CLIENTS6)]
)
def test_hashing_keeps_an_address_on_its_server(
    site: Site, vip: str, port: int, clients: list[str]
) -> None:
    chosen = {client: site.ask(port, vip=vip, client=client).server for client in clients}
    assert set(chosen.values()) == {*WEBS}
    for client, server in chosen.items():
        assert site.ask(port, vip=vip, client=client).server == server


def test_mh_port_spreads_one_address(site: Site) -> None:
    assert set(site.ask_often(20, 85, client=CLIENTS[0])) == {*WEBS}


def test_weights(site: Site) -> None:
    assert site.ask_often(8, 88) == {"web1": 6, "web2": 2}


def test_any_port_goes_to_one_server(site: Site) -> None:
    for client in CLIENTS[:3]:
        servers = {site.ask(port, vip=ANY_VIP, client=client).server for port in (1001, 60000)}
        assert len(servers) == 1
    assert len({site.ask(1001, vip=ANY_VIP, client=client).server for client in CLIENTS}) == 2


def test_a_server_above_its_threshold_gets_no_more(site: Site) -> None:
    connections = [site.connect(89) for _ in range(8)]
    try:
        servers = Counter(exchange(connection).server for connection in connections)
    finally:
        for connection in connections:
            connection.close()
    assert servers == {"web1": 2, "web2": 6}


def test_the_sorry_server_serves_while_nobody_else_does(site: Site) -> None:
    assert site.ask_often(3, 86) == {"sorry": 3}
    written = "[{server: web1, weight: 0}, {server: web2, weight: 0}]"
    site.director.configure(CONFIG.replace(written, "[{server: web1, weight: 0}, web2]"))
    try:
        assert site.director.apply().clean
        assert site.ask_often(3, 86) == {"web2": 3}
    finally:
        site.director.configure(CONFIG)
        assert site.director.apply().clean
    assert site.ask_often(3, 86) == {"sorry": 3}


def test_draining_and_removing_a_server(site: Site) -> None:
    """A drained server keeps its connections; one that is removed has none from that moment on."""
    both = "[{server: web1, weight: 1}, {server: web2, weight: 1}]"
    connections = [site.connect(87) for _ in range(2)]
    try:
        by_server = {exchange(connection).server: connection for connection in connections}
        assert set(by_server) == {*WEBS}
        site.director.configure(CONFIG.replace(both, "[{server: web1, weight: 0}, web2]"))
        assert site.director.apply().clean
        assert exchange(by_server["web1"]).server == "web1"
        assert site.ask_often(4, 87) == {"web2": 4}
        site.director.configure(CONFIG.replace(both, "[web2]"))
        assert site.director.apply().clean
        assert exchange(by_server["web2"]).server == "web2"
        with pytest.raises(ConnectionError):  # and no silence for 15 minutes
            exchange_on(by_server["web1"])
    finally:
        for connection in connections:
            connection.close()
        site.director.configure(CONFIG)
        assert site.director.apply().clean
    assert site.ask_often(4, 87) == {"web1": 2, "web2": 2}


def test_status_counts_the_traffic(site: Site) -> None:
    """The kernel adds up every two seconds."""

    def counted() -> dict[str, int]:
        services = {entry.name: entry for entry in site.director.status().virtual_services}
        servers = services["COUNTED"].real_servers
        return {entry.name: entry.totals.connections or 0 for entry in servers}

    assert counted() == {"web1": 0, "web2": 0}
    assert site.ask_often(10, 90) == {"web1": 5, "web2": 5}
    wait_for(lambda: counted() == {"web1": 5, "web2": 5}, "10 connections are counted")


def test_another_port_of_a_vip_is_refused_at_once(site: Site) -> None:
    with pytest.raises(ConnectionRefusedError):
        site.connect(9)
