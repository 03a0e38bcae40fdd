"""What systemd is told (sd_notify(3))."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from lbdr.notify import notify, watchdog, watchdog_interval
from tests.unit.simulated import run_in_loop


@pytest.fixture(autouse=True)
def no_service_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A service manager that listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield listener


def test_assignments_are_lines_of_one_datagram(manager: socket.socket) -> None:
    notify("READY=1", "STATUS=active, 3 virtual services")
    assert manager.recv(4096) == b"READY=1\nSTATUS=active, 3 virtual services"


def test_an_abstract_address(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"lbdr-{os.getpid()}-notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0{name}")
        listener.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        notify("STOPPING=1")
        assert listener.recv(4096) == b"STOPPING=1"


def test_no_service_manager_is_no_trouble(caplog: pytest.LogCaptureFixture) -> None:
    notify("READY=1")
    assert not caplog.records


def test_one_that_is_gone_is_logged_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    notify("READY=1")
    assert "the service manager cannot be told" in caplog.text


@pytest.mark.parametrize(
    ("allowed", "pid", "interval"),
    [
        (None, None, None),
        ("30000000", None, 15.0),
        ("30000000", str(os.getpid()), 15.0),
        ("30000000", "1", None),  # meant for another process
        ("0", None, None),
        ("soon", None, None),
        ("-5", None, None),
    ],
)
def test_the_interval_is_half_of_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, allowed: str | None, pid: str | None, interval: float | None
) -> None:
    if allowed is not None:
        monkeypatch.setenv("WATCHDOG_USEC", allowed)
    if pid is not None:
        monkeypatch.setenv("WATCHDOG_PID", pid)
    assert watchdog_interval() == interval


def test_signs_of_life_keep_coming(manager: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    manager.setblocking(False)

    async def scenario() -> list[bytes]:
        task = asyncio.create_task(watchdog())
        loop = asyncio.get_running_loop()
        received = [await loop.sock_recv(manager, 100) for _ in range(3)]
        task.cancel()
        return received

    assert run_in_loop(scenario()) == [b"WATCHDOG=1"] * 3


def test_without_a_watchdog_nothing_runs() -> None:
    run_in_loop(watchdog())


def test_a_manager_that_does_not_listen_is_not_waited_for(
    manager: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    """Its queue is full after some datagrams; the director goes on, and says so."""
    for _ in range(2000):
        notify("WATCHDOG=1")
    assert "cannot be told" in caplog.text
    assert manager.recv(4096) == b"WATCHDOG=1"
