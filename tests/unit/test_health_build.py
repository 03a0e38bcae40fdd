"""From the file to what is checked of each real server, and by what rules."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from lbdr.config.check_schema import TYPES
from lbdr.config.load import parse
from lbdr.errors import ConfigError
from lbdr.health.policy import Failback, Member, OnFailure, Quorum
from lbdr.health.services import ServiceHealth
from lbdr.health.spec import Connect, DicomEcho, Http, Probe, Target, Vip

FILE = """\
director: {director}
real_servers:
  pacs1: {{address: 10.0.0.31}}
  pacs2: {{address: 10.0.0.32{pacs2}}}
virtual_services:
  DICOM:
    address: 10.0.0.50
    {ports}
    {service}
    real_servers: [pacs1, {{server: pacs2, weight: 3{use}}}]
"""


def health(
    service: str = "",
    *,
    director: str = "{}",
    ports: str = "ports: [104]",
    pacs2: str = "",
    use: str = "",
) -> ServiceHealth:
    text = FILE.format(director=director, ports=ports, service=service, pacs2=pacs2, use=use)
    return parse(text.encode(), "f").health["DICOM"]


def asked(found: ServiceHealth, server: str = "pacs1") -> list[tuple[str, int]]:
    return [(type(probe.check).__name__, probe.target.port) for probe in found.probes[server]]


def test_tcp_is_checked_by_a_connection_to_each_port_where_nothing_is_said() -> None:
    found = health(ports="ports: [104, 2104]\n    persistence: 5m")
    target = Target(ip_address("10.0.0.31"), 104)
    assert found.probes["pacs1"][0] == Probe(
        target, Connect(), initial=found.probes["pacs1"][0].initial
    )
    assert asked(found) == [("Connect", 104), ("Connect", 2104)]


@pytest.mark.parametrize(
    "ports",
    [
        "ports: [53]\n    protocol: udp",
        "ports: any\n    persistence: 5m",
        "ports: [1000-2000]\n    persistence: 5m",
    ],
)
def test_what_a_connection_does_not_tell_of_is_not_checked(ports: str) -> None:
    assert asked(health(ports=ports)) == []


def test_the_directors_check_is_for_those_that_say_nothing() -> None:
    director = "{check: {type: dicom-echo, called_ae: PACS}}"
    (probe,) = health(director=director).probes["pacs1"]
    assert probe.check == DicomEcho(called_ae="PACS")
    assert (probe.timing.interval, probe.timing.timeout) == (6, 5)
    assert asked(health("check: vip", director=director)) == [("Vip", 104)]
    assert asked(health(director="{check: on}")) == []
    assert asked(health("check: on")) == []


def test_several_checks_and_ports_of_their_own() -> None:
    found = health("check: [vip, {type: http, path: /alive, ports: [80, 8080], interval: 1s}]")
    assert asked(found) == [("Vip", 104), ("Http", 80), ("Http", 8080)]
    vip, http, _ = found.probes["pacs1"]
    assert vip.check == Vip()
    assert vip.target == Target(
        ip_address("10.0.0.31"), 104, vip=ip_address("10.0.0.50"), vip_port=104
    )
    assert (http.check, http.timing.interval) == (Http(path="/alive"), 1)


def test_what_a_server_depends_on() -> None:
    needed = "{address: 10.0.0.9, name: db, check: {type: connect, ports: [1521]}}"
    found = health(pacs2=f", depends_on: [{needed}, {{address: 10.0.0.8, check: ping}}]")
    assert found.needs.keys() == {"pacs2"}
    needs = found.needs["pacs2"]
    assert needs.keys() == {"db", "10.0.0.8"}
    assert needs["db"][0].target == Target(ip_address("10.0.0.9"), 1521)


def test_the_rules() -> None:
    found = health(
        "health: {quorum: {up: 3, down: 2}, on_failure: quiesce, failback: auto, slow_start: 30s, "
        "feedback: {port: 3334}}",
        use=", standby_for: [pacs1]",
    )
    policy = found.policy
    assert policy.members == {"pacs1": Member(1), "pacs2": Member(3, frozenset({"pacs1"}))}
    assert (policy.quorum, policy.on_failure) == (Quorum(3, 2), OnFailure.QUIESCE)
    assert (policy.failback, policy.slow_start) == (Failback.AUTO, 30)
    assert found.agents["pacs2"].target == Target(ip_address("10.0.0.32"), 3334)
    assert health("health: {quorum: 2}").policy.quorum == Quorum(2, 2)


_NO_CHECK = (
    "`check`: expected a check, such as connect or {type: dicom-echo}, or the key left out, found "
    "an empty list"
)
PROBLEMS = [
    ("check: {type: dns}", {}, 9, "a check of type dns needs `name`", "add `name`"),
    (
        "check: {type: connect, path: /}",
        {},
        9,
        "`path` means nothing for a check of type connect",
        "it belongs to http, https",
    ),
    (
        "check: conect",
        {},
        9,
        f"`check`: expected one of {', '.join(TYPES)}, found `conect`",
        "did you mean connect?",
    ),
    (
        "check: []",
        {},
        9,
        _NO_CHECK,
        "",
    ),
    (
        "check: http",
        {"ports": "ports: any\n    persistence: 5m"},
        10,
        "the service has any port: which of them are to be checked?",
        "add `ports` to the check, such as ports: [104]",
    ),
    (
        "check: vip",
        {"ports": "ports: [53]\n    protocol: udp"},
        10,
        "a vip check begins a TCP connection, and the service is udp",
        "write another check",
    ),
    (
        "",
        {"use": ", standby_for: [pacs3]"},
        10,
        "pacs2 cannot stand in for pacs3, which is no real server of this service",
        "name one of pacs1",
    ),
    (
        "",
        {"director": "{check: {type: connect, ports: [1]}}"},
        1,
        "the director's check is for the ports of each service",
        "leave out `ports` here, and write a check with them in the services meant",
    ),
    (
        "",
        {"pacs2": ", depends_on: [{address: 10.0.0.9, check: connect}]"},
        4,
        "the service has any port: which of them are to be checked?",
        "add `ports` to the check, such as ports: [104]",
    ),
    (
        "health: {quorum: 9}",
        {},
        9,
        "a quorum of 9 can never be reached: all real servers together have the weight 4",
        "write at most 4",
    ),
]


@pytest.mark.parametrize(("service", "more", "line", "message", "hint"), PROBLEMS)
def test_a_problem(service: str, more: dict[str, str], line: int, message: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        health(service, **more)
    (problem,) = caught.value.problems
    assert (problem.line, problem.message, problem.hint) == (line, message, hint)
