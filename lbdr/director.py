"""What the daemon knows of its director; shared by its tasks, all on one event loop."""

from __future__ import annotations

import asyncio
import logging
import operator
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from lbdr.config.host import host_problems
from lbdr.config.load import Loaded
from lbdr.datapath.announce import Announcer
from lbdr.datapath.kernel import Kernel
from lbdr.desired import Weights, expand
from lbdr.dirty import Dirty
from lbdr.effective import by_health
from lbdr.errors import Problem
from lbdr.events import EventKind, EventLog
from lbdr.health.decision import Decision
from lbdr.marks import Marks, assign
from lbdr.model import DesiredState, HostNetwork, Key, Role, VirtualAddress
from lbdr.operator_states import OperatorStates, in_force, next_deadline, overrides
from lbdr.paths import Paths
from lbdr.reconcile import Reconciler
from lbdr.report import Report, Scope

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Director:
    """A director at run time.

    Args:
        paths: its files.
        kernel: open.
        reconciler: with the state.
        loaded: the configuration in force.
        network: the interfaces as last seen.
        dirty: what is to be looked at again.
        undone: what the last pass over it left undone, by service; None for what is of none.
        trouble: what else is wrong, by subject.
        stop: set when the daemon is to end.
        withdrawn: everything of lbdr's is to leave the kernel.
        events: where what happens is kept; None without a daemon.
        decisions: who serves, by virtual service; none without a daemon.
    """

    paths: Paths
    kernel: Kernel
    reconciler: Reconciler
    loaded: Loaded
    network: HostNetwork = field(default_factory=HostNetwork)
    dirty: Dirty = field(default_factory=Dirty)
    undone: dict[Key | None, list[str]] = field(default_factory=dict)
    trouble: dict[str, str] = field(default_factory=dict)
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    withdrawn: bool = False
    events: EventLog | None = None
    decisions: Mapping[str, Decision] = field(default_factory=dict)
    _basis: tuple[object, ...] = ()
    _desired: DesiredState = field(default_factory=DesiredState)

    @property
    def configured_role(self) -> Role:
        """The configuration's role."""
        return self.loaded.configuration.director.role

    @property
    def role(self) -> Role:
        """The role set at run time, else the configuration's."""
        return self.reconciler.state.role or self.configured_role

    def desired(self) -> DesiredState:
        """What the kernel is to hold, by the interfaces as last seen."""
        if self.withdrawn:
            return DesiredState()
        state = self.reconciler.state
        placed = state.owned.addresses
        # asked at every poll: expanded anew only when one of its sources was replaced
        due = next_deadline(state.operator, time.time())
        basis = (
            *(self.loaded, self.network, self.role, placed),
            *(state.weights, state.operator, due, state.marks, self.decisions),
        )
        if len(self._basis) != len(basis) or any(map(operator.is_not, self._basis, basis)):
            self._desired = self.desired_by(self.loaded, state.marks)
            self._basis = basis
        return self._desired

    def desired_by(self, loaded: Loaded, marks: Marks) -> DesiredState:
        """What the kernel would be to hold by another configuration.

        Args:
            loaded: the configuration.
            marks: of its services that need one.
        """
        state, virtual_services = self.reconciler.state, loaded.configuration.virtual_services
        states = in_force(state.operator, virtual_services, time.time())
        return expand(
            loaded.configuration,
            self.network,
            role=state.role or loaded.configuration.director.role,
            weights={**overrides(states, state.weights), **by_health(self.decisions)},
            placed=state.owned.addresses,
            marks=marks,
            ipvs=self.kernel.own_table is None,
        )

    def weights(self) -> Weights:
        """What stands over the file's weights now."""
        state = self.reconciler.state
        return {**overrides(self.operator_states(), state.weights), **by_health(self.decisions)}

    def operator_states(self) -> OperatorStates:
        """The real servers that drain or are halted by the operator's word, by service."""
        virtual_services = self.loaded.configuration.virtual_services
        return in_force(self.reconciler.state.operator, virtual_services, time.time())

    def use(self, loaded: Loaded) -> None:
        """Put a configuration in force; the caller marks what is to be looked at.

        Raises:
            StateError: which packet marks its services have cannot be kept.
        """
        former = self.loaded.configuration
        marks = assign(loaded.configuration, self.reconciler.state.marks, former)
        self.reconciler.save(marks=marks)
        self.loaded = loaded
        settings = loaded.configuration.director
        self.kernel.probe = settings.address_probe
        self.announcer.configure(settings.gratuitous_arp)

    @property
    def announcer(self) -> Announcer:
        """What announces the VIPs that this host holds."""
        if self.kernel.announcer is None:
            settings = self.loaded.configuration.director.gratuitous_arp
            self.kernel.announcer = Announcer(settings)
        return self.kernel.announcer

    def held(self) -> set[VirtualAddress]:
        """The wanted VIPs that this host has."""
        return {
            vip
            for vip in self.desired().addresses
            if vip.interface in self.network.holders(vip.address)
        }

    def host_problems(self) -> list[Problem]:
        """What of the configuration this machine cannot do."""
        return host_problems(self.loaded, self.network, ipvs=self.kernel.own_table is None)

    def take_report(self, report: Report, scope: Scope) -> None:
        """Remember what a pass left undone, and log what of it is news."""
        undone = report.undone()
        for subject in [subject for subject in self.undone if _is_in(subject, scope)]:
            if subject not in undone:
                del self.undone[subject]
        for subject, lines in undone.items():
            before = self.undone.get(subject, [])
            self.undone[subject] = lines
            for line in lines:
                if line not in before:
                    log.error("%s", line)
                    self.keep(EventKind.PROBLEM, line, subject)

    def keep(
        self, kind: EventKind, text: str, service: Key | str | None = None, real_server: str = ""
    ) -> None:
        """Keep an event.

        Args:
            kind: what it is about.
            text: what happened.
            service: its key or its name, where it is of one.
            real_server: its name, where it is of one.
        """
        if self.events is None:
            return
        if service is not None and not isinstance(service, str):
            wanted = self.desired().services.get(service)
            service = wanted.name if wanted is not None else ""
        self.events.add(kind, text, virtual_service=service or "", real_server=real_server)

    def tell(
        self, kind: EventKind, text: str, service: Key | str | None = None, real_server: str = ""
    ) -> None:
        """Log an event, and keep it; arguments as for `keep`."""
        log.info("%s", text)
        self.keep(kind, text, service, real_server)

    def set_trouble(self, subject: str, reason: str) -> None:
        """Keep what is wrong for status, and log it when it begins, changes and ends."""
        if self.trouble.get(subject, "") == reason:
            return
        if reason:
            self.trouble[subject] = reason
            log.error("%s: %s", subject, reason)
            self.keep(EventKind.PROBLEM, f"{subject}: {reason}")
        else:
            del self.trouble[subject]
            log.info("%s: works again", subject)
            self.keep(EventKind.PROBLEM, f"{subject}: works again")

    def problems(self) -> list[str]:
        """What needs somebody, a line each."""
        lines = [str(problem) for problem in self.host_problems()]
        lines += self._foreign_vips()
        lines += [f"{subject}: {reason}" for subject, reason in sorted(self.trouble.items())]
        return lines + [line for lines_ in self.undone.values() for line in lines_]

    def _foreign_vips(self) -> list[str]:
        """VIPs that a standby holds all the same: lbdr did not add them, and leaves them alone."""
        if self.role is Role.ACTIVE:
            return []
        owned = {vip.address for vip in self.reconciler.state.owned.addresses}
        vips = {virtual.address for virtual in self.loaded.configuration.virtual_services}
        return [
            f"standby, and {vip} is on {', '.join(holders)} all the same: lbdr did not add it"
            for vip in sorted(vips - owned, key=str)
            if (holders := self.network.holders(vip))
        ]


def _is_in(subject: Key | None, scope: Scope) -> bool:
    if subject is None:
        return scope.host
    return subject not in scope.without and (scope.services is None or subject in scope.services)
