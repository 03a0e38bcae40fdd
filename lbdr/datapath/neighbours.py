"""The way to every real server: device, VLAN tags, next hop's MAC; kept fresh, changes followed.

What the fast path writes into frames, IPVS leaves to the kernel's routes and neighbour table: this
asks the same ones, so both send the same frame.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pyroute2.netlink.rtnl import (
    RTM_DELLINK,
    RTM_DELNEIGH,
    RTM_DELROUTE,
    RTM_NEWLINK,
    RTM_NEWNEIGH,
    RTM_NEWROUTE,
    RTMGRP_IPV4_ROUTE,
    RTMGRP_IPV4_RULE,
    RTMGRP_IPV6_ROUTE,
    RTMGRP_IPV6_RULE,
    RTMGRP_LINK,
    RTMGRP_NEIGH,
)

from lbdr.datapath import routes as rtnetlink
from lbdr.datapath import routes_wire as wire
from lbdr.datapath.egress import Index, Path, next_hop, path
from lbdr.datapath.notices import messages, open_notices
from lbdr.datapath.routes_wire import Link, Neighbour, NeighbourKey, Request, Route
from lbdr.errors import KernelError, LbdrError, PrivilegeError
from lbdr.model import Address

log = logging.getLogger(__name__)

_RTMGRP_NEXTHOP = 1 << 31  # RTNLGRP_NEXTHOP, which pyroute2 0.9.7 does not know
_GROUPS = (
    RTMGRP_NEIGH
    | RTMGRP_LINK
    | RTMGRP_IPV4_ROUTE
    | RTMGRP_IPV6_ROUTE
    | RTMGRP_IPV4_RULE
    | RTMGRP_IPV6_RULE
    | _RTMGRP_NEXTHOP
)
# The entry, or its device, came or went since the tables were read: the notice of that follows.
_OVERTAKEN = frozenset({errno.EEXIST, errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.ENETDOWN})


class PathSubject(StrEnum):
    """What changed."""

    NEIGHBOUR = "neighbour"
    LINK = "link"
    ROUTE = "route"
    RESYNC = "resync"


@dataclass(frozen=True, slots=True)
class PathChange:
    """Paths that may have changed: observe them again.

    Args:
        subject: RESYNC means that notices were lost, or that there were none before.
        addresses: the kept ones that it is about; all of them for LINK and RESYNC.
    """

    subject: PathSubject
    addresses: frozenset[Address]


class Neighbours:
    """Observes the ways to real servers, and has the kernel keep them resolved.

    Each call is for the network namespace of the calling thread. Nothing is held open; what the
    kernel was told to keep outlives the process.
    """

    def __init__(self) -> None:
        self._managed: bool | None = None  # whether this kernel can; None until it was tried
        self._kept: dict[Address, NeighbourKey | None] = {}
        self._index = Index({})
        self._settling = asyncio.Lock()

    @property
    def kept(self) -> frozenset[Address]:
        """The addresses that are kept."""
        return frozenset(self._kept)

    @property
    def needs_refresh(self) -> bool:
        """Whether the kernel cannot manage entries itself (before 5.16): refresh every 5 seconds.

        Known once keep found something to be resolved; False until then.
        """
        return self._managed is False

    async def observe(self, addresses: Iterable[Address]) -> dict[Address, Path | None]:
        """The ways to addresses now; None where there is no route.

        Raises:
            KernelError: the kernel refuses to list its links, routes or neighbours.
        """
        wanted = list(dict.fromkeys(addresses))
        found = await rtnetlink.routes(wanted)
        links, entries = await rtnetlink.links(), await rtnetlink.neighbours()
        self._learn(found, links)
        return {address: path(found[address], links, entries) for address in wanted}

    async def keep(self, addresses: Iterable[Address]) -> None:
        """Have the kernel resolve these addresses' next hops and keep them so, and no others.

        An entry that is permanent, or managed by others, is left as it is. What lbdr added before,
        in an earlier process too, and is not needed any more, is deleted.

        Raises:
            PrivilegeError: the caller lacks CAP_NET_ADMIN.
            KernelError: the kernel refuses an entry; all others were made.
        """
        self._kept = {address: self._kept.get(address) for address in addresses}
        self._index = Index(self._kept)
        await self.refresh()

    async def refresh(self) -> None:
        """Keep what is to be kept as routes, links and neighbours are now; raises as keep does.

        Needed after each change that `changes` reports (a link that went down took its entries
        along), and every few seconds where `needs_refresh` says so.
        """
        async with self._settling:
            found = await rtnetlink.routes(list(self._kept))
            links, entries = await rtnetlink.links(), await rtnetlink.neighbours()
            self._learn(found, links)
            needed = {key for key in self._kept.values() if key is not None}
            unneeded = [key for key, entry in entries.items() if entry.ours and key not in needed]
            await _apply([wire.delete(key, _name(key, links)) for key in unneeded])
            missing = [
                key
                for key in sorted(needed, key=_order)
                if key not in entries or not (entries[key].fixed or entries[key].managed)
            ]
            await self._resolve(missing, links, entries)

    async def forget(self) -> None:
        """Keep nothing any more, and delete all entries that lbdr added; raises as keep does."""
        await self.keep(())

    async def changes(self) -> AsyncGenerator[PathChange, None]:
        """What may have changed a way to a kept address, endlessly.

        The first one is a RESYNC, when the kernel has begun to report: who observes on it misses
        nothing. Another one follows whenever the kernel had to drop notices (ENOBUFS). Of
        neighbours only another MAC, a lost or a deleted one is told. The kernel does not tell of a
        path MTU that it learned.

        Raises:
            KernelError: the kernel refuses the socket.
        """
        while True:
            try:
                with open_notices(_GROUPS) as notices:
                    links = await rtnetlink.links()
                    macs: dict[NeighbourKey, str | None] = {}
                    yield PathChange(PathSubject.RESYNC, self._index.everything)
                    async for message in messages(notices):
                        change = self._translate(message, links, macs)
                        if change is not None and change.addresses:
                            yield change
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise KernelError("ip monitor", errno=error.errno or 0) from error

    def _learn(self, found: Mapping[Address, Route | None], links: Mapping[int, Link]) -> None:
        """Note whose notices matter to kept addresses."""
        known = {address: next_hop(route, links) for address, route in found.items()}
        self._kept |= {address: key for address, key in known.items() if address in self._kept}
        self._index = Index(self._kept)

    async def _resolve(
        self,
        missing: Sequence[NeighbourKey],
        links: Mapping[int, Link],
        entries: Mapping[NeighbourKey, Neighbour],
    ) -> None:
        """Have the kernel resolve neighbours: managed, or once."""
        # what another daemon marked as its own is not made lbdr's
        others = {key for key in missing if key in entries and entries[key].protocol}
        others -= {key for key in others if entries[key].protocol == wire.OWNER}
        free = [key for key in missing if key not in others]
        if self._managed is None and free:
            self._managed = await _try_managed(
                free[0], _name(free[0], links), there=free[0] in entries
            )
            log.debug("managed neighbour entries: %s", "yes" if self._managed else "no")
        requests = [wire.use(key, _name(key, links)) for key in missing if key in others]
        for key in free:
            name = _name(key, links)
            managed = wire.manage(key, name, there=key in entries)
            requests.append(managed if self._managed else wire.use(key, name))
        await _apply(requests)

    def _translate(
        self,
        message: Any,
        links: dict[int, Link],
        macs: dict[NeighbourKey, str | None],
    ) -> PathChange | None:
        """What a message means for kept addresses.

        Args:
            message: of the socket's groups.
            links: kept up to date.
            macs: what was told last, by neighbour; kept up to date.
        """
        kind = message["header"]["type"]
        if kind in (RTM_NEWNEIGH, RTM_DELNEIGH):
            entry = wire.neighbour_of(message)
            gone = kind == RTM_DELNEIGH
            return None if entry is None else self._of_neighbour(entry, macs, gone=gone)
        if kind in (RTM_NEWLINK, RTM_DELLINK):
            if message["family"] != socket.AF_UNSPEC:  # a bridge's, of its ports
                return None
            index = message["index"]
            link = None if kind == RTM_DELLINK else wire.link_of(message)
            if links.get(index) == link:
                return None
            links.pop(index, None)
            if link is not None:
                links[index] = link
            return PathChange(PathSubject.LINK, self._index.everything)
        if kind in (RTM_NEWROUTE, RTM_DELROUTE):
            return PathChange(PathSubject.ROUTE, self._index.inside(wire.destination(message)))
        return PathChange(PathSubject.ROUTE, self._index.everything)  # a rule, or a next hop object

    def _of_neighbour(
        self, entry: Neighbour, macs: dict[NeighbourKey, str | None], *, gone: bool
    ) -> PathChange | None:
        addresses = self._index.behind(entry.key)
        known = macs.pop(entry.key, "")
        if not addresses:
            return None
        macs[entry.key] = mac = None if gone else entry.mac
        # a deleted one is told also where it had no MAC: it is to be kept again
        return PathChange(PathSubject.NEIGHBOUR, addresses) if gone or mac != known else None


def _name(key: NeighbourKey, links: Mapping[int, Link]) -> str:
    link = links.get(key[0])
    return link.name if link is not None else f"if{key[0]}"  # as ip(8) names one that is gone


def _order(key: NeighbourKey) -> tuple[int, int, int]:
    return key[0], key[1].version, int(key[1])


async def _apply(requests: Sequence[Request]) -> None:
    """Change entries; a failure does not stop those after it, and the first one is raised."""
    failed: list[LbdrError] = []
    for request, answer in zip(requests, await rtnetlink.ask(requests), strict=True):
        log.debug("%s: %s", request.command, os.strerror(answer.errno) if answer.errno else "done")
        if answer.errno and answer.errno not in _OVERTAKEN:
            failed.append(_refused(request, answer.errno))
    if failed:
        raise failed[0]


def _refused(request: Request, number: int) -> LbdrError:
    if number == errno.EPERM:
        return PrivilegeError(f"{request.command}: not permitted", hint="run as root")
    hint = ""
    if number == errno.ENOBUFS:
        hint = "the neighbour table is full: raise net.ipv4.neigh.default.gc_thresh3 (or ipv6)"
    return KernelError(request.command, errno=number, hint=hint)


async def _try_managed(key: NeighbourKey, name: str, *, there: bool) -> bool | None:
    """Whether the kernel manages an entry when told to; None where the entry is gone again."""
    request = wire.manage(key, name, there=there)
    (answer,) = await rtnetlink.ask([request])
    if answer.errno in (errno.EINVAL, errno.EOPNOTSUPP):
        return False
    if answer.errno and answer.errno not in _OVERTAKEN:
        raise _refused(request, answer.errno)
    # a kernel that does not know the flag ignores it
    entry = (await rtnetlink.neighbours()).get(key)
    return entry.managed if entry is not None and not answer.errno else None
