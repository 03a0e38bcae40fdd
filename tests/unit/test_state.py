"""The state file: it comes back as it was saved, or says why not."""

from __future__ import annotations

import json
import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbdr.desired import SYSCTLS
from lbdr.errors import StateError
from lbdr.model import (
    MarkKey,
    Protocol,
    RealServer,
    Role,
    Service,
    ServiceKey,
    Standing,
    VirtualAddress,
)
from lbdr.operator_states import OperatorState
from lbdr.plan import Ownership
from lbdr.state import State, StateStore

addresses = st.ip_addresses()
states = st.builds(
    State,
    owned=st.builds(
        Ownership,
        services=st.frozensets(
            st.builds(ServiceKey, st.sampled_from(Protocol), addresses, st.integers(0, 65535))
            | st.builds(MarkKey, st.integers(1, 2**32 - 1), st.sampled_from([4, 6])),
            max_size=4,
        ),
        addresses=st.frozensets(
            st.builds(VirtualAddress, addresses, st.sampled_from(["eth0", "br-lan.100"])),
            max_size=3,
        ),
        sysctls=st.dictionaries(st.sampled_from(SYSCTLS), st.text(max_size=9), max_size=2),
    ),
    role=st.none() | st.sampled_from(Role),
    weights=st.dictionaries(
        st.tuples(st.text(max_size=5), st.text(max_size=5)), st.integers(0, 65535), max_size=3
    ),
    operator=st.dictionaries(
        st.tuples(st.text(max_size=5), st.text(max_size=5)),
        st.builds(
            OperatorState,
            st.sampled_from(Standing),
            st.floats(0, 1e10),
            st.none() | st.floats(0, 1e10),
        ),
        max_size=3,
    ),
    table=st.lists(
        st.builds(
            Service,
            st.builds(ServiceKey, st.just(Protocol.TCP), addresses, st.integers(0, 65535)),
            st.just("mh"),
            st.frozensets(st.sampled_from(["mh-port", "mh-fallback"])),
            real_servers=st.lists(
                st.builds(RealServer, addresses, st.integers(0, 65535), st.integers(0, 65535)),
                max_size=3,
            ).map(tuple),
        ),
        max_size=3,
    ).map(tuple),
)
ONE = State(
    owned=Ownership(
        services=frozenset({ServiceKey(Protocol.TCP, ip_address("10.0.0.50"), 80), MarkKey(7, 6)}),
        addresses=frozenset({VirtualAddress(ip_address("fd00::50"), "eth0")}),
        sysctls={"net.ipv4.vs.conntrack": "1"},
    ),
    role=Role.STANDBY,
    weights={("WEB", "rs1"): 0},
    fastpath_off=frozenset({"WEB"}),
    marks={"STORE": 12288},
    operator={("", "rs2"): OperatorState(Standing.DRAIN, 1e9, 2e9)},
)
TWO = replace(ONE, role=Role.ACTIVE)


@pytest.fixture
def store(tmp_path: Path) -> StateStore:
    return StateStore(tmp_path / "lib" / "lbdr")


def names(store: StateStore) -> set[str]:
    return {path.name for path in store.directory.iterdir()}


@settings(max_examples=50, deadline=None)
@given(states)
def test_what_is_saved_is_loaded(tmp_path_factory: pytest.TempPathFactory, state: State) -> None:
    directory = tmp_path_factory.getbasetemp() / "state-round-trip"
    StateStore(directory).save(state)
    assert StateStore(directory).load() == state
    assert {path.name for path in directory.iterdir()} <= {"state.json", "state.json.previous"}


def test_the_file_is_for_people_to_read(store: StateStore) -> None:
    store.save(ONE)
    assert json.loads(store.path.read_bytes()) == {
        "version": 1,
        "kernel": "",
        "services": [
            {"protocol": "tcp", "address": "10.0.0.50", "port": 80},
            {"mark": 7, "version": 6},
        ],
        "addresses": [{"address": "fd00::50", "interface": "eth0"}],
        "sysctls": {"net.ipv4.vs.conntrack": "1"},
        "timeouts": None,
        "role": "standby",
        "weights": [{"virtual_service": "WEB", "real_server": "rs1", "weight": 0}],
        "fastpath_off": ["WEB"],
        "marks": {"STORE": 12288},
        "operator": [
            {
                "virtual_service": "",
                "real_server": "rs2",
                "standing": "drain",
                "since": 1e9,
                "deadline": 2e9,
            }
        ],
        "table": [],
    }


def test_nothing_was_ever_saved(store: StateStore) -> None:
    assert store.load() == State()
    assert not store.directory.exists()


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_only_root_reads_it(store: StateStore, umask: int) -> None:
    before = os.umask(umask)
    try:
        store.save(ONE)
        store.save(TWO)
    finally:
        os.umask(before)
    assert stat.S_IMODE(store.directory.stat().st_mode) == 0o700
    for name in ("state.json", "state.json.previous"):
        assert stat.S_IMODE((store.directory / name).stat().st_mode) == 0o600


def test_the_file_is_on_disk_before_it_has_its_name(
    store: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power cut may leave an empty file under the right name (ext4, delayed allocation)."""
    store.save(ONE)
    steps: list[str] = []
    fsync, rename = os.fsync, os.replace

    def note_fsync(descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        steps.append("directory" if name == "lbdr" else "content")
        fsync(descriptor)

    def note_rename(source: Any, target: Any) -> None:
        steps.append(Path(target).name)
        rename(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_rename)
    store.save(TWO)
    assert steps == ["content", "state.json.previous", "state.json", "directory"]


# --- files that cannot be read --------------------------------------------------------------------


def spoiled(**changes: Any) -> bytes:
    return json.dumps({"version": 1} | changes).encode()


BROKEN = {
    "empty": b"",
    "zeros": bytes(512),  # what a crash leaves on some file systems
    "truncated": b'{"version": 1, "services": [',
    "no JSON": b"\xff\xfe garbage",
    "a list": b"[]",
    "a later version": spoiled(version=2),
    "an unknown key": spoiled(wieghts=[]),
    "an unknown protocol": spoiled(services=[{"protocol": "gre", "address": "::1", "port": 1}]),
    "a port": spoiled(services=[{"protocol": "tcp", "address": "::1", "port": 65536}]),
    "mark 0": spoiled(services=[{"mark": 0, "version": 4}]),
    "an address": spoiled(addresses=[{"address": "10.0.0.256", "interface": "eth0"}]),
    "a role": spoiled(role="leader"),
    "a weight": spoiled(weights=[{"virtual_service": "", "real_server": "", "weight": -1}]),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_file_gives_way_to_the_one_before_it(
    store: StateStore, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    store.save(ONE)
    store.save(TWO)
    store.path.write_bytes(content)
    assert store.load() == ONE
    assert str(store.path) in caplog.text
    # and once there is something newer again, that is what is loaded
    store.save(TWO)
    assert store.load() == TWO


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_file_with_none_before_it_is_an_error(store: StateStore, content: bytes) -> None:
    store.save(ONE)
    store.path.write_bytes(content)
    with pytest.raises(StateError) as caught:
        store.load()
    assert str(store.path) in caught.value.message
    assert "\n" not in caught.value.message
    assert "nothing was changed" in caught.value.hint


def test_both_broken_names_both(store: StateStore) -> None:
    store.save(ONE)
    store.save(TWO)
    previous = store.directory / "state.json.previous"
    store.path.write_bytes(b"{")
    previous.write_bytes(b"}")
    with pytest.raises(StateError) as caught:
        store.load()
    assert f"{store.path}: " in caught.value.message
    assert f"{previous}: " in caught.value.message


@pytest.mark.parametrize("end", range(0, 380, 19))
def test_a_file_cut_anywhere_is_never_taken_for_a_whole_one(store: StateStore, end: int) -> None:
    store.save(ONE)
    content = store.path.read_bytes()
    assert len(content) > 380
    store.path.write_bytes(content[:end])
    with pytest.raises(StateError):
        store.load()


def test_only_the_file_before_it_is_left(store: StateStore) -> None:
    store.save(ONE)
    store.save(TWO)
    store.path.unlink()
    assert store.load() == ONE


def test_a_directory_in_the_way(store: StateStore) -> None:
    store.path.mkdir(parents=True)
    with pytest.raises(StateError, match=r"state\.json: "):
        store.load()


# --- saving that fails ----------------------------------------------------------------------------


@contextmanager
def full_disk() -> Iterator[None]:
    """No file of this process grows beyond a few bytes: writes fail half way, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_old_file(store: StateStore) -> None:
    store.save(ONE)
    with full_disk(), pytest.raises(StateError) as caught:
        store.save(TWO)
    assert str(store.path) in caught.value.message
    assert caught.value.hint
    assert caught.value.exit_code == 8
    assert store.load() == ONE
    assert names(store) == {"state.json"}
    store.save(TWO)
    assert store.load() == TWO


@pytest.mark.parametrize("function", ["fsync", "link", "rename", "replace", "open"])
def test_whatever_fails_one_whole_state_is_left(
    store: StateStore, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    store.save(ONE)
    store.save(TWO)
    with monkeypatch.context() as patch:

        def fail(*_: Any, **__: Any) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr(os, function, fail)
        try:
            store.save(replace(TWO, role=None))
        except StateError as error:
            assert "No space left on device" in error.message  # noqa: PT017
        else:
            assert function == "rename"  # not what it uses
    assert store.load() in (TWO, replace(TWO, role=None))
    assert names(store) == {"state.json", "state.json.previous"}


def test_nothing_is_left_lying_about_after_a_failed_replacement(
    store: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old file was kept and the new one did not come: one file under two names."""
    store.save(ONE)
    store.save(TWO)
    real = os.replace

    def fail(source: Any, target: Any) -> None:
        if Path(target) == store.path:
            raise OSError(5, "Input/output error")
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(StateError):
            store.save(ONE)
    assert store.load() == TWO
    store.save(ONE)
    assert store.load() == ONE
    assert names(store) == {"state.json", "state.json.previous"}


def test_a_file_where_the_directory_should_be(tmp_path: Path) -> None:
    (tmp_path / "lbdr").write_text("")
    store = StateStore(tmp_path / "lbdr")
    with pytest.raises(StateError, match="cannot be written"):
        store.save(ONE)
    with pytest.raises(StateError, match="cannot be read"):
        store.load()


def test_what_was_owned_in_another_boot_is_not_owned_now(tmp_path: Path) -> None:
    """The kernel's entries are gone with it; who makes them anew is somebody else."""
    StateStore(tmp_path, "boot-1 4026531840").save(ONE)
    assert StateStore(tmp_path, "boot-1 4026531840").load() == ONE
    for other in ("boot-2 4026531840", "boot-1 4026531999"):
        state = StateStore(tmp_path, other).load()
        assert state.owned == Ownership()
        assert (state.role, state.weights) == (ONE.role, ONE.weights)


def test_no_sysctl_but_lbdrs_own_is_read(store: StateStore) -> None:
    """A name may be a path: it is written to at a withdrawal."""
    store.save(ONE)
    content = store.path.read_text().replace("net.ipv4.vs.conntrack", "kernel.core_pattern")
    store.path.write_text(content)
    with pytest.raises(StateError, match="no sysctl that lbdr sets"):
        store.load()


def test_a_link_in_the_way_is_not_followed(store: StateStore, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    store.save(ONE)
    for name in (".state.json.new", ".state.json.previous.new"):
        (store.directory / name).symlink_to(victim)
    store.save(TWO)
    assert victim.read_text() == "untouched"
    assert store.load() == TWO
