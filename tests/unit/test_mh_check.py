"""Which table size a kernel's configuration tells, and how a difference is judged and told."""

from __future__ import annotations

import gzip
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from lbdr.datapath import ipvs_connections, mh_check
from lbdr.datapath.mh_check import MhOutcome, _Case, _judge, table_index
from lbdr.maglev import MaglevServer, MaglevTable
from lbdr.model import Address, Protocol, ServiceKey

TOLD = "CONFIG_IP_VS_MH=m\nCONFIG_IP_VS_MH_TAB_INDEX={}\nCONFIG_IP_VS_FTP=m\n"


def plain(directory: Path, text: str, name: str = "config") -> Path:
    file = directory / name
    file.write_text(text)
    return file


def test_the_first_file_that_tells_wins(tmp_path: Path) -> None:
    packed = tmp_path / "config.gz"
    packed.write_bytes(gzip.compress(TOLD.format(10).encode()))
    file = plain(tmp_path, TOLD.format(13))
    assert table_index([packed, file]) == 10
    assert table_index([tmp_path / "none", file, packed]) == 13


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# CONFIG_IP_VS_MH_TAB_INDEX=12\n",
        "# CONFIG_IP_VS_MH is not set\n",
        TOLD.format(7),
        TOLD.format(18),
        TOLD.format("m"),
    ],
)
def test_a_file_that_tells_nothing_is_passed_over(tmp_path: Path, text: str) -> None:
    file = plain(tmp_path, text)
    assert table_index([file]) is None
    assert table_index([file, plain(tmp_path, TOLD.format(17), "other")]) == 17


@pytest.mark.parametrize("content", [b"", b"no gzip", gzip.compress(TOLD.format(9).encode())[:-9]])
def test_a_damaged_file_is_passed_over(tmp_path: Path, content: bytes) -> None:
    packed = tmp_path / "config.gz"
    packed.write_bytes(content)
    assert table_index([packed, tmp_path]) is None


def cases(index: int) -> list[_Case]:
    """What a kernel with that table would choose; its second server is drained."""
    order = tuple(
        MaglevServer(ip_address(f"198.51.100.{last}"), 1, weight)
        for last, weight in ((10, 5), (12, 3), (11, 4))
    )
    table = MaglevTable(order, index)
    clients = tuple((ip_address(f"203.0.113.{n}"), 1000 + n) for n in range(100))
    chosen: dict[tuple[Address, int], Address] = {}
    for client, port in clients:
        place = table.choose(client, port, unavailable={1})
        assert place is not None
        chosen[client, port] = order[place].address
    key = ServiceKey(Protocol.UDP, ip_address("127.0.0.1"), 1)
    return [_Case(key, frozenset({"mh-port", "mh-fallback"}), order, clients, chosen)]


@pytest.mark.parametrize("index", [8, 12, 14])
def test_the_table_that_agrees_is_found(index: int) -> None:
    verdict = _judge(cases(index), 12, range(8, 18))
    assert verdict.agrees
    assert (verdict.index, verdict.versions, verdict.reason) == (index, frozenset({4}), "")


def test_another_table_differs_where_only_one_is_asked_for() -> None:
    verdict = _judge(cases(8), 12, ())
    assert (verdict.outcome, verdict.index) == (MhOutcome.DIFFERS, 12)


def test_one_client_elsewhere_is_told() -> None:
    (case,) = cases(12)
    last = case.clients[-1]
    (elsewhere,) = {server.address for server in case.order[::2]} - {case.chosen[last]}
    chosen = {**case.chosen, last: elsewhere}
    verdict = _judge([replace(case, chosen=chosen)], 12, range(8, 18))
    assert verdict.outcome is MhOutcome.DIFFERS
    assert verdict.reason == (
        "client 203.0.113.99:1099 of a service with mh-fallback and mh-port: IPVS's mh chose "
        f"{elsewhere}, lbdr's table of 4093 slots chose {case.chosen[last]}"
    )
    del chosen[last]
    assert "chose no real server" in _judge([replace(case, chosen=chosen)], 12, ()).reason


def test_connections_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        "Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData\n"
        "UDP CB007107 7A69 7F000001 0001 C633640A 0001 UDP             299\n"
        "UDP 2001:0db8:0000:0000:0000:0000:0000:0009 0400 0000:0000:0000:0000:0000:0000:0000:0001"
        " 0002 2001:0db8:0000:0000:0000:0000:0000:0010 0002 UDP             299\n"
        "TCP CB007107 7A69 7F000001 0001 C633640A 0001 SYN_RECV         59\n"
    )
    monkeypatch.setattr(ipvs_connections, "_PATH", str(plain(tmp_path, text)))
    assert mh_check.connections() == {
        ServiceKey(Protocol.UDP, ip_address("127.0.0.1"), 1): {
            (ip_address("203.0.113.7"), 31337): ip_address("198.51.100.10")
        },
        ServiceKey(Protocol.UDP, ip_address("::1"), 2): {
            (ip_address("2001:db8::9"), 1024): ip_address("2001:db8::10")
        },
    }
