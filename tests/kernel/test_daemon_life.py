"""A daemon's life: it starts, is killed, starts again, reloads, stops, and withdraws."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from netlab import INTERFACE, Lab

from lbdr.control.client import RemoteError
from lbdr.control.protocol import ReloadRequest, WithdrawRequest
from lbdr.errors import ControlError
from tests.kernel.daemon_traffic import Load, real_servers, request
from tests.kernel.daemons import LBDR, VIP, WEB, Daemon, soon

WANTED = [
    f"-A -t {VIP}:80 -s wlc",
    f"-a -t {VIP}:80 -r 10.77.0.21:80 -g -w 1",
    f"-a -t {VIP}:80 -r 10.77.0.22:80 -g -w 1",
]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as built, real_servers(built, VIP):
        yield built


@pytest.fixture(scope="module")
def place(lab: Lab) -> Iterator[Daemon]:
    """One place for all daemons of this module: each test leaves the datapath to the next."""
    with Daemon(lab) as daemon:
        daemon.configure({"WEB": WEB})
        yield daemon


@pytest.fixture
def daemon(place: Daemon) -> Daemon:
    """Running, with the usual configuration in force."""
    place.configure({"WEB": WEB})
    if place.process is None or place.process.poll() is not None:
        place.start()
    else:
        place.ask(ReloadRequest())
    return place


def counted(daemon: Daemon) -> int:
    """IPVS's count of the virtual service's connections."""
    (line,) = [line for line in daemon.ipvs("-Ln", "--stats", "--exact") if "TCP" in line]
    return int(line.split()[2])


def test_start_tells_ready_and_gives_signs_of_life(place: Daemon) -> None:
    place.launch(env={"WATCHDOG_USEC": "400000"})
    notices: list[str] = []

    def enough() -> bool:
        notices.extend(place.notices())
        return notices.count("WATCHDOG=1") >= 4 and any("READY=1" in text for text in notices)

    soon(enough, "READY=1 and four signs of life", timeout=40)
    (ready,) = [text for text in notices if "READY=1" in text]
    assert "STATUS=active, 1 virtual services" in ready.splitlines()
    # ready means that it serves
    assert sorted(place.ipvs()) == WANTED
    assert f"{VIP}/32" in place.addresses()
    assert request(place.lab) in ("web1", "web2")


def test_sigterm_leaves_the_datapath(daemon: Daemon) -> None:
    assert daemon.stop() == 0
    assert "STOPPING=1" in daemon.notices()
    assert not daemon.paths.socket.exists()
    assert sorted(daemon.ipvs()) == WANTED
    assert f"{VIP}/32" in daemon.addresses()
    assert request(daemon.lab) in ("web1", "web2")


def test_killed_under_load_no_request_fails_and_the_next_one_adopts(daemon: Daemon) -> None:
    """The socket and the lock that the dead one leaves are no obstacle."""
    before = daemon.ipvs()
    with Load(daemon.lab) as load:
        load.more(20)
        connections = counted(daemon)
        daemon.kill()
        load.more(20)
        assert daemon.paths.socket.is_socket()
        assert f"pid {daemon.running.pid}" in daemon.paths.lock.read_text()
        daemon.start()
        load.more(20)
    assert load.failures == []
    assert set(load.answers) == {"web1", "web2"}
    assert daemon.lines("applied:") == []
    assert daemon.ipvs() == before
    # since the entry was made: it was not made anew; the kernel sums up every 2 s
    soon(lambda: counted(daemon) >= connections + 40, "all are counted")
    assert daemon.status().daemon == daemon.running.pid


def test_killed_while_it_applies_the_next_one_finishes(place: Daemon) -> None:
    """What was added before the end is known to be lbdr's: a withdrawal deletes it."""
    if place.process is not None and place.process.poll() is None:
        place.stop()
    services = {f"S{port}": {**WEB, "ports": [port]} for port in range(1000, 1200)}
    place.configure({"WEB": WEB, **services})
    place.launch()
    soon(lambda: place.real_servers() > 2, "the first services", timeout=40)
    place.kill()
    assert 2 < place.real_servers() <= 402
    place.start()
    assert len(place.ipvs()) == 3 * 201
    place.configure({"WEB": WEB})
    place.ask(ReloadRequest())
    assert sorted(place.ipvs()) == WANTED


def test_reload_applies_a_good_file(daemon: Daemon) -> None:
    more = {**WEB, "ports": [8080]}
    daemon.configure({"WEB": WEB, "MORE": more})
    done = daemon.ask(ReloadRequest())
    assert done["virtual_services"] == 2
    assert done["operations"][0] == f"ipvsadm -A -t {VIP}:8080 -s wlc"
    assert f"-A -t {VIP}:8080 -s wlc" in daemon.ipvs()


def test_sighup_reloads(daemon: Daemon) -> None:
    daemon.configure({"WEB": {**WEB, "scheduler": "rr"}})
    daemon.running.send_signal(signal.SIGHUP)
    soon(lambda: f"-A -t {VIP}:80 -s rr" in daemon.ipvs(), "the new scheduler")
    assert daemon.problems() == ""


def test_reload_of_a_bad_file_changes_nothing(daemon: Daemon) -> None:
    before = daemon.ipvs()
    good = daemon.paths.config.read_text()
    daemon.paths.config.write_text(good.replace("ports:", "prots:"))
    number = next(n for n, line in enumerate(good.splitlines(), start=1) if "ports:" in line)
    place = f"{daemon.paths.config}:{number}:"
    with pytest.raises(RemoteError) as refused:
        daemon.ask(ReloadRequest())
    assert refused.value.exit_code == 3
    assert place in refused.value.message
    assert "ports" in refused.value.message
    assert daemon.ipvs() == before
    assert f"{VIP}/32" in daemon.addresses()

    mark = daemon.mark()
    daemon.running.send_signal(signal.SIGHUP)
    soon(lambda: daemon.lines(place, since=mark), "the error in the log")
    assert daemon.lines("ERROR", "reload refused, nothing changed", since=mark)
    assert place in daemon.problems()
    assert daemon.ipvs() == before
    assert daemon.running.poll() is None

    daemon.paths.config.write_text(good)
    daemon.running.send_signal(signal.SIGHUP)
    soon(lambda: daemon.problems() == "", "no more problem")


def test_reload_of_a_file_that_this_machine_cannot_do_changes_nothing(daemon: Daemon) -> None:
    before = daemon.ipvs()
    daemon.configure({"WEB": WEB, "FAR": {**WEB, "address": "192.0.2.1"}})
    with pytest.raises(RemoteError) as refused:
        daemon.ask(ReloadRequest())
    assert refused.value.exit_code == 3
    assert f"{daemon.paths.config}:" in refused.value.message
    assert "192.0.2.1" in refused.value.message
    assert daemon.ipvs() == before


def test_reload_of_no_file_changes_nothing(daemon: Daemon) -> None:
    before = daemon.ipvs()
    daemon.paths.config.unlink()
    with pytest.raises(RemoteError) as refused:
        daemon.ask(ReloadRequest())
    assert refused.value.exit_code == 3
    assert str(daemon.paths.config) in refused.value.message
    assert daemon.ipvs() == before


def test_reload_takes_away_what_is_no_longer_configured(daemon: Daemon) -> None:
    daemon.configure({"OTHER": {**WEB, "address": "10.77.0.51"}})
    daemon.ask(ReloadRequest())
    assert f"{VIP}/32" not in daemon.addresses()
    assert "10.77.0.51/32" in daemon.addresses()
    assert [line for line in daemon.ipvs() if f"{VIP}:" in line] == []


def test_another_daemon_on_the_same_run_directory(daemon: Daemon) -> None:
    done = daemon.lab.run("director", [str(LBDR), "daemon", *daemon.places], check=False)
    assert done.returncode == ControlError.exit_code
    assert f"daemon, pid {daemon.running.pid}" in done.stderr
    assert "Traceback" not in done.stderr
    assert daemon.status().daemon == daemon.running.pid


def test_no_configuration_file(daemon: Daemon) -> None:
    missing = daemon.directory / "nothing.yaml"
    done = daemon.lab.run(
        "director",
        [str(LBDR), "daemon", str(missing), *elsewhere(daemon)],
        check=False,
    )
    assert done.returncode == 3
    assert str(missing) in done.stderr
    assert "Traceback" not in done.stderr


def elsewhere(daemon: Daemon) -> list[str]:
    """Options that name other directories."""
    return [f"--run-dir={daemon.directory / 'run2'}", f"--state-dir={daemon.directory / 'state2'}"]


def test_withdraw_takes_all_down_and_ends_the_daemon(daemon: Daemon) -> None:
    """Last in this module: what lbdr found is put back, what others made stays."""
    daemon.ipvsadm("-A -t 10.77.0.99:99 -s rr")
    daemon.lab.ip("director", f"address add 10.77.0.98/32 dev {INTERFACE}")
    operations = daemon.ask(WithdrawRequest())["operations"]
    assert daemon.wait() == 0
    assert operations[0] == f"ip address del {VIP}/32 dev {INTERFACE}"
    assert daemon.ipvs() == ["-A -t 10.77.0.99:99 -s rr"]
    assert f"{VIP}/32" not in daemon.addresses()
    assert "10.77.0.98/32" in daemon.addresses()
    assert daemon.sysctl("net.ipv4.vs.expire_nodest_conn") == "0"
    assert daemon.sysctl("net.ipv4.vs.schedule_icmp") == "0"
    assert not daemon.paths.socket.exists()
    assert "all withdrawn" in daemon.log()
    with pytest.raises(ControlError, match="no daemon answers"):
        daemon.status()
