"""The kernel of this network namespace, all subsystems together: observe, and do.

The one place through which everything else reaches the kernel.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import (
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from lbdr.datapath import arp, ipvs_text, sysctl
from lbdr.datapath.addresses import Addresses
from lbdr.datapath.announce import Announcer, announce
from lbdr.datapath.ipvs import BATCH, Ipvs
from lbdr.datapath.ipvs_text import Scheduled
from lbdr.datapath.own_table import OwnTable
from lbdr.errors import AddressInUseError, LbdrError, NoIpvsError
from lbdr.model import (
    Address,
    AddressProbe,
    HostNetwork,
    Key,
    ObservedService,
    Timeouts,
    VirtualAddress,
)
from lbdr.operations import (
    AddAddress,
    AddRealServer,
    AddService,
    AnnounceAddress,
    DeleteAddress,
    IpvsOperation,
    Operation,
    ProbeAddress,
    SetSysctl,
    service_key,
)

BeforeClaim = Callable[[Collection[VirtualAddress]], Awaitable[Mapping[VirtualAddress, LbdrError]]]
"""Called once services are there, with the VIPs that are to be claimed: has what their packets need
ready. Those that it answers have nothing behind them and are not claimed, with the reason."""

_YIELD_EVERY = 32  # services observed between two turns of the event loop


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an operation.

    Args:
        operation: as planned.
        error: why it failed; None where it was done.
        skipped: it was not tried, since an operation that it needs had failed.
    """

    operation: Operation
    error: LbdrError | None = None
    skipped: bool = False


class Kernel:
    """IPVS, addresses, ARP and sysctls of the calling thread's network namespace.

    Made by `open`, inside a running event loop. Where the kernel has no IPVS, a table of lbdr's own
    is in its place, and the fast path alone forwards.

    Args:
        ipvs: or what stands in its place.
        addresses: of the interfaces.
    """

    def __init__(self, ipvs: Ipvs | OwnTable, addresses: Addresses) -> None:
        self.ipvs = ipvs
        self.addresses = addresses
        self.probe = AddressProbe()
        self.announcer: Announcer | None = None
        self.before_claim: BeforeClaim | None = None

    @classmethod
    async def open(cls) -> Self:
        """Connect to every subsystem.

        Raises:
            KernelError: IPVS does not answer.
            PrivilegeError: the caller may not use it (CAP_NET_ADMIN).
        """
        try:
            ipvs = await Ipvs.open()
        except NoIpvsError:
            return cls(OwnTable(), Addresses())
        try:
            ipvs.timeouts()  # any request tells whether one may ask
        except LbdrError:
            ipvs.close()
            raise
        return cls(ipvs, Addresses())

    def close(self) -> None:
        """Disconnect; what the kernel holds stays."""
        self.ipvs.close()
        self.addresses.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def own_table(self) -> OwnTable | None:
        """What stands in IPVS's place; None where there is IPVS."""
        return self.ipvs if isinstance(self.ipvs, OwnTable) else None

    # --- what is there ---------------------------------------------------------------------------

    def schedules(self) -> dict[Key, tuple[str, tuple[Scheduled, ...]]]:
        """The scheduler of each service, and its real servers in the order of the list.

        Raises:
            KernelError: IPVS's table cannot be read.
        """
        if self.own_table is not None:
            return self.own_table.schedules()
        return ipvs_text.schedules(ipvs_text.read())

    async def observe_services(
        self, keys: Iterable[Key] | None = None
    ) -> dict[Key, ObservedService]:
        """IPVS's virtual services, all or some; one that is not there is left out."""
        entries = self.ipvs.observe() if keys is None else (self.ipvs.service(key) for key in keys)
        found: dict[Key, ObservedService] = {}
        for count, entry in enumerate(entries, start=1):
            if entry is not None:
                found[entry.service.key] = entry
            if count % _YIELD_EVERY == 0:
                await asyncio.sleep(0)
        return found

    def service_keys(self) -> set[Key]:
        """Which virtual services IPVS has."""
        return {entry.service.key for entry in self.ipvs.services()}

    def observe_host(self, sysctls: Iterable[str]) -> tuple[dict[str, str | None], Timeouts]:
        """What can be read at once and announces no change: sysctls and IPVS's timeouts."""
        return sysctl.observe(sysctls), self.ipvs.timeouts()

    # --- do it -----------------------------------------------------------------------------------

    async def apply(
        self,
        operations: Sequence[Operation],
        network: HostNetwork,
        report: Callable[[Outcome], None],
        between: Callable[[], Awaitable[Collection[Key]]] | None = None,
    ) -> None:
        """Do operations in their order; one that fails stops only those that need it.

        Args:
            operations: as planned.
            network: the interfaces as observed for the plan.
            report: told of each operation what became of it.
            between: called between batches, so that something urgent need not wait for the end;
                returns the services whose further operations are out of date: they are dropped.
        """
        held: list[Outcome] = []
        run = _Run(self, network, held.append, between)
        try:
            for subsystem, group in itertools.groupby(operations, key=_subsystem):
                some = list(group)
                await run.ready(some)
                await subsystem(run, some)
                if subsystem not in _CLAIMING:
                    _pass_on(held, report)
        finally:
            _pass_on(held, report)


class _Run:
    """One execution of a plan, and what in it failed so far."""

    def __init__(
        self,
        kernel: Kernel,
        network: HostNetwork,
        report: Callable[[Outcome], None],
        between: Callable[[], Awaitable[Collection[Key]]] | None,
    ) -> None:
        self._kernel = kernel
        self._network = network
        self._report = report
        self._between = between
        self._failed_services: set[Key] = set()
        self._failed_addresses: set[VirtualAddress] = set()
        self._refused: set[Address] = set()  # VIPs of services that the kernel refused
        self._served: set[Address] = set()  # VIPs of services that were added
        self._outdated: Collection[Key] = ()
        self._ready: set[VirtualAddress] = set()  # VIPs for which it was asked
        self._unready: dict[VirtualAddress, LbdrError] = {}

    async def ready(self, operations: Iterable[Operation]) -> None:
        """Before VIPs are claimed: what their packets need has to be there first."""
        if self._kernel.before_claim is None:
            return
        vips = {op.vip for op in operations if isinstance(op, ProbeAddress | AddAddress)}
        if vips - self._ready:
            self._unready |= await self._kernel.before_claim(vips)
            self._ready |= vips

    def _tell_unready(self, operation: ProbeAddress | AddAddress | DeleteAddress) -> bool:
        """Whether a claim is not to be made, and it was told now."""
        error = self._unready.get(operation.vip)
        if error is None or operation.vip in self._failed_addresses:
            return False
        if isinstance(operation, DeleteAddress):
            return False
        self._failed_addresses.add(operation.vip)
        self._report(Outcome(operation, error))
        return True

    async def services(self, operations: list[IpvsOperation]) -> None:
        for group in _batches(operations):
            batch = [operation for operation in group if self._still_to_do(operation)]
            if batch:
                for operation, error in zip(batch, self._kernel.ipvs.apply(batch), strict=True):
                    self._judge_service(operation, error)
            await asyncio.sleep(0)
            if self._between is not None:
                self._outdated = await self._between()

    def _still_to_do(self, operation: IpvsOperation) -> bool:
        key = service_key(operation)
        if key is None or (key not in self._failed_services and key not in self._outdated):
            return True
        self._report(Outcome(operation, skipped=True))
        return False

    def _judge_service(self, operation: IpvsOperation, error: LbdrError | None) -> None:
        if isinstance(operation, AddService):
            key = operation.service.key
            if error is not None:
                self._failed_services.add(key)
            traffic = operation.service.traffic
            if traffic is not None:
                (self._served if error is None else self._refused).add(traffic.address)
        self._report(Outcome(operation, error))

    async def sysctls(self, operations: list[SetSysctl]) -> None:
        for operation in operations:
            try:
                sysctl.apply(operation)
            except LbdrError as error:
                self._report(Outcome(operation, error))
            else:
                self._report(Outcome(operation))

    async def probes(self, operations: list[ProbeAddress]) -> None:
        """All at once, since each takes its time; none of a VIP that has nothing behind it."""
        unserved = self._refused - self._served
        operations = [operation for operation in operations if not self._tell_unready(operation)]
        for operation in operations:
            if operation.vip.address in unserved:
                self._failed_addresses.add(operation.vip)
                self._report(Outcome(operation, skipped=True))
        operations = [
            operation for operation in operations if operation.vip.address not in unserved
        ]
        try:
            answers = await arp.probe(
                [operation.vip for operation in operations], self._network, self._kernel.probe
            )
        except LbdrError:
            # one bad interface must not keep the VIPs of the others from being claimed
            for operation in operations:
                await self._probe_alone(operation)
            return
        for operation in operations:
            self._judge_probe(operation, answers.get(operation.vip))

    async def _probe_alone(self, operation: ProbeAddress) -> None:
        try:
            answers = await arp.probe([operation.vip], self._network, self._kernel.probe)
        except LbdrError as error:
            self._failed_addresses.add(operation.vip)
            self._report(Outcome(operation, error))
            return
        self._judge_probe(operation, answers.get(operation.vip))

    def _judge_probe(self, operation: ProbeAddress, mac: str | None) -> None:
        if mac is None:
            self._report(Outcome(operation))
            return
        self._failed_addresses.add(operation.vip)
        vip = operation.vip
        self._report(
            Outcome(
                operation,
                AddressInUseError(
                    f"{vip.address} is in use on {vip.interface}: the host with MAC {mac} answers "
                    f"for it",
                    hint="a real server there needs `lbdr solve-arp`; another director must give "
                    "the VIP up first",
                ),
            )
        )

    async def addresses(self, operations: list[AddAddress | DeleteAddress]) -> None:
        possible = []
        unclaimed = {vip.address for vip in (*self._failed_addresses, *self._unready)}
        for operation in operations:
            if self._tell_unready(operation):
                continue
            # one that moves is not deleted here when it could not be added there
            if operation.vip.address in unclaimed:
                self._report(Outcome(operation, skipped=True))
            else:
                possible.append(operation)
        announcer = self._kernel.announcer
        leaving = {op.vip for op in possible if isinstance(op, DeleteAddress)}
        if announcer is not None:  # before they are gone: no frame may call clients here after
            leaving &= announcer.vips
            announcer.discard(leaving)
        errors = await self._kernel.addresses.apply_many(possible)
        for operation, error in zip(possible, errors, strict=True):
            if error is not None:
                self._failed_addresses.add(operation.vip)
                if announcer is not None and operation.vip in leaving:
                    announcer.add([operation.vip])  # it stays
            self._report(Outcome(operation, error))

    async def announcements(self, operations: list[AnnounceAddress]) -> None:
        possible = []
        for operation in operations:
            if operation.vip in self._failed_addresses:
                self._report(Outcome(operation, skipped=True))
            else:
                possible.append(operation)
        if not possible:
            return
        vips = [operation.vip for operation in possible]
        error: LbdrError | None = None
        if self._kernel.announcer is not None:
            self._kernel.announcer.add(vips)
            await self._kernel.announcer.flush()
        else:
            try:
                await announce(vips, possible[0].repeat)
            except LbdrError as failure:
                error = failure
        for operation in possible:
            self._report(Outcome(operation, error))


_Handler = Callable[[_Run, list[Any]], Awaitable[None]]
_HANDLERS: dict[type, _Handler] = {
    SetSysctl: _Run.sysctls,
    ProbeAddress: _Run.probes,
    AddAddress: _Run.addresses,
    DeleteAddress: _Run.addresses,
    AnnounceAddress: _Run.announcements,
}


# What is told of a claim waits until the VIPs are announced: a hundred lines in the journal take
# longer than the frames, and every millisecond of them is an outage.
_CLAIMING = (_Run.probes, _Run.addresses)


def _pass_on(held: list[Outcome], report: Callable[[Outcome], None]) -> None:
    for outcome in held:
        report(outcome)
    held.clear()


def _batches(operations: Sequence[IpvsOperation]) -> Iterator[list[IpvsOperation]]:
    """Operations for one send each.

    A service's real servers wait until the kernel has said that the service was added: someone else
    may have made it meanwhile, and would find them in theirs.
    """
    batch: list[IpvsOperation] = []
    adding: set[Key] = set()
    for operation in operations:
        belongs = isinstance(operation, AddRealServer) and operation.key in adding
        if belongs or len(batch) == BATCH:
            yield batch
            batch, adding = [], set()
        batch.append(operation)
        if isinstance(operation, AddService):
            adding.add(operation.service.key)
    if batch:
        yield batch


def _subsystem(operation: Operation) -> _Handler:
    return _HANDLERS.get(type(operation), _Run.services)
