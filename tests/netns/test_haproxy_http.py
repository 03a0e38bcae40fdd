"""HTTP through a live HAProxy: what users wrote is what clients and servers see."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from netlab import Lab, wait_for

from lbdr.haproxy.matching import (
    Condition,
    HeaderMatch,
    QueryMatch,
    Redirect,
    Refuse,
    Rule,
    ToBackend,
    ToServer,
)
from lbdr.haproxy.model import (
    ClientTls,
    Compression,
    ForwardedFor,
    HeaderAction,
    HeaderEdit,
    PersistenceKind,
    Pool,
    ProxyBackend,
    ProxyConfiguration,
    ProxyPersistence,
    ProxyProtocol,
    ProxyServer,
    ProxyService,
    ProxySettings,
    Rewrite,
    ServerTls,
)
from lbdr.haproxy.process import Companion
from lbdr.haproxy.runtime import AdminState, Runtime
from tests.haproxy_samples import certificate, need_haproxy, ports
from tests.proxies import Director

HOSTILE = (
    "%[src]",
    "a'b\"c",
    "#no comment",
    "\\1 $HOME ${HOME}",
    "} { || or",
    "100%",
    "-f /x",
    "'",
)


class Handler(BaseHTTPRequestHandler):
    """Says what it was asked, as JSON."""

    protocol_version = "HTTP/1.1"
    name = ""

    def do_GET(self) -> None:
        body = json.dumps(
            {
                "server": self.name,
                "path": self.path,
                "client": self.client_address[0],
                "headers": [[name.lower(), value] for name, value in self.headers.items()],
                "filler": "x" * 2000,
            }
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("X-Secret", "internal")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    """One that keeps connections open, and takes many at once."""

    daemon_threads = True
    request_queue_size = 512

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that refused our certificate."""


@contextlib.contextmanager
def web_server(lab: Lab, host: str, port: int, *, pem: Path | None = None) -> Iterator[None]:
    handler = type("Handler", (Handler,), {"name": host})
    with lab.entered(host):
        server = Server(("0.0.0.0", port), handler)
    if pem is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def director(lab: Lab, tmp_path: Path) -> Iterator[Director]:
    need_haproxy()
    with (
        web_server(lab, "web1", 8080),
        web_server(lab, "web2", 8080),
        Director(lab, tmp_path / "haproxy") as found,
    ):
        yield found


def pool(lab: Lab, **more: Any) -> Pool:
    servers = tuple(ProxyServer(name, lab[name].ipv4, 8080) for name in ("web1", "web2"))
    return Pool(servers, **more)


def portal(lab: Lab, pool: Pool, *more_ports: int, **more: Any) -> ProxyService:
    addresses = (lab["director"].ipv4,)
    return ProxyService(
        "PORTAL", addresses, ports(80, *more_ports), pool, ProxyProtocol.HTTP, **more
    )


def configuration(*services: ProxyService, **more: Any) -> ProxyConfiguration:
    return ProxyConfiguration(ProxySettings(max_connections=2000, threads=2), services, **more)


def connection(
    lab: Lab, *, port: int = 80, source: str = "", tls: ssl.SSLContext | None = None, name: str = ""
) -> http.client.HTTPConnection:
    """A client's connection, open."""
    host = str(lab["director"].ipv4)
    found = http.client.HTTPConnection(
        host, port, timeout=20, source_address=(source, 0) if source else None
    )
    with lab.entered("client"):
        found.connect()
    if tls is not None:
        found.sock = tls.wrap_socket(found.sock, server_hostname=name)
    return found


def get(
    lab: Lab, path: str = "/", headers: Mapping[str, str] | None = None, **more: Any
) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Status, headers and what the server said."""
    with contextlib.closing(connection(lab, **more)) as client:
        client.request("GET", path, headers=dict(headers or {}))
        answer = client.getresponse()
        body = answer.read()
        kind = answer.headers.get("Content-Type", "")
        said = (
            json.loads(body) if "json" in kind and "Content-Encoding" not in answer.headers else {}
        )
        return answer.status, {k.lower(): v for k, v in answer.headers.items()}, said


def seen(said: dict[str, Any], name: str) -> list[str]:
    """The values of a header that the server saw."""
    return [value for key, value in said["headers"] if key == name.lower()]


def test_hostile_words_arrive_as_they_are(lab: Lab, director: Director) -> None:
    """In headers, and in what rules compare with."""
    edits = tuple(
        HeaderEdit(HeaderAction.SET, f"X-{n}", text.replace("{", "{{").replace("}", "}}"))
        for n, text in enumerate(HOSTILE)
    )
    rules = tuple(
        Rule(Condition(headers=(HeaderMatch("X-Ask", (text,)),)), Redirect(f"/{n}"))
        for n, text in enumerate(HOSTILE)
    )
    director.apply(configuration(portal(lab, pool(lab, headers=edits), rules=rules)))
    _, _, said = get(lab)
    for number, text in enumerate(HOSTILE):
        assert seen(said, f"X-{number}") == [text]
        status, headers, _ = get(lab, headers={"X-Ask": text})
        assert (status, headers["location"]) == (302, f"/{number}")


def test_rules(lab: Lab, director: Director) -> None:
    """The first one that matches decides, whatever it does."""
    chat = ProxyBackend("CHAT", Pool((ProxyServer("chat", lab["web2"].ipv4, 8080),)))
    rules = (
        Rule(Condition(path_prefix=("/chat/no",)), Refuse()),
        Rule(Condition(path_prefix=("/chat",)), ToBackend("CHAT")),
        Rule(Condition(path=("/exact",)), ToServer("web1")),
        Rule(Condition(path_suffix=(".jpg",), method=("GET",)), ToServer("web2")),
        Rule(Condition(path_regex=("^/v[0-9]+/",)), Redirect("/new{path}?{query}", 308)),
        Rule(Condition(host=("*.images.example.org", "x.example.org")), ToServer("web1")),
        Rule(Condition(query=(QueryMatch("study", ("1.2.3",)),)), ToServer("web2")),
        Rule(Condition(path_prefix=("/chat",)), Redirect("/never")),
        Rule(Condition(headers=(HeaderMatch("X-A", patterns=("^b+$",)),)), Redirect("/b")),
    )
    director.apply(configuration(portal(lab, pool(lab), rules=rules), backends=(chat,)))
    host = {"Host": "a.IMAGES.example.org:80"}
    for _ in range(3):
        assert get(lab, "/chat/no")[0] == 403
        assert get(lab, "/chat/yes")[2]["server"] == "web2"
        assert get(lab, "/exact?a=1")[2]["server"] == "web1"
        assert get(lab, "/x.jpg")[2]["server"] == "web2"
        assert get(lab, "/", host)[2]["server"] == "web1"
        assert get(lab, "/?x=1&study=1.2.3")[2]["server"] == "web2"
    status, headers, _ = get(lab, "/v12/y?z=1")
    assert (status, headers["location"]) == (308, "/new/v12/y?z=1")
    assert get(lab, "/", {"X-A": "bbb"})[1]["location"] == "/b"
    assert get(lab, "/", {"X-A": "bbc"})[0] == 200
    runtime = director.companion.runtime
    director.run(lambda _: runtime.set_state("PORTAL", "web2", AdminState.MAINTENANCE))
    assert get(lab, "/x.jpg")[2]["server"] == "web1", "the others stand in"


def test_headers_and_paths(lab: Lab, director: Director) -> None:
    edits = (
        HeaderEdit(HeaderAction.ADD, "X-Who", "{client_address} {scheme} {address} {port} {host}"),
        HeaderEdit(HeaderAction.DELETE, "X-Drop"),
        HeaderEdit(HeaderAction.REPLACE, "X-Change", "\\2-\\1", "(a+)(b+)"),
        HeaderEdit(HeaderAction.DELETE, "X-Secret", response=True),
        HeaderEdit(HeaderAction.SET, "X-Server", "{server}", response=True),
    )
    changed = pool(lab, headers=edits, rewrites=(Rewrite("^/old/(.*)$", "/new/\\1"),))
    director.apply(configuration(portal(lab, changed)))
    sent = {"X-Drop": "1", "X-Change": "aabbb", "Host": "portal", "X-Forwarded-For": "9.9.9.9"}
    _, headers, said = get(lab, "/old/x?q=1", sent)
    client, vip = lab["client"].ipv4, lab["director"].ipv4
    assert seen(said, "X-Who") == [f"{client} http {vip} 80 portal"]
    assert seen(said, "X-Drop") == []
    assert seen(said, "X-Change") == ["bbb-aa"]
    assert said["path"] == "/new/x?q=1"
    assert "x-secret" not in headers
    assert headers["x-server"] == said["server"]
    assert seen(said, "X-Forwarded-For") == ["9.9.9.9", str(client)]
    for choice, expected in (
        (ForwardedFor.REPLACE, [str(client)]),
        (ForwardedFor.OFF, ["9.9.9.9"]),
    ):
        director.apply(configuration(portal(lab, replace(changed, forwarded_for=choice))))
        assert seen(get(lab, "/", sent)[2], "X-Forwarded-For") == expected


def test_persistence_by_cookie(lab: Lab, director: Director) -> None:
    """Over a reload, and away from a drained server."""
    kept = ProxyPersistence(PersistenceKind.COOKIE, timeout=600)
    director.apply(configuration(portal(lab, pool(lab, persistence=kept), 8081)))
    _, headers, said = get(lab)
    cookie, *flags = headers["set-cookie"].split(";")
    assert cookie.startswith("SERVERID=")
    assert " HttpOnly" in flags
    director.reload()
    for _ in range(3):
        again = get(lab, "/", {"Cookie": cookie}, port=8081)[2]
        assert again["server"] == said["server"]
        assert "SERVERID" not in str(seen(again, "Cookie")), "the cookie is ours alone"
    runtime = director.companion.runtime
    director.run(lambda _: runtime.set_state("PORTAL", said["server"], AdminState.MAINTENANCE))
    assert get(lab, "/", {"Cookie": cookie})[2]["server"] != said["server"]


def test_persistence_by_forwarded_for(lab: Lab, director: Director) -> None:
    """Clients behind one proxy are told apart by what it says last, not by its own address."""
    kept = ProxyPersistence(PersistenceKind.FORWARDED_FOR, timeout=600)
    director.apply(configuration(portal(lab, pool(lab, persistence=kept))))
    clients = [f"1.2.3.{n}" for n in range(8)]

    def server(client: str) -> str:
        return str(get(lab, "/", {"X-Forwarded-For": f"6.6.6.6, {client}"})[2]["server"])

    first = {client: server(client) for client in clients}
    assert set(first.values()) == {"web1", "web2"}
    assert {client: server(client) for client in clients} == first
    entries = director.run(lambda companion: companion.runtime.table("PORTAL"))
    assert {entry.key.removeprefix("::ffff:") for entry in entries} >= set(clients)


def test_tls_with_several_certificates_and_redirection(
    lab: Lab, director: Director, tmp_path: Path
) -> None:
    names = ("portal.example.org", "images.example.org")
    files = [certificate(tmp_path, name) for name in names]
    tls = ClientTls(tuple(str(file) for file in files), ports(443))
    service = portal(lab, pool(lab), 443, tls=tls, redirect_to_https=443)
    director.apply(configuration(service))
    for name, file in zip(names, files, strict=True):
        trust = ssl.create_default_context(cafile=str(file))
        trust.set_alpn_protocols(["h2"])
        with contextlib.closing(connection(lab, port=443, tls=trust, name=name)) as client:
            assert isinstance(client.sock, ssl.SSLSocket)
            assert client.sock.selected_alpn_protocol() == "h2"
        trust = ssl.create_default_context(cafile=str(file))
        assert get(lab, port=443, tls=trust, name=name)[0] == 200
    status, headers, _ = get(lab, "/x?y=1", {"Host": "portal.example.org:80"})
    assert (status, headers["location"]) == (301, "https://portal.example.org/x?y=1")


def test_tls_to_the_server_is_verified(lab: Lab, director: Director, tmp_path: Path) -> None:
    right = certificate(tmp_path, "pacs.example.org")
    wrong = certificate(tmp_path, "other.example.org")
    with web_server(lab, "web1", 8443, pem=right), web_server(lab, "web2", 8443, pem=wrong):
        servers = tuple(ProxyServer(name, lab[name].ipv4, 8443) for name in ("web1", "web2"))
        checked = Pool(servers, tls=ServerTls(ca_file=str(right), name="pacs.example.org"))
        director.apply(configuration(portal(lab, checked)))
        assert {get(lab)[2]["server"] for _ in range(4)} == {"web1"}
        unchecked = Pool(servers, tls=ServerTls(verify=False))
        director.apply(configuration(portal(lab, unchecked)))
        assert {get(lab)[2]["server"] for _ in range(6)} == {"web1", "web2"}


def test_compression(lab: Lab, director: Director) -> None:
    director.apply(configuration(portal(lab, pool(lab), compression=Compression())))
    with contextlib.closing(connection(lab)) as client:
        client.request("GET", "/", headers={"Accept-Encoding": "gzip"})
        answer = client.getresponse()
        assert answer.headers["Content-Encoding"] == "gzip"
        assert json.loads(gzip.decompress(answer.read()))["filler"] == "x" * 2000


async def set_state(runtime: Runtime, state: AdminState, _: Companion) -> None:
    await runtime.set_state("PORTAL", "web1", state)


def test_sorry_server(lab: Lab, director: Director) -> None:
    """It serves while nobody else can, and no client stays with it."""
    alone = Pool(
        (ProxyServer("web1", lab["web1"].ipv4, 8080),),
        sorry_server=ProxyServer("sorry", lab["web2"].ipv4, 8080),
        persistence=ProxyPersistence(),
    )
    director.apply(configuration(portal(lab, alone)))
    runtime = director.companion.runtime
    for state, server in ((AdminState.MAINTENANCE, "web2"), (AdminState.READY, "web1")):
        director.run(partial(set_state, runtime, state))
        assert get(lab)[2]["server"] == server


def test_reloads_under_load(lab: Lab, director: Director) -> None:
    """500 requests a second, on connections that are kept and on new ones: none fails."""
    director.apply(configuration(portal(lab, pool(lab, persistence=ProxyPersistence()))))
    stop, failures, counts = threading.Event(), list[str](), [0] * 8

    def load(number: int) -> None:
        client = connection(lab)
        while not stop.is_set():
            try:
                client.request("GET", "/")
                answer = client.getresponse()
                body = answer.read()
                if answer.status != 200 or b"filler" not in body:
                    failures.append(f"status {answer.status}")
                counts[number] += 1
                if answer.will_close or number % 2:
                    client.close()
                    client = connection(lab)
            except (OSError, http.client.HTTPException) as error:
                failures.append(repr(error))
                client = connection(lab)
            time.sleep(0.014)  # the pace of the load, nothing is waited for
        client.close()

    threads = [threading.Thread(target=load, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    start = time.monotonic()
    try:
        for _ in range(10):
            director.reload()
    finally:
        took = time.monotonic() - start
        stop.set()
        for thread in threads:
            thread.join(30)
    assert failures == []
    assert sum(counts) > 100 * took
    wait_for(lambda: not director.processes().old, "the old workers' end", timeout=20)
