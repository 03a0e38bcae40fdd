"""The forms of a log line."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from datetime import datetime

import pytest

from lbdr.cli.logs import Format, set_up


@pytest.fixture(autouse=True)
def logging_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test sets up is gone after it."""
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    root, own = logging.getLogger(), logging.getLogger("lbdr")
    handlers, levels = root.handlers[:], (root.level, own.level)
    yield
    for handler in set(root.handlers) - set(handlers):
        if type(handler) is logging.StreamHandler:  # pytest's own are of other types
            root.removeHandler(handler)
    root.setLevel(levels[0])
    own.setLevel(levels[1])


def begin(form: Format | None, level: int = logging.INFO) -> None:
    """Set logging up as in a new process, where pytest's handlers are not."""
    root = logging.getLogger()
    handlers, root.handlers[:] = root.handlers[:], []
    set_up(form, level)
    root.handlers += handlers


def log_one_of_each() -> None:
    log = logging.getLogger("lbdr.test")
    log.debug("in detail")
    log.info("applied: %s", "ipvsadm -A")
    log.warning("careful")
    log.error("first\n  hint: second")
    logging.getLogger("library").info("not of interest")
    logging.getLogger("library").warning("of interest")


def test_text(capsys: pytest.CaptureFixture[str]) -> None:
    begin(None)
    log_one_of_each()
    lines = capsys.readouterr().err.splitlines()
    assert [line[24:] for line in lines if "hint" not in line] == [
        "INFO    applied: ipvsadm -A",
        "WARNING careful",
        "ERROR   first",
        "WARNING of interest",
    ]
    datetime.strptime(lines[0][:23], "%Y-%m-%d %H:%M:%S,%f")  # noqa: DTZ007  # it has no zone


@pytest.mark.parametrize("form", [Format.JOURNAL, None])
def test_journal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, form: Format | None
) -> None:
    if form is None:
        monkeypatch.setenv("JOURNAL_STREAM", "8:12345")
    begin(form, logging.DEBUG)
    log_one_of_each()
    # the priorities of sd-daemon(3); a further line has its own, or it would be informational
    assert capsys.readouterr().err.splitlines() == [
        "<7>in detail",
        "<6>applied: ipvsadm -A",
        "<4>careful",
        "<3>first",
        "<3>  hint: second",
        "<4>of interest",
    ]


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    begin(Format.JSON)
    log_one_of_each()
    try:
        int("inside")
    except ValueError:
        logging.getLogger("lbdr.test").exception("request failed")
    entries = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(entry["level"], entry["logger"], entry["message"]) for entry in entries] == [
        ("info", "lbdr.test", "applied: ipvsadm -A"),
        ("warning", "lbdr.test", "careful"),
        ("error", "lbdr.test", "first\n  hint: second"),
        ("warning", "library", "of interest"),
        ("error", "lbdr.test", "request failed"),
    ]
    assert "ValueError: invalid literal" in entries[-1]["exception"]
    assert all(datetime.fromisoformat(entry["time"]).tzinfo for entry in entries)


def test_a_form_that_is_asked_for_goes_before_the_journal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "8:12345")
    begin(Format.JSON)
    logging.getLogger("lbdr").info("x")
    assert json.loads(capsys.readouterr().err)["message"] == "x"
