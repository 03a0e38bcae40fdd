"""Attaching the director's programs to devices, so that they go on without the daemon.

XDP in native mode by a pinned link, which is updated in place; the same decision at tc ingress,
for what XDP missed and for devices without native XDP; learning at tc egress. A program of someone
else is left where it is.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lbdr.datapath import bpf, bpf_netlink, tc
from lbdr.datapath.bpf_links import Link, device
from lbdr.datapath.bpf_netlink import XdpMode
from lbdr.datapath.bpf_programs import Program
from lbdr.datapath.bpf_wire import XdpFlag
from lbdr.datapath.xdp_programs import DirectorPrograms
from lbdr.errors import KernelError

log = logging.getLogger(__name__)

_PREFIX = "xdp-"  # of the pins of links, before the device's index


@dataclass(frozen=True, slots=True)
class Attachment:
    """How a device serves the fast path.

    Args:
        ifindex: of the device.
        xdp: whether it runs the XDP program, in native mode.
        reason: why not, in the kernel's words; empty where it does.
    """

    ifindex: int
    xdp: bool
    reason: str = ""


class Attachments:
    """The devices that the programs are attached to.

    Args:
        programs: open.
    """

    def __init__(self, programs: DirectorPrograms) -> None:
        self._programs = programs
        self._filters: set[tuple[int, tc.Direction]] | None = None  # None: not looked for yet

    async def keep(
        self,
        incoming: Collection[int],
        outgoing: Collection[int],
        every: Collection[int],
        marking: Collection[int] = (),
        guarded: Collection[int] = (),
        *,
        look: bool = True,
    ) -> list[Attachment]:
        """Attach to devices what is not attached yet, and detach from all others.

        Args:
            incoming: indexes of devices that VIPs are on.
            outgoing: of those that lead to servers whose service IPVS decides.
            every: of all devices.
            marking: of those that VIPs are on of services that are only marked: without XDP.
            guarded: of those where tc ingress is only to keep VIPs' packets from the local stack.
            look: whether those are still attached, too.

        Returns:
            How each incoming device serves.

        Raises:
            KernelError, PrivilegeError: tc cannot be had either.
        """
        wanted = {(ifindex, tc.Direction.INGRESS) for ifindex in (*incoming, *marking)}
        wanted |= {(ifindex, tc.Direction.EGRESS) for ifindex in outgoing}
        wanted |= {(ifindex, tc.Direction.INGRESS) for ifindex in guarded}
        if self._filters is None:  # an earlier process may have left some
            self._filters = await _filters(every)
        for ifindex in sorted({*incoming, *marking}):
            await self._attach_tc(self._programs.tc, ifindex, tc.Direction.INGRESS)
        found = [self._attach_xdp(ifindex) for ifindex in sorted(incoming)]
        for ifindex in sorted({*guarded} - {*incoming, *marking}):
            if look or (ifindex, tc.Direction.INGRESS) not in self._filters:
                await self._guard(ifindex)
        for ifindex in sorted(outgoing):
            await self._attach_tc(self._programs.learn, ifindex, tc.Direction.EGRESS)
        for ifindex, pin in list(links(self._programs.directory)):
            if ifindex not in incoming:
                bpf.unpin(pin)
                log.info("detached XDP from %s", device(ifindex))
        for ifindex, direction in sorted(self._filters - wanted):
            if await tc.detach(ifindex, direction):
                log.info("detached from tc %s of %s", direction.word, device(ifindex))
        self._filters = wanted
        return found

    async def all_there(self) -> bool:
        """Whether all that `keep` attached to tc is there yet; not where a device went."""
        try:
            found = [await tc.attached(*each) for each in self._filters or ()]
        except KernelError as error:
            log.debug("a device of the fast path is gone: %s", error)
            return False
        return None not in found

    async def _guard(self, ifindex: int) -> None:
        try:
            await self._attach_tc(self._programs.tc, ifindex, tc.Direction.INGRESS)
        except KernelError as error:
            if error.errno != errno.ENODEV:  # it has just gone, and all is well
                raise

    async def _attach_tc(self, program: Program, ifindex: int, direction: tc.Direction) -> None:
        if await tc.attached(ifindex, direction) == program.info().id:
            return
        await tc.attach(program, ifindex, direction)
        log.info("attached %s to tc %s of %s", program.info().name, direction.word, device(ifindex))

    def _attach_xdp(self, ifindex: int) -> Attachment:
        pin = self._programs.directory / f"{_PREFIX}{ifindex}"
        program = self._programs.steady
        try:
            if pin.exists() and self._adopt(pin):
                return Attachment(ifindex, xdp=True)
            try:
                with Link.create(program, ifindex, flags=XdpFlag.NATIVE) as link:
                    link.pin(pin)
            except KernelError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._attach_without_link(ifindex)  # before Linux 5.9
        except KernelError as error:
            return Attachment(ifindex, xdp=False, reason=str(error))
        log.info("attached XDP to %s, native", device(ifindex))
        return Attachment(ifindex, xdp=True)

    def _adopt(self, pin: Path) -> bool:
        """Use a link that is there, with today's program; whether it still has its device."""
        program = self._programs.steady
        with Link.open(pin) as link:
            if link.info().program_id == program.info().id:
                if link.info().ifindex:
                    return True
            else:
                try:
                    link.update(program)
                except KernelError as error:
                    if error.errno != errno.ENOLINK:
                        raise
                else:
                    log.info("replaced the XDP program of %s in place", link.label)
                    return True
        bpf.unpin(pin)  # the device went, or someone detached it by force
        return False

    def _attach_without_link(self, ifindex: int) -> None:
        there = [each for each in bpf_netlink.attached(ifindex) if each.mode is XdpMode.NATIVE]
        mine = self._programs.steady.info().id
        if any(each.program_id == mine for each in there):
            return
        bpf_netlink.attach(self._programs.steady, ifindex, XdpFlag.NATIVE)


async def _filters(devices: Iterable[int]) -> set[tuple[int, tc.Direction]]:
    """Which of lbdr's filters are there."""
    return {
        (ifindex, direction)
        for ifindex in devices
        for direction in tc.Direction
        if await tc.attached(ifindex, direction) is not None
    }


async def remove(directory: Path, devices: Iterable[int]) -> None:
    """Detach all that is pinned in a directory, and take the pins away: maps and programs go.

    XDP first: tc ingress has the packets until it goes, and then IPVS.

    Args:
        directory: of the pins.
        devices: indexes of all that may have a filter of lbdr's.

    Raises:
        KernelError, PrivilegeError: something cannot be detached.
    """
    for ifindex, pin in list(links(directory)):
        bpf.unpin(pin)
        log.info("detached XDP from %s", device(ifindex))
    for ifindex in sorted(devices):
        for direction in tc.Direction:
            if await tc.detach(ifindex, direction):
                log.info("detached from tc %s of %s", direction.word, device(ifindex))
    _forget(directory)


def _forget(directory: Path) -> None:
    for pin in sorted(directory.iterdir()):
        bpf.unpin(pin)
    directory.rmdir()


def links(directory: Path) -> Iterator[tuple[int, Path]]:
    """The devices that XDP is attached to, by index, with the pin of the link that does it.

    Args:
        directory: of the pins.
    """
    for pin in directory.glob(f"{_PREFIX}*"):
        yield int(pin.name.removeprefix(_PREFIX)), pin
