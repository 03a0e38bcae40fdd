"""Plan, apply, withdraw and status without a daemon: connect, do it once, and go."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from lbdr import __version__, fastpath_pins
from lbdr.config.host import host_problems
from lbdr.config.load import Loaded, load
from lbdr.datapath import namespace
from lbdr.datapath.bpf_links import device
from lbdr.datapath.kernel import Kernel
from lbdr.desired import expand
from lbdr.director import Director
from lbdr.errors import ConfigError, Problem
from lbdr.fastpath_alone import keeper_of
from lbdr.fastpath_status import FastCounts, with_fast_path
from lbdr.marked_services import refuse_collisions
from lbdr.marks import assign, needing
from lbdr.model import DesiredState, HostNetwork, Role, Service
from lbdr.operator_states import OperatorStates, in_force, overrides
from lbdr.paths import Paths, exclusive
from lbdr.plan import Plan
from lbdr.reconcile import Reconciler
from lbdr.report import Report
from lbdr.state import StateStore
from lbdr.status import FastPathDevice, FastPathDirector, Status, director_status
from lbdr.status_alone import without_ipvs
from lbdr.vip_owners import vip_owners


@dataclass(frozen=True, slots=True)
class _Session:
    loaded: Loaded
    network: HostNetwork
    reconciler: Reconciler

    def operator_states(self) -> OperatorStates:
        """The real servers that drain or are halted by the operator's word, by service."""
        virtual_services = self.loaded.configuration.virtual_services
        return in_force(self.reconciler.state.operator, virtual_services, time.time())

    async def desired(self, *, adopt: bool = False) -> DesiredState:
        """What the kernel is to hold; the packet marks are not kept yet.

        Raises:
            ConfigError: this machine cannot do what the configuration asks.
        """
        problems = self.problems()
        if problems:
            raise ConfigError(problems)
        configuration, state = self.loaded.configuration, self.reconciler.state
        desired = expand(
            configuration,
            self.network,
            role=state.role or configuration.director.role,
            weights=overrides(self.operator_states(), state.weights),
            placed=state.owned.addresses,
            marks=assign(configuration, state.marks),
            ipvs=self.ipvs,
        )
        await refuse_collisions(
            self.loaded, self.reconciler.kernel, desired, state.owned, adopt=adopt
        )
        return desired

    @property
    def ipvs(self) -> bool:
        """Whether this kernel has it."""
        return self.reconciler.kernel.own_table is None

    def problems(self) -> list[Problem]:
        """What of the configuration this machine cannot do."""
        return host_problems(self.loaded, self.network, ipvs=self.ipvs)


@asynccontextmanager
async def _session(paths: Paths) -> AsyncIterator[_Session]:
    loaded = load(paths.config)
    store = StateStore(paths.state, namespace.identity())
    state = store.load()
    async with await Kernel.open() as kernel:
        kernel.probe = loaded.configuration.director.address_probe
        network = await kernel.addresses.observe()
        yield _Session(loaded, network, Reconciler(kernel, store, state))


async def plan(paths: Paths, *, adopt: bool = False) -> Plan:
    """What `apply` would do.

    Args:
        paths: of the director.
        adopt: take over services of others that are not as wanted.

    Raises:
        LbdrError: the configuration, the machine or the kernel does not allow it.
    """
    async with _session(paths) as session:
        desired = await session.desired(adopt=adopt)
        found, _ = await session.reconciler.plan(desired, adopt=adopt)
        return found


async def apply(paths: Paths, *, adopt: bool = False) -> Report:
    """Bring the kernel to what the configuration wants, once.

    Arguments and errors as for `plan`; ControlError where a daemon does it already.
    """
    with exclusive(paths, who="apply"):
        async with _session(paths) as session:
            desired = await session.desired(adopt=adopt)
            marked = bool(needing(session.loaded.configuration))
            # a daemon left it and nobody else would follow, or nothing else forwards
            if session.ipvs and not marked and not fastpath_pins.is_there(paths):
                return await session.reconciler.reconcile(desired, adopt=adopt)
            return await _apply_both(paths, session, desired, adopt=adopt)


async def _apply_both(
    paths: Paths, session: _Session, desired: DesiredState, *, adopt: bool
) -> Report:
    """Apply, with the programs that VIPs need before they are claimed and the fast path after."""
    reconciler, kernel = session.reconciler, session.reconciler.kernel
    director = Director(paths, kernel, reconciler, session.loaded, session.network)
    keeper = keeper_of(director, once=True)
    try:
        await keeper.begin()
        reconciler.save(marks=assign(session.loaded.configuration, reconciler.state.marks))
        report = await reconciler.reconcile(desired, adopt=adopt)
        director.network = await kernel.addresses.observe()
        await keeper.passed()
        await keeper.settle()
    finally:
        keeper.close()
    return report


async def withdraw(paths: Paths) -> Report:
    """Take everything of lbdr's out of the kernel; needs no configuration.

    Raises:
        LbdrError: the kernel or the state directory does not allow it; a daemon runs.
    """
    with exclusive(paths, who="withdraw"):
        store = StateStore(paths.state, namespace.identity())
        state = store.load()
        async with await Kernel.open() as kernel:
            report = await Reconciler(kernel, store, state).reconcile(DesiredState())
        await fastpath_pins.remove(paths)
        return report


async def status(paths: Paths) -> Status:
    """The status of a director that no daemon serves.

    Raises:
        LbdrError: the configuration, the state or the kernel cannot be read.
    """
    async with _session(paths) as session:
        configuration, state = session.loaded.configuration, session.reconciler.state
        found = director_status(
            configuration,
            role=state.role or configuration.director.role,
            services=await session.reconciler.kernel.observe_services(),
            owned=state.owned.services,
            network=session.network,
            weights=overrides(session.operator_states(), state.weights),
            marks=state.marks,
            operator=session.operator_states(),
            owners=await vip_owners(configuration, session.network),
            problems=[str(problem) for problem in session.problems()],
            config=str(paths.config),
            version=__version__,
            kernel=os.uname().release,
            daemon=None,
        )
        if session.ipvs:
            return found
        wanted = expand(
            configuration, session.network, role=Role.STANDBY, marks=state.marks, ipvs=False
        )
        return without_ipvs(_forwarding(paths, found, wanted.services.values()))


def _forwarding(paths: Paths, status: Status, services: Iterable[Service]) -> Status:
    """What forwards where no daemon runs: what one, or `apply`, left attached."""
    if not fastpath_pins.pins_of(paths).is_dir():
        off = FastPathDirector(reason="no programs are attached: `lbdr apply`, or a daemon")
        return with_fast_path(status, off, {}, {})
    devices = [
        FastPathDevice(device=device(ifindex), mode="native")
        for ifindex in fastpath_pins.served_natively(paths)
    ]
    found = fastpath_pins.counted(paths)
    counts = {
        service.name: FastCounts(
            {str(rip): served for rip, served in counted.servers.items()},
            {reason.name.lower(): count for reason, count in counted.reasons.items()},
        )
        for service in services
        if service.traffic is not None and (counted := found.get(service.traffic)) is not None
    }
    on = FastPathDirector(state="forwards", devices=devices)
    return with_fast_path(status, on, counts, {})
