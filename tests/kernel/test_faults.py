"""Refusals and faults: one clear message with a remedy, the documented exit code, nothing lost."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import astuple
from pathlib import Path
from unittest import mock

import pytest
from netlab import INTERFACE, Lab

from lbdr import reconcile
from lbdr.datapath import kernel
from lbdr.plan import Plan, make_plan
from tests.directors import Director, Result, ip, run

CONFIG = """\
real_servers:
  a: {address: 10.77.0.21}
  b: {address: 10.77.0.22}
  a6: {address: "fd77::21"}
virtual_services:
  WEB: {address: 10.77.0.10, ports: [80], real_servers: [a, b]}
  OTHER: {address: 10.77.0.11, ports: [80], real_servers: [a]}
  WEB6: {address: "fd77::10", ports: [80], real_servers: [a6]}
"""
RULES = [
    "-A -t 10.77.0.10:80 -s wlc",
    "-A -t 10.77.0.11:80 -s wlc",
    "-A -t [fd77::10]:80 -s wlc",
    "-a -t 10.77.0.10:80 -r 10.77.0.21:80 -g -w 1",
    "-a -t 10.77.0.10:80 -r 10.77.0.22:80 -g -w 1",
    "-a -t 10.77.0.11:80 -r 10.77.0.21:80 -g -w 1",
    "-a -t [fd77::10]:80 -r [fd77::21]:80 -g -w 1",
]
OWN_ADDRESSES = ["10.77.0.1/24", "fd77::1/64"]
VIPS = ["10.77.0.10/32", "10.77.0.11/32", "fd77::10/128"]
FOREIGN = ["-A -t 10.77.0.10:8080 -s rr", "-a -t 10.77.0.10:8080 -r 10.77.0.21:80 -m -w 1"]
NOBODY = 65534


def assert_refused(result: Result, exit_code: int, message: str, remedy: str) -> None:
    """One message, with its remedy as the hint, and the exit code."""
    assert result.exit_code == exit_code, result
    assert result.stderr.count("error: ") == 1
    assert message in result.stderr
    assert "\n  hint: " in result.stderr
    assert remedy in result.stderr.split("\n  hint: ")[-1]
    assert "Traceback" not in result.stderr


@pytest.fixture
def public(director: Director) -> Iterator[Director]:
    """A director whose files lie where every user can look; only root can write."""
    del director  # its namespace is used
    with tempfile.TemporaryDirectory(prefix="lbdr-public-") as directory:
        Path(directory).chmod(0o755)
        yield Director(Path(directory))


def as_nobody(director: Director, *commands: str) -> list[Result]:
    """What commands give a user without any right, in one child."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            results = [director.lbdr(*command.split()) for command in commands]
            os.write(writing, json.dumps([astuple(result) for result in results]).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as answer:  # noqa: PTH123  # a descriptor, not a path
        data = answer.read()
    os.waitpid(child, 0)
    return [Result(*fields) for fields in json.loads(data)]


# --- not root ------------------------------------------------------------------------------------


def test_without_root_before_anything_was_applied(public: Director) -> None:
    public.configure(CONFIG)
    before = public.snapshot()
    for result in as_nobody(public, "plan", "apply", "withdraw", "status"):
        assert_refused(result, 4, "", "run as root")
    assert public.snapshot() == before
    assert not public.paths.state.exists()
    assert [result.exit_code for result in as_nobody(public, "check", "check --host")] == [0, 0]


def test_without_root_on_a_director_that_works(public: Director) -> None:
    public.configure(CONFIG)
    assert public.apply().clean
    before = public.snapshot()
    for result in as_nobody(public, "plan", "apply", "withdraw", "status"):
        assert_refused(result, 4, "", "run as root")
    assert public.snapshot() == before


def test_without_root_and_with_directories_of_ones_own(public: Director) -> None:
    """Where no file stands in the way, the kernel does."""
    public.configure(CONFIG)
    for directory in (public.paths.run, public.paths.state):
        directory.mkdir()
        os.chown(directory, NOBODY, NOBODY)
    before = public.snapshot()
    for result in as_nobody(public, "plan", "apply", "status"):
        assert_refused(result, 4, "not permitted", "run as root")
    assert public.snapshot() == before


# --- VIPs ----------------------------------------------------------------------------------------


def test_vips_in_use_by_another_host(lab: Lab, lab_director: Director) -> None:
    director = lab_director
    director.configure(CONFIG)
    taken = (VIPS[0], VIPS[2])
    lab.ip("web1", *(f"address add {address} dev {INTERFACE}" for address in taken))
    refused = director.lbdr("apply")
    mac = lab["web1"].mac
    assert refused.exit_code == 6
    assert f"10.77.0.10 is in use on eth0: the host with MAC {mac} answers for it" in refused.stderr
    assert f"fd77::10 is in use on eth0: the host with MAC {mac} answers for it" in refused.stderr
    assert "lbdr solve-arp" in refused.stderr
    assert "not tried: ip address add 10.77.0.10/32 dev eth0" in refused.stderr
    assert director.rules() == RULES
    assert director.addresses() == sorted([*OWN_ADDRESSES, "10.77.0.11/32"])
    status = director.status()
    assert {entry.name: entry.vip.owner for entry in status.virtual_services} == {
        "WEB": mac,
        "OTHER": "this director",
        "WEB6": mac,
    }
    lab.ip("web1", *(f"address del {address} dev {INTERFACE}" for address in taken))
    assert director.lbdr("apply").exit_code == 0
    assert director.addresses() == sorted([*OWN_ADDRESSES, *VIPS])


@pytest.mark.parametrize("fault", ["link set eth0 down", "link set cable down"])
def test_an_interface_that_is_down(director: Director, fault: str) -> None:
    director.configure(CONFIG.replace('"fd77::10"', "10.77.0.12").replace("a6]", "a]"))
    ip(fault)
    before = director.snapshot()
    for command in ("plan", "apply"):
        refused = director.lbdr(command)
        assert refused.exit_code == 3
        for line in refused.stderr.splitlines():
            assert "the interface eth0" in line
            assert "is down or has no carrier" in line
            assert line.endswith("(ip link set eth0 up)")
            assert line.startswith(f"{director.paths.config}:")
    assert director.snapshot() == before


# --- half way ------------------------------------------------------------------------------------


@pytest.fixture
def after_planning(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], list[Plan]]:
    """Have something happen after the first plan was made, and before it is applied."""

    def arrange(happens: Callable[[], None]) -> list[Plan]:
        plans: list[Plan] = []

        def planning(*arguments: object, **options: object) -> Plan:
            plans.append(make_plan(*arguments, **options))  # type: ignore[arg-type]
            if len(plans) == 1:
                happens()
            return plans[-1]

        monkeypatch.setattr(reconcile, "make_plan", planning)
        return plans

    return arrange


Arrange = Callable[[Callable[[], None]], list[Plan]]


def test_a_service_that_vanishes_half_way(director: Director, after_planning: Arrange) -> None:
    director.configure(CONFIG)
    director.apply()
    director.configure(CONFIG.replace("[a, b]", "[{server: a, weight: 5}, b]"))
    plans = after_planning(lambda: director.ipvsadm("-D -t 10.77.0.10:80"))
    done = director.lbdr("apply")
    assert (done.exit_code, done.stderr) == (0, "")
    assert len(plans) > 2
    assert director.rules() == sorted({*RULES} - {RULES[3]} | {RULES[3].replace("-w 1", "-w 5")})
    assert director.commands() == []


def test_a_real_server_that_vanishes_half_way(director: Director, after_planning: Arrange) -> None:
    director.configure(CONFIG)
    director.apply()
    director.configure(CONFIG.replace("[a, b]", "[{server: a, weight: 5}, b]"))
    after_planning(lambda: director.ipvsadm("-d -t 10.77.0.10:80 -r 10.77.0.21:80"))
    done = director.lbdr("apply")
    assert (done.exit_code, done.stderr) == (0, "")
    assert RULES[3].replace("-w 1", "-w 5") in director.rules()


def test_what_appears_half_way_as_wanted_is_no_error(
    director: Director, after_planning: Arrange
) -> None:
    director.configure(CONFIG)
    after_planning(lambda: director.ipvsadm(RULES[0], *RULES[3:5]))
    assert director.lbdr("apply").exit_code == 0
    assert director.rules() == RULES
    director.withdraw()
    assert director.rules() == []


def test_what_others_add_half_way_is_theirs(director: Director, after_planning: Arrange) -> None:
    theirs = ["-A -t 10.77.0.10:80 -s rr -p 77", "-a -t 10.77.0.10:80 -r 10.77.0.77:80 -m -w 9"]
    director.configure(CONFIG)
    after_planning(lambda: director.ipvsadm(*theirs))
    refused = director.lbdr("apply")
    assert refused.exit_code == 7
    assert "virtual service WEB (tcp 10.77.0.10:80) exists in IPVS" in refused.stderr
    ours = [line for line in RULES if " 10.77.0.10:80 " not in line]
    assert director.rules() == sorted([*theirs, *ours])
    director.withdraw()
    assert director.rules() == theirs


def test_an_interface_that_vanishes_half_way(director: Director, after_planning: Arrange) -> None:
    director.configure(CONFIG)
    after_planning(lambda: ip("link delete eth0"))
    refused = director.lbdr("apply")
    assert_refused(refused, 5, "No such device (ENODEV)", "is tried again")
    assert "this machine has no interface eth0" in refused.stderr
    assert "not tried: ip address add 10.77.0.10/32 dev eth0" in refused.stderr
    assert director.rules() == RULES
    director.withdraw()
    assert director.rules() == []


def test_a_scheduler_that_this_kernel_lacks(director: Director) -> None:
    """What was applied stays and is told; the state is kept; the rest is done when it can be."""
    director.configure(CONFIG.replace("WEB: {", "WEB: {scheduler: twos, "))
    refused = director.lbdr("apply")
    assert refused.exit_code == 5
    assert "ipvsadm -A -t 10.77.0.10:80 -s twos: No such file or directory" in refused.stderr
    assert "this kernel has no scheduler twos: modprobe ip_vs_twos" in refused.stderr
    not_tried = "not tried: ipvsadm -a -t 10.77.0.10:80 -r 10.77.0.21:80 -g -w 1"
    assert not_tried in refused.stderr
    others = [line for line in RULES if " 10.77.0.10:80 " not in line]
    assert director.rules() == others
    applied = [line for line in refused.stderr.splitlines() if line.startswith("ipvsadm ")]
    assert sorted(line.removeprefix("ipvsadm ") for line in applied) == others
    director.configure(CONFIG)
    assert director.lbdr("apply").exit_code == 0
    assert director.rules() == RULES
    director.withdraw()
    assert director.rules() == []


def test_a_change_to_a_scheduler_that_this_kernel_lacks(director: Director) -> None:
    director.configure(CONFIG)
    director.apply()
    director.configure(CONFIG.replace("WEB: {", "WEB: {scheduler: twos, "))
    begun = time.monotonic()
    refused = director.lbdr("apply")
    assert refused.exit_code == 5
    assert "this kernel has no scheduler twos: modprobe ip_vs_twos" in refused.stderr
    assert refused.stderr.count("-s twos") == 1
    assert director.rules() == RULES
    assert time.monotonic() - begun < 1, "tried again, although a scheduler does not appear"


def test_ipv6_disabled_on_the_interface(director: Director) -> None:
    Path("/proc/sys/net/ipv6/conf/eth0/disable_ipv6").write_text("1")
    ip("address add fd78::1/64 dev cable nodad")
    director.configure(
        CONFIG.replace("fd77::21", "fd78::21").replace("WEB6: {", "WEB6: {interface: eth0, ")
    )
    refused = director.lbdr("apply")
    assert refused.exit_code == 5
    assert "ip address add fd77::10/128 dev eth0" in refused.stderr
    assert "sysctl -w net.ipv6.conf.eth0.disable_ipv6=0" in refused.stderr
    assert director.rules() == [line.replace("fd77::21", "fd78::21") for line in RULES]
    assert director.addresses() == sorted([OWN_ADDRESSES[0], *VIPS[:2]])
    Path("/proc/sys/net/ipv6/conf/eth0/disable_ipv6").write_text("0")
    assert director.lbdr("apply").exit_code == 0
    assert "fd77::10/128" in director.addresses()


# --- the state directory -------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(directory: Path) -> Iterator[Callable[[], None]]:
    """A file system of its own at a directory; what is yielded fills it."""
    directory.mkdir(parents=True, exist_ok=True)
    run("mount", "-t", "tmpfs", "-o", "size=64k,mode=0700", "lbdr-small", str(directory))

    def fill() -> None:
        with (directory / "ballast").open("wb", buffering=0) as ballast, suppress(OSError):
            while True:
                ballast.write(bytes(4096))

    try:
        yield fill
    finally:
        run("umount", str(directory))


def test_a_full_disk_before_the_first_apply(director: Director) -> None:
    director.configure(CONFIG)
    before = director.snapshot()
    with small_disk(director.paths.state) as fill:
        fill()
        assert_refused(
            director.lbdr("apply"), 8, "cannot be written: No space left on device", "make room"
        )
        assert director.snapshot() == before
        assert sorted(path.name for path in director.paths.state.iterdir()) == ["ballast"]
        (director.paths.state / "ballast").unlink()
        assert director.lbdr("apply").exit_code == 0
        assert director.rules() == RULES


def test_a_full_disk_before_a_change(director: Director) -> None:
    director.configure(CONFIG)
    with small_disk(director.paths.state) as fill:
        director.apply()
        before = director.snapshot()
        fill()
        director.configure(CONFIG.replace("ports: [80]", "ports: [81]"))
        assert_refused(director.lbdr("apply"), 8, "No space left on device", "make room")
        assert director.snapshot() == before
        director.configure(CONFIG)
        assert director.commands() == []  # the old state is still there
        (director.paths.state / "ballast").unlink()
        assert director.withdraw().clean
    assert director.rules() == []


def test_withdrawing_on_a_full_disk(director: Director) -> None:
    """Taking away needs no promise beforehand: it is done, told, and done again without harm."""
    director.configure(CONFIG)
    before = director.snapshot()
    with small_disk(director.paths.state) as fill:
        director.apply()
        fill()
        refused = director.lbdr("withdraw")
        assert refused.exit_code == 8
        assert "cannot be written: No space left on device" in refused.stderr
        assert "make room" in refused.stderr
        assert "ipvsadm -D -t 10.77.0.10:80\n" in refused.stderr
        assert director.snapshot() == before
        director.ipvsadm(*FOREIGN)
        (director.paths.state / "ballast").unlink()
        assert director.lbdr("withdraw").exit_code == 0
        assert director.rules() == sorted(FOREIGN)
        assert director.lbdr("apply").exit_code == 0
        director.withdraw()
        assert director.rules() == sorted(FOREIGN)


def test_a_read_only_state_directory(director: Director) -> None:
    director.configure(CONFIG)
    before = director.snapshot()
    with small_disk(director.paths.state):
        run("mount", "-o", "remount,ro", str(director.paths.state))
        assert_refused(director.lbdr("apply"), 8, "Read-only file system", "--state-dir")
        assert director.snapshot() == before


def test_a_full_disk_under_the_run_directory(director: Director) -> None:
    director.configure(CONFIG)
    before = director.snapshot()
    with small_disk(director.paths.run) as fill:
        fill()
        assert_refused(director.lbdr("apply"), 8, "No space left on device", "--run-dir")
        assert director.snapshot() == before


CORRUPT = {
    "empty": b"",
    "cut off": b'{"version": 1, "services": [{"protocol": "tcp"',
    "not text": bytes(range(256)),
    "a newer version": b'{"version": 2}',
    "not ours": b'{"name": "something else"}',
    "a bad value": b'{"version": 1, "services": [{"protocol": "tcp", "address": "x", "port": 80}]}',
}


def test_a_corrupt_state_file_that_has_a_predecessor(director: Director) -> None:
    director.configure(CONFIG)
    director.apply()
    director.configure(CONFIG.replace("  OTHER:", "  MORE:").replace("10.77.0.11", "10.77.0.12"))
    director.apply()
    before = director.snapshot()
    state = director.paths.state / "state.json"
    good = state.read_bytes()
    for name, content in CORRUPT.items():
        state.write_bytes(content)
        plan = director.lbdr("plan", "--exit-code")
        assert (plan.exit_code, plan.stdout) == (0, ""), name
    assert director.snapshot() == before
    done = director.lbdr("apply")
    assert (done.exit_code, done.stdout) == (0, "")
    assert json.loads(state.read_bytes())["services"] == json.loads(good)["services"]
    director.withdraw()
    assert director.rules() == []


def test_a_corrupt_state_file_without_a_predecessor(director: Director) -> None:
    director.configure(CONFIG)
    director.apply()
    before = director.snapshot()
    state = director.paths.state / "state.json"
    (director.paths.state / "state.json.previous").unlink(missing_ok=True)
    for content in CORRUPT.values():
        state.write_bytes(content)
        for command in ("plan", "apply", "withdraw", "status"):
            result = director.lbdr(command)
            assert_refused(result, 8, f"the state file cannot be read: {state}: ", "move it away")
            assert "nothing was changed" in result.stderr
        assert state.read_bytes() == content
    assert director.snapshot() == before
    state.rename(state.with_suffix(".broken"))
    assert director.lbdr("plan", "--exit-code").exit_code == 0
    assert director.lbdr("apply").exit_code == 0
    director.withdraw()
    assert director.rules() == []


def test_a_state_file_that_is_a_directory(director: Director) -> None:
    director.configure(CONFIG)
    before = director.snapshot()
    (director.paths.state / "state.json").mkdir(parents=True)
    assert_refused(director.lbdr("apply"), 8, "Is a directory", "move it away")
    assert director.snapshot() == before


# --- the control socket --------------------------------------------------------------------------


def test_what_is_no_daemons_socket_is_no_obstacle(director: Director) -> None:
    director.configure(CONFIG)
    director.paths.run.mkdir(parents=True)
    path = director.paths.socket
    path.write_text("not a socket")
    assert director.lbdr("apply").exit_code == 0
    assert director.lbdr("status", "--exit-code").exit_code == 0
    path.unlink()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    assert director.lbdr("plan", "--exit-code").exit_code == 0
    assert_refused(director.lbdr("role"), 9, f"no daemon answers on {path}", "lbdr daemon")
    assert director.lbdr("withdraw").exit_code == 0
    assert director.rules() == []


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"", "closed the connection without an answer"),
        (b"220 smtp ready\n", "is not understood"),
        (b'{"version": 99}\n', "is not understood"),
    ],
)
def test_a_stranger_on_the_socket(director: Director, answer: bytes, message: str) -> None:
    director.configure(CONFIG)
    before = director.snapshot()
    director.paths.run.mkdir(parents=True)
    with stranger(director.paths.socket, answer):
        for command in ("status", "withdraw", "role", "reload"):
            refused = director.lbdr(command)
            assert_refused(refused, 9, message, "")
    assert director.snapshot() == before


@contextlib.contextmanager
def stranger(path: Path, answer: bytes) -> Iterator[None]:
    """Someone who accepts, reads a line, says something and hangs up."""

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, suppress(OSError):
                connection.settimeout(5)
                if connection.recv(4096):
                    connection.sendall(answer)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)


def test_a_run_directory_with_a_name_too_long_for_a_socket(director: Director) -> None:
    director.configure(CONFIG)
    longer = Director(director.paths.config.parent / ("long" * 30))
    longer.configure(CONFIG)
    assert longer.lbdr("apply").exit_code == 0
    refused = longer.lbdr("role")
    assert refused.exit_code == 9
    assert "None" not in refused.stderr
    assert "too long" in refused.stderr
    longer.withdraw()


# --- kill -9 -------------------------------------------------------------------------------------

KILLS = 10
SERVICES = 15


def many_services() -> str:
    lines = ["real_servers:", "  a: {address: 10.77.0.21}", "  b: {address: 10.77.0.22}"]
    lines += ["virtual_services:"]
    for number in range(SERVICES):
        vip = f"10.77.0.{30 + number % 10}"
        lines.append(
            f"  S{number}: {{address: {vip}, ports: [{1000 + number}], real_servers: [a, b]}}"
        )
    return "\n".join(lines) + "\n"


def test_killed_at_any_moment(director: Director, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next apply reaches the goal, and a withdrawal leaves nothing of lbdr's."""
    monkeypatch.setattr(kernel, "BATCH", 2)  # so that there are many moments between
    director.ipvsadm(*FOREIGN)
    director.configure(many_services())
    before = director.snapshot()
    begun = time.monotonic()
    director.apply()
    lasts = time.monotonic() - begun
    goal_rules, goal_addresses = director.rules(), director.addresses()
    director.withdraw()
    assert director.snapshot() == before
    killed = 0
    for attempt in range(KILLS):
        delay = random.uniform(0, lasts)  # noqa: S311  # no secret
        killed += kill_apply_after(director, delay)
        where = f"kill {attempt} after {delay:.3f} s"
        if attempt % 2:
            assert director.apply().clean, where
            assert director.rules() == goal_rules, where
            assert director.addresses() == goal_addresses, where
        assert director.withdraw().clean, where
        assert director.snapshot() == before, where
        names = {path.name for path in director.paths.state.iterdir()}
        assert names <= {"state.json", "state.json.previous"}, where
    assert killed > KILLS // 2


@pytest.mark.parametrize("writes", [1, 2])
def test_killed_while_the_state_is_written(director: Director, writes: int) -> None:
    """Half a file is never read, and never stays; writes: of the file, and of its directory."""
    director.configure(CONFIG)
    before = director.snapshot()
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            killed_at_fsync(director, writes)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert director.snapshot() == before
    assert director.apply().clean
    assert director.rules() == RULES
    names = {path.name for path in director.paths.state.iterdir()}
    assert names <= {"state.json", "state.json.previous"}
    assert director.withdraw().clean
    assert director.snapshot() == before


def killed_at_fsync(director: Director, number: int) -> None:
    """Apply, and die at the fsync of that number; in a child."""
    calls = itertools.count(1)

    def fsync(_descriptor: object) -> None:
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    with mock.patch.object(os, "fsync", fsync):
        director.apply()


def kill_apply_after(director: Director, delay: float) -> bool:
    """Whether a child that applies was still at it, and so was killed."""
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            director.apply()
        os._exit(0)
    time.sleep(delay)  # the moment is the subject: nothing waits for anything here
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)
