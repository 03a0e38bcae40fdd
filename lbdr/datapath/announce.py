"""Announcing VIPs: gratuitous ARP for IPv4, unsolicited neighbour advertisements for IPv6."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv6Address

from lbdr.datapath import frames
from lbdr.datapath.packets import PacketSocket
from lbdr.errors import LbdrError
from lbdr.model import GratuitousArp, VirtualAddress

_log = logging.getLogger(__name__)

_TURN = 32  # frames sent before other tasks have their turn


async def announce(vips: Sequence[VirtualAddress], repeat: int = 1) -> None:
    """Announce VIPs; the first frames of all leave before the second ones.

    Args:
        vips: on Ethernet interfaces that are up.
        repeat: frames for each, at once.

    Raises:
        PrivilegeError: the caller lacks CAP_NET_RAW.
        KernelError: an interface is missing, down, or has no ARP; the others' frames were sent.
    """
    burst = _Burst()
    try:
        for _ in range(repeat):
            for vip in vips:
                await burst.send(vip)
    finally:
        burst.close()
    for error in burst.errors.values():
        raise error


class Announcer:
    """Announces a changing set of VIPs by schedule.

    A VIP is announced by `repeat` frames when it is added, as many after `delay`, and by
    `refresh_repeat` frames every `refresh` from then on. Whatever is due, frames that are a VIP's
    first go first. An interface that fails is logged, once, and tried again at the next set.

    Args:
        settings: how many frames, and when.
    """

    def __init__(self, settings: GratuitousArp) -> None:
        self._settings = settings
        self._order = itertools.count()
        self._current: dict[VirtualAddress, int] = {}  # by the order of its latest add
        self._later: list[_Set] = []  # a heap
        self._ready: list[_Frame] = []  # a heap
        self._wake = asyncio.Event()
        self._sent = asyncio.Event()
        self._failing: dict[str, str] = {}
        self._task: asyncio.Task[None] | None = None

    @property
    def vips(self) -> frozenset[VirtualAddress]:
        """The VIPs that it announces."""
        return frozenset(self._current)

    def configure(self, settings: GratuitousArp) -> None:
        """Go by another schedule; VIPs that are announced begin anew where it differs."""
        if settings != self._settings:
            self._settings = settings
            self.add(self.vips)

    def add(self, vips: Iterable[VirtualAddress]) -> None:
        """Announce VIPs from now on; one that is announced already begins anew."""
        now = asyncio.get_running_loop().time()
        for vip in vips:
            added = next(self._order)
            self._current[vip] = added
            self._begin(_Set(now, added, vip, 0))
        self._sent.clear()
        self._wake.set()
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="announcer")

    def discard(self, vips: Iterable[VirtualAddress]) -> None:
        """Announce VIPs no more, from this very moment on."""
        for vip in vips:
            self._current.pop(vip, None)

    async def flush(self) -> None:
        """Wait until every frame that is due has been sent, or its interface has failed."""
        if self._task is not None:
            await self._sent.wait()

    async def close(self) -> None:
        """Stop announcing."""
        self._current.clear()
        self._sent.set()  # nobody may wait for what will not come
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                await self._send_ready()
            except Exception:  # noqa: BLE001  # else nothing is announced any more, in silence
                _log.exception("announcing VIPs failed; it goes on with the next set")
                self._ready.clear()
            self._sent.set()
            self._wake.clear()
            due = self._later[0].due if self._later else None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await self._wake.wait()
            while self._later and self._later[0].due <= loop.time():
                self._begin(heapq.heappop(self._later))

    def _begin(self, announced: _Set) -> None:
        """Make a set's first frame ready, and put the set after it on the schedule."""
        if self._current.get(announced.vip) != announced.added:
            return  # discarded, or added again, meanwhile
        settings = self._settings
        later = announced.number > (1 if settings.delay else 0)
        frames_of_set = settings.refresh_repeat if later else settings.repeat
        if frames_of_set:
            heapq.heappush(self._ready, _Frame(1, announced.added, announced.vip, frames_of_set))
        pause = settings.delay if announced.number == 0 and settings.delay else settings.refresh
        if pause:
            due = announced.due + pause
            following = _Set(due, announced.added, announced.vip, announced.number + 1)
            heapq.heappush(self._later, following)

    async def _send_ready(self) -> None:
        """Send what is ready, and what becomes ready meanwhile, by the frames' numbers."""
        if not self._ready:
            return
        burst = _Burst()
        try:
            for count in itertools.count(1):
                if not self._ready:
                    break
                frame = heapq.heappop(self._ready)
                if self._current.get(frame.vip) != frame.added:
                    continue
                await burst.send(frame.vip)
                if frame.number < frame.last:
                    following = _Frame(frame.number + 1, frame.added, frame.vip, frame.last)
                    heapq.heappush(self._ready, following)
                if count % _TURN == 0:
                    await asyncio.sleep(0)
        finally:
            burst.close()
        self._report(burst)

    def _report(self, burst: _Burst) -> None:
        """Log an interface that began to fail, or to work again."""
        for interface, error in burst.errors.items():
            if self._failing.get(interface) != str(error):
                self._failing[interface] = str(error)
                _log.warning("VIPs are not announced: %s", error)
        for interface in burst.used - burst.errors.keys():
            if self._failing.pop(interface, None) is not None:
                _log.info("VIPs on %s are announced again", interface)


@dataclass(frozen=True, slots=True, order=True)
class _Set:
    """Frames of a VIP that are due together; the first set has number 0."""

    due: float
    added: int
    vip: VirtualAddress = field(compare=False)
    number: int = field(compare=False)


@dataclass(frozen=True, slots=True, order=True)
class _Frame:
    """A frame that may be sent now; the first one of a set has number 1."""

    number: int
    added: int
    vip: VirtualAddress = field(compare=False)
    last: int = field(compare=False)


class _Burst:
    """Sockets for frames that leave together.

    They are opened anew for each burst: an interface may have gone, come back under its name, or
    have got another MAC since the last one.
    """

    def __init__(self) -> None:
        self.errors: dict[str, LbdrError] = {}
        self._sockets: dict[str, PacketSocket] = {}

    @property
    def used(self) -> set[str]:
        """The interfaces on which frames were to leave."""
        return self._sockets.keys() | self.errors.keys()

    async def send(self, vip: VirtualAddress) -> None:
        """Send one frame; nothing more on an interface that failed once."""
        if vip.interface in self.errors:
            return
        try:
            if vip.interface not in self._sockets:
                self._sockets[vip.interface] = PacketSocket(vip.interface)
            packets = self._sockets[vip.interface]
            await packets.send(_announcement(packets.mac, vip))
        except LbdrError as error:
            self.errors[vip.interface] = error

    def close(self) -> None:
        """Close the sockets."""
        for packets in self._sockets.values():
            packets.close()


def _announcement(mac: str, vip: VirtualAddress) -> bytes:
    if isinstance(vip.address, IPv6Address):
        return frames.unsolicited_advertisement(mac, vip.address)
    return frames.gratuitous_arp(mac, vip.address)
