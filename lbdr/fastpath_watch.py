"""Watching what the fast path follows, for as long as the daemon runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable

from lbdr.director import Director
from lbdr.errors import LbdrError

_AGAIN = 5.0  # seconds until what cannot be watched is tried again


async def watch(
    director: Director,
    what: str,
    changes: Callable[[], AsyncGenerator[object, None]],
    mark: Callable[[], None],
    settled: float = 0.0,
) -> None:
    """Mark at every change; what is wrong is told as trouble, and tried again.

    It ends where the kernel tells of no such changes.

    Args:
        director: that is told.
        what: is done, for people.
        changes: of the kernel's.
        mark: called at each of them.
        settled: seconds to wait after one, since they come in numbers.
    """
    while True:
        try:
            async for _ in changes():
                director.set_trouble(what, "")
                mark()
                await asyncio.sleep(settled)
        except LbdrError as error:
            director.set_trouble(what, str(error))
            await asyncio.sleep(_AGAIN)
        else:
            return
