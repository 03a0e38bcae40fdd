"""The daemon: keeps the kernel as the configuration wants it, and answers on the control socket.

Every event only marks what is to be looked at; one task reconciles. Stopping, or being killed,
leaves the datapath as it is: the next start finds it and plans nothing.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Collection
from contextlib import AsyncExitStack, suppress
from dataclasses import replace

from lbdr.config.host import host_problems
from lbdr.config.load import Loaded, load
from lbdr.config.without_ipvs import needs_ipvs
from lbdr.control.server import ControlServer
from lbdr.datapath import arp, namespace
from lbdr.datapath.kernel import Kernel
from lbdr.datapath.notices import Change, ChangeKind
from lbdr.director import Director
from lbdr.drift import DriftWatch
from lbdr.errors import ConfigError, LbdrError
from lbdr.events import EventKind, EventLog
from lbdr.fastpath_alone import keeper_of
from lbdr.health_keeper import HealthKeeper
from lbdr.marked_services import be_able_to_mark, refuse_collisions
from lbdr.marks import assign
from lbdr.model import DesiredState, Key, VirtualAddress
from lbdr.notify import notify, watchdog
from lbdr.operations import service_key
from lbdr.paths import Paths, exclusive
from lbdr.reconcile import Reconciler
from lbdr.report import Report, Scope
from lbdr.requests import Requests
from lbdr.state import StateStore

log = logging.getLogger(__name__)


_FIRST_RETRY = 1.0  # seconds
_LONGEST_RETRY = 30.0
_CONFLICTS_EVERY = 60.0
_REFUSED = "reload refused, nothing changed"


async def run(paths: Paths) -> None:
    """Start, serve, and stop on SIGTERM, SIGINT or a withdrawal.

    Args:
        paths: of the director.

    Raises:
        LbdrError: it cannot start; nothing was changed then.
    """
    async with AsyncExitStack() as stack:
        loaded = load(paths.config)
        stack.enter_context(exclusive(paths, who="daemon"))
        store = StateStore(paths.state, namespace.identity())
        state = store.load()
        kernel = await stack.enter_async_context(await Kernel.open())
        director = Director(paths, kernel, Reconciler(kernel, store, state), loaded)
        director.events = EventLog(
            paths.state, lambda reason: director.set_trouble("keeping events", reason)
        )
        stack.callback(director.events.close)
        director.network = await kernel.addresses.observe()
        problems = director.host_problems()
        if kernel.own_table is not None and needs_ipvs(loaded):
            raise ConfigError(problems)
        for problem in problems:  # at boot an interface may come late
            log.error("%s", problem)
        await _refuse_collisions(director, loaded)
        director.use(loaded)
        daemon = Daemon(director)
        stack.callback(daemon.fastpath.close)
        await daemon.fastpath.begin()
        server = ControlServer(paths, Requests(director, daemon).handle)
        await server.start()
        stack.push_async_callback(server.close)
        await daemon.serve()


async def _refuse_collisions(director: Director, loaded: Loaded) -> None:
    state = director.reconciler.state
    former = director.loaded.configuration
    desired = director.desired_by(loaded, assign(loaded.configuration, state.marks, former))
    await refuse_collisions(loaded, director.kernel, desired, state.owned)


class Daemon:
    """The tasks of a running director.

    Args:
        director: everything opened, nothing changed yet.
    """

    def __init__(self, director: Director) -> None:
        self._director = director
        self._retry = _FIRST_RETRY
        self._retry_timer: asyncio.TimerHandle | None = None
        self._served_between: set[Key] = set()
        self._in_force = DesiredState()  # what the kernel was seen to hold, as wanted
        self._reloading = asyncio.Lock()
        self._status = ""  # as the service manager knows it
        self.fastpath = keeper_of(director)
        self._came_up: set[str] = set()  # interfaces whose neighbours may have forgotten the VIPs
        self._held: set[VirtualAddress] = set()
        self.health = HealthKeeper(director)

    async def serve(self) -> None:
        """Run until the director is to stop; a task that fails ends the daemon, loudly."""
        director = self._director
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, director.stop.set)
        self.health.configure()
        try:
            async with asyncio.TaskGroup() as group:
                tasks = {
                    group.create_task(coroutine)
                    for coroutine in (
                        self._reconcile(),
                        self._watch_network(),
                        self._watch_drift(),
                        self._watch_others(),
                        self.fastpath.run(),
                        self.health.run(),
                        self._keep_events(),
                        watchdog(),
                    )
                }

                def hangup() -> None:
                    task = group.create_task(self._hangup())
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)

                loop.add_signal_handler(signal.SIGHUP, hangup)
                await director.stop.wait()
                notify("STOPPING=1")
                for task in list(tasks):
                    task.cancel()
        finally:
            if self._retry_timer is not None:
                self._retry_timer.cancel()
            await director.announcer.close()
        if director.withdrawn:
            await self.fastpath.end("withdrawn", hand_over=False)
        left = "all withdrawn" if director.withdrawn else "IPVS and VIPs stay"
        director.tell(EventKind.DAEMON, f"stopped: {left}")

    async def reload(self) -> None:
        """Read the configuration again, and put it in force where it is right.

        Problems with this machine that were there before are no reason to refuse.

        Raises:
            ConfigError: it is not right; nothing changes then.
        """
        director = self._director
        async with self._reloading:  # one after the other: the last word is the newest file's
            loaded = await asyncio.to_thread(load, director.paths.config)
            director.network = await director.kernel.addresses.observe()
            known = {problem.message for problem in director.host_problems()}
            ipvs = director.kernel.own_table is None
            found = host_problems(loaded, director.network, ipvs=ipvs)
            new = [problem for problem in found if problem.message not in known]
            if new:
                raise ConfigError(new)
            await _refuse_collisions(director, loaded)
            await be_able_to_mark(loaded, self.fastpath.open)
            director.use(loaded)
            self._forget_weights()
            self.health.configure()
            director.withdrawn = False
        director.set_trouble(_REFUSED, "")
        words = f"configuration {director.paths.config} is in force"
        director.tell(EventKind.CONFIGURATION, words)
        director.dirty.mark_everything()

    def _forget_weights(self) -> None:
        """Weights of servers that left the file: one of that name that comes later is another."""
        director = self._director
        there = {
            (virtual.name, server.name)
            for virtual in director.loaded.configuration.virtual_services
            for server in virtual.real_servers
        }
        weights = director.reconciler.state.weights
        gone = sorted(weights.keys() - there)
        for service, server in gone:
            log.info("the weight of %s in %s is forgotten: it left the file", server, service)
        if gone:
            kept = {key: weight for key, weight in weights.items() if key in there}
            director.reconciler.save(weights=kept)

    async def _hangup(self) -> None:
        try:
            await self.reload()
        except LbdrError as error:
            self._director.set_trouble(_REFUSED, str(error))

    # --- reconciling -----------------------------------------------------------------------------

    async def _reconcile(self) -> None:
        director = self._director
        while True:
            await director.dirty.wait()
            scope, waiting = director.dirty.take()
            try:
                report = await self._pass(scope)
            except LbdrError as error:
                self._fail(error, waiting)
            else:
                director.set_trouble("reconciling", "")
                _tell(waiting, report)

    async def _pass(self, scope: Scope) -> Report:
        director = self._director
        self._served_between.clear()
        if scope.host:
            director.network = await director.kernel.addresses.observe()
        desired = director.desired()
        drift = self._was_in_force(desired, scope)
        try:
            report = await director.reconciler.reconcile(
                desired,
                scope,
                why="drift, put back" if drift else "applied",
                network=director.network,
                between=self._between,
            )
        finally:
            if scope.host:
                await self._announce_what_is_held()
            await self.fastpath.passed()
        for operation in report.applied if drift else ():
            director.keep(EventKind.DRIFT, report.told(operation), service_key(operation))
        director.take_report(report, replace(scope, without=frozenset(self._served_between)))
        if report.unfinished:
            self._try_again()
            return report
        if scope.services is None:
            self._retry = _FIRST_RETRY
            if director.withdrawn:
                director.stop.set()
        if report.clean:
            self._put_in_force(desired, scope)
        if scope.host:
            self._tell_status()
        return report

    def _tell_status(self) -> None:
        director = self._director
        count = len(director.loaded.configuration.virtual_services)
        status = f"{director.role}, {count} virtual services"
        if status != self._status:
            self._status = status
            notify(f"STATUS={status}")

    async def _announce_what_is_held(self) -> None:
        """Whatever made a VIP come or go: only one that is here calls clients here."""
        director = self._director
        director.network = await director.kernel.addresses.observe()
        held, announcer = director.held(), director.announcer
        for vip in sorted(held - self._held, key=str):
            director.keep(EventKind.VIP, f"{vip.address} is here, on {vip.interface}")
        for vip in sorted(self._held - held, key=str):
            director.keep(EventKind.VIP, f"{vip.address} is here no more")
        self._held = held
        announcer.discard(announcer.vips - held)
        back = {vip for vip in held if vip.interface in self._came_up}
        self._came_up.clear()
        # who took a VIP over while the link was down is told of and not called back at once; the
        # schedule goes on, since it may as well be a real server that should be silent
        back -= (await self._others(back)).keys()
        announcer.add(back | held - announcer.vips)

    async def _others(self, vips: Collection[VirtualAddress]) -> dict[VirtualAddress, str]:
        """Other hosts that answer for VIPs which this one holds, by MAC; told as trouble."""
        director = self._director
        try:
            found = await arp.probe(list(vips), director.network, director.kernel.probe)
        except LbdrError as error:
            log.debug("nobody was asked for VIPs: %s", error)
            return {}
        for vip in vips:
            mac = found.get(vip, "")
            words = f"the host with MAC {mac} answers for it as well: a real server that needs "
            words += "`lbdr solve-arp`, or a second active director"
            director.set_trouble(_vip_subject(vip), words if mac else "")
        return found

    async def _watch_others(self) -> None:
        """Ask for held VIPs from time to time (RFC 5227 section 2.4: conflicts may come later)."""
        director = self._director
        while True:
            settings = director.loaded.configuration.director.gratuitous_arp
            await asyncio.sleep(min(settings.refresh or _CONFLICTS_EVERY, _CONFLICTS_EVERY))
            held = director.held()
            for subject in list(director.trouble):
                if subject.startswith("VIP ") and subject not in map(_vip_subject, held):
                    director.set_trouble(subject, "")
            await self._others(held)

    def _was_in_force(self, desired: DesiredState, scope: Scope) -> bool:
        """Whether all that a pass is about was as wanted already: what differs now is drift."""
        before = self._in_force
        left = self._director.reconciler.state.owned.services - desired.services.keys()
        if left and (scope.services is None or left & scope.services):
            return False  # what lingered is deleted, which is no drift
        every = desired.services.keys() | before.services.keys()  # one may have left the file
        keys = every if scope.services is None else scope.services
        return (not scope.host or _of_host(before) == _of_host(desired)) and all(
            before.services.get(key) == desired.services.get(key) for key in keys
        )

    def _put_in_force(self, desired: DesiredState, scope: Scope) -> None:
        keys = desired.services.keys() if scope.services is None else scope.services
        seen = {key: desired.services[key] for key in keys & desired.services.keys()}
        others = {} if scope.services is None else dict(self._in_force.services)
        host = desired if scope.host else self._in_force
        self._in_force = replace(host, services={**others, **seen})

    async def _between(self) -> Collection[Key]:
        """Serve services that were marked while a long pass is under way."""
        director = self._director
        services, waiting = director.dirty.take_services()
        if services:
            scope = Scope(services=services, host=False)
            try:
                report = await director.reconciler.reconcile(director.desired(), scope, attempts=1)
            except LbdrError as error:
                self._fail(error, waiting)
            else:
                director.take_report(report, scope)
                if report.unfinished:
                    self._try_again()
                _tell(waiting, report)
            self._served_between |= services
        return self._served_between

    def _fail(self, error: LbdrError, waiting: list[asyncio.Future[Report]]) -> None:
        """A pass ended early: say so, tell those who wait, and look again later."""
        self._director.set_trouble("reconciling", str(error))
        self._try_again()
        for future in waiting:
            if not future.done():
                future.set_exception(error)

    def _try_again(self) -> None:
        """Look at everything again later, ever later while it goes on failing."""
        if self._retry_timer is None:
            loop = asyncio.get_running_loop()
            self._retry_timer = loop.call_later(self._retry, self._retry_now)
            self._retry = min(self._retry * 2, _LONGEST_RETRY)

    def _retry_now(self) -> None:
        self._retry_timer = None
        self._director.dirty.mark_everything()

    async def _keep_events(self) -> None:
        if self._director.events is not None:
            await self._director.events.run()

    # --- watching --------------------------------------------------------------------------------

    async def _watch_drift(self) -> None:
        """The first pass, the word to the service manager, and then polling."""
        director = self._director
        director.dirty.mark_everything()
        with suppress(LbdrError):  # told as trouble, and tried again
            await director.dirty.settled()
        configuration = director.loaded.configuration
        count = len(configuration.virtual_services)
        name = configuration.director.name
        words = f"director {name} ready: {director.role}, {count} virtual services"
        director.tell(EventKind.DAEMON, words)
        notify("READY=1", f"STATUS={self._status}")
        watch = DriftWatch(director.kernel)
        while True:
            self._poll(watch)
            await asyncio.sleep(director.loaded.configuration.director.drift_check)

    def _poll(self, watch: DriftWatch) -> None:
        director = self._director
        try:
            scope = watch.poll(director.desired(), director.reconciler.state.owned)
        except LbdrError as error:
            director.set_trouble("watching IPVS and sysctls", str(error))
            return
        director.set_trouble("watching IPVS and sysctls", "")
        if scope is None:
            return
        failing = director.undone if self._retry_timer is not None else {}
        # what failed is looked at when its time comes
        services = (scope.services or frozenset()) - failing.keys()
        director.dirty.mark(services, host=scope.host and None not in failing)

    async def _watch_network(self) -> None:
        director = self._director
        while True:
            try:
                async for change in director.kernel.addresses.changes():
                    director.set_trouble("watching interfaces", "")
                    self._take_change(change)
            except LbdrError as error:
                director.set_trouble("watching interfaces", str(error))
                await asyncio.sleep(_FIRST_RETRY)

    def _take_change(self, change: Change) -> None:
        if change.kind is ChangeKind.LINK_UP:
            # a switch whose port was down has forgotten where the VIPs are
            self._came_up.add(change.interface)
        self._director.dirty.mark(host=True)


def _vip_subject(vip: VirtualAddress) -> str:
    return f"VIP {vip.address} on {vip.interface}"


def _of_host(state: DesiredState) -> DesiredState:
    """A state without its services."""
    return replace(state, services={})


def _tell(waiting: list[asyncio.Future[Report]], report: Report) -> None:
    for future in waiting:
        if not future.done():
            future.set_result(report)
