"""How busy real servers are, by bytes: what matters for images; pure.

The size of a study is unknown when an association opens. What is known is how many bytes each
server has moved over the last minutes: who moved more than its share gets a smaller weight, and so
fewer of the next associations.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

WINDOW = 180.0
"""Seconds that are looked back."""
_LEAST_SHARE = 0.25  # of the configured weight: a busy server is spared, not starved
_MOST = 256  # HAProxy's largest weight


class Moved:
    """Bytes that servers moved within the window.

    Counters begin at 0 with each worker of HAProxy's: a smaller one is a new one.

    Args:
        window: seconds that are looked back.
    """

    def __init__(self, window: float = WINDOW) -> None:
        self._window = window
        self._last: dict[str, int] = {}
        self._moved: deque[tuple[float, Mapping[str, int]]] = deque()

    def add(self, now: float, counters: Mapping[str, int]) -> None:
        """Take counters, in and out together, as read at a time.

        Args:
            now: seconds on a clock that only goes forward.
            counters: server -> bytes since the worker began.
        """
        moved: dict[str, int] = {}
        for server, counter in counters.items():
            last = self._last.get(server)
            if last is not None:  # the first reading says nothing of this window
                moved[server] = counter - last if counter >= last else counter
        self._last = dict(counters)
        self._moved.append((now, moved))
        while self._moved and self._moved[0][0] <= now - self._window:
            self._moved.popleft()

    def total(self) -> dict[str, int]:
        """Server -> bytes within the window."""
        found = dict.fromkeys(self._last, 0)
        for _, moved in self._moved:
            for server, number in moved.items():
                if server in found:
                    found[server] += number
        return found


def weights(configured: Mapping[str, int], moved: Mapping[str, int]) -> dict[str, int]:
    """HAProxy's weights for servers that serve.

    A server that moved its share, by the configured weights, or less keeps its weight; one that
    moved n times its share gets an n-th of it, but no less than a quarter.

    Args:
        configured: server -> weight, from 1.
        moved: server -> bytes; a missing one moved none.
    """
    if not configured:
        return {}
    everything = sum(moved.get(server, 0) for server in configured)
    shares = sum(configured.values())
    scale = _MOST / max(configured.values())
    found: dict[str, int] = {}
    for server, weight in configured.items():
        fair = everything * weight / shares
        own = moved.get(server, 0)
        factor = 1.0 if own <= fair else max(_LEAST_SHARE, fair / own)
        found[server] = max(1, min(_MOST, round(weight * scale * factor)))
    return found
