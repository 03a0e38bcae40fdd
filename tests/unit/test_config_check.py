"""`lbdr check` and `lbdr schema`, as a user types them."""

from __future__ import annotations

import json
from ipaddress import ip_interface
from pathlib import Path

import pytest
from click.testing import CliRunner

from lbdr.cli import check as command
from lbdr.config.document import reference
from lbdr.model import HostNetwork, Interface

EXAMPLES = Path(__file__).parents[2] / "examples"
DEMO = str(EXAMPLES / "demo.yaml")


def wrong_file(folder: Path) -> str:
    file = folder / "wrong.yaml"
    file.write_text("director: {nam: x}\nvirtual_services: {}\n")
    return str(file)


def test_a_valid_file() -> None:
    result = CliRunner().invoke(command.check, [DEMO])
    assert (result.exit_code, result.stdout) == (0, "1 virtual service, 2 real servers: valid\n")
    assert result.stderr == ""


def test_a_wrong_file(tmp_path: Path) -> None:
    file = wrong_file(tmp_path)
    result = CliRunner().invoke(command.check, [file])
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr == (
        f"{file}:1:12: unknown key `nam`; allowed here: name, role, address_probe, "
        "gratuitous_arp, timeouts, drift_check, fastpath, marks, check, drain_persistence "
        "(write `name`)\n"
    )


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    result = CliRunner().invoke(command.check, [str(tmp_path / "x")])
    assert result.exit_code == 3
    assert result.stderr.startswith(f"{tmp_path}/x: there is no such file")


def test_json_of_a_valid_file() -> None:
    result = CliRunner().invoke(command.check, ["--json", DEMO])
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {
        "valid": True,
        "problems": [],
        "virtual_services": 1,
        "real_servers": 2,
    }


def test_json_of_a_wrong_file(tmp_path: Path) -> None:
    file = wrong_file(tmp_path)
    result = CliRunner().invoke(command.check, ["--json", file])
    assert result.exit_code == 3
    found = json.loads(result.stdout)
    assert found["valid"] is False
    assert [set(problem) for problem in found["problems"]] == [
        {"file", "line", "column", "message", "hint"}
    ]
    assert (found["problems"][0]["file"], found["problems"][0]["line"]) == (file, 1)


def test_host_asks_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Interface("eth0", 2, addresses=(ip_interface("10.77.0.1/24"),))
    monkeypatch.setattr(command, "observe_network", lambda: HostNetwork({"eth0": here}))
    result = CliRunner().invoke(command.check, ["--host", DEMO])
    assert result.exit_code == 0
    assert result.stdout == "1 virtual service, 2 real servers: valid on this machine\n"
    monkeypatch.setattr(command, "observe_network", HostNetwork)
    result = CliRunner().invoke(command.check, ["--host", "--json", DEMO])
    assert result.exit_code == 3
    found = json.loads(result.stdout)
    assert (found["valid"], len(found["problems"])) == (False, 3)
    assert (found["virtual_services"], found["real_servers"]) == (1, 2)


def test_static_check_does_not_ask_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> HostNetwork:
        raise AssertionError("a static check asked the machine")

    monkeypatch.setattr(command, "observe_network", refuse)
    assert CliRunner().invoke(command.check, [DEMO]).exit_code == 0


def test_host_of_this_machine_needs_no_root() -> None:
    assert "lo" in command.observe_network().interfaces


def test_schema_prints_json_schema_and_reference() -> None:
    as_json = CliRunner().invoke(command.schema, [])
    assert json.loads(as_json.stdout)["title"] == "lbdr configuration"
    markdown = CliRunner().invoke(command.schema, ["--format", "markdown"])
    assert markdown.stdout == reference()


@pytest.mark.parametrize("name", ["check", "schema"])
def test_help_has_examples(name: str) -> None:
    result = CliRunner().invoke(getattr(command, name), ["--help"])
    assert result.exit_code == 0
    assert f"\n    lbdr {name}" in result.stdout
