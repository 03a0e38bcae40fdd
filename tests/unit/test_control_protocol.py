"""The control socket: who may speak, what is understood, and what is answered."""

from __future__ import annotations

import asyncio
import grp
import json
import os
import pwd
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lbdr.control import peers, server
from lbdr.control.client import RemoteError, ask, running
from lbdr.control.peers import Peer
from lbdr.control.protocol import (
    REQUEST_LIMIT,
    Answer,
    ExplainRequest,
    FlowsRequest,
    PlanRequest,
    ReloadRequest,
    Request,
    RoleRequest,
    StatusRequest,
    WeightRequest,
    WithdrawRequest,
)
from lbdr.control.server import ControlServer
from lbdr.errors import ControlError, KernelError, PrivilegeError, StateError
from lbdr.model import Role
from lbdr.paths import Paths
from tests.unit.simulated import run_in_loop

REQUESTS: list[Request] = [
    StatusRequest(),
    RoleRequest(),
    RoleRequest(role=Role.STANDBY),
    RoleRequest(reset=True),
    WeightRequest(real_server="rs1", weight=0),
    WeightRequest(real_server="rs1", virtual_service="WEB"),
    ExplainRequest(virtual_service="WEB", client="10.1.2.3", client_port=40000),
    ExplainRequest(virtual_service="WEB", client="2001:db8::1", client_port=1, port=65535),
    FlowsRequest(),
    FlowsRequest(virtual_service="WEB", limit=0),
    PlanRequest(),
    ReloadRequest(),
    WithdrawRequest(),
]


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    (tmp_path / "run").mkdir()
    return Paths(run=tmp_path / "run")


class Handler:
    """Remembers what it was asked, and answers or fails as it was told."""

    def __init__(
        self, result: dict[str, Any] | None = None, error: Exception | None = None
    ) -> None:
        self.asked: list[Request] = []
        self._result = result or {}
        self._error = error

    async def __call__(self, request: Request) -> dict[str, Any]:
        self.asked.append(request)
        if self._error is not None:
            raise self._error
        return self._result


@asynccontextmanager
async def serving(paths: Paths, handler: server.Handler) -> AsyncIterator[ControlServer]:
    control = ControlServer(paths, handler)
    await control.start()
    try:
        yield control
    finally:
        await control.close()


def send(paths: Paths, line: bytes, handler: Handler | None = None) -> Answer | None:
    """Send bytes as they are; the answer, or None where the connection was closed without one."""

    async def scenario() -> Answer | None:
        async with serving(paths, handler or Handler()):
            reader, writer = await asyncio.open_unix_connection(str(paths.socket))
            try:
                writer.write(line)
                await writer.drain()
                reply = await reader.readline()
            except ConnectionError:
                return None
            finally:
                writer.close()
            return Answer.model_validate_json(reply) if reply else None

    return run_in_loop(scenario())


def line(request: Any, version: Any = 1) -> bytes:
    return json.dumps({"version": version, "request": request}).encode() + b"\n"


# --- both ends ------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_", REQUESTS, ids=repr)
def test_every_request_arrives_as_it_was_sent(paths: Paths, request_: Request) -> None:
    handler = Handler({"x": [1, "ü", None]})

    async def scenario() -> Answer:
        async with serving(paths, handler):
            return await asyncio.to_thread(ask, paths, request_)

    assert run_in_loop(scenario()).result == {"x": [1, "ü", None]}
    assert handler.asked == [request_]


def test_a_failure_keeps_its_words_its_remedy_and_its_exit_code(paths: Paths) -> None:
    error = KernelError("ipvsadm -A -t 10.0.0.50:80 -s fo", errno=2, hint="modprobe ip_vs_fo")

    async def scenario() -> None:
        async with serving(paths, Handler(error=error)):
            with pytest.raises(RemoteError) as caught:
                await asyncio.to_thread(ask, paths, ReloadRequest())
            assert caught.value.message == error.message
            assert caught.value.hint == "modprobe ip_vs_fo"
            assert caught.value.exit_code == KernelError.exit_code

    run_in_loop(scenario())


def test_an_error_in_the_daemon_ends_the_request_alone(
    paths: Paths, caplog: pytest.LogCaptureFixture
) -> None:
    answer = send(paths, line({"command": "reload"}), Handler(error=ZeroDivisionError("secret")))
    assert answer is not None
    assert answer.failure is not None
    assert answer.failure.message == "internal error"
    assert "secret" in caplog.text


def test_a_status_larger_than_a_request_may_be(paths: Paths) -> None:
    handler = Handler({"text": "x" * (4 * REQUEST_LIMIT)})

    async def scenario() -> Answer:
        async with serving(paths, handler):
            return await asyncio.to_thread(ask, paths, StatusRequest())

    result = run_in_loop(scenario()).result
    assert result is not None
    assert len(result["text"]) == 4 * REQUEST_LIMIT


def test_several_requests_on_one_connection_and_several_connections(paths: Paths) -> None:
    handler = Handler({"ok": True})

    async def scenario() -> None:
        async with serving(paths, handler):
            one = await asyncio.open_unix_connection(str(paths.socket))
            other = await asyncio.open_unix_connection(str(paths.socket))
            for reader, writer in (one, other, one):
                writer.write(line({"command": "plan"}))
                assert Answer.model_validate_json(await reader.readline()).result == {"ok": True}
            one[1].close()
            other[1].close()

    run_in_loop(scenario())
    assert handler.asked == [PlanRequest()] * 3


# --- strictness -----------------------------------------------------------------------------------

REFUSED = {
    "no JSON": (b"status\n", "the request is no JSON object"),
    "no object": (b"[]\n", "the request is no JSON object"),
    "an empty line": (b"\n", "the request is no JSON object"),
    "no UTF-8": (b'{"version": 1, "request": "\xff"}\n', "the request is no JSON object"),
    "no request": (b'{"version": 1}\n', "request: Field required"),
    "no command": (line({}), "request"),
    "an unknown command": (line({"command": "flush"}), "request"),
    "an unknown key": (line({"command": "plan", "adopt": True}), "adopt"),
    "a key beside the request": (
        b'{"version": 1, "request": {"command": "plan"}, "as": "root"}\n',
        "as: Extra inputs",
    ),
    "an unknown role": (line({"command": "role", "role": "leader"}), "role"),
    "a weight above": (line({"command": "weight", "real_server": "a", "weight": 65536}), "weight"),
    "a weight below": (line({"command": "weight", "real_server": "a", "weight": -1}), "weight"),
    "no real server": (line({"command": "weight", "weight": 1}), "real_server: Field required"),
    "deep nesting": (b"[" * 60000 + b"\n", "the request is no JSON object"),
}


@pytest.mark.parametrize(("sent", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_understood_is_refused_and_told(paths: Paths, sent: bytes, words: str) -> None:
    handler = Handler()
    answer = send(paths, sent, handler)
    assert answer is not None
    assert answer.failure is not None
    assert words in answer.failure.message
    assert "\n" not in answer.failure.message
    assert answer.failure.exit_code == ControlError.exit_code
    assert handler.asked == []


@pytest.mark.parametrize("version", [0, 2, "1", None, [1]])
def test_another_version_is_told_which_one_is_spoken(paths: Paths, version: Any) -> None:
    # a later version may have requests that this one cannot read: the version is judged first
    answer = send(paths, line({"command": "elect", "term": 3}, version))
    assert answer is not None
    assert answer.failure is not None
    assert answer.failure.message.endswith(
        f"speaks version {version} of the protocol, this daemon 1"
    )
    assert "restart" in answer.failure.hint


def test_a_line_over_the_limit_is_cut_off_and_the_next_one_is_answered(
    paths: Paths, caplog: pytest.LogCaptureFixture
) -> None:
    handler = Handler()
    assert send(paths, b"x" * (REQUEST_LIMIT + 1), handler) is None
    assert send(paths, b"x" * (3 * REQUEST_LIMIT) + b"\n", handler) is None
    assert "control: " in caplog.text
    assert handler.asked == []
    answer = send(paths, line({"command": "plan"}), handler)
    assert answer is not None
    assert answer.failure is None


def test_who_goes_away_in_the_middle_is_no_trouble(
    paths: Paths, caplog: pytest.LogCaptureFixture
) -> None:
    release, done = asyncio.Event(), asyncio.Event()

    async def slow(_: Request) -> dict[str, Any]:
        await release.wait()
        done.set()
        return {"text": "x" * 1000}

    async def scenario() -> None:
        async with serving(paths, slow):
            _, writer = await asyncio.open_unix_connection(str(paths.socket))
            writer.write(line({"command": "plan"}))
            await writer.drain()
            writer.close()
            await writer.wait_closed()
            release.set()
            await done.wait()
            assert running(paths)

    run_in_loop(scenario())
    assert "internal error" not in caplog.text
    assert [r for r in caplog.records if r.levelname == "ERROR"] == []


def test_closing_answers_the_request_under_way_first(paths: Paths) -> None:
    begun, release = asyncio.Event(), asyncio.Event()

    async def slow(_: Request) -> dict[str, Any]:
        begun.set()
        await release.wait()
        return {"done": True}

    async def scenario() -> bytes:
        control = ControlServer(paths, slow)
        await control.start()
        reader, writer = await asyncio.open_unix_connection(str(paths.socket))
        writer.write(line({"command": "withdraw"}))
        await begun.wait()
        closing = asyncio.create_task(control.close())
        await asyncio.sleep(0)  # it has begun
        release.set()
        reply = await reader.readline()
        writer.close()
        await closing
        return reply

    assert Answer.model_validate_json(run_in_loop(scenario())).result == {"done": True}
    assert not paths.socket.exists()


# --- who may --------------------------------------------------------------------------------------


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_without_a_group_the_socket_is_the_daemons_alone(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, umask: int
) -> None:
    monkeypatch.setattr(server, "group_id", lambda: None)

    async def scenario() -> None:
        before = os.umask(umask)
        try:
            async with serving(paths, Handler()):
                assert mode(paths.socket) == 0o600
        finally:
            assert os.umask(before) == umask

    run_in_loop(scenario())


def test_with_a_group_the_socket_is_the_groups_too(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    gid = os.getgid()
    monkeypatch.setattr(server, "group_id", lambda: gid)

    async def scenario() -> None:
        async with serving(paths, Handler()):
            assert mode(paths.socket) == 0o660
            assert paths.socket.stat().st_gid == paths.run.stat().st_gid == gid

    run_in_loop(scenario())


def member_of(monkeypatch: pytest.MonkeyPatch, groups: list[int]) -> None:
    """There is a group lbdr, 900, and a user 1000 who is in some groups."""
    monkeypatch.setattr(grp, "getgrnam", lambda _: SimpleNamespace(gr_gid=900))

    def user(uid: int) -> Any:
        if uid != 1000:
            raise KeyError(uid)
        return SimpleNamespace(pw_name="alice", pw_gid=100)

    monkeypatch.setattr(pwd, "getpwuid", user)
    monkeypatch.setattr(os, "getgrouplist", lambda name, gid: [gid, *groups] * (name == "alice"))


@pytest.mark.parametrize(
    ("peer", "groups", "allowed"),
    [
        (Peer(1, 0, 0), [], True),
        (Peer(1, os.geteuid(), 5), [], True),
        (Peer(1, 1000, 900), [], True),  # as by newgrp
        (Peer(1, 1000, 100), [900], True),
        (Peer(1, 1000, 100), [27], False),
        (Peer(1, 1001, 100), [900], False),  # no such user
    ],
)
def test_who_is_allowed(
    monkeypatch: pytest.MonkeyPatch, peer: Peer, groups: list[int], allowed: bool
) -> None:
    member_of(monkeypatch, groups)
    assert peers.is_allowed(peer) is allowed


def test_without_the_group_only_root_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> Any:
        raise KeyError(name)

    monkeypatch.setattr(grp, "getgrnam", unknown)
    assert not peers.is_allowed(Peer(1, 1000, 100))
    assert peers.is_allowed(Peer(1, 0, 0))


def test_a_stranger_is_refused(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server, "peer_of", lambda _: Peer(4711, 12345, 12345))
    handler = Handler({"ok": True})
    answer = send(paths, line({"command": "withdraw"}), handler)
    assert answer is not None
    assert answer.failure is not None
    assert answer.failure.exit_code == PrivilegeError.exit_code
    assert handler.asked == []
    assert "refused uid 12345, pid 4711" in caplog.text


def test_a_stranger_is_told_what_is_missing(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "peer_of", lambda _: Peer(4711, 12345, 12345))

    async def scenario() -> None:
        async with serving(paths, Handler()):
            for _ in range(5):
                with pytest.raises(RemoteError) as caught:
                    await asyncio.to_thread(ask, paths, StatusRequest())
                assert caught.value.exit_code == PrivilegeError.exit_code
                assert "join the group lbdr" in caught.value.hint

    run_in_loop(scenario())


def test_the_peer_is_whom_the_kernel_names(paths: Paths, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "lbdr"):
        send(paths, line({"command": "reload"}))
    assert f"by uid {os.getuid()}, pid {os.getpid()}" in caplog.text


# --- where it listens -----------------------------------------------------------------------------


def test_an_old_socket_is_replaced(paths: Paths) -> None:
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(paths.socket))
    assert not running(paths)

    async def scenario() -> None:
        async with serving(paths, Handler()):
            assert await asyncio.to_thread(running, paths)
            # connections are served in turn: after this one the one above is closed, too
            await asyncio.to_thread(ask, paths, StatusRequest())

    run_in_loop(scenario())
    assert not running(paths)


def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(StateError) as caught:
        run_in_loop(ControlServer(Paths(run=tmp_path / "no"), Handler()).start())
    assert "--run-dir" in caught.value.hint


def test_a_path_that_is_too_long_for_a_socket(tmp_path: Path) -> None:
    run = tmp_path / ("x" * 120)
    run.mkdir()
    with pytest.raises(StateError, match="too long"):
        run_in_loop(ControlServer(Paths(run=run), Handler()).start())


# --- the client alone -----------------------------------------------------------------------------


def test_no_daemon(paths: Paths) -> None:
    with pytest.raises(ControlError) as caught:
        ask(paths, StatusRequest())
    assert str(paths.socket) in caught.value.message
    assert "systemctl start lbdr" in caught.value.hint


def test_no_right_to_the_socket(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refused(socket.socket):
        def connect(self, address: Any) -> None:
            raise PermissionError(13, f"Permission denied: {address}")

    monkeypatch.setattr(socket, "socket", Refused)  # root is refused nothing
    with pytest.raises(PrivilegeError) as caught:
        ask(paths, StatusRequest())
    assert "group lbdr" in caught.value.hint


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (b"", "closed the connection without an answer"),
        (b'{"version": 1', "closed the connection without an answer"),
        (b'{"version": 1, "outcome": {}}\n', "is not understood"),
        (b"hello\n", "is not understood"),
    ],
)
def test_what_is_no_answer(paths: Paths, reply: bytes, words: str) -> None:
    async def daemon(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(reply)
        await writer.drain()
        writer.close()

    async def scenario() -> None:
        async with await asyncio.start_unix_server(daemon, str(paths.socket)):
            with pytest.raises(ControlError, match=words):
                await asyncio.to_thread(ask, paths, StatusRequest())

    run_in_loop(scenario())


def test_a_daemon_that_is_stuck(paths: Paths) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(paths.socket))
        listener.listen()
        with pytest.raises(ControlError, match="does not answer: timed out"):
            ask(paths, StatusRequest(), timeout=0.05)
