"""Health checks as users write them: what each type allows, needs, and becomes."""

from __future__ import annotations

from dataclasses import fields
from ipaddress import ip_address
from typing import Any

import pytest
from pydantic import ValidationError

from lbdr.config.check_build import OPTIONS, check_of, findings, needs_ports, probes_of, timing
from lbdr.config.check_schema import TYPES, Check
from lbdr.health import spec
from lbdr.model import PortRange, Ports

RIP, VIP = ip_address("192.168.10.31"), ip_address("192.168.10.50")
ONE = Ports((PortRange(104, 104),))
CERTIFICATE = {"certificate": "/etc/lbdr/client.pem", "key": "/etc/lbdr/client.key"}


def read(**keys: Any) -> Check:
    return Check.model_validate(keys)


def messages(**keys: Any) -> list[str]:
    """What is wrong between keys, each with its remedy."""
    return [f"{each.message} ({each.hint})" for each in findings(("check",), read(**keys))]


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ({"type": "connect"}, spec.Connect()),
        (
            {"type": "negotiate", "send": "QUIT\r\n", "expect": "221"},
            spec.Negotiate(b"QUIT\r\n", b"221"),
        ),
        (
            {"type": "negotiate", "send_hex": "0b 4d:53", "expect_hex": "1C0D", "transport": "udp"},
            spec.Negotiate(b"\x0bMS", b"\x1c\r", spec.Transport.UDP),
        ),
        (
            {"type": "negotiate", "expect": "* OK", "transport": "tls", "verify": True},
            spec.Negotiate(b"", b"* OK", spec.Transport.TLS, spec.Tls(verify=True)),
        ),
        ({"type": "http"}, spec.Http()),
        (
            {
                "type": "https",
                "method": "HEAD",
                "path": "/health?x=1",
                "host": "portal.hospital.example",
                "status": [200, "300-399"],
                "body": "o.k",
                "verify": True,
                "ca": "/etc/ssl/hospital.pem",
                "server_name": "portal.hospital.example",
                **CERTIFICATE,
            },
            spec.Http(
                "HEAD",
                "/health?x=1",
                "portal.hospital.example",
                ((200, 200), (300, 399)),
                "o.k",
                tls=spec.Tls(
                    "portal.hospital.example",
                    True,
                    "/etc/ssl/hospital.pem",
                    "/etc/lbdr/client.pem",
                    "/etc/lbdr/client.key",
                ),
            ),
        ),
        (
            {"type": "external", "command": "/etc/lbdr/checks/portal", "arguments": ["-v"]},
            spec.External("/etc/lbdr/checks/portal", "nobody", ("-v",)),
        ),
        ({"type": "ping", "size": 1000}, spec.Ping(1000)),
        (
            {
                "type": "dns",
                "name": "pacs.hospital.example",
                "record": "AAAA",
                "answer": "fd00::7",
                "transport": "tcp",
            },
            spec.Dns("pacs.hospital.example", "AAAA", ip_address("fd00::7"), True),
        ),
        (
            {"type": "dicom-echo", "called_ae": "LB-SCP", "calling_ae": "LOADBALANCER"},
            spec.DicomEcho("LB-SCP", "LOADBALANCER"),
        ),
        ({"type": "dicom-echo", "tls": True}, spec.DicomEcho(tls=spec.Tls())),
        (
            {"type": "hl7-mllp", "message": "MSH|^~\\&|", "acknowledge": ["AA"]},
            spec.Hl7Mllp("MSH|^~\\&|", ("AA",)),
        ),
        ({"type": "oracle-tns", "service_name": "PACS"}, spec.OracleTns("PACS")),
        (
            {"type": "ldap", "security": "starttls", "bind_dn": "cn=lb", "password": "x"},
            spec.Ldap(spec.LdapSecurity.STARTTLS, spec.Tls(), "cn=lb", "x"),
        ),
        ({"type": "smtp", "starttls": True}, spec.Smtp(starttls=True)),
        ({"type": "vip"}, spec.Vip()),
        ({"type": "on"}, spec.On()),
        ({"type": "off"}, spec.Off()),
    ],
)
def test_what_is_written_is_what_is_asked(keys: dict[str, Any], wanted: spec.Check) -> None:
    assert messages(**keys) == []
    assert check_of(read(**keys)) == wanted


def test_every_kind_has_a_type_and_every_key_a_meaning() -> None:
    assert set(TYPES) == {*spec.KINDS.values(), "https"} == set(OPTIONS)
    named = set().union(*OPTIONS.values())
    common = {"type", "initial", "ports", "source"}
    common |= {field.name for field in fields(spec.Timing)} - {"jitter"}
    assert named | common == set(Check.model_fields)
    assert not named & common


def test_defaults_of_the_kinds() -> None:
    assert timing(read(type="connect")) == spec.Timing(6, 3, 2, 3)
    assert timing(read(type="dicom-echo")) == spec.Timing(6, 5, 2, 3)
    assert timing(read(type="external", command="/x")) == spec.Timing(15, 10, 2, 3)
    written = read(type="external", command="/x", interval="1m", timeout="30s", fall=1, rise=5)
    assert timing(written) == spec.Timing(60, 30, 5, 1)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"type": "connect", "path": "/"},
            "`path` means nothing for a check of type connect (it belongs to http, https)",
        ),
        (
            {"type": "http", "verify": True},
            (
                "`verify` means nothing for a check of type http (it belongs to negotiate, https, "
                "dicom-echo, hl7-mllp, ldap, smtp)"
            ),
        ),
        ({"type": "external"}, "a check of type external needs `command` (add `command`)"),
        ({"type": "dns"}, "a check of type dns needs `name` (add `name`)"),
        ({"type": "hl7-mllp"}, "a check of type hl7-mllp needs `message` (add `message`)"),
        (
            {"type": "negotiate"},
            "a negotiate check needs something to send, or to expect (add `send` or `expect`)",
        ),
        (
            {"type": "negotiate", "expect": "x", "transport": "udp"},
            "a negotiate check by UDP needs something to send (add `send`)",
        ),
        (
            {"type": "negotiate", "send": "x", "send_hex": "00"},
            "`send` and `send_hex` both stand here (remove one)",
        ),
        (
            {"type": "dicom-echo", "verify": True},
            "`verify` is for TLS (add `tls: true`)",
        ),
        ({"type": "ldap", "verify": True}, "`verify` is for TLS (add `security: starttls`)"),
        (
            {"type": "https", "ca": "/ca.pem"},
            "`ca` means nothing while nothing is verified (add `verify: true`)",
        ),
        ({"type": "https", "key": "/k.pem"}, "`key` without `certificate` (add `certificate`)"),
        (
            {"type": "ldap", "bind_dn": "cn=x"},
            "`bind_dn` and `password` go together (write both, or neither)",
        ),
        (
            {"type": "connect", "fast_interval": "10s"},
            (
                "`fast_interval` is longer than the interval (it is for servers that are changing: "
                "make it shorter, or leave it out)"
            ),
        ),
        ({"type": "ping", "ports": [1]}, "a check of type ping has no ports (leave out `ports`)"),
        (
            {"type": "dns", "name": "x", "transport": "tls"},
            "a dns check goes by udp or tcp (write tcp)",
        ),
    ],
)
def test_keys_that_do_not_go_together(keys: dict[str, Any], message: str) -> None:
    assert messages(**keys) == [message]


@pytest.mark.parametrize(
    ("keys", "expected", "hint"),
    [
        ({"type": "tcp"}, "one of connect, negotiate, http", ""),
        ({"type": "dicom-echo", "called_ae": "A" * 17}, "an AE title: 1 to 16 characters", ""),
        ({"type": "dicom-echo", "called_ae": "   "}, "an AE title", ""),
        ({"type": "dicom-echo", "called_ae": "A\\B"}, "an AE title", ""),
        ({"type": "dicom-echo", "called_ae": 104}, "an AE title", "write '104', in quotes"),
        ({"type": "http", "path": "health"}, "a path that begins with /", ""),
        ({"type": "http", "path": "/a b"}, "a path that begins with /", ""),
        ({"type": "http", "status": ["2xx"]}, "a status code, or a range", "write 200-299"),
        ({"type": "http", "status": ["299-200"]}, "a status code, or a range", ""),
        ({"type": "http", "body": "("}, "a regular expression", "unterminated subpattern"),
        ({"type": "http", "host": "a/b"}, "a host name", ""),
        ({"type": "external", "command": "check"}, "a file's absolute path", ""),
        ({"type": "negotiate", "send_hex": "0"}, "pairs of hexadecimal digits", "such as"),
        ({"type": "connect", "fall": 0}, "a whole number from 1 to 100", ""),
        ({"type": "connect", "timeout": "1ms"}, "a duration from 50ms to 5m", ""),
    ],
)
def test_values_that_are_refused(keys: dict[str, Any], expected: str, hint: str) -> None:
    with pytest.raises(ValidationError) as caught:
        read(**keys)
    (error,) = caught.value.errors()
    assert expected in error["ctx"]["expected"]
    assert hint in error["ctx"]["hint"]


def test_each_port_is_a_probe() -> None:
    """Those of the service, or those that the check names."""
    several = Ports((PortRange(104, 104), PortRange(2104, 2105)))
    probes = probes_of(read(type="connect"), RIP, VIP, several)
    assert [probe.target for probe in probes] == [
        spec.Target(RIP, port) for port in (104, 2104, 2105)
    ]
    probes = probes_of(read(type="connect", ports=[2104, 104]), RIP, VIP, several)
    assert [probe.target.port for probe in probes] == [104, 2104]
    (probe,) = probes_of(read(type="ping", source="192.168.10.1"), RIP, VIP, several)
    assert probe.target == spec.Target(RIP, 0, ip_address("192.168.10.1"))


def test_checks_of_the_vip_know_the_vip() -> None:
    (probe,) = probes_of(read(type="vip", initial="up"), RIP, VIP, ONE)
    assert probe.target == spec.Target(RIP, 104, None, VIP, 104)
    assert probe.initial is spec.Initial.UP
    program = read(type="external", command="/x")
    (probe,) = probes_of(program, RIP, VIP, ONE)
    assert probe.target == spec.Target(RIP, 104, None, VIP, 104)
    several = Ports((PortRange(104, 104), PortRange(2104, 2104)))
    (probe,) = probes_of(program, RIP, VIP, several)
    assert probe.target == spec.Target(RIP, 0, None, VIP, 0)


def test_a_service_with_any_port_must_say_which() -> None:
    (found,) = needs_ports(("check",), read(type="connect"), Ports())
    assert found.message == "the service has any port: which of them are to be checked?"
    many = Ports((PortRange(4000, 5000),))
    (found,) = needs_ports(("check",), read(type="connect"), many)
    assert found.message.startswith("the service has more than 16 ports")
    assert not list(needs_ports(("check",), read(type="connect", ports=[104]), Ports()))
    assert not list(needs_ports(("check",), read(type="ping"), Ports()))
    assert not list(needs_ports(("check",), read(type="connect"), ONE))


def test_the_json_schema_names_every_key() -> None:
    schema = Check.model_json_schema()
    assert schema["properties"].keys() == Check.model_fields.keys()
    assert schema["required"] == ["type"]
