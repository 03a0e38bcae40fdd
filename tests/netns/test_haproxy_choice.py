"""Which real server: persistence of every kind, names that move, queues with priorities."""

from __future__ import annotations

import contextlib
import queue
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from netlab import Lab, wait_for

from lbdr.haproxy.association import ANSWERS, Association, build
from lbdr.haproxy.matching import Condition, Rule, ToServer
from lbdr.haproxy.model import (
    ClientTls,
    PersistenceKind,
    Pool,
    ProxyConfiguration,
    ProxyPersistence,
    ProxyProtocol,
    ProxyServer,
    ProxyService,
    ProxySettings,
    Scheduler,
)
from tests.dicom_requests import CT
from tests.haproxy_samples import certificate, need_haproxy, ports
from tests.proxies import Director, Peer, ask_name, connect, first_line, says_its_name


@pytest.fixture
def director(lab: Lab, tmp_path: Path) -> Iterator[Director]:
    need_haproxy()
    with Director(lab, tmp_path / "haproxy") as found:
        yield found


def serve(director: Director, service: ProxyService, **more: object) -> None:
    settings = ProxySettings(max_connections=2000, threads=2, **more)  # type: ignore[arg-type]
    director.apply(ProxyConfiguration(settings, (service,)))


def service(lab: Lab, port: int, kind: PersistenceKind, **more: object) -> ProxyService:
    servers = tuple(ProxyServer(name, lab[name].ipv4, port) for name in ("web1", "web2"))
    pool = Pool(servers, persistence=ProxyPersistence(kind), scheduler=Scheduler.RR)
    return ProxyService("S", (lab["director"].ipv4,), ports(port), pool, **more)  # type: ignore[arg-type]


def answers_a_request(connection: socket.socket, host: str) -> None:
    if connection.recv(1000):
        connection.sendall(f"{host}\n".encode())


def test_rdp_cookie(lab: Lab, director: Director) -> None:
    """A user comes back to the same server, from wherever."""
    lab.ip("client", "address add 10.77.0.150/24 dev eth0")
    vip = str(lab["director"].ipv4)

    def server(user: str, source: str) -> str:
        cookie = f"Cookie: mstshash={user}\r\n".encode()
        request = struct.pack(">BBH B5sB", 3, 0, 11 + len(cookie), 6 + len(cookie), b"\xe0", 0)
        request = request[:4] + bytes((6 + len(cookie), 0xE0, 0, 0, 0, 0, 0)) + cookie
        with connect(lab, "client", vip, 3389, source=source) as connection:
            connection.sendall(request)
            return first_line(connection)

    with Peer(lab, "web1", 3389, answers_a_request), Peer(lab, "web2", 3389, answers_a_request):
        serve(director, service(lab, 3389, PersistenceKind.RDP_COOKIE))
        users = [f"user{number}" for number in range(6)]
        first = {user: server(user, "10.77.0.100") for user in users}
        assert set(first.values()) == {"web1", "web2"}
        assert {user: server(user, "10.77.0.150") for user in users} == first


def test_tls_session(lab: Lab, director: Director, tmp_path: Path) -> None:
    """A session that a client resumes is resumed at the server that has it."""
    pem = certificate(tmp_path, "pacs.example.org")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # the last one with sessions in the clear
    contexts = {"web1": context}
    contexts["web2"] = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    contexts["web2"].load_cert_chain(pem)
    contexts["web2"].maximum_version = ssl.TLSVersion.TLSv1_2
    for one in contexts.values():
        one.options |= ssl.OP_NO_TICKET

    def over_tls(connection: socket.socket, host: str) -> None:
        with contexts[host].wrap_socket(connection, server_side=True) as inside:
            inside.sendall(f"{host}\n".encode())
            # A session whose connection was not closed in order is forgotten.
            with contextlib.suppress(OSError):
                inside.unwrap()

    client = ssl.create_default_context(cafile=str(pem))

    def ask(session: ssl.SSLSession | None) -> tuple[str, ssl.SSLSession | None, bool | None]:
        raw = connect(lab, "client", str(lab["director"].ipv4), 8443)
        connection = client.wrap_socket(raw, server_hostname="pacs.example.org", session=session)
        with connection:
            name = connection.recv(100).decode().strip()
            known, reused = connection.session, connection.session_reused
            with contextlib.suppress(OSError):
                connection.unwrap()
            return name, known, reused

    with Peer(lab, "web1", 8443, over_tls), Peer(lab, "web2", 8443, over_tls):
        serve(director, service(lab, 8443, PersistenceKind.TLS_SESSION))
        firsts = [ask(None) for _ in range(4)]
        assert {name for name, _, _ in firsts} == {"web1", "web2"}
        for name, session, _ in firsts:
            again, _, reused = ask(session)
            assert (again, reused) == (name, True)


class Names:
    """A name server on the director that knows one name."""

    def __init__(self, lab: Lab, address: IPv4Address) -> None:
        self.address = address
        with lab.entered("director"):
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._socket.bind(("127.0.0.1", 53))
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._socket.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                query, client = self._socket.recvfrom(512)
                end = query.index(b"\0", 12) + 5
                kind = int.from_bytes(query[end - 4 : end - 2])
                found = kind == 1
                head = query[:2] + struct.pack(">HHHHH", 0x8180, 1, int(found), 0, 0)
                record = b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 1, 4) + self.address.packed
                self._socket.sendto(head + query[12:end] + record * found, client)


def test_a_host_name_that_moves(lab: Lab, director: Director) -> None:
    """No reload, and no restart: the server is where its name says."""
    with (
        Peer(lab, "web1", 1521, says_its_name),
        Peer(lab, "web2", 1521, says_its_name),
        contextlib.closing(Names(lab, lab["web1"].ipv4)) as names,
    ):
        vip = lab["director"].ipv4
        pool = Pool((ProxyServer("db", "db.example.org", 1521),))
        nameservers = (IPv4Address("127.0.0.1"),)
        serve(
            director,
            ProxyService("S", (vip,), ports(1521), pool),
            nameservers=nameservers,
            name_hold=1.0,
        )

        def server() -> str:
            with contextlib.suppress(OSError):
                return ask_name(lab, str(vip), 1521)
            return ""

        wait_for(lambda: server() == "web1", "the first address", timeout=10)
        names.address = lab["web2"].ipv4
        wait_for(lambda: server() == "web2", "the second address", timeout=20)
        assert director.processes().reloads == 0


def test_urgent_associations_come_out_of_the_queue_first(lab: Lab, director: Director) -> None:
    """And no more reach the server at once than it is to have."""
    order: queue.Queue[str] = queue.Queue()
    release = threading.Semaphore(0)

    def holds(connection: socket.socket, _host: str) -> None:
        title = connection.recv(4096)[10:26].decode().strip()
        order.put(title)
        release.acquire(timeout=20)
        connection.sendall(b"done\n")

    with Peer(lab, "web1", 104, holds):
        vip = lab["director"].ipv4
        one = Pool((ProxyServer("web1", lab["web1"].ipv4, 104, max_connections=1),))
        rules = (Rule(Condition(called_ae=("STAT",)), ToServer("web1"), priority=-100),)
        serve(
            director,
            ProxyService("S", (vip,), ports(104), one, ProxyProtocol.DICOM, rules=rules),
        )
        connections = []

        def waiting() -> int:
            counted = director.run(lambda companion: companion.runtime.statistics())
            return sum(one.queue for one in counted if one.proxy == "S")

        for number, title in enumerate(("FIRST", "SECOND", "THIRD", "STAT")):
            connection = connect(lab, "client", str(vip), 104)
            connection.sendall(build(Association(title, "CT_ER", (CT,))))
            connections.append(connection)
            if number:
                wait_for(lambda number=number: waiting() == number, "its place in the queue")  # type: ignore[misc]
            else:
                assert order.get(timeout=10) == "FIRST"
        assert order.empty()
        heard = ["FIRST"]
        places = {
            title: number for number, title in enumerate(("FIRST", "SECOND", "THIRD", "STAT"))
        }
        while True:
            release.release()
            with connections[places[heard[-1]]] as connection:
                assert first_line(connection) == "done"
            if len(heard) == 4:
                break
            heard.append(order.get(timeout=10))
        assert heard == ["FIRST", "STAT", "SECOND", "THIRD"]


def test_dicom_over_tls(lab: Lab, director: Director, tmp_path: Path) -> None:
    """TLS ends at the director (port 2762), which then routes and refuses as ever."""
    pem = certificate(tmp_path, "pacs.example.org")
    client = ssl.create_default_context(cafile=str(pem))

    def ask(data: bytes) -> bytes:
        raw = connect(lab, "client", str(lab["director"].ipv4), 2762)
        with client.wrap_socket(raw, server_hostname="pacs.example.org") as connection:
            connection.sendall(data)
            return connection.recv(100)

    def takes(connection: socket.socket, host: str) -> None:
        if connection.recv(4096)[:1] == b"\1":
            connection.sendall(host.encode())

    with Peer(lab, "web1", 104, takes), Peer(lab, "web2", 104, takes):
        servers = tuple(ProxyServer(name, lab[name].ipv4, 104) for name in ("web1", "web2"))
        rules = (Rule(Condition(modality=("CT",)), ToServer("web2")),)
        tls = ClientTls((str(pem),))
        vip = (lab["director"].ipv4,)
        pool = Pool(servers)
        serve(
            director,
            ProxyService("S", vip, ports(2762), pool, ProxyProtocol.DICOM, tls=tls, rules=rules),
        )
        request = build(Association("PACS", "CT_ER", (CT,)))
        assert {ask(request) for _ in range(4)} == {b"web2"}
        assert ask(b"GET / HTTP/1.1\r\n\r\n") == ANSWERS["http"]
        assert ask(request.replace(b"PACS", b"    ")) == ANSWERS["called-ae"]
