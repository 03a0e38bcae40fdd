"""haproxy.cfg of services: as written down, and as HAProxy itself takes it."""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from lbdr.errors import ConfigError
from lbdr.haproxy.model import (
    Pool,
    ProxyConfiguration,
    ProxyServer,
    ProxyService,
    ProxySettings,
    Source,
)
from lbdr.haproxy.render.process_wide import Surroundings
from lbdr.haproxy.render.whole import render
from tests import haproxy_samples as samples

GOLDEN = Path(__file__).with_name("haproxy_golden.cfg")
AROUND = Surroundings(
    admin="/run/lbdr/haproxy/admin.sock",
    state="/run/lbdr/haproxy/servers",
    chroot="/run/lbdr/haproxy/empty",
    lua="/usr/share/lbdr",
)


def test_golden() -> None:
    """Every option, as an administrator would read it.

    The fingerprint is left out: it changes with every word of the rest.
    """
    text = render(samples.everything(Path("/etc/lbdr")), AROUND).text
    assert re.sub(r"'lbdr [0-9a-f]{16}'", "'lbdr FINGERPRINT'", text) == GOLDEN.read_text()


def test_haproxy_takes_it(tmp_path: Path) -> None:
    samples.need_haproxy()
    for name in ("portal", "images"):
        samples.certificate(tmp_path, f"{name}")
    rendered = render(samples.everything(tmp_path), samples.surroundings(tmp_path))
    assert samples.checked(rendered.text, tmp_path) == ""


def test_order_of_services_does_not_matter() -> None:
    """Nothing is reloaded when somebody sorts the file."""
    one = samples.everything(Path("/etc/lbdr"))
    other = replace(one, services=one.services[::-1], backends=one.backends[::-1])
    assert render(one, AROUND) == render(other, AROUND)


def test_fingerprint_is_of_the_content() -> None:
    one = samples.everything(Path("/etc/lbdr"))
    other = replace(one, settings=replace(one.settings, max_connections=77))
    assert render(one, AROUND).fingerprint != render(other, AROUND).fingerprint
    assert render(one, AROUND).fingerprint in render(one, AROUND).text


def test_a_line_tells_whose_it_is() -> None:
    rendered = render(samples.everything(Path("/etc/lbdr")), AROUND)
    for number, text in enumerate(rendered.text.splitlines(), 1):
        if text.startswith(("frontend", "backend")) and "lbdr:" not in text:
            assert rendered.owner(number) == text.split()[1]
            assert rendered.owner(number + 1) == text.split()[1]
    assert rendered.owner(3) == ""


def service(name: str, address: str, *ports: int | tuple[int, int], **more: object) -> ProxyService:
    pool = Pool((ProxyServer("s1", samples.PACS1),), **more)  # type: ignore[arg-type]
    return ProxyService(name, (ip_address(address),), samples.ports(*ports), pool)


@pytest.mark.parametrize(
    ("services", "message"),
    [
        (
            [service("A", "192.0.2.1", 80, (100, 200)), service("B", "192.0.2.1", 150)],
            "B: 192.0.2.1:150 is a port of A too",
        ),
        (
            [service("A", "192.0.2.1", (1, 1000)), service("C", "192.0.2.1", 5),
             service("B", "192.0.2.1", 900)],
            "B: 192.0.2.1:900 is a port of A too",
        ),
        ([service("A", "192.0.2.1", 80), service("A", "192.0.2.2", 80)], "A names more than one"),
        ([service("A", "192.0.2.1")], "A: a proxy service needs ports"),
        ([service("A", "192.0.2.1", (1, 9999))], "4096 at most"),
        ([service("A\nB", "192.0.2.1", 80)], "'A\\nB': name: 'A\\nB' is no name"),
        (
            [service("A", "192.0.2.1", 80, source=Source(ip_address("::1")))],
            "of different IP versions",
        ),
    ],
)  # fmt: skip
def test_refused(services: list[ProxyService], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        render(ProxyConfiguration(services=tuple(services)), AROUND)
    assert message in str(caught.value)


def test_same_port_on_other_addresses() -> None:
    services = (service("A", "192.0.2.1", 80), service("B", "192.0.2.2", 80))
    assert "bind 192.0.2.2:80" in render(ProxyConfiguration(services=services), AROUND).text


def test_transparent_workers_keep_their_right() -> None:
    """HAProxy 2.6 refuses foreign source addresses to a user other than root."""
    seen = service("A", "192.0.2.1", 80, source=Source(transparent=True))
    text = render(ProxyConfiguration(services=(seen,)), AROUND).text
    assert "source 0.0.0.0 usesrc clientip" in text
    assert "    user " not in text


def test_peers_of_other_directors() -> None:
    settings = ProxySettings(
        name="lb1",
        peer=(ip_address("192.0.2.2"), 10001),
        peers={"lb2": (ip_address("192.0.2.3"), 10001)},
    )
    services = (service("A", "192.0.2.1", 80),)
    text = render(ProxyConfiguration(settings, services), AROUND).text
    assert "    peer lb1 192.0.2.2:10001\n    peer lb2 192.0.2.3:10001\n" in text
