"""Observe, plan, apply, verify: bring the kernel to the desired state and keep count of it."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection
from dataclasses import replace
from errno import ENOENT

from tenacity import (
    AsyncRetrying,
    RetryError,
    retry_if_result,
    stop_after_attempt,
    wait_random_exponential,
)

from lbdr.datapath.kernel import Kernel, Outcome
from lbdr.desired import SYSCTLS
from lbdr.errors import KernelError, StateError
from lbdr.marks import lingering
from lbdr.model import DesiredState, HostNetwork, Key, ObservedState, ServiceKey
from lbdr.operations import (
    AddAddress,
    AddService,
    AnnounceAddress,
    Operation,
    ProbeAddress,
    SetService,
    service_key,
)
from lbdr.ownership import claimed, narrowed, released
from lbdr.plan import Plan, make_plan
from lbdr.report import EVERYTHING, Report, Scope
from lbdr.state import State, StateStore

log = logging.getLogger(__name__)

Between = Callable[[], Awaitable[Collection[Key]]]

_ATTEMPTS = 4
_LONGEST_WAIT = 2.0  # seconds between two attempts


class Reconciler:
    """Brings the kernel to desired states, one pass after the other.

    Args:
        kernel: what is changed.
        store: where ownership is kept; it is written before the kernel is changed.
        state: what the store holds.
    """

    def __init__(self, kernel: Kernel, store: StateStore, state: State) -> None:
        self.kernel = kernel
        self.state = state
        self._store = store
        self._missing: set[str] = set()  # sysctls of which it was told
        if kernel.own_table is not None:
            kernel.own_table.load(state.table)

    async def observe(
        self, scope: Scope = EVERYTHING, network: HostNetwork | None = None
    ) -> ObservedState:
        """What the kernel holds, as far as a scope goes; the interfaces, unless just seen."""
        services = await self.kernel.observe_services(scope.services)
        if not scope.host:
            return ObservedState(services=services)
        sysctls, timeouts = self.kernel.observe_host({*SYSCTLS, *self.state.owned.sysctls})
        if network is None:
            network = await self.kernel.addresses.observe()
        return ObservedState(services, network, sysctls, timeouts)

    async def plan(
        self,
        desired: DesiredState,
        scope: Scope = EVERYTHING,
        *,
        adopt: bool = False,
        network: HostNetwork | None = None,
    ) -> tuple[Plan, HostNetwork]:
        """What is to be done, and the interfaces as they were seen for it.

        Args:
            desired: what the kernel is to hold.
            scope: how much of it is meant.
            adopt: take over services of others that are not as wanted.
            network: the interfaces as just seen; None looks.
        """
        observed = await self.observe(scope, network)
        wanted, owned = narrowed(desired, self.state.owned, scope)
        kept = lingering(desired, observed.services, owned.services)
        plan = make_plan(wanted, observed, owned, adopt=adopt, kept=kept)
        plan = replace(plan, alone=self.kernel.own_table is not None)
        if any(isinstance(operation, AddAddress) for operation in plan.operations):
            plan = self._without_unserved_vips(plan, observed, desired, scope)
        return plan, observed.network

    def _without_unserved_vips(
        self, plan: Plan, observed: ObservedState, desired: DesiredState, scope: Scope
    ) -> Plan:
        """The plan without claims of VIPs for which no service of lbdr's is there, or to be added.

        A service that was refused, or one that others made, is a reason not to call clients here.
        """
        # a pass that is not about all services has to ask which there are
        there = set(observed.services) if scope.services is None else self.kernel.service_keys()
        serving = (there & self.state.owned.services) | plan.adopted
        serving |= {op.service.key for op in plan.operations if isinstance(op, AddService)}
        served = {key.address for key in serving if isinstance(key, ServiceKey)}
        served |= {
            service.marked.address
            for key, service in desired.services.items()
            if key in serving and service.marked is not None
        }
        return replace(
            plan,
            operations=tuple(
                op
                for op in plan.operations
                if not isinstance(op, ProbeAddress | AddAddress | AnnounceAddress)
                or op.vip.address in served
            ),
        )

    async def reconcile(
        self,
        desired: DesiredState,
        scope: Scope = EVERYTHING,
        *,
        adopt: bool = False,
        attempts: int = _ATTEMPTS,
        why: str = "applied",
        network: HostNetwork | None = None,
        between: Between | None = None,
    ) -> Report:
        """Bring the kernel to what is desired, verify it, and try again what failed by chance.

        Args:
            desired: what the kernel is to hold.
            scope: how much of it this pass is about.
            adopt: take over services of others that are not as wanted.
            attempts: at most so many.
            why: the word by which operations are logged.
            network: the interfaces as just seen, for the first attempt; None looks.
            between: called between batches of operations (see Kernel.apply).

        Raises:
            StateError: ownership cannot be kept; nothing was changed then.
        """
        applied: list[Operation] = []
        silent: list[Operation] = []  # VIPs that were added and whose announcement failed

        async def serve_between() -> Collection[Key]:
            nonlocal scope
            if between is not None:  # what it served is newer than what is desired here
                scope = replace(scope, without=scope.without | frozenset(await between()))
            return scope.without

        async def attempt() -> Report:
            nonlocal network
            known, network = network, None
            plan, seen = await self.plan(desired, scope, adopt=adopt, network=known)
            plan = replace(plan, operations=(*plan.operations, *silent))
            report = await self._carry_out(plan, seen, desired, why, serve_between)
            silent[:] = [
                outcome.operation
                for outcome in report.failed
                if isinstance(outcome.operation, AnnounceAddress)
            ]
            if report.applied and not report.failed:
                rest, _ = await self.plan(desired, scope, adopt=adopt)
                report.remaining = rest.operations
            applied.extend(report.applied)
            return report

        retrying = AsyncRetrying(
            stop=stop_after_attempt(attempts),
            wait=wait_random_exponential(multiplier=0.1, max=_LONGEST_WAIT),
            retry=retry_if_result(_worth_another_attempt),
        )
        report: Report
        try:
            report = await retrying(attempt)
        except RetryError as error:
            report = error.last_attempt.result()
        report.applied = applied
        return report

    def save(self, **changes: object) -> None:
        """Replace parts of the state and keep it.

        Raises:
            StateError: it cannot be written; the state is then as before.
        """
        state = replace(self.state, **changes)  # type: ignore[arg-type]  # fields of State
        if state != self.state:
            self._store.save(state)
            self.state = state

    async def _carry_out(
        self,
        plan: Plan,
        network: HostNetwork,
        desired: DesiredState,
        why: str,
        between: Between,
    ) -> Report:
        report = Report(conflicts=plan.conflicts, alone=plan.alone)
        try:
            self.save(owned=claimed(self.state.owned, plan, desired))
        except StateError as error:
            raise StateError(
                f"{error.message}; nothing was changed in the kernel", hint=error.hint
            ) from error
        self._tell_plan(plan)
        if not plan.operations:
            return report

        def tell(outcome: Outcome) -> None:
            if outcome.skipped:
                report.skipped.append(outcome.operation)
            elif outcome.error is not None:
                log.debug("failed: %s", outcome.error)
                report.failed.append(outcome)
            else:
                log.info("%s: %s", why, report.told(outcome.operation))
                report.applied.append(outcome.operation)

        newer: Collection[Key] = ()

        async def note_between() -> Collection[Key]:
            nonlocal newer
            newer = await between()
            return newer

        await self.kernel.apply(plan.operations, network, tell, note_between)
        # what a newer pass had is as that one left it, and so is whose it is
        report.skipped = [each for each in report.skipped if service_key(each) not in newer]
        table = self.kernel.own_table
        try:
            self.save(
                owned=released(self.state.owned, report, desired),
                table=table.kept if table is not None else (),
            )
        except StateError as error:
            report.unsaved = error
        return report

    def _tell_plan(self, plan: Plan) -> None:
        """What is no operation, and yet news."""
        for key in sorted(plan.adopted, key=lambda key: key.sort_key):
            log.info("adopted: %s is there as wanted, and lbdr's from now on", key)
        for name in plan.missing_sysctls:
            if name not in self._missing:
                self._missing.add(name)
                log.warning("this kernel has no sysctl %s", name)


def _worth_another_attempt(report: Report) -> bool:
    """Whether the kernel may answer otherwise the next time."""
    return bool(report.remaining) or any(
        isinstance(outcome.error, KernelError)
        and outcome.error.transient
        # a scheduler that this kernel does not have does not appear
        and not (
            isinstance(outcome.operation, AddService | SetService) and outcome.error.errno == ENOENT
        )
        for outcome in report.failed
    )
