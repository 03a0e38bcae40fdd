"""Which server a client gets: by a file alone, and as the words of what was said live."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from lbdr.cli.main import lbdr
from lbdr.explain import Asked, InTable, QuestionError, asked, by_table, parse_endpoint
from lbdr.explain_offline import offline
from lbdr.maglev import MaglevServer, MaglevTable
from lbdr.model import (
    Configuration,
    Director,
    Persistence,
    PortRange,
    Ports,
    RealServer,
    VirtualService,
)

VIP = ip_address("10.0.0.50")
RS = tuple(
    RealServer(ip_address(f"10.0.0.{11 + place}"), 80, weight, name=f"rs{place + 1}")
    for place, weight in enumerate((1, 1, 2))
)
WEB = VirtualService("WEB", VIP, ports=Ports((PortRange(80, 80),)), scheduler="mh", real_servers=RS)
CLIENT = ip_address("192.168.1.1")


def question(
    virtual: VirtualService = WEB, client: str = "192.168.1.1", port: int = 31337
) -> Asked:
    return Asked(virtual, ip_address(client), port, 80)


# --- what is asked -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "address", "port"),
    [
        ("10.1.2.3:40000", "10.1.2.3", 40000),
        ("[2001:db8::1]:1", "2001:db8::1", 1),
        ("[::ffff:10.0.0.1]:65535", "::ffff:10.0.0.1", 65535),
    ],
)
def test_an_endpoint(text: str, address: str, port: int) -> None:
    assert parse_endpoint(text) == (ip_address(address), port)


@pytest.mark.parametrize(
    "text",
    [
        *("10.1.2.3", "10.1.2.3:", "10.1.2.3:0", "10.1.2.3:65536", "2001:db8::1:80", "[10.1.2:80"),
        *("host:80", ":80", "10.1.2.3:-1", "10.1.2.3: 80", "10.1.2.3:8\u0660", ""),
    ],
)
def test_no_endpoint(text: str) -> None:
    with pytest.raises(ValueError):
        parse_endpoint(text)


PARTS = replace(WEB, name="PARTS", ports=Ports((PortRange(80, 80), PortRange(8000, 8010))))
ANY = replace(WEB, name="ANY", ports=Ports())
CONFIGURATION = Configuration(Director("lab"), (WEB, PARTS, ANY))


@pytest.mark.parametrize(
    ("name", "port", "found"),
    [("WEB", None, 80), ("WEB", 80, 80), ("PARTS", None, 80), ("PARTS", 8010, 8010), ("ANY", 7, 7)],
)
def test_a_port(name: str, port: int | None, found: int) -> None:
    assert asked(CONFIGURATION, name, CLIENT, 1, port).port == found


def test_any_port_offline() -> None:
    found = asked(CONFIGURATION, "ANY", CLIENT, 1, None, any_port=True)
    assert found.port == 0
    assert offline(found).virtual == "10.0.0.50 any port"


@pytest.mark.parametrize(
    ("name", "client", "port", "words"),
    [
        ("OTHER", "10.1.1.1", None, "no virtual service OTHER"),
        ("WEB", "10.1.1.1", 81, "has no port 81"),
        ("PARTS", "10.1.1.1", 8011, "has no port 8011"),
        ("ANY", "10.1.1.1", None, "has any port"),
        ("WEB", "2001:db8::1", None, "is IPv4"),
    ],
)
def test_what_cannot_be_asked(name: str, client: str, port: int | None, words: str) -> None:
    with pytest.raises(QuestionError, match=words) as error:
        asked(CONFIGURATION, name, ip_address(client), 1, port)
    assert error.value.exit_code == 2


# --- the table -----------------------------------------------------------------------------------


def test_the_kernels_own_answers() -> None:
    """The list's order is the reverse of adding: as a kernel had 10.0.0.11, .12, .13 at the end."""
    added_backwards = ["rs3", "rs2", "rs1"]
    for client, port, slot, server in [
        ("192.168.1.1", 0, 2456, "rs1"),
        ("192.168.1.1", 31337, 565, "rs3"),
        ("203.0.113.7", 0, 1705, "rs2"),
        ("203.0.113.7", 31337, 1401, "rs1"),
    ]:
        flags = frozenset({"mh-port"}) if port else frozenset[str]()
        one = question(replace(WEB, scheduler_flags=flags), client, port or 31337)
        found = offline(one, added_backwards)
        assert (found.slot, found.server, found.new.by) == (slot, server, "slot")
        assert found.address == str(RS[int(server[-1]) - 1].address)
        assert f"slot {slot} of 4093" in found.why


def test_the_order_of_the_file() -> None:
    for port in range(1, 200):
        one = question(replace(WEB, scheduler_flags=frozenset({"mh-port"})), port=port)
        named = offline(one, ["rs1", "rs2", "rs3"])
        assert offline(one).new == named.new
        table = MaglevTable([MaglevServer(rs.address, 80, rs.weight) for rs in reversed(RS)])
        assert offline(one).address == str(table.servers[table.choose(CLIENT, port) or 0].address)


def test_another_table_size() -> None:
    found = offline(question(), index=8)
    assert found.slot == MaglevTable([], 8).slot(CLIENT)
    assert "of 251" in found.why


@pytest.mark.parametrize("order", [[], ["rs1"], ["rs1", "rs2", "rs2"], ["rs1", "rs2", "rs4"]])
def test_an_order_that_is_none(order: list[str]) -> None:
    with pytest.raises(QuestionError, match="--order") as error:
        offline(question(), order)
    assert "rs1,rs2,rs3" in error.value.hint


def test_who_begins_with_weight_0_has_no_slot() -> None:
    servers = (replace(RS[0], weight=0), *RS[1:])
    flags = frozenset({"mh-port"})
    for port in range(1, 100):
        found = offline(
            question(replace(WEB, real_servers=servers, scheduler_flags=flags), port=port)
        )
        assert found.server in {"rs2", "rs3"}
        assert found.new.by == "slot"
        assert any("weight 0" in note for note in found.notes)


def test_nobody_has_a_weight() -> None:
    servers = tuple(replace(server, weight=0) for server in RS)
    found = offline(question(replace(WEB, real_servers=servers)))
    assert (found.server, found.address, found.new.by) == (None, None, "nobody")
    sorry = replace(RS[0], address=ip_address("10.0.0.99"), name="sorry")
    found = offline(question(replace(WEB, real_servers=servers, sorry_server=sorry)))
    assert (found.server, found.address) == ("sorry", "10.0.0.99")


@pytest.mark.parametrize("scheduler", ["wlc", "rr", "sh"])
def test_another_scheduler_is_ipvss(scheduler: str) -> None:
    found = offline(question(replace(WEB, scheduler=scheduler)))
    assert (found.server, found.slot, found.new.by) == (None, None, "ipvs")
    assert f"by {scheduler}" in found.why
    assert "no file has" in found.why


def test_persistence_is_ipvss() -> None:
    found = offline(question(replace(WEB, persistence=Persistence(300, 32))))
    assert found.server is None
    assert "persistence" in found.why


@given(
    weights=st.lists(st.integers(0, 65535), min_size=1, max_size=6),
    drained=st.sets(st.integers(0, 5)),
    client=st.ip_addresses(v=4),
    port=st.integers(1, 65535),
)
def test_a_drained_server_falls_back(
    weights: list[int], drained: set[int], client: Any, port: int
) -> None:
    """Whoever is chosen, it is the table's choice, and the words say how."""
    servers = [
        InTable(ip_address(f"10.0.0.{11 + place}"), 80, 0 if place in drained else weight, weight)
        for place, weight in enumerate(weights)
    ]
    table = MaglevTable(
        [MaglevServer(one.address, one.port, one.last_weight) for one in servers], 8
    )
    away = {place for place, one in enumerate(servers) if not one.weight}
    found = by_table(question(client=str(client), port=port), servers, 8)
    place = table.choose(client, unavailable=away)
    assert found.slot == table.slot(client)
    if place is None:
        assert (found.address, found.by) == (None, "nobody")
        return
    assert found.address == str(servers[place].address)
    assert found.by == ("slot" if table.slots[table.slot(client)] == place else "fallback")


# --- the command ---------------------------------------------------------------------------------

FILE = """\
director: {name: lab}
real_servers:
  web1: {address: 10.77.0.21}
  web2: {address: 10.77.0.22}
virtual_services:
  WEB: {address: 10.77.0.10, ports: [80], scheduler: mh, real_servers: [web1, web2]}
  LEAST: {address: 10.77.0.10, ports: [81], real_servers: [web1, web2]}
  SIX: {address: "fd77::10", ports: [80], scheduler: mh, real_servers: [six1]}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "lbdr.yaml"
    path.write_text(FILE.replace("  web2:", '  six1: {address: "fd77::21"}\n  web2:'))
    return path


def run(file: Path, *words: str, client: str = "10.1.2.3:40000") -> Result:
    options = ["--offline", "--config", str(file), "--client", client]
    return CliRunner().invoke(lbdr, ["explain", *options, *words])


def test_json(file: Path) -> None:
    done = run(file, "WEB", "--json")
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    servers = [MaglevServer(ip_address(f"10.77.0.2{one}"), 80, 1) for one in (2, 1)]
    table = MaglevTable(servers)
    place = table.choose(ip_address("10.1.2.3"))
    assert found["server"] == ("web2", "web1")[place or 0]
    assert found["address"] == str(servers[place or 0].address)
    assert found["slot"] == table.slot(ip_address("10.1.2.3"))
    assert found["why"] == f"slot {found['slot']} of 4093 is its own"
    assert found["offline"] is True


def test_for_people(file: Path) -> None:
    lines = run(file, "SIX", client="[2001:db8::1]:40000").stdout.splitlines()
    assert lines[0] == "client [2001:db8::1]:40000 of SIX (tcp [fd77::10]:80, mh)"
    assert lines[1].startswith("new connection    six1 fd77::21: slot ")
    assert lines[2].startswith("note: drains")
    assert "added in this order: six1, that of the file" in lines[3]


def test_exit_codes(file: Path) -> None:
    assert run(file, "LEAST").exit_code == 1
    assert "IPVS decides at the first packet, by wlc" in run(file, "LEAST").stdout
    assert json.loads(run(file, "LEAST", "--json").stdout)["server"] is None
    assert run(file, "NONE").exit_code == 2
    assert run(file, "WEB", "--order", "web1").exit_code == 2
    assert run(file, "WEB", "--order", "web2, web1").exit_code == 0
    assert run(file, "WEB", client="10.1.2.3").exit_code == 2
    assert run(file, "WEB", "--mh-table-index", "7").exit_code == 2
    assert run(file.with_name("none.yaml"), "WEB").exit_code == 3
    online = ["explain", "--order", "a", "--client", "10.1.1.1:1", "WEB"]
    assert CliRunner().invoke(lbdr, online).exit_code == 2
