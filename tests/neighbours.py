"""The neighbours that a lab's director keeps, and the ways that it finds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from typing import Any, TypeVar

from netlab import Lab

from lbdr.datapath.egress import Path
from lbdr.datapath.neighbours import Neighbours
from lbdr.model import Address

T = TypeVar("T")


def on_director(lab: Lab, work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in the director's namespace."""
    with lab.entered("director"):
        return asyncio.run(asyncio.wait_for(work, 30))


def index_of(lab: Lab, name: str) -> int:
    """The index of one of the director's devices."""
    text = lab.run("director", ["ip", "-json", "link", "show", "dev", name]).stdout
    index: int = json.loads(text)[0]["ifindex"]
    return index


def table(lab: Lab) -> dict[str, str]:
    """The director's neighbour entries, as ip(8) tells them, by address."""
    text = lab.run("director", ["ip", "-details", "neigh", "show", "nud", "all"]).stdout
    return {line.split()[0]: line for line in text.splitlines()}


def observe(lab: Lab, *addresses: Address) -> dict[Address, Path | None]:
    """What the director finds now."""
    return on_director(lab, Neighbours().observe(addresses))


async def resolved(kept: Neighbours, *addresses: Address) -> dict[Address, Path]:
    """The paths to addresses, once each has a MAC."""
    while True:
        found = await kept.observe(addresses)
        paths = {address: path for address, path in found.items() if path and path.mac}
        if len(paths) == len(addresses):
            return paths
        await asyncio.sleep(0.01)


def keep(lab: Lab, *addresses: Address, wait: bool = True) -> dict[Address, Path]:
    """Keep addresses on the director; their paths, resolved."""

    async def work() -> dict[Address, Path]:
        kept = Neighbours()
        await kept.keep(addresses)
        return await resolved(kept, *addresses) if wait else {}

    return on_director(lab, work())
