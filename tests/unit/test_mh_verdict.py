"""The verdict on the kernel's mh that is left for a daemon that may not try."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lbdr import mh_verdict
from lbdr.datapath import mh_check, namespace
from lbdr.datapath.mh_check import MhOutcome, MhVerdict
from lbdr.errors import StateError
from lbdr.paths import Paths

AGREES = MhVerdict(MhOutcome.AGREES, 13, frozenset({4, 6}))
FORBIDDEN = MhVerdict(MhOutcome.FORBIDDEN, 12, reason="unshare --net: not permitted")


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(run=tmp_path / "run")


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> Callable[[MhVerdict], None]:
    def answer(verdict: MhVerdict) -> None:
        monkeypatch.setattr(mh_check, "probe", lambda _: verdict)

    answer(FORBIDDEN)
    return answer


@pytest.mark.usefixtures("tried")
@pytest.mark.parametrize(
    "verdict", [AGREES, MhVerdict(MhOutcome.DIFFERS, 12, frozenset({4}), "client 1 differs")]
)
def test_what_was_left_is_found(paths: Paths, verdict: MhVerdict) -> None:
    mh_verdict.keep(paths, AGREES)
    mh_verdict.keep(paths, verdict)
    assert mh_verdict.find(paths) == verdict
    (file,) = paths.run.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600


def test_who_may_try_goes_by_that(paths: Paths, tried: Callable[[MhVerdict], None]) -> None:
    mh_verdict.keep(paths, AGREES)
    now = MhVerdict(MhOutcome.NO_SCHEDULER, 12, reason="no mh")
    tried(now)
    assert mh_verdict.find(paths) == now


@pytest.mark.usefixtures("tried")
def test_nothing_was_left(paths: Paths) -> None:
    assert mh_verdict.find(paths) == FORBIDDEN


@pytest.mark.usefixtures("tried")
def test_another_boot_counts_for_nothing(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    mh_verdict.keep(paths, AGREES)
    monkeypatch.setattr(namespace, "boot_id", lambda: "another")
    assert mh_verdict.find(paths) == FORBIDDEN


def writable(file: Path) -> None:
    file.chmod(0o620)


def linked(file: Path) -> None:
    file.symlink_to(file.rename(file.with_name("elsewhere")))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-9])


def beyond(file: Path) -> None:
    file.write_text(file.read_text().replace('"index":13', '"index":99'))


@pytest.mark.usefixtures("tried")
@pytest.mark.parametrize("spoil", [writable, linked, cut, beyond])
def test_a_file_that_is_not_trusted(paths: Paths, spoil: Callable[[Path], None]) -> None:
    mh_verdict.keep(paths, AGREES)
    (file,) = paths.run.iterdir()
    spoil(file)
    assert mh_verdict.find(paths) == FORBIDDEN


def test_a_place_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(StateError, match=r"mh\.json"):
        mh_verdict.keep(Paths(run=tmp_path / "run"), AGREES)
