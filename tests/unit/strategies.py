"""Random desired states, and random kernels in which others have things of their own.

There are few of each thing, so that two random states often speak of the same one, and a draw
decides much at once: hypothesis pays for each.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_interface
from itertools import product

from hypothesis import strategies as st

from lbdr.desired import SYSCTLS
from lbdr.model import (
    DesiredState,
    Key,
    MarkKey,
    Persistence,
    Protocol,
    RealServer,
    Service,
    ServiceKey,
    Timeouts,
    VirtualAddress,
)
from tests.unit.simulated import World

VIPS = [ip_address(text) for text in ("10.0.0.50", "10.0.0.51", "10.0.1.50", "fd00::50")]
RIPS = {
    4: [ip_address(f"10.0.0.{host}") for host in (31, 32, 33)],
    6: [ip_address(f"fd00::{host}") for host in (31, 32, 33)],
}
KEYS: list[Key] = [
    ServiceKey(Protocol.TCP, VIPS[0], 80),
    ServiceKey(Protocol.TCP, VIPS[0], 0),
    ServiceKey(Protocol.UDP, VIPS[0], 80),
    ServiceKey(Protocol.SCTP, VIPS[2], 80),
    ServiceKey(Protocol.TCP, VIPS[3], 80),
    MarkKey(1, 4),
    MarkKey(1, 6),
]
SETTINGS = [
    Service(KEYS[0], "wlc"),
    Service(KEYS[0], "rr"),
    Service(KEYS[0], "mh", frozenset({"mh-fallback"})),
    Service(KEYS[0], "mh", frozenset({"mh-fallback", "mh-port"})),
    Service(KEYS[0], "sh", frozenset({"sh-port"}), Persistence(60, 24)),
    Service(KEYS[0], "wlc", persistence=Persistence(300, 24)),
    Service(KEYS[0], "wlc", persistence=Persistence(300, 32)),
    Service(KEYS[0], "rr", one_packet=True),
    Service(KEYS[0], "rr", name="WEB"),
]
WEIGHTS = list(product([None, 0, 1, 2], repeat=3))
"""Of three real servers; None is one that is not there."""


@st.composite
def services(draw: st.DrawFn, key: Key) -> Service:
    """A service that the kernel takes."""
    version = key.version if isinstance(key, MarkKey) else key.address.version
    port = 0 if isinstance(key, MarkKey) else key.port
    weights, limit = draw(st.sampled_from(WEIGHTS)), draw(st.sampled_from([0, 0, 100]))
    servers = (
        RealServer(address, port, weight, upper_threshold=limit)
        for address, weight in zip(RIPS[version], weights, strict=True)
        if weight is not None
    )
    return replace(draw(st.sampled_from(SETTINGS)), key=key, real_servers=tuple(servers))


@st.composite
def desired_states(draw: st.DrawFn) -> DesiredState:
    """What a kernel may be asked to hold."""
    keys = draw(st.lists(st.sampled_from(KEYS), max_size=3, unique=True))
    # a VIP with no service behind it is not claimed
    served = sorted({key.address for key in keys if isinstance(key, ServiceKey)}, key=str)
    vips = draw(st.lists(st.sampled_from(served), max_size=3, unique=True)) if served else []
    names = draw(st.sampled_from([SYSCTLS, SYSCTLS[:4], SYSCTLS[2:], ()]))
    return DesiredState(
        services={key: draw(services(key)) for key in keys},
        addresses=frozenset(
            VirtualAddress(vip, draw(st.sampled_from(["eth0", "eth1"]))) for vip in vips
        ),
        sysctls=dict.fromkeys(names, draw(st.sampled_from(["0", "1"]))),
        timeouts=draw(st.sampled_from([None, Timeouts(), Timeouts(7200), Timeouts(7200, 0, 60)])),
    )


@st.composite
def changed(draw: st.DrawFn, state: DesiredState) -> DesiredState:
    """The same services with other settings and servers."""
    return replace(state, services={key: draw(services(key)) for key in state.services})


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """A kernel that holds services, addresses and sysctls of others."""
    world = World()
    for key in draw(st.lists(st.sampled_from(KEYS), max_size=2, unique=True)):
        service = draw(services(key))
        world.services[key] = replace(service, real_servers=(), name="")
        world.real_servers[key] = list(service.real_servers)
    for vip in draw(st.lists(st.sampled_from(VIPS), max_size=1)):
        length = draw(st.sampled_from([24, vip.max_prefixlen]))
        name = draw(st.sampled_from(["eth0", "eth1"]))
        world.interfaces[name].append(ip_interface(f"{vip}/{length}"))
    world.sysctls |= dict.fromkeys(
        draw(st.sampled_from([(), SYSCTLS[:2], SYSCTLS])), draw(st.sampled_from(["1", "2"]))
    )
    for name in draw(st.lists(st.sampled_from(SYSCTLS), max_size=1)):
        del world.sysctls[name]  # this kernel has none of that name
    return world
