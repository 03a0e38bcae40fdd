"""What cannot be beside each other on one director."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from lbdr.errors import ConfigError
from lbdr.haproxy.between import beside_direct_routing
from lbdr.haproxy.check import problems
from lbdr.haproxy.matching import Condition, Rule, ToBackend, ToServer
from lbdr.haproxy.model import (
    ClientTls,
    Pool,
    ProxyBackend,
    ProxyConfiguration,
    ProxyProtocol,
    ProxyServer,
    ProxyService,
)
from lbdr.haproxy.render.whole import render
from lbdr.model import Forwarding, Ports, Protocol, VirtualService
from tests import haproxy_samples as samples
from tests.unit.test_haproxy_render import AROUND

VIP = ip_address("192.0.2.50")


def proxy(address: str = "192.0.2.31", **more: object) -> ProxyService:
    pool = Pool((ProxyServer("s1", ip_address(address)),))
    return ProxyService("P", (VIP,), samples.ports(80, (100, 110)), pool, **more)  # type: ignore[arg-type]


def routed(address: str, ports: Ports, protocol: Protocol = Protocol.TCP) -> VirtualService:
    return VirtualService("R", ip_address(address), protocol, ports)


@pytest.mark.parametrize(
    ("virtual", "message"),
    [
        (routed("192.0.2.50", samples.ports(105)), "P: 192.0.2.50:105 is a port of R too"),
        (routed("192.0.2.50", samples.ports((1, 80))), "P: 192.0.2.50:80 is a port of R too"),
        (routed("192.0.2.50", Ports()), "P: R routes every port of 192.0.2.50: give one of them"),
        (routed("192.0.2.50", samples.ports(443)), ""),
        (routed("192.0.2.51", Ports()), ""),
        (routed("192.0.2.50", samples.ports(80), Protocol.UDP), ""),
        (routed("192.0.2.31", samples.ports(80)), "P: the real server s1 is the VIP of R"),
    ],
)
def test_beside_direct_routing(virtual: VirtualService, message: str) -> None:
    found = list(beside_direct_routing([proxy()], [virtual]))
    assert len(found) == bool(message)
    assert "".join(found).startswith(message)


def test_a_proxy_may_lead_to_a_proxy() -> None:
    """On a VIP that this director serves by a proxy."""
    virtual = VirtualService("R", ip_address("192.0.2.31"), forwarding=Forwarding.PROXY)
    assert list(beside_direct_routing([proxy()], [virtual])) == []


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Rule(Condition(path=("/",))), "rule 1: path needs `protocol: http`"),
        (Rule(Condition(modality=("CT",))), "rule 1: modality needs `protocol: dicom`"),
        (Rule(Condition()), "rule 1: no condition"),
        (Rule(Condition(tls_server_name=("a",)), ToServer("s9")), "s9 is no real server"),
        (Rule(Condition(tls_server_name=("a",)), ToBackend("X")), "there is no backend X"),
        (Rule(Condition(tls_server_name=("a",)), ToBackend("H")), "H speaks http, and this"),
    ],
)
def test_rules(rule: Rule, message: str) -> None:
    backend = ProxyBackend("H", Pool((ProxyServer("s1", samples.PACS1, 80),)), ProxyProtocol.HTTP)
    configuration = ProxyConfiguration(services=(proxy(rules=(rule,)),), backends=(backend,))
    assert any(message in str(problem) for problem in problems(configuration))
    with pytest.raises(ConfigError):
        render(configuration, AROUND)


def test_modalities_are_named() -> None:
    service = proxy(
        protocol=ProxyProtocol.DICOM, rules=(Rule(Condition(modality=("CAT",)), ToServer("s1")),)
    )
    (problem,) = problems(ProxyConfiguration(services=(service,)))
    assert "modality 'CAT' is none of CR, CT, " in str(problem)


def test_tls_of_some_ports_splits_ranges() -> None:
    tls = ClientTls(("/etc/lbdr/a.pem",), samples.ports((102, 104), 110))
    text = render(ProxyConfiguration(services=(proxy(tls=tls),)), AROUND).text
    binds = [line.split()[1:4] for line in text.splitlines() if line.startswith("    bind")]
    assert binds == [
        ["192.0.2.50:80", "transparent"],
        ["192.0.2.50:100-101", "transparent"],
        ["192.0.2.50:102-104", "transparent", "ssl"],
        ["192.0.2.50:105-109", "transparent"],
        ["192.0.2.50:110", "transparent", "ssl"],
    ]
