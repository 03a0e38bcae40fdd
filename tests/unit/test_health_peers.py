"""Every check against real peers, and against the same peers with each fault.

The cells of the matrix run together, in three rounds, the last one with the peers frozen: one after
another, each would wait for its timeout.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from lbdr.health.checks.run import run
from lbdr.health.results import Failed, FailureKind, Passed, Result
from lbdr.health.spec import (
    Check,
    Connect,
    DicomEcho,
    Dns,
    Hl7Mllp,
    Http,
    Ldap,
    LdapSecurity,
    Negotiate,
    OracleTns,
    Probe,
    Smtp,
    Target,
    Timing,
    Tls,
    Transport,
)
from tests.health_peers import HOST, Certificates, Peers, free_port, peers

TIMEOUT = 2.0
PASSWORD = "secret"  # noqa: S105  # of a directory that lives for seconds
MESSAGE = "MSH|^~\\&|LBDR|HOSP|HIS|HOSP|20260101||ADT^A01|{}|P|2.3\nPID|1\n"


@dataclass(frozen=True, slots=True)
class Round:
    """What all cells found.

    Args:
        found: result and seconds by the cell's name.
        leaked: file descriptors that stayed open.
    """

    found: Mapping[str, tuple[Result, float]]
    leaked: int


class Cells:
    """The probes of the matrix, by the name of the peer and the fault."""

    def __init__(self, running: Peers) -> None:
        certificates = running.certificates
        self.verified = Tls(verify=True, ca_file=str(certificates.authority))
        self.healthy: dict[str, tuple[Target, Check]] = {}
        self.expired: dict[str, tuple[Target, Check]] = {}
        self.wrong: dict[str, tuple[Target, Check]] = {}
        self._http(running)
        self._dicom(running)
        self._others(running, certificates)

    def _http(self, running: Peers) -> None:
        targets = running.haproxy()
        http, https = targets["http"], targets["https"]
        verified = self.verified
        named = replace(verified, server_name="pacs.test")
        of = running.certificates
        client = replace(verified, certificate=str(of.client), key=str(of.key(of.client)))
        self.healthy |= {
            "connect": (http, Connect()),
            "http": (http, Http(body="heal(thy)")),
            "http-host": (http, Http(host="pacs.test:8080", body="host pacs.test:8080 ")),
            "http-head": (http, Http(method="HEAD")),
            "http-redirect": (http, Http(path="/portal", expect=((200, 200), (302, 302)))),
            "https": (https, Http(tls=verified)),
            "https-sni": (https, Http(host="pacs.test", tls=verified, body="sni pacs.test ")),
            "https-client": (targets["https-client"], Http(tls=client)),
            "https-unverified": (targets["https-expired"], Http(tls=Tls())),
            "negotiate": (http, Negotiate(b"GET / HTTP/1.0\r\n\r\n", b"healthy")),
            "negotiate-tls": (
                https,
                Negotiate(b"GET / HTTP/1.0\r\n\r\n", b"healthy", Transport.TLS, named),
            ),
        }
        self.expired |= {"https": (targets["https-expired"], Http(tls=verified))}
        self.wrong |= {
            "http-status": (http, Http(path="/broken")),
            "http-moved": (http, Http(path="/portal")),
            "http-body": (http, Http(body="h.a.p.p.y")),
            "https-name": (https, Http(host="other.test", tls=verified)),
            "https-no-client": (targets["https-client"], Http(tls=verified)),
            "https-authority": (https, Http(tls=Tls(verify=True))),
            "https-no-file": (https, Http(tls=Tls(verify=True, ca_file="/nonexistent"))),
            "https-plain": (http, Http(tls=verified)),
            "http-tls": (https, Http()),
            "negotiate": (http, Negotiate(b"GET / HTTP/1.0\r\n\r\n", b"220 ")),
        }

    def _dicom(self, running: Peers) -> None:
        of = running.certificates
        echo = DicomEcho(tls=self.verified)
        archive = running.dcmqrscp()
        self.healthy |= {
            "dicom": (running.storescp(), DicomEcho()),
            "dicom-tls": (running.storescp_tls(of.server), echo),
            "dicom-ae": (archive, DicomEcho("PACS", "LBDR")),
        }
        self.expired |= {"dicom-tls": (running.storescp_tls(of.expired), echo)}
        self.wrong |= {
            "dicom-refused": (running.storescp("--refuse"), DicomEcho()),
            "dicom-ae": (archive, DicomEcho("PASC", "LBDR")),
        }

    def _others(self, running: Peers, of: Certificates) -> None:
        verified = self.verified
        directory, resolver = running.slapd(of.server), running.dnsmasq()
        stale = running.slapd(of.expired)
        admin = "cn=admin,dc=test"
        mail, hl7, oracle = (
            running.aiosmtpd(of.server),
            running.stand_in("mllp"),
            running.stand_in("tns"),
        )
        starttls, ldaps = LdapSecurity.STARTTLS, LdapSecurity.LDAPS
        self.healthy |= {
            "ldap": (directory["ldap"], Ldap()),
            "ldap-bind": (directory["ldap"], Ldap(bind_dn=admin, password=PASSWORD)),
            "ldap-starttls": (directory["ldap"], Ldap(starttls, verified)),
            "ldaps": (directory["ldaps"], Ldap(ldaps, verified)),
            "dns": (resolver, Dns("pacs.test", expect=ip_address("192.0.2.7"))),
            "dns-aaaa": (resolver, Dns("pacs.test", "AAAA", ip_address("2001:db8::7"))),
            "dns-tcp": (resolver, Dns("pacs.test.", tcp=True)),
            "smtp": (mail, Smtp()),
            "smtp-starttls": (mail, Smtp(starttls=True, tls=verified)),
            "hl7": (hl7, Hl7Mllp(MESSAGE.format("1"))),
            "oracle": (oracle, OracleTns()),
            "oracle-service": (oracle, OracleTns("PACS")),
            "oracle-redirect": (oracle, OracleTns("MOVED")),
        }
        self.expired |= {
            "ldaps": (stale["ldaps"], Ldap(ldaps, verified)),
            "ldap-starttls": (stale["ldap"], Ldap(starttls, verified)),
            "smtp-starttls": (running.aiosmtpd(of.expired), Smtp(starttls=True, tls=verified)),
        }
        self.wrong |= {
            "ldap-password": (directory["ldap"], Ldap(bind_dn=admin, password=PASSWORD[1:])),
            "dns-name": (resolver, Dns("nobody.test")),
            "dns-answer": (resolver, Dns("pacs.test", expect=ip_address("192.0.2.8"))),
            "hl7": (hl7, Hl7Mllp(MESSAGE.format("BAD"))),
            "oracle-service": (oracle, OracleTns("ARCHIVE")),
        }


def is_datagram(check: Check) -> bool:
    return isinstance(check, Dns) and not check.tcp


async def judged(name: str, target: Target, check: Check) -> tuple[str, tuple[Result, float]]:
    loop = asyncio.get_running_loop()
    before = loop.time()
    result = await run(Probe(target, check, Timing(timeout=TIMEOUT)))
    return name, (result, loop.time() - before)


def opened() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def all_of(cells: Mapping[str, tuple[Target, Check]]) -> Round:
    """Run cells together."""
    before = opened()
    found = await asyncio.gather(*(judged(name, *cell) for name, cell in cells.items()))
    await asyncio.sleep(0)  # transports close in the loop's next turn
    return Round(dict(found), opened() - before)


def faults(cells: Cells, running: Peers) -> dict[str, tuple[Target, Check]]:
    """The same checks, and peers that are wrong in themselves."""
    wanted: dict[str, tuple[Target, Check]] = {}
    stream = {name: cell for name, cell in cells.healthy.items() if not is_datagram(cell[1])}
    for fault in ("reset", "close", "garbage"):
        place = running.stand_in(fault)
        wanted |= {f"{fault}/{name}": (place, check) for name, (_, check) in stream.items()}
    place = running.stand_in("garbage-datagrams")
    for name, (target, check) in cells.healthy.items():
        wanted[f"refused/{name}"] = (replace(target, port=free_port()), check)
        if is_datagram(check):
            wanted[f"garbage/{name}"] = (place, check)
    return wanted


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Round]:
    """What every cell found."""
    with peers(tmp_path_factory.mktemp("peers")) as running:
        cells = Cells(running)
        wanted = faults(cells, running)
        wanted |= {f"healthy/{name}": cell for name, cell in cells.healthy.items()}
        wanted |= {f"expired/{name}": cell for name, cell in cells.expired.items()}
        wanted |= {f"wrong/{name}": cell for name, cell in cells.wrong.items()}
        first = asyncio.run(all_of(wanted))
        # these keep a peer that serves one client at a time from the others
        drips = running.dripping({target for target, _ in cells.healthy.values()})
        drip = {
            f"drip/{name}": (drips[target], check)
            for name, (target, check) in cells.healthy.items()
        }
        second = asyncio.run(all_of(drip))
        running.freeze()
        try:
            frozen = {f"frozen/{name}": cell for name, cell in cells.healthy.items()}
            third = asyncio.run(all_of(frozen))
        finally:
            running.thaw()
        yield Round(
            {**first.found, **second.found, **third.found},
            first.leaked + second.leaked + third.leaked,
        )


HEALTHY = [
    *["connect", "negotiate", "negotiate-tls"],
    *["http", "http-host", "http-head", "http-redirect"],
    *["https", "https-sni", "https-client", "https-unverified"],
    *["dicom", "dicom-tls", "dicom-ae"],
    *["ldap", "ldap-bind", "ldap-starttls", "ldaps"],
    *["dns", "dns-aaaa", "dns-tcp"],
    *["smtp", "smtp-starttls"],
    *["hl7", "oracle", "oracle-service", "oracle-redirect"],
]
SPEAKING = [name for name in HEALTHY if name != "connect"]
BY_TLS = {"https", "https-sni", "https-client", "https-unverified"}
BY_TLS |= {"negotiate-tls", "dicom-tls", "ldaps"}


def failure(matrix: Round, cell: str) -> Failed:
    result, seconds = matrix.found[cell]
    assert isinstance(result, Failed), result
    assert seconds <= TIMEOUT * 1.1
    assert result.words.startswith(f"{HOST}:")
    return result


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_peer_passes(matrix: Round, name: str) -> None:
    result, seconds = matrix.found[f"healthy/{name}"]
    assert isinstance(result, Passed), result
    assert 0 < result.latency <= seconds < TIMEOUT
    assert result.words


@pytest.mark.parametrize("name", HEALTHY)
def test_a_closed_port(matrix: Round, name: str) -> None:
    found = failure(matrix, f"refused/{name}")
    assert found.kind is FailureKind.REFUSED
    assert found.words.endswith("refused the connection: nothing listens there")
    assert found.latency < TIMEOUT / 2


@pytest.mark.parametrize("name", SPEAKING)
def test_a_frozen_peer(matrix: Round, name: str) -> None:
    """Its kernel still accepts connections: only a check that speaks can tell."""
    found = failure(matrix, f"frozen/{name}")
    assert found.kind is FailureKind.TIMEOUT
    assert "did not" in found.words or "sent no" in found.words
    assert "(within 2 s)" in found.words
    assert found.latency >= TIMEOUT


def test_a_frozen_peer_accepts_connections(matrix: Round) -> None:
    """What a connect check cannot see."""
    assert isinstance(matrix.found["frozen/connect"][0], Passed)


@pytest.mark.parametrize("name", [name for name in SPEAKING if not name.startswith("dns")])
def test_a_peer_that_says_a_byte_a_second(matrix: Round, name: str) -> None:
    found = failure(matrix, f"drip/{name}")
    assert found.kind is FailureKind.TIMEOUT
    assert "(within 2 s)" in found.words


@pytest.mark.parametrize("name", [name for name in SPEAKING if name not in ("dns", "dns-aaaa")])
def test_a_peer_that_resets(matrix: Round, name: str) -> None:
    found = failure(matrix, f"reset/{name}")
    assert found.kind is FailureKind.RESET
    assert "reset the connection" in found.words


@pytest.mark.parametrize("name", [name for name in SPEAKING if name not in ("dns", "dns-aaaa")])
def test_a_peer_that_hangs_up(matrix: Round, name: str) -> None:
    found = failure(matrix, f"close/{name}")
    assert found.kind in (FailureKind.CLOSED, FailureKind.RESET)
    assert "closed the connection" in found.words or "reset the connection" in found.words


@pytest.mark.parametrize("name", SPEAKING)
def test_a_peer_that_speaks_something_else(matrix: Round, name: str) -> None:
    found = failure(matrix, f"garbage/{name}")
    if name in ("dns", "dns-aaaa"):
        # datagrams of others prove nothing: the answer may still come
        assert found.kind is FailureKind.TIMEOUT
        assert "it sent something that is no answer to it" in found.words
    elif name in BY_TLS:
        assert found.kind is FailureKind.TLS
        assert "TLS" in found.words
    elif name == "negotiate":
        assert found.kind is FailureKind.TIMEOUT
        assert "sent no" in found.words
    elif name == "dns-tcp":
        assert found.kind in (FailureKind.PROTOCOL, FailureKind.TIMEOUT)
    else:
        assert found.kind is FailureKind.PROTOCOL
        assert "does not speak" in found.words


@pytest.mark.parametrize("name", ["https", "dicom-tls", "ldaps", "ldap-starttls", "smtp-starttls"])
def test_an_expired_certificate(matrix: Round, name: str) -> None:
    found = failure(matrix, f"expired/{name}")
    assert found.kind is FailureKind.CERTIFICATE
    assert found.words.endswith("has a certificate that is not valid: certificate has expired")


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("http-status", "unexpected", "answered GET /broken by 503 Service Unavailable; expected"),
        ("http-moved", "unexpected", "by 302 Found (to /login); expected 200-299"),
        ("http-body", "unexpected", "answered 200 OK, but /h.a.p.p.y/ is not in the body"),
        ("https-name", "certificate", "Hostname mismatch, certificate is not valid for 'other"),
        ("https-no-client", "tls", "wants a client certificate"),
        ("https-authority", "certificate", "unable to get local issuer certificate"),
        ("https-no-file", "local", "the files for TLS (/nonexistent) do not serve: "),
        ("https-plain", "tls", "does not speak TLS there"),
        ("http-tls", "closed", "closed the connection before its answer"),
        ("negotiate", "unexpected", 'closed the connection before "220 " came (it sent "HTTP/1.1'),
        ("dicom-refused", "rejected", "rejected the association permanently: no reason given"),
        (
            "dicom-ae",
            "rejected",
            "rejected the association permanently: called AE title not recognized (we called PASC)",
        ),
        ("ldap-password", "rejected", "refused the bind: result 49 (invalid credentials)"),
        ("dns-name", "rejected", "answered nobody.test by REFUSED: it does not answer us"),
        ("dns-answer", "unexpected", "answered pacs.test by 192.0.2.7; expected 192.0.2.8"),
        ("hl7", "rejected", "acknowledged by MSA|AE (application error): unknown patient"),
        ("oracle-service", "rejected", "refused by TNS-12514: the listener does not know this"),
    ],
)
def test_a_peer_that_says_no(matrix: Round, name: str, kind: str, words: str) -> None:
    found = failure(matrix, f"wrong/{name}")
    assert words in found.words
    assert found.kind == kind


def test_nothing_stays_open(matrix: Round) -> None:
    """Whatever way the checks ended."""
    assert matrix.leaked == 0
