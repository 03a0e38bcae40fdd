"""Connections between the fast path and IPVS: given before it leaves, taken before it comes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping

from lbdr.datapath import ipvs_connections
from lbdr.datapath.ipvs_connections import ConnectionTable
from lbdr.datapath.ipvs_sync import hand_over
from lbdr.datapath.ipvs_sync_wire import Flow, FlowState
from lbdr.datapath.xdp import FastPath
from lbdr.datapath.xdp_wanted import KnownFlow
from lbdr.model import Key, MarkKey, Traffic

log = logging.getLogger(__name__)

_RECORDING = 5.0  # seconds in which connections without a record are noticed before a hand-over


async def give(fast: FastPath, keys: Collection[Key]) -> int:
    """Give IPVS the connections that it would send elsewhere; how many.

    Connections that are older than a change of the table have no record: for a moment what they
    send is recorded. One that says nothing meanwhile is IPVS's to place.

    Args:
        fast: that leaves.
        keys: of the services that it leaves.

    Raises:
        KernelError, PrivilegeError: IPVS did not take them.
    """
    old = [key for key in keys if fast.unknown_slots(key)]
    for key in old:
        fast.settle(key)
    if old:
        await asyncio.sleep(_RECORDING)
    flows = [
        Flow(
            fast.traffic(key).protocol,
            known.client,
            known.client_port,
            fast.traffic(key).address,
            known.port,
            known.server,
            FlowState.CLOSING if known.closing else FlowState.ESTABLISHED,
            fwmark=key.mark if isinstance(key, MarkKey) else 0,
        )
        for key in keys
        for known in await asyncio.to_thread(fast.known_flows, key)
    ]
    if not flows:
        return 0
    given = await hand_over(flows)
    log.info("fast path: IPVS was given %d connections", given)
    return given


async def held(services: Mapping[Key, Traffic]) -> dict[Key, list[KnownFlow]]:
    """The connections that IPVS has of services that are new to the fast path.

    Args:
        services: their packets.

    Raises:
        KernelError: IPVS's table cannot be read.
    """
    found: dict[Key, list[KnownFlow]] = {}
    if not services:
        return found
    by_vip: dict[object, list[tuple[Key, Traffic]]] = {}
    for key, traffic in services.items():
        by_vip.setdefault((traffic.protocol, traffic.address), []).append((key, traffic))
    for one in (await asyncio.to_thread(_read)).connections:
        claims = by_vip.get((one.protocol, one.virtual), ())
        for key, traffic in sorted(claims, key=lambda claim: claim[1].ports.any):
            if traffic.has(one.virtual_port):
                known = KnownFlow(one.client, one.client_port, one.virtual_port, one.server)
                found.setdefault(key, []).append(known)
                break
    return found


def _read() -> ConnectionTable:
    return ipvs_connections.parse(ipvs_connections.read())
