"""The control socket of a running daemon: who may use it, and what it withstands."""

from __future__ import annotations

import contextlib
import grp
import json
import os
import pwd
import resource
import socket
import stat
import subprocess
import time
from collections.abc import Iterator

import pytest
from netlab import Lab

from lbdr.control.protocol import VERSION, WeightRequest
from lbdr.errors import ControlError, LbdrError, PrivilegeError
from tests.kernel.daemons import LBDR, NO_GROUP, VIP, VIP6, WEB, Daemon, as_user, soon

GROUP = "lbdr"
NOBODY = 65534
HOSTS = {"director": 1, "peer": 2}
SIX = {"address": VIP6, "ports": [80], "real_servers": ["six1", "six2"]}


def in_guest_only() -> None:
    """Users and groups are made: never on a machine that is to keep its own."""
    assert os.environ.get("LBDR_GUEST") == "1"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(HOSTS) as built:
        yield built


@pytest.fixture(scope="module")
def member() -> Iterator[pwd.struct_passwd]:
    """A user who is in the group lbdr, which exists meanwhile."""
    in_guest_only()
    subprocess.run(["groupadd", "--force", GROUP], check=True)
    subprocess.run(["useradd", "--no-create-home", "--groups", GROUP, "lbdr-tester"], check=True)
    yield pwd.getpwnam("lbdr-tester")
    subprocess.run(["userdel", "lbdr-tester"], check=True)
    subprocess.run(["groupdel", GROUP], check=True)


@pytest.fixture(scope="module")
def gid(member: pwd.struct_passwd) -> int:
    """The number of the group lbdr."""
    assert member
    return grp.getgrnam(GROUP).gr_gid


@pytest.fixture(scope="module")
def daemon(lab: Lab, gid: int) -> Iterator[Daemon]:
    """Running, with the group lbdr there."""
    assert gid
    with Daemon(lab) as built:
        built.configure({"WEB": WEB, "SIX": SIX}, drift_check="200ms")
        built.start()
        yield built


def test_without_the_group_the_socket_is_for_root_alone(lab: Lab) -> None:
    """First in this module: the group is made after it."""
    in_guest_only()
    if any(entry.gr_name == GROUP for entry in grp.getgrall()):
        subprocess.run(["groupdel", GROUP], check=True)
    with Daemon(lab, "peer") as alone:
        alone.configure({"WEB": {**WEB, "address": "10.77.0.60"}})
        alone.start()
        found = alone.paths.socket.stat()
        assert (found.st_uid, found.st_gid) == (0, 0)
        assert stat.S_IMODE(found.st_mode) == 0o600
        assert alone.lines("WARNING", NO_GROUP)
        with as_user(NOBODY, NOBODY), pytest.raises(PrivilegeError):
            alone.status()


# --- who may -------------------------------------------------------------------------------------


def test_the_socket_is_for_root_and_the_group(daemon: Daemon, gid: int) -> None:
    found = daemon.paths.socket.stat()
    assert (found.st_uid, found.st_gid) == (0, gid)
    assert stat.S_IMODE(found.st_mode) == 0o660
    directory = daemon.paths.run.stat()
    assert (directory.st_uid, directory.st_gid) == (0, gid)
    assert stat.S_IMODE(directory.st_mode) == 0o750
    assert daemon.lines(NO_GROUP) == []


def test_a_member_of_the_group_is_served(daemon: Daemon, member: pwd.struct_passwd) -> None:
    """As after a login: his own group, with lbdr among the others. And the command for a person."""
    assert os.environ.get("LBDR_GUEST") == "1", "the clone is opened to others in a guest only"
    for directory in LBDR.parents:  # it may be root's own
        directory.chmod(directory.stat().st_mode | 0o011)
    place = f"--run-dir={daemon.paths.run}"
    user = [f"--reuid={member.pw_uid}", f"--regid={member.pw_gid}", "--init-groups"]
    shown = subprocess.run(
        ["setpriv", *user, str(LBDR), "status", place],
        env={**os.environ, "COLUMNS": "120"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert shown.returncode == 0, shown.stderr
    for words in ("WEB", f"{VIP}:80", f"[{VIP6}]:80", "web1", "10.77.0.21:80", "online", "active"):
        assert words in shown.stdout


def test_a_process_with_the_group_is_served(daemon: Daemon, gid: int) -> None:
    """Its user is in no group's list: a service with Group= or SupplementaryGroups=lbdr."""
    with as_user(NOBODY, gid):
        assert daemon.status().director == "lab"
    with as_user(NOBODY, NOBODY, [gid]):
        assert daemon.status().director == "lab"


def test_others_are_refused(daemon: Daemon) -> None:
    with as_user(NOBODY, NOBODY), pytest.raises(PrivilegeError, match="permission denied"):
        daemon.status()


def test_others_are_refused_even_where_the_file_would_let_them(daemon: Daemon) -> None:
    """The kernel's word on who connects counts, not the file's mode alone."""
    paths, mark = daemon.paths, daemon.mark()
    paths.run.chmod(0o755)
    paths.socket.chmod(0o666)
    try:
        with as_user(NOBODY, NOBODY), pytest.raises(LbdrError, match="group lbdr"):
            daemon.status()
    finally:
        paths.socket.chmod(0o660)
        paths.run.chmod(0o750)
    assert daemon.lines(f"refused uid {NOBODY}", since=mark)


# --- what it withstands --------------------------------------------------------------------------


def connect(daemon: Daemon) -> socket.socket:
    """A connection; it waits, as the command does, until the daemon has room for it."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(str(daemon.paths.socket))
    except OSError:
        connection.close()
        raise
    connection.settimeout(10)
    return connection


def say(connection: socket.socket, request: bytes) -> dict[str, object]:
    """Send a line; the answer to it."""
    connection.sendall(request)
    answer = b""
    while not answer.endswith(b"\n"):
        part = connection.recv(1 << 16)
        assert part, "closed without an answer"
        answer += part
    decoded: dict[str, object] = json.loads(answer)
    return decoded


def line(request: dict[str, object], version: int | None = VERSION) -> bytes:
    """A request as it is sent."""
    return json.dumps({"version": version, "request": request}).encode() + b"\n"


def weight(server: str, value: int) -> bytes:
    """A line that asks for a weight."""
    return line({"command": "weight", "real_server": server, "weight": value})


@pytest.mark.parametrize(
    ("sent", "word"),
    [
        pytest.param(b"\n", "no JSON", id="empty"),
        pytest.param(b"\x00\xff\xfe\x80garbage\n", "no JSON", id="binary"),
        pytest.param(b"GET / HTTP/1.1\r\n", "no JSON", id="HTTP"),
        pytest.param(b"[1, 2]\n", "no JSON object", id="list"),
        pytest.param(b"7\n", "no JSON object", id="number"),
        pytest.param(b"[" * 30000 + b"\n", "no JSON", id="deep"),
        pytest.param(line({"command": "status"}, 99), f"this daemon {VERSION}", id="version"),
        pytest.param(line({"command": "status"}, None), f"this daemon {VERSION}", id="no version"),
        pytest.param(line({}), "not understood", id="no command"),
        pytest.param(line({"command": "explode"}), "not understood", id="unknown command"),
        pytest.param(line({"command": "status", "a": 1}), "not understood", id="unknown key"),
        pytest.param(weight("web1", 65536), "not understood", id="bad weight"),
        pytest.param(weight("nobody", 1), "there is no real server nobody", id="bad name"),
    ],
)
def test_a_line_that_is_no_request_is_answered_and_the_next_one_served(
    daemon: Daemon, sent: bytes, word: str
) -> None:
    before = daemon.ipvs_text()
    mark = daemon.mark()
    with connect(daemon) as connection:
        failure = say(connection, sent)["failure"]
        assert isinstance(failure, dict)
        assert word in failure["message"]
        assert failure["exit_code"] == ControlError.exit_code
        assert "result" in say(connection, line({"command": "status"}))
    assert daemon.ipvs_text() == before
    assert daemon.lines("Traceback", since=mark) == []


def test_a_huge_line_is_not_kept(daemon: Daemon) -> None:
    mark = daemon.mark()
    with connect(daemon) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(b"x" * (16 << 20))
            connection.sendall(b"\n")
        with contextlib.suppress(ConnectionResetError):
            assert b'"result"' not in connection.recv(1 << 16)
    assert daemon.status().director == "lab"
    assert rss(daemon) < 100
    assert daemon.lines("Traceback", since=mark) == []


def rss(daemon: Daemon) -> float:
    """The daemon's memory in MiB."""
    with open(f"/proc/{daemon.running.pid}/statm") as file:  # noqa: PTH123
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") / (1 << 20)


def test_half_lines_and_idle_connections_are_no_obstacle(daemon: Daemon) -> None:
    mark = daemon.mark()
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(connect(daemon)) for _ in range(300)]
        for number, connection in enumerate(idle):
            if number % 2:
                with contextlib.suppress(BrokenPipeError):  # of so many, old ones are closed
                    connection.sendall(b'{"version": 1, "requ')
        begin = time.monotonic()
        assert daemon.status().director == "lab"
        assert time.monotonic() - begin < 5
        daemon.ask(WeightRequest(real_server="web1", weight=9))
        daemon.ask(WeightRequest(real_server="web1"))
        # the rest of a line, late, is the rest of that line
        rest = b'est": {"command": "status"}}\n'
        assert "result" in say(idle[-1], rest)
    assert daemon.status().director == "lab"
    assert daemon.lines("Traceback", since=mark) == []


def test_more_connections_than_descriptors_do_not_blind_it(daemon: Daemon) -> None:
    """One client that leaks connections must not keep it from its work, nor flood the journal."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, hard))
    mark = daemon.mark()
    try:
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(TimeoutError):  # it need not accept them all
                for _ in range(1200):  # more than the 1024 that it may have
                    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                    stack.enter_context(connection).setblocking(False)
                    place = str(daemon.paths.socket)
                    soon(lambda: connection.connect_ex(place) == 0, "room", timeout=2)  # noqa: B023
            daemon.ipvsadm(f"-d -t {VIP}:80 -r 10.77.0.21")
            soon(lambda: daemon.lines("put back", "10.77.0.21", since=mark), "drift is put back")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    soon(lambda: daemon.status().problems == [], "all is well again")
    assert daemon.lines("Traceback", since=mark) == []
    assert daemon.mark() - mark < 50


def test_a_client_that_goes_without_its_answer(daemon: Daemon) -> None:
    mark = daemon.mark()
    for _ in range(20):
        with connect(daemon) as connection:
            connection.sendall(line({"command": "status"}))
    assert daemon.status().director == "lab"
    assert daemon.lines("Traceback", since=mark) == []
    assert daemon.lines("ERROR", since=mark) == []
