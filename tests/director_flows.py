"""A service whose server IPVS chooses, and the client's flow of it."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

from lbdr.datapath import xdp_layout as layout
from lbdr.datapath.bpf_wire import Verdict
from lbdr.datapath.xdp_layout import LearnedState, Reason, ServiceFlag
from lbdr.model import Protocol
from tests.director_frames import (
    CLIENT,
    CLIENT6,
    CLIENT_PORT,
    PORT,
    SERVICE,
    VIP,
    VIP6,
    forwarded,
    ip4,
    ip6,
    segment,
)
from tests.fastpath import Engine, Outcome, World, tick

LEARNED = ServiceFlag.ACTIVE | ServiceFlag.LEARNED
ONE, TWO = 3, 4  # servers
MACS = {ONE: "02:00:00:00:01:03", TWO: "02:00:00:00:01:04"}
TIMEOUT, REFRESH = 900, 8  # ticks
KINDS = ("flows4", "flows of IPv4", "flows of IPv6")


def serve(world: World, flags: ServiceFlag = LEARNED, **fields: Any) -> None:
    for server, mac in MACS.items():
        world.server(server, mac)
        key = layout.SERVER_KEY.pack(SERVICE, layout.mac_bytes(mac))
        world.maps["macs"].update(key, layout.U32.pack(server))
    world.service(SERVICE, VIP, PORT, flags=flags, timeout=TIMEOUT, **fields)
    world.key(SERVICE, VIP, PORT, Protocol.UDP)
    world.key(SERVICE, VIP6, PORT)


def flags_of(kind: str) -> ServiceFlag:
    return LEARNED | ServiceFlag.PORTS if kind == "flows of IPv4" else LEARNED


def frame_of(kind: str, flags: str = "A") -> bytes:
    return ip6(segment(flags)) if kind == "flows of IPv6" else ip4(segment(flags))


def place(kind: str) -> tuple[str, bytes]:
    """The map and the key of the client's flow."""
    if kind == "flows4":
        ports = CLIENT_PORT.to_bytes(2, "big")
        return "flows4", layout.FLOW4.pack(ip_address(CLIENT).packed, ports, SERVICE)
    client = ip_address(CLIENT6 if kind == "flows of IPv6" else CLIENT)
    return "flows", layout.flow_of(client, CLIENT_PORT, PORT, SERVICE)


def put(world: World, kind: str = "flows4", *, age: int = 1, state: int = LearnedState.OPEN) -> int:
    """A flow of the client to ONE, refreshed so many ticks ago; the tick when it was."""
    name, key = place(kind)
    refreshed = (tick() - age) & 0xFFFFFFFF
    world.maps[name].update(key, layout.LEARNED.pack(ONE, state, refreshed))
    return refreshed


def get(world: World, kind: str = "flows4") -> tuple[int, int, int] | None:
    """Server, state and refreshed of the client's flow."""
    name, key = place(kind)
    value = world.maps[name].lookup(key)
    return layout.LEARNED.unpack(value) if value else None


def sent(engine: Engine, frame: bytes, server: int = ONE) -> Outcome:
    verdict = Verdict.REDIRECT if engine is Engine.TC else Verdict.TX
    return Outcome(verdict, forwarded(frame, MACS[server]))


def passes(world: World, engine: Engine, frame: bytes, reason: Reason) -> None:
    """IPVS gets a frame, for this reason."""
    assert world.run(engine, frame) == Outcome(Verdict.PASS, frame)
    assert world.reasons(SERVICE, tc=engine is Engine.TC) == {reason: 1}
