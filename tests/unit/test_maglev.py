"""The mh table against vectors that were taken from a live kernel (6.1)."""

from __future__ import annotations

from collections import Counter
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbdr.maglev import (
    EMPTY,
    KEY1,
    TABLE_SIZES,
    MaglevServer,
    MaglevTable,
    fold,
    hash_u32,
    table_size,
    turns,
)


def servers(*weights: int, port: int = 80) -> list[MaglevServer]:
    """10.0.0.11 and up."""
    return [
        MaglevServer(ip_address(f"10.0.0.{11 + place}"), port, weight)
        for place, weight in enumerate(weights)
    ]


def counts(table: MaglevTable) -> list[int]:
    found = Counter(table.slots)
    return [found[place] for place in range(len(table.servers))]


@pytest.mark.parametrize(
    ("value", "hashed"),
    [(0, 0x1D5A77C2), (1, 0x16EC66B2), (0x0A000001, 0x03080CE4), (0xFFFFFFFF, 0x22C5D719)],
)
def test_hash(value: int, hashed: int) -> None:
    assert hash_u32(value, KEY1) == hashed


def test_an_ipv6_address_is_folded() -> None:
    assert fold(ip_address("10.0.0.1")) == 0x0A000001
    assert fold(ip_address("2001:db8::1")) == 0x20010DB8 ^ 1
    assert fold(ip_address("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")) == 0


def test_the_table_of_a_live_kernel() -> None:
    table = MaglevTable(servers(1, 1, 2))
    assert table.size == 4093
    assert counts(table) == [1024, 1023, 2046]
    assert list(table.slots[:12]) == [1, 2, 2, 2, 1, 2, 0, 0, 2, 1, 1, 2]


@pytest.mark.parametrize(
    ("client", "port", "slot", "server"),
    [
        ("192.168.1.1", 0, 2456, 0),
        ("192.168.1.1", 31337, 565, 2),
        ("203.0.113.7", 0, 1705, 1),
        ("203.0.113.7", 31337, 1401, 0),
    ],
)
def test_choices_of_a_live_kernel(client: str, port: int, slot: int, server: int) -> None:
    table = MaglevTable(servers(1, 1, 2))
    assert table.slot(ip_address(client), port) == slot
    assert table.choose(ip_address(client), port) == server


def test_choices_of_a_live_kernel_for_ipv6() -> None:
    table = MaglevTable(
        [
            MaglevServer(ip_address("fd00::11"), 0, 100),
            MaglevServer(ip_address("fd00::12"), 0, 50),
        ]
    )
    client = ip_address("2001:db8::1")
    assert counts(table) == [2729, 1364]
    assert (table.slot(client), table.choose(client)) == (3457, 0)
    assert (table.slot(client, 443), table.choose(client, 443)) == (3902, 1)


def test_unequal_weights_are_shifted() -> None:
    assert counts(MaglevTable(servers(255, 100, 1))) == [2898, 1150, 45]
    assert turns(servers(65535, 1, 0)) == [63, 1, 0]
    assert turns(servers(300, 200, 100)) == [3, 2, 1]


def test_no_server_with_a_weight_is_no_table() -> None:
    for table in (MaglevTable([]), MaglevTable(servers(0, 0))):
        assert set(table.slots) == {EMPTY}
        assert table.choose(ip_address("192.0.2.1")) is None


def test_a_server_that_never_had_a_weight_has_no_slot() -> None:
    assert counts(MaglevTable(servers(1, 0, 1)))[1] == 0


def test_the_order_of_the_servers_matters() -> None:
    """So the order is part of what two directors have to agree on."""
    forward, backward = servers(1, 1, 1), servers(1, 1, 1)[::-1]
    one, other = MaglevTable(forward), MaglevTable(backward)
    assert [one.servers[place] for place in one.slots] != [
        other.servers[place] for place in other.slots
    ]


@pytest.mark.parametrize("size", TABLE_SIZES)
def test_every_size_is_filled(size: int) -> None:
    index = TABLE_SIZES.index(size) + 8
    table = MaglevTable(servers(3, 2, 1), index)
    assert table_size(index) == table.size == size
    assert EMPTY not in table.slots
    assert sum(counts(table)) == size


@given(
    weights=st.lists(st.integers(1, 65535), min_size=1, max_size=8),
    clients=st.lists(st.ip_addresses(), min_size=1, max_size=20),
    data=st.data(),
)
def test_only_the_clients_of_unavailable_servers_move(
    weights: list[int], clients: list[object], data: st.DataObject
) -> None:
    table = MaglevTable(servers(*weights), 8)
    gone = data.draw(st.sets(st.integers(0, len(weights) - 1), max_size=len(weights)))
    for client in clients:
        address = ip_address(str(client))
        before = table.choose(address)
        after = table.choose(address, unavailable=gone)
        strict = table.choose(address, unavailable=gone, fallback=False)
        if before not in gone:
            assert after == strict == before
        else:
            assert strict is None
            assert after not in gone
