"""The history of a director: bounded, whole lines, and kept over a restart."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from click.testing import CliRunner
from netlab import wait_for

from lbdr.cli.events import events as command
from lbdr.events import Event, EventKind, EventLog, Wanted, read


class Troubles(list[str]):
    """What the log told of its own trouble; "" is none."""

    def __call__(self, reason: str) -> None:
        self.append(reason)


def log_of(directory: Path, *texts: str, most_bytes: int = 1 << 20) -> Troubles:
    """Write events as a daemon does that starts, works and ends."""
    troubles = Troubles()

    async def main() -> None:
        log = EventLog(directory, troubles, most_bytes)
        for text in texts:
            log.add(EventKind.OPERATOR, text, virtual_service="WEB", real_server=text[:3])
        log.close()

    asyncio.run(main())
    return troubles


def texts(directory: Path) -> list[str]:
    return [event.text for event in read(directory)]


def test_events_outlive_the_daemon_and_go_on_counting(tmp_path: Path) -> None:
    log_of(tmp_path, "rs1 drains", "rs2 drains")
    log_of(tmp_path, "rs1 is online")
    assert texts(tmp_path) == ["rs1 drains", "rs2 drains", "rs1 is online"]
    assert [event.number for event in read(tmp_path)] == [1, 2, 3]
    assert (tmp_path / "events.jsonl").stat().st_mode & 0o777 == 0o600


def test_they_are_written_while_it_runs(tmp_path: Path) -> None:
    async def main() -> None:
        log = EventLog(tmp_path, Troubles())
        async with asyncio.TaskGroup() as group:
            task = group.create_task(log.run())
            log.add(EventKind.ROLE, "active")
            await asyncio.to_thread(wait_for, lambda: texts(tmp_path) == ["active"], "the line")
            task.cancel()

    asyncio.run(main())


def test_the_files_are_bounded_and_the_newest_are_kept(tmp_path: Path) -> None:
    every = [f"{number:05d} " + "x" * 90 for number in range(400)]
    for text in every:
        log_of(tmp_path, text, most_bytes=20_000)
    sizes = sum(path.stat().st_size for path in tmp_path.iterdir())
    kept = texts(tmp_path)
    assert sizes < 21_000
    assert kept == every[-len(kept) :]
    assert len(kept) > 50
    assert [event.number for event in read(tmp_path)][-1] == 400


def test_a_line_that_a_crash_cut_short_is_left_out(tmp_path: Path) -> None:
    log_of(tmp_path, "one", "two")
    path = tmp_path / "events.jsonl"
    path.write_bytes(path.read_bytes()[:-9] + b"\n\xff{}\n[1]\n")
    log_of(tmp_path, "three")
    assert texts(tmp_path) == ["one", "three"]


def test_what_cannot_be_written_is_told_and_again_when_it_can(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.mkdir()
    troubles = log_of(tmp_path / "nothing", "lost")
    assert "cannot be written: No such file" in troubles[-1]
    path.rmdir()
    path.symlink_to(tmp_path / "elsewhere")
    assert "cannot be written" in log_of(tmp_path, "lost")[-1]
    assert not (tmp_path / "elsewhere").exists()
    path.unlink()
    assert log_of(tmp_path, "kept") == [""]


EVENTS = [
    Event(number=n, time=float(n), kind=kind, text=str(n), virtual_service=service, real_server=rs)
    for n, (kind, service, rs) in enumerate(
        [
            (EventKind.DAEMON, "", ""),
            (EventKind.OPERATOR, "WEB", "rs1"),
            (EventKind.OPERATOR, "TLS", "rs1"),
            (EventKind.DRIFT, "WEB", ""),
        ],
        start=1,
    )
]


@pytest.mark.parametrize(
    ("wanted", "numbers"),
    [
        (Wanted(10), [1, 2, 3, 4]),
        (Wanted(2), [3, 4]),
        (Wanted(10, after=2), [3, 4]),
        (Wanted(10, since=3.0), [3, 4]),
        (Wanted(10, kind=EventKind.OPERATOR), [2, 3]),
        (Wanted(10, virtual_service="WEB"), [2, 4]),
        (Wanted(10, real_server="rs1"), [2, 3]),
        (Wanted(1, real_server="rs1", virtual_service="WEB"), [2]),
    ],
)
def test_which_are_meant(wanted: Wanted, numbers: list[int]) -> None:
    assert [event.number for event in wanted.of(EVENTS)] == numbers


def test_the_command_reads_what_a_daemon_left(tmp_path: Path) -> None:
    log_of(tmp_path, "rs1 drains", "rs2 drains")
    places = [f"--run-dir={tmp_path}", f"--state-dir={tmp_path}"]
    shown = CliRunner().invoke(command, [*places, "--server", "rs2"])
    assert shown.exit_code == 0
    assert shown.stdout.split(maxsplit=2)[2] == "operator       WEB rs2: rs2 drains\n"
    as_json = CliRunner().invoke(command, [*places, "-n", "1", "--json"])
    assert Event.model_validate_json(as_json.stdout).text == "rs2 drains"
    wrong = CliRunner().invoke(command, [*places, "--since", "yesterday"])
    assert wrong.exit_code == 2
    assert "yesterday is no duration" in wrong.stderr
