"""The command line of solve-arp, and which half of lbdr a command belongs to."""

from __future__ import annotations

import ipaddress
import json
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import pytest

from lbdr import __main__ as program
from lbdr.model import HostNetwork, Interface
from lbdr.realserver import cli, observe
from lbdr.realserver.findings import ServerState, conf


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "which VIP?"),
        (["--vip", "vip.example"], "is not an IPv4 or IPv6 address"),
        (["--vip", "192.168.10.50/24"], "a VIP has no subnet; write 192.168.10.50"),
        (["--vip", "127.0.0.1"], "a loopback address"),
        (["--vip", "224.0.0.18"], "a multicast address"),
        (["--vip", "fe80::1"], "a link-local address"),
        (["--vip", "::ffff:192.0.2.1"], "an IPv4 address in IPv6's clothes"),
        (["--vip", "0.0.0.0"], "the unspecified address"),
        (["--check", "--undo"], "not allowed with argument"),
        (["--check", "--dry-run"], "--check changes nothing"),
        (["--undo", "--persist"], "--undo takes back"),
    ],
)
def test_wrong_usage_says_what_is_right(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def server_with_lo_settings(_interface: str) -> ServerState:
    network = {
        "lo": Interface("lo", 1, addresses=(ipaddress.ip_interface("192.0.2.50/32"),)),
        "eth0": Interface("eth0", 2, addresses=(ipaddress.ip_interface("192.0.2.31/24"),)),
    }
    return ServerState(
        HostNetwork(network), nics=("eth0",), sysctls={conf("lo", "arp_ignore"): "1"}
    )


def test_check_prints_every_finding_with_its_remedy(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(observe, "server_state", server_with_lo_settings)
    assert cli.main(["--check", "--root", str(tmp_path), "--vip", "192.0.2.50/32"]) == 1
    out = capsys.readouterr().out
    assert "wrong: arp_ignore is 0 on eth0" in out
    assert "  remedy: sysctl -w net.ipv4.conf.all.arp_ignore=1\n" in out
    assert "note: net.ipv4.conf.lo.arp_ignore=1 has no effect: ARP requests arrive" in out
    assert out.endswith("not solved: 192.0.2.50\n")


def test_json_has_the_documented_keys(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(observe, "server_state", server_with_lo_settings)
    arguments = ["--json", "--root", str(tmp_path), "--vip", "192.0.2.50"]
    assert cli.main([*arguments, "--check"]) == 1
    checked = json.loads(capsys.readouterr().out)
    assert cli.main([*arguments, "--dry-run"]) == 0
    planned = json.loads(capsys.readouterr().out)
    documentation = Path(__file__).parents[2] / "docs" / "solve-arp.md"
    for key in {*checked, *planned, *checked["findings"][0], *planned["operations"][0]}:
        assert f"`{key}`" in documentation.read_text(), key
    for finding in checked["findings"]:
        assert f"`{finding['code']}`" in documentation.read_text()


def test_check_of_nothing_asks_for_a_vip(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli.main(["--check", "--root", str(tmp_path)]) == 3
    assert "--vip ADDRESS" in capsys.readouterr().err


def test_solve_arp_goes_to_the_real_servers_half(monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[list[str]] = []

    def main(arguments: list[str]) -> int:
        got.append(arguments)
        return 7

    monkeypatch.setattr(cli, "main", main)
    monkeypatch.setattr(sys, "argv", ["lbdr", "solve-arp", "--check"])
    assert program.main() == 7
    assert got == [["--check"]]


class _WithoutClick(MetaPathFinder):
    def find_spec(self, fullname: str, _path: Any = None, _target: Any = None) -> None:
        if fullname in {"lbdr.cli.main", "lbdr.cli"}:
            raise ModuleNotFoundError("no click", name="click")


def test_a_missing_library_is_named_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["lbdr", "status"])
    for name in ("lbdr.cli", "lbdr.cli.main"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "meta_path", [_WithoutClick(), *sys.meta_path])
    assert program.main() == 1
    assert "pip install 'lbdr[director]'" in capsys.readouterr().err
