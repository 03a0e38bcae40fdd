"""Observe, plan, apply, verify: bring the kernel to the desired state and keep count of it."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
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
from lbdr.errors import KernelError, LbdrError, VerificationError
from lbdr.model import DesiredState, HostNetwork, MarkKey, ObservedState, ServiceKey
from lbdr.operations import (
    AddAddress,
    AddService,
    DeleteAddress,
    DeleteService,
    Operation,
    SetSysctl,
)
from lbdr.plan import Conflict, Ownership, Plan, make_plan
from lbdr.state import State, StateStore

log = logging.getLogger(__name__)

Key = ServiceKey | MarkKey
Between = Callable[[], Awaitable[Collection[Key]]]

_ATTEMPTS = 4
_LONGEST_WAIT = 2.0  # seconds between two attempts


@dataclass(frozen=True, slots=True)
class Scope:
    """What one pass is about.

    Args:
        services: only these; None for all.
        host: VIPs, sysctls and timeouts, too.
    """

    services: frozenset[Key] | None = None
    host: bool = True


EVERYTHING = Scope()


@dataclass(slots=True)
class Report:
    """What a pass did.

    Args:
        applied: operations done, in order, those of earlier attempts first.
        failed: operations that the kernel refused at the last attempt.
        skipped: operations not tried at the last attempt, since one before them failed.
        conflicts: services of others that the configuration wants otherwise.
        remaining: operations still to do although nothing failed.
    """

    applied: list[Operation] = field(default_factory=list)
    failed: list[Outcome] = field(default_factory=list)
    skipped: list[Operation] = field(default_factory=list)
    conflicts: tuple[Conflict, ...] = ()
    remaining: tuple[Operation, ...] = ()

    @property
    def clean(self) -> bool:
        """Whether the kernel now holds all that is desired."""
        return not (self.failed or self.skipped or self.conflicts or self.remaining)

    def error(self) -> LbdrError | None:
        """All that went wrong, as one error; the class tells who must act."""
        if self.clean:
            return None
        lines = [str(outcome.error) for outcome in self.failed]
        lines += [f"not tried: {operation.command}" for operation in self.skipped]
        lines += [f"{conflict}" for conflict in self.conflicts]
        lines += [f"not in the kernel although applied: {op.command}" for op in self.remaining]
        lines.append(f"applied: {len(self.applied)} operations, which stay")
        hint = "what failed is tried again by the next `lbdr apply`, or by the daemon by itself"
        if self.conflicts:
            hint += "; `lbdr apply --adopt` takes over services that others made"
        kinds = {type(outcome.error) for outcome in self.failed if outcome.error is not None}
        kind = kinds.pop() if len(kinds) == 1 and not self.conflicts else VerificationError
        return kind("\n".join(lines), hint=hint)


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
        wanted, owned = _narrowed(desired, self.state.owned, scope)
        return make_plan(wanted, observed, owned, adopt=adopt), observed.network

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

        async def attempt() -> Report:
            nonlocal network
            known, network = network, None
            plan, seen = await self.plan(desired, scope, adopt=adopt, network=known)
            report = await self._carry_out(plan, seen, desired, why, between)
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
        between: Between | None,
    ) -> Report:
        report = Report(conflicts=plan.conflicts)
        self.save(owned=_claimed(self.state.owned, plan, desired))
        if not plan.operations:
            return report

        def tell(outcome: Outcome) -> None:
            if outcome.skipped:
                report.skipped.append(outcome.operation)
            elif outcome.error is not None:
                log.debug("failed: %s", outcome.error)
                report.failed.append(outcome)
            else:
                log.info("%s: %s", why, outcome.operation.command)
                report.applied.append(outcome.operation)

        await self.kernel.apply(plan.operations, network, tell, between)
        self.save(owned=_released(self.state.owned, report.applied, desired))
        return report


def _narrowed(
    desired: DesiredState, owned: Ownership, scope: Scope
) -> tuple[DesiredState, Ownership]:
    """Desired state and ownership, as far as a scope goes."""
    if scope.services is not None:
        services = {key: desired.services[key] for key in scope.services & desired.services.keys()}
        desired = replace(desired, services=services)
        owned = replace(owned, services=owned.services & scope.services)
    if not scope.host:
        desired = DesiredState(services=desired.services)
        owned = Ownership(services=owned.services)
    return desired, owned


def _claimed(owned: Ownership, plan: Plan, desired: DesiredState) -> Ownership:
    """Ownership once a plan will have been applied, what it deletes still in it.

    Kept before anything is changed: an entry without an owner would never be deleted.
    """
    gone = plan.vanished
    services = set(owned.services - gone.services | plan.adopted)
    addresses = set(owned.addresses - gone.addresses)
    sysctls = {name: was for name, was in owned.sysctls.items() if name not in gone.sysctls}
    for operation in plan.operations:
        match operation:
            case AddService(service):
                services.add(service.key)
            case AddAddress(vip):
                addresses.add(vip)
    for name, value in plan.former_sysctls.items():
        if name in desired.sysctls:
            sysctls.setdefault(name, value)
    return Ownership(frozenset(services), frozenset(addresses), sysctls)


def _released(owned: Ownership, applied: Iterable[Operation], desired: DesiredState) -> Ownership:
    """Ownership without what was deleted and put back."""
    services, addresses, sysctls = set(owned.services), set(owned.addresses), dict(owned.sysctls)
    for operation in applied:
        match operation:
            case DeleteService(key):
                services.discard(key)
            case DeleteAddress(vip):
                addresses.discard(vip)
            case SetSysctl(name, _) if name not in desired.sysctls:
                sysctls.pop(name, None)
    return Ownership(frozenset(services), frozenset(addresses), sysctls)


def _worth_another_attempt(report: Report) -> bool:
    """Whether the kernel may answer otherwise the next time."""
    return bool(report.remaining) or any(
        isinstance(outcome.error, KernelError)
        and outcome.error.transient
        # a scheduler that this kernel does not have does not appear
        and not (isinstance(outcome.operation, AddService) and outcome.error.errno == ENOENT)
        for outcome in report.failed
    )
