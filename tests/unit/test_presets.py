"""The preset for Philips Vue PACS: the published table, and questions where it is silent."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
import yaml

from lbdr.config.presets.marks import mark, unanswered
from lbdr.config.presets.philips_vue_pacs import ROWS, Answers, config_text

VIPS = {row.name: ip_address(f"192.0.2.{number}") for number, row in enumerate(ROWS, 50)}
FULL = Answers(
    addresses=VIPS,
    servers={"pacs1": ip_address("192.0.2.31"), "pacs2": ip_address("2001:db8::32")},
    standby_servers={"dr1": ip_address("192.0.2.41")},
    chat_path="/it's a path",
    chat_port=8443,
    portal_script="/etc/lbdr/checks/portal",
)
TABLE = {
    "DICOM_VIP": [2104],
    "DMWL_VIP": [3320],
    "PORTAL_VIP": [80],
    "PORTAL_VIP_STANDBY": [80],
    "CLIENT_VIP": [80, 443, 514, 2104, 22104, 32338],
    "CLIENT_DB_VIP": [1521],
    "HL7_VIP": [10010, 4001, 4003, 4005],
}


def test_the_table() -> None:
    """Its nine rows: seven with an address, two backends."""
    document = yaml.safe_load(config_text(FULL))
    services = document["virtual_services"]
    assert {name: service["ports"] for name, service in services.items()} == TABLE
    assert set(document["backends"]) == {"CHAT", "CHAT_STANDBY"}
    for name, service in services.items():
        assert service["forwarding"] == "proxy"
        assert service["persistence"] == "5m"
        assert service["address"] == str(VIPS[name])
        portal = name.startswith("PORTAL")
        assert service["check"]["type"] == ("external" if portal else "connect")
    assert services["PORTAL_VIP"]["rules"] == [{"path_prefix": "/it's a path", "backend": "CHAT"}]
    assert services["PORTAL_VIP_STANDBY"]["rules"][0]["backend"] == "CHAT_STANDBY"
    assert services["PORTAL_VIP_STANDBY"]["real_servers"] == ["dr1"]
    for backend in document["backends"].values():
        assert "persistence" not in backend
        assert (backend["port"], backend["check"]["type"]) == (8443, "http")
    assert document["real_servers"]["pacs2"] == {"address": "2001:db8::32"}
    assert unanswered(config_text(FULL)) == []


def test_what_is_not_known_is_asked() -> None:
    text = config_text(Answers())
    yaml.safe_load(text)
    questions = [one.question for one in unanswered(text)]
    assert sum("ask Philips" in question for question in questions) == 8
    assert sum("the VIP of" in question for question in questions) == 7
    assert sum("the address of" in question for question in questions) == 3
    lines = text.splitlines()
    for one in unanswered(text):
        assert lines[one.line - 1][one.column - 1 :].startswith('"FILL IN: ')


def test_dicom_by_direct_routing() -> None:
    document = yaml.safe_load(config_text(Answers(addresses=VIPS, dicom_routing=True)))
    routed = {
        name
        for name, service in document["virtual_services"].items()
        if service["forwarding"] == "dr"
    }
    assert routed == {"DICOM_VIP", "DMWL_VIP"}


def test_another_name() -> None:
    with pytest.raises(ValueError, match="no virtual service of Philips Vue PACS: WEB"):
        config_text(Answers(addresses={"WEB": ip_address("192.0.2.1")}))


def test_marks() -> None:
    assert unanswered(f"a: {mark('what?')}\n# b: {mark('no')}\n") == unanswered(
        f"a: {mark('what?')}\n"
    )
    with pytest.raises(ValueError, match="cannot stand in quotes"):
        mark('"')
