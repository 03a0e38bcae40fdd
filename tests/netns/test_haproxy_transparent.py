"""Transparent mode: real servers see the client, and their answers come back."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from netlab import Lab

from lbdr.haproxy.model import (
    Pool,
    ProxyConfiguration,
    ProxyServer,
    ProxyService,
    ProxySettings,
    ServerTimeouts,
    Source,
)
from lbdr.haproxy.transparent import needs
from tests.haproxy_samples import need_haproxy, ports
from tests.proxies import Director, Peer, ask_name, says_its_name

FAR = {4: "10.88.0.5", 6: "fd88::5"}
NETWORKS = {4: ip_network("10.88.0.0/16"), 6: ip_network("fd88::/64")}


@pytest.mark.parametrize("version", [4, 6])
def test_the_server_sees_the_client(lab: Lab, tmp_path: Path, version: int) -> None:
    """And without the routing it hears nothing of its answers."""
    need_haproxy()
    director, client = lab["director"], lab["client"]
    vip, via = (director.ipv4, client.ipv4) if version == 4 else (director.ipv6, client.ipv6)
    length = 32 if version == 4 else 128
    # The clients' network is behind the director, as it is with two arms.
    lab.ip("client", f"address add {FAR[version]}/{length} dev lo")
    lab.ip("director", f"route add {NETWORKS[version]} via {via}")
    lab.ip("web1", f"route add {NETWORKS[version]} via {vip}")
    address = lab["web1"].ipv4 if version == 4 else lab["web1"].ipv6
    pool = Pool(
        (ProxyServer("web1", address),),
        source=Source(transparent=True),
        timeouts=ServerTimeouts(connect=0.2),
    )
    service = ProxyService("DB", (vip,), ports(1521), pool)
    configuration = ProxyConfiguration(ProxySettings(max_connections=500, threads=1), (service,))
    with (
        Director(lab, tmp_path / "haproxy") as found,
        Peer(
            lab, "web1", 1521, says_its_name, any_address="::" if version == 6 else "0.0.0.0"
        ) as server,
    ):
        found.apply(configuration)
        assert ask_name(lab, str(vip), 1521, source=FAR[version]) == ""
        for command in needs(configuration).missing((), ()):
            lab.run("director", str(command).split())
        server.clients.clear()
        assert ask_name(lab, str(vip), 1521, source=FAR[version]) == "web1"
        assert [ip_address(seen) for seen in server.clients] == [ip_address(FAR[version])]
