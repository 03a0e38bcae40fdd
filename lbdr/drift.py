"""Noticing what others change in IPVS and in sysctls, which announce nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lbdr.datapath import ipvs_text
from lbdr.datapath.kernel import Kernel
from lbdr.desired import SYSCTLS
from lbdr.model import DesiredState, Key, ObservedState
from lbdr.plan import Ownership, make_plan, service_operations
from lbdr.report import Scope

AUDITED = 10
"""Services compared by netlink at each poll, in turn: the text lacks flags and thresholds."""


class DriftWatch:
    """Compares the kernel with what it held at the last poll, and a part of it with the wanted.

    The text table is read whole; only when it differs are its services told apart. A change that
    lbdr made itself shows up as well, once: looking at those services again proves the change.

    Args:
        kernel: to be read.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._raw = b""
        self._table = b""
        self._next = 0

    def poll(self, desired: DesiredState, owned: Ownership) -> Scope | None:
        """What is to be looked at again; None when nothing is.

        Raises:
            KernelError: it cannot be read.
        """
        services = self._changed() & (desired.services.keys() | owned.services)
        services |= self._audit(desired)
        services |= owned.services - desired.services.keys()  # they linger (lbdr.marks)
        host = self._host_differs(desired, owned)
        if not services and not host:
            return None
        return Scope(services=frozenset(services), host=host)

    def _changed(self) -> set[Key]:
        if self._kernel.own_table is not None:
            return set()  # in this process: nobody else changes it
        raw = ipvs_text.read()
        if raw == self._raw:
            return set()
        before, self._raw = self._table, raw
        self._table = ipvs_text.configuration(raw)
        if not before or before == self._table:
            return set()
        return ipvs_text.changed(before, self._table)

    def _audit(self, desired: DesiredState) -> set[Key]:
        keys: Sequence[Key] = list(desired.services)
        if not keys:
            return set()
        start = self._next % len(keys)
        self._next = start + AUDITED
        return {
            key
            for key in keys[start : start + AUDITED]
            if any(service_operations(desired.services[key], self._kernel.ipvs.service(key)))
        }

    def _host_differs(self, desired: DesiredState, owned: Ownership) -> bool:
        sysctls, timeouts = self._kernel.observe_host({*SYSCTLS, *owned.sysctls})
        seen = ObservedState(sysctls=sysctls, timeouts=timeouts)
        wanted = replace(desired, services={}, addresses=frozenset())
        return bool(make_plan(wanted, seen, Ownership(sysctls=owned.sysctls)).operations)
