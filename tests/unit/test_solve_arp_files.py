"""The files of solve-arp: unit, sysctl.d, memory; in a folder of the test's own."""

from __future__ import annotations

import errno
import ipaddress
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbdr.errors import ConfigError, StateError
from lbdr.realserver import persist
from lbdr.realserver.boot import boot_settings
from lbdr.realserver.files import write_atomically
from lbdr.realserver.memory import Memory, MemoryFile, RememberedSysctl, RememberedVip
from lbdr.realserver.persist import EnableUnit, Paths, RemoveFile, WriteFile
from lbdr.realserver.texts import HEADER, Unit, parse_sysctls, parse_unit, quote, sysctl_text

VIP, VIP6 = ipaddress.ip_address("192.168.10.50"), ipaddress.ip_address("2001:db8::50")
UNIT = Unit("/usr/bin/lbdr", vips={VIP: "lo"})
SETTINGS = {"net.ipv4.conf.all.arp_ignore": "1", "net.ipv4.conf.eth0/100.rp_filter": "2"}
MEMORY = Memory(
    vips={VIP: RememberedVip("lo", added=True), VIP6: RememberedVip("dummy0", added=False)},
    sysctls={"net.ipv4.conf.all.arp_ignore": RememberedSysctl("0", "1")},
)


# --- unit and sysctl.d --------------------------------------------------------------------------


@given(
    vips=st.dictionaries(st.ip_addresses(), st.sampled_from(["lo", "dummy0", "vip%1"]), min_size=1),
    environment=st.sampled_from(["", "Environment=PYTHONPATH=/opt/lbdr"]),
)
def test_a_unit_reads_back_as_it_was_written(
    vips: dict[ipaddress.IPv4Address | ipaddress.IPv6Address, str], environment: str
) -> None:
    unit = Unit("/opt/lbdr/bin/lbdr", environment, vips)
    assert parse_unit(unit.text) == unit


def test_the_unit_is_there_before_the_network() -> None:
    lines = UNIT.text.splitlines()
    assert "Before=network-pre.target" in lines
    assert "After=local-fs.target systemd-sysctl.service" in lines
    assert "ExecStart=/usr/bin/lbdr solve-arp --vip 192.168.10.50" in lines
    assert "CapabilityBoundingSet=CAP_NET_ADMIN" in lines


def test_the_unit_waits_for_an_interface_that_the_network_makes() -> None:
    text = Unit("/usr/bin/lbdr", vips={VIP: "lb-vip"}).text
    assert "Before=network-pre.target" not in text
    assert "sys-subsystem-net-devices-lb\\x2dvip.device" in text


def test_words_of_exec_start_are_quoted() -> None:
    assert quote('/opt/my lb"dr/50%$x') == '"/opt/my lb\\"dr/50%%$$x"'


def test_the_sysctl_file_reads_back() -> None:
    assert parse_sysctls(sysctl_text(SETTINGS)) == SETTINGS


def test_sysctls_may_be_written_with_slashes_and_remarks() -> None:
    text = "# a = 1\n; b = 2\n-net/ipv4/conf/eth0.100/rp_filter = 2\nnonsense\n"
    assert parse_sysctls(text) == {"net.ipv4.conf.eth0/100.rp_filter": "2"}


def test_files_are_planned_once_and_removed_whole(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    operations = persist.plan_files(paths, UNIT, SETTINGS)
    assert [type(operation) for operation in operations] == [WriteFile, WriteFile, EnableUnit]
    for operation in operations:
        persist.apply_file(operation)
    assert persist.plan_files(paths, UNIT, SETTINGS) == []
    assert paths.wants.resolve() == paths.unit_file
    operations = persist.plan_files(paths, replace(UNIT, vips={}), {})
    assert [type(operation) for operation in operations] == [RemoveFile] * 3
    for operation in operations:
        persist.apply_file(operation)
    assert [path for path in tmp_path.rglob("*") if not path.is_dir()] == []


def test_an_edited_unit_is_an_error(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    write_atomically(paths.unit_file, f"{HEADER}\nExecStart=/bin/sh -c true\n")
    with pytest.raises(ConfigError, match=r"lbdr-solve-arp\.service"):
        persist.read_unit(paths)


def test_the_last_file_has_the_last_word_at_boot(tmp_path: Path) -> None:
    name = "net.ipv4.conf.all.arp_ignore"
    for path, text in {
        "usr/lib/sysctl.d/95-vendor.conf": f"{name} = 0\n",
        "etc/sysctl.d/90-lbdr-solve-arp.conf": f"{name} = 1\n",
    }.items():
        write_atomically(tmp_path / path, text)
    (setting,) = boot_settings(Paths(tmp_path), [name, "net.ipv4.conf.all.arp_announce"])
    assert (setting.value, setting.file.name) == ("0", "95-vendor.conf")
    write_atomically(tmp_path / "etc/sysctl.d/95-vendor.conf", "")  # hides the vendor's
    (setting,) = boot_settings(Paths(tmp_path), [name])
    assert setting.value == "1"
    write_atomically(tmp_path / "etc/sysctl.d/99-all.conf", "net.ipv4.conf.*.arp_ignore = 2")
    (setting,) = boot_settings(Paths(tmp_path), [name])
    assert setting.value == "2"


def test_a_lbdr_that_only_another_user_can_reach_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "home" / "lbdr"
    write_atomically(script, "#!/bin/sh\n", mode=0o755)
    monkeypatch.setattr(sys, "argv", [str(script)])
    script.parent.chmod(0o700)
    real = Path.stat

    def of_somebody(path: Path) -> os.stat_result:
        status = list(real(path))
        status[4] = 1000 if path == script.parent else 0
        return os.stat_result(status)

    monkeypatch.setattr(Path, "stat", of_somebody)
    with pytest.raises(ConfigError, match="closed to all others"):
        persist.this_command()
    script.parent.chmod(0o711)
    assert persist.this_command() == (str(script), "")


# --- memory -------------------------------------------------------------------------------------


def memory_file(
    path: Path, boot: str = "b1", namespace: int = 1, *, machine: bool = True
) -> MemoryFile:
    return MemoryFile(path / "solve-arp.json", boot=boot, namespace=namespace, machine=machine)


def test_memory_is_read_back(tmp_path: Path) -> None:
    memory_file(tmp_path).save(MEMORY)
    assert memory_file(tmp_path).load() == MEMORY


def test_namespaces_do_not_mix(tmp_path: Path) -> None:
    memory_file(tmp_path).save(MEMORY)
    other = memory_file(tmp_path, namespace=2, machine=False)
    assert other.load() == Memory()
    other.save(replace(MEMORY, sysctls={}))
    other.save(Memory())
    assert memory_file(tmp_path).load() == MEMORY


def test_a_reboot_forgets_what_the_kernel_forgot(tmp_path: Path) -> None:
    memory_file(tmp_path).save(MEMORY)
    assert memory_file(tmp_path, "b2").load() == Memory()


def test_what_persists_is_remembered_over_a_reboot_by_the_machine(tmp_path: Path) -> None:
    lasting = replace(MEMORY, persisted=True)
    memory_file(tmp_path).save(lasting)
    guest = memory_file(tmp_path, "b2", namespace=7, machine=False)
    assert guest.load() == Memory()
    guest.save(MEMORY)
    machine = memory_file(tmp_path, "b2", namespace=1)
    assert machine.load() == lasting
    machine.save(Memory())
    assert machine.load() == Memory()
    assert guest.load() == MEMORY


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"version": 2, "namespaces": []}',
        '{"version": 1}',
        '{"version": 1, "namespaces": [{"boot": 1}]}',
        json.dumps(
            {
                "version": 1,
                "namespaces": [
                    {
                        "boot": "b1",
                        "namespace": 1,
                        "persisted": False,
                        "vips": {"nowhere": {}},
                        "sysctls": {},
                    }
                ],
            }
        ),
    ],
)
def test_damaged_memory_is_an_error_and_stays_for_a_person(tmp_path: Path, text: str) -> None:
    path = tmp_path / "solve-arp.json"
    path.write_text(text)
    for attempt in (memory_file(tmp_path).load, lambda: memory_file(tmp_path).save(MEMORY)):
        with pytest.raises(StateError, match="damaged") as caught:
            attempt()
        assert "move it away" in caught.value.hint
    assert path.read_text() == text


def test_nothing_to_remember_makes_no_file(tmp_path: Path) -> None:
    memory_file(tmp_path).save(Memory())
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory_file(tmp_path).save(MEMORY)

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StateError, match="No space left"):
        memory_file(tmp_path).save(Memory())
    assert memory_file(tmp_path).load() == MEMORY
    assert [path.name for path in tmp_path.iterdir()] == ["solve-arp.json"]


def test_memory_is_json_of_one_version(tmp_path: Path) -> None:
    memory_file(tmp_path).save(MEMORY)
    assert json.loads((tmp_path / "solve-arp.json").read_text())["version"] == 1
