"""The ways to real servers, and keeping them, on real interfaces."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncGenerator, Callable
from ipaddress import ip_address
from pathlib import Path as File
from typing import Any

import pytest
from netlab import INTERFACE, Lab, wait_for

from lbdr.datapath import notices, routes_wire
from lbdr.datapath.egress import Path
from lbdr.datapath.neighbours import Neighbours, PathChange, PathSubject
from lbdr.model import Address
from tests.neighbours import index_of, keep, observe, on_director, resolved, table

NOBODY: Address = ip_address("10.77.0.99")
BEHIND: Address = ip_address("192.0.2.7")
BEHIND6: Address = ip_address("2001:db8::7")
OTHER_MAC = "02:77:00:00:00:ee"


def speak(lab: Lab, address: Address) -> None:
    """Send a packet from the director, for which the kernel asks for the neighbour."""
    with lab.entered("director"), socket.socket(type=socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", (str(address), 9))


@contextlib.asynccontextmanager
async def watched(kept: Neighbours) -> Any:
    """The changes from now on."""
    changes = kept.changes()
    assert (await anext(changes)).subject is PathSubject.RESYNC
    try:
        yield changes
    finally:
        await changes.aclose()


async def until(
    changes: AsyncGenerator[PathChange, None], wanted: Callable[[PathChange], bool]
) -> list[PathChange]:
    """The changes up to a wanted one."""
    seen: list[PathChange] = []
    async for change in changes:
        seen.append(change)
        if wanted(change):
            break
    return seen


def test_servers_on_the_link_are_resolved(lab: Lab) -> None:
    """The kernel asks for them, in IPv4 and IPv6; the entries are marked as lbdr's."""
    web1, web2 = lab["web1"], lab["web2"]
    paths = keep(lab, web1.ipv4, web1.ipv6, web2.ipv4)
    index = index_of(lab, INTERFACE)
    for address, server in ((web1.ipv4, web1), (web1.ipv6, web1), (web2.ipv4, web2)):
        expected = Path(index, 1500, lab["director"].mac, (), server.mac, local=False)
        assert paths[address] == expected
        assert "managed" in table(lab)[str(address)]
        assert f"proto {routes_wire.OWNER}" in table(lab)[str(address)]


def test_an_unresolved_server_has_no_mac(lab: Lab) -> None:
    """Whether it was never asked for, is being asked for, or does not answer."""

    def unresolved() -> bool:
        path = observe(lab, NOBODY)[NOBODY]
        assert path is not None
        return path.mac is None and not path.local

    assert unresolved()
    keep(lab, NOBODY, wait=False)
    assert unresolved()
    wait_for(lambda: "FAILED" in table(lab)[str(NOBODY)], "an entry that failed", timeout=10)
    assert unresolved()


def test_the_directors_own_addresses_are_local(lab: Lab) -> None:
    """Nothing is kept for them."""
    own = lab["director"]
    keep(lab, own.ipv4, own.ipv6, wait=False)
    assert not {str(own.ipv4), str(own.ipv6)} & set(table(lab))
    for path in observe(lab, own.ipv4, own.ipv6).values():
        assert path is not None
        assert (path.local, path.mac) == (True, None)


def test_no_route_is_none(lab: Lab) -> None:
    """No route at all, and every type of route that leads nowhere."""
    kinds = ("unreachable", "blackhole", "prohibit", "throw")
    nowhere = [BEHIND, BEHIND6]
    for number, kind in enumerate(kinds, 1):
        for address in (f"198.51.100.{number}", f"2001:db8:1::{number}"):
            lab.ip("director", f"route add {kind} {address}")
            nowhere.append(ip_address(address))
    nowhere += [ip_address("10.77.0.255"), ip_address("ff02::1")]  # broadcast, multicast
    assert observe(lab, *nowhere) == dict.fromkeys(nowhere)
    keep(lab, *nowhere, wait=False)


def test_a_gateways_neighbour_is_used(lab: Lab) -> None:
    """One of the address's own family, and an IPv6 one for IPv4."""
    web1, web2 = lab["web1"], lab["web2"]
    second = ip_address("203.0.113.7")
    lab.ip(
        "director",
        f"route add {BEHIND}/32 via {web1.ipv4}",
        f"route add {BEHIND6}/128 via {web1.ipv6}",
        f"route add {second}/32 via inet6 {web2.ipv6} dev {INTERFACE}",
    )
    paths = keep(lab, BEHIND, BEHIND6, second)
    assert [path.mac for path in paths.values()] == [web1.mac, web1.mac, web2.mac]
    assert {str(web1.ipv4), str(web1.ipv6), str(web2.ipv6)} <= set(table(lab))
    assert not {str(BEHIND), str(BEHIND6), str(second)} & set(table(lab))


@pytest.mark.parametrize("device", ["macvlan", "bridge"])
def test_another_device_on_top_is_left_as_it_is(lab: Lab, device: str) -> None:
    """Its own index, and MAC."""
    own = lab["director"]
    if device == "macvlan":
        lab.ip("director", f"link add link {INTERFACE} name top up type macvlan mode bridge")
    else:
        lab.ip("director", "link add top up type bridge", f"link set {INTERFACE} master top")
    lab.ip(
        "director",
        f"address del {own.ipv4}/24 dev {INTERFACE}",
        f"link set top address {OTHER_MAC}",
        f"address add {own.ipv4}/24 dev top",
    )
    server = lab["web1"]
    expected = Path(index_of(lab, "top"), 1500, OTHER_MAC, (), server.mac, local=False)
    assert keep(lab, server.ipv4) == {server.ipv4: expected}


def test_a_device_that_is_not_ethernet_has_no_macs(lab: Lab) -> None:
    """What it has as address, if anything, is no MAC."""
    lab.ip(
        "director",
        "tuntap add dev tun0 mode tun",
        "link set tun0 up",
        f"route add {BEHIND} dev tun0",
    )
    keep(lab, BEHIND, wait=False)
    path = observe(lab, BEHIND)[BEHIND]
    assert path is not None
    assert (path.source_mac, path.mac) == ("", None)


def test_a_routes_mtu_counts_where_it_is_smaller(lab: Lab) -> None:
    """Also of IPv6, and behind a gateway."""
    web1 = lab["web1"]
    lab.ip(
        "director",
        f"route add {web1.ipv4}/32 dev {INTERFACE} mtu 1300",
        f"route add {web1.ipv6}/128 dev {INTERFACE} mtu 1310",
        f"route add {BEHIND}/32 via {lab['web2'].ipv4} mtu 9000",
    )
    found = observe(lab, web1.ipv4, web1.ipv6, BEHIND)
    assert [path and path.mtu for path in found.values()] == [1300, 1310, 1500]


def test_forgotten_entries_are_gone_and_others_stay(lab: Lab) -> None:
    """Entries that lbdr did not add, of every kind; what is not kept any more goes at once."""
    web1, web2 = lab["web1"], lab["web2"]
    static, learned, managed = (ip_address(f"10.77.0.{number}") for number in (201, 202, 203))
    lab.ip(
        "director",
        f"neigh add {static} lladdr {OTHER_MAC} dev {INTERFACE} nud permanent",
        f"neigh add {learned} lladdr {OTHER_MAC} dev {INTERFACE} nud stale extern_learn",
        f"neigh add {managed} dev {INTERFACE} managed",
    )

    def others() -> list[bool]:
        now = table(lab)
        words = {static: "PERMANENT", learned: "extern_learn", managed: "managed"}
        return [
            word in now[str(address)] and "proto" not in now[str(address)]
            for address, word in words.items()
        ]

    kept = (web1.ipv4, web1.ipv6, web2.ipv4, static, learned, managed)
    keep(lab, *kept, wait=False)
    keep(lab, *kept, wait=False)
    assert others() == [True] * 3
    assert {str(address) for address in kept} <= set(table(lab))
    # another process than that which added them
    keep(lab, web2.ipv4, wait=False)
    assert not {str(web1.ipv4), str(web1.ipv6)} & set(table(lab))
    assert "managed" in table(lab)[str(web2.ipv4)]
    on_director(lab, Neighbours().forget())
    assert str(web2.ipv4) not in table(lab)
    assert others() == [True] * 3


def test_an_entry_that_the_kernel_made_is_kept_from_then_on(lab: Lab) -> None:
    """A packet had it resolved before; its MAC is never unknown meanwhile."""
    web1 = lab["web1"]
    speak(lab, web1.ipv4)
    wait_for(lambda: "lladdr" in table(lab)[str(web1.ipv4)], "the kernel's own entry")

    async def work() -> tuple[Path | None, PathChange]:
        kept = Neighbours()
        async with watched(kept) as changes:
            await kept.keep([web1.ipv4])
            path = (await kept.observe([web1.ipv4]))[web1.ipv4]
            lab.ip("director", f"neigh del {web1.ipv4} dev {INTERFACE}")
            return path, await anext(changes)

    path, change = on_director(lab, work())
    assert path is not None
    assert path.mac == web1.mac
    assert change == PathChange(PathSubject.NEIGHBOUR, frozenset({web1.ipv4}))


def test_an_entry_without_a_mac_that_goes_is_told(lab: Lab) -> None:
    """It is to be kept again; that it failed once more is not told."""

    async def work() -> list[PathChange]:
        kept = Neighbours()
        async with watched(kept) as changes:
            await kept.keep([NOBODY])
            failed = await anext(changes)
            lab.ip("director", f"neigh del {NOBODY} dev {INTERFACE}")
            gone = await anext(changes)
            await kept.refresh()
            return [failed, gone]

    change = PathChange(PathSubject.NEIGHBOUR, frozenset({NOBODY}))
    assert on_director(lab, work()) == [change, change]
    assert "managed" in table(lab)[str(NOBODY)]


def test_a_servers_new_mac_is_seen_within_a_second(lab: Lab) -> None:
    """It announces the change; neighbours that are not kept say nothing."""
    web1, web2 = lab["web1"], lab["web2"]
    lab.sysctl("web1", f"net.ipv4.conf.{INTERFACE}.arp_notify", "1")
    lab.sysctl("web1", f"net.ipv6.conf.{INTERFACE}.ndisc_notify", "1")

    async def work() -> list[PathChange]:
        kept = Neighbours()
        await kept.keep([web1.ipv4, web1.ipv6])
        await resolved(kept, web1.ipv4, web1.ipv6)
        seen: list[PathChange] = []
        async with watched(kept) as changes:
            speak(lab, web2.ipv4)
            lab.ip("web1", f"link set {INTERFACE} address {OTHER_MAC}")
            paths: dict[Address, Path | None] = {}
            async with asyncio.timeout(1):
                while (
                    not all(path and path.mac == OTHER_MAC for path in paths.values()) or not paths
                ):
                    seen.append(await anext(changes))
                    paths = await kept.observe([web1.ipv4, web1.ipv6])
        return seen

    for change in on_director(lab, work()):
        assert change.subject is PathSubject.NEIGHBOUR
        assert change.addresses <= {web1.ipv4, web1.ipv6}


def test_changed_links_and_routes_are_told(lab: Lab) -> None:
    """Each names the kept addresses that it is about; a route elsewhere is not told."""
    web1, web2 = lab["web1"], lab["web2"]
    near: frozenset[Address] = frozenset({web1.ipv4})
    both: frozenset[Address] = frozenset({web1.ipv4, web2.ipv6})
    steps: list[tuple[str, PathSubject | None, frozenset[Address]]] = [
        ("route add 198.51.100.0/24 dev eth0", None, both),
        (f"route add {web1.ipv4}/32 dev eth0 mtu 1300", PathSubject.ROUTE, near),
        ("route add default via 10.77.0.100", PathSubject.ROUTE, near),
        ("route add ::/0 via fd77::100", PathSubject.ROUTE, both - near),
        ("rule add from 10.77.0.100 table 7", PathSubject.ROUTE, both),
        ("nexthop add id 5 dev eth0", PathSubject.ROUTE, both),
        (f"link set {INTERFACE} mtu 1400", PathSubject.LINK, both),
        (f"link set {INTERFACE} address {OTHER_MAC}", PathSubject.LINK, both),
        ("link add one type veth peer other", PathSubject.LINK, both),
        ("link del one", PathSubject.LINK, both),
        (f"link set {INTERFACE} down", PathSubject.LINK, both),
    ]

    async def work() -> None:
        kept = Neighbours()
        await kept.keep(both)
        await resolved(kept, *both)
        async with watched(kept) as changes:
            for command, subject, addresses in steps:
                lab.ip("director", command)
                if subject is not None:
                    wanted = PathChange(subject, addresses)
                    async with asyncio.timeout(2):
                        seen = await until(changes, wanted.__eq__)
                    if "route" in command or "rule" in command:
                        assert seen == [wanted], command

    on_director(lab, work())


def test_what_a_link_took_along_is_kept_again(lab: Lab) -> None:
    """Down, and up again."""
    web1 = lab["web1"]

    async def work() -> Path:
        kept = Neighbours()
        await kept.keep([web1.ipv4])
        await resolved(kept, web1.ipv4)
        lab.ip("director", f"link set {INTERFACE} down")
        assert await kept.observe([web1.ipv4]) == {web1.ipv4: None}
        async with watched(kept) as changes:
            lab.ip("director", f"link set {INTERFACE} up")
            await until(changes, lambda change: change.subject is PathSubject.ROUTE)
            await kept.refresh()
        return (await resolved(kept, web1.ipv4))[web1.ipv4]

    assert on_director(lab, work()).mac == web1.mac
    assert "managed" in table(lab)[str(web1.ipv4)]


def test_a_kernel_without_managed_entries_is_asked_to_use_them(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ignores the flag that it does not know; the caller refreshes, and others' stay."""
    monkeypatch.setattr(routes_wire, "NTF_EXT_MANAGED", 0)
    web1, web2 = lab["web1"], lab["web2"]
    static = ip_address("10.77.0.201")
    lab.ip("director", f"neigh add {static} lladdr {OTHER_MAC} dev {INTERFACE} nud permanent")

    async def work() -> bool:
        kept = Neighbours()
        assert not kept.needs_refresh
        await kept.keep([web1.ipv4, web1.ipv6, web2.ipv4, static])
        await resolved(kept, web1.ipv4, web1.ipv6, web2.ipv4)
        lab.ip("director", f"neigh del {web1.ipv4} dev {INTERFACE}")
        await kept.refresh()
        await resolved(kept, web1.ipv4)
        return kept.needs_refresh

    assert on_director(lab, work())
    assert not [line for line in table(lab).values() if "managed" in line]
    assert "PERMANENT" in table(lab)[str(static)]
    on_director(lab, Neighbours().forget())
    assert str(web1.ipv4) in table(lab)


def test_lost_notices_are_told_and_later_ones_arrive(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel drops notices when nobody reads them."""
    monkeypatch.setattr(notices, "_BUFFER", 1)
    many = [f"route add 198.51.100.{number} dev {INTERFACE}" for number in range(1, 101)]

    async def work() -> None:
        kept = Neighbours()
        await kept.keep([lab["web1"].ipv4])
        async with watched(kept) as changes:
            lab.ip("director", *many)
            await until(changes, lambda change: change.subject is PathSubject.RESYNC)
            lab.ip("director", f"route add {lab['web1'].ipv4} dev {INTERFACE} mtu 1300")
            await until(changes, lambda change: change.subject is PathSubject.ROUTE)

    on_director(lab, work())


def test_many_servers(lab: Lab) -> None:
    """500 on the link, all answered by one host."""
    servers = [ip_address(f"10.79.{number // 250}.{number % 250 + 1}") for number in range(500)]
    lab.ip("web1", *(f"address add {server}/32 dev {INTERFACE}" for server in servers))
    lab.ip("director", f"route add 10.79.0.0/16 dev {INTERFACE}")
    assert {path.mac for path in keep(lab, *servers).values()} == {lab["web1"].mac}
    on_director(lab, Neighbours().forget())
    assert not [line for line in table(lab).values() if "managed" in line]


UNPRIVILEGED = """
import asyncio
from ipaddress import ip_address
from lbdr.datapath.neighbours import Neighbours
from lbdr.errors import PrivilegeError

server = ip_address("10.77.0.21")
kept = Neighbours()
print(asyncio.run(kept.observe([server]))[server].mtu)
try:
    asyncio.run(kept.keep([server]))
except PrivilegeError as error:
    print(error)
"""


def test_without_privilege_one_can_observe_and_not_keep(lab: Lab) -> None:
    """A process of root's without any capability."""
    done = lab.run(
        "director",
        ["setpriv", "--bounding-set", "-all", sys.executable, "-c", UNPRIVILEGED],
        env={"PYTHONPATH": str(File(__file__).parents[2]), "PATH": "/usr/bin:/bin"},
    )
    assert done.stdout.splitlines() == [
        "1500",
        "ip neigh add 10.77.0.21 dev eth0 managed protocol 111: not permitted",
        "  hint: run as root",
    ]
