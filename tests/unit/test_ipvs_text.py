"""IPVS's text table, as kernels print it (ip_vs_info_seq_show)."""

from __future__ import annotations

import re
from ipaddress import ip_address
from pathlib import Path

import pytest

from lbdr.datapath import ipvs_text
from lbdr.datapath.ipvs_text import changed, configuration, schedules
from lbdr.errors import KernelError
from lbdr.model import MarkKey, Protocol, ServiceKey

HEADER = b"""\
IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
"""
# the spaces at the ends of lines are the kernel's
WEB = (
    b"TCP  0A000032:0050 wlc \n"
    b"  -> 0A000020:0050      Route   2      7          31        \n"
    b"  -> 0A00001F:0050      Route   1      0          0         \n"
)
PERSISTENT = (
    b"TCP  0A000032:0000 wlc persistent 300 FFFFFFFF\n"
    b"  -> 0A00001F:0000      Route   1      4          2         \n"
)
DNS = b"UDP  0A000033:0035 rr ops \n  -> 0A00001F:0035      Route   1      0          900       \n"
SCTP6 = (
    b"SCTP  [fd00:0000:0000:0000:0000:0000:0000:0050]:0F1C mh persistent 60 40000000\n"
    b"  -> [fd00:0000:0000:0000:0000:0000:0000:001f]:0F1C      "
    b"Route   10     0          12        \n"
)
MARK = (
    b"FWM  00000102 wlc persistent 300 FFFFFF00\n"
    b"  -> 0A00001F:0000      Route   1      4          2         \n"
)
EMPTY = b"TCP  0A000034:0050 rr \n"
ALL = HEADER + WEB + PERSISTENT + DNS + SCTP6 + MARK + EMPTY

WEB_KEY = ServiceKey(Protocol.TCP, ip_address("10.0.0.50"), 80)
PERSISTENT_KEY = ServiceKey(Protocol.TCP, ip_address("10.0.0.50"), 0)
DNS_KEY = ServiceKey(Protocol.UDP, ip_address("10.0.0.51"), 53)
SCTP6_KEY = ServiceKey(Protocol.SCTP, ip_address("fd00::50"), 3868)
MARK_KEY = MarkKey(0x102, 4)
MARK6_KEY = MarkKey(0x102, 6)
EMPTY_KEY = ServiceKey(Protocol.TCP, ip_address("10.0.0.52"), 80)


def difference(before: bytes, after: bytes) -> set[ServiceKey | MarkKey]:
    one, other = configuration(before), configuration(after)
    assert changed(one, one) == changed(other, other) == set()
    assert changed(one, other) == changed(other, one)
    return changed(one, other)


@pytest.mark.parametrize(
    ("block", "key"),
    [
        (WEB, WEB_KEY),
        (PERSISTENT, PERSISTENT_KEY),
        (DNS, DNS_KEY),
        (SCTP6, SCTP6_KEY),
        (MARK, MARK_KEY),
        (EMPTY, EMPTY_KEY),
    ],
)
def test_every_kind_of_service_is_named(block: bytes, key: ServiceKey | MarkKey) -> None:
    assert difference(HEADER, HEADER + block) == named(key)
    assert difference(ALL, ALL.replace(block, b"")) == named(key)


def named(key: ServiceKey | MarkKey) -> set[ServiceKey | MarkKey]:
    """A mark's line is the same for its IPv4 service and its IPv6 one."""
    return {MARK_KEY, MARK6_KEY} if key == MARK_KEY else {key}


def test_the_version_of_a_mark_is_that_of_its_real_servers() -> None:
    four, six = b"  -> 0A000020:0000     ", b"  -> [fd00::20]:0000     "
    rest = b"Route   2      7          31        \n"
    table = HEADER + b"FWM  00000102 mh \n" + four + rest + b"FWM  00000102 sh \n" + six + rest
    found = schedules(table)
    assert {key: name for key, (name, _) in found.items()} == {MARK_KEY: "mh", MARK6_KEY: "sh"}
    assert [str(one.address) for one in found[MARK6_KEY][1]] == ["fd00::20"]
    reverse = HEADER + b"FWM  00000102 sh \n" + six + rest + b"FWM  00000102 mh \n" + four + rest
    assert schedules(reverse) == found


def test_an_empty_table() -> None:
    assert difference(HEADER, HEADER) == set()
    assert len(difference(HEADER, ALL)) == 7


def test_counts_of_connections_are_no_change() -> None:
    busy = re.sub(rb"\d+( +)\d+( +)\n", rb"65535\g<1>1000000\g<2>\n", ALL)
    assert busy != ALL
    assert configuration(busy) == configuration(ALL)
    # wider than their columns
    full = ALL.replace(b"7          31        ", b"12345678901 12345678901")
    assert configuration(full) == configuration(ALL)


@pytest.mark.parametrize(
    ("before", "after", "key"),
    [
        (b"Route   2      7 ", b"Route   3      7 ", WEB_KEY),  # weight
        (b"Route   2      7 ", b"Route   0      7 ", WEB_KEY),  # drained
        (b"Route   2      7 ", b"Masq    2      7 ", WEB_KEY),  # method
        (b"  -> 0A000020:0050", b"  -> 0A000021:0050", WEB_KEY),  # real server
        (b"0050 wlc \n", b"0050 rr \n", WEB_KEY),  # scheduler
        (b"persistent 300 FFFFFFFF", b"persistent 301 FFFFFFFF", PERSISTENT_KEY),
        (b"persistent 300 FFFFFFFF", b"persistent 300 FFFFFF00", PERSISTENT_KEY),
        (b"wlc persistent 300 FFFFFFFF", b"wlc ", PERSISTENT_KEY),
        (b"persistent 60 40000000", b"persistent 60 80000000", SCTP6_KEY),  # /64 to /128
        (b"persistent 60 40000000", b"persistent 61 40000000", SCTP6_KEY),
        (b"rr ops \n", b"rr \n", DNS_KEY),
        (b"persistent 300 FFFFFF00", b"persistent 300 FFFF0000", MARK_KEY),
    ],
)
def test_a_change_names_its_service(before: bytes, after: bytes, key: ServiceKey | MarkKey) -> None:
    assert ALL.count(before) == 1
    assert difference(ALL, ALL.replace(before, after)) == named(key)


def test_a_mask_of_digits_alone_is_no_count() -> None:
    """An IPv6 prefix length of 64 is printed as 40000000, after the timeout: two numbers."""
    table = configuration(ALL)
    for line in (SCTP6, MARK, PERSISTENT):
        assert line.splitlines()[0] in table


def test_the_order_of_services_and_of_real_servers_is_no_change() -> None:
    first, second, third = WEB.splitlines(keepends=True)
    shuffled = HEADER + EMPTY + MARK + SCTP6 + DNS + PERSISTENT + first + third + second
    assert difference(ALL, shuffled) == set()


def test_a_real_server_that_goes_is_a_change() -> None:
    first, second, third = WEB.splitlines(keepends=True)
    for rest in (first + second, first + third, first):
        assert difference(ALL, ALL.replace(WEB, rest)) == {WEB_KEY}


def test_two_services_of_one_mark() -> None:
    """The text does not tell the IP version of a mark: neither service may hide the other."""
    other = b"FWM  00000102 rr \n"
    both = HEADER + MARK + other
    assert difference(both, HEADER + MARK.replace(b"Route   1", b"Route   2") + other) != set()
    assert difference(both, HEADER + MARK + other.replace(b"rr", b"lc")) != set()
    assert difference(both, HEADER + other) != set()


def test_a_line_that_is_not_understood_is_an_error() -> None:
    with pytest.raises(KernelError, match="not understood: b'AH 0A000032"):
        changed(HEADER, HEADER + b"AH 0A000032:0050 wlc\n")


def test_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ip_vs"
    monkeypatch.setattr(ipvs_text, "_PATH", str(path))
    with pytest.raises(KernelError, match=r"cat /proc/net/ip_vs: .*\(ENOENT\)"):
        ipvs_text.read()
    large = HEADER + WEB * 1000
    path.write_bytes(large)
    assert ipvs_text.read() == large
