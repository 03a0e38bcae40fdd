"""Path MTU discovery through the director: XDP alone, and tc alone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from ipaddress import ip_address

import pytest
from netlab import INTERFACE, Lab

from lbdr.datapath import tc
from lbdr.datapath.bpf_links import Link
from lbdr.datapath.bpf_programs import Program
from lbdr.datapath.bpf_wire import AttachPoint, ProgramKind, Verdict, XdpFlag
from lbdr.datapath.tc import Direction
from lbdr.datapath.xdp_layout import Place, ServiceFlag
from tests import path_mtu
from tests.bpf_programs import returns
from tests.fastpath import World, mh_words
from tests.guest import missing
from tests.path_mtu import PORT, SIZE, SMALL

VIP, VIP6 = "10.77.0.50", "fd77::50"
SERVICE = 1
SERVERS = ("web1", "web2")
VERSIONS = pytest.mark.parametrize(("vip", "version"), [(VIP, 4), (VIP6, 6)], ids=["IPv4", "IPv6"])
_ALONE = ServiceFlag.ACTIVE | ServiceFlag.ALONE | ServiceFlag.MH_PORT


@pytest.fixture(scope="module")
def routed() -> Iterator[Lab]:
    if os.geteuid() != 0:
        missing("network namespaces need root")
    with Lab(path_mtu.all_hosts()) as lab:
        path_mtu.build(lab, [VIP, VIP6])
        lab.ip(
            "director",
            f"address add {VIP}/32 dev {INTERFACE}",
            f"address add {VIP6}/128 dev {INTERFACE} nodad",
        )
        with path_mtu.serving(lab, [VIP, VIP6]):
            yield lab


@pytest.fixture(params=["xdp", "tc"])
def engine(request: pytest.FixtureRequest, routed: Lab, world: World) -> Iterator[str]:
    """The director's program on its link, with the service of both IP versions."""
    with routed.entered("director"):
        ifindex = socket.if_nametoindex(INTERFACE)
    place = Place(ifindex, routed["director"].mac)
    for index, name in enumerate(SERVERS):
        world.server(index, routed[name].mac, place, out=place)
    world.table(0, mh_words([ip_address("192.0.2.1"), ip_address("192.0.2.2")], PORT))
    world.service(SERVICE, ip_address(VIP), PORT, vip=place, flags=_ALONE)
    world.key(SERVICE, ip_address(VIP6), PORT)
    with contextlib.ExitStack() as stack:
        if request.param == "tc":
            with routed.entered("director"):
                asyncio.run(tc.attach(world.programs.tc, ifindex, Direction.INGRESS))
            stack.callback(
                routed.run, "director", ["tc", "qdisc", "del", "dev", INTERFACE, "clsact"]
            )
        else:
            code = returns(Verdict.PASS)
            kind, at = ProgramKind.XDP, AttachPoint.XDP
            passes = stack.enter_context(Program.load(code, kind, name="passes", attach=at))
            with routed.entered_switch():
                port = socket.if_nametoindex("director")
                stack.enter_context(Link.create(passes, port, flags=XdpFlag.NATIVE))
            with routed.entered("director"):
                link = Link.create(world.programs.steady, ifindex, flags=XdpFlag.NATIVE)
                stack.enter_context(link)
        yield request.param


@VERSIONS
def test_downloads_do_not_stall(
    routed: Lab, world: World, engine: str, vip: str, version: int
) -> None:
    """The router's error about a server's packet reaches that very server through the VIP."""
    path_mtu.forget(routed, version)
    seen = set()
    for _ in range(40):
        moved = path_mtu.download(routed, vip)
        assert moved.octets == SIZE
        if moved.server not in seen:
            assert path_mtu.known_mtu(routed, moved.server, version) == SMALL
        seen.add(moved.server)
        others = set(SERVERS) - seen
        assert not any(path_mtu.known_mtu(routed, other, version) for other in others)
        if not others:
            break
    assert seen == set(SERVERS)
    assert world.reasons(SERVICE, tc=engine == "tc") == {}


@VERSIONS
def test_uploads_do_not_stall(
    routed: Lab, world: World, engine: str, vip: str, version: int
) -> None:
    path_mtu.forget(routed, version)
    for _ in range(3):
        moved = path_mtu.upload(routed, vip)
        assert moved.octets == SIZE
        assert moved.server in SERVERS
    assert sum(world.served(server)[0] for server in range(len(SERVERS))) > 3 * SIZE / 1500
    assert world.reasons(SERVICE, tc=engine == "tc") == {}
    assert not any(path_mtu.known_mtu(routed, server, version) for server in SERVERS)


@VERSIONS
@pytest.mark.parametrize("engine", ["xdp"], indirect=True)
@pytest.mark.usefixtures("engine")
def test_a_download_stalls_without_the_error(routed: Lab, vip: str, version: int) -> None:
    """What the other tests hold can fail: here the router's own packets to the VIP get lost."""
    path_mtu.forget(routed, version)
    with path_mtu.lost_errors(routed, vip), pytest.raises(TimeoutError):
        path_mtu.download(routed, vip)
    assert not any(path_mtu.known_mtu(routed, server, version) for server in SERVERS)
