"""Addresses and notices of them, on real interfaces."""

from __future__ import annotations

import asyncio
import errno
import json
import socket
import sys
from collections.abc import Coroutine
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Any, TypeVar

import pytest
from netlab import INTERFACE, Lab

from lbdr.datapath import notices
from lbdr.datapath.addresses import Addresses, observe_network
from lbdr.datapath.notices import Change, ChangeKind
from lbdr.errors import KernelError, LbdrError, PrivilegeError
from lbdr.model import HostNetwork, VirtualAddress
from lbdr.operations import AddAddress, DeleteAddress

T = TypeVar("T")

VIP = VirtualAddress(ip_address("10.77.0.50"), INTERFACE)
VIP6 = VirtualAddress(ip_address("fd77::50"), INTERFACE)


def on_director(lab: Lab, work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in the director's namespace."""
    with lab.entered("director"):
        return asyncio.run(asyncio.wait_for(work, 20))


def apply(lab: Lab, *operations: AddAddress | DeleteAddress) -> list[LbdrError | None]:
    """Apply operations on the director."""

    async def work() -> list[LbdrError | None]:
        async with Addresses() as addresses:
            return await addresses.apply_many(operations)

    return on_director(lab, work())


def seen_by_ip(lab: Lab) -> dict[str, dict[str, Any]]:
    """The addresses of the director's interface, as ip(8) tells them."""
    text = lab.run("director", ["ip", "-json", "address", "show", "dev", INTERFACE]).stdout
    (link,) = json.loads(text)
    return {f"{entry['local']}/{entry['prefixlen']}": entry for entry in link["addr_info"]}


def test_a_vip_comes_and_goes_as_a_host_address(lab: Lab) -> None:
    """Twice each: the second time nothing is left to do."""
    before = set(seen_by_ip(lab))
    for _ in range(2):
        assert apply(lab, AddAddress(VIP), AddAddress(VIP6)) == [None, None]
        seen = seen_by_ip(lab)
        assert set(seen) == before | {"10.77.0.50/32", "fd77::50/128"}
        assert not seen["fd77::50/128"].get("tentative")
        assert seen["fd77::50/128"]["deprecated"]
    for _ in range(2):
        assert apply(lab, DeleteAddress(VIP), DeleteAddress(VIP6)) == [None, None]
        assert set(seen_by_ip(lab)) == before


def test_the_hosts_own_addresses_are_left_alone(lab: Lab) -> None:
    """A VIP equal to the director's own address is not deleted with its /24 or /64."""
    own = VirtualAddress(lab["director"].ipv4, INTERFACE)
    own6 = VirtualAddress(lab["director"].ipv6, INTERFACE)
    before = set(seen_by_ip(lab))
    apply(lab, AddAddress(own), AddAddress(own6))
    apply(lab, DeleteAddress(own), DeleteAddress(own6))
    assert set(seen_by_ip(lab)) == before


def test_a_vip_is_no_source_address_and_serves_all_the_same(lab: Lab) -> None:
    """fd77::101 shares more bits with the client than the director's own address does."""
    near6 = VirtualAddress(ip_address("fd77::101"), INTERFACE)
    near = VirtualAddress(ip_address("10.77.0.101"), INTERFACE)
    assert apply(lab, AddAddress(near6), AddAddress(near)) == [None, None]
    client = lab["client"]
    for vip, own, to in (
        (near6, lab["director"].ipv6, client.ipv6),
        (near, lab["director"].ipv4, client.ipv4),
    ):
        family = socket.AF_INET6 if to.version == 6 else socket.AF_INET
        with lab.entered("director"):
            server = socket.create_server((str(vip.address), 8000), family=family)
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((str(to), 9))
                assert probe.getsockname()[0] == str(own)
        with (
            server,
            lab.entered("client"),
            socket.create_connection((str(vip.address), 8000), timeout=5) as connection,
        ):
            assert connection.getpeername()[0] == str(vip.address)


def test_observing(lab: Lab) -> None:
    """Names, MACs, states and addresses; in an event loop and without one."""
    apply(lab, AddAddress(VIP), AddAddress(VIP6))
    lab.ip("director", "link add down0 type veth peer name down1")

    async def work() -> HostNetwork:
        async with Addresses() as addresses:
            return await addresses.observe()

    network = on_director(lab, work())
    with lab.entered("director"):
        assert observe_network() == network
    interface = network.interfaces[INTERFACE]
    assert (interface.mac, interface.up) == (lab["director"].mac, True)
    assert {ip_interface("10.77.0.1/24"), ip_interface("10.77.0.50/32")} < set(interface.addresses)
    assert {ip_interface("fd77::1/64"), ip_interface("fd77::50/128")} < set(interface.addresses)
    assert not network.interfaces["down0"].up
    assert network.interfaces["lo"].mac == ""
    assert network.holders(VIP.address) == (INTERFACE,)
    assert network.interface_for(ip_address("10.77.0.60")) == interface


def test_what_cannot_be_done_is_said_and_the_rest_is_done(lab: Lab) -> None:
    """One interface is missing; adding to it fails, and it holds nothing to delete."""
    missing = VirtualAddress(ip_address("10.77.0.51"), "eth9")
    added, error, gone, added6 = apply(
        lab, AddAddress(VIP), AddAddress(missing), DeleteAddress(missing), AddAddress(VIP6)
    )
    assert (added, gone, added6) == (None, None, None)
    assert isinstance(error, KernelError)
    assert error.errno == errno.ENODEV
    assert error.message.startswith("ip address add 10.77.0.51/32 dev eth9: ")
    assert "eth9" in error.hint
    assert {"10.77.0.50/32", "fd77::50/128"} < set(seen_by_ip(lab))


def test_disabled_ipv6_is_named_with_the_remedy(lab: Lab) -> None:
    """The kernel says EACCES, which tells nobody anything."""
    lab.sysctl("director", f"net.ipv6.conf.{INTERFACE}.disable_ipv6", "1")
    (error,) = apply(lab, AddAddress(VIP6))
    assert isinstance(error, KernelError)
    assert f"sysctl -w net.ipv6.conf.{INTERFACE}.disable_ipv6=0" in error.hint


UNPRIVILEGED = f"""
import asyncio
from ipaddress import ip_address
from lbdr.datapath.addresses import Addresses, observe_network
from lbdr.errors import PrivilegeError
from lbdr.model import VirtualAddress
from lbdr.operations import AddAddress

async def add():
    async with Addresses() as addresses:
        await addresses.apply(AddAddress(VirtualAddress(ip_address("{VIP.address}"), "eth0")))

print(observe_network().interfaces["eth0"].mac)
try:
    asyncio.run(add())
except PrivilegeError as error:
    print(error)
"""


def test_without_privilege_one_can_observe_and_not_change(lab: Lab) -> None:
    """A process of root's without any capability."""
    project = Path(__file__).parents[2]
    done = lab.run(
        "director",
        ["setpriv", "--bounding-set", "-all", sys.executable, "-c", UNPRIVILEGED],
        env={"PYTHONPATH": str(project), "PATH": "/usr/bin:/bin"},
    )
    assert done.stdout.splitlines() == [
        lab["director"].mac,
        "ip address add 10.77.0.50/32 dev eth0: not permitted",
        "  hint: run as root",
    ]
    assert PrivilegeError.__name__ not in done.stderr


def test_a_closed_one_opens_again(lab: Lab) -> None:
    """As after an error of its socket."""

    async def work() -> bool:
        async with Addresses() as addresses:
            addresses.close()
            await addresses.apply(AddAddress(VIP))
            return bool((await addresses.observe()).holders(VIP.address))

    assert on_director(lab, work())


async def until(changes: Any, wanted: Change) -> list[Change]:
    """The changes up to a wanted one."""
    seen: list[Change] = []
    async for change in changes:
        seen.append(change)
        if change == wanted:
            return seen
    raise AssertionError(seen)


def test_notices_tell_what_others_did(lab: Lab) -> None:
    """Addresses and links changed by ip(8); each notice comes before the next change is made."""
    lab.ip("director", "link add br1 type bridge", "link add x0 up master br1 type veth peer x1")
    removed = ip_interface(f"{VIP.address}/32")
    added = ip_interface(f"{VIP6.address}/128")
    steps = [
        (f"address del {removed} dev {INTERFACE}", ChangeKind.ADDRESS_REMOVED, INTERFACE, removed),
        (f"address add {added} dev {INTERFACE}", ChangeKind.ADDRESS_ADDED, INTERFACE, added),
        ("link set x1 up", ChangeKind.LINK_UP, "x0", None),
        # the bridge reports its port as deleted, by a message of its own family
        ("link set x0 nomaster", None, "", None),
        ("link set x1 down", ChangeKind.LINK_DOWN, "x0", None),
        ("link set x1 name y1", ChangeKind.LINK_RENAMED, "y1", None),
        ("link del y1", ChangeKind.LINK_REMOVED, "x0", None),
        ("link add z0 type veth peer z1", ChangeKind.LINK_ADDED, "z0", None),
    ]

    async def work() -> list[Change]:
        seen: list[Change] = []
        async with Addresses() as addresses:
            await addresses.apply(AddAddress(VIP))
            changes = addresses.changes()
            assert await anext(changes) == Change(ChangeKind.RESYNC)
            for command, kind, name, address in steps:
                lab.ip("director", command)
                former = "x1" if kind is ChangeKind.LINK_RENAMED else ""
                if kind is not None:
                    seen += await until(changes, Change(kind, name, address, former))
            await changes.aclose()
        return seen

    seen = on_director(lab, work())
    assert [change.kind for change in seen if change.interface == "x0" and not change.address] == [
        ChangeKind.LINK_UP,
        ChangeKind.LINK_DOWN,
        ChangeKind.LINK_REMOVED,
    ]


def test_lost_notices_are_told_and_later_ones_arrive(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel drops notices when nobody reads them."""
    monkeypatch.setattr(notices, "_BUFFER", 1)  # the kernel makes the least that it allows of it
    many = [VirtualAddress(ip_address(f"10.78.0.{n}"), INTERFACE) for n in range(1, 101)]

    async def work() -> None:
        async with Addresses() as addresses:
            changes = addresses.changes()
            assert await anext(changes) == Change(ChangeKind.RESYNC)
            assert set(await addresses.apply_many([AddAddress(vip) for vip in many])) == {None}
            seen = await until(changes, Change(ChangeKind.RESYNC))
            assert len(seen) < len(many)
            assert len((await addresses.observe()).interfaces[INTERFACE].addresses) > len(many)
            await addresses.apply(AddAddress(VIP))
            assert await anext(changes) == Change(
                ChangeKind.ADDRESS_ADDED, INTERFACE, ip_interface(f"{VIP.address}/32")
            )
            await changes.aclose()

    on_director(lab, work())
