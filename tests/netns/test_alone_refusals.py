"""Without IPVS in the kernel: what needs it is refused before anything is changed, and said."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
from netlab import Lab

from lbdr.control.client import RemoteError
from lbdr.control.protocol import FastPathRequest, ReloadRequest
from lbdr.errors import ConfigError, ControlError, KernelError, PrivilegeError
from tests.alone import HASHED, alone_lab, configure, service
from tests.kernel.daemons import LBDR, VIP, WEB, Daemon
from tests.kernel.open_connections import Connections

LEAST = {**WEB, "scheduler": "wlc", "persistence": "5m"}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with alone_lab() as built:
        yield built


@pytest.fixture
def daemon(lab: Lab) -> Iterator[Daemon]:
    """Not started yet."""
    with Daemon(lab) as made:
        yield made
        made.lab.run("director", [str(LBDR), "withdraw", *made.places], check=False)


def place(daemon: Daemon, word: str) -> str:
    """Where a value of a key stands in the file, as problems name it."""
    for number, line in enumerate(daemon.paths.config.read_text().splitlines(), start=1):
        if line.strip().startswith(f"{word}: "):
            return f"{daemon.paths.config}:{number}:{line.index(word) + len(word) + 3}: "
    raise AssertionError(word)


def changed(daemon: Daemon) -> bool:
    """Whether anything of lbdr's is on the host."""
    return f"{VIP}/32" in daemon.addresses() or bool(list(daemon.paths.bpf.glob("*/v*")))


@pytest.mark.parametrize("command", ["plan", "apply", "daemon", "check"])
def test_what_needs_ipvs(lab: Lab, daemon: Daemon, command: str) -> None:
    configure(daemon, {"LEAST": LEAST})
    places = [f"--config={daemon.paths.config}", "--host"] if command == "check" else daemon.places
    done = lab.run("director", [str(LBDR), command, *places], check=False)
    assert done.returncode == ConfigError.exit_code
    lines = [line for line in done.stderr.splitlines() if " WARNING " not in line]
    assert lines[0].startswith(place(daemon, "scheduler") + "scheduler wlc needs IPVS")
    assert lines[1].startswith(place(daemon, "persistence") + "persistence needs IPVS")
    assert len(lines) == 2
    assert not changed(daemon)


def test_a_file_that_needs_ipvs_is_not_reloaded(lab: Lab, daemon: Daemon) -> None:
    configure(daemon, {"WEB": HASHED})
    daemon.start()
    configure(daemon, {"WEB": HASHED, "LEAST": {**LEAST, "ports": [8080]}})
    with pytest.raises(RemoteError, match="scheduler wlc needs IPVS") as refused:
        daemon.ask(ReloadRequest())
    assert refused.value.exit_code == ConfigError.exit_code
    assert str(refused.value).startswith(str(daemon.paths.config))
    with Connections(lab, VIP, 80, 20) as open_:
        assert not open_.wrong()


def test_nothing_can_be_left_to_ipvs(lab: Lab, daemon: Daemon) -> None:
    configure(daemon, {"WEB": HASHED})
    daemon.start()
    for name in ("WEB", None):
        with pytest.raises(RemoteError, match="this kernel has none") as refused:
            daemon.ask(FastPathRequest(on=False, virtual_service=name))
        assert refused.value.exit_code == ControlError.exit_code
        assert "lbdr role standby" in refused.value.hint
    assert daemon.ask(FastPathRequest(on=True))["forwards"] == ["WEB"]
    with Connections(lab, VIP, 80, 20) as open_:
        assert not open_.wrong()


def test_who_may_not_load_programs(lab: Lab, daemon: Daemon) -> None:
    """Nothing would forward: it does not start, and does not claim the VIP."""
    configure(daemon, {"WEB": HASHED})
    without = ["setpriv", "--bounding-set=-sys_admin,-bpf,-perfmon", "--inh-caps=-all"]
    for command in ("daemon", "apply"):
        words = [*without, str(LBDR), command, *daemon.places]
        done = lab.run("director", words, check=False)
        assert done.returncode == PrivilegeError.exit_code, done.stderr
        assert "this kernel has no IPVS, and XDP and tc cannot be had: " in done.stderr
        assert f"{VIP}/32" not in daemon.addresses()


def test_who_may_not_load_finds_them_loaded(lab: Lab, daemon: Daemon) -> None:
    """As under the systemd unit, whose daemon has these two rights alone."""
    configure(daemon, {"WEB": HASHED})
    loaded = lab.run("director", [str(LBDR), "fastpath", "load", *daemon.places]).stdout
    assert loaded == "programs of the fast path: loaded\n"
    kept = "-all,+net_admin,+net_raw"
    daemon.launch("setpriv", "--no-new-privs", f"--inh-caps={kept}", f"--bounding-set={kept}")
    daemon.wait_ready()
    with Connections(lab, VIP, 80, 20) as open_:
        assert not open_.wrong()
    assert service(daemon).fastpath.packets >= 80
    assert not daemon.status().problems
    assert daemon.stop() == 0


def test_a_machine_without_the_compiler(lab: Lab, daemon: Daemon) -> None:
    configure(daemon, {"WEB": HASHED})
    environment = {**os.environ, "PYTHONPATH": str(_without_bcc(daemon))}
    for command in ("daemon", "apply"):
        words = [str(LBDR), command, *daemon.places]
        done = lab.run("director", words, check=False, env=environment)
        assert done.returncode == KernelError.exit_code, done.stderr
        assert "python3-bpfcc" in done.stderr
        assert f"{VIP}/32" not in daemon.addresses()


def _without_bcc(daemon: Daemon) -> Any:
    """A directory whose bcc cannot be imported."""
    directory = daemon.directory / "modules"
    directory.mkdir()
    (directory / "bcc.py").write_text("raise ImportError('no bcc')\n")
    return directory


def test_doctor_says_who_forwards(lab: Lab, daemon: Daemon) -> None:
    configure(daemon, {"WEB": HASHED})
    words = [str(LBDR), "doctor", "--json", f"--config={daemon.paths.config}"]
    found = json.loads(lab.run("director", words, check=False).stdout)["findings"]
    (ipvs,) = [one for one in found if one["subject"] == "ipvs"]
    assert ipvs["level"] == "warning"
    assert "what it cannot forward is dropped" in ipvs["why"]
    configure(daemon, {"LEAST": LEAST})
    done = lab.run("director", words, check=False)
    assert done.returncode == 1
    faults = [one["what"] for one in json.loads(done.stdout)["findings"] if one["level"] == "fault"]
    assert any(fault.startswith(place(daemon, "scheduler")) for fault in faults)
