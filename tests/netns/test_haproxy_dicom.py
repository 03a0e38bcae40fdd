"""DICOM associations through a live HAProxy: routed as `route` says, refused as `parse` says."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Iterator
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from netlab import Lab, wait_for

from lbdr.haproxy.association import ANSWERS, Association, RefusedError, build, parse
from lbdr.haproxy.matching import Condition, Refuse, Rule, ToBackend, ToServer
from lbdr.haproxy.model import (
    ClientTimeouts,
    Pool,
    ProxyBackend,
    ProxyConfiguration,
    ProxyProtocol,
    ProxyServer,
    ProxyService,
    ProxySettings,
)
from lbdr.haproxy.routing import route
from lbdr.haproxy.runtime import AdminState
from tests.dicom_requests import (
    CT,
    ECHO,
    ENHANCED_CT,
    LEGAL,
    TITLES,
    associations,
    exchange,
    mutated,
)
from tests.haproxy_samples import need_haproxy, ports
from tests.proxies import Director, Peer

PORT = 2104
MUTATIONS = 2500
SOURCES = ("10.77.0.100", "10.77.0.150", "10.77.0.160")


def tells(connection: socket.socket, host: str) -> None:
    """A real server that keeps what it got, and says who it is."""
    data = connection.recv(1 << 17)
    while len(data) < 6 + int.from_bytes(data[2:6]) and (more := connection.recv(1 << 17)):
        data += more
    SEEN.append(data)
    connection.sendall(host.encode())


SEEN: list[bytes] = []


def service(lab: Lab) -> ProxyConfiguration:
    """Rules of every kind, in a pool of two servers, and a backend of one."""
    pool = Pool(tuple(ProxyServer(name, lab[name].ipv4, PORT) for name in ("web1", "web2")))
    reserved = Pool((ProxyServer("reserved", lab["web3"].ipv4, PORT),))
    dicom = ProxyService(
        "DICOM_VIP",
        (lab["director"].ipv4,),
        ports(PORT),
        pool,
        ProxyProtocol.DICOM,
        timeouts=ClientTimeouts(request=1.0),
        rules=(
            Rule(Condition(called_ae=("PACS_STAT",)), ToBackend("STAT"), priority=-10),
            Rule(
                Condition(modality=("CT",), source=(ip_network("10.77.0.150"),)), ToServer("web2")
            ),
            Rule(Condition(calling_ae=("it's #1 %[sr]",)), Refuse()),
            Rule(Condition(modality=("CT", "MR")), ToServer("web1")),
            Rule(Condition(sop_class=(ECHO,), calling_ae=("OLD CT", "A")), None),
            Rule(Condition(sop_class=(ENHANCED_CT,)), ToBackend("STAT")),
        ),
        calling_aes=tuple(title for title in TITLES if title != "pacs"),
    )
    backend = ProxyBackend("STAT", reserved, ProxyProtocol.DICOM)
    return ProxyConfiguration(ProxySettings(max_connections=2000, threads=2), (dicom,), (backend,))


@pytest.fixture(scope="module")
def director(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Director]:
    need_haproxy()
    hosts = {"client": 100, "director": 1, "web1": 21, "web2": 22, "web3": 23}
    with contextlib.ExitStack() as stack:
        lab = stack.enter_context(Lab(hosts))
        lab.ip("client", *(f"address add {source}/24 dev eth0" for source in SOURCES[1:]))
        for host in ("web1", "web2", "web3"):
            stack.enter_context(Peer(lab, host, PORT, tells))
        found = stack.enter_context(Director(lab, tmp_path_factory.mktemp("haproxy") / "d"))
        found.apply(service(lab))
        yield found


def ask(director: Director, data: bytes, **more: object) -> bytes:
    vip = str(director.lab["director"].ipv4)
    return exchange(director.lab, vip, PORT, data, **more)  # type: ignore[arg-type]


@settings(max_examples=300, suppress_health_check=list(HealthCheck))
@given(association=associations, source=st.sampled_from(SOURCES))
def test_routed_as_lbdr_explains(director: Director, association: Association, source: str) -> None:
    configuration = service(director.lab)
    expected = route(association, ip_address(source), configuration.services[0], configuration)
    heard = ask(director, build(association), source=source)
    if expected.refusal:
        assert heard == ANSWERS[expected.refusal], expected.why
    else:
        hosts = {"reserved" if host == "web3" else host for host in [heard.decode()]}
        assert hosts <= set(expected.servers), expected.why


def test_nobody_can_serve(director: Director) -> None:
    """The sender is told to come again; other pools do not count."""
    runtime = director.companion.runtime
    director.run(lambda _: runtime.set_state("STAT", "reserved", AdminState.MAINTENANCE))
    try:
        stat = build(Association("PACS_STAT", "CT_ER", (ECHO,)))
        assert ask(director, stat) == ANSWERS["no-server"]
        assert ask(director, LEGAL) == b"web1"
    finally:
        director.run(lambda _: runtime.set_state("STAT", "reserved", AdminState.READY))


def test_a_server_of_a_rule_is_down(director: Director) -> None:
    runtime = director.companion.runtime
    director.run(lambda _: runtime.set_state("DICOM_VIP", "web1", AdminState.MAINTENANCE))
    try:
        assert ask(director, LEGAL) == b"web2"
        configuration = service(director.lab)
        found = route(
            parse(LEGAL), ip_address(SOURCES[0]), configuration.services[0], configuration,
            {"DICOM_VIP": frozenset({"web1"})},
        )  # fmt: skip
        assert found.servers == ("web2",)
        assert "web1 is down" in found.why
    finally:
        director.run(lambda _: runtime.set_state("DICOM_VIP", "web1", AdminState.READY))


def test_the_largest_legal_request(director: Director) -> None:
    """128 contexts with 10 transfer syntaxes each, at once and in small pieces; byte by byte."""
    large = build(Association("PACS", "CT_ER", (ENHANCED_CT,) * 127 + (CT,)), transfer_syntaxes=10)
    for data, pieces in ((large, 0), (large, 97), (large, 1460), (LEGAL, 1)):
        assert ask(director, data, pieces=pieces) == b"web1"
        assert SEEN[-1] == data


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GET / HTTP/1.1\r\nHost: pacs\r\n\r\n", "http"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), "tls"),
        (b"\x04\x00\x00\x00\x00\x04" + bytes(4), "unexpected-pdu"),
        (b"\xff" * 40, "unknown-pdu"),
        (b"\x01\x00" + (1 << 24).to_bytes(4) + bytes(60000), "oversized"),
        (b"\x01\x00" + (1 << 20).to_bytes(4) + bytes(1 << 20), "oversized"),
        (b"\x01\x00\x00\x00\x00\x10" + bytes(16), "malformed"),
        (LEGAL[:-1], "truncated"),
        (LEGAL[:5], "truncated"),
        (LEGAL + b"\x04\x00", "trailing"),
        (LEGAL[:6] + b"\0\2" + LEGAL[8:], "version"),
        (LEGAL[:10] + b" " * 16 + LEGAL[26:], "called-ae"),
        (LEGAL[:26] + b" " * 16 + LEGAL[42:], "calling-ae"),
        (LEGAL[:26] + b"pacs".ljust(16) + LEGAL[42:], "calling-ae"),
        (LEGAL[:26] + b"PA\0S".ljust(16) + LEGAL[42:], "malformed"),
        (LEGAL.replace(b"3.1.1.1", b"3.1.1.2"), "context"),
    ],
)
def test_refused_in_the_words_of_dicom(director: Director, data: bytes, reason: str) -> None:
    """And counted, and no server sees anything of it."""
    before, seen = _refusals(director).get(("DICOM_VIP", reason), 0), len(SEEN)
    assert ask(director, data) == ANSWERS[reason]
    assert _refusals(director)["DICOM_VIP", reason] == before + 1
    assert len(SEEN) == seen


def test_who_waits_is_sent_away(director: Director) -> None:
    """An open connection without a whole request is no burden for longer than its time."""
    assert ask(director, LEGAL[:80], finish=False) == ANSWERS["truncated"]
    assert ask(director, b"", finish=False) == b""


def test_a_connection_and_nothing_else_is_not_counted(director: Director) -> None:
    before, seen = _refusals(director), len(SEEN)
    assert ask(director, b"") == b""
    assert _refusals(director) == before
    assert len(SEEN) == seen


def judged(data: bytes) -> tuple[str, Association | None]:
    """Why a request is refused, or what it says."""
    try:
        return "", parse(data)
    except RefusedError as refused:
        return refused.reason, None


def test_mutated_requests(director: Director) -> None:
    """Each is refused or passed as our own reading says, and no worker ends."""
    chance = random.Random(5)  # noqa: S311  # the same every time
    (worker,) = director.processes().current
    configuration = service(director.lab)
    passed = 0
    for _ in range(MUTATIONS):
        data, seen = mutated(chance), len(SEEN)
        heard = ask(director, data)
        reason, association = judged(data)
        if association is not None:
            passed += 1
            reason = route(
                association, ip_address(SOURCES[0]), configuration.services[0], configuration
            ).refusal
        assert heard == ANSWERS.get(reason, b"") or (not reason and heard[:3] == b"web"), data.hex()
        assert len(SEEN) == seen + (not reason), data.hex()
    assert MUTATIONS * 0.02 < passed < MUTATIONS * 0.5
    assert director.processes().current[0].pid == worker.pid


def test_refusals_are_counted_on_after_a_reload(director: Director) -> None:
    assert ask(director, b"\xff" * 40) == ANSWERS["unknown-pdu"]
    before = _refusals(director)
    director.reload()
    wait_for(lambda: _refusals(director) == before, "the counts handed over", timeout=10)


def _refusals(director: Director) -> dict[tuple[str, str], int]:
    return director.run(lambda companion: companion.runtime.refusals())
