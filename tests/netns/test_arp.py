"""Who has an address, asked of real hosts in network namespaces."""

from __future__ import annotations

import asyncio
import errno
import sys
import threading
import time
from collections.abc import Coroutine
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any, TypeVar

import pytest
from netlab import INTERFACE, Lab, wait_for

from lbdr.datapath import frames, packets
from lbdr.datapath.addresses import Addresses, observe_network
from lbdr.datapath.announce import announce
from lbdr.datapath.arp import probe, who_has
from lbdr.errors import KernelError
from lbdr.model import AddressProbe, HostNetwork, VirtualAddress

T = TypeVar("T")

VIP = VirtualAddress(ip_address("10.77.0.50"), INTERFACE)
VIP6 = VirtualAddress(ip_address("fd77::50"), INTERFACE)
FREE = VirtualAddress(ip_address("10.77.0.51"), INTERFACE)
FREE6 = VirtualAddress(ip_address("fd77::51"), INTERFACE)
ALL = (VIP, VIP6, FREE, FREE6)


def on(lab: Lab, host: str, work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in a host's namespace."""
    with lab.entered(host):
        return asyncio.run(asyncio.wait_for(work, 20))


def probed(
    lab: Lab, *vips: VirtualAddress, settings: AddressProbe | None = None, host: str = "director"
) -> dict[VirtualAddress, str]:
    """What probing for VIPs gives."""

    async def work() -> dict[VirtualAddress, str]:
        async with Addresses() as addresses:
            network = await addresses.observe()
        return await probe(vips, network, settings or AddressProbe())

    return on(lab, host, work())


def answering(lab: Lab, vip: VirtualAddress) -> set[str]:
    """The names of the hosts that answer the director for a VIP."""
    with lab.entered("director"):
        interface = observe_network().interfaces[INTERFACE]
    names = {host.mac: host.name for host in lab.hosts.values()}
    return {names[mac] for mac in on(lab, "director", who_has(vip.address, interface, 0.2))}


def test_free_vips_are_free(lab: Lab) -> None:
    """It takes count x interval to know."""
    before = time.monotonic()
    assert probed(lab, *ALL, settings=AddressProbe(count=3, interval=0.1)) == {}
    assert time.monotonic() - before >= 0.3


def test_hosts_that_have_a_vip_are_named_by_mac(lab: Lab) -> None:
    """One has it by IPv4, another by IPv6; the other VIPs are free all the same."""
    lab.ip("web1", f"address add {VIP.address}/32 dev {INTERFACE}")
    lab.ip("web2", f"address add {VIP6.address}/128 dev {INTERFACE} nodad")
    assert probed(lab, *ALL) == {VIP: lab["web1"].mac, VIP6: lab["web2"].mac}


def test_no_time_is_lost_when_all_are_taken(lab: Lab) -> None:
    """The answer is known before the interval ends."""
    lab.ip("web1", f"address add {VIP.address}/32 dev {INTERFACE}")
    before = time.monotonic()
    assert probed(lab, VIP, settings=AddressProbe(count=2, interval=10)) == {VIP: lab["web1"].mac}
    assert time.monotonic() - before < 5


def test_count_0_does_not_ask(lab: Lab) -> None:
    """The user said so."""
    lab.ip("web1", f"address add {VIP.address}/32 dev {INTERFACE}")
    assert probed(lab, VIP, settings=AddressProbe(count=0, interval=10)) == {}


def test_this_host_is_no_conflict(lab: Lab) -> None:
    """Neither an address that it has, nor its other interface on the same link."""
    lab.ip("director", f"address add {VIP.address}/32 dev {INTERFACE}")
    lab.ip("director", f"address add {VIP6.address}/128 dev {INTERFACE} nodad")
    assert probed(lab, VIP, VIP6) == {}
    # a second interface of the director, bridged to the first one's link by way of web1
    lab.ip(
        "web1",
        "link add br1 up type bridge mcast_snooping 0 forward_delay 0",
        f"link set {INTERFACE} master br1",
        f"link add up1 up master br1 type veth peer second netns {lab['director'].namespace}",
    )
    lab.ip("director", "link set second up")
    with lab.entered("director"):
        wait_for(lambda: observe_network().interfaces["second"].up, "carrier")
        second = observe_network().interfaces["second"]
    # it does answer there: only its MAC tells that it is no other host
    assert on(lab, "director", who_has(VIP.address, second, 0.2)) == {lab["director"].mac}
    assert probed(lab, VirtualAddress(VIP.address, "second")) == {}


def test_a_server_with_the_arp_problem_is_found(lab: Lab) -> None:
    """The VIP on lo: by IPv4 it answers until told not to, by IPv6 it never does."""
    for web in ("web1", "web2"):
        lab.ip(
            web, f"address add {VIP.address}/32 dev lo", f"address add {VIP6.address}/128 dev lo"
        )
    assert answering(lab, VIP) == {"web1", "web2"}
    assert answering(lab, VIP6) == set()
    lab.sysctl("web1", "net.ipv4.conf.all.arp_ignore", "1")
    assert answering(lab, VIP) == {"web2"}
    assert probed(lab, VIP, VIP6) == {VIP: lab["web2"].mac}
    lab.sysctl("web2", f"net.ipv4.conf.{INTERFACE}.arp_ignore", "1")
    assert answering(lab, VIP) == set()
    assert probed(lab, VIP, VIP6) == {}


def test_who_has_knows_the_owner_by_ipv6_too(lab: Lab) -> None:
    """An address on the interface is advertised."""
    lab.ip("web2", f"address add {VIP6.address}/128 dev {INTERFACE} nodad")
    assert answering(lab, VIP6) == {"web2"}
    assert answering(lab, FREE6) == set()


def test_of_two_directors_that_probe_at_once_one_gives_way(lab: Lab) -> None:
    """Neither has the address yet (RFC 5227 section 2.1.1, RFC 4862 section 5.4.3).

    The first to hear of the other asks no further, so the other may hear nothing: one claims it.
    """
    settings = AddressProbe(count=3, interval=0.2)
    found: dict[str, dict[VirtualAddress, str]] = {}
    together = threading.Barrier(2)

    def ask(host: str) -> None:
        together.wait(5)
        found[host] = probed(lab, VIP, VIP6, settings=settings, host=host)

    threads = [threading.Thread(target=ask, args=(host,)) for host in ("director", "web1")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    for vip in (VIP, VIP6):
        rival = {"director": lab["web1"].mac, "web1": lab["director"].mac}
        heard = {host: macs[vip] for host, macs in found.items() if vip in macs}
        assert heard
        assert heard.items() <= rival.items()


def _missing(lab: Lab) -> str:
    assert lab
    return "eth9"


def _down(lab: Lab) -> str:
    lab.ip("director", f"link set {INTERFACE} down")
    return INTERFACE


def _no_carrier(lab: Lab) -> str:
    lab.ip("director", "link add loose0 up type veth peer loose1", "link set loose1 up")
    with lab.entered("director"):
        wait_for(lambda: observe_network().interfaces["loose0"].up, "carrier")
        lab.ip("director", "link set loose1 down")
        # the kernel's link watch works a moment later
        wait_for(lambda: not observe_network().interfaces["loose0"].up, "no carrier")
    return "loose0"


def _no_arp(lab: Lab) -> str:
    lab.ip("director", f"link set {INTERFACE} arp off")
    return INTERFACE


def _loopback(lab: Lab) -> str:
    assert lab
    return "lo"


@pytest.mark.parametrize(
    ("make", "number", "words"),
    [
        (_missing, errno.ENODEV, "no interface eth9"),
        (_down, errno.ENETDOWN, f"ip link set {INTERFACE} up"),
        (_no_carrier, errno.ENETDOWN, "no carrier"),
        (_no_arp, 0, "the interface has no ARP"),
        (_loopback, 0, "the interface has no ARP"),
    ],
)
def test_an_interface_that_cannot_ask_is_an_error(
    lab: Lab, make: Any, number: int, words: str
) -> None:
    """For probing and for announcing alike, with the interface's name and the remedy."""
    interface = make(lab)
    network = HostNetwork()
    for vip in (VirtualAddress(VIP.address, interface), VirtualAddress(VIP6.address, interface)):
        for work in (
            lambda vip=vip: probe([vip], network, AddressProbe()),
            lambda vip=vip: announce([vip]),
        ):
            with pytest.raises(KernelError) as caught:
                on(lab, "director", work())
            assert caught.value.errno == number
            assert words in str(caught.value)
            assert f"on {interface}" in caught.value.message


def test_an_interface_that_goes_down_meanwhile_is_an_error(lab: Lab) -> None:
    """Nothing is known of the VIP then: it must not pass for free."""

    async def work() -> None:
        async with Addresses() as addresses:
            network = await addresses.observe()
        asking = asyncio.create_task(probe([VIP], network, AddressProbe(count=1, interval=0.5)))
        await asyncio.sleep(0)
        lab.ip("director", f"link set {INTERFACE} down")
        await asking

    with pytest.raises(KernelError) as caught:
        on(lab, "director", work())
    assert caught.value.errno == errno.ENETDOWN


UNPRIVILEGED = """
import asyncio
from ipaddress import ip_address
from lbdr.datapath.announce import announce
from lbdr.errors import PrivilegeError
from lbdr.model import VirtualAddress

try:
    asyncio.run(announce([VirtualAddress(ip_address("10.77.0.50"), "eth0")]))
except PrivilegeError as error:
    print(error)
"""


def test_without_privilege_it_says_so(lab: Lab) -> None:
    """A process of root's without any capability."""
    done = lab.run(
        "director",
        ["setpriv", "--bounding-set", "-all", sys.executable, "-c", UNPRIVILEGED],
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/usr/bin:/bin"},
    )
    assert done.stdout.splitlines() == [
        "ARP and neighbour discovery on eth0: not permitted",
        "  hint: run as root",
    ]


@pytest.mark.parametrize("others", [3, 2000], ids=["few", "more than a filter holds"])
def test_the_filter_passes_what_is_about_the_addresses_alone(lab: Lab, others: int) -> None:
    """Frames of every kind, of which the socket's reader sees those for the VIPs."""
    mac, sender, sender6 = lab["web1"].mac, IPv4Address("10.77.0.21"), IPv6Address("fd77::21")
    vip, vip6 = IPv4Address("10.77.0.50"), IPv6Address("fd77::50")
    other, other6 = IPv4Address("10.77.0.99"), IPv6Address("fd77::99")
    wanted4 = [
        frames.arp_probe(mac, vip),
        frames.arp_reply(mac, vip, lab["director"].mac, IPv4Address("10.77.0.1")),
        frames.gratuitous_arp(mac, vip),
        frames.arp_request(mac, vip, other),
    ]
    unwanted4 = [
        frames.arp_request(mac, sender, vip),
        frames.arp_probe(mac, other),
        frames.gratuitous_arp(mac, other),
    ]
    wanted6 = [
        frames.dad_solicitation(mac, vip6),
        frames.neighbour_solicitation(mac, sender6, vip6),
        frames.unsolicited_advertisement(mac, vip6),
    ]
    unwanted6 = [
        frames.dad_solicitation(mac, other6),
        frames.unsolicited_advertisement(mac, other6),
    ]
    for version, address, wanted, unwanted in (
        (4, vip, wanted4, unwanted4),
        (6, vip6, wanted6, unwanted6),
    ):
        start = int(ip_address("10.99.0.0" if version == 4 else "fd99::1:0"))
        addresses = {int(address), *range(start, start + others)}
        with lab.entered("director"):
            reader = packets.open_for(INTERFACE, version, addresses)
        with reader, lab.entered("web1"):
            asyncio.run(_send([*unwanted, *wanted]))
            seen = [wait_for(reader.receive, "a frame") for _ in wanted]
            if others < 1000:
                assert seen == wanted
                assert reader.receive() is None
            elif version == 4:  # all pass: the reader decides
                assert seen == [*unwanted, *wanted][: len(seen)]


async def _send(sent: list[bytes]) -> None:
    with packets.PacketSocket(INTERFACE) as sender:
        for frame in sent:
            await sender.send(frame)
