"""How ownership changes with a pass; pure.

It is kept before the kernel is changed, and again after: a crash in between leaves a claim too
many, never an entry without an owner.
"""

from __future__ import annotations

from dataclasses import replace

from lbdr.model import DesiredState, Timeouts
from lbdr.operations import (
    AddAddress,
    AddService,
    DeleteAddress,
    DeleteService,
    SetSysctl,
    SetTimeouts,
)
from lbdr.plan import Ownership, Plan
from lbdr.report import Report, Scope


def narrowed(
    desired: DesiredState, owned: Ownership, scope: Scope
) -> tuple[DesiredState, Ownership]:
    """Desired state and ownership, as far as a scope goes."""
    if scope.services is not None or scope.without:
        kept = desired.services.keys() if scope.services is None else scope.services
        kept = frozenset(kept) - scope.without
        services = {key: wanted for key, wanted in desired.services.items() if key in kept}
        desired = replace(desired, services=services)
        owned = replace(
            owned,
            services=(owned.services if scope.services is None else owned.services & scope.services)
            - scope.without,
        )
    if not scope.host:
        desired = DesiredState(services=desired.services)
        owned = Ownership(services=owned.services)
    return desired, owned


def claimed(owned: Ownership, plan: Plan, desired: DesiredState) -> Ownership:
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
    timeouts = None if plan.vanished.timeouts else owned.timeouts
    wanted, former = desired.timeouts, plan.former_timeouts
    if wanted is not None and former is not None:
        known = timeouts or Timeouts()
        timeouts = Timeouts(  # only of those that lbdr sets
            known.tcp or (former.tcp if wanted.tcp else 0),
            known.tcp_fin or (former.tcp_fin if wanted.tcp_fin else 0),
            known.udp or (former.udp if wanted.udp else 0),
        )
    return Ownership(frozenset(services), frozenset(addresses), sysctls, timeouts)


def released(owned: Ownership, report: Report, desired: DesiredState) -> Ownership:
    """Ownership without what was deleted, what was put back, and what could not be made."""
    services, addresses, sysctls = set(owned.services), set(owned.addresses), dict(owned.sysctls)
    timeouts = owned.timeouts
    for operation in report.applied:
        match operation:
            case DeleteService(key):
                services.discard(key)
            case DeleteAddress(vip):
                addresses.discard(vip)
            case SetSysctl(name, _) if name not in desired.sysctls:
                sysctls.pop(name, None)
            case SetTimeouts() if desired.timeouts is None:
                timeouts = None
    for operation in (*(outcome.operation for outcome in report.failed), *report.skipped):
        match operation:
            case AddService(service):
                services.discard(service.key)
            case AddAddress(vip):
                addresses.discard(vip)
    return Ownership(frozenset(services), frozenset(addresses), sysctls, timeouts)
