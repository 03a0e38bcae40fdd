"""Keeps the fast path as IPVS is: a task of the daemon.

It only ever follows: IPVS, the VIPs and the neighbours change, and the programs' maps are brought
after them. Whatever is wrong with it, IPVS goes on, with the same choices.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Coroutine, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial

from lbdr import mh_verdict
from lbdr.control.protocol import FastPathResult
from lbdr.datapath import routes as rtnetlink
from lbdr.datapath import xdp_redirects
from lbdr.datapath.mh_check import MhOutcome
from lbdr.datapath.neighbours import Neighbours
from lbdr.datapath.routes_wire import Link
from lbdr.datapath.xdp import FastPath
from lbdr.datapath.xdp_attach import Attachment, Attachments
from lbdr.datapath.xdp_layout import Capacity, Reason
from lbdr.datapath.xdp_wanted import KnownFlow, WantedService
from lbdr.director import Director
from lbdr.errors import KernelError, LbdrError, PrivilegeError
from lbdr.fastpath import OFF, Mh, chosen, is_table
from lbdr.fastpath_devices import devices_of
from lbdr.fastpath_handover import give, held
from lbdr.fastpath_pins import is_there, open_pinned, remove
from lbdr.fastpath_services import forwarded, marked_only, successors, unmarked
from lbdr.fastpath_status import with_fast_path
from lbdr.fastpath_told import told
from lbdr.fastpath_wanted import unforwarded
from lbdr.fastpath_watch import watch
from lbdr.maglev import DEFAULT_INDEX
from lbdr.marked_services import be_able_to_mark
from lbdr.model import Address, FastPathUse, Key, MarkKey, Service, VirtualAddress
from lbdr.status import FastPathDirector, Status

log = logging.getLogger(__name__)

_REDIRECTS = "watching which devices take redirected frames"
_SWEEP = 5.0  # seconds between looks at records, and at neighbours that nothing else keeps fresh
_UNMARKED = "packet marks of services with several ports"
_SETTLING = 15.0  # seconds; a table waits 3 before it changes
_OVERDUE = 0.2  # seconds until what could not be done in its time is tried again
SETTLED = 0.05
"""Seconds that a watcher waits after a change: they come in numbers."""


@dataclass(slots=True)
class FastPathState:
    """What the fast path does, for status.

    Args:
        reason: why there is none; empty where there is one.
        slow: services that IPVS serves alone, and why.
        devices: how each device that has VIPs serves.
    """

    reason: str = "starting"
    slow: Mapping[str, str] = field(default_factory=dict)
    devices: list[Attachment] = field(default_factory=list)


class FastPathKeeper:
    """The fast path of a running director.

    Args:
        director: whose services it serves.
        once: nobody follows afterwards: what was not forwarded before is only marked.
    """

    trouble = "fast path, IPVS forwards"
    alone = False

    def __init__(self, director: Director, *, once: bool = False) -> None:
        self._director = director
        self._once = once
        self._changed = asyncio.Event()
        self._following = asyncio.Lock()
        self._handed_over = 0
        self._swept = 0.0
        self._open = ExitStack()
        self._neighbours = Neighbours()
        self._mh = Mh()
        self._compared = False
        self._index = DEFAULT_INDEX
        self.state = FastPathState()
        self._attachments: Attachments | None = None
        self._unmarked: Mapping[Address, str] = {}
        self.fast: FastPath | None = None

    async def follow(self) -> FastPathResult:
        """Follow now, and say what is served.

        Raises:
            LbdrError: something of it failed.
        """
        before = self._handed_over
        async with self._following:
            await self._refresh()
        names = {
            service.name
            for key, service in self._director.desired().services.items()
            if self.fast is not None and key in self.fast.forwarded
        }
        return FastPathResult(
            forwards=sorted(names),
            off=dict(self.state.slow) or ({"": self.state.reason} if self.state.reason else {}),
            handed_over=self._handed_over - before,
        )

    def mark(self) -> None:
        """Something changed that the fast path may have to follow."""
        self._changed.set()

    async def open(self) -> None:
        """Adopt or load the programs, for services that need a packet mark.

        Raises:
            LbdrError: they cannot be had.
        """
        async with self._following:
            if self.fast is None:
                await self._know_mh()
                self.fast = await self._start()

    async def begin(self) -> None:
        """Before anything is applied: have what VIPs need before they are claimed.

        Raises:
            ConfigError: a service needs a packet mark, and it cannot be set.
        """
        await be_able_to_mark(self._director.loaded, self.open)
        self._director.kernel.before_claim = self._before_claim

    async def _before_claim(
        self, vips: Collection[VirtualAddress]
    ) -> Mapping[VirtualAddress, LbdrError]:
        """Have packets marked before they are called here; the VIPs for which that cannot be had.

        A VIP that has services without a mark, too, is not among them.
        """
        services = self._director.desired().services.values()
        marked = {one.marked.address for one in services if one.marked is not None}
        if not any(vip.address in marked for vip in vips):
            return {}
        marked -= {one.traffic.address for one in services if not one.marked and one.traffic}
        try:
            async with self._following:
                await self._refresh()
        except LbdrError as error:
            self._director.set_trouble(_UNMARKED, str(error))
            return {vip: error for vip in vips if vip.address in marked}
        return {
            vip: KernelError(f"{vip.address} is not claimed: {self._unmarked[vip.address]}")
            for vip in vips
            if vip.address in marked & self._unmarked.keys()
        }

    async def passed(self) -> None:
        """A pass is over, and the interfaces were looked at again."""
        self.mark()

    async def settle(self) -> None:
        """Follow until nothing is left that waits for its time; not for ever for want of room."""
        await self.follow()
        end = time.monotonic() + _SETTLING
        while self.fast is not None and self.fast.due is not None and time.monotonic() < end:
            await asyncio.sleep(self._wait())
            await self.follow()

    async def run(self) -> None:
        """Follow, until cancelled; what is attached stays."""
        try:
            async with asyncio.TaskGroup() as group:
                for task in self._tasks():
                    group.create_task(task)
        finally:
            self.close()

    def _tasks(self) -> list[Coroutine[object, object, None]]:
        return [
            watch(
                self._director, "watching neighbours", self._neighbours.changes, self.mark, SETTLED
            ),
            watch(self._director, _REDIRECTS, xdp_redirects.changes, self.mark),
            self._watch_programs(),
            self._follow(),
        ]

    async def _follow(self) -> None:
        while True:
            with suppress(TimeoutError):  # wait_for of Python 3.11 can lose a cancellation
                async with asyncio.timeout(self._wait()):
                    await self._changed.wait()
            self._changed.clear()
            await self._look_again()

    async def _look_again(self) -> None:
        """Follow now; what is wrong is told as trouble."""
        try:
            async with self._following:
                await self._refresh()
        except LbdrError as error:
            if isinstance(error, PrivilegeError) and not self._needed:
                self._forgo(str(error))  # who runs it so does without
                return
            if self.fast is None:
                self.state = FastPathState(reason=error.message)
            self._director.set_trouble(self.trouble, str(error))
        else:
            self._director.set_trouble(self.trouble, "")

    @property
    def _needed(self) -> bool:
        """Whether services need the programs: IPVS knows them by a mark alone."""
        return any(isinstance(key, MarkKey) for key in self._director.desired().services)

    def _forgo(self, reason: str) -> None:
        if self.state.reason != reason:
            log.info("no fast path, IPVS forwards: %s", reason)
        self.state = FastPathState(reason=reason)
        self._director.set_trouble(self.trouble, "")

    def _wait(self) -> float:
        """Seconds until the next pass that nothing else asks for."""
        due = self.fast.due if self.fast is not None else None
        if due is None:
            return self._most
        left = due - time.monotonic()
        return min(max(left, 0.01) if left > 0 else _OVERDUE, self._most)

    @property
    def _most(self) -> float:
        """Seconds from one pass to the next at most."""
        return _SWEEP

    async def _watch_programs(self) -> None:
        """Notice programs that somebody detached: IPVS does not know unmarked packets."""
        director = self._director
        while True:
            await asyncio.sleep(director.loaded.configuration.director.drift_check)
            if self._needed and self._attachments and not await self._attachments.all_there():
                log.warning("drift: a program was detached from tc, and is attached again")
                self.mark()

    # --- one pass --------------------------------------------------------------------------------

    async def _refresh(self) -> None:
        director = self._director
        configuration = director.loaded.configuration
        if director.withdrawn:
            return  # it is ended once the VIPs are gone
        nothing = OFF if configuration.director.fastpath is FastPathUse.OFF else ""
        if nothing and not self._needed:
            await self.end(nothing)
            return
        desired = director.desired().services
        await self._know_mh()
        if self._once and self.fast is None and (self._needed or is_there(director.paths)):
            self.fast = await self._start()
        if self._once and self.fast is not None and not self.fast.forwarded:
            nothing = nothing or "no daemon follows"
        services, slow = chosen(
            desired, configuration.virtual_services, self._mh, self._left(), nothing=nothing
        )
        if self.fast is None:
            if not services and not self._needed:
                self.state = FastPathState(reason="no service can use it", slow=slow)
                return
            self.fast = await self._start()
        links = await rtnetlink.links()
        wanted = await forwarded(
            director, self._neighbours, services, links, self._vips(), alone=self.alone
        )
        marked = self._only_marked(wanted, links)
        fast = self.fast
        for key, other in successors(fast, wanted):
            fast.rename(key, other)
        others = {key for key in fast.forwarded & wanted.keys() if fast.is_other(key, wanted[key])}
        coming = await self._exchange(fast, wanted, others)
        self._put(fast, {**wanted, **marked}, coming, others=others, services=desired, slow=slow)
        self._note(wanted, slow)
        swept = time.monotonic() - self._swept >= _SWEEP
        if swept:
            await asyncio.to_thread(fast.sweep)
            self._swept = time.monotonic()
        every = [*wanted.values(), *marked.values()]
        devices = await self._attach(fast, every, links, look=swept)
        self.state = FastPathState(nothing, slow, devices)

    def _left(self) -> Collection[str]:
        """The services that the operator left to IPVS."""
        return self._director.reconciler.state.fastpath_off

    def _vips(self) -> dict[Address, VirtualAddress]:
        """The VIPs that this host has, by address."""
        return {vip.address: vip for vip in self._director.held()}

    def _only_marked(
        self, wanted: Mapping[Key, WantedService], links: Mapping[int, Link]
    ) -> dict[Key, WantedService]:
        """The services that IPVS forwards by their marks; tells of VIPs where none can be set."""
        marked = marked_only(self._director, wanted, links)
        self._unmarked = unmarked(self._director, {**wanted, **marked})
        self._director.set_trouble(_UNMARKED, "; ".join(self._unmarked.values()))
        return marked

    async def _exchange(
        self, fast: FastPath, wanted: Mapping[Key, WantedService], others: Collection[Key]
    ) -> Mapping[Key, Sequence[KnownFlow]]:
        """Give IPVS the connections of services that leave; those it has of services that come.

        Args:
            fast: that has services.
            wanted: those that are to be there.
            others: those that are to be decided otherwise: they leave and come.
        """
        leaving = (fast.forwarded - wanted.keys()) & self._director.desired().services.keys()
        self._handed_over += await give(fast, leaving | {*others})
        new = wanted.keys() - fast.forwarded | {*others}
        coming = await held({key: wanted[key].traffic for key in new})
        for key in others:
            coming.setdefault(key, []).extend(fast.learned(key))
        return coming

    async def _know_mh(self) -> None:
        """Compare the running kernel's mh with lbdr's, where a service uses it.

        Once; asked again while nobody may try.
        """
        services = self._director.desired().services.values()
        if self._compared or not any(map(is_table, services)):
            return
        verdict = await asyncio.to_thread(mh_verdict.find, self._director.paths)
        forbidden = verdict.outcome is MhOutcome.FORBIDDEN
        found = Mh(verdict.versions) if verdict.agrees else Mh(reason=verdict.reason)
        if found.reason and found != self._mh:
            level = logging.INFO if forbidden else logging.ERROR  # who runs it so does without
            log.log(level, "mh services run on IPVS alone: %s", verdict.reason)
        self._mh, self._index, self._compared = found, verdict.index, not forbidden

    def _put(
        self,
        fast: FastPath,
        wanted: Mapping[Key, WantedService],
        coming: Mapping[Key, Sequence[KnownFlow]],
        *,
        others: Collection[Key],
        services: Mapping[Key, Service],
        slow: dict[str, str],
    ) -> None:
        """Write what is wanted; what there is no room for is IPVS's.

        Raises:
            KernelError: there is no room for a service that IPVS knows by a mark alone.
        """
        for key in self._over(fast.keys - wanted.keys()):
            fast.drop(key)
        for key, service in wanted.items():
            try:
                fast.put(key, service, coming.get(key, ()), anew=key in others)
            except KernelError as error:
                if service.marked_only:
                    raise
                slow[services[key].name] = error.message
                if self.alone:
                    continue  # it stays as it was
                if service.mark:
                    fast.put(key, unforwarded(service))
                elif key in fast.keys:
                    fast.drop(key)

    def _note(self, wanted: Mapping[Key, WantedService], slow: Mapping[str, str]) -> None:
        """What was put is told, where nothing else forwards."""

    def _over(self, keys: Collection[Key]) -> Collection[Key]:
        """Of services that are not wanted, those that may be dropped now."""
        return keys

    def _guarded(self, links: Mapping[int, Link]) -> frozenset[int]:  # noqa: ARG002  # see AloneKeeper
        """Devices where VIPs' packets are to be kept from the local stack."""
        return frozenset()

    async def _attach(
        self,
        fast: FastPath,
        wanted: Iterable[WantedService],
        links: Mapping[int, Link],
        *,
        look: bool,
    ) -> list[Attachment]:
        needed = devices_of(wanted)
        if self._attachments is None:
            self._attachments = Attachments(fast.programs)
        guarded = self._guarded(links) - needed.incoming if needed.incoming else frozenset()
        devices = await self._attachments.keep(
            needed.incoming, needed.outgoing, links.keys(), needed.marking, guarded, look=look
        )
        self._tell(devices)
        await xdp_redirects.keep(fast.maps["devices"], needed.behind)
        return devices

    def status(self, status: Status) -> Status:
        """A status with what the fast path does."""
        fast, state = self.fast, self.state
        if fast is None or state.reason:  # a first pass has yet to end
            return with_fast_path(status, FastPathDirector(reason=state.reason), {}, state.slow)
        names = {key: service.name for key, service in self._director.desired().services.items()}
        director, counts = told(fast, names, state.devices, partial(self._reasons, fast))
        return with_fast_path(status, director, counts, state.slow)

    def _reasons(self, fast: FastPath, key: Key | None) -> dict[Reason, int]:
        """Why packets were not forwarded: what XDP passed up, tc ingress sees again."""
        return fast.reasons(key, tc=True)

    def _tell(self, devices: Iterable[Attachment]) -> None:
        known = {device.ifindex: device for device in self.state.devices}
        for device in devices:
            if known.get(device.ifindex) != device and not device.xdp:
                log.warning("no native XDP, tc ingress serves: %s", device.reason)

    async def _start(self) -> FastPath:
        capacity = Capacity(index=self._index)
        fast, adopted, self._open = await open_pinned(self._director.paths, capacity)
        log.info("fast path: %s", "adopted" if adopted else "programs loaded")
        return fast

    async def end(self, reason: str, *, hand_over: bool = True) -> None:
        """Leave everything to IPVS, also what an earlier process left.

        Args:
            reason: told in status.
            hand_over: give IPVS the connections that it would place elsewhere.

        Raises:
            KernelError, PrivilegeError: something cannot be detached.
        """
        if self.state.reason == reason and self.fast is None:
            return
        paths = self._director.paths
        if hand_over and is_there(paths):
            self.fast = self.fast or await self._start()
            self._handed_over += await give(self.fast, self.fast.forwarded)
        if self.fast is not None or is_there(paths):
            log.info("fast path: ends%s: %s", "" if self.alone else ", IPVS forwards", reason)
            self.close()
            await remove(paths)
        self.state = FastPathState(reason=reason)

    def close(self) -> None:
        """Let go of the programs and maps; what is pinned goes on."""
        self._open.close()
        self.fast = self._attachments = None
