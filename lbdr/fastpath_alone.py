"""The fast path where the kernel has no IPVS: it follows lbdr's own table, and forwards alone.

Packets that it left to the local stack would be answered by a reset. So it is ready before a VIP is
claimed and stays until the VIP is gone; what it cannot forward the programs drop and count; and on
every device whose frames the local stack takes, tc ingress keeps VIPs' packets from it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Iterable, Mapping, Sequence

from lbdr.datapath.attach_notices import attachment_changes
from lbdr.datapath.routes_wire import Link
from lbdr.datapath.xdp import FastPath
from lbdr.datapath.xdp_attach import Attachment
from lbdr.datapath.xdp_counts import without_ipvs
from lbdr.datapath.xdp_layout import Reason
from lbdr.datapath.xdp_wanted import KnownFlow, WantedService
from lbdr.director import Director
from lbdr.errors import KernelError, LbdrError, PrivilegeError
from lbdr.fastpath import Mh
from lbdr.fastpath_keeper import SETTLED, FastPathKeeper
from lbdr.fastpath_wanted import to_guard
from lbdr.fastpath_watch import watch
from lbdr.model import Address, Key, VirtualAddress

log = logging.getLogger(__name__)

_RESOLVING = 1.0  # seconds that a VIP waits for the MACs of its real servers


def keeper_of(director: Director, *, once: bool = False) -> FastPathKeeper:
    """The fast path of a director, beside IPVS or without it.

    Args:
        director: whose services it serves.
        once: nobody follows afterwards.
    """
    if director.kernel.own_table is not None:
        return AloneKeeper(director)
    return FastPathKeeper(director, once=once)


class AloneKeeper(FastPathKeeper):
    """The fast path of a running director whose kernel has no IPVS.

    Args:
        director: whose services it serves.
    """

    trouble = "fast path, and nothing else forwards"
    alone = True

    def __init__(self, director: Director) -> None:
        super().__init__(director)
        self._claimed: Collection[VirtualAddress] = ()
        self._look = True  # whether guards are attached yet
        self._unresolved = False  # a real server that is to serve has no MAC yet
        self._mh = Mh((4, 6))  # the table is lbdr's own

    async def begin(self) -> None:
        """Load the programs, and from now on be ready before a VIP is claimed.

        Raises:
            PrivilegeError, KernelError: they cannot be had, so nothing would forward.
        """
        log.warning(
            "this kernel has no IPVS: XDP or tc forwards alone, and drops what it cannot forward"
        )
        try:
            async with self._following:
                self.fast = await self._start()
        except LbdrError as error:
            words = f"this kernel has no IPVS, and XDP and tc cannot be had: {error.message}"
            kind = PrivilegeError if isinstance(error, PrivilegeError) else KernelError
            raise kind(words, hint=error.hint) from error
        self._director.kernel.before_claim = self._before_claim

    async def _before_claim(
        self, vips: Collection[VirtualAddress]
    ) -> Mapping[VirtualAddress, LbdrError]:
        """Forward for VIPs that are about to be claimed; why not, of those that have nothing."""
        self._claimed = {*self._claimed, *vips}
        deadline = time.monotonic() + _RESOLVING
        try:
            await self.follow()
            while self._unresolved and time.monotonic() < deadline:
                await asyncio.sleep(SETTLED)
                await self.follow()
        except LbdrError as error:
            return dict.fromkeys(vips, error)
        fast = self.fast
        served = {fast.traffic(key).address for key in fast.keys} if fast is not None else set()
        return {
            vip: KernelError(f"{vip.address} is not claimed: nothing would forward for it")
            for vip in vips
            if vip.address not in served
        }

    async def passed(self) -> None:
        """A pass is over: VIPs are where they are seen, and what was applied is in force."""
        self._claimed = ()
        await self._look_again()

    # --- watching --------------------------------------------------------------------------------

    @property
    def _needed(self) -> bool:
        """Always: nothing else forwards."""
        return True

    @property
    def _most(self) -> float:
        """A program that somebody detached is put back as soon as other drift."""
        return min(super()._most, self._director.loaded.configuration.director.drift_check)

    async def _watch_programs(self) -> None:
        """Every moment counts in which a program is not where it belongs."""

        def look() -> None:
            self._look = True
            self.mark()

        await watch(self._director, "watching programs", attachment_changes, look, SETTLED)

    # --- one pass --------------------------------------------------------------------------------

    def _left(self) -> Collection[str]:
        """None: there is nobody to leave a service to."""
        return ()

    async def _know_mh(self) -> None:
        """Nothing is compared: the table is lbdr's own."""

    def _only_marked(
        self,
        wanted: Mapping[Key, WantedService],  # noqa: ARG002  # nobody else forwards
        links: Mapping[int, Link],  # noqa: ARG002
    ) -> dict[Key, WantedService]:
        return {}

    async def _exchange(
        self,
        fast: FastPath,  # noqa: ARG002  # nobody else has connections
        wanted: Mapping[Key, WantedService],  # noqa: ARG002
        others: Collection[Key],  # noqa: ARG002
    ) -> Mapping[Key, Sequence[KnownFlow]]:
        return {}

    def _vips(self) -> dict[Address, VirtualAddress]:
        """Also those that are about to be claimed, and those that are to go and are here yet."""
        director = self._director
        here = (
            vip
            for vip in director.reconciler.state.owned.addresses
            if vip.interface in director.network.holders(vip.address)
        )
        return {vip.address: vip for vip in (*here, *director.held(), *self._claimed)}

    def _over(self, keys: Collection[Key]) -> Collection[Key]:
        """Those that left the table: they leave it after their VIP has left."""
        table = self._director.kernel.schedules()
        return [key for key in keys if key not in table]

    def _note(self, wanted: Mapping[Key, WantedService], slow: Mapping[str, str]) -> None:
        """Whether a MAC is missing; tells of services that nothing forwards."""
        self._unresolved = any(
            server.weight and server.reach.mac is None and not server.reach.local
            for service in wanted.values()
            for server in service.real_servers
        )
        reasons = "; ".join(f"{name}: {reason}" for name, reason in sorted(slow.items()))
        self._director.set_trouble("nothing forwards", reasons)

    async def _attach(
        self,
        fast: FastPath,
        wanted: Iterable[WantedService],
        links: Mapping[int, Link],
        *,
        look: bool,
    ) -> list[Attachment]:
        again, self._look = self._look, False
        return await super()._attach(fast, wanted, links, look=look or again)

    def _guarded(self, links: Mapping[int, Link]) -> frozenset[int]:
        return to_guard(links)

    def _reasons(self, fast: FastPath, key: Key | None) -> dict[Reason, int]:
        """Why packets were not forwarded: XDP drops most of them itself."""
        halves = (fast.reasons(key, tc=tc) for tc in (False, True))
        return without_ipvs(*halves)
