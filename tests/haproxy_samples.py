"""Proxy services that use every option, for golden tests and for HAProxy's own check."""

from __future__ import annotations

import shutil
import subprocess
from ipaddress import ip_address, ip_network
from pathlib import Path

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
    ClientTimeouts,
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
    Scheduler,
    ServerTimeouts,
    ServerTls,
    Source,
)
from lbdr.haproxy.render.process_wide import Surroundings
from lbdr.model import PortRange, Ports
from tests.guest import missing

LUA = Path(__file__).parents[1] / "lbdr" / "haproxy"
PACS1 = ip_address("192.0.2.31")
PACS2 = ip_address("192.0.2.32")


def need_haproxy() -> None:
    """Skip the test where HAProxy is not installed."""
    if shutil.which("haproxy") is None:
        missing("haproxy is not installed")


def surroundings(directory: Path) -> Surroundings:
    """Everything below one directory."""
    (directory / "empty").mkdir(exist_ok=True)
    (directory / "servers").write_text("1\n")
    return Surroundings(
        admin=str(directory / "admin.sock"),
        state=str(directory / "servers"),
        chroot=str(directory / "empty"),
        lua=str(LUA),
    )


def checked(text: str, directory: Path) -> str:
    """What HAProxy has to say of a configuration; empty where it takes it without a word."""
    file = directory / "haproxy.cfg"
    file.write_text(text)
    done = subprocess.run(
        ["haproxy", "-c", "-q", "-f", file], check=False, capture_output=True, text=True, timeout=60
    )
    # The words of a refusal; a warning is as bad, since lbdr means what it writes.
    return done.stdout + done.stderr if done.returncode or "WARNING" in done.stderr else ""


def certificate(directory: Path, name: str) -> Path:
    """A self-signed certificate with its key in one PEM file."""
    file = directory / f"{name}.pem"
    key = directory / f"{name}.key"
    new = [
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]
    names = ("-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}")
    subprocess.run(
        ["openssl", *new, *names, "-keyout", key, "-out", file],
        check=True,
        capture_output=True,
        timeout=60,
    )
    with file.open("a") as whole:
        whole.write(key.read_text())
    return file


def ports(*given: int | tuple[int, int]) -> Ports:
    """Ports and ranges."""
    return Ports(
        tuple(PortRange(p, p) if isinstance(p, int) else PortRange(p[0], p[1]) for p in given)
    )


def two(port: int | None = None) -> tuple[ProxyServer, ...]:
    """The two real servers of most services."""
    return (ProxyServer("pacs1", PACS1, port), ProxyServer("pacs2", PACS2, port, weight=2))


def tcp_services() -> tuple[ProxyService, ...]:
    """Services that look at nothing but the connection."""
    vip, vip6 = ip_address("203.0.113.57"), ip_address("2001:db8::57")
    kinds = PersistenceKind
    return (
        ProxyService(
            "CLIENT_VIP",
            (vip, vip6),
            ports(80, 443, 514, 2104, 22104, 32338, (40000, 40003)),
            Pool(
                two(),
                persistence=ProxyPersistence(granularity=24, granularity6=64),
                sorry_server=ProxyServer("sorry", ip_address("192.0.2.39")),
            ),
            translate={80: 8080, 514: 1514},
            rules=(
                Rule(Condition(source=(ip_network("10.66.0.0/16"),)), Refuse()),
                Rule(
                    Condition(tls_server_name=("images.example.org",)),
                    ToServer("pacs2"),
                    priority=-10,
                ),
            ),
        ),
        ProxyService(
            "RDP",
            (vip,),
            ports(3389),
            Pool(
                (
                    ProxyServer("ts1", "ts1.example.org", 3389, max_connections=100, max_queue=10),
                    ProxyServer("ts2", "ts2", 3389, weight=1000),
                ),
                persistence=ProxyPersistence(kinds.RDP_COOKIE, timeout=3600),
                source=Source(address=ip_address("203.0.113.57"), proxy_protocol=1),
                scheduler=Scheduler.RR,
                timeouts=ServerTimeouts(connect=2.5, server=600, queue=30),
            ),
            max_connections=500,
            timeouts=ClientTimeouts(client=600),
        ),
        ProxyService(
            "PASSED_TLS",
            (vip6,),
            ports(8443),
            Pool(
                two(443),
                persistence=ProxyPersistence(kinds.TLS_SESSION),
                source=Source(proxy_protocol=2),
                scheduler=Scheduler.SH,
            ),
        ),
    )


def http_service(directory: Path) -> ProxyService:
    """A portal with everything that HTTP offers."""
    edit = HeaderEdit
    return ProxyService(
        "PORTAL_VIP",
        (ip_address("203.0.113.51"), ip_address("2001:db8::51")),
        ports(80, 443),
        Pool(
            two(8080),
            persistence=ProxyPersistence(PersistenceKind.COOKIE, timeout=1800),
            sorry_server=ProxyServer("sorry", ip_address("2001:db8::39"), 80),
            tls=ServerTls(name="portal.example.org", ca_file=str(directory / "portal.pem")),
            headers=(
                edit(HeaderAction.SET, "X-Client", "{client_address}:{client_port}, 100% {{it}}"),
                edit(HeaderAction.ADD, "X-Asked", "{scheme}://{host}{path}?{query}"),
                edit(HeaderAction.DELETE, "X-Debug"),
                edit(HeaderAction.DELETE, "Server", response=True),
                edit(HeaderAction.SET, "X-Served-By", "{server}", response=True),
                edit(
                    HeaderAction.REPLACE,
                    "Location",
                    "https://portal.example.org\\1",
                    "http://[^/]*(/.*)",
                    response=True,
                ),
            ),
            rewrites=(Rewrite("^/old(/.*)$", "/new\\1"), Rewrite("'\"#$", "")),
            forwarded_for=ForwardedFor.REPLACE,
        ),
        ProxyProtocol.HTTP,
        tls=ClientTls(
            (str(directory / "portal.pem"), str(directory / "images.pem")),
            ports(443),
            strict_sni=True,
        ),
        redirect_to_https=443,
        compression=Compression(),
        rules=(
            Rule(Condition(path_prefix=("/chat", "/signalr")), ToBackend("CHAT")),
            Rule(
                Condition(
                    path_suffix=(".jpg",),
                    host=("images.example.org", "*.images.example.org"),
                    method=("GET", "HEAD"),
                ),
                ToServer("pacs1"),
            ),
            Rule(Condition(path_regex=("^/v[0-9]+/",), query=(QueryMatch("study", ("1",)),)), None),
            Rule(
                Condition(headers=(HeaderMatch("User-Agent", patterns=("(?i)bot",)),)),
                Redirect("https://portal.example.org/{client_address}", 307),
            ),
            Rule(Condition(path=("/admin",)), Refuse()),
            Rule(
                Condition(headers=(HeaderMatch("X-Urgent"),), query=(QueryMatch("q"),)), None, -50
            ),
        ),
    )


def chat() -> ProxyBackend:
    """A backend-only service."""
    return ProxyBackend(
        "CHAT",
        Pool(
            two(8443),
            tls=ServerTls(verify=False, http2=True),
            persistence=ProxyPersistence(PersistenceKind.FORWARDED_FOR),
        ),
    )


def dicom_services() -> tuple[ProxyService, ...]:
    """Services that route by what an association request says."""
    return (
        ProxyService(
            "DICOM_VIP",
            (ip_address("203.0.113.50"),),
            ports(104, 2104),
            Pool(two(), persistence=ProxyPersistence()),
            ProxyProtocol.DICOM,
            rules=(
                Rule(Condition(called_ae=("PACS_STAT",)), ToBackend("STAT"), priority=-100),
                Rule(Condition(modality=("CT", "MR"), source=(ip_network("10.1.0.0/16"),)), None),
                Rule(Condition(calling_ae=("OLD CT",)), ToServer("pacs2")),
                Rule(Condition(sop_class=("1.2.840.10008.5.1.4.1.1.2.1",)), Refuse()),
            ),
            called_aes=("PACS", "PACS_STAT"),
            calling_aes=("CT_ER", "OLD CT"),
        ),
    )


def everything(directory: Path) -> ProxyConfiguration:
    """All of them."""
    return ProxyConfiguration(
        ProxySettings(nameservers=(ip_address("192.0.2.53"),), threads=2),
        (*tcp_services(), http_service(directory), *dicom_services()),
        (
            chat(),
            ProxyBackend(
                "STAT",
                Pool((ProxyServer("reserved", PACS2, 104, max_connections=4, max_queue=100),)),
                ProxyProtocol.DICOM,
            ),
        ),
    )
