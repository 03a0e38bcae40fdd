"""Paths from what the kernel tells, and whose notices matter."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from lbdr.datapath.egress import Index, Path, path
from lbdr.datapath.routes_wire import Link, Neighbour, Route
from lbdr.model import Address

SERVER = ip_address("10.0.0.21")
MAC, SERVER_MAC = "02:00:00:00:00:01", "02:00:00:00:00:21"
ETH0 = Link(2, "eth0", MAC)
OUTER = Link(3, "outer", MAC, lower=2, tag=(0x88A8, 100))
INNER = Link(4, "inner", "02:00:00:00:00:04", mtu=1400, lower=3, tag=(0x8100, 200))
THIRD = Link(5, "third", MAC, lower=4, tag=(0x8100, 300))
ELSEWHERE = Link(6, "elsewhere", MAC, lower=None, tag=(0x8100, 7))
TUNNEL = Link(7, "tun0", resolves=False)
LINKS = {each.index: each for each in (ETH0, OUTER, INNER, THIRD, ELSEWHERE, TUNNEL)}
ENTRIES = {(index, SERVER): Neighbour(index, SERVER, SERVER_MAC) for index in LINKS}


def of(route: Route) -> Path:
    """The path of a route that has one."""
    found = path(route, LINKS, ENTRIES)
    assert found is not None
    return found


def test_vlan_devices_are_descended_and_say_what_they_are() -> None:
    """MAC, MTU and neighbour are the upper device's, the index is the lowest one's."""
    assert of(Route(2, SERVER)) == Path(2, 1500, MAC, (), SERVER_MAC, local=False)
    assert of(Route(3, SERVER)) == Path(2, 1500, MAC, ((0x88A8, 100),), SERVER_MAC, local=False)
    tags = ((0x88A8, 100), (0x8100, 200))
    assert of(Route(4, SERVER)) == Path(2, 1400, INNER.mac, tags, SERVER_MAC, local=False)


def test_where_no_frame_can_be_written_there_is_no_mac() -> None:
    """Each for a reason of its own, though the kernel knows the neighbour."""
    for route in (
        Route(5, SERVER),  # a third tag
        Route(6, SERVER),  # a VLAN device of a device in another namespace
        Route(7, SERVER),  # not Ethernet
        Route(2, SERVER, plain=False),
        Route(2, SERVER, local=True),
        Route(2, ip_address("10.0.0.1")),  # an unknown gateway
    ):
        assert of(route).mac is None
    assert of(Route(2, SERVER, local=True)).local


def test_no_route_and_no_device_is_no_path() -> None:
    """The device may go while the tables are read."""
    assert path(None, LINKS, ENTRIES) is None
    assert path(Route(9, SERVER), LINKS, ENTRIES) is None


def test_the_smaller_mtu_counts() -> None:
    """A route may name a larger one than the device takes."""
    assert [of(Route(2, SERVER, mtu=mtu)).mtu for mtu in (0, 1300, 9000)] == [1500, 1300, 1500]


def test_who_is_behind_a_neighbour() -> None:
    """Several behind one gateway; none that has no next hop."""
    gateway = ip_address("10.0.0.1")
    first, second, third = (ip_address(f"192.0.2.{number}") for number in (1, 2, 3))
    index = Index({first: (2, gateway), second: (2, gateway), third: None})
    assert index.behind((2, gateway)) == {first, second}
    assert index.behind((3, gateway)) == set()
    assert index.everything == {first, second, third}


# few bits differ, so that networks have addresses inside
V4 = st.integers(0, 255).map(lambda low: IPv4Address((10 << 24) + low))
V6 = st.integers(0, 255).map(lambda low: IPv6Address((0xFD << 120) + low))


@given(st.frozensets(V4 | V6, max_size=30), st.one_of(V4, V6), st.integers(0, 8) | st.just(128))
def test_who_is_inside_a_network(kept: frozenset[Address], address: Address, bits: int) -> None:
    """As ipaddress answers, one by one."""
    length = max(0, address.max_prefixlen - bits)
    network = ip_network(f"{address}/{length}", strict=False)
    index = Index(dict.fromkeys(kept))
    assert index.inside(network) == {each for each in kept if each in network}
