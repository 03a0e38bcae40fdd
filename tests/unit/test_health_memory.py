"""What one daemon knows of real servers, for the next."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from lbdr.effective import by_health
from lbdr.health.decision import Decision, MemberMemory, Memory, Presence, Share
from lbdr.health.spec import Connect, Http, Initial, Ldap, Probe, Target, Timing
from lbdr.health.verdicts import Status, Verdict
from lbdr.health_memory import HealthMemory, Known, name_of

PROBE = Probe(Target(ip_address("10.0.0.31"), 104), Connect())
KNOWN = Known(
    {name_of(PROBE): Verdict(Status.DOWN, 12.5, "refused", 0.25, Initial.UP)},
    {
        "DICOM": Memory(
            {
                "pacs1": MemberMemory(1.0, 2.0, True, 3.0, (4.0, 5.0), 60, 6.0),
                "pacs2": MemberMemory(),
            },
            True,
            frozenset({"pacs2"}),
        )
    },
)


def test_it_is_kept_for_the_next_daemon(tmp_path: Path) -> None:
    assert HealthMemory(tmp_path).load() == Known()
    assert HealthMemory(tmp_path).save(KNOWN) == ""
    assert HealthMemory(tmp_path).load() == KNOWN
    assert [path.name for path in tmp_path.iterdir()] == ["health.json"]
    assert (tmp_path / "health.json").stat().st_mode & 0o777 == 0o600


def test_another_boots_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    HealthMemory(tmp_path).save(KNOWN)
    monkeypatch.setattr("lbdr.datapath.namespace.boot_id", lambda: "another")
    assert HealthMemory(tmp_path).load() == Known()


@pytest.mark.parametrize("content", [b"", b"{", b'{"boot": ""}', b"\xff"])
def test_a_spoilt_file_is_told_and_every_check_begins_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    (tmp_path / "health.json").write_bytes(content)
    assert HealthMemory(tmp_path).load() == Known()
    assert "cannot be read" in caplog.text


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    assert "cannot be written: No such file" in HealthMemory(tmp_path / "nothing").save(KNOWN)


def test_a_probes_name_is_that_of_what_is_asked() -> None:
    assert name_of(replace(PROBE, timing=Timing(interval=1))) == name_of(PROBE)
    others = [
        Probe(Target(ip_address("10.0.0.31"), 105), Connect()),
        Probe(Target(ip_address("10.0.0.32"), 104), Connect()),
        Probe(PROBE.target, Http()),
        Probe(PROBE.target, Http(path="/alive")),
        Probe(PROBE.target, Ldap()),
    ]
    assert len({name_of(each) for each in (PROBE, *others)}) == 6


def test_shares_become_weights() -> None:
    shares = {
        "a": Share(Presence.SERVE, 7, ""),
        "b": Share(Presence.QUIESCE, 0, "drained"),
        "c": Share(Presence.OUT, 0, "down"),
    }
    found = by_health({"WEB": Decision(shares, sorry=False, quorum=True)})
    assert found == {("WEB", "a"): 7, ("WEB", "b"): 0, ("WEB", "c"): None}
