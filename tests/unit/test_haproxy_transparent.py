"""What transparent services need of the director's routing."""

from __future__ import annotations

from ipaddress import ip_address

from lbdr.haproxy.check import problems
from lbdr.haproxy.model import Pool, ProxyConfiguration, ProxyServer, ProxyService, Source
from lbdr.haproxy.transparent import needs
from tests import haproxy_samples as samples


def configuration(*servers: ProxyServer, transparent: bool = True) -> ProxyConfiguration:
    pool = Pool(servers, source=Source(transparent=transparent))
    vip = ip_address("203.0.113.1")
    service = ProxyService("A", (vip,), samples.ports(80, (100, 110)), pool, translate={80: 8080})
    return ProxyConfiguration(services=(service,))


def test_commands() -> None:
    wanted = needs(
        configuration(
            ProxyServer("s1", samples.PACS1),
            ProxyServer("s2", samples.PACS2, 443),
            ProxyServer("s3", ip_address("2001:db8::1"), 443),
        )
    )
    assert [str(one) for one in wanted.missing((), ())] == [
        "ip route add local default dev lo table 7619",
        "ip -6 route add local default dev lo table 7619",
        "ip rule add priority 7619 from 192.0.2.31 ipproto 6 sport 80 lookup 7619",
        "ip rule add priority 7619 from 192.0.2.31 ipproto 6 sport 100-110 lookup 7619",
        "ip rule add priority 7619 from 192.0.2.31 ipproto 6 sport 8080 lookup 7619",
        "ip rule add priority 7619 from 192.0.2.32 ipproto 6 sport 443 lookup 7619",
        "ip -6 rule add priority 7619 from 2001:db8::1 ipproto 6 sport 443 lookup 7619",
    ]
    assert wanted.missing(wanted.rules, wanted.routes) == ()


def test_others_need_nothing() -> None:
    wanted = needs(configuration(ProxyServer("s1", samples.PACS1), transparent=False))
    assert wanted.missing((), ()) == ()


def test_names_are_refused() -> None:
    (problem,) = problems(configuration(ProxyServer("s1", "pacs.example.org")))
    assert "transparent: the real server s1 needs an address" in str(problem)
